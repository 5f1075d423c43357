//! A cluster's resources on a store, and looking at that store.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use villus_external::{ExternalConfig, Externals, Wanted, read_spec};
use villus_kvstore::{Memory, Store};
use villus_labels::MaxConnectedClusters;
use villus_table::Backoff;

const PATIENCE: Duration = Duration::from_secs(120);

pub fn config() -> ExternalConfig {
    let backoff = Backoff::try_new(Duration::from_millis(5), Duration::from_millis(100), 0.5).unwrap();
    ExternalConfig {
        cluster: "c7".to_owned(),
        cluster_id: 7,
        clusters: MaxConnectedClusters::C255,
        space_of_cluster: false,
        label_rules: String::new(),
        writer: format!("writer-{}", fastrand::u64(..)),
        lease_ttl: Duration::from_secs(60),
        patience: Duration::from_secs(60),
        pace: backoff.into(),
    }
}

pub fn memory() -> (Memory, Arc<dyn Store>) {
    let memory = Memory::new().unwrap();
    (memory.clone(), Arc::new(memory))
}

pub fn open(store: &Arc<dyn Store>) -> Externals {
    Externals::open(Arc::clone(store), config()).unwrap()
}

pub fn one(name: &str, spec: &str) -> Wanted {
    read_spec(name, spec.as_bytes()).unwrap()
}

/// Everything in a store but what processes hold.
pub async fn dump(store: &Arc<dyn Store>) -> BTreeMap<String, String> {
    let end = tokio::time::Instant::now() + PATIENCE;
    // A store of several members may be electing a leader.
    let all = loop {
        match store.list_prefix("").await {
            Ok(listing) => break listing.entries,
            Err(error) => assert!(error.is_transient() && tokio::time::Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let text = |entry: &villus_kvstore::Entry| entry.text().unwrap_or("not text").to_owned();
    all.iter()
        .filter(|entry| entry.lease.is_none())
        .map(|entry| (entry.key.to_string(), text(entry)))
        .collect()
}

pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
