//! What a consumer of a change feed may rely on.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use villus_table::{Change, Changes, Kind, Table};

type Rows = BTreeMap<u8, u16>;

/// A consumer that checks each change against what it already knows.
struct Consumer {
    feed: Changes<u8, u16>,
    known: Rows,
}

impl Consumer {
    fn new(table: &Table<u8, u16>) -> Self {
        Self { feed: table.changes(), known: Rows::new() }
    }

    fn look(&mut self, limit: usize) -> usize {
        let changes = self.feed.take_up_to(limit);
        let mut last = 0;
        for Change { key, kind, value, revision } in &changes {
            assert!(*revision > last, "in the order of the writes");
            last = *revision;
            let old = match kind {
                Kind::Inserted | Kind::Updated => self.known.insert(*key, *value),
                Kind::Deleted => self.known.remove(key),
            };
            assert_eq!(old.is_none(), *kind == Kind::Inserted, "key {key} {kind:?}, known {old:?}");
        }
        changes.len()
    }
}

fn rows(table: &Table<u8, u16>) -> Rows {
    table.snapshot().iter().map(|(key, value)| (*key, *value)).collect()
}

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u16),
    Delete(u8),
    Transaction(Vec<(u8, Option<u16>)>, bool),
    Fill(Vec<(u8, u16)>),
    Look(usize, usize),
    Join,
    Leave(usize),
    Pack,
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0u8..12;
    prop_oneof![
        4 => (key.clone(), any::<u16>()).prop_map(|(k, v)| Action::Put(k, v)),
        4 => key.clone().prop_map(Action::Delete),
        2 => (prop::collection::vec((key, prop::option::of(any::<u16>())), 0..8), any::<bool>())
            .prop_map(|(writes, commit)| Action::Transaction(writes, commit)),
        1 => prop::collection::vec((0u8..12, any::<u16>()), 0..8).prop_map(Action::Fill),
        3 => (0usize..4, 1usize..6).prop_map(|(who, limit)| Action::Look(who, limit)),
        1 => Just(Action::Join),
        1 => (0usize..4).prop_map(Action::Leave),
        1 => Just(Action::Pack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256) })]

    #[test]
    fn every_consumer_ends_equal_to_the_table(actions in prop::collection::vec(action(), 0..120)) {
        let table = Table::new("test");
        let mut model = Rows::new();
        let mut consumers = vec![Consumer::new(&table)];
        for action in actions {
            match action {
                Action::Put(key, value) => prop_assert_eq!(table.put(key, value), model.insert(key, value)),
                Action::Delete(key) => prop_assert_eq!(table.delete(&key), model.remove(&key)),
                Action::Transaction(writes, commit) => {
                    let before = table.revision();
                    let mut write = table.write();
                    let mut next = model.clone();
                    for (key, value) in writes {
                        match value {
                            Some(value) => prop_assert_eq!(write.put(key, value), next.insert(key, value)),
                            None => prop_assert_eq!(write.delete(&key), next.remove(&key)),
                        }
                    }
                    if commit {
                        write.commit();
                        model = next;
                    } else {
                        drop(write);
                        prop_assert_eq!(table.revision(), before);
                    }
                }
                Action::Fill(rows) => {
                    let mut write = table.write();
                    for (key, value) in rows {
                        let is_there = model.contains_key(&key);
                        prop_assert_eq!(write.fill(key, value), if is_there { Err(value) } else { Ok(()) });
                        model.entry(key).or_insert(value);
                    }
                    write.commit();
                }
                Action::Look(who, limit) => {
                    if let Some(consumer) = consumers.get_mut(who) {
                        prop_assert!(consumer.look(limit) <= limit);
                    }
                }
                Action::Join if consumers.len() < 4 => consumers.push(Consumer::new(&table)),
                Action::Join => {}
                Action::Leave(who) if who < consumers.len() => drop(consumers.swap_remove(who)),
                Action::Leave(_) => {}
                Action::Pack => {
                    let before = table.revision();
                    table.pack();
                    prop_assert_eq!(table.revision(), before);
                }
            }
            prop_assert_eq!(&rows(&table), &model);
        }
        for consumer in &mut consumers {
            while consumer.feed.is_behind() {
                consumer.look(3);
            }
            prop_assert_eq!(&consumer.known, &model);
            prop_assert_eq!(consumer.look(usize::MAX), 0);
            prop_assert!(!consumer.feed.is_behind());
        }
        // With everything seen, the next write leaves no grave behind.
        table.put(255, 1);
        prop_assert_eq!(table.unseen_deletions(), 0);
    }
}

#[test]
fn writes_between_two_looks_are_one_change_per_key() {
    let table = Table::new("test");
    let mut feed = table.changes();
    table.put(1, "a");
    table.put(1, "b");
    table.put(2, "x");
    table.delete(&2);
    let changes = feed.take();
    assert_eq!(changes, [Change { key: 1, kind: Kind::Inserted, value: "b", revision: 2 }]);

    table.delete(&1);
    table.put(1, "c");
    assert_eq!(feed.take()[0].kind, Kind::Updated, "the consumer knew it all the time");

    table.delete(&1);
    let gone = feed.take();
    assert_eq!((gone[0].kind, gone[0].value), (Kind::Deleted, "c"));
    assert!(feed.take().is_empty());
}

#[test]
fn a_slow_consumer_sees_a_deletion_that_others_saw_long_ago() {
    let table = Table::new("test");
    let (mut slow, mut fast) = (table.changes(), table.changes());
    table.put(1, "a");
    slow.take();
    fast.take();
    table.delete(&1);
    assert_eq!(fast.take()[0].kind, Kind::Deleted);
    for n in 2..50 {
        table.put(n, "noise");
        fast.take();
    }
    assert_eq!(slow.take()[0].kind, Kind::Deleted);
    assert_eq!(table.unseen_deletions(), 0);
}

