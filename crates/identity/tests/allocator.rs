//! Global identities: the protocol's keys to the byte, and what holds among nodes that share a store.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use common::{config, eventually, labels, memory};
use villus_identity::{AllocateError, Allocator, AllocatorConfig, Gc, Identities, Reserved, new_identities};
use villus_kvstore::{Embedded, Fault, Locks, Store, Verb};
use villus_labels::{Labels, NumericIdentity};

const IDS: &str = "cilium/state/identities/v1/id/";
const VALUES: &str = "cilium/state/identities/v1/value/";
const WEB: &str = "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=c1;";

struct Node {
    allocator: Allocator,
    table: Identities,
}

async fn node_with(store: &Arc<dyn Store>, config: AllocatorConfig) -> Node {
    let table = new_identities(&config.reserved);
    let allocator = Allocator::start(Arc::clone(store), config, table.clone()).unwrap();
    allocator.synced().await;
    Node { allocator, table }
}

async fn node(store: &Arc<dyn Store>, address: &str) -> Node {
    node_with(store, config(address)).await
}

async fn rows(store: &Arc<dyn Store>, prefix: &str) -> Vec<(String, String)> {
    let listing = store.list_prefix(prefix).await.unwrap();
    let row = |entry: &villus_kvstore::Entry| (entry.key.to_string(), entry.text().unwrap().to_owned());
    listing.entries.iter().map(row).collect()
}

#[tokio::test]
async fn keys_are_laid_out_to_the_byte() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    assert!((256..65536).contains(&number.0));
    assert_eq!(
        rows(&store, "").await,
        [
            (format!("cilium/state/identities/v1/id/{number}"), WEB.to_owned()),
            (format!("cilium/state/identities/v1/value/{WEB}/10.0.0.1"), number.to_string()),
        ]
    );
    let master = store.get(&format!("{IDS}{number}")).await.unwrap().unwrap();
    let slave = store.get(&format!("{VALUES}{WEB}/10.0.0.1")).await.unwrap().unwrap();
    assert!(master.lease.is_none() && slave.lease.is_some());
    assert_eq!(node.table.get(&number), Some(labels(WEB)));
    assert_eq!(node.allocator.usage().used, 1);
    assert_eq!(node.allocator.usage().total, 65536 - 256);
}

#[tokio::test]
async fn references_are_counted_and_the_last_takes_only_the_slave_key() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let first = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    let second = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    assert_eq!((first, node.allocator.references(&labels(WEB))), (second, 2));
    assert!(!node.allocator.release(&labels(WEB)).await.unwrap());
    assert!(node.allocator.release(&labels(WEB)).await.unwrap());
    assert!(!node.allocator.release(&labels(WEB)).await.unwrap(), "one too many does no harm");
    assert_eq!(rows(&store, VALUES).await, []);
    assert_eq!(rows(&store, IDS).await.len(), 1);
    // The number is still known, and comes back with the labels.
    assert_eq!(node.allocator.lookup(&labels(WEB)), Some(first));
    assert_eq!(node.allocator.allocate(&labels(WEB), None).await.unwrap(), first);
}

#[tokio::test]
async fn nodes_agree_on_a_number_and_learn_each_others() {
    let (_, store) = memory();
    let (one, two) = (node(&store, "10.0.0.1").await, node(&store, "10.0.0.2").await);
    let number = one.allocator.allocate(&labels(WEB), None).await.unwrap();
    eventually("the other learns", async || two.table.get(&number).is_some()).await;
    assert_eq!(two.allocator.allocate(&labels(WEB), None).await.unwrap(), number);
    assert_eq!(rows(&store, VALUES).await.len(), 2);
    one.allocator.release(&labels(WEB)).await.unwrap();
    assert_eq!(rows(&store, VALUES).await.len(), 1);
    assert_eq!(two.allocator.references(&labels(WEB)), 1);
}

