//! Numbers while the store is away: what was known goes on, what was not gets a number of this node, and the store has
//! the last word.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{config, eventually, labels, memory};
use villus_identity::{Allocator, AllocatorConfig, Identities, KnownIdentities, Reserved, new_identities};
use villus_kvstore::{Locks, Store};
use villus_labels::NumericIdentity;

const WEB: &str = "k8s:app=web;";
const DB: &str = "k8s:app=db;";

/// Whoever asks is not kept waiting for the store.
fn impatient() -> AllocatorConfig {
    AllocatorConfig {
        lock_patience: Duration::from_secs(5),
        timeout: Duration::from_secs(30),
        patience: Some(Duration::from_millis(20)),
        ..config("10.0.0.1")
    }
}

fn node(store: &Arc<dyn Store>, known: KnownIdentities) -> (Allocator, Identities) {
    let table = new_identities(&Reserved::new());
    let allocator = Allocator::resume(Arc::clone(store), impatient(), table.clone(), known).unwrap();
    (allocator, table)
}

/// Waits until nothing is left to confirm.
async fn settled(allocator: &Allocator) {
    let mut seen = allocator.settled();
    while !allocator.open().is_empty() {
        tokio::time::timeout(Duration::from_secs(60), seen.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_dead_store_gives_known_labels_their_number_and_others_one_of_this_node() {
    let (memory, store) = memory();
    store.create("cilium/state/identities/v1/id/300", WEB.into(), None).await.unwrap();
    let (allocator, table) = node(&store, KnownIdentities::default());
    allocator.synced().await;
    memory.go_down();
    assert_eq!(allocator.allocate(&labels(WEB), None).await.unwrap(), NumericIdentity(300));
    let interim = allocator.allocate(&labels(DB), None).await.unwrap();
    assert!(interim.is_interim());
    assert_eq!(
        allocator.allocate(&labels(DB), None).await.unwrap(),
        interim,
        "the same labels, the same number"
    );
    assert_eq!(table.get(&interim), Some(labels(DB)));
    assert_eq!(allocator.open().len(), 2);

    memory.heal();
    settled(&allocator).await;
    assert_eq!(allocator.number_in_use(&labels(WEB)), Some(NumericIdentity(300)));
    let number = allocator.number_in_use(&labels(DB)).unwrap();
    assert!(!number.is_interim());
    assert_eq!(allocator.references(&labels(DB)), 2);
    assert!(table.get(&interim).is_some(), "endpoints may have it still");
    allocator.forget_left(|_| false);
    assert_eq!(table.get(&interim), None);
    let slave = store.get(&format!("cilium/state/identities/v1/value/{DB}/10.0.0.1")).await.unwrap();
    assert_eq!(slave.unwrap().text(), Some(number.to_string().as_str()));
}

#[tokio::test]
async fn a_lock_that_somebody_keeps_holds_up_its_own_labels_only() {
    let (_, store) = memory();
    let others = Locks::new(Arc::clone(&store));
    let name = format!("cilium/state/identities/v1/locks/{WEB}.lock");
    let held = others.acquire(&name, Duration::from_secs(5)).await.unwrap();
    let settings = AllocatorConfig { lock_patience: Duration::from_millis(50), ..impatient() };
    let table = new_identities(&Reserved::new());
    let allocator = Allocator::start(Arc::clone(&store), settings, table).unwrap();
    let number = allocator.allocate(&labels(WEB), None).await.unwrap();
    assert!(number.is_interim(), "{number}");
    let number = allocator.allocate(&labels(DB), None).await.unwrap();
    assert!(!number.is_interim(), "the store is there: {number}");
    held.release().await;
    settled(&allocator).await;
    assert!(!allocator.number_in_use(&labels(WEB)).unwrap().is_interim());
}

#[tokio::test]
async fn a_restart_goes_on_with_what_was_known_and_the_store_has_the_last_word() {
    let (memory, store) = memory();
    let had = NumericIdentity(400);
    store.create("cilium/state/identities/v1/id/400", DB.into(), None).await.unwrap();
    store.create("cilium/state/identities/v1/id/500", WEB.into(), None).await.unwrap();
    memory.go_down();
    // 400 was the web's when this was written down; meanwhile it was given to others.
    let rows = vec![(had, labels(WEB)), (NumericIdentity(600), labels("k8s:app=gone;"))];
    let (allocator, table) = node(&store, KnownIdentities { rows, ..KnownIdentities::default() });
    assert_eq!(table.get(&NumericIdentity(600)), Some(labels("k8s:app=gone;")), "known at once");
    assert_eq!(allocator.adopt(&labels(WEB), Some(had)).unwrap(), had);
    memory.heal();
    settled(&allocator).await;
    assert_eq!(allocator.number_in_use(&labels(WEB)), Some(NumericIdentity(500)));
    assert_eq!(table.get(&had), Some(labels(WEB)), "as long as an endpoint has it");
    allocator.forget_left(|number| number == had);
    assert_eq!(table.get(&had), Some(labels(WEB)));
    allocator.forget_left(|_| false);
    assert_eq!(table.get(&had), Some(labels(DB)));
    assert_eq!(table.get(&NumericIdentity(600)), None, "it was deleted while nobody looked");
    assert!(store.get("cilium/state/identities/v1/id/600").await.unwrap().is_none());
}

#[tokio::test]
async fn an_adopted_number_that_nobody_has_any_more_is_made_again() {
    let (_, store) = memory();
    let (allocator, _) = node(&store, KnownIdentities::default());
    let had = NumericIdentity(700);
    assert_eq!(allocator.adopt(&labels(WEB), Some(had)).unwrap(), had);
    settled(&allocator).await;
    assert_eq!(allocator.number_in_use(&labels(WEB)), Some(had));
    assert_eq!(store.get("cilium/state/identities/v1/id/700").await.unwrap().unwrap().text(), Some(WEB));
}

#[tokio::test]
async fn labels_released_before_they_were_confirmed_leave_nothing() {
    let (memory, store) = memory();
    let (allocator, table) = node(&store, KnownIdentities::default());
    memory.go_down();
    let number = allocator.adopt(&labels(WEB), None).unwrap();
    assert!(number.is_interim());
    assert!(allocator.release(&labels(WEB)).await.unwrap());
    assert_eq!((table.get(&number), allocator.open()), (None, Vec::new()));
    memory.heal();
    allocator.synced().await;
    allocator.reassert().await.unwrap();
    assert!(store.list_prefix("").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_rewound_store_takes_no_identity_away() {
    let (memory, store) = memory();
    let backup = memory.backup();
    store.create("cilium/state/identities/v1/id/300", DB.into(), None).await.unwrap();
    let (allocator, table) = node(&store, KnownIdentities::default());
    allocator.synced().await;
    let number = allocator.allocate(&labels(WEB), None).await.unwrap();
    memory.restore(&backup).await.unwrap();
    memory.interrupt();
    let key = format!("cilium/state/identities/v1/id/{number}");
    eventually("what this node uses is written again", async || store.get(&key).await.unwrap().is_some())
        .await;
    assert_eq!(table.get(&NumericIdentity(300)), Some(labels(DB)), "what others used is kept");
}
