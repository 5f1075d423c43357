//! The packet path of the kernel and that of the tests are one: the same random packets, policies and topologies go
//! through both, and everything that they decide, write, count and report is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[path = "../../path/tests/lab/mod.rs"]
mod lab;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use lab::{
    OVERLAY, UPLINK, ifindex,
    random::{HOP, Hook, IDS, JUDGED, Random, Step},
};
use villus_abi::{
    Event, Flow, FragPorts, IpcacheKey, Metric, Nat, PolicyEntry, PolicyKey, endpoint::SLOT_HOST, from_bytes,
    time,
};
use villus_datapath::{
    EventRing, Flows, Hook as Place, Mappings, Maps, Object, Pins, PolicyMap, Program, Sizes, SkbContext,
    metrics, sys,
};
use villus_path::{
    AROUND, Action, MARK_JUDGED, MARK_MASK, MARK_OPENED, MARK_OVERLAY, MARK_ROUTED, Outcome,
    memory::{FlowKey, FragKey, Memory, NatKey, checksum, word4},
};
use villus_testbed::{alone, run};

/// Pairs of policy and packet, unless `VILLUS_TEST_PAIRS` says more.
const PAIRS: u64 = 110_000;
/// Packets that one node sees.
const SEQUENCE: u64 = 50;
/// The node that the uplink leads to, `NODE_B`; the other one's neighbour is not known.
const NODE: &str = "192.0.2.12";
/// How far apart two readings of the clock may be: the test's, and the program's a moment later.
const TICKS: u32 = 3;

const SIZES: Sizes =
    Sizes { endpoints: 16, ct_tcp: 4096, ct_any: 4096, frags: 1024, ipcache: 1024, events: 1 << 18, nat: 0 };

/// The kernel's side of the comparison.
struct Kernel {
    _pins: Pins,
    maps: Arc<Maps>,
    object: Object,
    /// Gives a packet the word of a tunnel, then runs `from_overlay`.
    tunnelled: OwnedFd,
    _calls: sys::RawMap,
    scratch: sys::RawMap,
    policies: BTreeMap<u16, PolicyMap>,
    ring: EventRing,
    counted: BTreeMap<u32, Metric>,
    /// This kernel can give programs the sum of the whole packet.
    sums: bool,
}

impl Kernel {
    /// One that masquerades, or not.
    fn new(nat: bool) -> Self {
        devices();
        let pins = Pins::detached().unwrap();
        let maps = Arc::new(Maps::open(&pins, &Sizes { nat: if nat { 4096 } else { 0 }, ..SIZES }).unwrap());
        let object = Object::load(&pins, &maps, &Place::ALL).unwrap();
        let scratch = object.program(Place::FromEndpoint).unwrap().map("SCRATCH").unwrap().unwrap();
        let policies = JUDGED.map(|id| (id, slotted(&maps, id))).into_iter().collect();
        let ring = EventRing::open(&maps).unwrap();
        let (tunnelled, _calls) = tunnelled(object.program(Place::FromOverlay).unwrap().as_fd());
        let whole_sum = SkbContext { whole_sum: true, ..SkbContext::default() };
        let sums = object.program(Place::FromNetwork).unwrap().test_run(&[0; 64], &whole_sum).is_ok();
        Self {
            _pins: pins,
            maps,
            object,
            tunnelled,
            _calls,
            scratch,
            policies,
            ring,
            counted: BTreeMap::new(),
            sums,
        }
    }