#[tokio::test]
async fn many_at_once_on_several_nodes_get_one_number() {
    let (_, store) = memory();
    let mut nodes = Vec::new();
    for n in 1..4 {
        nodes.push(Arc::new(node(&store, &format!("10.0.0.{n}")).await));
    }
    let web = labels(WEB);
    let mut tasks = Vec::new();
    for n in 0..30 {
        let (node, web) = (Arc::clone(&nodes[n % 3]), web.clone());
        tasks.push(tokio::spawn(async move { node.allocator.allocate(&web, None).await }));
    }
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.unwrap().unwrap());
    }
    numbers.dedup();
    assert_eq!(numbers.len(), 1);
    assert_eq!(nodes[0].allocator.references(&web), 10);
    assert_eq!(rows(&store, IDS).await.len(), 1);
}

/// A store that takes twenty requests a second from a node is enough for its pods to start together.
#[tokio::test]
async fn two_hundred_and_fifty_label_sets_at_once_take_few_requests() {
    let (memory, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let sets: Vec<Labels> = (0..250).map(|n| labels(&format!("k8s:app=w{n};k8s:tier=all;"))).collect();
    // Numbers that are drawn twice, and who comes a moment later, cost some more than the fewest.
    let requests = async |at_most: u64, of: &str, before: u64| {
        let made = memory.operations() - before;
        assert!(made <= at_most, "{of}: {made} requests");
    };
    let before = memory.operations();
    let all = futures_util::future::join_all(sets.iter().map(|set| node.allocator.allocate(set, None))).await;
    requests(60, "new ones", before).await;
    let numbers: std::collections::BTreeSet<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(numbers.len(), 250);
    let other = self::node(&store, "10.0.0.2").await;
    let before = memory.operations();
    let all =
        futures_util::future::join_all(sets.iter().map(|set| other.allocator.allocate(set, None))).await;
    requests(60, "those that another node uses", before).await;
    assert!(all.into_iter().all(|number| numbers.contains(&number.unwrap())));
    assert_eq!((rows(&store, IDS).await.len(), rows(&store, VALUES).await.len()), (250, 500));
    let before = memory.operations();
    assert_eq!(other.allocator.reassert().await.unwrap(), 0);
    requests(12, "comparing", before).await;
    let before = memory.operations();
    futures_util::future::join_all(sets.iter().map(|set| other.allocator.release(set))).await;
    requests(20, "giving back", before).await;
    assert_eq!(rows(&store, VALUES).await.len(), 250);
}

#[tokio::test]
async fn what_somebody_has_locked_is_waited_for() {
    let (_, store) = memory();
    let node = Arc::new(node(&store, "10.0.0.1").await);
    let locks = Locks::new(Arc::clone(&store));
    let name = format!("cilium/state/identities/v1/locks/{WEB}.lock");
    let held = locks.acquire(&name, Duration::from_secs(60)).await.unwrap();
    let task = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.allocator.allocate(&labels(WEB), None).await })
    };
    eventually("it wants the lock", async || rows(&store, &name).await.len() == 2).await;
    // Whoever has it may give the label set a number.
    store.update(&format!("{IDS}4321"), WEB.into(), None).await.unwrap();
    store.update(&format!("{VALUES}{WEB}/10.0.0.9"), "4321".into(), None).await.unwrap();
    assert!(!task.is_finished());
    held.release().await;
    assert_eq!(task.await.unwrap().unwrap().0, 4321);
    assert_eq!(rows(&store, &name).await, []);
}

#[tokio::test]
async fn reserved_ones_ask_nobody() {
    let (memory, store) = memory();
    let reserved = Reserved::new().with_fixed(128, "kv-store").unwrap();
    let node = node_with(&store, AllocatorConfig { reserved, ..config("10.0.0.1") }).await;
    memory.go_down();
    for (text, number) in [("reserved:host=;", 1), ("reserved:kv-store=;", 128), ("reserved:health=;", 4)] {
        assert_eq!(node.allocator.allocate(&labels(text), None).await.unwrap().0, number);
        assert!(!node.allocator.release(&labels(text)).await.unwrap());
    }
    assert_eq!(node.table.get(&NumericIdentity::HOST), Some(labels("reserved:host=;")));
    assert_eq!(node.allocator.allocate(&Labels::default(), None).await, Err(AllocateError::NoLabels));
}

