//! Random nodes and packets, run through the path and the plain reading of its rules side by side.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use proptest::test_runner::TestCaseError;
use villus_abi::{
    Config,
    Direction::{self, Egress, Ingress},
    PolicyEntry, PolicyKey,
    config::FLAG_ALLOW_FRAG_NEEDED,
    endpoint::{FLAG_DELIVER_PEER, FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS},
    flow::{
        FLOW_EGRESS_ADMITTED, FLOW_EITHER, FLOW_FWD_CLOSING, FLOW_INGRESS_ADMITTED, FLOW_REV_CLOSING,
        FLOW_TRANSLATED, FLOW_VIA_STACK,
    },
};
use villus_path::{
    Action, MARK_OPENED,
    memory::{Build, FlowKey, Transport},
};

use crate::{
    lab::{ACK, FIN, HOST, Lab, RST, SYN, UPLINK, addr, identity, ifindex, ip, outside},
    reference::{Ask, Entry, Flow, Flows, Known, allows, ask},
};

const IDS: [u16; 4] = [1, 2, 3, 4];
/// Those that have a policy.
const JUDGED: [u16; 5] = [HOST, 1, 2, 3, 4];
/// A device that is neither an uplink nor an endpoint's: a bridge of other containers.
const BRIDGE: u32 = 55;
const IDENTITIES: [Option<u32>; 8] = [None, None, None, Some(1), Some(2), Some(4711), Some(1001), Some(1002)];
const PROTOS: [u8; 5] = [6, 17, 132, 1, 58];

fn is_host(address: IpAddr) -> bool {
    address == addr(address.is_ipv6(), HOST)
}

/// A packet as the rules see it.
#[derive(Clone, Debug)]
struct Packet {
    build: Build,
    proto: u8,
    from: SocketAddr,
    to: SocketAddr,
    /// Port or ICMP type that policy is asked for.
    asked: u16,
    tcp_flags: Option<u8>,
    asks: bool,
    /// The packet that an error quotes.
    about: Option<(u8, SocketAddr, SocketAddr)>,
    too_big: bool,
}

/// Where it is met.
#[derive(Clone, Copy, Debug)]
enum Place {
    From(u16),
    To(u16, Origin),
    In,
    /// Out on the uplink, marked or not as sent by an endpoint in a flow that it opened.
    Out(Origin, bool),
}

/// How it came to the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Host,
    Endpoint(u16),
    Outside,
}

impl Origin {
    fn ingress(self, outside: u32) -> u32 {
        match self {
            Self::Host => 0,
            Self::Endpoint(from) => ifindex(from),
            Self::Outside => outside,
        }
    }
}

pub struct Topology {
    rng: Rng,
    lab: Lab,
    policies: [Vec<Entry>; 5],
    handed_over: [bool; 5],
    frag_needed: bool,
    node_is_judged: bool,
    flows: Flows,
    now: u64,
    sent: Vec<Packet>,
}