#[test]
fn a_dropped_consumer_holds_nothing_back() {
    let table = Table::new("test");
    let mut gone = table.changes();
    table.put(1, ());
    gone.take();
    table.delete(&1);
    assert_eq!(table.unseen_deletions(), 1);
    drop(gone);
    table.put(2, ());
    assert_eq!(table.unseen_deletions(), 0);
}

#[test]
fn an_amended_row_keeps_its_revision_and_nobody_hears_of_it() {
    let table = Table::new("test");
    let mut feed = table.changes();
    table.put(1, "a");
    feed.take();
    let mut write = table.write();
    write.amend(&1, "b");
    write.amend(&2, "no such row");
    assert_eq!(write.commit(), 1);
    assert!(!feed.is_behind() && feed.take().is_empty());
    assert_eq!((table.get(&1), table.get(&2)), (Some("b"), None));
    assert_eq!(table.snapshot().row(&1).unwrap().revision(), 1);
    // Who comes later gets the row as it is.
    let changes = table.changes().take();
    assert_eq!(changes, [Change { key: 1, kind: Kind::Inserted, value: "b", revision: 1 }]);
}

#[test]
fn a_late_consumer_gets_rows_that_all_others_saw_in_the_order_of_their_writes() {
    let table = Table::new("test");
    let mut early = table.changes();
    for n in [3, 1, 2] {
        table.put(n, n);
        early.take();
    }
    let mut late = table.changes();
    table.put(0, 0);
    let keys = |changes: Vec<Change<i32, i32>>| changes.iter().map(|change| change.key).collect::<Vec<_>>();
    assert_eq!(keys(late.take_up_to(2)), [3, 1]);
    table.put(3, 4);
    early.take();
    assert_eq!(keys(late.take()), [2, 0, 3]);
}

#[test]
fn a_snapshot_is_not_disturbed_and_a_transaction_shows_at_once() {
    let table = Table::new("test");
    table.put(1, 1);
    let before = table.snapshot();
    let mut write = table.write();
    write.put(1, 2);
    write.put(2, 2);
    assert_eq!(write.get(&1), Some(&2));
    assert_eq!(table.get(&1), Some(1), "not committed");
    let revision = write.commit();
    assert_eq!((before.get(&1), before.get(&2)), (Some(&1), None));
    assert_eq!(table.snapshot().range(1..).map(|(_, v)| *v).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(revision, table.revision());
}

#[test]
fn deletion_by_compare_spares_a_newer_row() {
    let table = Table::new("test");
    table.put(1, "old");
    let seen = table.snapshot().row(&1).unwrap().revision();
    table.put(1, "new");
    let mut write = table.write();
    assert!(!write.compare_and_delete(&1, seen));
    let now = table.snapshot().row(&1).unwrap().revision();
    assert!(write.compare_and_delete(&1, now));
    assert!(!write.put_if_changed(2, "x") || write.get(&2) == Some(&"x"));
    assert!(!write.put_if_changed(2, "x"));
    write.commit();
    assert_eq!(table.len(), 1);
}

#[test]
fn a_blocked_thread_wakes_on_a_write() {
    let table = Table::new("test");
    let mut feed = table.changes();
    assert!(!feed.wait(Duration::from_millis(5)));
    let writer = {
        let table = table.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            table.put(1, 1)
        })
    };
    assert!(feed.wait(Duration::from_secs(10)));
    assert_eq!(feed.take().len(), 1);
    writer.join().unwrap();
}

#[tokio::test]
async fn a_task_wakes_on_a_write_and_on_completion() {
    let table = Table::new("test");
    let mut feed = table.changes();
    let (first, second) = (table.source("first"), table.source("second"));
    assert!(!table.is_complete());
    let writer = tokio::spawn({
        let table = table.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            table.put(1, 1);
            first.complete();
        }
    });
    feed.changed().await;
    assert_eq!(feed.take().len(), 1);
    writer.await.unwrap();
    assert_eq!(table.missing_sources(), ["second"]);
    second.complete();
    table.completed().await;
}

#[test]
fn a_source_that_died_leaves_the_table_incomplete() {
    let table: Table<u8, u8> = Table::new("test");
    drop(table.source("crashed"));
    assert!(!table.is_complete());
}

#[test]
fn concurrent_writers_and_readers_agree() {
    let table: Table<u32, u32> = Table::new("test");
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u32)
            .map(|n| {
                let table = table.clone();
                scope.spawn(move || {
                    for i in 0..300 {
                        table.put(n * 1000 + i % 50, i);
                        if i % 3 == 0 {
                            table.delete(&(n * 1000 + (i + 7) % 50));
                        }
                    }
                })
            })
            .collect();
        let mut feed = table.changes();
        let mut known = BTreeMap::new();
        loop {
            let ended = writers.iter().all(|writer| writer.is_finished());
            if !feed.wait(Duration::from_millis(50)) && ended {
                break;
            }
            for change in feed.take_up_to(17) {
                match change.kind {
                    Kind::Deleted => assert!(known.remove(&change.key).is_some()),
                    Kind::Inserted => assert!(known.insert(change.key, change.value).is_none()),
                    Kind::Updated => assert!(known.insert(change.key, change.value).is_some()),
                }
            }
        }
        let now: BTreeMap<_, _> = table.snapshot().iter().map(|(k, v)| (*k, *v)).collect();
        assert_eq!(known, now);
    });
}
