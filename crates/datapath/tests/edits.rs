//! Single changes of many policy maps: what they leave is what writing whole policies leaves, whatever an operator does
//! in between, and no packet sees a verdict that neither the old nor the new policy gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;
use villus_abi::{PolicyEntry, PolicyKey, policy::Direction};
use villus_datapath::{
    Edits, Entries, Maps, Pins, PolicyMaps, ROOM, Shapes, Sizes, SkbContext, Step, hand_insert, hand_remove,
    sys, view_policy,
};

const ALLOW: PolicyEntry = PolicyEntry::ALLOW;
const DENY: PolicyEntry = PolicyEntry::DENY;
const ENDPOINTS: u16 = 3;

fn kernel() -> (Arc<Pins>, Arc<Maps>) {
    let sizes =
        Sizes { endpoints: 64, ct_tcp: 1024, ct_any: 1024, frags: 1024, ipcache: 1024, events: 4096, nat: 0 };
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &sizes).unwrap();
    (Arc::new(pins), Arc::new(maps))
}

fn agent(kernel: &(Arc<Pins>, Arc<Maps>)) -> PolicyMaps {
    PolicyMaps::open(kernel.0.clone(), kernel.1.clone(), 16_384).unwrap()
}

/// An agent that writes all maps by one call, or each entry by its own as where the kernel refuses that.
fn writing(kernel: &(Arc<Pins>, Arc<Maps>), one_by_one: bool) -> PolicyMaps {
    let mut agent = agent(kernel);
    if one_by_one {
        agent.write_one_by_one();
    }
    agent
}

fn key(identity: u32, port: u16) -> PolicyKey {
    PolicyKey::new(identity, port, 6, Direction::Ingress)
}

/// The changes from one policy to another.
fn edits(before: &Entries, after: &Entries) -> Edits {
    let mut edits = Edits::new(Shapes::of(after));
    let keys: std::collections::BTreeSet<&PolicyKey> = before.keys().chain(after.keys()).collect();
    for key in keys {
        edits.push(*key, before.get(key).copied(), after.get(key).copied());
    }
    edits
}

fn decisions(entries: &Entries) -> BTreeMap<PolicyKey, bool> {
    entries.iter().map(|(key, entry)| (*key, entry.is_deny())).collect()
}

fn held(kernel: &(Arc<Pins>, Arc<Maps>), endpoint: u16) -> BTreeMap<PolicyKey, bool> {
    decisions(&view_policy(&kernel.0, &kernel.1, endpoint).unwrap().entries)
}

/// Follows a change as the agent does: by single changes, or whole where that is asked for. Says whether it was whole.
fn follow(
    agent: &mut PolicyMaps,
    kernel: &(Arc<Pins>, Arc<Maps>),
    endpoint: u16,
    before: &Entries,
    after: &Entries,
) -> bool {
    let edits = edits(before, after);
    let mut results = agent.apply_edits(&[(endpoint, &edits)], &mut &kernel.1.endpoints).unwrap();
    let whole = results.pop().unwrap().1.unwrap().is_none();
    if whole {
        agent.apply(endpoint, after, &mut &kernel.1.endpoints).unwrap();
    }
    whole
}

#[test]
fn a_map_that_is_known_is_edited_in_place_and_others_are_written_whole() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    let steps: [(Entries, bool); 8] = [
        ([(key(1, 80), ALLOW)].into(), true),
        ([(key(1, 80), ALLOW), (key(2, 80), ALLOW)].into(), false),
        // Allows and denies at once, of one packet.
        ([(key(1, 80), ALLOW), (key(2, 80), ALLOW), (key(3, 80), ALLOW), (key(3, 0), DENY)].into(), false),
        ([(key(1, 80), ALLOW), (key(4, 80), DENY), (key(3, 0), DENY)].into(), false),
        // An entry that stays decides otherwise.
        ([(key(1, 80), DENY), (key(4, 80), DENY)].into(), true),
        // The last deny of an identity goes: the path need not look for such any more.
        ([(key(0, 80), ALLOW)].into(), true),
        ((0..900).map(|id| (key(id, 80), ALLOW)).collect(), false),
        ((0..1000).map(|id| (key(id, 80), ALLOW)).collect(), true),
    ];
    let mut before = Entries::new();
    for (after, whole) in steps {
        assert_eq!(follow(&mut agent, &kernel, 1, &before, &after), whole, "{:?}", decisions(&after));
        assert_eq!(held(&kernel, 1), decisions(&after));
        assert!(agent.compare(1, &after).unwrap().is_none());
        before = after;
    }
    drop(agent);
    // Whoever takes over has to read once.
    let mut agent = self::agent(&kernel);
    let after = before.clone().into_iter().chain([(key(5000, 80), ALLOW)]).collect();
    assert!(follow(&mut agent, &kernel, 1, &before, &after));
    assert!(agent.compare(1, &after).unwrap().is_none());
}

