//! What a reconciler promises, with a clock that the test moves.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use villus_table::{Backoff, Config, Pruned, Reconciler, RowState, Snapshot, Stop, Table, Target};

const SEC: Duration = Duration::from_secs(1);

#[derive(Default)]
struct World {
    held: BTreeMap<u8, u16>,
    refuse: BTreeSet<u8>,
    refuse_prune: bool,
    tried: usize,
    /// Takes many rows at once.
    fills: bool,
    filled: usize,
}

/// A target whose content the test can look at and spoil.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    fn world<R>(&self, edit: impl FnOnce(&mut World) -> R) -> R {
        edit(&mut self.0.lock().unwrap())
    }

    fn held(&self) -> BTreeMap<u8, u16> {
        self.world(|world| world.held.clone())
    }
}

impl Target<u8, u16> for Fake {
    type Error = String;

    fn update(&mut self, key: &u8, value: &u16) -> Result<(), String> {
        self.world(|world| {
            world.tried += 1;
            if world.refuse.contains(key) {
                return Err(format!("no {key}"));
            }
            world.held.insert(*key, *value);
            Ok(())
        })
    }

    fn delete(&mut self, key: &u8) -> Result<(), String> {
        self.world(|world| {
            world.tried += 1;
            if world.refuse.contains(key) {
                return Err(format!("no {key}"));
            }
            world.held.remove(key);
            Ok(())
        })
    }

    fn fill(&mut self, rows: &Snapshot<u8, u16>) -> Result<bool, String> {
        self.world(|world| {
            if !world.fills {
                return Ok(false);
            }
            world.filled += 1;
            for (key, value) in rows.iter() {
                if world.refuse.contains(key) {
                    return Err(format!("no {key}"));
                }
                world.held.insert(*key, *value);
            }
            Ok(true)
        })
    }

    fn prune(&mut self, rows: &Snapshot<u8, u16>) -> Result<Pruned, String> {
        self.world(|world| {
            if world.refuse_prune {
                return Err("no pruning".to_owned());
            }
            let wanted: BTreeMap<u8, u16> = rows.iter().map(|(k, v)| (*k, *v)).collect();
            let mut pruned = Pruned::default();
            for (key, value) in &wanted {
                match world.held.get(key) {
                    None => pruned.missing += 1,
                    Some(held) if held != value => pruned.altered += 1,
                    Some(_) => {}
                }
            }
            pruned.extra = world.held.keys().filter(|key| !wanted.contains_key(key)).count() as u64;
            world.held = wanted;
            Ok(pruned)
        })
    }
}

fn config() -> Config {
    let backoff = Backoff::try_new(SEC, 8 * SEC, 0.0).unwrap();
    Config::try_new(60 * SEC, 4, backoff).unwrap()
}

fn setup() -> (Table<u8, u16>, Reconciler<u8, u16>, Fake, Instant) {
    let table = Table::new("test");
    let reconciler = Reconciler::new(&table, config(), 1);
    (table, reconciler, Fake::default(), Instant::now())
}

#[test]
fn nonsense_is_refused() {
    let backoff = Backoff::try_new(SEC, SEC, 0.0).unwrap();
    assert!(Config::try_new(Duration::ZERO, 1, backoff).is_err());
    assert!(Config::try_new(SEC, 0, backoff).is_err());
}

#[test]
fn changes_reach_the_target_in_batches() {
    let (table, mut reconciler, mut fake, now) = setup();
    for key in 0..6 {
        table.put(key, 1);
    }
    let step = reconciler.step(now, &mut fake);
    assert_eq!((step.tried, step.more), (4, true));
    let step = reconciler.step(now, &mut fake);
    assert_eq!((step.tried, step.more), (2, false));
    assert_eq!(fake.held().len(), 6);
    assert_eq!(*reconciler.reconciled().borrow(), table.revision());
    table.delete(&3);
    reconciler.step(now, &mut fake);
    assert!(!fake.held().contains_key(&3));
    assert!(reconciler.statuses().get(&3).is_none());
    let counters = *reconciler.counters().borrow();
    assert_eq!((counters.updates, counters.deletes, counters.failures), (6, 1, 0));
}

