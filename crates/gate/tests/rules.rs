//! The gate's rules under a clock of the test's own: boots, calendars that jump, waiters that are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{num::NonZeroU32, time::Duration};

use fastrand::Rng;
use proptest::prelude::*;
use villus_gate::{
    Bypass, Moment, Reason, State, Timer, Verdict,
    rules::{self, LONGEST_REST, TURN},
    window,
};

/// A node and its clocks.
#[derive(Clone, Debug)]
struct Node {
    state: State,
    /// Milliseconds that really went by.
    real: u64,
    boot: u32,
    booted: u64,
    /// How far the calendar is off.
    off: i64,
    window: Duration,
    chance: Rng,
}

impl Node {
    fn new(window: Duration, seed: u64) -> Self {
        let chance = Rng::with_seed(seed);
        Self { state: State::new_node(), real: 0, boot: 1, booted: 0, off: 0, window, chance }
    }

    fn now(&self) -> Moment {
        Moment {
            unix_ms: 1_800_000_000_000u64.saturating_add(self.real).saturating_add_signed(self.off),
            boot: format!("boot-{}", self.boot),
            uptime_ms: self.real - self.booted,
        }
    }

    fn ask(&mut self) -> Verdict {
        let now = self.now();
        // What is written to disk is what is asked next time.
        self.state = State::parse(&serde_json::to_vec(&self.state).unwrap()).unwrap();
        rules::ask(&mut self.state, &now, self.window, &mut self.chance)
    }

    fn pass(&mut self, time: Duration) {
        self.real += u64::try_from(time.as_millis()).unwrap();
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.booted = self.real;
    }

    /// Waits as a hook does until it may start; how long that took.
    fn start(&mut self) -> (Reason, Duration) {
        let begin = self.real;
        loop {
            match self.ask() {
                Verdict::Start(reason) => return (reason, Duration::from_millis(self.real - begin)),
                Verdict::Wait(left) => self.pass(left.max(Duration::from_millis(1))),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u32),
    Reboot,
    /// The calendar jumps by so many milliseconds.
    Jump(i64),
    Ask,
    /// The agent starts, as soon as it may.
    Start,
}

fn steps(with_jumps: bool) -> impl Strategy<Value = Vec<Step>> {
    let day = 86_400_000i64;
    let jump = if with_jumps { (-4000 * day..4000 * day).boxed() } else { Just(0).boxed() };
    let step = prop_oneof![
        3 => (0u32..3_000_000).prop_map(Step::Pass),
        1 => Just(Step::Reboot),
        1 => jump.prop_map(Step::Jump),
        3 => Just(Step::Ask),
        3 => Just(Step::Start),
    ];
    prop::collection::vec(step, 0..24)
}

/// Carries the steps out; when the agent started, in real milliseconds, and why.
fn live(node: &mut Node, steps: &[Step]) -> Vec<(u64, Reason)> {
    let mut starts = Vec::new();
    for step in steps {
        match step {
            Step::Pass(ms) => node.pass(Duration::from_millis(u64::from(*ms))),
            Step::Reboot => node.reboot(),
            Step::Jump(ms) => node.off = *ms,
            Step::Ask => {
                if let Verdict::Start(reason) = node.ask() {
                    starts.push((node.real, reason));
                }
            }
            Step::Start => {
                let (reason, _) = node.start();
                starts.push((node.real, reason));
            }
        }
    }
    starts
}

const WINDOW: Duration = Duration::from_secs(600);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn no_node_starts_twice_within_a_window(seed in any::<u64>(), steps in steps(false)) {
        let starts = live(&mut Node::new(WINDOW, seed), &steps);
        for pair in starts.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 >= 600_000, "{pair:?}");
            prop_assert_eq!(pair[1].1, Reason::Turn);
        }
    }

    #[test]
    fn within_a_boot_no_jump_of_the_calendar_changes_anything(seed in any::<u64>(), steps in steps(true)) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Reboot)).collect();
        let calm: Vec<Step> = steps.iter().filter(|step| !matches!(step, Step::Jump(_))).cloned().collect();
        prop_assert_eq!(live(&mut Node::new(WINDOW, seed), &steps), live(&mut Node::new(WINDOW, seed), &calm));
    }

    #[test]
    fn whatever_the_clocks_do_nobody_waits_for_ever(seed in any::<u64>(), steps in steps(true)) {
        let mut node = Node::new(WINDOW, seed);
        live(&mut node, &steps);
        if let Verdict::Wait(left) = node.ask() {
            prop_assert!(left <= (LONGEST_REST + 1) * WINDOW, "{left:?}");
        }
        node.pass(10 * WINDOW);
        node.reboot();
        let (_, waited) = node.start();
        prop_assert!(waited <= (LONGEST_REST + 1) * WINDOW + Duration::from_secs(1), "{waited:?}");
    }

    #[test]
    fn no_bytes_are_too_strange_for_the_state(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let _ = State::parse(&bytes);
        let mut node = Node::new(WINDOW, 1);
        node.start();
        node.ask();
        let mut text = serde_json::to_vec(&node.state).unwrap();
        text.splice(cut.min(text.len()).., bytes);
        // What parses must be answered, however odd its numbers are.
        if let Ok(state) = State::parse(&text) {
            node.state = state;
            node.ask();
        }
    }
}