#[test]
fn what_an_operator_wrote_is_neither_replaced_nor_removed() {
    for one_by_one in [false, true] {
        let kernel = kernel();
        let mut agent = writing(&kernel, one_by_one);
        let start = Entries::from([(key(1, 80), ALLOW)]);
        follow(&mut agent, &kernel, 1, &Entries::new(), &start);
        let (by_hand, range) = (key(2, 80), PolicyKey::block(2, 8000, 4, 6, Direction::Ingress));
        for key in [by_hand, range] {
            assert!(hand_insert(&kernel.0, &kernel.1, 1, &key, &DENY).unwrap());
        }
        let more = (1..=4).map(|port| (key(3, port), ALLOW));
        let wider: Entries = start.clone().into_iter().chain([(by_hand, ALLOW)]).chain(more).collect();
        assert!(!follow(&mut agent, &kernel, 1, &start, &wider));
        let there = held(&kernel, 1);
        assert!(there[&by_hand] && there.len() == 7, "{there:?}");
        assert_eq!(agent.compare(1, &wider).unwrap().hand_made.len(), 2);
        assert!(!follow(&mut agent, &kernel, 1, &wider, &start));
        assert_eq!(held(&kernel, 1).len(), 3);
        assert!(hand_remove(&kernel.0, &kernel.1, 1, &by_hand).unwrap());
        assert!(!follow(&mut agent, &kernel, 1, &start, &wider));
        assert!(agent.compare(1, &wider).unwrap().missing.is_empty());
    }
}

#[test]
fn many_maps_are_written_at_once_and_each_is_told_what_became_of_its_own() {
    for one_by_one in [false, true] {
        let kernel = kernel();
        let mut agent = writing(&kernel, one_by_one);
        let start = Entries::from([(key(1, 80), ALLOW)]);
        for endpoint in 1..=ENDPOINTS {
            agent.apply(endpoint, &start, &mut &kernel.1.endpoints).unwrap();
        }
        // One of the second's stands there by an operator's hand.
        assert!(hand_insert(&kernel.0, &kernel.1, 2, &key(2, 3), &DENY).unwrap());
        let after: Entries = (1..=300).map(|port| (key(2, port), ALLOW)).chain(start.clone()).collect();
        let edits = edits(&start, &after);
        // The fourth has no map that anybody knows of.
        let all: Vec<(u16, &Edits)> = (1..=4).map(|endpoint| (endpoint, &edits)).collect();
        for (endpoint, result) in agent.apply_edits(&all, &mut &kernel.1.endpoints).unwrap() {
            let added = result.unwrap().map(|edited| edited.added);
            assert_eq!(added, [None, Some(300), Some(299), Some(300), None][usize::from(endpoint)]);
        }
        for endpoint in 1..=ENDPOINTS {
            let there = held(&kernel, endpoint);
            assert_eq!((there.len(), there[&key(2, 3)]), (301, endpoint == 2));
            assert!(agent.compare(endpoint, &after).unwrap().is_none());
        }
    }
}

#[test]
fn a_crash_between_the_stages_is_mended_by_whoever_comes_next() {
    let before = Entries::from([(key(1, 80), ALLOW), (key(2, 80), DENY), (key(3, 80), ALLOW)]);
    let more = (1..=4).map(|port| (key(4, port), ALLOW));
    let after: Entries = more.chain([(key(1, 80), ALLOW), (key(5, 80), DENY)]).collect();
    for last in [Step::Recorded, Step::Widened, Step::Added, Step::Removed, Step::Cleared] {
        let kernel = kernel();
        let mut agent = agent(&kernel);
        agent.apply(1, &before, &mut &kernel.1.endpoints).unwrap();
        agent.on_step(move |step| {
            if step == last { Err(villus_datapath::Error::Stopped(format!("{step:?}"))) } else { Ok(()) }
        });
        let edits = edits(&before, &after);
        agent.apply_edits(&[(1, &edits)], &mut &kernel.1.endpoints).unwrap_err();
        drop(agent);
        assert!(!held(&kernel, 1)[&key(1, 80)], "{last:?}: what stays is never gone");
        let mut agent = self::agent(&kernel);
        agent.apply(1, &after, &mut &kernel.1.endpoints).unwrap();
        assert_eq!(held(&kernel, 1), decisions(&after), "{last:?}: nothing is taken for an operator's");
    }
}

