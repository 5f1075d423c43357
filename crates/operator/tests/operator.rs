//! Who leads, what the leader does, and what it leaves alone.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{sync::Arc, time::Duration};

use villus_api::model::{OperatorStatus, ServiceState};
use villus_kvstore::{Etcd, EtcdOptions, Memory, Store, keys};
use villus_labels::MaxConnectedClusters;
use villus_operator::{Operator, OperatorConfig};
use villus_table::Backoff;
use villus_testbed::EtcdServer;

const LEADER: &str = "villus/operator/v1/c1/leader";
const PATIENCE: Duration = Duration::from_secs(120);

fn config(name: &str) -> OperatorConfig {
    OperatorConfig {
        name: name.to_owned(),
        cluster: "c1".to_owned(),
        range: MaxConnectedClusters::C255.range(0).unwrap(),
        ttl: Duration::from_secs(25),
        gc_interval: Some(Duration::from_millis(50)),
        gc_grace: Duration::ZERO,
        gc_rate: (2500, Duration::from_secs(60)),
        heartbeat: Duration::from_millis(50),
        probe: Duration::from_millis(20),
        backoff: Backoff::try_new(Duration::from_millis(5), Duration::from_millis(50), 0.5).unwrap(),
    }
}

fn memory() -> (Memory, Arc<dyn Store>) {
    let memory = Memory::new().unwrap();
    (memory.clone(), Arc::new(memory))
}