impl Topology {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let frag_needed = rng.bool();
        let mut config = Config::default();
        if !frag_needed {
            config.flags &= !FLAG_ALLOW_FRAG_NEEDED;
        }
        let mut this = Self {
            rng,
            lab: Lab::with(config),
            policies: Default::default(),
            handed_over: [false; 5],
            frag_needed,
            node_is_judged: false,
            flows: Flows::default(),
            now: 0,
            sent: Vec::new(),
        };
        this.lab.world.ipcache = Default::default();
        this.lab.row("192.0.2.0", 24, 4711, false);
        this.lab.row("2001:db8::", 32, 4711, true);
        this.lab.row("10.9.0.0", 16, 2, true);
        this.now = this.lab.world.clock() / 1_000_000_000;
        if this.rng.bool() {
            this.node_is_judged = true;
            this.lab.select_node(0);
            this.set_policy(HOST);
        }
        for id in IDS {
            this.handed_over[usize::from(id)] = this.rng.u8(0..3) > 0;
            this.set_policy(id);
        }
        this
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(0..of.len())]
    }

    /// Gives an endpoint a random policy, on both sides.
    fn set_policy(&mut self, id: u16) {
        let mut entries: Vec<(PolicyKey, Entry)> = Vec::new();
        for direction in Direction::ALL {
            for _ in 0..self.rng.usize(0..8) {
                let (key, entry) = self.entry(direction);
                if entries.iter().all(|(old, _)| *old != key) {
                    entries.push((key, entry));
                }
            }
        }
        let record = self.lab.world.endpoints.get_mut(&u32::from(id)).unwrap();
        record.flags &= !(FLAG_DELIVER_PEER | villus_abi::endpoint::FLAG_DELIVER_DEVICE);
        record.flags &= !(FLAG_DENY_ID_INGRESS | FLAG_DENY_ID_EGRESS);
        record.flags |= if self.handed_over[usize::from(id)] { FLAG_DELIVER_PEER } else { 0 };
        // Which shapes may exist is a superset of what does.
        record.mask = [0; 2].map(|_| self.rng.u32(0..0x1_0000) & self.rng.u32(0..0x1_0000));
        for (key, entry) in &entries {
            record.mask[entry.direction as usize] |= key.mask_bit();
            if !entry.allows && entry.identity.is_some() {
                record.flags |= [FLAG_DENY_ID_INGRESS, FLAG_DENY_ID_EGRESS][entry.direction as usize];
            }
        }
        let value = |entry: &Entry| if entry.allows { PolicyEntry::ALLOW } else { PolicyEntry::DENY };
        self.lab.world.set_policy(u32::from(id), entries.iter().map(|(key, entry)| (*key, value(entry))));
        self.policies[usize::from(id)] = entries.into_iter().map(|(_, entry)| entry).collect();
    }

    fn entry(&mut self, direction: Direction) -> (PolicyKey, Entry) {
        let identity = self.pick(&IDENTITIES);
        let proto = if self.rng.u8(0..4) == 0 { None } else { Some(self.pick(&PROTOS)) };
        let port = self.pick(&[53, 80, 81, 8, 128, 256, 3, 1]);
        let (ports, log2) = match (proto, self.rng.u8(0..4)) {
            (None, _) | (_, 0) => (None, 0),
            (Some(_), 1) => {
                let log2 = self.rng.u8(1..16);
                let first = port >> log2 << log2;
                (Some((first, first + ((1_u32 << log2) - 1) as u16)), log2)
            }
            _ => (Some((port, port)), 0),
        };
        let key_port = ports.map_or(0, |(first, _)| first);
        let key = PolicyKey::block(identity.unwrap_or(0), key_port, log2, proto.unwrap_or(0), direction);
        let allows = self.rng.u8(0..5) > 0;
        (key, Entry { identity, proto, ports, direction, allows, packets: 0 })
    }

    /// Runs packets through both and compares.
    pub fn agree(&mut self, steps: usize) -> Result<(), TestCaseError> {
        for _ in 0..steps {
            match self.rng.u8(0..20) {
                0 => {
                    let id = if self.node_is_judged { self.pick(&JUDGED) } else { self.pick(&IDS) };
                    self.set_policy(id);
                }
                1 => {
                    let seconds = self.pick(&[7, 14, 56, 63, 8001]);
                    self.now += seconds;
                    self.lab.world.pass(seconds);
                }
                _ => {}
            }
            let packet = self.packet();
            let place = self.place(&packet);
            let wanted = self.expect(&packet, place);
            let outcome = match place {
                Place::From(id) => self.lab.from(id, &packet.build),
                Place::To(id, origin) => self.lab.to(id, origin.ingress(UPLINK), &packet.build),
                Place::In => self.lab.net(&packet.build),
                Place::Out(origin, opened) => {
                    let mark = if opened { MARK_OPENED } else { 0 };
                    self.lab.out(origin.ingress(BRIDGE), mark, &packet.build)
                }
            };
            let seen =
                (outcome.action() != Action::Drop, outcome.action() == Action::Peer, outcome.reason().0);
            if seen != wanted {
                return Err(TestCaseError::fail(format!(
                    "{place:?} {packet:?}: {seen:?}, by the rules {wanted:?}"
                )));
            }
            self.same_state()
                .map_err(|what| TestCaseError::fail(format!("after {place:?} {packet:?}: {what}")))?;
            self.sent.push(packet);
        }
        Ok(())
    }

    fn address(&mut self, v6: bool) -> IpAddr {
        match self.rng.u8(0..10) {
            0..6 => {
                let id = self.pick(&IDS);
                addr(v6, id)
            }
            6 | 7 => addr(v6, HOST),
            _ if v6 => outside(true),
            _ => self.pick(&[outside(false), ip("10.9.1.1")]),
        }
    }

    fn packet(&mut self) -> Packet {
        let old = (!self.sent.is_empty() && self.rng.bool()).then(|| {
            let at = self.rng.usize(0..self.sent.len());
            self.sent[at].clone()
        });
        match old {
            Some(old) if old.about.is_none() => match self.rng.u8(0..8) {
                0 => self.error(&old),
                1..3 => self.made(old.proto, old.from, old.to, old.asks),
                _ => self.made(old.proto, old.to, old.from, false),
            },
            _ => {
                let v6 = self.rng.bool();
                let proto = self.pick(&[6, 6, 17, 132, if v6 { 58 } else { 1 }]);
                let is_ping = matches!(proto, 1 | 58);
                let sport = if is_ping { self.rng.u16(1..4) } else { self.pick(&[4000, 4001, 80]) };
                let dport = if is_ping { 0 } else { self.pick(&[53, 80, 81]) };
                let (from, to) = (self.address(v6), self.address(v6));
                self.made(proto, SocketAddr::new(from, sport), SocketAddr::new(to, dport), true)
            }
        }
    }

    /// A packet between two ends. Of a ping the asking end has the id as its port.
    fn made(&mut self, proto: u8, from: SocketAddr, to: SocketAddr, opens: bool) -> Packet {
        let (src, dst, sport, dport) = (from.ip(), to.ip(), from.port(), to.port());
        let mut tcp_flags = None;
        let is_ping = matches!(proto, 1 | 58);
        let inits = proto == 132 && (self.rng.u8(0..6) == 0) != opens;
        let asks = is_ping && sport != 0 || inits;
        let mut asked = dport;
        // Sometimes the answering end asks under the same id: its own port is then the id.
        let (mut from, mut to) = (from, to);
        let build = match proto {
            6 => {
                let flags =
                    if opens { [SYN, SYN, SYN, ACK, FIN] } else { [SYN | ACK, ACK, FIN | ACK, RST, SYN] };
                let flags = self.pick(&flags);
                tcp_flags = Some(flags);
                Build::tcp(src, sport, dst, dport, flags)
            }
            17 => Build::udp(src, sport, dst, dport),
            132 if inits => Build::sctp_init(src, sport, dst, dport),
            132 => Build::sctp(src, sport, dst, dport),
            _ => {
                let id = sport.max(dport);
                let flips = self.rng.u8(0..6) == 0;
                let asks = asks != flips;
                (from, to) = if asks {
                    (SocketAddr::new(src, id), SocketAddr::new(dst, 0))
                } else {
                    (SocketAddr::new(src, 0), SocketAddr::new(dst, id))
                };
                let build = if asks { Build::ping(src, dst, id) } else { Build::pong(src, dst, id) };
                let Transport::Icmp { kind, .. } = build.transport else { unreachable!() };
                asked = if kind == 0 { 256 } else { u16::from(kind) };
                return Packet {
                    build,
                    proto,
                    from,
                    to,
                    asked,
                    tcp_flags,
                    asks,
                    about: None,
                    too_big: false,
                };
            }
        };
        Packet { build, proto, from, to, asked, tcp_flags, asks, about: None, too_big: false }
    }

    fn error(&mut self, old: &Packet) -> Packet {
        let v6 = old.build.src.is_ipv6();
        let from = if self.rng.bool() { old.build.dst } else { self.address(v6) };
        let to = if self.rng.u8(0..4) > 0 { old.build.src } else { self.address(v6) };
        let too_big = self.rng.bool();
        let (kind, code) = match (v6, too_big) {
            (false, false) => (3, 3),
            (false, true) => (3, 4),
            (true, false) => (1, 4),
            (true, true) => (2, 0),
        };
        Packet {
            build: old.build.error(from, to, kind, code),
            proto: if v6 { 58 } else { 1 },
            from: SocketAddr::new(from, 0),
            to: SocketAddr::new(to, 0),
            asked: u16::from(kind),
            tcp_flags: None,
            asks: false,
            about: Some((old.proto, old.from, old.to)),
            too_big,
        }
    }

    fn owner(address: IpAddr) -> Option<u16> {
        IDS.into_iter().find(|id| addr(address.is_ipv6(), *id) == address)
    }

    fn place(&mut self, packet: &Packet) -> Place {
        let (from, to) = (Self::owner(packet.build.src), Self::owner(packet.build.dst));
        let any = self.pick(&IDS);
        match (from, to) {
            (Some(id), Some(to)) if self.rng.u8(0..3) == 0 => Place::To(to, Origin::Endpoint(id)),
            (Some(id), _) => Place::From(id),
            (None, Some(to)) if self.rng.u8(0..6) > 0 => {
                let origin = if is_host(packet.build.src) && self.rng.u8(0..4) > 0 {
                    Origin::Host
                } else {
                    Origin::Outside
                };
                let translated = self.rng.u8(0..6) == 0;
                Place::To(to, if translated { Origin::Endpoint(any) } else { origin })
            }
            _ if self.rng.u8(0..6) == 0 => Place::From(any),
            (None, _) if is_host(packet.build.src) => {
                let origin = self.pick(&[Origin::Host, Origin::Host, Origin::Outside, Origin::Endpoint(any)]);
                Place::Out(origin, self.rng.bool())
            }
            (None, _) => Place::In,
        }
    }

    fn known(&self, packet: &Packet) -> Known {
        if let Some((proto, from, to)) = packet.about {
            if from.ip() != packet.build.dst {
                return Known::New;
            }
            return match self.flows.find(proto, from, to, self.now) {
                None => Known::New,
                Some((flow, to_opener)) => {
                    Known::Related { flow, to_opener, from_end: to.ip() == packet.build.src }
                }
            };
        }
        let Some((at, is_opener)) = self.flows.find(packet.proto, packet.from, packet.to, self.now) else {
            return Known::New;
        };
        let flow = &self.flows.0[at];
        let opens = packet.tcp_flags.is_some_and(|flags| flags & (SYN | ACK | RST) == SYN);
        let settles = !is_opener || flow.opener_closes || flow.other_closes || flow.either;
        if opens && settles || packet.asks && !is_opener {
            return Known::New;
        }
        if is_opener { Known::Forward(at) } else { Known::Reply(at) }
    }

    /// Identity of an address that is no endpoint of this node.
    fn remote(address: IpAddr) -> (u32, bool) {
        match address {
            IpAddr::V4(v4) if v4.octets()[..3] == [192, 0, 2] => (4711, false),
            IpAddr::V4(v4) if v4.octets()[..2] == [10, 9] => (2, true),
            IpAddr::V6(v6) if v6.segments()[..2] == [0x2001, 0xdb8] => (4711, true),
            _ => (2, false),
        }
    }

    /// What the rules say: passes, is handed over, reason.
    fn expect(&mut self, packet: &Packet, place: Place) -> (bool, bool, u8) {
        match self.judged(packet, place) {
            Ok(handed_over) => (true, handed_over, 0),
            Err(reason) => (false, false, reason),
        }
    }

    fn judged(&mut self, packet: &Packet, place: Place) -> Result<bool, u8> {
        let (src, dst) = (packet.build.src, packet.build.dst);
        let known = match place {
            Place::From(id) if Self::owner(src) != Some(id) => return Err(132),
            Place::To(_, Origin::Outside) if Self::owner(src).is_some() => return Err(132),
            Place::In if is_host(src) => return Err(132),
            Place::In if !self.node_is_judged || !is_host(dst) => return Ok(false),
            Place::Out(..) if !self.node_is_judged || !is_host(src) => return Ok(false),
            Place::Out(origin, opened) if origin != Origin::Host => {
                self.forwarded(packet, origin, opened);
                return Ok(false);
            }
            _ => self.known(packet),
        };
        let known = match (place, known) {
            (Place::In, Known::Reply(at)) if self.flows.0[at].lent => {
                self.remember(packet, known, (false, false), true, true);
                return Ok(false);
            }
            (Place::In, Known::Related { flow, to_opener: true, .. }) if self.flows.0[flow].lent => {
                return Ok(false);
            }
            (Place::Out(..), Known::Related { flow, .. }) if self.flows.0[flow].lent => return Ok(false),
            // The NAT has given the port back.
            (Place::Out(..), Known::Forward(at) | Known::Reply(at)) if self.flows.0[at].lent => Known::New,
            _ => known,
        };
        let at = match known {
            Known::New => None,
            Known::Forward(at) | Known::Reply(at) | Known::Related { flow: at, .. } => Some(at),
        };
        let by_stack = at.is_some_and(|at| self.flows.0[at].stack);
        let node = self.node_is_judged.then_some(HOST);
        // A router's errors belong to the flows that they are about.
        let as_router = matches!(known, Known::Related { from_end: false, .. });
        let (mut sender, mut receiver) = (None, None);
        let mut handed_over = false;
        let (src_identity, dst_identity) = match place {
            Place::From(id) => {
                sender = Some(id);
                let identity_of = match Self::owner(dst) {
                    Some(to) => {
                        handed_over = self.handed_over[usize::from(to)] && !by_stack;
                        receiver = handed_over.then_some(to);
                        (identity(to), false)
                    }
                    None if is_host(dst) => {
                        receiver = node;
                        (1, false)
                    }
                    None => Self::remote(dst),
                };
                ((identity(id), false), identity_of)
            }
            Place::To(id, origin) => {
                receiver = Some(id);
                if origin == Origin::Host && !as_router {
                    sender = node;
                }
                let identity_of = match origin {
                    Origin::Host => (1, false),
                    Origin::Endpoint(from) => (identity(from), false),
                    Origin::Outside if is_host(src) => (2, false),
                    Origin::Outside => Self::remote(src),
                };
                (identity_of, (identity(id), false))
            }
            Place::In => {
                receiver = node;
                (Self::remote(src), (1, false))
            }
            Place::Out(..) => {
                sender = node.filter(|_| !as_router);
                ((1, false), Self::remote(dst))
            }
        };
        let (ask_sender, ask_receiver) = self.who_is_asked(packet, known);
        let mut admitted = (false, false);
        for (who, is_asked, peer, direction) in
            [(sender, ask_sender, dst_identity, Egress), (receiver, ask_receiver, src_identity, Ingress)]
        {
            let Some(id) = who.filter(|_| is_asked) else { continue };
            let (identity, pending) = peer;
            let question = Ask { identity, pending, proto: packet.proto, port: packet.asked, direction };
            let reason = ask(&mut self.policies[usize::from(id)], &question);
            if reason != 0 {
                if let Known::Forward(at) = known {
                    self.flows.0.remove(at);
                }
                return Err(reason);
            }
            *if direction == Egress { &mut admitted.0 } else { &mut admitted.1 } = true;
        }
        let counted = match place {
            Place::From(_) | Place::To(_, Origin::Host | Origin::Outside) | Place::In | Place::Out(..) => {
                true
            }
            Place::To(..) => match known {
                Known::Forward(at) => !self.flows.0[at].opener_admitted,
                Known::Reply(at) => !self.flows.0[at].other_admitted,
                _ => true,
            },
        };
        // Where a way past the stack exists the flow is not the stack's, even if this packet was.
        self.remember(packet, known, admitted, counted, !handed_over);
        let segment = packet.tcp_flags.is_some_and(|flags| flags & (SYN | ACK | RST) != SYN);
        if known == Known::New && segment && packet.about.is_none() {
            let question = |(identity, pending), direction| Ask {
                identity,
                pending,
                proto: packet.proto,
                port: packet.from.port(),
                direction,
            };
            let sides =
                [(sender, question(dst_identity, Ingress)), (receiver, question(src_identity, Egress))];
            let mut judged = sides.iter().filter_map(|(who, asked)| Some(((*who)?, asked))).peekable();
            let either = judged.peek().is_some()
                && judged.all(|(id, asked)| allows(&self.policies[usize::from(id)], asked));
            self.flows.0.last_mut().unwrap().either = either;
        }
        Ok(handed_over)
    }

    /// What the stack forwards under the node's address: the node's policy has no say, but answers must find their way.
    fn forwarded(&mut self, packet: &Packet, origin: Origin, opened: bool) {
        let known = self.known(packet);
        let opens = match (origin, packet.proto) {
            (Origin::Endpoint(_), 1 | 58) => opened && packet.asks,
            (Origin::Endpoint(_), _) => opened,
            (_, 6) => packet.tcp_flags.is_some_and(|flags| flags & (SYN | ACK | RST) == SYN),
            (_, 1 | 58) => packet.asks,
            _ => true,
        } && packet.about.is_none();
        match known {
            Known::Forward(at) if !self.flows.0[at].lent => {}
            Known::New => {}
            _ => return self.remember(packet, known, (false, false), true, true),
        }
        if opens {
            self.remember(packet, Known::New, (false, false), true, true);
            self.flows.0.last_mut().unwrap().lent = true;
        }
    }

    fn who_is_asked(&self, packet: &Packet, known: Known) -> (bool, bool) {
        if packet.too_big && self.frag_needed {
            return (false, false);
        }
        match known {
            Known::New | Known::Forward(_) => (true, true),
            Known::Reply(at) if self.flows.0[at].either => (true, true),
            Known::Reply(at) => (!self.flows.0[at].other_admitted, !self.flows.0[at].opener_admitted),
            Known::Related { flow, to_opener, from_end } => {
                let flow = &self.flows.0[flow];
                let (source, target) = if to_opener {
                    (flow.other_admitted, flow.opener_admitted)
                } else {
                    (flow.opener_admitted, flow.other_admitted)
                };
                (!source || !from_end, !target)
            }
        }
    }

    fn remember(
        &mut self,
        packet: &Packet,
        known: Known,
        admitted: (bool, bool),
        counted: bool,
        stack: bool,
    ) {
        let now = self.now;
        match known {
            _ if packet.about.is_some() => {}
            Known::New => {
                let mut flow = Flow {
                    proto: packet.proto,
                    opener: packet.from,
                    other: packet.to,
                    opener_admitted: admitted.0,
                    other_admitted: admitted.1,
                    stack,
                    lent: false,
                    either: false,
                    past_syn: false,
                    opener_closes: false,
                    other_closes: false,
                    ends: 0,
                    packets: [1, 0],
                };
                flow.see(packet.tcp_flags, true, now);
                self.flows.open(flow);
            }
            Known::Forward(at) => {
                let flow = &mut self.flows.0[at];
                flow.opener_admitted |= admitted.0;
                flow.other_admitted |= admitted.1;
                flow.packets[0] += u64::from(counted);
                flow.see(packet.tcp_flags, true, now);
            }
            Known::Reply(at) => {
                let flow = &mut self.flows.0[at];
                flow.packets[1] += u64::from(counted);
                flow.see(packet.tcp_flags, false, now);
            }
            Known::Related { .. } => {}
        }
    }

    /// Flows and counters of both sides.
    fn same_state(&self) -> Result<(), String> {
        for id in JUDGED {
            if id == HOST && !self.node_is_judged {
                continue;
            }
            let mut theirs: Vec<u64> = self
                .lab
                .world
                .policy_entries(u32::from(id))
                .unwrap()
                .values()
                .map(|entry| entry.packets)
                .collect();
            let mut ours: Vec<u64> =
                self.policies[usize::from(id)].iter().map(|entry| entry.packets).collect();
            theirs.sort_unstable();
            ours.sort_unstable();
            if theirs != ours {
                return Err(format!("policy of {id} counted {theirs:?}, by the rules {ours:?}"));
            }
        }
        let theirs = self.lab.world.flows();
        if theirs.len() != self.flows.0.len() {
            return Err(format!("{} flows, by the rules {}", theirs.len(), self.flows.0.len()));
        }
        for flow in &self.flows.0 {
            let (key, from_hi) = FlowKey::between(flow.opener, flow.other, flow.proto).unwrap();
            let Some(real) = theirs.get(&key) else { return Err(format!("no flow {flow:?}")) };
            let has = |bit: u32| real.flags & bit != 0;
            let seen = (
                has(villus_abi::flow::FLOW_HI_OPENED),
                [
                    has(FLOW_EGRESS_ADMITTED),
                    has(FLOW_INGRESS_ADMITTED),
                    has(FLOW_VIA_STACK),
                    has(FLOW_TRANSLATED),
                    has(FLOW_EITHER),
                ],
                [has(FLOW_FWD_CLOSING), has(FLOW_REV_CLOSING)],
                [real.fwd_packets, real.rev_packets],
            );
            let wanted = (
                from_hi,
                [flow.opener_admitted, flow.other_admitted, flow.stack, flow.lent, flow.either],
                [flow.opener_closes, flow.other_closes],
                flow.packets,
            );
            if seen != wanted {
                return Err(format!("{flow:?}: {seen:?}, by the rules {wanted:?}"));
            }
        }
        Ok(())
    }
}