#[tokio::test]
async fn a_wanted_number_is_taken_if_it_is_free_and_in_range() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let want = |number| Some(NumericIdentity(number));
    assert_eq!(node.allocator.allocate(&labels("k8s:a=1;"), want(4711)).await.unwrap().0, 4711);
    assert_ne!(node.allocator.allocate(&labels("k8s:a=2;"), want(4711)).await.unwrap().0, 4711);
    for outside in [1, 255, 65536, 1 << 24 | 1] {
        let other = labels(&format!("k8s:b={outside};"));
        let number = node.allocator.allocate(&other, want(outside)).await.unwrap().0;
        assert!((256..65536).contains(&number));
    }
    // What others use counts more than what is wanted.
    assert_eq!(node.allocator.allocate(&labels("k8s:a=1;"), want(5000)).await.unwrap().0, 4711);
}

#[tokio::test]
async fn a_restart_finds_its_number_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kvstore");
    let open = || -> Arc<dyn Store> { Arc::new(Embedded::open(&path).unwrap().store) };
    let mut numbers = BTreeMap::new();
    {
        let store = open();
        let node = node(&store, "10.0.0.1").await;
        for n in 0..20 {
            let text = format!("k8s:n={n};");
            numbers.insert(text.clone(), node.allocator.allocate(&labels(&text), None).await.unwrap());
        }
    }
    // The tasks of the old allocator hold the store for a moment longer.
    let mut store = None;
    for _ in 0..6000 {
        match Embedded::open(&path) {
            Ok(opened) => {
                store = Some(opened.store);
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    let store: Arc<dyn Store> = Arc::new(store.unwrap());
    let node = node(&store, "10.0.0.1").await;
    assert_eq!(node.table.snapshot().range(NumericIdentity(256)..).count(), 20);
    for (text, number) in numbers {
        assert_eq!(node.allocator.allocate(&labels(&text), None).await.unwrap(), number);
    }
}

#[tokio::test]
async fn a_cluster_has_its_own_range_and_says_when_it_is_used_up() {
    let (_, store) = memory();
    let config = AllocatorConfig { cluster_id: 238, ..config("10.0.0.1") };
    let node = node_with(&store, config.clone()).await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    assert_eq!(number.0 >> 16, 238);
    let wrong = AllocatorConfig { cluster_id: 256, ..config };
    assert!(Allocator::start(Arc::clone(&store), wrong, new_identities(&Reserved::new())).is_err());

    // All numbers but one are somebody else's.
    let mut write = node.table.write();
    for n in 238 << 16..239 << 16 {
        if write.get(&NumericIdentity(n)).is_none() && n != 238 << 16 | 77 {
            write.put(NumericIdentity(n), labels("k8s:other=x;"));
        }
    }
    write.commit();
    assert_eq!(node.allocator.allocate(&labels("k8s:last=1;"), None).await.unwrap().0, 238 << 16 | 77);
    let error = node.allocator.allocate(&labels("k8s:over=1;"), None).await.unwrap_err();
    assert_eq!(error, AllocateError::Exhausted { cluster: 238, used: 65536, total: 65536 });
    assert!(error.to_string().contains("`labels`"), "{error}");
}

#[tokio::test]
async fn the_published_lines_by_hand_are_known_to_every_agent() {
    let (_, store) = memory();
    let node = node_with(&store, AllocatorConfig { cluster_id: 238, ..config("10.0.0.1") }).await;
    let text = "k8s:app=app1;k8s:io.cilium.k8s.policy.cluster=cluster1;\
                k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns1;";
    let put =
        async |key: String, value: &str| store.update(&key, value.to_owned().into(), None).await.unwrap();
    put(format!("{IDS}15614229"), text).await;
    put(format!("{VALUES}{text}/10.3.9.10"), "15614229").await;
    let number = NumericIdentity(15_614_229);
    eventually("the agent learns", async || node.table.get(&number) == Some(labels(text))).await;
    assert_eq!(node.allocator.allocate(&labels(text), None).await.unwrap(), number);
    node.allocator.release(&labels(text)).await.unwrap();
    store.delete(&format!("{IDS}15614229")).await.unwrap();
    eventually("the deletion takes effect", async || node.table.get(&number).is_none()).await;
}

#[tokio::test]
async fn entries_that_make_no_sense_are_left_out_and_reported_once() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let bad = [
        ("id/300", "k8s:a=b"),
        ("id/301", ""),
        ("id/302", "k8s:b=1;k8s:a=1;"),
        ("id/abc", "k8s:a=b;"),
        ("id/2", "k8s:a=b;"),
        ("id/16777300", "k8s:a=b;"),
    ];
    for (key, value) in bad {
        let key = format!("cilium/state/identities/v1/{key}");
        store.update(&key, value.to_owned().into(), None).await.unwrap();
    }
    store.update(&format!("{IDS}400"), bytes::Bytes::from_static(&[0xff, 0xfe]), None).await.unwrap();
    store.update(&format!("{IDS}401"), "k8s:good=1;".into(), None).await.unwrap();
    eventually("the good one arrives", async || node.table.get(&NumericIdentity(401)).is_some()).await;
    assert_eq!(node.allocator.refused().len(), bad.len() + 1);
    assert_eq!(node.allocator.usage().used, 1);
    assert_eq!(node.table.get(&NumericIdentity::WORLD), Some(labels("reserved:world=;")));
    store.update(&format!("{IDS}300"), "k8s:a=b;".into(), None).await.unwrap();
    eventually("a mended one is taken", async || node.table.get(&NumericIdentity(300)).is_some()).await;
    assert_eq!(node.allocator.refused().len(), bad.len());
}

#[tokio::test]
async fn slave_keys_of_longer_label_strings_are_not_ours_and_refused_ones_are_looked_at_again() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    // Begins with our prefix, but its last `/` lies elsewhere.
    for (key, value) in
        [("k8s:a=b;/x;/10.0.0.9", "999"), ("k8s:a=b;/10.0.0.8", "nonsense"), ("k8s:a=b;/10.0.0.7", "2")]
    {
        store.update(&format!("{VALUES}{key}"), value.to_owned().into(), None).await.unwrap();
    }
    let number = node.allocator.allocate(&labels("k8s:a=b;"), Some(NumericIdentity(777))).await.unwrap();
    assert_eq!(number.0, 777);
    assert_eq!(node.allocator.refused().len(), 2);
    // Nobody tells when one is mended or goes.
    store.update(&format!("{VALUES}k8s:a=b;/10.0.0.8"), "777".into(), None).await.unwrap();
    store.delete(&format!("{VALUES}k8s:a=b;/10.0.0.7")).await.unwrap();
    node.allocator.reassert().await.unwrap();
    assert_eq!(node.allocator.refused(), []);
}

