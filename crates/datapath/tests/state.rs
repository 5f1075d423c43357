//! Flows, resizing, snapshots, events, and taking everything away again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use villus_abi::{
    Config, Endpoint, Flow, FlowKey4, FlowKey6, FragKey4, FragPorts, IpcacheKey, IpcacheValue, Local, Metric,
    PolicyEntry, PolicyKey, endpoint::FLAG_ACTIVE, flow::FLOW_HI_OPENED, flow_v1::FlowV1, policy::Direction,
    time,
};
use villus_datapath::{
    AttachMode, DatapathCleanup, Error, EventRing, FlowKey, Flows, Hook, Links, Map, Maps, OldFlows, Pins,
    PolicyMaps, Program, Sizes, SkbContext, Snapshot, now, resize,
    sys::{self, RawMap},
};
use villus_testbed::{alone, run};

const SIZES: Sizes =
    Sizes { endpoints: 128, ct_tcp: 4096, ct_any: 4096, frags: 1024, ipcache: 1024, events: 1 << 16, nat: 0 };

fn key4(n: u32, proto: u8) -> FlowKey4 {
    let lo = u32::from_ne_bytes([10, 0, (n >> 8) as u8, n as u8]);
    let hi = u32::from_ne_bytes([10, 9, 9, 9]);
    FlowKey4 { lo, hi, lo_port: 80_u16.to_be(), hi_port: 5000_u16.to_be(), proto, ..FlowKey4::default() }
}

fn key6(n: u32) -> FlowKey6 {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfd, 0]);
    address[12..].copy_from_slice(&n.to_be_bytes());
    let words =
        |b: [u8; 16]| std::array::from_fn(|i| u32::from_ne_bytes(b[4 * i..4 * i + 4].try_into().unwrap()));
    FlowKey6 { lo: words(address), hi: [u32::MAX; 4], proto: 17, ..FlowKey6::default() }
}

/// When flows expire that live longer than any test, in ticks of the path's clock.
fn later() -> u32 {
    now() + time::from_secs(3600)
}

fn alive() -> Flow {
    Flow { expires: later(), fwd_packets: 1, ..Flow::default() }
}

fn kernel(sizes: &Sizes) -> (Pins, Arc<Maps>) {
    let pins = Pins::detached().unwrap();
    let maps = Arc::new(Maps::open(&pins, sizes).unwrap());
    (pins, maps)
}

#[test]
fn flows_are_listed_and_removed() {
    let (_pins, maps) = kernel(&SIZES);
    let flows = Flows::new(maps.clone());
    for n in 0..100 {
        maps.ct4_tcp.insert(&key4(n, 6), &Flow { src_endpoint: n as u16 % 10, ..alive() }).unwrap();
        maps.ct4_any.insert(&key4(n, 17), &alive()).unwrap();
        maps.ct6_any.insert(&key6(n), &Flow { dst_endpoint: 3, ..alive() }).unwrap();
    }
    maps.frags4
        .insert(&FragKey4 { src: key4(7, 6).lo, ..FragKey4::default() }, &FragPorts::default())
        .unwrap();
    assert_eq!(flows.list().unwrap().len(), 300);
    let (key, flow) = (FlowKey::V4(key4(7, 6)), Flow { flags: FLOW_HI_OPENED, ..alive() });
    let ends: [SocketAddr; 2] = ["10.9.9.9:5000".parse().unwrap(), "10.0.0.7:80".parse().unwrap()];
    assert_eq!(key.ends(&flow), (ends[0], ends[1]));
    assert_eq!(FlowKey::V6(key6(258)).lo().to_string(), "[fd00::102]:0");
    assert!(flows.remove(&key).unwrap() && !flows.remove(&key).unwrap());
    // 10.0.0.7 has a UDP flow left, and a memory of a fragmented datagram.
    let addresses: [IpAddr; 2] = ["10.0.0.7".parse().unwrap(), "fd00::8".parse().unwrap()];
    assert_eq!((flows.purge(&addresses).unwrap(), maps.frags4.count().unwrap()), (2, 0));
    assert_eq!(flows.remove_of_endpoint(3).unwrap(), 10 + 99);
    assert_eq!(flows.flush().unwrap(), 300 - 1 - 2 - 10 - 99);
    assert_eq!(flows.flush().unwrap(), 0);
}

