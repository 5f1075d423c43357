//! Random nodes, and packets that have something to do with each other.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use villus_abi::{
    Config, Direction, IpcacheValue, Local, PolicyEntry, PolicyKey, Uplink,
    config::{
        FLAG_ALLOW_FRAG_NEEDED, FLAG_AUDIT, FLAG_DIRECT_V4, FLAG_DIRECT_V6, FLAG_HOST_POLICY, FLAG_IPSEC,
        FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6, FLAG_TRACE_ALL,
    },
    endpoint as ep,
    ipcache::{FLAG_PENDING, FLAG_ROUTED},
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO},
    time,
};
use villus_path::{
    Action, MARK_JUDGED, MARK_OPENED, MARK_OVERLAY, MARK_ROUTED, Neighbour, Outcome, Tunnel, Work,
    memory::{Build, FlowKey, Frame, Memory, NextHop, Transport, arp, word4, words6},
};

use super::{
    ACK, FIN, HOST, NODE_B, NODE_C, OVERLAY, RST, SYN, UPLINK, addr, behind, host_record, identity, ifindex,
    ip, mac, outside, record,
};

/// Endpoints of a random node; 0 is the node.
pub const IDS: [u16; 4] = [1, 2, 3, 4];
/// The interface of containers that are no endpoints.
pub const FOREIGN: u32 = 77;
/// Those that have a policy: endpoints, and the node.
pub const JUDGED: [u16; 5] = [HOST, 1, 2, 3, 4];
/// A slot that never holds a policy map.
pub const NO_MAP: u32 = 9;
/// The neighbour of the uplink.
pub const HOP: NextHop = NextHop {
    neighbour: Neighbour { ifindex: UPLINK, mac: [2, 9, 9, 9, 9, 9], own_mac: [2, 8, 8, 8, 8, 8] },
    mtu: 1500,
};

const IDENTITIES: [u32; 13] = [0, 0, 0, 1, 2, 6, 9, 10, identity(1), identity(2), 2011, 2012, 4711];
const PORTS: [u16; 8] = [0, 0, 53, 80, 81, 8, 128, 256];
const PROTOS: [u8; 7] = [0, 0, 6, 17, 1, 58, 132];
const CLIENT_PORTS: [u16; 4] = [80, 5000, 5001, 53];

/// Where a packet meets the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    From,
    To,
    Network,
    Out,
    /// By the tunnel.
    Brought,
    /// Into the tunnel.
    Sent,
}

/// A packet at a hook.
#[derive(Clone, Debug)]
pub struct Step {
    pub hook: Hook,
    pub frame: Frame,
}

impl Step {
    /// Runs it; the frame is then as the path left it.
    pub fn run(&mut self, world: &Memory) -> Outcome {
        let mut work = Work::default();
        match self.hook {
            Hook::From => villus_path::from_endpoint(world, &mut self.frame, &mut work),
            Hook::To => villus_path::to_endpoint(world, &mut self.frame, &mut work),
            Hook::Network => {
                villus_path::unmasquerade(world, &mut self.frame, &mut work);
                villus_path::from_network(world, &mut self.frame, &mut work)
            }
            Hook::Out => match villus_path::to_network(world, &mut self.frame, &mut work) {
                outcome if outcome.action() == Action::Pass => {
                    villus_path::masquerade(world, &mut self.frame, &mut work)
                }
                outcome => outcome,
            },
            Hook::Brought => villus_path::from_overlay(world, &mut self.frame, &mut work),
            Hook::Sent => villus_path::to_overlay(world, &mut self.frame, &mut work),
        }
    }
}

/// Whether a frame's destination, broken or not, is the neighbour of the uplink.
fn is_for_neighbour(frame: &[u8]) -> bool {
    match outside(frame.get(12..14) == Some(&[0x86, 0xdd])) {
        IpAddr::V4(v4) => frame.get(30..34) == Some(&v4.octets()),
        IpAddr::V6(v6) => frame.get(38..54) == Some(&v6.octets()),
    }
}

fn is_behind(address: IpAddr) -> bool {
    [NODE_B, NODE_C].iter().any(|node| behind(address.is_ipv6(), *node) == address)
}

