//! Agents as events on a line of time. When an agent may start is decided by `villus_gate`, how long it waits after a
//! failure by `villus_kvstore`: the code that agents run.

use std::{cmp::Reverse, collections::BinaryHeap, num::NonZeroU32, time::Duration};

use fastrand::Rng;
use serde::Serialize;
use thiserror::Error;
use villus_gate::{Moment, State, Verdict, rules, window};
use villus_kvstore::{ClusterSize, Pace, Pages};
use villus_table::Backoff;

use crate::kvstore::ENTRY;

/// How long an agent waits for an answer, as its client of etcd does.
const PATIENCE: u64 = 10_000_000;
/// To the store and back, in microseconds.
const ROUND_TRIP: u64 = 500;
/// Events that an agent's start is cut into at most; each stands for as many requests as there are.
const STEPS: u32 = 64;
/// Requests of a start that are no pages of lists: locks, leases, own keys, watches.
const OWN: u32 = 50;
/// How often an agent of a small cluster looks whether the store is well.
const STATUS: Duration = Duration::from_secs(30);
/// Longest simulation.
const LONGEST: Duration = Duration::from_secs(48 * 3600);

/// What happens.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scenario {
    /// Nodes of the cluster.
    pub nodes: NonZeroU32,
    /// Addresses that each agent lists when it starts.
    pub addresses: u32,
    /// Identities that each agent lists when it starts.
    pub identities: u32,
    /// Requests a second that the store answers.
    pub capacity: NonZeroU32,
    /// For how long after the nodes are back the store is still gone.
    #[serde(serialize_with = "seconds")]
    pub outage: Duration,
    /// Within which time the nodes are back.
    #[serde(serialize_with = "seconds")]
    pub spread: Duration,
    /// The gate's window.
    #[serde(serialize_with = "seconds")]
    pub window: Duration,
    /// Chance begins here, so that a simulation can be repeated.
    pub seed: u64,
}

/// A scenario that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScenarioError {
    /// Too long.
    #[error("{0} is longer than the 48 h that are simulated; shorten it")]
    TooLong(&'static str),
    /// Too large.
    #[error(
        "a start of {0} requests is more than is simulated; lower the numbers of addresses and identities"
    )]
    TooLarge(u64),
    /// The backoff is none.
    #[error("the backoff cannot be used: {0}")]
    Backoff(String),
}

/// What the store sees.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Curve {
    /// Requests in each second.
    pub requests: Vec<u64>,
    /// Most requests in a second.
    pub peak: u64,
    /// The second in which that was.
    pub peak_at: u64,
    /// Requests a second in the busiest minute.
    pub busiest_minute: f64,
    /// Seconds in which the store was asked for at least nineteen twentieths of what it can answer.
    pub saturated: u64,
    /// All requests.
    pub total: u64,
    /// Requests whose answer came too late or not at all.
    pub failed: u64,
    /// Seconds until half of the agents were ready.
    pub half_ready: Option<u64>,
    /// Seconds until all agents were ready; none if some were not at the end.
    pub all_ready: Option<u64>,
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

// === impl Scenario ===

impl Scenario {
    /// A cluster of so many nodes as the published ones are: thirty pods a node, one identity for fifteen pods; the window
    /// that follows from the size; a store that answers 2,000 requests a second, most of them pages of thousands of entries,
    /// and comes back five minutes after the nodes.
    #[must_use]
    pub fn of_nodes(nodes: NonZeroU32) -> Self {
        let addresses = nodes.get().saturating_mul(30);
        Self {
            nodes,
            addresses,
            identities: addresses / 15,
            capacity: NonZeroU32::MIN.saturating_add(1_999),
            outage: Duration::from_secs(300),
            spread: Duration::from_secs(60),
            window: window::of_nodes(nodes),
            seed: 1,
        }
    }

    /// Requests of one start.
    #[must_use]
    pub fn requests_of_a_start(&self) -> u64 {
        let pages = |count: u32| Pages::count(u64::from(count), ENTRY);
        pages(self.addresses) + pages(self.identities) + pages(self.nodes.get()) + u64::from(OWN)
    }

    /// Requests a second when nothing happens: every agent looks from time to time whether the store is well.
    #[must_use]
    pub fn quiet(&self) -> f64 {
        f64::from(self.nodes.get()) / self.size().stretch(STATUS).as_secs_f64()
    }