#[test]
fn what_has_expired_is_cleared() {
    let (_pins, maps) = kernel(&SIZES);
    let now = now();
    assert!(now > 0);
    for n in 0..2000 {
        let expires = if n % 2 == 0 { now } else { now + 1 };
        maps.ct4_tcp.insert(&key4(n, 6), &Flow { expires, ..Flow::default() }).unwrap();
        maps.ct6_any.insert(&key6(n), &Flow { expires, ..Flow::default() }).unwrap();
    }
    maps.frags4
        .insert(&FragKey4::default(), &FragPorts { expires: now.wrapping_sub(1), ..FragPorts::default() })
        .unwrap();
    let cleared = Flows::new(maps.clone()).clear_expired(now).unwrap();
    assert_eq!((cleared.alive, cleared.expired, cleared.fragments), (2000, 2000, 1));
    assert_eq!(maps.ct4_tcp.count().unwrap(), 1000);
}

/// A program that does nothing but hold a map.
fn holder(map: BorrowedFd<'_>) -> Program {
    let load = 0x18 | 1 << 8 | 1 << 12 | u64::from(map.as_raw_fd().cast_unsigned()) << 32;
    let fd = sys::prog_load_tc("from_endpoint", &[load, 0, 0xb7, 0x95]).unwrap();
    Program::adopt("from_endpoint", fd).unwrap()
}

/// The index of a device that programs can be attached to.
fn device() -> u32 {
    run("ip", &["link", "add", "v0", "type", "veth", "peer", "name", "v0p"]);
    run("ip", &["-o", "link", "show", "v0"]).split(':').next().unwrap().parse().unwrap()
}

/// A flow map as an agent of an earlier version makes it.
fn earlier(pins: &Pins, name: &str, key: u32) -> RawMap {
    let spec = sys::MapSpec { name, kind: sys::Kind::LruHash, key, value: 96, entries: 4096, flags: 0 };
    pins.open_or_create(name, &spec, None).unwrap().0
}

#[test]
fn a_resize_keeps_every_live_flow_and_those_of_the_old_programs() {
    alone!();
    let (_, pins) = common::bpffs();
    let ifindex = device();
    let (maps, links) = (Maps::open(&pins, &SIZES).unwrap(), Links::new(&pins));
    let attach = |maps: &Maps| {
        let program = holder(maps.ct4_tcp.as_fd());
        links.attach(&program, Hook::FromEndpoint, ifindex, AttachMode::Tcx).unwrap();
    };
    attach(&maps);
    for n in 0..1000 {
        let expires = if n < 100 { now() } else { later() };
        maps.ct4_tcp.insert(&key4(n, 6), &Flow { expires, ..alive() }).unwrap();
    }
    assert!(OldFlows::of_attached(&links, &[], &maps).unwrap().is_empty());
    let larger = Sizes { ct_tcp: 8192, ..SIZES };
    let resized = resize(&pins, &larger, now()).unwrap();
    let told: Vec<_> = resized.iter().map(|r| (r.pin, r.from, r.to, r.copied)).collect();
    assert_eq!(told, [("villus_ct4_tcp_v2", 4096, 8192, 900), ("villus_ct6_tcp_v2", 4096, 8192, 0)]);
    assert!(resize(&pins, &larger, now()).unwrap().is_empty());
    // Here the agent may die: the old programs go on with the old map.
    maps.ct4_tcp.insert(&key4(5000, 6), &alive()).unwrap();
    maps.ct4_tcp.insert(&key4(500, 6), &Flow { fwd_packets: 77, ..alive() }).unwrap();
    drop(maps);
    let maps = Maps::open(&pins, &larger).unwrap();
    let old = OldFlows::of_attached(&links, &[], &maps).unwrap();
    assert!(!old.is_empty());
    attach(&maps);
    assert_eq!(old.carry(&maps, now()).unwrap(), 2);
    assert_eq!(maps.ct4_tcp.count().unwrap(), 901);
    assert_eq!(maps.ct4_tcp.get(&key4(500, 6)).unwrap().unwrap().fwd_packets, 77);
    // And back. 901 flows fit easily into 4096.
    drop(maps);
    assert_eq!(resize(&pins, &SIZES, now()).unwrap()[0].copied, 901);
    assert_eq!(Maps::open(&pins, &SIZES).unwrap().ct4_tcp.count().unwrap(), 901);
    assert!(links.remove_all(&[]).is_empty());
}

