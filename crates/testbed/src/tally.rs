//! Counters before and after: what a packet did to policy entries, metrics and flows.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use villus_abi::{Direction, Flow, PolicyKey, Reason, endpoint::HOST_ID, metrics};
use villus_datapath::{FlowKey, view_policy};

use crate::{node::Node, workload::Workload};

/// How long counters may take to settle.
const PATIENCE: Duration = Duration::from_secs(30);

/// All counters at one moment.
#[derive(Clone, Debug)]
pub struct Tally {
    policy: BTreeMap<(u16, PolicyKey), u64>,
    metrics: BTreeMap<u32, u64>,
    flows: HashMap<FlowKey, Flow>,
    sent: BTreeMap<u16, u64>,
}

/// What changed between two moments. Only what changed is in it.
#[derive(Clone, Default)]
pub struct Delta {
    /// Packets by endpoint and entry.
    pub policy: BTreeMap<(u16, PolicyKey), u64>,
    /// Packets by reason and direction.
    pub metrics: BTreeMap<(u8, u8), u64>,
    /// Flows with the packets they have got, new ones included.
    pub flows: Vec<(FlowKey, Flow)>,
    /// Packets that each workload's device has sent.
    pub sent: BTreeMap<u16, u64>,
}

impl Node {
    /// The counters now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut policy = BTreeMap::new();
        let host = self.is_host_judged().then_some(HOST_ID);
        for id in self.workloads.iter().map(|workload| workload.id).chain(host) {
            let view = view_policy(&self.pins, &self.maps, id).unwrap();
            policy.extend(view.entries.into_iter().map(|(key, entry)| ((id, key), entry.packets)));
        }
        let metrics = villus_datapath::metrics(&self.maps).unwrap();
        Tally {
            policy,
            metrics: metrics.into_iter().map(|(index, metric)| (index, metric.packets)).collect(),
            flows: self.flows().list().unwrap().into_iter().collect(),
            sent: self.workloads.iter().map(|w| (w.id, w.host.sent("eth0"))).collect(),
        }
    }

    /// What has changed since.
    #[must_use]
    pub fn since(&self, before: &Tally) -> Delta {
        let now = self.tally();
        let mut delta = Delta::default();
        for (key, packets) in now.policy {
            let more = packets - before.policy.get(&key).copied().unwrap_or(0).min(packets);
            if more != 0 {
                delta.policy.insert(key, more);
            }
        }
        for (index, packets) in now.metrics {
            let more = packets - before.metrics.get(&index).copied().unwrap_or(0);
            if more != 0 {
                delta.metrics.insert(((index >> 1) as u8, (index & 1) as u8), more);
            }
        }
        for (key, mut flow) in now.flows {
            if let Some(old) = before.flows.get(&key).filter(|old| old.created == flow.created) {
                if old.fwd_packets > flow.fwd_packets || old.rev_packets > flow.rev_packets {
                    // Made anew within one tick.
                } else {
                    flow.fwd_packets -= old.fwd_packets;
                    flow.rev_packets -= old.rev_packets;
                    flow.fwd_bytes = flow.fwd_bytes.wrapping_sub(old.fwd_bytes);
                    flow.rev_bytes = flow.rev_bytes.wrapping_sub(old.rev_bytes);
                }
            }
            if flow.fwd_packets + flow.rev_packets != 0 {
                delta.flows.push((key, flow));
            }
        }
        for (id, sent) in now.sent {
            let more = sent - before.sent.get(&id).copied().unwrap_or(0);
            if more != 0 {
                delta.sent.insert(id, more);
            }
        }
        delta
    }

    /// Waits until what has changed since is as `check` wants it, and stays so.
    ///
    /// # Panics
    /// When that does not happen: with what is wrong and what has changed. The node's maps are printed with it.
    pub fn expect(&self, what: &str, before: &Tally, check: impl Fn(&Delta) -> Result<(), String>) -> Delta {
        let end = Instant::now() + PATIENCE;
        let mut right = 0;
        loop {
            let delta = self.since(before);
            match check(&delta) {
                // Once may be chance: the counters are read one after the other while packets pass.
                Ok(()) if right == 1 => return delta,
                Ok(()) => right += 1,
                Err(wrong) if Instant::now() > end => panic!("{what}: {wrong}\n{delta:?}"),
                Err(_) => right = 0,
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits until packets have been dropped for a reason.
    ///
    /// # Panics
    /// As [`Self::expect`]; also when something was dropped for another reason.
    pub fn expect_drops(
        &self,
        what: &str,
        before: &Tally,
        reason: Reason,
        direction: Direction,
        packets: u64,
    ) -> Delta {
        self.expect(what, before, |delta| {
            let wanted = BTreeMap::from([((reason.0, direction as u8), packets)]);
            same("drops", &delta.drops(), &wanted)
        })
    }

    /// Waits until packets have ended quietly for a reason.
    ///
    /// # Panics
    /// As [`Self::expect`]; also when something was dropped.
    pub fn expect_quiet(
        &self,
        what: &str,
        before: &Tally,
        reason: Reason,
        direction: Direction,
        packets: u64,
    ) {
        self.expect(what, before, |delta| {
            same("drops", &delta.drops(), &BTreeMap::new())?;
            same(reason.text(), &delta.metric(reason, direction), &packets)
        });
    }
}

/// `Err` in words when two things are not the same.
fn same<T: PartialEq + fmt::Debug>(what: &str, is: &T, wanted: &T) -> Result<(), String> {
    if is == wanted { Ok(()) } else { Err(format!("{what}: {is:?} instead of {wanted:?}")) }
}

impl Delta {
    /// Packets that entries of one endpoint's policy have decided in a direction.
    #[must_use]
    pub fn asked(&self, workload: &Workload, direction: Direction) -> u64 {
        self.asked_of(workload.id, direction)
    }

    /// As [`Self::asked`], of the node's own policy.
    #[must_use]
    pub fn asked_of_host(&self, direction: Direction) -> u64 {
        self.asked_of(HOST_ID, direction)
    }

    fn asked_of(&self, endpoint: u16, direction: Direction) -> u64 {
        let entries = self.policy.iter().filter(|((id, key), _)| *id == endpoint && key.dir() == direction);
        entries.map(|(_, packets)| packets).sum()
    }

    /// Packets of a reason and direction.
    #[must_use]
    pub fn metric(&self, reason: Reason, direction: Direction) -> u64 {
        self.metrics.get(&(reason.0, direction as u8)).copied().unwrap_or(0)
    }

    /// Packets forwarded in a direction.
    #[must_use]
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.metric(Reason::FORWARDED, direction)
    }

    /// Everything that was dropped.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<(u8, u8), u64> {
        self.metrics
            .iter()
            .filter(|((reason, _), _)| Reason(*reason).is_drop())
            .map(|(k, v)| (*k, *v))
            .collect()
    }

    /// Packets of all flows, of the opener's and of the answering direction.
    #[must_use]
    pub fn flow_packets(&self) -> (u64, u64) {
        self.flows
            .iter()
            .fold((0, 0), |(fwd, rev), (_, flow)| (fwd + flow.fwd_packets, rev + flow.rev_packets))
    }

    /// Whether every packet that workloads' devices sent was counted once, whatever became of it.
    ///
    /// # Errors
    /// In words, when not.
    pub fn every_sent_packet_counted_once(&self) -> Result<(), String> {
        // Fragments are also counted as such, under a reason that ends nothing.
        let counted: u64 = self
            .metrics
            .iter()
            .filter(|((reason, direction), _)| {
                *direction == 1 && (*reason == 0 || *reason >= 130) && *reason != 248
            })
            .map(|(_, packets)| packets)
            .sum();
        same("packets counted of those that workloads sent", &counted, &self.sent.values().sum())
    }

    /// As `same`, for checks outside.
    ///
    /// # Errors
    /// In words, when two things are not the same.
    pub fn same<T: PartialEq + fmt::Debug>(what: &str, is: T, wanted: T) -> Result<(), String> {
        same(what, &is, &wanted)
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "changed:")?;
        for ((id, key), packets) in &self.policy {
            writeln!(
                f,
                "  policy of {id}: {} identity {} port {} proto {}: +{packets}",
                key.dir().name(),
                key.identity,
                key.port(),
                key.proto
            )?;
        }
        for ((reason, direction), packets) in &self.metrics {
            let (name, text) = (if *direction == 0 { "ingress" } else { "egress" }, Reason(*reason).text());
            writeln!(f, "  {name} {reason} ({text}): +{packets}")?;
        }
        for (key, flow) in &self.flows {
            writeln!(f, "  {}", crate::dump::flow(key, flow))?;
        }
        for (id, sent) in &self.sent {
            writeln!(f, "  sent by {id}: +{sent}")?;
        }
        // What the index of a metric means.
        debug_assert_eq!(metrics::index(1, 0), 2);
        Ok(())
    }
}
