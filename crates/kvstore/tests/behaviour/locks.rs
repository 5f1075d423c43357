//! Locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use villus_kvstore::{Fault, Locks, Memory, Op, Store, StoreError, Txn, Verb};

use crate::{each, keys};

const SEC: Duration = Duration::from_secs(1);
/// How long is waited for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

each! {
    async fn one_holds_a_lock_at_a_time(store: Arc<dyn Store>) {
        let inside = Arc::new(AtomicU32::new(0));
        // Two processes with three tasks each.
        let processes = [Locks::new(Arc::clone(&store)), Locks::new(Arc::clone(&store))];
        let mut tasks = Vec::new();
        for n in 0..6 {
            let locks = processes[n % 2].clone();
            let inside = Arc::clone(&inside);
            tasks.push(tokio::spawn(async move {
                for _ in 0..5 {
                    let lock = locks.acquire("l/x.lock", PATIENCE).await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::time::sleep(Duration::from_micros(300)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    lock.release().await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(keys(&store, "l/").await.len(), 0);
    }

    async fn different_locks_do_not_wait_for_each_other(store: Arc<dyn Store>) {
        let locks = Locks::new(Arc::clone(&store));
        let one = locks.acquire("l/one", PATIENCE).await.unwrap();
        let two = locks.acquire("l/two", PATIENCE).await.unwrap();
        assert_eq!(keys(&store, "l/").await.len(), 2);
        drop(one);
        two.release().await;
        locks.acquire("l/one", PATIENCE).await.unwrap().release().await;
    }

    async fn waiting_ends_with_the_name_of_the_holder(store: Arc<dyn Store>) {
        let (ours, theirs) = (Locks::new(Arc::clone(&store)), Locks::new(Arc::clone(&store)));
        let held = theirs.acquire("l", PATIENCE).await.unwrap();
        let error = ours.acquire("l", 3 * SEC).await.err().unwrap();
        assert!(matches!(&error, StoreError::LockTimeout { holder, .. } if holder.starts_with("l/")), "{error}");
        let again = theirs.acquire("l", Duration::from_millis(20)).await.err().unwrap();
        assert!(again.to_string().contains("this process"), "{again}");
        held.release().await;
        ours.acquire("l", PATIENCE).await.unwrap().release().await;
        assert_eq!(keys(&store, "l").await.len(), 0, "who gave up left nothing behind");
    }

    async fn what_is_done_under_a_lost_lock_does_not_happen(store: Arc<dyn Store>) {
        let locks = Locks::new(Arc::clone(&store));
        let lock = locks.acquire("l", PATIENCE).await.unwrap();
        let write = || Txn::new().when(lock.held()).then(Op::put("a", "1", None));
        assert!(store.txn(write()).await.unwrap().held);
        store.delete_prefix("l/").await.unwrap();
        assert!(!store.txn(write()).await.unwrap().held);
        // Somebody else's key of the same name is not ours either.
        let next = locks.acquire("m", PATIENCE).await.unwrap();
        assert!(store.txn(Txn::new().when(next.held())).await.unwrap().held);
    }
}

#[tokio::test]
async fn a_dead_holder_loses_the_lock_with_its_lease() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let dead = Locks::new(Arc::clone(&store)).acquire("l", PATIENCE).await.unwrap();
    std::mem::forget(dead);
    let ours = Locks::new(Arc::clone(&store));
    let waiting = tokio::spawn(async move { ours.acquire("l", PATIENCE).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    // Short of the waiter's own lease, which is younger.
    memory.advance(26 * SEC).await.unwrap();
    let outcome = waiting.await.unwrap();
    assert!(matches!(outcome, Ok(()) | Err(StoreError::LockLost(_))), "{outcome:?}");
}

#[tokio::test]
async fn lost_answers_lock_nobody_out() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let (ours, theirs) = (Locks::new(Arc::clone(&store)), Locks::new(Arc::clone(&store)));
    for fault in [Fault::AnswerLost, Fault::Refused] {
        for locks in [&ours, &theirs] {
            locks.acquire("l", PATIENCE).await.unwrap().release().await;
            memory.inject(Verb::Txn, fault, 1);
            assert!(locks.acquire("l", PATIENCE).await.is_err());
            let lock = locks.acquire("l", PATIENCE).await.unwrap();
            memory.inject(Verb::Txn, fault, 1);
            lock.release().await;
            let dropped = theirs.acquire("l", PATIENCE).await.unwrap();
            memory.inject(Verb::Txn, fault, 1);
            drop(dropped);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    ours.acquire("l", PATIENCE).await.unwrap().release().await;
    assert_eq!(keys(&store, "l/").await.len(), 0);
}

#[tokio::test]
async fn who_stops_waiting_leaves_nothing_behind() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let (ours, theirs) = (Locks::new(Arc::clone(&store)), Locks::new(Arc::clone(&store)));
    let held = theirs.acquire("l", PATIENCE).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(20), ours.acquire("l", PATIENCE)).await;
    assert!(waiting.is_err(), "cancelled");
    held.release().await;
    theirs.acquire("l", PATIENCE).await.unwrap().release().await;
    for _ in 0..6000 {
        if keys(&store, "l/").await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!("a key is left");
}
