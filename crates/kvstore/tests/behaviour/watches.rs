//! Watches: ordered, unique, atomic, resumable, nothing missed.

use std::{sync::Arc, time::Duration};

use villus_kvstore::{Op, Txn};

use crate::{each, next, put};

each! {
    async fn a_watch_sees_each_transaction_once_whole_and_in_order(store: Arc<dyn Store>) {
        let from = store.header().await.unwrap().revision + 1;
        let mut watch = store.watch("p/", from).await.unwrap();
        put(&store, "p/a", "1").await;
        put(&store, "other", "x").await;
        put(&store, "p/a", "2").await;
        let both = Txn::new()
            .then(Op::put("p/b", "3", None))
            .then(Op::put("other", "y", None))
            .then(Op::Delete("p/a".to_owned()));
        store.txn(both).await.unwrap();
        store.delete_prefix("p/").await.unwrap();
        assert_eq!(next(&mut watch).await, ["p/a=1"]);
        assert_eq!(next(&mut watch).await, ["p/a=2"]);
        assert_eq!(next(&mut watch).await, ["p/b=3", "-p/a"]);
        assert_eq!(next(&mut watch).await, ["-p/b"]);
        let idle = tokio::time::timeout(Duration::from_millis(30), watch.next()).await;
        assert!(idle.is_err(), "nothing more");
    }

    async fn a_watch_goes_on_from_any_kept_revision(store: Arc<dyn Store>) {
        let first = put(&store, "a", "1").await;
        put(&store, "a", "2").await;
        put(&store, "b", "3").await;
        let mut watch = store.watch("", first + 1).await.unwrap();
        assert_eq!(next(&mut watch).await, ["a=2"]);
        let position = watch.position();
        drop(watch);
        put(&store, "b", "4").await;
        let mut watch = store.watch("", position).await.unwrap();
        assert_eq!(next(&mut watch).await, ["b=3"]);
        assert_eq!(next(&mut watch).await, ["b=4"]);
    }

    async fn a_list_and_a_watch_behind_it_leave_nothing_out(store: Arc<dyn Store>) {
        let writer = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                for n in 0..200 {
                    put(&store, &format!("p/{n:03}"), "x").await;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let listing = store.list_prefix("p/").await.unwrap();
        let mut watch = store.watch("p/", listing.header.revision + 1).await.unwrap();
        let mut seen = listing.entries.len();
        while seen < 200 {
            let batch = next(&mut watch).await;
            assert_eq!(batch, [format!("p/{seen:03}=x")]);
            seen += 1;
        }
        writer.await.unwrap();
    }

    async fn cancelling_a_watch_loses_nothing(store: Arc<dyn Store>) {
        let from = store.header().await.unwrap().revision + 1;
        let mut watch = store.watch("", from).await.unwrap();
        let writer = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                for n in 0..50 {
                    put(&store, "a", &n.to_string()).await;
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            }
        });
        let mut seen = 0;
        while seen < 50 {
            if let Ok(batch) = tokio::time::timeout(Duration::from_micros(50), watch.next()).await {
                assert_eq!(crate::shown(&batch.unwrap()), [format!("a={seen}")]);
                seen += 1;
            }
        }
        writer.await.unwrap();
    }
}
