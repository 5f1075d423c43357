//! Leases, and sessions on top of them.

use std::{sync::Arc, time::Duration};

use villus_kvstore::{ClusterSize, Fault, LeasePurpose, Locks, Memory, Session, Store, StoreError, Verb};
use villus_table::Stop;

use crate::{bytes, each, keys, next, put};

const MINUTE: Duration = Duration::from_secs(60);

each! {
    async fn keys_go_with_their_lease_at_one_revision(store: Arc<dyn Store>) {
        let lease = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
        let from = store.header().await.unwrap().revision + 1;
        for key in ["a", "b", "c"] {
            store.update(key, bytes("1"), Some(lease)).await.unwrap();
        }
        assert_eq!(store.get("a").await.unwrap().unwrap().lease, Some(lease));
        // Written without the lease, or deleted, a key is not the lease's any more.
        put(&store, "b", "2").await;
        store.keep_alive(lease).await.unwrap();
        let mut watch = store.watch("", from + 4).await.unwrap();
        store.revoke(lease).await.unwrap();
        store.revoke(lease).await.unwrap();
        assert_eq!(next(&mut watch).await, ["-a", "-c"]);
        assert_eq!(keys(&store, "").await, ["b"]);
        assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseNotFound(lease)));
        assert_eq!(
            store.update("a", bytes("1"), Some(lease)).await,
            Err(StoreError::LeaseNotFound(lease))
        );
    }

    async fn a_lease_that_nobody_keeps_expires_by_itself(store: Arc<dyn Store>) {
        let kept = store.grant(Duration::from_secs(6), LeasePurpose::Entries).await.unwrap();
        store.update("b", bytes("1"), Some(kept)).await.unwrap();
        // Only one write comes while its time runs.
        let short = store.grant(Duration::from_secs(4), LeasePurpose::Entries).await.unwrap();
        let from = store.update("a", bytes("1"), Some(short)).await.unwrap() + 1;
        let mut watch = store.watch("a", from).await.unwrap();
        let keep = async {
            loop {
                store.keep_alive(kept).await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        tokio::select! {
            gone = next(&mut watch) => assert_eq!(gone, ["-a"]),
            () = keep => {}
        }
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.keep_alive(kept).await.unwrap();
        }
        assert_eq!(keys(&store, "").await, ["b"]);
    }

    async fn a_key_can_move_to_another_lease(store: Arc<dyn Store>) {
        let old = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
        let new = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
        store.update("a", bytes("1"), Some(old)).await.unwrap();
        store.update("a", bytes("1"), Some(new)).await.unwrap();
        store.revoke(old).await.unwrap();
        assert_eq!(keys(&store, "").await, ["a"]);
        store.revoke(new).await.unwrap();
        assert_eq!(keys(&store, "").await.len(), 0);
    }

    async fn a_session_writes_its_keys_again_under_a_new_lease(store: Arc<dyn Store>) {
        let session = Session::new(Arc::clone(&store), MINUTE);
        session.put("a", bytes("1")).await.unwrap();
        session.put("b", bytes("2")).await.unwrap();
        let lease = session.room().await.unwrap().lease();
        store.revoke(lease).await.unwrap();
        assert_eq!(keys(&store, "").await.len(), 0);
        session.keep_alive().await.unwrap();
        assert_eq!(keys(&store, "").await, ["a", "b"]);
        assert_ne!(session.room().await.unwrap().lease(), lease);
        assert_eq!(session.size(), (1, 2));

        store.revoke(session.room().await.unwrap().lease()).await.unwrap();
        session.put("a", bytes("3")).await.unwrap();
        assert_eq!(keys(&store, "").await, ["a", "b"], "writing finds out too");
        assert_eq!(store.get("a").await.unwrap().unwrap().text(), Some("3"));
    }

    async fn a_session_reasserts_what_others_took(store: Arc<dyn Store>) {
        let session = Session::new(Arc::clone(&store), MINUTE);
        for key in ["a", "b", "c"] {
            session.put(key, bytes("mine")).await.unwrap();
        }
        store.delete("a").await.unwrap();
        put(&store, "b", "theirs").await;
        assert_eq!(session.reassert().await.unwrap(), 2);
        assert_eq!(session.reassert().await.unwrap(), 0);
        assert_eq!(store.get("b").await.unwrap().unwrap().text(), Some("mine"));
        assert!(session.remove("c").await.unwrap());
        assert!(!session.remove("c").await.unwrap());
        put(&store, "b", "theirs").await;
        assert!(!session.remove("b").await.unwrap(), "what others wrote is theirs");
        assert_eq!(session.reassert().await.unwrap(), 0);
        assert_eq!(keys(&store, "").await, ["a", "b"]);
    }

    async fn a_lease_has_a_thousand_keys_at_most_those_counted_that_are_on_their_way(store: Arc<dyn Store>) {
        let session = Session::new(Arc::clone(&store), MINUTE);
        let first = session.room().await.unwrap().lease();
        let mut rooms = Vec::new();
        for _ in 0..1063 {
            rooms.push(session.room().await.unwrap());
        }
        assert_eq!(rooms.iter().filter(|room| room.lease() == first).count(), 1000);
        // Those whose transactions failed give their room back.
        rooms.truncate(990);
        for (n, room) in rooms.into_iter().enumerate() {
            session.own(&format!("k{n}"), bytes("x"), room);
        }
        let room = session.room().await.unwrap();
        session.leave("nobody's", room);
        let keys: Vec<_> = (0..20).map(|n| (format!("l{n}"), bytes("x"))).collect();
        assert!(session.put_all(keys).await.iter().all(Result::is_ok));
        assert_eq!(session.size(), (2, 1010));
        let mut under = std::collections::BTreeMap::new();
        for entry in store.list_prefix("l").await.unwrap().entries {
            *under.entry(entry.lease.unwrap() == first).or_insert(0) += 1;
        }
        let of_first = under.get(&true).copied().unwrap_or(0);
        assert!(of_first <= 9, "{of_first} more under the first lease, beside 991");
    }

    async fn a_session_writes_and_compares_many_keys_in_few_requests_and_one_holds_up_no_other(store: Arc<dyn Store>) {
        let session = Session::new(Arc::clone(&store), MINUTE);
        let mut wanted: Vec<_> = (0..250).map(|n| (format!("k{n:03}"), bytes("mine"))).collect();
        wanted[100] = (String::new(), bytes("no key"));
        let written = session.put_all(wanted).await;
        assert!(matches!(&written[100], Err(error) if error.is_of_one_key()), "{:?}", written[100]);
        assert_eq!(written.iter().filter(|outcome| outcome.is_ok()).count(), 249);
        assert_eq!(keys(&store, "k").await.len(), 249);
        store.delete_prefix("k1").await.unwrap();
        put(&store, "k007", "theirs").await;
        let of = |n: usize| format!("k{n:03}");
        let looked = session.reassert_all(vec![of(7), of(8), of(150), "other".to_owned()]).await;
        assert_eq!(looked, [Ok(true), Ok(false), Ok(true), Ok(false)]);
        assert_eq!(session.reassert().await.unwrap(), 98);
        assert_eq!(session.reassert().await.unwrap(), 0);
        assert_eq!(keys(&store, "k").await.len(), 249);
        put(&store, "k008", "theirs").await;
        let removed = session.remove_all(vec![of(7), of(8), "other".to_owned(), of(9)]).await;
        assert_eq!(removed, [Ok(true), Ok(false), Ok(false), Ok(true)]);
        assert_eq!(keys(&store, "k").await.len(), 247);
        assert_eq!(session.size().1, 246);
    }
}

