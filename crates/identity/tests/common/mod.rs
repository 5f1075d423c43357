//! Allocators of nodes that share a store.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)]

use std::{sync::Arc, time::Duration};

use villus_identity::{AllocatorConfig, Clusters, Reserved};
use villus_kvstore::{Memory, Store};
use villus_labels::{Labels, MaxConnectedClusters};
use villus_table::Backoff;

/// How a node of cluster 0 allocates.
pub fn config(node: &str) -> AllocatorConfig {
    AllocatorConfig {
        cluster_id: 0,
        clusters: MaxConnectedClusters::C255,
        node: node.to_owned(),
        lease_ttl: Duration::from_secs(900),
        lock_patience: Duration::from_secs(30),
        timeout: Duration::from_secs(60),
        attempts: 16,
        pace: Backoff::try_new(Duration::from_millis(1), Duration::from_millis(20), 0.5).unwrap().into(),
        patience: None,
        stale_grace: Duration::from_secs(3600),
        sync_interval: Duration::from_secs(300),
        reserved: Reserved::new(),
        others: Clusters::default(),
    }
}

pub fn labels(text: &str) -> Labels {
    Labels::parse_kvstore(text).unwrap()
}

/// A store in memory, and the handle to break it.
pub fn memory() -> (Memory, Arc<dyn Store>) {
    let memory = Memory::new().unwrap();
    (memory.clone(), Arc::new(memory))
}

/// Waits until something is so.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..6000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!("{what}");
}