async fn until(operator: &Operator, what: &str, holds: impl Fn(&OperatorStatus) -> bool) -> OperatorStatus {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = operator.status();
        if holds(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < end, "{what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn put(store: &Arc<dyn Store>, number: u32, labels: &str, node: Option<&str>) {
    store.update(&format!("{}/{number}", keys::IDENTITY_IDS), labels.to_owned().into(), None).await.unwrap();
    if let Some(node) = node {
        let key = format!("{}/{labels}/{node}", keys::IDENTITY_VALUES);
        store.update(&key, number.to_string().into(), None).await.unwrap();
    }
}

async fn numbers(store: &Arc<dyn Store>) -> Vec<u32> {
    let listing = store.list_prefix(&format!("{}/", keys::IDENTITY_IDS)).await.unwrap();
    listing.entries.iter().map(|entry| entry.key.rsplit_once('/').unwrap().1.parse().unwrap()).collect()
}

#[tokio::test]
async fn one_leads_and_when_it_is_gone_another_does() {
    let (memory, store) = memory();
    let first = Operator::start(Arc::clone(&store), config("first"));
    until(&first, "the only one leads", |status| status.leads).await;
    let second = Operator::start(Arc::clone(&store), config("second"));
    let seen = until(&second, "the other knows who leads", |status| !status.leader.is_empty()).await;
    assert_eq!((seen.leads, seen.leader.as_str()), (false, "first"));
    let text = store.get(LEADER).await.unwrap().unwrap().text().unwrap().to_owned();
    assert!(text.contains(r#""name":"first""#), "{text}");
    // One that dies keeps the office until its lease ends.
    drop(first);
    assert!(store.get(LEADER).await.unwrap().is_some());
    memory.advance(Duration::from_secs(26)).await.unwrap();
    until(&second, "the other takes over", |status| status.leads).await;
    // One that ends gives it back at once.
    let third = Operator::start(Arc::clone(&store), config("third"));
    until(&third, "there is a leader", |status| status.leader == "second").await;
    second.end().await;
    until(&third, "the next one leads", |status| status.leads).await;
}

#[tokio::test]
async fn unused_identities_of_the_cluster_go_and_all_others_stay() {
    let (_, store) = memory();
    put(&store, 300, "k8s:used=1;", Some("10.0.0.1")).await;
    put(&store, 301, "k8s:unused=1;", None).await;
    put(&store, 302, "k8s:path=/a/b;", Some("10.0.0.1")).await;
    put(&store, 15_614_229, "k8s:foreign=1;", None).await;
    // A node uses the labels by another number.
    put(&store, 303, "k8s:twice=1;", None).await;
    put(&store, 304, "k8s:twice=1;", Some("10.0.0.1")).await;
    let operator = Operator::start(Arc::clone(&store), config("one"));
    let status = until(&operator, "two passes", |status| status.collection.deleted_total == 2).await;
    assert_eq!(numbers(&store).await, [15_614_229, 300, 302, 304]);
    assert_eq!((status.collection.used, status.collection.skipped), (3, 1));
    let beat = store.get(keys::HEARTBEAT).await.unwrap().unwrap();
    assert!(beat.lease.is_some() && beat.text().unwrap().ends_with('Z'), "{beat:?}");
    assert_eq!(beat.text().unwrap().len(), "2026-01-01T00:00:00Z".len());
}

#[tokio::test]
async fn what_is_in_its_grace_is_counted_and_stays() {
    let (_, store) = memory();
    put(&store, 300, "k8s:used=1;", Some("10.0.0.1")).await;
    put(&store, 301, "k8s:unused=1;", None).await;
    let patient = OperatorConfig { gc_grace: Duration::from_secs(3600), ..config("one") };
    let operator = Operator::start(Arc::clone(&store), patient);
    let status = until(&operator, "a second pass", |status| status.collection.waiting == 1).await;
    let found = &status.collection;
    assert_eq!((found.used, found.marked, found.deleted_total, found.deferred), (1, 0, 0, 0), "{status:?}");
    // Whoever comes back uses it again.
    put(&store, 301, "k8s:unused=1;", Some("10.0.0.2")).await;
    let status = until(&operator, "it is used", |status| status.collection.used == 2).await;
    assert_eq!((status.collection.waiting, numbers(&store).await), (0, vec![300, 301]), "{status:?}");
}

#[tokio::test]
async fn deletions_keep_to_their_rate() {
    let (_, store) = memory();
    for number in 300..310 {
        put(&store, number, &format!("k8s:n={number};"), None).await;
    }
    let rate = (4, Duration::from_secs(3600));
    let operator = Operator::start(Arc::clone(&store), OperatorConfig { gc_rate: rate, ..config("one") });
    let gone = async {
        while numbers(&store).await.len() > 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(numbers(&store).await.len(), 6, "four go in an hour: {:?}", operator.status());
}

#[tokio::test]
async fn nothing_is_deleted_while_the_quorum_is_not_proven_nor_by_what_was_seen_before() {
    let (memory, store) = memory();
    // Nobody uses it, for whoever does cannot say so.
    put(&store, 300, "k8s:back=1;", None).await;
    let rare = OperatorConfig { gc_interval: Some(Duration::from_secs(3600)), ..config("one") };
    let operator = Operator::start(Arc::clone(&store), rare);
    until(&operator, "it is marked", |status| status.collection.marked == 1).await;
    memory.go_down();
    until(&operator, "the store is away", |status| status.store.state == ServiceState::Failure).await;
    memory.heal();
    let status = until(&operator, "a pass after it", |status| status.collection.passes >= 2).await;
    assert_eq!((status.collection.marked, status.collection.deleted_total), (1, 0), "{status:?}");
    assert_eq!(numbers(&store).await, [300]);
}

#[tokio::test]
async fn a_store_that_went_back_in_time_begins_anew() {
    let (memory, store) = memory();
    put(&store, 300, "k8s:a=1;", None).await;
    let backup = memory.backup();
    for n in 0..50 {
        store.update("elsewhere", n.to_string().into(), None).await.unwrap();
    }
    let mut gc = villus_identity::Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(1));
    assert_eq!(gc.pass(10).await.unwrap().marked, 1);
    memory.restore(&backup).await.unwrap();
    let report = gc.pass(10).await.unwrap();
    assert_eq!((report.marked, report.deleted), (1, 0));
    assert_eq!(gc.pass(10).await.unwrap().deleted, 1);
}

#[tokio::test]
async fn who_lost_the_office_deletes_nothing() {
    let (_, store) = memory();
    put(&store, 300, "k8s:a=1;", None).await;
    store.update("office", "me".into(), None).await.unwrap();
    let created = store.get("office").await.unwrap().unwrap().create_revision;
    let held = villus_kvstore::Compare::CreateRevision("office".to_owned(), created);
    let mut gc =
        villus_identity::Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(1)).fenced(held);
    gc.pass(10).await.unwrap();
    store.delete("office").await.unwrap();
    store.update("office", "somebody else".into(), None).await.unwrap();
    assert_eq!(gc.pass(10).await.unwrap().deleted, 0);
    assert_eq!(numbers(&store).await, [300]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_etcd_the_office_passes_on_and_identities_go() {
    let mut server = EtcdServer::start();
    let connect = || -> Arc<dyn Store> {
        let mut options = EtcdOptions::new(vec![server.url()]);
        options.qps = 10_000;
        Arc::new(Etcd::new(options).unwrap())
    };
    let (one, two) = (connect(), connect());
    // Brief, but longer than a machine stands still.
    let brief = |name: &str| OperatorConfig { ttl: Duration::from_secs(6), ..config(name) };
    put(&one, 300, "k8s:used=1;", Some("10.0.0.1")).await;
    put(&one, 301, "k8s:unused=1;", None).await;
    let first = Operator::start(Arc::clone(&one), brief("first"));
    until(&first, "the only one leads", |status| status.leads).await;
    let second = Operator::start(Arc::clone(&two), brief("second"));
    until(&second, "the other waits", |status| status.leader == "first").await;
    until(&first, "the unused one goes", |status| status.collection.deleted_total == 1).await;
    assert_eq!(numbers(&two).await, [300]);
    drop(first);
    until(&second, "the other takes over", |status| status.leads).await;
    put(&two, 302, "k8s:unused=2;", None).await;
    until(&second, "and collects", |status| status.collection.deleted_total == 1).await;
    // A restart of the store is sat out.
    server.kill();
    until(&second, "it notices", |status| status.store.state == ServiceState::Failure).await;
    server.resume();
    server.wait();
    // The first requests may find the old connection.
    let answers = async { while two.header().await.is_err() {} };
    tokio::time::timeout(PATIENCE, answers).await.unwrap();
    put(&two, 303, "k8s:unused=3;", None).await;
    until(&second, "and goes on", |status| status.leads && status.collection.deleted_total == 2).await;
    assert_eq!(numbers(&two).await, [300]);
}
