//! The packet path's own answer: whole packets of one endpoint, and questions to its policy where a packet would say
//! more than a policy is asked (answers, errors, families that do not fit).

use std::net::IpAddr;

use villus_abi::{
    Config, Direction, Endpoint, IpcacheValue, Local, Reason,
    endpoint::{ADDR_GATEWAY, FLAG_ACTIVE, FLAG_DELIVER_PEER, FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS},
};
use villus_labels::NumericIdentity;
use villus_path::{
    Ask, Question, Work, from_endpoint,
    memory::{Build, Frame, Memory, Transport},
    to_endpoint, verdict,
};
use villus_policy::{EndpointPolicy, icmp_port};

use crate::reading::Flow;

const SLOT: u16 = 1;
const INTERFACE: u32 = 101;
const UPLINK: u32 = 7;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A node with one endpoint, whose policy is the compiled one.
pub struct Node {
    world: Memory,
    record: Endpoint,
}

fn own(v6: bool) -> IpAddr {
    if v6 { "fd99::1".parse().unwrap() } else { "10.99.0.1".parse().unwrap() }
}

fn gateway(v6: bool) -> IpAddr {
    if v6 { "fd99::ff".parse().unwrap() } else { "10.99.0.255".parse().unwrap() }
}

impl Node {
    /// The addresses of the others and their identities are the ipcache; whom it does not know is the world.
    pub fn new(policy: &EndpointPolicy, others: &[(IpAddr, NumericIdentity)]) -> Self {
        let mut flags = FLAG_ACTIVE | FLAG_DELIVER_PEER;
        for (denies, flag) in
            policy.deny_identity().into_iter().zip([FLAG_DENY_ID_INGRESS, FLAG_DENY_ID_EGRESS])
        {
            flags |= if denies { flag } else { 0 };
        }
        let record = Endpoint {
            id: SLOT,
            flags,
            identity: 299,
            ifindex: INTERFACE,
            mtu: 1500,
            mask: policy.mask(),
            mac: MAC,
            policy: u32::from(SLOT),
            ..Endpoint::default()
        };
        let mut world = Memory::new(Config::default());
        world.add_endpoint(record, &[own(false), own(true)]);
        world.set_policy(u32::from(SLOT), policy.map_entries());
        for v6 in [false, true] {
            world.addrs.insert(gateway(v6), Local { slot: 0, flags: ADDR_GATEWAY });
        }
        for (address, identity) in others {
            let len = if address.is_ipv4() { 32 } else { 128 };
            let value = IpcacheValue { identity: identity.0, ..IpcacheValue::default() };
            world.ipcache.insert_prefix(*address, len, value);
        }
        Self { world, record }
    }

    /// Whether the policy lets the flow pass: asked by a packet from or to `other` if one can ask just that, else
    /// directly. The node itself is `None`.
    pub fn allows(&mut self, other: Option<IpAddr>, identity: NumericIdentity, flow: Flow, n: u16) -> bool {
        let asked = self.asked(identity, flow);
        if let Some(reason) = self.sent(other, flow, n) {
            let passed = match reason {
                Reason::FORWARDED => true,
                Reason::POLICY | Reason::POLICY_DENY => false,
                other => panic!("{flow:?} ended for {other:?}"),
            };
            assert_eq!(passed, asked, "{flow:?} of {identity:?}: a packet and a question differ");
        }
        asked
    }

    fn asked(&self, identity: NumericIdentity, flow: Flow) -> bool {
        let port = match flow.proto {
            1 | 58 => icmp_port(u8::try_from(flow.port).unwrap()),
            _ => flow.port,
        };
        let question = Question {
            identity: identity.0,
            pending: false,
            port: port.to_be(),
            proto: flow.proto,
            direction: flow.direction,
            bytes: 60,
            peek: false,
        };
        verdict(&self.world, &Ask::new(&Config::default(), &self.record, &question)).allowed()
    }

    /// Why a packet of the flow ended; `None` where no packet asks just this.
    fn sent(&mut self, other: Option<IpAddr>, flow: Flow, n: u16) -> Option<Reason> {
        let v6 = other.is_some_and(|other| other.is_ipv6());
        let other_port = 20_000 + n % 20_000;
        let transport = match (flow.proto, flow.port) {
            (6, dport) => Transport::Tcp { sport: other_port, dport, flags: 2, options: Vec::new() },
            (17, dport) => Transport::Udp { sport: other_port, dport },
            (132, dport) => Transport::Sctp { sport: other_port, dport, tag: 0 },
            (1, 8) if !v6 => Transport::Icmp { kind: 8, code: 0, rest: [(n >> 8) as u8, n as u8, 0, 1] },
            (58, 128) if v6 => Transport::Icmp { kind: 128, code: 0, rest: [(n >> 8) as u8, n as u8, 0, 1] },
            _ => return None,
        };
        let (own, host) = (own(v6), other.is_none());
        let other = other.unwrap_or_else(|| gateway(v6));
        let mut work = Work::default();
        let outcome = match flow.direction {
            Direction::Egress => {
                let packet = Build::new(own, other, transport).from_mac(MAC).frame();
                from_endpoint(&self.world, &mut Frame::new(packet, INTERFACE), &mut work)
            }
            Direction::Ingress => {
                let ingress = if host { 0 } else { UPLINK };
                let packet = Build::new(other, own, transport).frame();
                to_endpoint(&self.world, &mut Frame::new(packet, INTERFACE).via(ingress), &mut work)
            }
        };
        self.world.forget();
        Some(outcome.reason())
    }
}
