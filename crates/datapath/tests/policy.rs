//! Policy maps: changes in place, replacement under load, crashes between steps, entries made by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::{
    collections::BTreeSet,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use villus_abi::{Endpoint, PolicyEntry, PolicyKey, endpoint::FLAG_ACTIVE, policy::Direction};
use villus_datapath::{
    Entries, Error, Maps, Pins, PolicyMaps, ROOM, ShapeSink, Shapes, Sizes, SkbContext, Step, hand_insert,
    hand_remove, policy_pin, sys, view_policy,
};
use villus_testbed::{alone, run, try_run};

const ALLOW: PolicyEntry = PolicyEntry::ALLOW;
const DENY: PolicyEntry = PolicyEntry::DENY;

fn key(identity: u32) -> PolicyKey {
    PolicyKey::new(identity, 80, 6, Direction::Ingress)
}

fn entries(list: impl IntoIterator<Item = (u32, PolicyEntry)>) -> Entries {
    list.into_iter().map(|(identity, entry)| (key(identity), entry)).collect()
}

fn sizes() -> Sizes {
    Sizes { endpoints: 512, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 4096, nat: 0 }
}

fn kernel() -> (Arc<Pins>, Arc<Maps>) {
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &sizes()).unwrap();
    (Arc::new(pins), Arc::new(maps))
}

fn agent(kernel: &(Arc<Pins>, Arc<Maps>)) -> PolicyMaps {
    PolicyMaps::open(kernel.0.clone(), kernel.1.clone(), 16_384).unwrap()
}

struct Nowhere;

impl ShapeSink for Nowhere {
    fn set_shapes(&mut self, _: u16, _: Shapes) -> Result<(), Error> {
        Ok(())
    }
}

fn decisions(entries: &Entries) -> Vec<(PolicyKey, bool)> {
    entries.iter().map(|(key, entry)| (*key, entry.is_deny())).collect()
}

#[test]
fn changes_of_one_kind_are_made_in_place() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    agent.prepare(&[5, 6, 7]).unwrap();
    agent.create(7).unwrap();
    let id = view_policy(&kernel.0, &kernel.1, 7).unwrap().pinned.unwrap();
    // (wanted, swapped, added, removed, altered)
    let steps = [
        (entries([(1, ALLOW), (2, ALLOW)]), false, 2, 0, 0),
        (entries([(2, ALLOW), (3, ALLOW)]), false, 1, 1, 0),
        (entries([(2, ALLOW), (3, ALLOW)]), false, 0, 0, 0),
        (entries([(2, ALLOW), (3, ALLOW), (4, DENY)]), false, 1, 0, 0),
        (entries([(2, ALLOW), (3, DENY), (4, DENY)]), true, 0, 0, 1),
        (entries([(2, ALLOW), (9, DENY)]), false, 1, 2, 0),
        (entries([(9, DENY), (3, ALLOW)]), false, 1, 1, 0),
        (entries([(8, DENY)]), true, 1, 2, 0),
        (entries([]), false, 0, 1, 0),
    ];
    let mut swaps = 0;
    for (wanted, swapped, added, removed, altered) in steps {
        let applied = agent.apply(7, &wanted, &mut Nowhere).unwrap();
        let did = (applied.swapped, applied.added, applied.removed, applied.altered);
        assert_eq!(did, (swapped, added, removed, altered), "{wanted:?}");
        let view = view_policy(&kernel.0, &kernel.1, 7).unwrap();
        assert_eq!(decisions(&view.entries), decisions(&wanted));
        assert!(!view.is_misplaced() && view.hand_made.is_empty());
        assert!(agent.compare(7, &wanted).unwrap().is_none());
        swaps += usize::from(swapped);
    }
    assert_eq!(swaps, 2);
    assert_ne!(view_policy(&kernel.0, &kernel.1, 7).unwrap().pinned.unwrap(), id);
}

#[test]
fn maps_grow_and_shrink_and_never_fill_up() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let wanted = |count: u32| entries((0..count).map(|id| (id, ALLOW)));
    // (entries, size of the map)
    for (count, capacity) in
        [(10, 1024), (960, 1024), (961, 2048), (5000, 8192), (16_384, 16_448), (3000, 4096), (1, 1024)]
    {
        let applied = agent.apply(3, &wanted(count), &mut Nowhere).unwrap();
        let view = view_policy(&kernel.0, &kernel.1, 3).unwrap();
        assert_eq!(
            (applied.capacity, view.capacity, view.entries.len()),
            (capacity, capacity, count as usize)
        );
        assert!(view.free() >= ROOM, "{count}");
    }
    let full = agent.apply(3, &wanted(16_385), &mut Nowhere).unwrap_err();
    assert_eq!(
        full.to_string(),
        "cilium_policy_00003: 16385 entries do not fit, 16384 do; raise bpf-policy-map-max"
    );
    assert_eq!(view_policy(&kernel.0, &kernel.1, 3).unwrap().entries.len(), 1);
}

