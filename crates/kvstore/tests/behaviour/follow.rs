//! List and watch through every interruption.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use villus_kvstore::{Batch, Entry, Fault, Follow, Item, Memory, Op, Past, Relisted, Store, Txn, Verb};

use crate::{each, put, quick, shown_items};

each! {
    async fn a_follower_gets_the_list_and_then_each_change(store: Arc<dyn Store>) {
        put(&store, "p/a", "1").await;
        put(&store, "q", "x").await;
        let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
        let first = follow.next().await.unwrap();
        assert_eq!((first.relisted, shown_items(&first.items)), (Some(Relisted::First), vec!["p/a=1".to_owned()]));
        put(&store, "p/b", "2").await;
        store.delete("p/a").await.unwrap();
        let batch = follow.next().await.unwrap();
        assert_eq!((batch.relisted, shown_items(&batch.items)), (None, vec!["p/b=2".to_owned()]));
        let batch = follow.next().await.unwrap();
        assert_eq!(shown_items(&batch.items), ["-p/a"]);
    }

    async fn an_empty_prefix_is_an_empty_first_batch(store: Arc<dyn Store>) {
        let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
        let first = follow.next().await.unwrap();
        assert!(first.items.is_empty() && first.relisted == Some(Relisted::First));
    }
}

/// A consumer that believes the batches and checks that they are news.
#[derive(Default)]
struct Mirror {
    rows: BTreeMap<String, (String, u64)>,
    revision: u64,
    batches: Vec<Option<Relisted>>,
}

impl Mirror {
    fn apply(&mut self, batch: &Batch) {
        let anew = matches!(batch.relisted, Some(Relisted::Rewound | Relisted::OtherStore));
        if batch.relisted.is_none() {
            assert!(batch.revision > self.revision, "ordered and each once");
        }
        self.revision = batch.revision;
        self.batches.push(batch.relisted);
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    let row = (entry.text().unwrap().to_owned(), entry.mod_revision);
                    let old = self.rows.insert(entry.key.to_string(), row.clone());
                    assert!(anew || old.is_none_or(|(_, at)| at < row.1), "news: {}", entry.key);
                }
                Item::Delete { key, .. } => assert!(self.rows.remove(&**key).is_some(), "known: {key}"),
            }
        }
    }

    async fn catch_up(&mut self, follow: &mut Follow, wanted: &[(&str, &str)]) {
        let equal = |rows: &BTreeMap<String, (String, u64)>| {
            rows.iter().map(|(k, (v, _))| (k.as_str(), v.as_str())).eq(wanted.iter().copied())
        };
        while !equal(&self.rows) || self.batches.is_empty() {
            let next = tokio::time::timeout(Duration::from_secs(60), follow.next()).await;
            self.apply(&next.unwrap().unwrap());
        }
    }
}

fn setup() -> (Memory, Arc<dyn Store>, Mirror) {
    let memory = Memory::new().unwrap();
    (memory.clone(), Arc::new(memory), Mirror::default())
}

#[tokio::test]
async fn an_interrupted_watch_is_resumed_without_a_list() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
    memory.go_down();
    memory.heal();
    put(&store, "p/b", "2").await;
    memory.interrupt();
    store.delete("p/a").await.unwrap();
    mirror.catch_up(&mut follow, &[("p/b", "2")]).await;
    assert_eq!(mirror.batches.iter().filter(|b| b.is_some()).count(), 1);
}

#[tokio::test]
async fn after_compaction_the_difference_is_made_up() {
    let (memory, store, mut mirror) = setup();
    for (key, value) in [("p/stays", "1"), ("p/changes", "1"), ("p/goes", "1")] {
        put(&store, key, value).await;
    }
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/changes", "1"), ("p/goes", "1"), ("p/stays", "1")]).await;
    memory.inject(Verb::Watch, Fault::Refused, 3);
    memory.interrupt();
    put(&store, "p/changes", "2").await;
    store.delete("p/goes").await.unwrap();
    put(&store, "p/new", "1").await;
    memory.compact().await.unwrap();
    mirror.catch_up(&mut follow, &[("p/changes", "2"), ("p/new", "1"), ("p/stays", "1")]).await;
    assert_eq!(mirror.batches, [Some(Relisted::First), Some(Relisted::Compacted)]);
}