    /// Makes the maps those of a world in memory.
    fn load(&mut self, world: &Memory) {
        let maps = &self.maps;
        maps.config.insert(&0, world.config.as_ref().unwrap()).unwrap();
        for (slot, endpoint) in &world.endpoints {
            maps.endpoints.insert(slot, endpoint).unwrap();
            if *slot != SLOT_HOST {
                maps.devices.insert(&endpoint.ifindex, slot).unwrap();
            }
        }
        for (address, local) in &world.addrs {
            match address {
                IpAddr::V4(v4) => maps.addrs4.insert(&word4(*v4), local).unwrap(),
                IpAddr::V6(v6) => maps.addrs6.insert(&v6.octets(), local).unwrap(),
            }
        }
        maps.ipcache.remove_if(|_, _| true).unwrap();
        for (key, value) in world.ipcache.iter() {
            maps.ipcache.insert(key, value).unwrap();
        }
        maps.nodes.remove_if(|_, _| true).unwrap();
        for (address, node) in &world.nodes {
            let key = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            maps.nodes.insert(&key, node).unwrap();
        }
        if let Some(nat) = &maps.nat {
            nat.uplinks.remove_if(|_, _| true).unwrap();
            nat.uplinks.insert_all(&world.uplinks.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>()).unwrap();
            nat.prefixes.remove_if(|_, _| true).unwrap();
            for (address, len, flags) in &world.masquerade {
                let key = match address {
                    IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), *len),
                    IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), *len),
                };
                nat.prefixes.insert(&key, flags).unwrap();
            }
        }
        for id in JUDGED {
            self.set_policy(id, &world.policy_entries(u32::from(id)).unwrap_or_default());
        }
        self.forget();
    }

    fn set_policy(&self, id: u16, entries: &BTreeMap<PolicyKey, PolicyEntry>) {
        let map = &self.policies[&id];
        map.remove_if(|_, _| true).unwrap();
        map.insert_all(&entries.iter().map(|(key, entry)| (*key, *entry)).collect::<Vec<_>>()).unwrap();
        self.maps.epoch.renew().unwrap();
    }

    fn set_flow(&self, key: &FlowKey, flow: &Flow) {
        let maps = &self.maps;
        match key {
            FlowKey::V4(v4) if key.is_tcp() => maps.ct4_tcp.insert(v4, flow).unwrap(),
            FlowKey::V4(v4) => maps.ct4_any.insert(v4, flow).unwrap(),
            FlowKey::V6(v6) if key.is_tcp() => maps.ct6_tcp.insert(v6, flow).unwrap(),
            FlowKey::V6(v6) => maps.ct6_any.insert(v6, flow).unwrap(),
        }
    }

    fn forget(&mut self) {
        Flows::new(self.maps.clone()).flush().unwrap();
        self.maps.frags4.remove_if(|_, _| true).unwrap();
        self.maps.frags6.remove_if(|_, _| true).unwrap();
        Mappings::new(self.maps.clone()).flush().unwrap();
        self.events();
        self.counted = metrics(&self.maps).unwrap();
    }

    fn program(&self, hook: Hook) -> &Program {
        let place = match hook {
            Hook::From => Place::FromEndpoint,
            Hook::To => Place::ToEndpoint,
            Hook::Network => Place::FromNetwork,
            Hook::Out => Place::ToNetwork,
            Hook::Brought => Place::FromOverlay,
            Hook::Sent => Place::ToOverlay,
        };
        self.object.program(place).unwrap()
    }

    /// Runs a packet: what the program returned, decided, and left of packet and mark. On an uplink, and where it is to leave by
    /// one, it comes as from a device that hands on the whole packet's sum, which has to be right afterwards.
    fn run(&self, step: &Step, expected: Outcome) -> Ran {
        let frame = &step.frame;
        let at_uplink = matches!(step.hook, Hook::Network | Hook::Out);
        let context = SkbContext {
            mark: frame.mark,
            ingress_ifindex: frame.ingress_ifindex,
            ifindex: frame.ifindex,
            gso_size: frame.gso_size,
            whole_sum: self.sums
                && frame.gso_size == 0
                && (at_uplink || expected.action() == Action::Neighbour),
            ..SkbContext::default()
        };
        let ran = match frame.tunnel {
            None => self.program(step.hook).test_run(&frame.bytes, &context).unwrap(),
            Some(tunnel) => {
                let cb = [tunnel.identity, u32::from_be(tunnel.from), 0, 0, 0];
                let context = SkbContext { cb, ..context };
                sys::test_run(self.tunnelled.as_fd(), &frame.bytes, &context, 1).unwrap()
            }
        };
        let outcome = Outcome::from_bits(self.last());
        let bytes = unnumbered(ran.packet, frame.bytes.len());
        Ran { verdict: ran.verdict, outcome, bytes, mark: ran.context.mark }
    }

    /// What the program of the first CPU decided last: the first word of what it knows.
    fn last(&self) -> u64 {
        let mut bytes = vec![0; self.scratch.value_len()];
        assert!(self.scratch.lookup(&0_u32.to_ne_bytes(), &mut bytes).unwrap());
        from_bytes(&bytes[..8]).unwrap()
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.ring.read(usize::MAX, |bytes| events.push(from_bytes::<Event>(bytes).unwrap()));
        events
    }

    fn flows(&self) -> HashMap<FlowKey, Flow> {
        let maps = &self.maps;
        let v4 = [&maps.ct4_tcp, &maps.ct4_any].map(|map| map.entries().unwrap()).concat();
        let v6 = [&maps.ct6_tcp, &maps.ct6_any].map(|map| map.entries().unwrap()).concat();
        let v4 = v4.into_iter().map(|(key, flow)| (FlowKey::V4(key), flow));
        v4.chain(v6.into_iter().map(|(key, flow)| (FlowKey::V6(key), flow))).collect()
    }

    fn fragments(&self) -> HashMap<FragKey, FragPorts> {
        let v4 = self.maps.frags4.entries().unwrap().into_iter();
        let v6 = self.maps.frags6.entries().unwrap().into_iter();
        v4.map(|(key, ports)| (FragKey::V4(key), ports))
            .chain(v6.map(|(key, ports)| (FragKey::V6(key), ports)))
            .collect()
    }

    fn mappings(&self) -> HashMap<NatKey, Nat> {
        let Some(nat) = &self.maps.nat else { return HashMap::new() };
        let v4 = nat.nat4.entries().unwrap().into_iter().map(|(key, nat)| (NatKey::V4(key), nat));
        let v6 = nat.nat6.entries().unwrap().into_iter().map(|(key, nat)| (NatKey::V6(key), nat));
        v4.chain(v6).collect()
    }

    /// What was counted since the world was loaded.
    fn metrics(&self) -> BTreeMap<u32, Metric> {
        let mut now = metrics(&self.maps).unwrap();
        for (index, before) in &self.counted {
            let metric = now.entry(*index).or_default();
            metric.packets -= before.packets;
            metric.bytes -= before.bytes;
        }
        now.retain(|_, metric| *metric != Metric::default());
        now
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Ran {
    verdict: i32,
    outcome: Outcome,
    bytes: Vec<u8>,
    mark: u32,
}

/// An empty policy map in an endpoint's slot.
fn slotted(maps: &Maps, id: u16) -> PolicyMap {
    let spec = sys::MapSpec {
        name: "test_policy",
        kind: sys::Kind::Hash,
        key: 8,
        value: 24,
        entries: 1024,
        flags: 1,
    };
    let raw = sys::RawMap::create(&spec, None).unwrap();
    maps.policies.insert(&u32::from(id), &raw.as_fd().as_raw_fd().cast_unsigned()).unwrap();
    PolicyMap::new(raw, "test_policy").unwrap()
}

/// A program that makes a packet one that a tunnel has brought, from the node and with the identity in its `cb`, and goes on
/// with another program; and the map by which it finds that.
fn tunnelled(program: BorrowedFd<'_>) -> (OwnedFd, sys::RawMap) {
    let spec = sys::MapSpec {
        name: "test_calls",
        kind: sys::Kind::ProgArray,
        key: 4,
        value: 4,
        entries: 1,
        flags: 0,
    };
    let calls = sys::RawMap::create(&spec, None).unwrap();
    calls.update(&0_u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes(), sys::Update::Any).unwrap();
    let insn = |code: u64, dst: u64, src: u64, offset: i16, value: i32| {
        let (offset, value) = (u64::from(offset.cast_unsigned()), u64::from(value.cast_unsigned()));
        code | dst << 8 | src << 12 | offset << 16 | value << 32
    };
    let mut code = vec![insn(0xbf, 6, 1, 0, 0)];
    // `struct bpf_tunnel_key`, 44 bytes, zero but for the VNI at 0 and the own address at 28, which is what a receiver
    // of the packet would read as that of its sender.
    code.extend((-48..0).step_by(8).map(|at| insn(0x7a, 10, 0, at, 0)));
    code.extend([
        insn(0x61, 2, 1, 48, 0),
        insn(0x63, 10, 2, -48, 0),
        insn(0x61, 2, 1, 52, 0),
        insn(0x63, 10, 2, -20, 0),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, -48),
        insn(0xb7, 3, 0, 0, 44),
        insn(0xb7, 4, 0, 0, 0),
        insn(0x85, 0, 0, 0, 21),
        insn(0xbf, 1, 6, 0, 0),
        insn(0x18, 2, 1, 0, calls.as_fd().as_raw_fd()),
        0,
        insn(0xb7, 3, 0, 0, 0),
        insn(0x85, 0, 0, 0, 12),
        insn(0xb7, 0, 0, 0, 99),
        0x95,
    ]);
    (sys::prog_load_tc("villus_tunnel", &code).unwrap(), calls)
}