#[test]
fn starts_in_a_row_rest_longer_and_a_quiet_window_forgives() {
    let mut node = Node::new(WINDOW, 3);
    assert_eq!(node.start(), (Reason::New, Duration::ZERO));
    for rest in [1, 2, 4, 4] {
        let (reason, waited) = node.start();
        let bounds = rest * WINDOW..=(rest + 1) * WINDOW;
        assert!(reason == Reason::Turn && bounds.contains(&waited), "{waited:?} not in {bounds:?}");
    }
    node.pass(WINDOW);
    let (_, waited) = node.start();
    assert!(waited <= WINDOW, "{waited:?}");
}

#[test]
fn a_turn_survives_a_killed_waiter_and_a_reboot_but_not_being_away() {
    let mut node = Node::new(WINDOW, 5);
    node.start();
    let Verdict::Wait(left) = node.ask() else { panic!("no wait") };
    node.pass(Duration::from_secs(100));
    node.reboot();
    assert_eq!(node.ask(), Verdict::Wait(left - Duration::from_secs(100)));
    node.pass(left - Duration::from_secs(100) + TURN / 2);
    assert_eq!(node.clone().ask(), Verdict::Start(Reason::Turn), "a hook that comes a little late");
    node.pass(TURN);
    assert!(matches!(node.ask(), Verdict::Wait(_)), "a turn that nobody was there to take");
}

#[test]
fn a_cluster_that_comes_back_together_spreads_over_the_window() {
    let nodes = 10_000;
    let window = window::of_nodes(NonZeroU32::new(nodes).unwrap());
    let mut cluster: Vec<Node> = (0..nodes).map(|n| Node::new(window, u64::from(n))).collect();
    cluster.iter_mut().for_each(|node| {
        node.start();
        node.pass(10 * window);
        node.reboot();
    });
    let spread = |cluster: &mut [Node]| {
        let mut seconds = vec![0u32; usize::try_from(window.as_secs()).unwrap() + 1];
        for node in cluster {
            let Verdict::Wait(left) = node.ask() else { continue };
            seconds[usize::try_from(left.as_secs()).unwrap()] += 1;
        }
        (seconds.iter().sum::<u32>(), seconds.into_iter().max().unwrap())
    };
    let (waiting, busiest) = spread(&mut cluster);
    assert_eq!(waiting, nodes);
    assert!(busiest <= 15, "{busiest} starts in one second, 1.7 on average");
    // All lose power while they wait, for longer than any of them would have waited.
    cluster.iter_mut().for_each(|node| {
        node.pass(2 * window);
        node.reboot();
    });
    let (waiting, busiest) = spread(&mut cluster);
    assert!(waiting == nodes && busiest <= 15, "{waiting} wait, {busiest} in one second");
}

#[test]
fn an_open_gate_and_a_grant_let_through_and_end() {
    let mut node = Node::new(WINDOW, 9);
    node.start();
    let now = node.now();
    node.state.bypass = Some(Bypass::new("ann", &now, Some(WINDOW)));
    assert_eq!(node.ask(), Verdict::Start(Reason::Bypassed));
    assert_eq!(node.ask(), Verdict::Start(Reason::Bypassed));
    node.pass(WINDOW);
    assert!(matches!(node.ask(), Verdict::Wait(_)), "{:?}", node.state);
    assert_eq!(node.state.bypass, None);
    let timer = Timer::new(&node.now(), WINDOW);
    node.state.grant = Some(villus_gate::Grant { by: "ann".into(), timer: timer.clone() });
    assert_eq!(node.ask(), Verdict::Start(Reason::Granted));
    node.state.grant = Some(villus_gate::Grant { by: "ann".into(), timer });
    node.pass(WINDOW);
    assert!(matches!(node.ask(), Verdict::Wait(_)), "a grant that is too old");
}
