//! Programs remember whose an address is and what a policy allowed, and believe a change at once: the epoch says that there was
//! one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use villus_abi::{
    Config, Endpoint, Local, PolicyEntry, PolicyKey, Reason, bytes_of, endpoint::FLAG_ACTIVE,
    policy::Direction,
};
use villus_datapath::{
    Edits, Entries, Hook, Map, Maps, Object, Pins, PolicyMaps, Program, Shapes, Sizes, SkbContext,
    hand_insert, hand_remove, metrics, policy_pin, sys::Update,
};
use villus_path::memory::Build;
use villus_testbed::{alone, eventually};

const SIZES: Sizes =
    Sizes { endpoints: 16, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 1 << 14, nat: 0 };

/// Whether a packet from outside is dropped because its source is an address of this node.
fn refused(maps: &Maps, program: &Program, packet: &[u8]) -> bool {
    let index = villus_abi::metrics::index(Reason::SOURCE_IP.0, 0);
    let count = || metrics(maps).unwrap().get(&index).map_or(0, |metric| metric.packets);
    let before = count();
    program.test_run(packet, &SkbContext::default()).unwrap();
    count() > before
}

#[test]
fn whose_an_address_is_counts_from_the_change_on() {
    alone!();
    if !Object::is_embedded() {
        eprintln!("skipped: built without a kernel object");
        return;
    }
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &SIZES).unwrap();
    let object = Object::load(&pins, &maps, &Hook::WITHOUT_TUNNEL).unwrap();
    let program = object.program(Hook::FromNetwork).unwrap();
    maps.config.insert(&0, &Config::default()).unwrap();
    let local = Local { slot: 0, flags: 0 };
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap());
    for (from, to) in [(v4, "203.0.113.9"), (v6, "2001:db8:1::9")] {
        let packet = Build::udp(from, 5000, to.parse().unwrap(), 53).frame();
        let set = |is_ours: bool| match from {
            IpAddr::V4(v4) if is_ours => {
                maps.addrs4.insert(&u32::from_ne_bytes(v4.octets()), &local).unwrap()
            }
            IpAddr::V6(v6) if is_ours => maps.addrs6.insert(&v6.octets(), &local).unwrap(),
            IpAddr::V4(v4) => drop(maps.addrs4.remove(&u32::from_ne_bytes(v4.octets())).unwrap()),
            IpAddr::V6(v6) => drop(maps.addrs6.remove(&v6.octets()).unwrap()),
        };
        // Many within one jiffy.
        for turn in 0..500 {
            set(turn % 2 == 1);
            assert_eq!(refused(&maps, program, &packet), turn % 2 == 1, "{from} {turn}");
        }
        // By a hand that knows of no epoch: a little later.
        let epoch = maps.epoch.get(&0).unwrap();
        let (map, key) = match from {
            IpAddr::V4(v4) => (maps.addrs4.raw(), v4.octets().to_vec()),
            IpAddr::V6(v6) => (maps.addrs6.raw(), v6.octets().to_vec()),
        };
        map.delete(&key).unwrap();
        eventually("what was removed by hand is gone", || !refused(&maps, program, &packet));
        map.update(&key, bytes_of(&local), Update::Any).unwrap();
        eventually("what was put there by hand counts", || refused(&maps, program, &packet));
        assert_eq!(maps.epoch.get(&0).unwrap(), epoch);
    }
}

/// Packets of an endpoint that were allowed and that were denied, so far.
fn answers(maps: &Maps) -> (u64, u64) {
    let all = metrics(maps).unwrap();
    let of = |reason: Reason| all.get(&villus_abi::metrics::index(reason.0, 1)).map_or(0, |it| it.packets);
    (of(Reason::FORWARDED), of(Reason::POLICY) + of(Reason::POLICY_DENY))
}