#[test]
fn other_maps_grow_with_what_they_hold_and_shrink_only_if_it_fits() {
    let (pins, maps) = kernel(&SIZES);
    let pins = Arc::new(pins);
    let mut agent = PolicyMaps::open(pins.clone(), maps.clone(), 1000).unwrap();
    let wanted = [(PolicyKey::default(), PolicyEntry::ALLOW)].into();
    agent.apply(100, &wanted, &mut &maps.endpoints).unwrap();
    maps.endpoints.insert(&100, &Endpoint { id: 100, flags: FLAG_ACTIVE, ..Endpoint::default() }).unwrap();
    maps.addrs4.insert(&7, &Local { slot: 100, flags: 0 }).unwrap();
    maps.ipcache
        .insert(&IpcacheKey::v4([10, 0, 0, 1], 32), &IpcacheValue { identity: 9, ..Default::default() })
        .unwrap();
    drop((agent, maps));
    let larger = Sizes { endpoints: 256, ipcache: 2048, events: 1 << 17, ..SIZES };
    let resized: BTreeSet<&str> = resize(&pins, &larger, now()).unwrap().iter().map(|r| r.pin).collect();
    assert_eq!(resized.len(), 7, "{resized:?}");
    let maps = Arc::new(Maps::open(&pins, &larger).unwrap());
    assert_eq!(maps.endpoints.get(&100).unwrap().unwrap().id, 100);
    assert_eq!(maps.ipcache.of_address("10.0.0.1".parse().unwrap()).unwrap().unwrap().identity, 9);
    let agent = PolicyMaps::open(pins.clone(), maps, 1000).unwrap();
    assert!(agent.compare(100, &wanted).unwrap().is_none());
    drop(agent);
    let error = resize(&pins, &Sizes { endpoints: 64, ..larger }, now()).unwrap_err();
    assert!(matches!(error, Error::Full { wanted: 101, most: 64, .. }), "{error}");
    assert!(error.to_string().contains("raise endpoint-max"), "{error}");
}