#[test]
fn hand_made_entries_are_kept_until_told_otherwise() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let wanted = entries([(1, ALLOW)]);
    agent.apply(3, &wanted, &mut Nowhere).unwrap();
    let all = PolicyKey::default();
    assert!(hand_insert(&kernel.0, &kernel.1, 3, &all, &ALLOW).unwrap());
    assert!(!hand_insert(&kernel.0, &kernel.1, 3, &all, &ALLOW).unwrap());
    let by_hand = BTreeSet::from([all]);
    let differences = agent.compare(3, &wanted).unwrap();
    assert!(differences.is_none() && differences.hand_made == by_hand);
    // It outlives changes in place, a swap, a restart, and being wanted for a while.
    for wanted in [entries([(2, ALLOW)]), entries([(2, DENY), (3, ALLOW)]), [(all, DENY)].into(), entries([])]
    {
        assert_eq!(agent.apply(3, &wanted, &mut Nowhere).unwrap().hand_made, by_hand);
        drop(agent);
        agent = self::agent(&kernel);
    }
    let view = view_policy(&kernel.0, &kernel.1, 3).unwrap();
    assert_eq!((decisions(&view.entries), &view.hand_made), (vec![(all, false)], &by_hand));
    agent.adopt(3, &by_hand).unwrap();
    assert_eq!(agent.apply(3, &entries([]), &mut Nowhere).unwrap().removed, 1);
    assert!(!hand_remove(&kernel.0, &kernel.1, 3, &all).unwrap());
}

#[test]
fn drift_is_named_and_repaired() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let wanted = entries([(1, ALLOW), (2, ALLOW), (3, DENY)]);
    agent.apply(3, &wanted, &mut Nowhere).unwrap();
    agent.apply(3, &entries([(1, ALLOW), (2, ALLOW), (3, DENY), (4, ALLOW)]), &mut Nowhere).unwrap();
    let map = agent_map(&kernel, 3);
    map.remove(&key(1)).unwrap();
    map.insert(&key(3), &ALLOW).unwrap();
    let differences = agent.compare(3, &wanted).unwrap();
    assert_eq!(differences.missing, BTreeSet::from([key(1)]));
    assert_eq!(differences.extra, BTreeSet::from([key(4)]));
    assert_eq!(differences.altered, BTreeSet::from([key(3)]));
    agent.apply(3, &wanted, &mut Nowhere).unwrap();
    assert!(agent.compare(3, &wanted).unwrap().is_none());
    // Somebody removes the pin; somebody empties the slot.
    kernel.0.remove(&policy_pin(3)).unwrap();
    assert!(agent.compare(3, &wanted).unwrap().misplaced);
    assert_eq!(agent.apply(3, &wanted, &mut Nowhere).unwrap().added, 0);
    kernel.1.policies.remove(&3).unwrap();
    assert!(agent.compare(3, &wanted).unwrap().misplaced);
    drop(agent);
    let agent = self::agent(&kernel);
    assert!(agent.compare(3, &wanted).unwrap().is_none());
}

fn agent_map(kernel: &(Arc<Pins>, Arc<Maps>), endpoint: u32) -> villus_datapath::PolicyMap {
    let id = kernel.1.policies.get(&endpoint).unwrap().unwrap();
    villus_datapath::Map::new(sys::map_by_id(id).unwrap(), "test").unwrap()
}

#[test]
fn an_endpoint_that_goes_leaves_an_empty_slot() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    for (endpoint, count) in [(3, 5_u32), (4, 2000)] {
        agent.apply(endpoint, &entries((0..count).map(|id| (id, ALLOW))), &mut Nowhere).unwrap();
        agent.remove(endpoint).unwrap();
        agent.remove(endpoint).unwrap();
    }
    assert_eq!(agent.endpoints().unwrap(), [0_u16; 0]);
    assert_eq!(agent_map(&kernel, 3).count().unwrap(), 0);
    agent.create(3).unwrap();
    agent.create(4).unwrap();
    assert!(agent.create(4).is_err());
    assert!(view_policy(&kernel.0, &kernel.1, 4).unwrap().entries.is_empty());
}