/// The devices that packets say they are on, and a neighbour behind the uplink.
fn devices() {
    let hex = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (name, index) in IDS
        .map(|id| (format!("e{id}"), ifindex(id)))
        .into_iter()
        .chain([("uplink".to_owned(), UPLINK), ("overlay".to_owned(), OVERLAY)])
    {
        let peer = format!("{name}p");
        let index = index.to_string();
        run("ip", &["link", "add", &name, "index", &index, "type", "veth", "peer", "name", &peer]);
        run("ip", &["link", "set", &peer, "up"]);
        run("ip", &["link", "set", &name, "up"]);
    }
    let (own, next) = (hex(HOP.neighbour.own_mac), hex(HOP.neighbour.mac));
    run("ip", &["link", "set", "uplink", "address", &own]);
    for (address, neighbour) in
        [("192.0.2.1/24", "192.0.2.9"), ("2001:db8::1/64", "2001:db8::9"), ("192.0.2.1/24", NODE)]
    {
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        run("ip", &[&["addr", "replace", address, "dev", "uplink"], nodad].concat());
        run("ip", &["neigh", "add", neighbour, "lladdr", &next, "dev", "uplink", "nud", "permanent"]);
    }
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
    }
}

/// Newer kernels make no test runs with IP headers that are cut short.
fn is_refused(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() < 14 + 20,
        Some([0x86, 0xdd]) => frame.len() < 14 + 40,
        _ => false,
    }
}