#[test]
fn the_flows_of_an_earlier_version_are_taken_over_from_its_programs() {
    alone!();
    let (_, pins) = common::bpffs();
    let ifindex = device();
    let links = Links::new(&pins);
    let (v4, v6) = (earlier(&pins, "villus_ct4_tcp_v1", 16), earlier(&pins, "villus_ct6_any_v1", 40));
    for (map, hook) in [(&v4, Hook::FromEndpoint), (&v6, Hook::ToEndpoint)] {
        links.attach(&holder(map.as_fd()), hook, ifindex, AttachMode::Tcx).unwrap();
    }
    let v4: Map<FlowKey4, FlowV1> = Map::new(v4, "v4").unwrap();
    let v6: Map<FlowKey6, FlowV1> = Map::new(v6, "v6").unwrap();
    let flow = FlowV1 {
        expires: later(),
        created: 7,
        fwd_packets: 1,
        fwd_bytes: 2,
        rev_packets: 3,
        rev_bytes: 4,
        fwd_report: 5,
        rev_report: 6,
        src_identity: 1000,
        dst_identity: 2000,
        flags: FLOW_HI_OPENED,
        fwd_tcp_flags: 0x12,
        rev_tcp_flags: 0x10,
        src_endpoint: 8,
        dst_endpoint: 9,
        tunnel: 10,
        ..FlowV1::default()
    };
    v4.insert(&key4(1, 6), &flow).unwrap();
    v4.insert(&key4(2, 6), &FlowV1 { expires: now(), ..flow }).unwrap();
    v6.insert(&key6(1), &flow).unwrap();

    // Beside an agent of that version there are no flows to be seen, and everything else is.
    for (name, key) in [("villus_ct4_any_v1", 16), ("villus_ct6_tcp_v1", 40)] {
        earlier(&pins, name, key);
    }
    drop(Maps::open(&pins, &SIZES).unwrap());
    for name in ["ct4_tcp", "ct4_any", "ct6_tcp", "ct6_any"] {
        assert!(pins.remove(&format!("villus_{name}_v2")).unwrap());
    }
    assert!(!Maps::knows_flows(&pins));
    assert_eq!(Maps::existing(&pins).unwrap().ct4_tcp.count().unwrap(), 0);
    assert!(pins.list().unwrap().iter().all(|name| !name.starts_with("villus_ct") || name.ends_with("_v1")));

    let maps = Maps::open(&pins, &SIZES).unwrap();
    assert!(Maps::knows_flows(&pins));
    // What is left of that version's tools finds its pins, with nothing in them.
    let left = pins.map("villus_ct4_tcp_v1").unwrap().unwrap();
    assert_eq!((left.info().entries, left.info().value), (64, 96));
    assert_eq!(Map::<FlowKey4, FlowV1>::new(left, "v1").unwrap().count().unwrap(), 0);
    let carried = OldFlows::of_attached(&links, &[], &maps).unwrap();
    assert_eq!(carried.carry(&maps, now()).unwrap(), 2);
    let expected = Flow {
        expires: flow.expires,
        created: 7,
        fwd_packets: 1,
        fwd_bytes: 2,
        rev_packets: 3,
        rev_bytes: 4,
        fwd_report: 5,
        rev_report: 6,
        src_identity: 1000,
        dst_identity: 2000,
        flags: FLOW_HI_OPENED,
        fwd_tcp_flags: 0x12,
        rev_tcp_flags: 0x10,
        src_endpoint: 8,
        dst_endpoint: 9,
        tunnel: 10,
        ..Flow::default()
    };
    assert_eq!(maps.ct4_tcp.entries().unwrap(), [(key4(1, 6), expected)]);
    assert_eq!(maps.ct6_any.entries().unwrap(), [(key6(1), expected)]);
    // The old programs go on for a moment. What was taken away meanwhile stays away.
    maps.ct4_tcp.remove(&key4(1, 6)).unwrap();
    v6.insert(&key6(1), &FlowV1 { rev_packets: 30, ..flow }).unwrap();
    v4.insert(&key4(3, 6), &FlowV1 { created: now(), ..flow }).unwrap();
    assert_eq!(carried.carry(&maps, now()).unwrap(), 2);
    assert_eq!(maps.ct6_any.get(&key6(1)).unwrap().unwrap().rev_packets, 30);
    assert_eq!(
        maps.ct4_tcp.entries().unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
        [key4(3, 6)]
    );
    assert!(links.remove_all(&[]).is_empty());
}