#[test]
fn a_packet_sees_the_entry_that_goes_or_the_one_that_comes() {
    let kernel = kernel();
    let mut agent = agent(&kernel);
    // Looked up one after the other, as the path does: one of them is there in every policy.
    let (exact, wide) = (key(1, 80), PolicyKey::new(1, 0, 0, Direction::Ingress));
    let missed = key(9, 80);
    let policies = [exact, wide].map(|key| Entries::from([(key, ALLOW), (missed, ALLOW)]));
    agent.apply(3, &policies[0], &mut &kernel.1.endpoints).unwrap();
    let program = common::either_program(&kernel.1.policies, 3, [&exact, &wide], &missed);
    let (stop, end) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(10));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                    sys::test_run(program.as_fd(), &[0; 64], &SkbContext::default(), 100_000).unwrap();
                }
            });
        }
        for round in 0..60 {
            let (before, after) = (&policies[round % 2], &policies[(round + 1) % 2]);
            assert!(!follow(&mut agent, &kernel, 3, before, after));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let there = view_policy(&kernel.0, &kernel.1, 3).unwrap().entries;
    assert_eq!(there[&missed].packets, 0, "packets saw neither");
}

fn any_policy() -> impl Strategy<Value = Entries> {
    let entry = (0..5u32, 0..3u16, 0..3u8, any::<bool>(), any::<bool>()).prop_map(
        |(id, port, log2, egress, deny)| {
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            (PolicyKey::block(id, port * 64, log2 * 3, 6, direction), if deny { DENY } else { ALLOW })
        },
    );
    proptest::collection::vec(entry, 0..12).prop_map(|entries| entries.into_iter().collect())
}

/// What happens to one endpoint: its policy changes, its map is written whole, an operator adds or removes an entry.
#[derive(Clone, Debug)]
enum Deed {
    Policy(u16, Entries),
    Whole(u16),
    Insert(u16, PolicyKey),
    Remove(u16, PolicyKey),
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let endpoint = || 1..=ENDPOINTS;
    let key = || (0..5u32, 0..2u16).prop_map(|(id, port)| key(id, port * 64));
    prop_oneof![
        6 => (endpoint(), any_policy()).prop_map(|(id, policy)| Deed::Policy(id, policy)),
        1 => endpoint().prop_map(Deed::Whole),
        1 => (endpoint(), key()).prop_map(|(id, key)| Deed::Insert(id, key)),
        1 => (endpoint(), key()).prop_map(|(id, key)| Deed::Remove(id, key)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn maps_that_were_edited_hold_what_maps_that_were_written_anew_hold(
        deeds in proptest::collection::vec(any_deed(), 1..30),
        one_by_one in any::<bool>(),
    ) {
        let kernel = kernel();
        let mut agent = writing(&kernel, one_by_one);
        let mut wanted: BTreeMap<u16, Entries> = BTreeMap::new();
        for id in 1..=ENDPOINTS {
            agent.apply(id, &Entries::new(), &mut &kernel.1.endpoints).unwrap();
            wanted.insert(id, Entries::new());
        }
        for deed in deeds {
            match deed {
                Deed::Policy(id, after) => {
                    let before = wanted.insert(id, after.clone()).unwrap();
                    follow(&mut agent, &kernel, id, &before, &after);
                }
                Deed::Whole(id) => drop(agent.apply(id, &wanted[&id], &mut &kernel.1.endpoints).unwrap()),
                Deed::Insert(id, key) => drop(hand_insert(&kernel.0, &kernel.1, id, &key, &ALLOW).unwrap()),
                Deed::Remove(id, key) => {
                    // What is the agent's own and is taken out comes back with the next comparison, not by an edit.
                    if !wanted[&id].contains_key(&key) {
                        hand_remove(&kernel.0, &kernel.1, id, &key).unwrap();
                    }
                }
            }
            for (id, wanted) in &wanted {
                let differences = agent.compare(*id, wanted).unwrap();
                prop_assert!(differences.is_none(), "{differences:?}");
                let there = held(&kernel, *id);
                prop_assert_eq!(there.len(), wanted.keys().filter(|key| !differences.hand_made.contains(key)).count() + differences.hand_made.len());
                prop_assert!(there.len() + ROOM <= 1024);
            }
        }
    }
}