/// What the memory's side says the program should have done.
fn wanted(step: &Step, before: &Step, outcome: Outcome) -> Ran {
    let verdict = match (outcome.action(), step.hook) {
        (Action::Pass, Hook::Network | Hook::Out) => -1,
        (Action::Pass, _) => 0,
        (Action::Drop, _) => 2,
        _ => 7,
    };
    let mark = match (outcome.action(), step.hook) {
        (Action::Device, _) => before.frame.mark & !MARK_MASK | MARK_JUDGED,
        (Action::Tunnel, _) => before.frame.mark & !MARK_MASK | MARK_OVERLAY,
        (Action::Neighbour, _) => before.frame.mark & !MARK_MASK | MARK_ROUTED,
        (Action::Pass, Hook::Sent) => before.frame.mark & !MARK_MASK,
        (Action::Pass, _) if outcome.is_opened() => before.frame.mark & !MARK_MASK | MARK_OPENED,
        (Action::Pass, Hook::To) if [MARK_JUDGED, MARK_OPENED].contains(&(before.frame.mark & MARK_MASK)) => {
            before.frame.mark & !MARK_MASK
        }
        _ => before.frame.mark,
    };
    let bytes = unnumbered(step.frame.bytes.clone(), before.frame.bytes.len());
    Ran { verdict, outcome, bytes, mark }
}

/// A packet that was wrapped without the number that each node counts for itself, and the sum over that, which must be right.
fn unnumbered(mut bytes: Vec<u8>, before: usize) -> Vec<u8> {
    if bytes.len() == before + AROUND as usize {
        assert_eq!(checksum(&bytes[14..34]), 0, "{bytes:x?}");
        bytes[18..20].fill(0);
        bytes[24..26].fill(0);
    }
    bytes
}

/// Times become their distance from now, which is the same on both sides but for a moment.
fn close(a: time::Tick, b: time::Tick) -> bool {
    (a == 0) == (b == 0) && a.abs_diff(b) <= TICKS
}

fn same_flow(a: &Flow, b: &Flow) -> bool {
    let times = [
        (a.expires, b.expires),
        (a.created, b.created),
        (a.fwd_seen, b.fwd_seen),
        (a.rev_seen, b.rev_seen),
        (a.fwd_report, b.fwd_report),
        (a.rev_report, b.rev_report),
    ];
    let timeless = |flow: &Flow| Flow {
        expires: 0,
        created: 0,
        fwd_seen: 0,
        rev_seen: 0,
        fwd_report: 0,
        rev_report: 0,
        ..*flow
    };
    times.iter().all(|(a, b)| close(*a, *b)) && timeless(a) == timeless(b)
}

fn same_maps<K: Copy + Eq + std::hash::Hash + std::fmt::Debug, V: std::fmt::Debug>(
    what: &str,
    memory: &HashMap<K, V>,
    kernel: &HashMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) {
    for key in memory.keys().chain(kernel.keys()) {
        match (memory.get(key), kernel.get(key)) {
            (Some(a), Some(b)) if same(a, b) => {}
            (a, b) => panic!("{what} {key:?}\n memory: {a:?}\n kernel: {b:?}"),
        }
    }
}