#[test]
fn of_more_flows_than_fit_those_that_live_longest_are_carried_once() {
    alone!();
    let (_, pins) = common::bpffs();
    let ifindex = device();
    let links = Links::new(&pins);
    let old = earlier(&pins, "villus_ct4_tcp_v1", 16);
    links.attach(&holder(old.as_fd()), Hook::FromEndpoint, ifindex, AttachMode::Tcx).unwrap();
    let old: Map<FlowKey4, FlowV1> = Map::new(old, "old").unwrap();
    let (begin, most) = (now(), 1024);
    for n in 0..3000 {
        let flow = FlowV1 { expires: begin + 1000 + n, fwd_packets: 1, ..FlowV1::default() };
        old.insert(&key4(n, 6), &flow).unwrap();
    }
    let maps = Maps::open(&pins, &Sizes { ct_tcp: most, ..SIZES }).unwrap();
    let carried = OldFlows::of_attached(&links, &[], &maps).unwrap();
    carried.carry(&maps, begin + 1).unwrap();
    // The table evicts by the hundred; what it holds is from the end.
    let held = || maps.ct4_tcp.entries().unwrap();
    assert!(held().len() > most as usize / 2, "{}", held().len());
    assert!(held().iter().all(|(_, flow)| flow.expires > begin + 1000 + 3000 - 2 * most));
    // New programs make flows of their own; those that gave way to them do not come back.
    let ours: Vec<FlowKey4> = (5000..5000 + most / 4).map(|n| key4(n, 6)).collect();
    for key in &ours {
        maps.ct4_tcp.insert(key, &Flow { created: begin + 2, ..alive() }).unwrap();
    }
    assert_eq!(carried.carry(&maps, begin + 3).unwrap(), 0);
    assert!(ours.iter().all(|key| maps.ct4_tcp.get(key).unwrap().is_some()));
    assert!(links.remove_all(&[]).is_empty());
}

#[test]
fn a_snapshot_holds_everything() {
    let (pins, maps) = kernel(&SIZES);
    let pins = Arc::new(pins);
    let mut agent = PolicyMaps::open(pins.clone(), maps.clone(), 1000).unwrap();
    let key = PolicyKey::new(9, 80, 6, Direction::Egress);
    agent.prepare(&[5, 6, 7]).unwrap();
    agent.apply(5, &[(key, PolicyEntry::DENY)].into(), &mut &maps.endpoints).unwrap();
    maps.endpoints
        .insert(&5, &Endpoint { id: 5, policy: 5, flags: FLAG_ACTIVE, ..Endpoint::default() })
        .unwrap();
    maps.devices.insert(&11, &5).unwrap();
    maps.addrs6.insert(&[1; 16], &Local { slot: 5, flags: 0 }).unwrap();
    maps.config.insert(&0, &Config::default()).unwrap();
    maps.metrics.fill(&3, &Metric { packets: 2, bytes: 100 }).unwrap();
    maps.ct4_tcp.insert(&key4(1, 6), &alive()).unwrap();
    maps.ct6_any.insert(&key6(1), &alive()).unwrap();
    let snapshot = Snapshot::take(&pins, &maps).unwrap();
    assert_eq!(snapshot.endpoints.keys().collect::<Vec<_>>(), [&5]);
    assert!(snapshot.policies.len() == 1 && snapshot.policies[&5].entries[&key].is_deny());
    assert_eq!((snapshot.flows4.len(), snapshot.flows6.len()), (1, 1));
    assert_eq!((snapshot.devices[&11], snapshot.addrs6[&[1; 16]].slot), (5, 5));
    assert_eq!(snapshot.config, Some(Config::default()));
    assert_eq!(snapshot.metrics.len(), 1);
    assert!(snapshot.metrics[&3].bytes.is_multiple_of(100));
    assert!(Snapshot::without_flows(&pins, &maps).unwrap().flows4.is_empty());
}

