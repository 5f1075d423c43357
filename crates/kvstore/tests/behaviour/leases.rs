//! Leases, and sessions on top of them.

use std::{sync::Arc, time::Duration};

use villus_kvstore::{LeasePurpose, Memory, Session, Store, StoreError};

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
        let short = store.grant(Duration::from_secs(3), LeasePurpose::Entries).await.unwrap();
        let kept = store.grant(Duration::from_secs(6), LeasePurpose::Entries).await.unwrap();
        let from = store.update("a", bytes("1"), Some(short)).await.unwrap() + 1;
        store.update("b", bytes("1"), Some(kept)).await.unwrap();
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
        let lease = session.lease().await.unwrap();
        store.revoke(lease).await.unwrap();
        assert_eq!(keys(&store, "").await.len(), 0);
        session.keep_alive().await.unwrap();
        assert_eq!(keys(&store, "").await, ["a", "b"]);
        assert_ne!(session.lease().await.unwrap(), lease);
        assert_eq!(session.size(), (1, 2));

        store.revoke(session.lease().await.unwrap()).await.unwrap();
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

    async fn a_session_uses_several_leases_for_many_keys(store: Arc<dyn Store>) {
        let session = Session::new(Arc::clone(&store), MINUTE);
        let lease = session.lease().await.unwrap();
        for n in 0..1000 {
            session.own(&format!("k{n}"), bytes("x"), lease);
        }
        assert_ne!(session.lease().await.unwrap(), lease);
        assert_eq!(session.size(), (2, 1000));
    }
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
    memory.go_down();
    memory.advance(2 * MINUTE).await.unwrap();
    for _ in 0..3 {
        assert!(session.keep_alive().await.unwrap_err().is_transient());
    }
    memory.heal();
    session.keep_alive().await.unwrap();
    assert_eq!(keys(&store, "").await, ["a"]);
}