#[tokio::test]
async fn labels_with_slashes_and_equals_signs_have_one_number() {
    let (_, store) = memory();
    let (one, two) = (node(&store, "10.0.0.1").await, node(&store, "10.0.0.2").await);
    let odd = labels("k8s:path=/a//b=c/../d;");
    let number = one.allocator.allocate(&odd, None).await.unwrap();
    assert_eq!(two.allocator.allocate(&odd, None).await.unwrap(), number);
    assert_eq!(rows(&store, VALUES).await[0].0, format!("{VALUES}k8s:path=/a//b=c/../d;/10.0.0.1"));
}

#[tokio::test]
async fn a_missing_master_key_comes_back() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    let key = format!("{IDS}{number}");
    store.delete(&key).await.unwrap();
    eventually("it is created again", async || store.get(&key).await.unwrap().is_some()).await;
    assert_eq!(node.table.get(&number), Some(labels(WEB)), "and was known all the time");

    store.delete(&format!("{VALUES}{WEB}/10.0.0.1")).await.unwrap();
    assert_eq!(node.allocator.reassert().await.unwrap(), 1);
    assert_eq!(rows(&store, VALUES).await.len(), 1);
    // A slave key without a master key (the watch of a dead agent could not mend it).
    let ghost = format!("{VALUES}k8s:ghost=1;/10.0.0.9");
    store.update(&ghost, "4321".into(), None).await.unwrap();
    assert_eq!(node.allocator.allocate(&labels("k8s:ghost=1;"), None).await.unwrap().0, 4321);
    assert_eq!(store.get(&format!("{IDS}4321")).await.unwrap().unwrap().text(), Some("k8s:ghost=1;"));
}