#[test]
fn what_a_policy_allows_is_asked_again_from_the_change_on() {
    alone!();
    if !Object::is_embedded() {
        eprintln!("skipped: built without a kernel object");
        return;
    }
    let pins = Arc::new(Pins::detached().unwrap());
    let maps = Arc::new(Maps::open(&pins, &SIZES).unwrap());
    let object = Object::load(&pins, &maps, &Hook::WITHOUT_TUNNEL).unwrap();
    let program = object.program(Hook::FromEndpoint).unwrap();
    maps.config.insert(&0, &Config::default()).unwrap();
    let all = PolicyKey::new(0, 0, 0, Direction::Egress);
    let mut policies = PolicyMaps::open(pins.clone(), maps.clone(), 100).unwrap();
    policies.apply(5, &[(all, PolicyEntry::ALLOW)].into(), &mut &maps.endpoints).unwrap();
    let address = Ipv4Addr::new(10, 0, 0, 5);
    let record = Endpoint {
        id: 5,
        policy: 5,
        ifindex: 1,
        identity: 1000,
        flags: FLAG_ACTIVE,
        ipv4: u32::from_ne_bytes(address.octets()),
        ..Endpoint::default()
    };
    maps.endpoints.insert(&5, &record).unwrap();
    maps.devices.insert(&1, &5).unwrap();

    let packet = Build::udp(address.into(), 5000, "203.0.113.9".parse().unwrap(), 53).frame();
    let passes = || {
        let before = answers(&maps);
        program.test_run(&packet, &SkbContext::default()).unwrap();
        let after = answers(&maps);
        assert_eq!(after.0 + after.1, before.0 + before.1 + 1);
        after.0 > before.0
    };
    // Many within one jiffy.
    let deny = PolicyKey::new(2, 53, 17, Direction::Egress);
    for turn in 0..500 {
        assert!(passes(), "{turn}");
        assert!(hand_insert(&pins, &maps, 5, &deny, &PolicyEntry::DENY).unwrap());
        assert!(!passes(), "{turn}");
        assert!(hand_remove(&pins, &maps, 5, &deny).unwrap());
    }
    // The agent's own changes too: of single entries, and of a whole policy.
    let shapes = Shapes::default();
    let mut edits = [Edits::new(shapes), Edits::new(shapes)];
    edits[0].push(deny, None, Some(PolicyEntry::DENY));
    edits[1].push(deny, Some(PolicyEntry::DENY), None);
    let whole: [Entries; 2] =
        [[(all, PolicyEntry::ALLOW), (deny, PolicyEntry::DENY)].into(), [(all, PolicyEntry::ALLOW)].into()];
    for turn in 0..200 {
        for (step, edits) in edits.iter().enumerate() {
            assert_eq!(passes(), step == 0, "{turn}");
            let done = policies.apply_edits(&[(5, edits)], &mut &maps.endpoints).unwrap();
            assert!(matches!(done[..], [(5, Ok(Some(_)))]), "{done:?}");
        }
        for (step, entries) in whole.iter().enumerate() {
            assert_eq!(passes(), step == 0, "{turn}");
            policies.apply(5, entries, &mut &maps.endpoints).unwrap();
        }
    }
    // By a hand that knows of no epoch.
    let epoch = maps.epoch.get(&0).unwrap();
    let raw = pins.map(&policy_pin(5)).unwrap().unwrap();
    let map: Map<PolicyKey, PolicyEntry> = Map::new(raw, "policy").unwrap();
    for turn in 0..20 {
        assert!(passes(), "{turn}");
        map.insert(&deny, &PolicyEntry::DENY).unwrap();
        eventually("a denial that was put there by hand counts", || !passes());
        assert!(map.remove(&deny).unwrap());
        assert!(passes(), "{turn}: no denial is remembered");
        assert!(map.remove(&all).unwrap());
        assert!(!passes(), "{turn}: the entry that allowed is gone");
        map.insert(&all, &PolicyEntry::ALLOW).unwrap();
        assert!(passes(), "{turn}");
        map.insert(&all, &PolicyEntry::DENY).unwrap();
        assert!(!passes(), "{turn}: the entry that allowed denies");
        map.insert(&all, &PolicyEntry::ALLOW).unwrap();
    }
    // It is remembered: packets do pass beside a denial that such a hand adds, within the jiffy.
    let remembered = (0..50).any(|_| {
        assert!(passes());
        map.insert(&deny, &PolicyEntry::DENY).unwrap();
        let passed = passes();
        map.remove(&deny).unwrap();
        passed
    });
    assert!(remembered);
    // Every packet that was allowed is counted on the entry, the remembered ones too.
    let before = map.get(&all).unwrap().unwrap().packets;
    assert!((0..10).all(|_| passes()));
    assert_eq!(map.get(&all).unwrap().unwrap().packets, before + 10);
    assert_eq!(maps.epoch.get(&0).unwrap(), epoch);
}