/// The address of the uplink that masqueraded packets are lent.
pub fn lent(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// Random nodes and packets out of a seed.
pub struct Random {
    pub rng: Rng,
    sent: Vec<Build>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), sent: Vec::new() }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(0..of.len())]
    }

    /// A node.
    pub fn world(&mut self) -> Memory {
        self.sent.clear();
        let mut world = Memory::new(self.config());
        for id in IDS {
            let mut endpoint = record(id, 0);
            for flag in [ep::FLAG_DHCP, ep::FLAG_DENY_ID_INGRESS, ep::FLAG_DENY_ID_EGRESS] {
                endpoint.flags |= if self.one_in(3) { flag } else { 0 };
            }
            endpoint.flags |=
                self.pick(&[0, ep::FLAG_DELIVER_PEER, ep::FLAG_DELIVER_PEER, ep::FLAG_DELIVER_DEVICE]);
            for flag in [ep::FLAG_CHECK_MAC, ep::FLAG_ACTIVE] {
                endpoint.flags &= if self.one_in(20) { !flag } else { !0 };
            }
            for flag in [
                ep::FLAG_AUDIT_INGRESS,
                ep::FLAG_AUDIT_EGRESS,
                ep::FLAG_AUDIT_DEFAULT_INGRESS,
                ep::FLAG_AUDIT_DEFAULT_EGRESS,
            ] {
                endpoint.flags |= if self.one_in(12) { flag } else { 0 };
            }
            endpoint.mtu = self.pick(&[0, 1500, 1500, 90]);
            endpoint.mask =
                [0; 2].map(|_| if self.one_in(2) { ep::MASK_ALL } else { self.rng.u32(0..0x1_0000) });
            if self.one_in(15) {
                endpoint.policy = NO_MAP;
            }
            world.add_endpoint(endpoint, &[addr(false, id), addr(true, id)]);
            if endpoint.policy != NO_MAP {
                let entries = self.policy();
                world.set_policy(u32::from(id), entries);
            }
        }
        let mut host = host_record(self.pick(&[
            0,
            0,
            0,
            ep::FLAG_AUDIT_INGRESS,
            ep::FLAG_AUDIT_EGRESS,
            ep::FLAG_AUDIT_DEFAULT_INGRESS,
            ep::FLAG_DENY_ID_EGRESS,
        ]));
        host.flags &= if self.one_in(20) { !ep::FLAG_ACTIVE } else { !0 };
        if self.one_in(15) {
            host.policy = NO_MAP;
        }
        world.endpoints.insert(0, host);
        let entries = self.policy();
        world.set_policy(0, entries);
        world.remove_policy(NO_MAP);
        world.addrs.insert(ip("10.0.9.9"), Local { slot: 1, flags: 0 });
        for v6 in [false, true] {
            world.addrs.insert(addr(v6, 0), Local { slot: 0, flags: ep::ADDR_GATEWAY });
        }
        self.rows(&mut world);
        if self.one_in(2) {
            super::tunnel(&mut world);
            if self.one_in(4) {
                world.config.as_mut().unwrap().overlay_mtu = 90;
            }
            if self.one_in(2) {
                super::wraps(&mut world);
            }
        }
        world
    }

    /// A node that masquerades what leaves by its uplink.
    pub fn masquerading_world(&mut self) -> Memory {
        let mut world = self.world();
        for (flag, direct) in [(FLAG_MASQUERADE_V4, FLAG_DIRECT_V4), (FLAG_MASQUERADE_V6, FLAG_DIRECT_V6)] {
            if !self.one_in(8) {
                let config = world.config.as_mut().unwrap();
                config.flags = config.flags & !direct | flag;
            }
        }
        world.config.as_mut().unwrap().nat_seed = self.rng.u32(..);
        let mut uplink = Uplink::default();
        for address in [lent(false), lent(true)] {
            world.addrs.insert(address, Local { slot: 0, flags: 0 });
            match address {
                IpAddr::V4(v4) => uplink.ipv4 = word4(v4),
                IpAddr::V6(v6) => uplink.ipv6 = words6(v6),
            }
        }
        if !self.one_in(10) {
            world.uplinks.insert(UPLINK, uplink);
        }
        for (prefix, len, flags) in [
            ("10.0.0.0", 16, MASQUERADE_FROM | MASQUERADE_NOT_TO),
            ("fd00::", 64, MASQUERADE_FROM | MASQUERADE_NOT_TO),
            ("10.0.0.101", 32, MASQUERADE_NOT_TO),
            ("10.9.0.0", 16, MASQUERADE_NOT_TO),
            ("fd99::", 64, MASQUERADE_NOT_TO),
        ] {
            if !self.one_in(5) {
                world.masquerade.push((ip(prefix), len, flags));
            }
        }
        world
    }

    /// A packet that leaves by the uplink of a masquerading node, or comes to it there, more often than [`Self::step`] has it.
    pub fn masqueraded_step(&mut self) -> Step {
        let v6 = self.rng.bool();
        let (id, far) = (self.pick(&IDS), self.pick(&["192.0.2.9", "192.0.2.8", "10.9.1.1", "10.9.7.7"]));
        let far = if v6 { self.pick(&["2001:db8::9", "2001:db8::8", "fd99::1", "fe80::2"]) } else { far };
        let src = if self.one_in(6) { lent(v6) } else { addr(v6, id) };
        let port = self.pick(&[40_000, 40_000, 40_001, 5000]);
        let opening = match self.rng.u8(0..8) {
            0..3 => Build::tcp(src, port, ip(far), 80, self.pick(&[SYN, ACK, ACK, FIN | ACK, RST])),
            3..6 => Build::udp(src, port, ip(far), 53),
            6 => Build::ping(src, ip(far), port),
            _ => Build::sctp(src, port, ip(far), 80),
        };
        let followed = if self.one_in(2) { self.following() } else { None };
        let build = followed.unwrap_or(opening);
        let build = if self.one_in(3) { self.odd(build) } else { build };
        let from = self.owner(build.src);
        let hook = if from.is_some() || build.src == lent(v6) { Hook::Out } else { Hook::Network };
        let ingress = match (hook, from) {
            (Hook::Out, Some(id)) => ifindex(id),
            // The node itself, or somebody whom its NAT has lent the address.
            (Hook::Out, None) => self.pick(&[0, 0, FOREIGN]),
            _ => UPLINK,
        };
        let mut bytes = build.frame();
        if self.one_in(30) {
            bytes = self.broken(bytes);
        }
        self.remember(build);
        Step { hook, frame: Frame::new(bytes, UPLINK).via(ingress) }
    }

    /// Lets answers and errors come about a packet as it has left, if it is one that can be read back.
    pub fn left(&mut self, frame: &[u8]) {
        let v6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
        let (header, proto) = if v6 { (40, 20) } else { (20, 23) };
        let Some((&proto, l4)) = frame.get(proto).zip(frame.get(14 + header..14 + header + 8)) else {
            return;
        };
        if !v6 && frame[14] != 0x45 {
            return;
        }
        let half = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let far = |at: usize| -> Option<IpAddr> {
            Some(if v6 {
                IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?)
            } else {
                IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?)
            })
        };
        let (Some(src), Some(dst)) = (far(if v6 { 22 } else { 26 }), far(if v6 { 38 } else { 30 })) else {
            return;
        };
        let build = match proto {
            6 => Build::tcp(src, half(0), dst, half(2), ACK),
            17 => Build::udp(src, half(0), dst, half(2)),
            1 | 58 if [8, 128].contains(&l4[0]) => Build::ping(src, dst, half(4)),
            132 => Build::sctp(src, half(0), dst, half(2)),
            _ => return,
        };
        self.remember(build);
    }

    fn remember(&mut self, build: Build) {
        self.sent.push(build);
        if self.sent.len() > 12 {
            self.sent.remove(0);
        }
    }

    fn config(&mut self) -> Config {
        let mut config = Config { report: self.pick(&[0, 1 << 30]), ..Config::default() };
        config.report_flags = self.pick(&[0, 7]);
        for (flag, chance) in [
            (FLAG_DIRECT_V4, 2),
            (FLAG_DIRECT_V6, 2),
            (FLAG_IPSEC, 8),
            (FLAG_TRACE_ALL, 4),
            (FLAG_AUDIT, 20),
            (FLAG_HOST_POLICY, 2),
            (villus_abi::config::FLAG_TRACE, 5),
        ] {
            if self.one_in(chance) {
                config.flags ^= flag;
            }
        }
        if self.one_in(2) {
            config.flags &= !FLAG_ALLOW_FRAG_NEEDED;
        }
        for flag in [villus_abi::config::FLAG_IPV4, villus_abi::config::FLAG_IPV6] {
            config.flags &= if self.one_in(30) { !flag } else { !0 };
        }
        if self.one_in(100) {
            config.flags = 0;
        }
        config
    }

    fn rows(&mut self, world: &mut Memory) {
        for (prefix, len, identity) in [
            ("0.0.0.0", 0, 9),
            ("::", 0, 10),
            ("192.0.2.0", 24, 4711),
            ("192.0.2.9", 32, identity(2)),
            ("2001:db8::", 32, 4711),
            ("10.9.0.0", 16, 2),
            ("10.9.1.1", 32, 0),
            ("fd99::", 16, 2),
        ] {
            if self.one_in(3) {
                continue;
            }
            let pending = if self.one_in(4) { FLAG_PENDING } else { 0 };
            let flags = pending | if self.one_in(2) { FLAG_ROUTED } else { 0 };
            let value = IpcacheValue { identity, flags, ..IpcacheValue::default() };
            world.ipcache.insert_prefix(ip(prefix), len, value);
        }
    }

    /// A policy; every fourth endpoint has none.
    pub fn policy(&mut self) -> Vec<(PolicyKey, PolicyEntry)> {
        let all = |direction| (PolicyKey::new(0, 0, 0, direction), PolicyEntry::ALLOW);
        let mut entries = Vec::new();
        for direction in Direction::ALL {
            if self.one_in(3) {
                entries.push(all(direction));
                continue;
            }
            for _ in 0..self.rng.usize(0..10) {
                let key = self.key(direction);
                let entry = if self.one_in(5) { PolicyEntry::DENY } else { PolicyEntry::ALLOW };
                let entry = if entry.is_deny() && self.one_in(2) { PolicyEntry::AUDIT } else { entry };
                entries.push((key, PolicyEntry { packets: self.rng.u64(0..3), ..entry }));
            }
        }
        entries
    }

    fn key(&mut self, direction: Direction) -> PolicyKey {
        let (identity, proto) = (self.pick(&IDENTITIES), self.pick(&PROTOS));
        if proto == 0 {
            return PolicyKey::new(identity, 0, 0, direction);
        }
        if self.one_in(4) {
            let log2 = self.rng.u8(1..16);
            let port = self.pick(&PORTS) >> log2 << log2;
            return PolicyKey::block(identity, port, log2, proto, direction);
        }
        PolicyKey::new(identity, self.pick(&PORTS), proto, direction)
    }

    fn address(&mut self, v6: bool) -> IpAddr {
        match self.rng.u8(0..19) {
            15..18 => {
                let node = self.pick(&[NODE_B, NODE_C]);
                behind(v6, node)
            }
            // A neighbour of that endpoint, or another node.
            18 => {
                ip(if v6 { "fd00:0:0:c::9" } else { self.pick(&["10.0.12.9", "192.0.2.12", "192.0.102.13"]) })
            }
            0..7 | 14 => {
                let id = self.pick(&IDS);
                addr(v6, id)
            }
            7 | 12 => addr(v6, 0),
            8 | 13 => outside(v6),
            9 => ip(if v6 { "fd99::1" } else { "10.9.1.1" }),
            10 => ip(if v6 { "2001:db8::8" } else { "10.0.9.9" }),
            _ => {
                let odd4 = ["255.255.255.255", "224.0.0.22", "0.0.0.0", "169.254.1.2", "10.9.7.7"];
                let odd6 = ["ff02::1", "ff02::1:2", "::", "fe80::2", "fd99::7"];
                ip(self.pick(if v6 { &odd6 } else { &odd4 }))
            }
        }
    }

    /// Something that opens a flow, or might.
    fn opening(&mut self) -> Build {
        let v6 = self.rng.bool();
        let (src, dst) = (self.address(v6), self.address(v6));
        let (sport, dport) = (self.pick(&CLIENT_PORTS), self.pick(&[53, 80, 81, 5000]));
        let id = self.rng.u16(0..3);
        match self.rng.u8(0..20) {
            0..6 => {
                let flags = self.pick(&[SYN, SYN, SYN, ACK, FIN | ACK, RST, SYN | ACK]);
                Build::tcp(src, sport, dst, dport, flags)
            }
            6..11 => Build::udp(src, sport, dst, dport),
            11 => Build::sctp(src, sport, dst, dport),
            12 => Build::sctp_init(src, sport, dst, dport),
            13..16 => Build::ping(src, dst, id),
            16 => Build::pong(src, dst, id),
            17 => {
                let kinds = [3, 5, 11, 13, 14, 42, 1, 2, 130, 133, 134, 135, 136, 137, 143, 200];
                let kind = self.pick(&kinds);
                Build::icmp(src, dst, kind, self.pick(&[0, 4])).ttl(255)
            }
            18 => {
                let ports = if v6 { (546, 547) } else { (68, 67) };
                let ports = if self.one_in(3) { (ports.1, ports.0) } else { ports };
                Build::udp(src, ports.0, dst, ports.1)
            }
            _ => Build::new(src, dst, Transport::Other(self.pick(&[0, 2, 4, 41, 47, 50, 51, 59, 60])))
                .payload(24),
        }
    }

    /// A packet that belongs to one that was sent: again, its answer, an error about it.
    fn following(&mut self) -> Option<Build> {
        if self.sent.is_empty() {
            return None;
        }
        let at = self.rng.usize(0..self.sent.len());
        let old = self.sent[at].clone();
        Some(match self.rng.u8(0..10) {
            0..3 => self.again(old),
            3..8 => self.answer(old),
            _ => {
                let to = if self.one_in(4) { self.address(old.src.is_ipv6()) } else { old.src };
                let from = if self.one_in(2) { self.address(old.src.is_ipv6()) } else { old.dst };
                let (kind, code) = if old.src.is_ipv6() {
                    self.pick(&[(1, 4), (2, 0), (3, 0)])
                } else {
                    self.pick(&[(3, 3), (3, 4), (11, 0)])
                };
                old.error(from, to, kind, code)
            }
        })
    }

    fn again(&mut self, mut old: Build) -> Build {
        if let Transport::Tcp { flags, .. } = &mut old.transport {
            *flags = self.pick(&[SYN, ACK, ACK, FIN | ACK, RST]);
        }
        if let Some((offset, len, more)) = old.fragment {
            let next = offset + (len as u16 & !7);
            old.fragment =
                Some(if self.one_in(4) { (offset, len, more) } else { (next, 200, self.one_in(3)) });
        }
        old
    }

    fn answer(&mut self, mut old: Build) -> Build {
        std::mem::swap(&mut old.src, &mut old.dst);
        match &mut old.transport {
            Transport::Tcp { sport, dport, flags, .. } => {
                std::mem::swap(sport, dport);
                *flags = self.pick(&[SYN | ACK, ACK, ACK, FIN | ACK, RST, SYN]);
            }
            Transport::Udp { sport, dport } | Transport::Sctp { sport, dport, .. } => {
                std::mem::swap(sport, dport)
            }
            Transport::Icmp { kind, .. } => {
                *kind = match *kind {
                    8 => 0,
                    0 => 8,
                    128 => 129,
                    129 => 128,
                    13 => 14,
                    other => other,
                }
            }
            Transport::Other(_) => {}
        }
        old
    }

    /// Makes it odd: options, extension headers, fragments, sizes, TTLs.
    fn odd(&mut self, mut build: Build) -> Build {
        if self.one_in(12) {
            build.ttl = self.pick(&[0, 1, 2, 254]);
        }
        if self.one_in(12) {
            build.payload = vec![7; self.pick(&[0, 40, 100, 1400, 1480, 1600])];
        }
        if self.one_in(15) && !build.src.is_ipv6() {
            build.options = vec![self.pick(&[1, 1, 1, 0, 7, 131, 137, 148]); self.pick(&[4, 12, 40])];
            if let [_, len, ..] = &mut build.options[..]
                && self.rng.bool()
            {
                *len = self.pick(&[0, 1, 2, 3, 4, 8, 41]);
            }
        }
        if self.one_in(10) && build.src.is_ipv6() && build.fragment.is_none() {
            for _ in 0..self.rng.usize(1..8) {
                let extra = self.rng.u8(0..2);
                let number = self.pick(&[0, 60, 60, 43, 51]);
                let bytes = [&[0, extra][..], &vec![0; 6 + 8 * usize::from(extra)]].concat();
                build = build.extension(number, &bytes);
            }
        }
        if self.one_in(12) && build.fragment.is_none() {
            build = Build { id: self.rng.u32(0..3), ..build.payload(60) };
            build.fragment =
                Some(self.pick(&[(0, 40, true), (0, 16, true), (40, 100, false), (8, 16, true)]));
        }
        build
    }

    /// Breaks bytes.
    fn broken(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self.rng.u8(0..4) {
            0 => bytes.truncate(self.rng.usize(14..bytes.len().max(15))),
            1 => bytes.extend((0..self.rng.usize(1..40)).map(|n| n as u8)),
            _ => {
                for _ in 0..self.rng.usize(1..4) {
                    let at = self.rng.usize(12..bytes.len().min(90));
                    bytes[at] = self.rng.u8(..);
                }
            }
        }
        bytes
    }

    fn owner(&mut self, address: IpAddr) -> Option<u16> {
        if address == ip("10.0.9.9") {
            return Some(1);
        }
        IDS.into_iter().find(|id| addr(address.is_ipv6(), *id) == address)
    }

    /// A packet at a hook where it could be met, most of the time.
    pub fn step(&mut self) -> Step {
        if self.one_in(25) {
            return self.resolving();
        }
        let build = match self.following() {
            Some(build) if !self.one_in(3) => build,
            _ => self.opening(),
        };
        let build = self.odd(build);
        let from = self.owner(build.src);
        let to = self.owner(build.dst);
        let any = self.pick(&IDS);
        let hook = match (from, to) {
            _ if self.one_in(15) => {
                self.pick(&[Hook::From, Hook::To, Hook::Network, Hook::Out, Hook::Brought, Hook::Sent])
            }
            (None, _) if is_behind(build.src) && !self.one_in(4) => Hook::Brought,
            (_, None) if is_behind(build.dst) && self.one_in(2) => Hook::Sent,
            (Some(_), Some(_)) if self.one_in(3) => Hook::To,
            (Some(_), _) => Hook::From,
            (None, _) if build.src == addr(build.src.is_ipv6(), HOST) && to.is_none() && !self.one_in(4) => {
                Hook::Out
            }
            (None, Some(_)) if self.one_in(2) => Hook::To,
            (None, _) if self.one_in(5) => Hook::From,
            _ => Hook::Network,
        };
        self.remember(build.clone());
        let mut bytes = build.clone().from_mac(mac(from.unwrap_or(any))).frame();
        if self.one_in(15) {
            bytes = self.broken(bytes);
        }
        let sender = if self.one_in(20) { any } else { from.unwrap_or(any) };
        let (device, ingress) = match hook {
            Hook::From => (ifindex(sender), ifindex(sender)),
            Hook::Network => (UPLINK, UPLINK),
            Hook::Brought => (OVERLAY, OVERLAY),
            Hook::Sent => (OVERLAY, self.pick(&[0, UPLINK, 55, ifindex(from.unwrap_or(any))])),
            Hook::Out => (UPLINK, self.pick(&[0, 0, 0, UPLINK, 55, ifindex(any)])),
            Hook::To => {
                let ingress = self.pick(&[0, UPLINK, 55, ifindex(any)]);
                (
                    ifindex(to.unwrap_or(any)),
                    from.map_or(ingress, |id| if self.one_in(6) { ingress } else { ifindex(id) }),
                )
            }
        };
        let mut frame = Frame::new(bytes, device).via(ingress);
        let marks = [0xff, MARK_JUDGED, MARK_OPENED, MARK_OVERLAY, MARK_ROUTED, 0x0600];
        frame.mark = if self.rng.bool() { self.pick(&marks) } else { 0 };
        if hook == Hook::Out && self.one_in(2) {
            frame.mark = MARK_OPENED;
        }
        // Everybody's MAC.
        if hook == Hook::Network && self.one_in(8) {
            frame.bytes[0] |= 1;
        }
        frame.gso_size = if self.one_in(25) { self.pick(&[60, 1400, 1460]) } else { 0 };
        if hook == Hook::Brought {
            let node = if let Some(node) =
                [NODE_B, NODE_C].into_iter().find(|n| behind(build.src.is_ipv6(), *n) == build.src)
                && !self.one_in(8)
            {
                node
            } else {
                self.pick(&[
                    NODE_B,
                    NODE_C,
                    u32::from_ne_bytes([192, 0, 2, 99]),
                    u32::from_ne_bytes([192, 0, 102, 12]),
                ])
            };
            let identity = self.pick(&[2011, 2012, 2011, 2012, 0, 1, 2, 4711, identity(2)]);
            frame.tunnel = Some(Tunnel { from: node, identity });
        }
        frame.next_hop = is_for_neighbour(&frame.bytes).then_some(HOP);
        frame.node_hops = vec![(NODE_B, Some(HOP)), (NODE_C, None)];
        // Of what kind its segments are, a test run does not say.
        frame.unwrappable = frame.gso_size != 0;
        Step { hook, frame }
    }

    /// ARP or neighbour discovery.
    fn resolving(&mut self) -> Step {
        let id = self.pick(&IDS);
        let octets = |address| match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let words = |address| match address {
            IpAddr::V6(v6) => v6,
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        };
        let (mine, other) = (self.rng.bool(), self.pick(&[0, 0, 0, 1, 2, 3]));
        let bytes = if self.rng.bool() {
            let sender = if mine { octets(addr(false, id)) } else { octets(self.address(false)) };
            let operation = self.pick(&[1, 1, 1, 2, 3]);
            let frame = arp(operation, (mac(id), sender), ([0; 6], octets(addr(false, other))));
            if self.one_in(6) { self.broken(frame) } else { frame }
        } else {
            let sender = if mine { words(addr(true, id)) } else { words(self.address(true)) };
            let target = words(addr(true, other));
            let mut build = if self.one_in(4) {
                Build::advertisement(sender, words(self.address(true)), target, mac(id))
            } else {
                Build::solicitation(sender, target, mac(id))
            };
            if self.one_in(4) {
                build.payload.truncate(16);
            }
            if self.one_in(5) {
                build = build.extension(60, &[0, 0, 0, 0, 0, 0, 0, 0]);
            }
            let frame = build.from_mac(mac(id)).frame();
            if self.one_in(6) { self.broken(frame) } else { frame }
        };
        if self.one_in(6) {
            let frame = Frame::new(bytes, ifindex(id)).via(self.pick(&[0, UPLINK]));
            return Step { hook: Hook::To, frame };
        }
        Step { hook: Hook::From, frame: Frame::new(bytes, ifindex(id)) }
    }

    /// Another policy for one endpoint, while flows live.
    pub fn change(&mut self) -> Option<(u16, Vec<(PolicyKey, PolicyEntry)>)> {
        self.one_in(15).then(|| (self.pick(&JUDGED), self.policy()))
    }

    /// Ends the time of a flow of what was sent.
    pub fn expiring(&mut self, world: &Memory) -> Option<FlowKey> {
        if !self.one_in(20) {
            return None;
        }
        let at = self.rng.usize(0..self.sent.len().max(1));
        let sent = self.sent.get(at)?;
        let (sport, dport, proto) = match sent.transport {
            Transport::Tcp { sport, dport, .. } => (sport, dport, 6),
            Transport::Udp { sport, dport } => (sport, dport, 17),
            _ => return None,
        };
        let (key, _) =
            FlowKey::between(SocketAddr::new(sent.src, sport), SocketAddr::new(sent.dst, dport), proto)?;
        let mut flow = *world.flows().get(&key)?;
        flow.expires = time::from_ns(world.clock()).wrapping_sub(2);
        world.set_flow(&key, &flow);
        Some(key)
    }
}