#[tokio::test]
async fn other_labels_for_a_number_in_use_change_nothing_here() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    store.update(&format!("{IDS}{number}"), "k8s:evil=1;".into(), None).await.unwrap();
    eventually("it is reported", async || node.allocator.refused().len() == 1).await;
    assert_eq!(node.table.get(&number), Some(labels(WEB)));
    // A slave key that lies about a number does not give it to two label sets.
    let lie = format!("{VALUES}k8s:evil=2;/10.0.0.9");
    store.update(&lie, number.to_string().into(), None).await.unwrap();
    assert_ne!(node.allocator.allocate(&labels("k8s:evil=2;"), None).await.unwrap(), number);
}

#[tokio::test]
async fn without_the_store_known_label_sets_go_on_and_new_ones_say_why_not() {
    let (memory, store) = memory();
    let config = AllocatorConfig { attempts: 3, ..config("10.0.0.1") };
    let node = node_with(&store, config).await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    memory.go_down();
    assert_eq!(node.allocator.allocate(&labels(WEB), None).await.unwrap(), number);
    let error = node.allocator.allocate(&labels("k8s:new=1;"), None).await.unwrap_err();
    assert!(matches!(error, AllocateError::Store { attempts: 3, .. }), "{error}");
    // A release that could not be told to the store is made up for.
    node.allocator.release(&labels(WEB)).await.unwrap();
    assert!(node.allocator.release(&labels(WEB)).await.is_err());
    assert_eq!(node.allocator.references(&labels(WEB)), 0);
    memory.heal();
    assert_eq!(rows(&store, VALUES).await.len(), 1);
    node.allocator.reassert().await.unwrap();
    assert_eq!(rows(&store, VALUES).await, []);
}