/// One node and its packets through both. Says whether both sides could read the clock at about the same time: on a busy
/// machine this thread may have to wait in between, and what happened then says nothing.
fn sequence(kernel: &mut Kernel, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let masquerades = kernel.maps.nat.is_some();
    let mut world = if masquerades { random.masquerading_world() } else { random.world() };
    kernel.load(&world);
    for at in 0..SEQUENCE {
        if let Some((id, entries)) = random.change()
            && world.policy_entries(u32::from(id)).is_some()
        {
            world.set_policy(u32::from(id), entries);
            kernel.set_policy(id, &world.policy_entries(u32::from(id)).unwrap());
        }
        let now = monotonic();
        world.set_clock(now);
        if let Some(key) = random.expiring(&world) {
            kernel.set_flow(&key, &world.flows()[&key]);
        }
        let at_uplink = masquerades && random.rng.u8(0..3) != 0;
        let before = if at_uplink { random.masqueraded_step() } else { random.step() };
        if is_refused(&before.frame.bytes) {
            continue;
        }
        let mut step = before.clone();
        let outcome = step.run(&world);
        let ran = kernel.run(&before, outcome);
        if time::from_ns(monotonic()) - time::from_ns(now) >= TICKS {
            kernel.events();
            kernel.metrics();
            return false;
        }
        assert_eq!(wanted(&step, &before, outcome), ran, "packet {at}: {before:x?}");
        if masquerades && step.hook == Hook::Out && step.frame.bytes != before.frame.bytes {
            random.left(&step.frame.bytes);
        }
    }
    same_maps("flow", &world.flows(), &kernel.flows(), same_flow);
    let same_ports = |a: &FragPorts, b: &FragPorts| {
        (a.sport, a.dport) == (b.sport, b.dport) && close(a.expires, b.expires)
    };
    let same_nat = |a: &Nat, b: &Nat| {
        let timeless = |nat: &Nat| Nat { expires: 0, created: 0, ..*nat };
        timeless(a) == timeless(b) && close(a.expires, b.expires) && close(a.created, b.created)
    };
    same_maps("mapping", &world.mappings(), &kernel.mappings(), same_nat);
    same_maps("fragment", &world.fragments(), &kernel.fragments(), same_ports);
    for id in JUDGED {
        let entries = world.policy_entries(u32::from(id)).unwrap_or_default();
        let there: BTreeMap<_, _> = kernel.policies[&id].entries().unwrap().into_iter().collect();
        assert_eq!(entries, there, "policy of {id}");
    }
    assert_eq!(world.metrics(), kernel.metrics());
    let timeless = |event: &Event| Event { time: 0, hash: 0, ..*event };
    let memory: Vec<_> = world.take_events().iter().map(timeless).collect();
    let there: Vec<_> = kernel.events().iter().map(timeless).collect();
    assert_eq!(memory, there);
    true
}

/// Says how to repeat what failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: VILLUS_TEST_SEED={} VILLUS_TEST_PAIRS={SEQUENCE}", self.0);
        }
    }
}

fn monotonic() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    at.tv_sec.cast_unsigned() * 1_000_000_000 + at.tv_nsec.cast_unsigned()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

#[test]
fn kernel_and_memory_decide_alike() {
    alone!();
    agree(false);
}

#[test]
fn kernel_and_memory_masquerade_alike() {
    alone!();
    agree(true);
}

fn agree(nat: bool) {
    if !Object::is_embedded() {
        eprintln!("skipped: built without a kernel object");
        return;
    }
    // LAST and the counters are those of a CPU.
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(0);
    rustix::thread::sched_setaffinity(None, &cpus).unwrap();
    let mut kernel = Kernel::new(nat);
    let pairs = number("VILLUS_TEST_PAIRS");
    // The same nodes each time, unless somebody asks for more than usual.
    let first =
        number("VILLUS_TEST_SEED").unwrap_or_else(|| if pairs.is_some() { fastrand::u64(..) } else { 0 });
    for seed in 0..pairs.unwrap_or(PAIRS).div_ceil(SEQUENCE) {
        let seed = first.wrapping_add(seed);
        let _named = Seed(seed);
        while !sequence(&mut kernel, seed) {}
    }
}
