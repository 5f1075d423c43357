//! bpf(2) through the typed maps, and test runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::os::fd::AsFd;

use villus_abi::{Endpoint, Metric, PolicyEntry, PolicyKey, policy::Direction};
use villus_datapath::{
    Error, Map, Maps, PerCpuMap, Pins, Sizes, SkbContext,
    sys::{self, Kind, MapSpec, NO_PREALLOC, RawMap},
};
use villus_testbed::{alone, run};

fn hash(entries: u32) -> Map<u32, u64> {
    let spec =
        MapSpec { name: "villus_test", kind: Kind::Hash, key: 4, value: 8, entries, flags: NO_PREALLOC };
    Map::new(RawMap::create(&spec, None).unwrap(), "test").unwrap()
}

#[test]
fn elements_come_and_go() {
    let map = hash(100);
    assert_eq!(map.get(&1).unwrap(), None);
    map.insert(&1, &10).unwrap();
    assert!(!map.insert_new(&1, &11).unwrap());
    assert!(map.insert_new(&2, &20).unwrap());
    assert!(map.replace(&2, &21).unwrap());
    assert!(!map.replace(&3, &30).unwrap());
    assert_eq!((map.get(&1).unwrap(), map.get(&2).unwrap()), (Some(10), Some(21)));
    assert!(map.remove(&1).unwrap());
    assert!(!map.remove(&1).unwrap());
    assert_eq!(map.entries().unwrap(), [(2, 21)]);
}

#[test]
fn thousands_in_batches() {
    let map = hash(10_000);
    let elements: Vec<(u32, u64)> = (0..10_000).map(|n| (n, u64::from(n) * 3)).collect();
    map.insert_all(&elements).unwrap();
    let mut found = map.entries().unwrap();
    found.sort_unstable();
    assert_eq!(found, elements);
    let full = map.insert(&10_001, &0).unwrap_err();
    assert!(full.to_string().contains("the map is full"), "{full}");
    // Every second key is asked for twice, the second time in vain.
    let doomed: Vec<u32> = (0..10_000).step_by(2).chain((0..10_000).step_by(2)).collect();
    assert_eq!(map.remove_all(&doomed).unwrap(), 5000);
    assert_eq!(map.remove_if(|key, _| key % 4 == 1).unwrap(), 2500);
    assert_eq!(map.count().unwrap(), 2500);
}

#[test]
fn listing_survives_change() {
    let map = hash(20_000);
    map.insert_all(&(0..1000).map(|n| (n, 1)).collect::<Vec<_>>()).unwrap();
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for round in 0..20_u32 {
                let keys: Vec<(u32, u64)> = (0..500).map(|n| (100_000 + round * 500 + n, 2)).collect();
                map.insert_all(&keys).unwrap();
                map.remove_all(&keys.iter().map(|(key, _)| *key).collect::<Vec<_>>()).unwrap();
            }
        });
        while !churn.is_finished() {
            let mut keys: Vec<u32> = map.entries().unwrap().into_iter().map(|(key, _)| key).collect();
            keys.retain(|key| *key < 1000);
            keys.sort_unstable();
            assert_eq!(keys, (0..1000).collect::<Vec<_>>());
        }
    });
}

#[test]
fn prefixes_are_listed_key_by_key() {
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &Sizes { ipcache: 5000, ..Sizes::default() }).unwrap();
    let value = villus_abi::IpcacheValue { identity: 7, ..Default::default() };
    let elements: Vec<_> =
        (0..3000_u32).map(|n| (villus_abi::IpcacheKey::v4(n.to_be_bytes(), 32), value)).collect();
    maps.ipcache.insert_all(&elements).unwrap();
    assert_eq!(maps.ipcache.count().unwrap(), 3000);
    let keys: Vec<_> = elements.iter().map(|(key, _)| *key).collect();
    assert_eq!(maps.ipcache.remove_all(&keys).unwrap(), 3000);
}

#[test]
fn values_of_every_cpu() {
    let spec = MapSpec { name: "m", kind: Kind::PerCpuArray, key: 4, value: 16, entries: 4, flags: 0 };
    let map: PerCpuMap<u32, Metric> = PerCpuMap::new(RawMap::create(&spec, None).unwrap(), "m").unwrap();
    map.fill(&2, &Metric { packets: 3, bytes: 5 }).unwrap();
    let values = map.get(&2).unwrap().unwrap();
    assert!(!values.is_empty() && values.iter().all(|value| value.bytes == 5));
    assert_eq!(map.entries().unwrap().len(), 4);
}