#[tokio::test]
async fn a_release_that_is_made_up_for_later_spares_a_new_use() {
    let (memory, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let number = node.allocator.allocate(&labels(WEB), None).await.unwrap();
    memory.go_down();
    assert!(node.allocator.release(&labels(WEB)).await.is_err());
    memory.heal();
    assert_eq!(node.allocator.allocate(&labels(WEB), None).await.unwrap(), number);
    node.allocator.reassert().await.unwrap();
    assert_eq!(rows(&store, VALUES).await.len(), 1);
}

#[tokio::test]
async fn a_store_that_hangs_ends_with_the_time_allowed() {
    let (memory, store) = memory();
    let config = AllocatorConfig { timeout: Duration::from_secs(3), ..config("10.0.0.1") };
    let node = node_with(&store, config).await;
    memory.inject(Verb::Txn, Fault::Hangs, 100);
    let error = node.allocator.allocate(&labels(WEB), None).await.unwrap_err();
    assert!(matches!(error, AllocateError::Timeout { .. }), "{error}");
    memory.heal();
    node.allocator.allocate(&labels(WEB), None).await.unwrap();
}

#[tokio::test]
async fn a_lost_lease_is_replaced_and_an_allocation_goes_on() {
    let (memory, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    node.allocator.allocate(&labels(WEB), None).await.unwrap();
    memory.advance(Duration::from_secs(1000)).await.unwrap();
    assert_eq!(rows(&store, VALUES).await, []);
    node.allocator.allocate(&labels("k8s:new=1;"), None).await.unwrap();
    assert_eq!(rows(&store, VALUES).await.len(), 2, "the old one is written again too");
}

#[tokio::test]
async fn unused_numbers_go_in_the_second_pass() {
    let (_, store) = memory();
    let node = node(&store, "10.0.0.1").await;
    let used = node.allocator.allocate(&labels("k8s:used=1;"), None).await.unwrap();
    for n in 0..3 {
        let unused = labels(&format!("k8s:unused={n};"));
        node.allocator.allocate(&unused, None).await.unwrap();
        node.allocator.release(&unused).await.unwrap();
    }
    store.update(&format!("{IDS}15614229"), "k8s:foreign=1;".into(), None).await.unwrap();
    let mut gc = Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(1));
    let first = gc.pass(100).await.unwrap();
    assert_eq!((first.used, first.marked, first.deleted, first.skipped), (1, 3, 0, 1));
    // Used again between two passes, or limited: not deleted.
    node.allocator.allocate(&labels("k8s:unused=0;"), None).await.unwrap();
    let second = gc.pass(1).await.unwrap();
    assert_eq!((second.used, second.deleted, second.deferred), (2, 1, 1));
    let third = gc.pass(100).await.unwrap();
    assert_eq!((third.used, third.deleted), (2, 1));
    let left = rows(&store, IDS).await;
    assert_eq!(left.len(), 3);
    assert!(left.iter().any(|(key, _)| *key == format!("{IDS}{used}")));
    eventually("the agent forgets them", async || node.allocator.usage().used == 2).await;
    assert_eq!(node.allocator.lookup(&labels("k8s:unused=2;")), None);
}

#[tokio::test]
async fn what_is_unused_waits_for_its_grace_and_for_addresses_that_name_it() {
    let (_, store) = memory();
    for number in [300, 301] {
        store.update(&format!("{IDS}{number}"), format!("k8s:n={number};").into(), None).await.unwrap();
    }
    let address = "cilium/state/ip/v1/default/10.9.0.1";
    let pair = r#"{"IP":"10.9.0.1","Mask":null,"HostIP":"10.0.0.7","ID":300,"Key":0,"Metadata":""}"#;
    store.update(address, pair.into(), None).await.unwrap();
    store.update("cilium/state/ip/v1/default/10.9.0.2", "no address".into(), None).await.unwrap();
    let gc = || Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(1));

    let mut patient = gc().after(Duration::from_secs(3600));
    for (marked, waiting) in [(2, 0), (0, 2), (0, 2)] {
        let report = patient.pass(100).await.unwrap();
        assert_eq!((report.marked, report.waiting), (marked, waiting));
        assert_eq!((report.deleted, report.deferred), (0, 0));
    }
    let mut hasty = gc();
    assert_eq!(hasty.pass(100).await.unwrap().marked, 2);
    let second = hasty.pass(100).await.unwrap();
    assert_eq!((second.used, second.deleted), (1, 1));
    assert_eq!(rows(&store, IDS).await.len(), 1);
    // From when the address is gone it is unused anew.
    store.delete(address).await.unwrap();
    let third = hasty.pass(100).await.unwrap();
    assert_eq!((third.used, third.marked, third.deleted), (0, 1, 0));
    assert_eq!(hasty.pass(100).await.unwrap().deleted, 1);
}

#[tokio::test]
async fn what_an_address_names_while_the_rate_holds_deletions_back_stays() {
    let (_, store) = memory();
    for number in [300, 301, 302] {
        store.update(&format!("{IDS}{number}"), format!("k8s:n={number};").into(), None).await.unwrap();
    }
    let mut gc = Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(1));
    assert_eq!(gc.pass(1).await.unwrap().marked, 3);
    let report = gc.pass(1).await.unwrap();
    assert_eq!((report.deleted, report.deferred), (1, 2));
    let pair = r#"{"IP":"10.9.0.1","Mask":null,"HostIP":"10.0.0.7","ID":302,"Key":0,"Metadata":""}"#;
    store.update("cilium/state/ip/v1/default/10.9.0.1", pair.into(), None).await.unwrap();
    let rest = gc.rest(100).await.unwrap();
    assert_eq!((rest.used, rest.deleted, rest.deferred), (1, 1, 0));
    assert_eq!(rows(&store, IDS).await, [(format!("{IDS}302"), "k8s:n=302;".to_owned())]);
}