#[tokio::test]
async fn five_hundred_keys_of_a_node_are_compared_in_five_requests() {
    let memory = Memory::new().unwrap();
    let session = Session::new(Arc::new(memory.clone()), MINUTE);
    let keys: Vec<_> = (0..500).map(|n| (format!("k{n}"), bytes("mine"))).collect();
    let before = memory.operations();
    assert!(session.put_all(keys).await.iter().all(Result::is_ok));
    assert_eq!(memory.operations() - before, 1 + 5, "a lease and the keys");
    let before = memory.operations();
    assert_eq!(session.reassert().await.unwrap(), 0);
    assert_eq!(memory.operations() - before, 5);
    memory.delete_prefix("k").await.unwrap();
    let before = memory.operations();
    assert_eq!(session.reassert().await.unwrap(), 500);
    assert_eq!(memory.operations() - before, 10, "looked at and written");
}

#[tokio::test]
async fn time_that_passes_ends_leases_and_keeping_them_resets_it() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let lease = store.grant(MINUTE, LeasePurpose::Entries).await.unwrap();
    store.update("a", bytes("1"), Some(lease)).await.unwrap();
    for _ in 0..5 {
        memory.advance(MINUTE / 2).await.unwrap();
        store.keep_alive(lease).await.unwrap();
    }
    assert_eq!(keys(&store, "").await, ["a"]);
    memory.advance(MINUTE).await.unwrap();
    assert_eq!(keys(&store, "").await.len(), 0);
}

