//! Programs remember whose an address is, and believe a change at once: the epoch says that there was one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::IpAddr;

use villus_abi::{Config, Local, Reason, bytes_of};
use villus_datapath::{Hook, Maps, Object, Pins, Program, Sizes, SkbContext, metrics, sys::Update};
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
