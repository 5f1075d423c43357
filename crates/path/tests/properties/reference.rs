//! The rules, read plainly: policies are lists that are walked, flows are a list that is searched. Nothing here is
//! the path's.

use std::net::SocketAddr;

use villus_abi::Direction;

/// An entry of a policy, as an operator would say it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `None` is anybody.
    pub identity: Option<u32>,
    /// `None` is everything; a protocol with `None` is all its ports.
    pub proto: Option<u8>,
    /// First and last.
    pub ports: Option<(u16, u16)>,
    pub direction: Direction,
    pub allows: bool,
    pub packets: u64,
}

impl Entry {
    fn matches(&self, ask: &Ask) -> bool {
        let identity = match self.identity {
            None => true,
            Some(identity) => !ask.pending && identity == ask.identity,
        };
        let port = self.ports.is_none_or(|(first, last)| (first..=last).contains(&ask.port));
        identity
            && port
            && self.direction == ask.direction
            && self.proto.is_none_or(|proto| proto == ask.proto)
    }

    /// Smaller is more specific: exact ports, then ranges, then protocols, then the rest. Exact ports of one identity
    /// come before those of all, ranges of one identity before all ranges of all, whatever their size.
    fn rank(&self) -> (u8, u8, u32) {
        let anybody = u8::from(self.identity.is_none());
        match (self.ports, self.proto) {
            (Some((first, last)), _) if first == last => (0, anybody, 0),
            (Some((first, last)), _) => (1, anybody, u32::from(last - first)),
            (None, Some(_)) => (2, anybody, 0),
            (None, None) => (3, anybody, 0),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub identity: u32,
    pub pending: bool,
    pub proto: u8,
    pub port: u16,
    pub direction: Direction,
}

/// Asks a policy without counting.
pub fn allows(policy: &[Entry], question: &Ask) -> bool {
    ask(&mut policy.to_vec(), question) == 0
}

/// Asks a policy: 0 or the number of the reason.
pub fn ask(policy: &mut [Entry], ask: &Ask) -> u8 {
    let denies_somebody =
        policy.iter().any(|e| e.direction == ask.direction && !e.allows && e.identity.is_some());
    let best = |policy: &[Entry], allows: bool| {
        let matching = policy.iter().enumerate().filter(|(_, e)| e.allows == allows && e.matches(ask));
        matching.min_by_key(|(_, entry)| entry.rank()).map(|(at, _)| at)
    };
    if let Some(at) = best(policy, false) {
        policy[at].packets += 1;
        return 181;
    }
    match best(policy, true) {
        _ if ask.pending && denies_somebody => 230,
        None if ask.pending => 230,
        None => 133,
        Some(at) => {
            policy[at].packets += 1;
            0
        }
    }
}

/// A flow. Pings have the id as the asking end's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    pub proto: u8,
    pub opener: SocketAddr,
    pub other: SocketAddr,
    pub opener_admitted: bool,
    pub other_admitted: bool,
    pub stack: bool,
    /// The node's NAT has lent its address to a forwarded flow.
    pub lent: bool,
    /// Nobody knows which end opened it.
    pub either: bool,
    pub past_syn: bool,
    pub opener_closes: bool,
    pub other_closes: bool,
    /// Seconds.
    pub ends: u64,
    pub packets: [u64; 2],
}

/// How a packet belongs to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    New,
    Forward(usize),
    Reply(usize),
    /// An error about a flow; whether it goes to its opener, and whether an end of the flow sends it.
    Related {
        flow: usize,
        to_opener: bool,
        from_end: bool,
    },
}

/// The flow table.
#[derive(Clone, Debug, Default)]
pub struct Flows(pub Vec<Flow>);

impl Flows {
    /// The flow between two ends, and whether the first is its opener.
    pub fn find(&self, proto: u8, from: SocketAddr, to: SocketAddr, now: u64) -> Option<(usize, bool)> {
        let at = self.0.iter().position(|flow| {
            flow.proto == proto
                && flow.ends > now
                && [(from, to), (to, from)].contains(&(flow.opener, flow.other))
        })?;
        Some((at, self.0[at].opener == from))
    }

    /// Opens a flow in place of an old one between the same ends.
    pub fn open(&mut self, flow: Flow) {
        self.0.retain(|old| {
            let ends = [(flow.opener, flow.other), (flow.other, flow.opener)];
            old.proto != flow.proto || !ends.contains(&(old.opener, old.other))
        });
        self.0.push(flow);
    }
}

impl Flow {
    /// The flags of a TCP segment, and time.
    pub fn see(&mut self, tcp_flags: Option<u8>, from_opener: bool, now: u64) {
        let Some(flags) = tcp_flags else {
            self.ends = now + 60;
            return;
        };
        self.past_syn |= flags & 2 == 0;
        if flags & 4 != 0 {
            (self.opener_closes, self.other_closes) = (true, true);
        } else if flags & 1 != 0 {
            *if from_opener { &mut self.opener_closes } else { &mut self.other_closes } = true;
        }
        self.ends = now
            + match (self.opener_closes && self.other_closes, self.past_syn) {
                (true, _) => 10,
                (false, true) => 8000,
                (false, false) => 60,
            };
    }
}