#[tokio::test]
async fn a_quiet_prefix_survives_compaction_without_a_list() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
    for n in 0..20 {
        put(&store, "elsewhere", &n.to_string()).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    memory.compact().await.unwrap();
    memory.interrupt();
    put(&store, "p/a", "2").await;
    mirror.catch_up(&mut follow, &[("p/a", "2")]).await;
    assert_eq!(mirror.batches, [Some(Relisted::First), None]);
}

#[tokio::test]
async fn a_store_restored_from_a_backup_is_noticed() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    let backup = memory.backup();
    put(&store, "p/a", "2").await;
    put(&store, "p/b", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "2"), ("p/b", "1")]).await;
    memory.restore(&backup).await.unwrap();
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
    assert_eq!(mirror.batches.last(), Some(&Some(Relisted::Rewound)));
    put(&store, "p/c", "1").await;
    mirror.catch_up(&mut follow, &[("p/a", "1"), ("p/c", "1")]).await;
}

#[tokio::test]
async fn another_store_under_the_same_address_is_noticed() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
    memory.wipe().await.unwrap();
    for n in 0..5 {
        put(&store, "p/x", &n.to_string()).await;
    }
    mirror.catch_up(&mut follow, &[("p/x", "4")]).await;
    assert!(mirror.batches.contains(&Some(Relisted::OtherStore)));
}

#[tokio::test]
async fn a_store_that_is_down_at_first_is_waited_for() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    memory.go_down();
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    assert!(tokio::time::timeout(Duration::from_millis(60), follow.next()).await.is_err());
    memory.heal();
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
}

#[tokio::test]
async fn under_random_faults_the_mirror_ends_equal() {
    for seed in 0..15 {
        let (memory, store, mut mirror) = setup();
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
        for _ in 0..120 {
            let key = format!("p/{}", chance.u8(0..8));
            match chance.u8(0..14) {
                0 => memory.interrupt(),
                1 => memory.compact().await.unwrap(),
                2 => memory.inject(Verb::List, Fault::Refused, 1),
                3 => memory.inject(Verb::Watch, Fault::AnswerLost, 1),
                4..7 => drop(store.delete(&key).await),
                7 => tokio::time::sleep(Duration::from_millis(1)).await,
                n => drop(store.update(&key, crate::bytes(&n.to_string()), None).await),
            }
        }
        memory.heal();
        put(&store, "p/end", "end").await;
        let listing = store.list_prefix("p/").await.unwrap();
        let wanted: Vec<_> = listing.entries.iter().map(|e| (&*e.key, e.text().unwrap())).collect();
        mirror.catch_up(&mut follow, &wanted).await;
    }
}

/// The past of a store that was restored from a backup, and what others wrote then.
async fn other_past(
    backup: &villus_kvstore::Backup,
    writes: &[(&str, &str)],
    compacted: bool,
) -> villus_kvstore::Backup {
    let memory = Memory::new().unwrap();
    memory.restore(backup).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    for (key, value) in writes {
        put(&store, key, value).await;
    }
    if compacted {
        memory.compact().await.unwrap();
    }
    memory.backup()
}

#[tokio::test]
async fn a_restored_store_that_has_passed_the_last_revision_again_is_noticed() {
    let writes = [("p/c", "1"), ("q", "1"), ("q", "2"), ("p/a", "2"), ("q", "3")];
    for compacted in [false, true] {
        let (memory, store, mut mirror) = setup();
        put(&store, "p/a", "1").await;
        let backup = memory.backup();
        put(&store, "p/b", "1").await;
        let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
        mirror.catch_up(&mut follow, &[("p/a", "1"), ("p/b", "1")]).await;
        memory.restore(&other_past(&backup, &writes, compacted).await).await.unwrap();
        mirror.catch_up(&mut follow, &[("p/a", "2"), ("p/c", "1")]).await;
        assert_eq!(mirror.batches, [Some(Relisted::First), Some(Relisted::Rewound)], "{compacted}");
    }
}

