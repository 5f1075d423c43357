//! Flows added up.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_flows::hubble::{Flow, FlowEnd, Verdict};
use villus_flows::{Direction, Reason};
use villus_labels::{Label, Labels, NumericIdentity, source};

/// Who takes part in a flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// A workload, or what has reserved labels that are not the world's: the labels of its identity.
    Identity(Labels),
    /// A node, this one or another: its labels, and the address it was seen under, which prefixes may mean.
    #[serde(rename_all = "kebab-case")]
    Node {
        /// Its labels without prefixes.
        labels: Labels,
        /// Its address.
        address: IpAddr,
    },
    /// An address outside.
    World(IpAddr),
}

impl Peer {
    /// Who stands at an end of a flow; `None` where neither labels nor a reserved identity nor an address are said.
    #[must_use]
    pub fn of(end: &FlowEnd, address: Option<IpAddr>) -> Option<Self> {
        let identity = NumericIdentity(end.identity);
        let labels = if end.labels.is_empty() { identity.reserved_labels()? } else { end.labels.clone() };
        Self::with(labels, address)
    }

    /// As [`Self::of`], by labels.
    #[must_use]
    pub fn with(labels: Labels, address: Option<IpAddr>) -> Option<Self> {
        if is_outside(&labels) {
            return address.map(Self::World);
        }
        // Copies of an address' prefixes say nothing about who it is; what they mean the address tells.
        let labels = labels.filtered(|label| label.source() != source::CIDR);
        match address.filter(|_| labels.has_reserved("remote-node") || labels.has_reserved("host")) {
            Some(address) => Some(Self::Node { labels, address }),
            None => (!labels.is_empty()).then_some(Self::Identity(labels)),
        }
    }

    /// The labels; none of an address outside.
    #[must_use]
    pub const fn labels(&self) -> Option<&Labels> {
        match self {
            Self::Identity(labels) | Self::Node { labels, .. } => Some(labels),
            Self::World(_) => None,
        }
    }

    /// The same, a node by its labels alone.
    fn without_address(&self) -> Self {
        match self {
            Self::Node { labels, .. } => Self::Identity(labels.clone()),
            other => other.clone(),
        }
    }

    /// Whether it is a workload: something that policies select.
    #[must_use]
    pub fn is_workload(&self) -> bool {
        let of_nobody_else = |label: &Label| ![source::RESERVED, source::NODE].contains(&label.source());
        self.labels().is_some_and(|labels| labels.iter().any(of_nobody_else))
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(labels) => labels.fmt(f),
            Self::Node { labels, address } => write!(f, "{address} ({labels})"),
            Self::World(address) => address.fmt(f),
        }
    }
}

/// Whether labels are those of something outside: the world, or a prefix of it. What the world's addresses may also be,
/// such as the API server, has a name of its own.
fn is_outside(labels: &Labels) -> bool {
    let world = ["world", "world-ipv4", "world-ipv6"].iter().any(|name| labels.has_reserved(name));
    let prefix = labels.iter().any(|label| label.source() == source::CIDR);
    let named = labels.iter().any(|label| {
        label.source() == source::RESERVED && !label.key().starts_with("world") && !label.key().is_empty()
    });
    (world || prefix) && !named
}

/// What was observed of flows between two peers to one port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Observation {
    /// Who opened them.
    pub source: Peer,
    /// Whom they are for.
    pub destination: Peer,
    /// Protocol number.
    pub protocol: u8,
    /// Destination port; of ICMP the message's type.
    pub port: u16,
}

/// How often something was seen, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Count {
    /// Events.
    pub count: u64,
    /// First and last time, where events had one.
    pub first: Option<Timestamp>,
    /// Last time.
    pub last: Option<Timestamp>,
}

impl Count {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        let earlier = |a: Option<Timestamp>, b: Option<Timestamp>| [a, b].into_iter().flatten().min();
        self.count = self.count.saturating_add(other.count);
        self.first = earlier(self.first, other.first);
        self.last = self.last.max(other.last);
    }
}

/// What was seen of an observation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Seen {
    /// It went on after it was looked at in this direction: ingress, egress.
    pub passed: [Count; 2],
    /// Policy would deny it in this direction, audit mode let it pass: ingress, egress.
    pub audited: [Count; 2],
    /// Policy denied it in this direction: ingress, egress.
    pub denied: [Count; 2],
}

impl Seen {
    /// All together.
    #[must_use]
    pub fn total(&self) -> Count {
        sum(self.passed.iter().chain(&self.audited).chain(&self.denied))
    }