#[test]
fn shapes_are_told_before_additions_and_after_removals() {
    struct Told(Vec<Shapes>, Arc<Maps>);
    impl ShapeSink for Told {
        fn set_shapes(&mut self, endpoint: u16, shapes: Shapes) -> Result<(), Error> {
            self.0.push(shapes);
            (&self.1.endpoints).set_shapes(endpoint, shapes)
        }
    }
    let kernel = kernel();
    let mut agent = agent(&kernel);
    kernel.1.endpoints.insert(&3, &Endpoint { id: 3, flags: FLAG_ACTIVE, ..Endpoint::default() }).unwrap();
    let mut told = Told(Vec::new(), kernel.1.clone());
    let block = PolicyKey::block(1, 8000, 4, 6, Direction::Egress);
    let proto = PolicyKey::new(1, 0, 17, Direction::Ingress);
    agent.apply(3, &[(block, ALLOW)].into(), &mut told).unwrap();
    agent.apply(3, &[(proto, ALLOW)].into(), &mut told).unwrap();
    agent.apply(3, &[(block, DENY)].into(), &mut told).unwrap();
    let masks: Vec<[u32; 2]> = told.0.iter().map(|shapes| shapes.mask).collect();
    assert_eq!(masks, [[0, 16], [0, 16], [1, 16], [1, 0], [1, 16], [0, 16]]);
    let record = kernel.1.endpoints.get(&3).unwrap().unwrap();
    assert_eq!(Shapes::load(&record), Shapes { mask: [0, 16], deny_identity: [false, true] });
}

#[test]
fn a_crash_at_any_step_leaves_the_truth_findable() {
    let steps = [
        Step::Recorded,
        Step::Filled,
        Step::OldPinned,
        Step::Widened,
        Step::Pinned,
        Step::Slotted,
        Step::Carried,
        Step::Added,
        Step::Removed,
        Step::Cleared,
    ];
    let (old, mixed) = (entries([(1, ALLOW), (2, DENY)]), entries([(1, DENY), (3, ALLOW)]));
    let (in_place, all) = (entries([(1, ALLOW), (4, DENY)]), PolicyKey::default());
    for (step, new) in steps.into_iter().flat_map(|step| [(step, &mixed), (step, &in_place)]) {
        let kernel = kernel();
        let mut agent = agent(&kernel);
        agent.apply(3, &old, &mut Nowhere).unwrap();
        agent.on_step(move |at| if at == step { Err(Error::Stopped(format!("{at:?}"))) } else { Ok(()) });
        let crashed = agent.apply(3, new, &mut Nowhere).is_err();
        drop(agent);
        // Dead. Packets are judged by the old policy or the new one, whole if the change was mixed.
        let view = view_policy(&kernel.0, &kernel.1, 3).unwrap();
        let now = decisions(&view.entries);
        if new == &mixed {
            assert!(now == decisions(&old) || now == decisions(new), "{step:?}: {now:?}");
        }
        // An operator opens ingress as the talk shows: into what is pinned.
        let pinned = kernel.0.map(&policy_pin(3)).unwrap().unwrap();
        let pinned = villus_datapath::PolicyMap::new(pinned, "pinned").unwrap();
        assert!(pinned.insert_new(&all, &ALLOW).unwrap());
        let mut agent = self::agent(&kernel);
        let view = view_policy(&kernel.0, &kernel.1, 3).unwrap();
        assert!(!view.is_misplaced(), "{step:?}");
        assert_eq!(view.hand_made, BTreeSet::from([all]), "{step:?}");
        assert!(agent.apply(3, new, &mut Nowhere).unwrap().hand_made.contains(&all));
        assert!(agent.compare(3, new).unwrap().is_none(), "{step:?}");
        let pins = kernel.0.list().unwrap();
        assert!(
            !pins.iter().any(|name| name.starts_with("villus_old") || name.starts_with("villus_new")),
            "{pins:?}"
        );
        let in_swap = !matches!(step, Step::Added | Step::Removed);
        assert_eq!(
            crashed,
            (new == &mixed) == in_swap || matches!(step, Step::Recorded | Step::Widened | Step::Cleared)
        );
    }
}

#[test]
fn an_edit_by_hand_in_the_middle_of_a_swap_is_carried() {
    for at in [Step::Filled, Step::Pinned] {
        let kernel = kernel();
        let mut agent = agent(&kernel);
        let by_hand = [PolicyKey::default(), key(77)];
        agent.apply(3, &entries([(1, ALLOW)]), &mut Nowhere).unwrap();
        hand_insert(&kernel.0, &kernel.1, 3, &by_hand[1], &ALLOW).unwrap();
        let maps = kernel.1.clone();
        agent.on_step(move |step| {
            if step == at {
                // As bpftool would, without asking anybody: add one, remove one.
                let id = maps.policies.get(&3)?.unwrap();
                let map = villus_datapath::PolicyMap::new(sys::map_by_id(id).unwrap(), "slot")?;
                map.insert(&by_hand[0], &ALLOW)?;
                map.remove(&by_hand[1])?;
            }
            Ok(())
        });
        let applied = agent.apply(3, &entries([(1, DENY)]), &mut Nowhere).unwrap();
        assert_eq!(applied.hand_made, BTreeSet::from([by_hand[0]]));
        let view = view_policy(&kernel.0, &kernel.1, 3).unwrap();
        assert_eq!(decisions(&view.entries), [(by_hand[0], false), (key(1), true)]);
    }
}