#[tokio::test]
async fn a_session_survives_a_store_that_is_down_longer_than_its_lease() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let session = Session::new(Arc::clone(&store), MINUTE);
    session.put("a", bytes("1")).await.unwrap();
    session.put("b", bytes("1")).await.unwrap();
    memory.go_down();
    assert!(session.remove("b").await.unwrap_err().is_transient());
    assert!(session.owns("b"), "it is removed when the store is back");
    memory.heal();
    assert!(session.remove("b").await.unwrap() && !session.owns("b"));
    memory.go_down();
    memory.advance(2 * MINUTE).await.unwrap();
    for _ in 0..3 {
        assert!(session.keep_alive().await.unwrap_err().is_transient());
    }
    memory.heal();
    session.keep_alive().await.unwrap();
    assert_eq!(keys(&store, "").await, ["a"]);
}

#[tokio::test]
async fn the_key_of_a_node_never_outlives_an_address_of_its_fifteen_hundred() {
    let memory = Memory::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let session = Session::new(Arc::clone(&store), MINUTE).with_last("node");
    let addresses: Vec<_> = (0..1499).map(|n| (format!("ip/{n:04}"), bytes("mine"))).collect();
    assert!(session.put_all(addresses).await.iter().all(Result::is_ok));
    session.put("node", bytes("mine")).await.unwrap();
    assert_eq!(session.size(), (2, 1500));
    memory.advance(MINUTE / 3).await.unwrap();
    session.keep_alive().await.unwrap();
    memory.advance(MINUTE / 3).await.unwrap();
    // One lease can't be kept, and then nothing more is heard of this node.
    memory.inject(Verb::Lease, Fault::Refused, 1);
    assert!(session.keep_alive().await.unwrap_err().is_transient());
    for _ in 0..70 {
        memory.advance(MINUTE / 60).await.unwrap();
        let there = keys(&store, "").await;
        assert!(there.len() == 1500 || !there.iter().any(|key| key == "node"), "{} keys", there.len());
    }
    assert_eq!(keys(&store, "").await.len(), 0);
    session.keep_alive().await.unwrap();
    assert_eq!(keys(&store, "").await.len(), 1500);
}

#[tokio::test]
async fn what_fails_is_tried_again_the_more_seldom_the_more_nodes_there_are() {
    const DAY: Duration = Duration::from_secs(86_400);
    let tries = async |nodes: usize, time: Duration| {
        let memory = Memory::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let size = ClusterSize::default();
        size.set(nodes);
        let session = Session::new(Arc::clone(&store), DAY);
        session.put("mine", bytes("1")).await.unwrap();
        let lock = Locks::of_cluster(Arc::clone(&store), size.clone()).acquire("l", MINUTE).await.unwrap();
        memory.go_down();
        tokio::time::pause();
        let before = memory.operations();
        let kept = tokio::time::timeout(time, session.run(&Stop::new(), &size)).await;
        assert!(kept.is_err(), "it goes on");
        let keeping = memory.operations() - before;
        drop(lock);
        tokio::time::sleep(MINUTE).await;
        let giving_back = memory.operations() - before - keeping;
        tokio::time::resume();
        (keeping, giving_back)
    };
    // A third of the day, and the longest time until one node of one tries again.
    let soon = DAY / 3 + DAY / 30;
    let (few, many) = (tries(1, soon).await, tries(10_000, soon).await);
    assert!(few.0 >= 2 && many.0 == 1, "keeping alive: {few:?}, {many:?}");
    assert!(many.1 < few.1 && many.1 > 1, "giving back: {few:?}, {many:?}");
    let kept = tries(10_000, DAY).await.0;
    assert!((4..=9).contains(&kept), "{kept} times before the lease ends");
}