    /// What a direction let pass, audited or not. Who reached the destination's ingress has passed the source's egress,
    /// whether or not that was reported.
    #[must_use]
    pub fn through(&self, direction: Direction) -> Count {
        let own = side(direction);
        let here = sum([&self.passed[own], &self.audited[own]]);
        match direction {
            Direction::Egress if here.count == 0 => sum([&self.passed[0], &self.audited[0], &self.denied[0]]),
            _ => here,
        }
    }

    fn add(&mut self, other: &Self) {
        for side in 0..2 {
            self.passed[side].add(other.passed[side]);
            self.audited[side].add(other.audited[side]);
            self.denied[side].add(other.denied[side]);
        }
    }
}

fn sum<'a>(counts: impl IntoIterator<Item = &'a Count>) -> Count {
    counts.into_iter().fold(Count::default(), |mut all, count| {
        all.add(*count);
        all
    })
}

/// Flows that say nothing about policies, by the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Unused {
    /// Answers, and errors about flows.
    pub replies: u64,
    /// Which side opened the flow cannot be told.
    pub undirected: u64,
    /// Dropped for another reason than policy, or of a verdict that is none.
    pub not_policy: u64,
    /// Neither TCP, UDP, SCTP nor ICMP.
    pub no_transport: u64,
    /// Nothing is said about one of the peers but a number or nothing at all.
    pub unnamed: u64,
}

impl Unused {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.replies + self.undirected + self.not_policy + self.no_transport + self.unnamed
    }
}

/// Flows added up; the order in which they came does not matter.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Shape", into = "Shape")]
pub struct Observations {
    rows: BTreeMap<Observation, Seen>,
    /// What was not added.
    pub unused: Unused,
}

/// Observations in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Shape {
    rows: Vec<Row>,
    #[serde(default)]
    unused: Unused,
}

#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    observation: Observation,
    #[serde(flatten)]
    seen: Seen,
}

impl From<Shape> for Observations {
    fn from(shape: Shape) -> Self {
        let mut all = Self { rows: BTreeMap::new(), unused: shape.unused };
        shape.rows.iter().for_each(|row| all.add(row.observation.clone(), &row.seen));
        all
    }
}

impl From<Observations> for Shape {
    fn from(all: Observations) -> Self {
        let rows = all.rows.into_iter().map(|(observation, seen)| Row { observation, seen });
        Self { rows: rows.collect(), unused: all.unused }
    }
}

/// Side of a direction in pairs: ingress 0, egress 1.
pub(crate) fn side(direction: Direction) -> usize {
    usize::from(direction == Direction::Egress)
}

impl Observations {
    /// Adds a flow. `labels_of` knows the labels of numeric identities for flows that bring none.
    pub fn add_flow(&mut self, flow: &Flow, labels_of: &dyn Fn(u32) -> Option<Labels>) {
        match flow.is_opening() {
            Some(true) => {}
            Some(false) => return self.unused.replies += 1,
            None => return self.unused.undirected += 1,
        }
        let policy = matches!(flow.reason(), None | Some(Reason::POLICY | Reason::POLICY_DENY));
        if flow.verdict == Verdict::Unknown || (flow.verdict == Verdict::Dropped && !policy) {
            return self.unused.not_policy += 1;
        }
        let Some((protocol, port)) = flow.transport() else { return self.unused.no_transport += 1 };
        let (from, to) = flow.addresses().unzip();
        let peer = |end: &FlowEnd, address| {
            Peer::of(end, address).or_else(|| Peer::with(labels_of(end.identity)?, address))
        };
        let Some((source, destination)) = peer(&flow.source, from).zip(peer(&flow.destination, to)) else {
            return self.unused.unnamed += 1;
        };
        let count = Count { count: 1, first: flow.time, last: flow.time };
        let direction = flow.direction().map_or(0, side);
        let mut seen = Seen::default();
        match flow.verdict {
            Verdict::Audit => seen.audited[direction] = count,
            Verdict::Dropped => seen.denied[direction] = count,
            _ => seen.passed[direction] = count,
        }
        self.add(Observation { source, destination, protocol, port }, &seen);
    }

    /// Adds what was seen of an observation.
    pub fn add(&mut self, observation: Observation, seen: &Seen) {
        self.rows.entry(observation).or_default().add(seen);
    }

    /// The same, with nodes told apart by their labels alone.
    pub(crate) fn without_node_addresses(&self) -> Self {
        let mut all = Self { rows: BTreeMap::new(), unused: self.unused };
        for (row, seen) in &self.rows {
            let (source, destination) = (row.source.without_address(), row.destination.without_address());
            all.add(Observation { source, destination, ..*row }, seen);
        }
        all
    }

    /// The observations, in a fixed order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Observation, &Seen)> {
        self.rows.iter()
    }

    /// How many different ones there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