#[test]
fn a_prepared_endpoint_waits_for_no_grace_period_and_many_swaps_share_one() {
    // One by one the swaps alone would take 1.6 s. Other tests that run beside this one make it longer, never shorter: the
    // fastest of several times counts.
    let is_fast =
        |(created, swapped): (Duration, Duration)| created.as_millis() < 5 && swapped.as_millis() < 1000;
    let mut fastest = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let (created, swapped) = create_and_swap();
        println!("creation {created:?} each, 200 swaps {swapped:?}");
        fastest = (created.min(fastest.0), swapped.min(fastest.1));
        if is_fast(fastest) {
            return;
        }
    }
    panic!("{fastest:?}");
}

/// Makes two hundred endpoints and replaces the maps of all: how long each took to make, and all to replace.
fn create_and_swap() -> (Duration, Duration) {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let ids: Vec<u16> = (1..=200).collect();
    agent.prepare(&ids).unwrap();
    let start = Instant::now();
    for &id in &ids {
        agent.create(id).unwrap();
        agent.apply(id, &entries([(1, ALLOW)]), &mut Nowhere).unwrap();
    }
    let created = start.elapsed() / 200;
    let wanted = entries([(1, DENY)]);
    let all: Vec<_> = ids.iter().map(|&id| (id, &wanted)).collect();
    let start = Instant::now();
    let results = agent.apply_all(&all, &mut Nowhere).unwrap();
    let swapped = start.elapsed();
    assert!(results.len() == 200 && results.iter().all(|(_, applied)| applied.as_ref().unwrap().swapped));
    (created, swapped)
}

#[test]
fn under_load_no_packet_misses_its_entry_and_none_is_miscounted() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let swaps = [entries([(1, ALLOW), (2, DENY)]), entries([(1, DENY), (3, ALLOW)])];
    agent.apply(3, &swaps[0], &mut Nowhere).unwrap();
    let program = common::counting_program(&kernel.1.policies, 3, &key(1));
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        let run =
                            sys::test_run(program.as_fd(), &[0; 64], &SkbContext::default(), 10).unwrap();
                        assert_eq!(run.verdict, 1, "a packet saw no policy");
                    }
                    sent.fetch_add(1000, Ordering::Relaxed);
                }
            });
        }
        for round in 0..40 {
            let applied = agent.apply(3, &swaps[(round + 1) % 2], &mut Nowhere).unwrap();
            assert!(applied.swapped);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counted = view_policy(&kernel.0, &kernel.1, 3).unwrap().entries[&key(1)].packets;
    assert_eq!(counted, sent.load(Ordering::Relaxed));
}

#[test]
fn the_recipes_of_the_talk_work_to_the_letter() {
    alone!();
    let (_, pins) = common::bpffs();
    let maps = Maps::open(&pins, &Sizes { endpoints: 1024, ..sizes() }).unwrap();
    let kernel = (Arc::new(pins), Arc::new(maps));
    let mut agent = agent(&kernel);
    let mut wanted: Entries = [(PolicyKey::new(298_951, 80, 6, Direction::Ingress), ALLOW)].into();
    agent.apply(794, &wanted, &mut Nowhere).unwrap();
    std::env::set_current_dir(kernel.0.path("")).unwrap();
    let shell = |line: &str| run("sh", &["-c", line]);
    let shown = shell("bpftool map dump pinned cilium_policy_00794 | grep 'c7 8f 04 00' -B 1 -A 3");
    let expected = "key:\nc7 8f 04 00 00 50 06 00\nvalue:\n\
                    00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00\n00 00 00 00 00 00 00 00\n";
    assert_eq!(shown, expected);
    // The fullest map there can be.
    wanted.extend(entries((0..16_383).map(|id| (id, ALLOW))));
    agent.apply(794, &wanted, &mut Nowhere).unwrap();
    let emergency = "bpftool map update pinned cilium_policy_00794 \
                     key hex 00 00 00 00 00 00 00 00 \
                     value hex 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 noexist";
    shell(emergency);
    let again = try_run("sh", &["-c", emergency]);
    assert!(!again.status.success());
    drop(agent);
    let mut agent = self::agent(&kernel);
    let applied = agent.apply(794, &wanted, &mut Nowhere).unwrap();
    assert_eq!(applied.hand_made, BTreeSet::from([PolicyKey::default()]));
    // Taking the hand-made entry along, it is one entry more, and there is still room for more.
    assert!(view_policy(&kernel.0, &kernel.1, 794).unwrap().free() >= ROOM);
}