#[test]
fn many_first_rows_reach_a_target_that_takes_them_together() {
    for (refused, tried) in [(None, [6, 0, 1]), (Some(3), [4, 2, 1])] {
        let (table, mut reconciler, mut fake, now) = setup();
        let source = table.source("more");
        fake.world(|world| {
            world.fills = true;
            world.refuse.extend(refused);
            world.held.insert(77, 7);
        });
        for key in 0..6 {
            table.put(key, 1);
        }
        let step = reconciler.step(now, &mut fake);
        assert_eq!((step.tried, step.more), (tried[0], refused.is_some()));
        assert_eq!(reconciler.step(now, &mut fake).tried, tried[1]);
        fake.world(|world| world.refuse.clear());
        // From then on it is told what changes, and what no row says is not touched before all is known.
        table.delete(&5);
        assert_eq!(reconciler.step(now, &mut fake).tried, tried[2]);
        reconciler.step(now + SEC, &mut fake);
        let held = BTreeMap::from([(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (77, 7)]);
        assert_eq!((fake.held(), fake.world(|world| world.filled)), (held, 1));
        assert_eq!(*reconciler.reconciled().borrow(), table.revision());
        let counters = *reconciler.counters().borrow();
        assert_eq!((counters.updates, counters.deletes), (6, 1), "{counters:?}");
        source.complete();
        reconciler.step(now + SEC, &mut fake);
        assert!(!fake.held().contains_key(&77));
    }
}

#[test]
fn a_refused_row_waits_longer_each_time_and_hinders_nobody() {
    let (table, mut reconciler, mut fake, start) = setup();
    reconciler.step(start, &mut fake);
    fake.world(|world| world.refuse.insert(1));
    table.put(1, 10);
    table.put(2, 20);
    reconciler.step(start, &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(2, 20)]));
    let status = reconciler.statuses().get(&1).unwrap();
    assert_eq!(status.state, RowState::Error { message: "no 1".to_owned(), failures: 1 });
    assert!(*reconciler.reconciled().borrow() < table.revision());

    let mut tries = Vec::new();
    for tenth in 1..250 {
        let now = start + SEC * tenth / 10;
        if reconciler.step(now, &mut fake).tried > 0 {
            tries.push((now - start).as_secs());
        }
    }
    assert_eq!(tries, [1, 3, 7, 15, 23]);
    let status = reconciler.statuses().get(&1).unwrap();
    assert_eq!(status.since, start, "since the first failure");

    fake.world(|world| world.refuse.clear());
    reconciler.step(start + 40 * SEC, &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(1, 10), (2, 20)]));
    assert_eq!(reconciler.statuses().get(&1), None);
    assert_eq!(*reconciler.reconciled().borrow(), table.revision());
    assert!(reconciler.statuses().unsettled().is_empty());
}

#[test]
fn a_new_write_of_a_refused_row_is_tried_at_once() {
    let (table, mut reconciler, mut fake, now) = setup();
    reconciler.step(now, &mut fake);
    fake.world(|world| world.refuse.insert(1));
    table.put(1, 10);
    reconciler.step(now, &mut fake);
    fake.world(|world| world.refuse.clear());
    table.put(1, 11);
    assert_eq!(reconciler.step(now, &mut fake).failing, 0);
    assert_eq!(fake.held(), BTreeMap::from([(1, 11)]));
}

#[test]
fn a_refused_deletion_is_tried_again() {
    let (table, mut reconciler, mut fake, now) = setup();
    table.put(1, 10);
    reconciler.step(now, &mut fake);
    fake.world(|world| world.refuse.insert(1));
    table.delete(&1);
    let step = reconciler.step(now, &mut fake);
    assert!(reconciler.statuses().get(&1).unwrap().deleting);
    fake.world(|world| world.refuse.clear());
    reconciler.step(step.next.unwrap(), &mut fake);
    assert!(fake.held().is_empty());
    assert!(reconciler.statuses().get(&1).is_none());
}

#[test]
fn drift_is_found_mended_and_counted() {
    let (table, mut reconciler, mut fake, start) = setup();
    fake.world(|world| world.held.insert(77, 7));
    table.put(1, 10);
    table.put(2, 20);
    let step = reconciler.step(start, &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(1, 10), (2, 20)]));
    assert_eq!(reconciler.counters().borrow().first, Pruned { missing: 0, extra: 1, altered: 0 });

    fake.world(|world| world.held = BTreeMap::from([(1, 99), (50, 5)]));
    assert!(step.next.unwrap() > start + 50 * SEC);
    reconciler.step(step.next.unwrap(), &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(1, 10), (2, 20)]));
    let counters = *reconciler.counters().borrow();
    assert_eq!(counters.drift, Pruned { missing: 1, extra: 1, altered: 1 });
    assert_eq!((counters.full_runs, counters.drift.total()), (2, 3));
}

