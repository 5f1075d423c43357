//! What a node says of itself: written, kept, and written again when others touch it.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use villus_identity::{Ownership, Publisher, PublisherConfig};
use villus_kvstore::{ClusterConfig, Memory, Store};
use villus_table::{Backoff, Stop};

const NODE: &str = "cilium/state/nodes/v1/c1/own";
const IP: &str = "cilium/state/ip/v1/default/10.0.0.1";

fn keys(pairs: &[(&str, &str)]) -> BTreeMap<String, bytes::Bytes> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned().into())).collect()
}

fn publisher() -> (Memory, Arc<Publisher>, Stop) {
    let memory = Memory::new().unwrap();
    let backoff = Backoff::try_new(Duration::from_millis(1), Duration::from_millis(10), 0.5).unwrap();
    let config = PublisherConfig {
        cluster: "c1".into(),
        cluster_config: ClusterConfig::new(7, 255),
        last: NODE.into(),
        lease_ttl: Duration::from_secs(900),
        sync_interval: Duration::from_secs(300),
        pace: backoff.into(),
    };
    let publisher = Arc::new(Publisher::new(Arc::new(memory.clone()), config));
    let stop = Stop::new();
    let (running, said) = (Arc::clone(&publisher), stop.clone());
    tokio::spawn(async move { running.run(&said).await });
    (memory, publisher, stop)
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    unreachable!("{what}");
}

async fn value(memory: &Memory, key: &str) -> Option<String> {
    memory.get(key).await.unwrap().map(|entry| entry.text().unwrap().to_owned())
}

#[tokio::test]
async fn wanted_keys_are_written_under_lease_the_node_last_and_go_when_they_are_not_wanted() {
    let (memory, publisher, _stop) = publisher();
    publisher.want(keys(&[(NODE, "node"), (IP, "ip"), ("cilium/state/z", "z")]));
    eventually("all are there", async || value(&memory, NODE).await.is_some()).await;
    let entry = async |key: &str| memory.get(key).await.unwrap().unwrap();
    let node = entry(NODE).await;
    assert!(node.lease.is_some() && entry(IP).await.lease.is_some());
    assert!(
        entry("cilium/state/z").await.mod_revision < node.mod_revision,
        "the node's key says that all are there"
    );
    let said = async || value(&memory, "cilium/cluster-config/c1").await;
    eventually("the cluster is said", async || {
        said().await.as_deref() == Some(r#"{"id":7,"capabilities":{"maxConnectedClusters":255}}"#)
    })
    .await;
    publisher.want(keys(&[(NODE, "node"), (IP, "other")]));
    eventually("z is gone", async || value(&memory, "cilium/state/z").await.is_none()).await;
    eventually("the other value is there", async || value(&memory, IP).await.as_deref() == Some("other"))
        .await;
}

#[tokio::test]
async fn what_others_change_or_delete_is_written_again_and_counted() {
    let (memory, publisher, _stop) = publisher();
    publisher.want(keys(&[(NODE, "node"), (IP, "ip")]));
    eventually("all are there", async || publisher.state().written == 2).await;
    memory.update(IP, "theirs".into(), None).await.unwrap();
    assert_eq!(publisher.ownership(IP, Some(b"theirs")), Ownership::Altered);
    publisher.altered([Arc::from(IP)]);
    eventually("it is ours again", async || value(&memory, IP).await.as_deref() == Some("ip")).await;
    eventually("it is counted", async || publisher.state().contested.get(IP) == Some(&1)).await;
    memory.delete(IP).await.unwrap();
    assert_eq!(publisher.ownership(IP, None), Ownership::Altered);
    publisher.altered([Arc::from(IP)]);
    eventually("again", async || publisher.state().contested.get(IP) == Some(&2)).await;
    assert_eq!(value(&memory, IP).await.as_deref(), Some("ip"));
    assert_eq!(publisher.ownership(IP, Some(b"ip")), Ownership::AsWritten);
    assert_eq!(publisher.ownership("cilium/state/ip/v1/default/10.0.0.2", Some(b"x")), Ownership::Other);
    // Nothing was changed: no fight.
    publisher.altered([Arc::from(NODE)]);
    publisher.want(keys(&[(NODE, "node")]));
    eventually("it is looked at", async || value(&memory, IP).await.is_none()).await;
    assert_eq!(publisher.state().contested, BTreeMap::new());
}

#[tokio::test]
async fn a_dead_store_is_waited_for_and_a_wiped_one_is_filled_again_the_node_anew() {
    let (memory, publisher, _stop) = publisher();
    memory.go_down();
    publisher.want(keys(&[(NODE, "node"), (IP, "ip")]));
    eventually("it is said", async || publisher.state().problem.is_some()).await;
    memory.heal();
    eventually("all are there", async || publisher.state().written == 2).await;
    let backup = memory.backup();
    memory.delete(IP).await.unwrap();
    memory.restore(&backup).await.unwrap();
    let before = memory.get(NODE).await.unwrap().unwrap().mod_revision;
    publisher.reassert_now();
    eventually("the node's key is written anew", async || {
        memory.get(NODE).await.unwrap().unwrap().mod_revision > before
    })
    .await;
    assert_eq!(publisher.state().problem, None);
}

#[tokio::test]
async fn a_key_that_the_store_does_not_take_is_said_and_holds_up_no_other() {
    let (memory, publisher, _stop) = publisher();
    let (large, later) = ("x".repeat(2 << 20), "cilium/state/ip/v1/default/10.0.0.2");
    publisher.want(keys(&[(NODE, "node"), (IP, &large)]));
    eventually("the node is told", async || value(&memory, NODE).await.is_some()).await;
    eventually("it is said by its key", async || {
        publisher.state().problem.is_some_and(|problem| problem.starts_with(&format!("`{IP}`: ")))
    })
    .await;
    publisher.want(keys(&[(NODE, "node"), (IP, &large), (later, "later")]));
    eventually("what comes later is told", async || value(&memory, later).await.is_some()).await;
    eventually("it is said which is not", async || {
        let state = publisher.state();
        (state.wanted, state.written) == (3, 2) && state.refused.iter().eq([IP])
    })
    .await;
    publisher.want(keys(&[(NODE, "node"), (later, "later")]));
    eventually("all is well", async || publisher.state().problem.is_none()).await;
    let state = publisher.state();
    assert_eq!((state.wanted, state.written, state.refused.len()), (2, 2, 0));
}