    fn size(&self) -> ClusterSize {
        let size = ClusterSize::default();
        size.set(self.nodes.get() as usize);
        size
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Asks the gate.
    Ask,
    /// Sends its next requests.
    Send,
    /// Looks whether the store is well.
    Look,
}

struct Agent {
    gate: State,
    /// Requests that its start still needs.
    left: u64,
    failures: u32,
}

/// Simulates a scenario, with the gate or without it, until all agents are ready and a little longer.
///
/// # Errors
/// It is too large or too long.
pub fn simulate(scenario: &Scenario, with_gate: bool) -> Result<Curve, ScenarioError> {
    for (what, time) in
        [("the outage", scenario.outage), ("the spread", scenario.spread), ("the window", scenario.window)]
    {
        if time > LONGEST / 4 {
            return Err(ScenarioError::TooLong(what));
        }
    }
    let start = scenario.requests_of_a_start();
    if start > 1_000_000 {
        return Err(ScenarioError::TooLarge(start));
    }
    let backoff = Backoff::try_new(Duration::from_millis(200), Duration::from_secs(30), 0.5)
        .map_err(|error| ScenarioError::Backoff(error.to_string()))?;
    let mut world = World {
        scenario,
        pace: Pace::new(backoff, scenario.size()),
        chance: Rng::with_seed(scenario.seed),
        store_free: 0,
        burst: start.div_ceil(u64::from(STEPS)).max(1),
        events: BinaryHeap::new(),
        ready: Vec::new(),
        curve: Curve::default(),
    };
    let mut agents: Vec<Agent> = (0..scenario.nodes.get()).map(|_| world.agent(start)).collect();
    for index in 0..agents.len() {
        let back = world.chance.u64(0..=micros(scenario.spread));
        world.at(back, index, if with_gate { What::Ask } else { What::Send });
    }
    while let Some(Reverse((time, index, what))) = world.events.pop() {
        let done = world.ready.len() == agents.len();
        // A quarter of an hour of quiet at the end shows where it leads.
        let last = world.ready.last().copied().unwrap_or_default();
        if time > micros(LONGEST) || (done && time > last + micros(Duration::from_secs(900))) {
            break;
        }
        if let Some(agent) = agents.get_mut(index) {
            world.step(time, index, what, agent);
        }
    }
    Ok(world.finish(agents.len()))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A moment of the simulation, in another boot than that in which agents ran before.
fn moment(time: u64) -> Moment {
    Moment { unix_ms: 1_800_000_000_000 + time / 1000, boot: "after".to_owned(), uptime_ms: time / 1000 }
}

struct World<'a> {
    scenario: &'a Scenario,
    pace: Pace,
    chance: Rng,
    /// When the store has answered all it was asked, in microseconds.
    store_free: u64,
    burst: u64,
    events: BinaryHeap<Reverse<(u64, usize, What)>>,
    /// When agents became ready, in order.
    ready: Vec<u64>,
    curve: Curve,
}

impl World<'_> {
    /// An agent that ran for a month before everything went down.
    fn agent(&self, left: u64) -> Agent {
        let month = 30 * 86_400_000;
        let before = Moment { unix_ms: 1_800_000_000_000 - month, boot: "before".to_owned(), uptime_ms: 0 };
        Agent { gate: State { started: Some(before), ..State::new_node() }, left, failures: 0 }
    }

    fn at(&mut self, time: u64, index: usize, what: What) {
        self.events.push(Reverse((time, index, what)));
    }

    fn step(&mut self, time: u64, index: usize, what: What, agent: &mut Agent) {
        match what {
            What::Ask => {
                match rules::ask(&mut agent.gate, &moment(time), self.scenario.window, &mut self.chance) {
                    Verdict::Start(_) => self.at(time, index, What::Send),
                    Verdict::Wait(left) => self.at(time + micros(left).max(1000), index, What::Ask),
                }
            }
            What::Send => self.send(time, index, agent),
            What::Look => {
                self.count(time, 1);
                let next = self.pace.size().stretch(STATUS);
                self.at(time + micros(next), index, What::Look);
            }
        }
    }

    fn send(&mut self, time: u64, index: usize, agent: &mut Agent) {
        let wanted = self.burst.min(agent.left);
        let answered = if time < micros(self.scenario.outage) {
            // Nobody is there: it takes one attempt to know.
            self.count(time, 1);
            self.curve.failed += 1;
            Err(time + ROUND_TRIP)
        } else {
            self.count(time, wanted);
            let work = wanted * 1_000_000 / u64::from(self.scenario.capacity.get());
            let begin = self.store_free.max(time);
            // What nobody waits for any more is not begun; what is begun is finished, wanted or not.
            if begin < time + PATIENCE {
                self.store_free = begin + work;
            }
            match begin + work {
                end if begin < time + PATIENCE && end <= time + PATIENCE => Ok(end + ROUND_TRIP),
                _ => {
                    self.curve.failed += wanted;
                    Err(time + PATIENCE)
                }
            }
        };
        match answered {
            Ok(end) => {
                agent.failures = 0;
                agent.left -= wanted;
                if agent.left > 0 {
                    self.at(end, index, What::Send);
                } else {
                    self.ready.push(end);
                    let first = self.pace.size().stretch(STATUS).mul_f64(self.chance.f64());
                    self.at(end + micros(first), index, What::Look);
                }
            }
            Err(end) => {
                agent.failures = agent.failures.saturating_add(1);
                let wait = self.pace.delay(agent.failures, &mut self.chance);
                self.at(end + micros(wait), index, What::Send);
            }
        }
    }

    fn count(&mut self, time: u64, requests: u64) {
        let second = usize::try_from(time / 1_000_000).unwrap_or(usize::MAX);
        let requests_of = &mut self.curve.requests;
        if requests_of.len() <= second {
            requests_of.resize(second + 1, 0);
        }
        if let Some(count) = requests_of.get_mut(second) {
            *count += requests;
        }
    }

    fn finish(mut self, agents: usize) -> Curve {
        self.ready.sort_unstable();
        let second = |time: &u64| time / 1_000_000;
        let mut curve = self.curve;
        curve.half_ready = self.ready.get(agents.div_ceil(2).saturating_sub(1)).map(second);
        curve.all_ready = self.ready.get(agents.saturating_sub(1)).map(second);
        curve.total = curve.requests.iter().sum();
        let capacity = u64::from(self.scenario.capacity.get());
        let is_full = |count: &&u64| **count * 20 >= capacity * 19;
        curve.saturated = curve.requests.iter().filter(is_full).count() as u64;
        let minutes = curve.requests.windows(60.min(curve.requests.len().max(1)));
        let busiest = minutes.map(|minute| minute.iter().sum::<u64>() as f64 / minute.len() as f64);
        curve.busiest_minute = busiest.fold(0.0, f64::max);
        for (second, count) in (0..).zip(&curve.requests) {
            if *count > curve.peak {
                (curve.peak, curve.peak_at) = (*count, second);
            }
        }
        curve
    }
}
