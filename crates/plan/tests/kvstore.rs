//! The load of a small cluster on a real etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use villus_kvstore::{Etcd, EtcdOptions, Memory, Store};
use villus_plan::kvstore::{Load, PREFIX, ReplayError, Shape, estimate, replay, text};
use villus_testbed::{EtcdServer, eventually};

fn load() -> Load {
    Load { nodes: 20, pods: 700, listers: 4, watchers: 10, churn: 50, time: Duration::from_secs(1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_replayed_and_leaves_nothing() {
    let server = EtcdServer::start();
    let mut options = EtcdOptions::new(vec![server.url()]);
    (options.qps, options.max_inflight) = (1_000_000, 1_000);
    let store: Arc<dyn Store> = Arc::new(Etcd::new(options).unwrap());
    store.update("cilium/state/x", "kept".into(), None).await.unwrap();
    let outcome = replay(store.clone(), &load(), |_| {}).await.unwrap();
    assert_eq!((outcome.grant.count, outcome.fill.count, outcome.keep_alive.count), (20, 15, 20));
    let counts = [outcome.page, outcome.identity, outcome.locked, outcome.write].map(|of| of.count);
    assert!(counts.iter().all(|count| *count > 0), "{outcome:?}");
    // Every write reaches every watch.
    assert_eq!((outcome.delivery.count, outcome.missed), (outcome.write.count * 10, 0));
    assert_eq!(store.list_prefix(PREFIX).await.unwrap().entries, []);
    eventually("no lease is left", || {
        server.etcdctl(&["lease", "list"]).is_some_and(|list| list.starts_with("found 0 leases"))
    });
    assert_eq!(store.get("cilium/state/x").await.unwrap().unwrap().text(), Some("kept"));
    let shape = Shape { pods_per_node: 35.0, changes_per_pod: 1.0 / 86_400.0, lease_ttl: 86_400.0 };
    let estimate = estimate(&outcome.measured(), &shape);
    let text = text(&outcome, &estimate);
    assert!(estimate.nodes > 0 && text.contains("identity under lock") && text.contains("nodes: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_is_not_touched() {
    let store: Arc<dyn Store> = Arc::new(Memory::new().unwrap());
    store.update(&format!("{PREFIX}other"), "1".into(), None).await.unwrap();
    let error = replay(store.clone(), &load(), |_| {}).await.unwrap_err();
    assert!(
        matches!(error, ReplayError::NotEmpty(1)) && error.to_string().contains("--recursive"),
        "{error}"
    );
    assert_eq!(store.list_prefix(PREFIX).await.unwrap().entries.len(), 1);
}