#[test]
fn nothing_is_pruned_before_every_source_has_spoken() {
    let (table, mut reconciler, mut fake, now) = setup();
    let source = table.source("restore");
    fake.world(|world| world.held = BTreeMap::from([(1, 10), (2, 20)]));
    table.put(2, 21);
    let step = reconciler.step(now, &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(1, 10), (2, 21)]));
    assert_eq!(step.next, None);
    source.complete();
    reconciler.step(now, &mut fake);
    assert_eq!(fake.held(), BTreeMap::from([(2, 21)]));
}

#[test]
fn a_failed_comparison_is_tried_again_with_backoff() {
    let (_table, mut reconciler, mut fake, now) = setup();
    fake.world(|world| world.refuse_prune = true);
    assert_eq!(reconciler.step(now, &mut fake).next, Some(now + SEC));
    assert_eq!(reconciler.full_error(), Some("no pruning"));
    assert_eq!(reconciler.step(now + SEC, &mut fake).next, Some(now + 3 * SEC));
    fake.world(|world| world.refuse_prune = false);
    reconciler.step(now + 3 * SEC, &mut fake);
    assert_eq!(reconciler.full_error(), None);
    let counters = *reconciler.counters().borrow();
    assert_eq!((counters.full_runs, counters.full_failures), (1, 2));
}

#[test]
fn a_comparison_settles_rows_that_were_refused() {
    let (table, mut reconciler, mut fake, now) = setup();
    reconciler.step(now, &mut fake);
    fake.world(|world| world.refuse.insert(1));
    table.put(1, 10);
    reconciler.step(now, &mut fake);
    reconciler.full_trigger().request();
    let step = reconciler.step(now, &mut fake);
    assert_eq!(step.failing, 0);
    assert_eq!(fake.held(), BTreeMap::from([(1, 10)]));
    assert_eq!(reconciler.statuses().get(&1), None);
}

#[test]
fn a_thread_of_its_own_reconciles_until_told_to_stop() {
    let table = Table::new("test");
    let reconciler = Reconciler::new(&table, config(), 1);
    let mut reconciled = reconciler.reconciled();
    let (fake, stop) = (Fake::default(), Stop::new());
    let source = table.source("late");
    let thread = reconciler.spawn("test-reconciler", fake.clone(), stop.clone()).unwrap();
    fake.world(|world| world.held.insert(9, 9));
    for key in 0..20 {
        table.put(key, 1);
    }
    let wanted = table.revision();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { reconciled.wait_for(|at| *at >= wanted).await.map(|_| ()) }).unwrap();
    source.complete();
    stop.stop();
    thread.join().unwrap();
    assert_eq!(fake.held().len(), 20);
}

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u16),
    Delete(u8),
    Refuse(u8),
    Allow(u8),
    Spoil(u8, Option<u16>),
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0u8..10;
    prop_oneof![
        4 => (key.clone(), any::<u16>()).prop_map(|(k, v)| Action::Put(k, v)),
        3 => key.clone().prop_map(Action::Delete),
        1 => key.clone().prop_map(Action::Refuse),
        1 => key.clone().prop_map(Action::Allow),
        1 => (key, prop::option::of(any::<u16>())).prop_map(|(k, v)| Action::Spoil(k, v)),
        4 => (0u64..5).prop_map(Action::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 200 / 256) })]

    #[test]
    fn whatever_happens_the_target_ends_equal_to_the_table(
        actions in prop::collection::vec(action(), 0..80),
        fills: bool,
    ) {
        let (table, mut reconciler, mut fake, mut now) = setup();
        fake.world(|world| world.fills = fills);
        for action in actions {
            match action {
                Action::Put(key, value) => drop(table.put(key, value)),
                Action::Delete(key) => drop(table.delete(&key)),
                Action::Refuse(key) => drop(fake.world(|world| world.refuse.insert(key))),
                Action::Allow(key) => drop(fake.world(|world| world.refuse.remove(&key))),
                Action::Spoil(key, Some(value)) => drop(fake.world(|world| world.held.insert(key, value))),
                Action::Spoil(key, None) => drop(fake.world(|world| world.held.remove(&key))),
                Action::Pass(secs) => {
                    now += Duration::from_secs(secs);
                    reconciler.step(now, &mut fake);
                }
            }
        }
        fake.world(|world| world.refuse.clear());
        now += 61 * SEC;
        while reconciler.step(now, &mut fake).more {}
        let wanted: BTreeMap<u8, u16> = table.snapshot().iter().map(|(k, v)| (*k, *v)).collect();
        prop_assert_eq!(fake.held(), wanted);
        prop_assert_eq!(*reconciler.reconciled().borrow(), table.revision());
        prop_assert!(reconciler.statuses().unsettled().is_empty());
    }
}