#[tokio::test]
async fn a_deleted_number_keeps_its_labels_as_long_as_an_address_under_a_lease_has_it() {
    let (_, store) = memory();
    let node =
        node_with(&store, AllocatorConfig { sync_interval: Duration::from_millis(20), ..config("10.0.0.1") })
            .await;
    let [kept, gone, reused] = ["k8s:kept=1;", "k8s:gone=1;", "k8s:reused=1;"];
    for (number, text) in [(300, kept), (301, gone), (302, reused)] {
        store.update(&format!("{IDS}{number}"), text.into(), None).await.unwrap();
    }
    eventually("all are known", async || node.allocator.usage().used == 3).await;
    let leased = node.allocator.leased();
    for number in [300, 302] {
        leased.add(NumericIdentity(number));
    }
    for number in [300, 301, 302] {
        store.delete(&format!("{IDS}{number}")).await.unwrap();
    }
    eventually("what no address has is forgotten", async || node.allocator.lookup(&labels(gone)).is_none())
        .await;
    for (number, text) in [(300, kept), (302, reused)] {
        assert_eq!(node.table.get(&NumericIdentity(number)), Some(labels(text)));
    }
    // Who comes with the same labels gets the same number, and its key is there again.
    assert_eq!(node.allocator.allocate(&labels(reused), None).await.unwrap(), NumericIdentity(302));
    assert!(rows(&store, IDS).await.iter().any(|(key, _)| *key == format!("{IDS}302")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.table.get(&NumericIdentity(300)), Some(labels(kept)), "it is not the time that counts");
    leased.remove(NumericIdentity(300));
    eventually("no address has it", async || node.table.get(&NumericIdentity(300)).is_none()).await;
    assert_eq!(node.allocator.lookup(&labels(kept)), None);
}

/// Agents that allocate, release, crash and lose answers: never one number for two label sets in use, never two
/// numbers for one.
#[tokio::test]
async fn whatever_happens_numbers_and_label_sets_agree() {
    for seed in 0..12 {
        let (memory, store) = memory();
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut gc = Gc::new(Arc::clone(&store), 256..=65535, Duration::from_millis(500));
        let mut nodes = Vec::new();
        for n in 0..3 {
            nodes.push(node(&store, &format!("10.0.0.{n}")).await);
        }
        let mut held: Vec<HashMap<String, (NumericIdentity, u32)>> = vec![HashMap::new(); 3];
        for step in 0..150 {
            let at = chance.usize(0..3);
            let text = format!("k8s:n={};", chance.u8(0..6));
            match chance.u8(0..20) {
                0..9 => {
                    if let Ok(number) = nodes[at].allocator.allocate(&labels(&text), None).await {
                        let entry = held[at].entry(text).or_insert((number, 0));
                        assert_eq!(entry.0, number, "seed {seed} step {step}");
                        entry.1 += 1;
                    }
                }
                9..16 => {
                    if let Some((_, count)) = held[at].get_mut(&text) {
                        // Fails or not: the reference is given back.
                        let _ = nodes[at].allocator.release(&labels(&text)).await;
                        *count -= 1;
                        if *count == 0 {
                            held[at].remove(&text);
                        }
                    }
                }
                16 => memory.inject(Verb::Txn, Fault::AnswerLost, 1),
                17 => memory.inject(Verb::Txn, Fault::Refused, 1),
                18 => drop(gc.pass(10).await),
                _ => {
                    // A crash: what it held is nobody's, until its lease ends.
                    nodes[at] = node(&store, &format!("10.0.0.{at}")).await;
                    held[at].clear();
                }
            }
            agree(&held, seed, step);
        }
        memory.heal();
        for node in &nodes {
            node.allocator.reassert().await.unwrap();
        }
        agree(&held, seed, 999);
        let masters: HashMap<String, String> = rows(&store, IDS).await.into_iter().collect();
        for (text, (number, _)) in held.iter().flatten() {
            assert_eq!(masters.get(&format!("{IDS}{number}")), Some(text), "seed {seed}");
        }
    }
}

fn agree(held: &[HashMap<String, (NumericIdentity, u32)>], seed: u64, step: u32) {
    let mut by_text: HashMap<&str, NumericIdentity> = HashMap::new();
    let mut by_number: HashMap<NumericIdentity, &str> = HashMap::new();
    for (text, (number, _)) in held.iter().flatten() {
        assert_eq!(*by_text.entry(text).or_insert(*number), *number, "two numbers, seed {seed} step {step}");
        assert_eq!(
            *by_number.entry(*number).or_insert(text),
            text,
            "two label sets, seed {seed} step {step}"
        );
    }
}