#[tokio::test]
async fn what_a_restored_store_has_in_the_place_of_what_was_elsewhere_is_not_missed() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "1")]).await;
    let backup = memory.backup();
    for n in 0..5 {
        put(&store, "elsewhere", &n.to_string()).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let writes = [("p/b", "1"), ("q", "1"), ("q", "2"), ("q", "3"), ("q", "4"), ("q", "5"), ("q", "6")];
    memory.restore(&other_past(&backup, &writes, false).await).await.unwrap();
    mirror.catch_up(&mut follow, &[("p/a", "1"), ("p/b", "1")]).await;
}

#[tokio::test]
async fn a_write_from_before_a_restart_tells_that_the_past_is_another() {
    let (memory, store, mut mirror) = setup();
    put(&store, "p/a", "1").await;
    put(&store, "p/b", "1").await;
    let backup = memory.backup();
    put(&store, "p/b", "2").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    mirror.catch_up(&mut follow, &[("p/a", "1"), ("p/b", "2")]).await;
    let past = Past {
        keys: mirror.rows.keys().map(|key| (key.as_str().into(), false)).collect(),
        seen: Some(store.header().await.unwrap()),
        witness: follow.witness().cloned(),
    };
    let mut again = Follow::resume(Arc::clone(&store), "p/", quick(), past.clone());
    assert_eq!(again.next().await.unwrap().relisted, Some(Relisted::First));
    let writes = [("q", "1"), ("q", "2"), ("q", "3")];
    memory.restore(&other_past(&backup, &writes, false).await).await.unwrap();
    let mut again = Follow::resume(Arc::clone(&store), "p/", quick(), past);
    assert_eq!(again.next().await.unwrap().relisted, Some(Relisted::Rewound));
}

/// Takes batches up to the one that ends a list; says how many came before it.
async fn take_list(follow: &mut Follow, rows: &mut BTreeMap<String, String>) -> usize {
    for parts in 0.. {
        let batch = tokio::time::timeout(Duration::from_secs(60), follow.next()).await.unwrap().unwrap();
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    rows.insert(entry.key.to_string(), entry.text().unwrap().to_owned());
                }
                Item::Delete { key, .. } => {
                    assert!(batch.relisted.is_some(), "nothing is concluded from a part");
                    assert!(rows.remove(&**key).is_some(), "known: {key}");
                }
            }
        }
        if batch.relisted.is_some() {
            return parts;
        }
    }
    unreachable!("some batch ends the list")
}

#[tokio::test]
async fn a_long_first_list_in_parts_ends_with_what_is_gone_and_begins_again_after_an_interruption() {
    let (memory, store, _) = setup();
    let numbers: Vec<u32> = (0..30_000).collect();
    for some in numbers.chunks(100) {
        let put = |n: &u32| Op::put(format!("p/{n:05}"), n.to_string(), None);
        store.txn(some.iter().map(put).fold(Txn::new(), Txn::then)).await.unwrap();
    }
    let wanted = || async {
        let entries = store.list_prefix("p/").await.unwrap().entries;
        let row = |entry: &Entry| (entry.key.to_string(), entry.text().unwrap().to_owned());
        entries.iter().map(row).collect::<BTreeMap<_, _>>()
    };
    let past = Past { keys: vec![("p/00000".into(), false), ("p/gone".into(), true)], ..Past::default() };
    let mut rows: BTreeMap<String, String> =
        past.keys.iter().map(|(key, _)| (key.to_string(), String::new())).collect();
    let mut follow = Follow::resume(Arc::clone(&store), "p/", quick(), past).in_parts();
    assert!(take_list(&mut follow, &mut rows).await > 1);
    assert_eq!(rows, wanted().await);
    assert_eq!(follow.witness().unwrap().key, "p/29999");

    let mut follow = Follow::start(Arc::clone(&store), "p/", quick()).in_parts();
    let mut rows = BTreeMap::new();
    let part = follow.next().await.unwrap();
    assert!(part.relisted.is_none() && part.items.len() < 20_000, "{}", part.items.len());
    rows.extend(part.items.iter().map(|item| (item.key().to_string(), String::new())));
    assert!(rows.contains_key("p/00001"));
    store.delete("p/00001").await.unwrap();
    put(&store, "p/00002", "other").await;
    // Some page after that part cannot be read: the list is made anew.
    memory.inject(Verb::List, Fault::Refused, 1);
    take_list(&mut follow, &mut rows).await;
    assert_eq!(rows, wanted().await);
}
