//! What the path looked at, step by step: the raw material of `villus why`.

use std::net::{IpAddr, SocketAddr};

use villus_abi::{
    Endpoint, Event, Flow, FlowKey4, FlowKey6, FragKey4, FragKey6, FragPorts, IpcacheKey, IpcacheValue,
    Local, Nat, NatKey4, NatKey6, Node, PolicyEntry, PolicyKey, Reason,
};

use super::{word4, words6};
use crate::{
    family::{Family, V4, V6},
    flow::{self, Key},
    parse::Facts,
    policy::{Ask, Verdict},
};

/// Key of a flow of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

impl FlowKey {
    /// The key of the flow between two ends, and whether the first of them is the end called `hi`; `None` when they are
    /// of different families. Of an ICMP question the end that asks has the id as its port, the other one 0.
    #[must_use]
    pub fn between(from: SocketAddr, to: SocketAddr, proto: u8) -> Option<(Self, bool)> {
        let ports = (from.port().to_be(), to.port().to_be());
        match (from.ip(), to.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (key, from_hi) = key_of::<V4>(word4(src), word4(dst), ports, proto);
                Some((Self::V4(key), from_hi))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (key, from_hi) = key_of::<V6>(words6(src), words6(dst), ports, proto);
                Some((Self::V6(key), from_hi))
            }
            _ => None,
        }
    }

    /// Whether the flow is in a table of TCP flows.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        match self {
            Self::V4(key) => key.proto == crate::parse::TCP,
            Self::V6(key) => key.proto == crate::parse::TCP,
        }
    }
}

fn key_of<F: Family>(src: F::Addr, dst: F::Addr, ports: (u16, u16), proto: u8) -> (F::FlowKey, bool) {
    let facts = Facts::<F> { src, dst, sport: ports.0, dport: ports.1, proto, ..Facts::default() };
    let mut key = Key::default();
    flow::key_of(&facts, &mut key);
    (key.key, key.from_hi)
}

/// Key of a fragmented datagram of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FragKey {
    /// IPv4.
    V4(FragKey4),
    /// IPv6.
    V6(FragKey6),
}

/// Key of a masqueraded packet of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NatKey {
    /// IPv4.
    V4(NatKey4),
    /// IPv6.
    V6(NatKey6),
}

/// One look-up or change, and its answer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step {
    /// Whose an interface is.
    Device {
        /// Interface index.
        ifindex: u32,
        /// Slot of the endpoint.
        answer: Option<u32>,
    },
    /// The record of an endpoint.
    Endpoint {
        /// Its slot.
        slot: u32,
        /// The record, in use or not.
        answer: Option<Endpoint>,
    },
    /// Whose an address is on this node.
    Local {
        /// The address.
        address: IpAddr,
        /// Its owner.
        answer: Option<Local>,
    },
    /// Which node an address is one of.
    Node {
        /// The address.
        address: IpAddr,
        /// The node.
        answer: Option<Node>,
    },
    /// Which identity an address has.
    Remote {
        /// The address.
        address: IpAddr,
        /// The longest prefix that covers it, with its value.
        answer: Option<(IpcacheKey, IpcacheValue)>,
    },
    /// Whether an address is masqueraded, or one to which nothing is.
    Masquerades {
        /// The address.
        address: IpAddr,
        /// The longest prefix that covers it: address, length, `MASQUERADE_*` flags.
        answer: Option<(IpAddr, u8, u32)>,
    },
    /// An entry of a masqueraded packet was stored where there was none.
    Claim {
        /// Its key.
        key: NatKey,
        /// The entry.
        nat: Nat,
        /// Whether there was none, and the table took it.
        stored: bool,
    },
    /// The flow of a packet.
    Flow {
        /// Its key.
        key: FlowKey,
        /// The flow, expired or not.
        answer: Option<Flow>,
    },
    /// The ports of a fragmented datagram.
    Ports {
        /// Its key.
        key: FragKey,
        /// The ports, expired or not.
        answer: Option<FragPorts>,
    },
    /// A policy is asked; the entries that are looked up and the answer follow.
    Ask(Ask),
    /// An entry of a policy map.
    Entry {
        /// Slot of the policy map.
        slot: u32,
        /// The key.
        key: PolicyKey,
        /// The entry as it was then.
        answer: Option<PolicyEntry>,
    },
    /// A policy's answer.
    Verdict(Verdict),
    /// A flow was stored.
    Create {
        /// Its key.
        key: FlowKey,
        /// The flow.
        flow: Flow,
        /// Whether the table took it.
        stored: bool,
    },
    /// A flow was forgotten.
    Remove {
        /// Its key.
        key: FlowKey,
    },
    /// The ports of a fragmented datagram were stored.
    Remember {
        /// Its key.
        key: FragKey,
        /// The ports.
        ports: FragPorts,
    },
    /// A packet was counted.
    Count {
        /// Under which reason.
        reason: Reason,
        /// 0 ingress, 1 egress.
        direction: u8,
        /// Its bytes.
        bytes: u32,
    },
    /// An event was reported.
    Emit(Event),
}