#[test]
fn wrong_lengths_are_refused() {
    let map = hash(10);
    assert!(map.raw().lookup(&[0; 3], &mut [0; 8]).is_err());
    assert!(map.raw().lookup(&[0; 4], &mut [0; 7]).is_err());
    assert!(map.raw().update_batch(&[0; 8], &[0; 8]).is_err());
    assert!(Map::<u64, u64>::new(map.raw().try_clone().unwrap(), "test").is_err());
    let program = sys::prog_load_tc("villus_test", &common::returns(0)).unwrap();
    assert!(RawMap::from_fd(program).is_err());
    assert!(sys::prog_info(map.as_fd()).is_err());
    assert!(sys::link_info(map.as_fd()).is_err());
}

#[test]
fn a_program_is_run_on_a_packet() {
    let program = sys::prog_load_tc("villus_test", &common::returns(7)).unwrap();
    let context =
        SkbContext { mark: 0xf00, gso_size: 1000, gso_segs: 2, cb: [1, 2, 3, 4, 5], ..Default::default() };
    let run = sys::test_run(program.as_fd(), &[0; 64], &context, 1).unwrap();
    assert_eq!((run.verdict, run.packet.len()), (7, 64));
    assert_eq!((run.context.mark, run.context.cb), (0xf00, [1, 2, 3, 4, 5]));
    let info = sys::prog_info(program.as_fd()).unwrap();
    assert_eq!((info.name.as_str(), info.instructions), ("villus_test", 2));
}

#[test]
fn pins_are_made_found_and_replaced() {
    let pins = Pins::detached().unwrap();
    let sizes =
        Sizes { endpoints: 64, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 4096, nat: 0 };
    let maps = Maps::open(&pins, &sizes).unwrap();
    maps.endpoints.insert(&5, &Endpoint { id: 5, ..Endpoint::default() }).unwrap();
    assert!(maps.endpoints.memory().unwrap() > 64 * 72);
    assert_eq!(pins.list().unwrap().len(), 17);
    let again = Maps::open(&pins, &Sizes::default()).unwrap();
    assert_eq!(again.endpoints.get(&5).unwrap().unwrap().id, 5);
    assert_eq!(again.endpoints.info().entries, 64);
    let other = hash(5);
    pins.replace("villus_endpoints_v1", other.as_fd()).unwrap();
    let error = Maps::open(&pins, &sizes).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("villus_endpoints_v1: found a map of Hash, key 4"), "{error}");
    assert!(pins.sweep().unwrap().is_empty());
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    alone!();
    let (root, pins) = common::bpffs();
    Maps::open(&pins, &Sizes::default()).unwrap();
    let again = Pins::existing(&root).unwrap();
    assert_eq!(again.list().unwrap(), pins.list().unwrap());
    assert!(Pins::existing(std::path::Path::new("/")).is_err());
    let shown = run("bpftool", &["map", "show", "pinned", &pins.path("cilium_ipcache").to_string_lossy()]);
    assert!(shown.contains("lpm_trie") && shown.contains("key 24B  value 12B"), "{shown}");
}

#[test]
fn slots_take_maps_and_tell_their_ids() {
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &Sizes::default()).unwrap();
    let spec = MapSpec {
        name: "cilium_policy_",
        kind: Kind::Hash,
        key: 8,
        value: 24,
        entries: 4096,
        flags: NO_PREALLOC,
    };
    let inner: Map<PolicyKey, PolicyEntry> = Map::new(RawMap::create(&spec, None).unwrap(), "inner").unwrap();
    inner.insert(&PolicyKey::new(1, 80, 6, Direction::Ingress), &PolicyEntry::ALLOW).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&inner.as_fd()).cast_unsigned();
    maps.policies.insert_all(&[(7, fd), (9, fd)]).unwrap();
    assert_eq!(maps.policies.entries().unwrap(), [(7, inner.info().id), (9, inner.info().id)]);
    assert!(maps.policies.remove(&9).unwrap());
    assert_eq!(maps.policies.count().unwrap(), 1);
}
