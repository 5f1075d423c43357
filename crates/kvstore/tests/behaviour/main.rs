//! What every store does. Each case runs against each kind of store.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod etcd;
mod follow;
mod guard;
mod leases;
mod locks;
mod model;
mod tls;
mod transactions;
mod watches;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use villus_kvstore::{Embedded, Etcd, EtcdOptions, Event, Item, Memory, Store, Watch, WatchBatch};
use villus_table::Backoff;

/// A store under test, with the directory that it needs.
struct Bench {
    store: Arc<dyn Store>,
    kind: &'static str,
    _directory: Option<TempDir>,
    _server: Option<villus_testbed::EtcdServer>,
}

fn benches() -> Vec<Bench> {
    let directory = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(&directory.path().join("kvstore")).unwrap();
    assert!(embedded.damaged.is_none());
    let server = villus_testbed::EtcdServer::start();
    let mut options = EtcdOptions::new(vec![server.url()]);
    options.qps = 10_000;
    let etcd = Etcd::new(options).unwrap();
    let bench = |store: Arc<dyn Store>, kind| Bench { store, kind, _directory: None, _server: None };
    vec![
        bench(Arc::new(Memory::new().unwrap()), "memory"),
        Bench { _directory: Some(directory), ..bench(Arc::new(embedded.store), "embedded") },
        Bench { _server: Some(server), ..bench(Arc::new(etcd), "etcd") },
    ]
}

/// Declares tests that run against each kind of store.
macro_rules! each {
    ($(async fn $name:ident($store:ident: Arc<dyn Store>) $body:block)+) => { $(
        #[tokio::test]
        async fn $name() {
            for bench in crate::benches() {
                eprintln!("against {}", bench.kind);
                let $store = Arc::clone(&bench.store);
                let case = async move { $body };
                // Some write hundreds of times, and each write waits for a disk that others use too.
                tokio::time::timeout(std::time::Duration::from_secs(300), case).await.unwrap();
            }
        }
    )+ };
}
use each;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> u64 {
    store.update(key, bytes(value), None).await.unwrap()
}

async fn keys(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let listing = store.list_prefix(prefix).await.unwrap();
    listing.entries.iter().map(|entry| entry.key.to_string()).collect()
}

fn shown(batch: &WatchBatch) -> Vec<String> {
    let show = |event: &Event| {
        assert_eq!(event.revision(), batch.revision);
        match event {
            Event::Put(entry) => format!("{}={}", entry.key, entry.text().unwrap()),
            Event::Delete { key, .. } => format!("-{key}"),
        }
    };
    batch.events.iter().map(show).collect()
}

fn shown_items(items: &[Item]) -> Vec<String> {
    let show = |item: &Item| match item {
        Item::Put(entry) => format!("{}={}", entry.key, entry.text().unwrap()),
        Item::Delete { key, .. } => format!("-{key}"),
    };
    items.iter().map(show).collect()
}

async fn next(watch: &mut Box<dyn Watch>) -> Vec<String> {
    shown(&watch.next().await.unwrap())
}

fn quick() -> Backoff {
    Backoff::try_new(Duration::from_millis(1), Duration::from_millis(20), 0.5).unwrap()
}