#[test]
fn events_come_out_of_the_ring_in_order() {
    let (_pins, maps) = kernel(&SIZES);
    let mut ring = EventRing::open(&maps).unwrap();
    assert_eq!(ring.read(100, |_| panic!("an event from nowhere")), 0);
    // *(u64 *)(fp - 8) = skb->mark; ringbuf_output(ring, fp - 8, 8, 0)
    let fd = u64::from(maps.events.as_fd().as_raw_fd().cast_unsigned());
    let program = [
        0x61 | 1 << 8 | 1 << 12 | 8 << 16,
        0x7b | 10 << 8 | 1 << 12 | 0xfff8 << 16,
        0x18 | 1 << 8 | 1 << 12 | fd << 32,
        0,
        0xbf | 2 << 8 | 10 << 12,
        0x07 | 2 << 8 | 0xffff_fff8 << 32,
        0xb7 | 3 << 8 | 8 << 32,
        0xb7 | 4 << 8,
        0x85 | 130 << 32,
        0x95,
    ];
    let program = sys::prog_load_tc("villus_test", &program).unwrap();
    for mark in 1..=5 {
        let context = SkbContext { mark, ..SkbContext::default() };
        assert_eq!(sys::test_run(program.as_fd(), &[0; 64], &context, 1).unwrap().verdict, 0);
    }
    let mut seen: Vec<u64> = Vec::new();
    assert_eq!(ring.read(3, |event| seen.push(u64::from_ne_bytes(event.try_into().unwrap()))), 3);
    assert_eq!(ring.read(100, |event| seen.push(u64::from_ne_bytes(event.try_into().unwrap()))), 2);
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

#[test]
fn cleanup_takes_what_is_ours_and_leaves_the_rest() {
    alone!();
    let (root, pins) = common::bpffs();
    run("ip", &["link", "add", "v0", "type", "veth", "peer", "name", "v0p"]);
    let ifindex = run("ip", &["-o", "link", "show", "v0"]).split(':').next().unwrap().parse().unwrap();
    let map = |name: &str, value: &str| {
        let path = pins.path(name).to_string_lossy().into_owned();
        run(
            "bpftool",
            &[
                "map", "create", &path, "type", "hash", "key", "8", "value", value, "entries", "4", "name",
                "x",
            ],
        );
    };
    // Without anything of ours, names that Cilium has too are Cilium's.
    map("cilium_policy_00001", "24");
    assert!(DatapathCleanup::new(&pins, false).run().unwrap().removed.is_empty());
    pins.remove("cilium_policy_00001").unwrap();

    let maps = Arc::new(Maps::open(&pins, &SIZES).unwrap());
    let pins = Arc::new(pins);
    let mut agent = PolicyMaps::open(pins.clone(), maps.clone(), 1000).unwrap();
    agent.apply(5, &[(PolicyKey::default(), PolicyEntry::ALLOW)].into(), &mut &maps.endpoints).unwrap();
    let program = holder(maps.ct4_tcp.as_fd());
    let links = Links::new(&pins);
    links.attach(&program, Hook::FromEndpoint, ifindex, AttachMode::Tcx).unwrap();
    links.attach(&program, Hook::ToEndpoint, ifindex, AttachMode::Tc).unwrap();
    let map = |name: &str, value: &str| {
        let path = pins.path(name).to_string_lossy().into_owned();
        run(
            "bpftool",
            &[
                "map", "create", &path, "type", "hash", "key", "8", "value", value, "entries", "4", "name",
                "x",
            ],
        );
    };
    map("somebodys_map", "8");
    map("cilium_policy_00009", "8");
    drop((agent, program));
    let planned = DatapathCleanup::new(&pins, true).run().unwrap().removed;
    // 17 maps, the record of what was written, one policy, two programs, one pinned link.
    assert_eq!(planned.len(), 17 + 1 + 1 + 2 + 1, "{planned:#?}");
    assert_eq!(links.list(&[ifindex]).unwrap().len(), 2);
    let cleaned = DatapathCleanup::new(&pins, false).run().unwrap();
    assert!(cleaned.errors.is_empty(), "{:?}", cleaned.errors);
    assert_eq!(pins.list().unwrap(), ["cilium_policy_00009", "somebodys_map"]);
    assert!(!run("bpftool", &["net"]).contains("from_endpoint"));
    assert!(DatapathCleanup::new(&pins, false).run().unwrap().removed.is_empty());
    pins.remove("cilium_policy_00009").unwrap();
    pins.remove("somebodys_map").unwrap();
    DatapathCleanup::new(&pins, false).run().unwrap();
    assert!(!root.join("tc").exists());
}
