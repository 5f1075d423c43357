//! Keys, lists and transactions.

use std::sync::Arc;

use villus_kvstore::{Answer, Compare, LeaseId, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Store, StoreError, Txn};

use crate::{bytes, each, keys, put};

each! {
    async fn what_is_written_is_read(store: Arc<dyn Store>) {
        assert_eq!(store.get("a").await.unwrap(), None);
        let first = put(&store, "a", "1").await;
        let second = put(&store, "a", "2").await;
        assert!(second > first);
        let entry = store.get("a").await.unwrap().unwrap();
        assert_eq!((entry.text(), entry.version), (Some("2"), 2));
        assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
        assert!(store.delete("a").await.unwrap());
        assert!(!store.delete("a").await.unwrap());
        assert_eq!(store.get("a").await.unwrap(), None);
        assert_eq!(store.header().await.unwrap().revision, second + 1);
    }

    async fn keys_with_slashes_equals_signs_and_any_letters_are_keys(store: Arc<dyn Store>) {
        for key in ["v/k8s:a=b/c;d=/10.0.0.1", "v/ä", "v/\u{10ffff}", "v//", "v/ "] {
            put(&store, key, key).await;
        }
        for key in keys(&store, "v/").await {
            assert_eq!(store.get(&key).await.unwrap().unwrap().text(), Some(key.as_str()));
        }
        assert_eq!(keys(&store, "v/").await.len(), 5);
        assert!(matches!(
            store.update("", bytes("x"), None).await,
            Err(StoreError::BadKey { .. })
        ));
    }

    async fn create_only_creates(store: Arc<dyn Store>) {
        assert!(store.create("a", bytes("1"), None).await.unwrap());
        assert!(!store.create("a", bytes("2"), None).await.unwrap());
        assert_eq!(store.get("a").await.unwrap().unwrap().text(), Some("1"));
    }

    async fn deletion_by_compare_spares_what_was_written_since(store: Arc<dyn Store>) {
        let old = put(&store, "a", "1").await;
        let new = put(&store, "a", "2").await;
        let at = |revision| Compare::ModRevision("a".to_owned(), revision);
        assert!(!store.compare_and_delete("a", at(old)).await.unwrap());
        assert!(!store.compare_and_delete("a", Compare::Value("a".to_owned(), bytes("1"))).await.unwrap());
        assert!(store.compare_and_delete("a", at(new)).await.unwrap());
        assert!(!store.compare_and_delete("a", at(new)).await.unwrap());
    }

    async fn a_prefix_is_listed_in_order_and_in_pages(store: Arc<dyn Store>) {
        for n in [5, 3, 1, 4, 2] {
            put(&store, &format!("p/{n}"), "x").await;
        }
        put(&store, "o", "x").await;
        put(&store, "p", "x").await;
        put(&store, "p0", "x").await;
        put(&store, "q/1", "x").await;
        assert_eq!(keys(&store, "p/").await, ["p/1", "p/2", "p/3", "p/4", "p/5"]);
        let first = store.list_page("p/", None, 2, 0).await.unwrap();
        assert!(first.more);
        // What is written between two pages does not appear in the later ones.
        put(&store, "p/4", "new").await;
        store.delete("p/5").await.unwrap();
        let at = first.header.revision;
        let second = store.list_page("p/", Some("p/2"), 2, at).await.unwrap();
        assert_eq!(second.entries.iter().map(|e| e.text().unwrap()).collect::<Vec<_>>(), ["x", "x"]);
        let third = store.list_page("p/", Some("p/4"), 2, at).await.unwrap();
        assert_eq!((third.entries.len(), third.more, &*third.entries[0].key), (1, false, "p/5"));
        assert_eq!(keys(&store, "p/").await.len(), 4);
        assert_eq!(keys(&store, "nothing/").await.len(), 0);
        assert_eq!(store.delete_prefix("p/").await.unwrap(), 4);
        assert_eq!(keys(&store, "").await, ["o", "p", "p0", "q/1"]);
    }

    async fn a_transaction_does_all_or_nothing_at_one_revision(store: Arc<dyn Store>) {
        let before = put(&store, "a", "1").await;
        let txn = || {
            Txn::new()
                .when(Compare::Value("a".to_owned(), bytes("1")))
                .when(Compare::Absent("b".to_owned()))
                .then(Op::put("a", "2", None))
                .then(Op::put("b", "2", None))
                .then(Op::Get("b".to_owned()))
                .otherwise(Op::Get("a".to_owned()))
        };
        let outcome = store.txn(txn()).await.unwrap();
        assert!(outcome.held && outcome.revision == before + 1);
        let [Answer::Put, Answer::Put, Answer::Got(Some(b))] = &outcome.answers[..] else {
            unreachable!("{:?}", outcome.answers)
        };
        assert_eq!(b.mod_revision, outcome.revision);
        assert_eq!(store.get("a").await.unwrap().unwrap().mod_revision, outcome.revision);

        let outcome = store.txn(txn()).await.unwrap();
        assert!(!outcome.held && outcome.revision == before + 1);
        assert!(matches!(&outcome.answers[..], [Answer::Got(Some(a))] if a.text() == Some("2")));
    }

    async fn each_condition_means_what_it_says(store: Arc<dyn Store>) {
        let created = put(&store, "a", "1").await;
        let modified = put(&store, "a", "2").await;
        let a = || "a".to_owned();
        let gone = || "gone".to_owned();
        for (compare, holds) in [
            (Compare::Present(a()), true),
            (Compare::Present(gone()), false),
            (Compare::Absent(a()), false),
            (Compare::Absent(gone()), true),
            (Compare::CreateRevision(a(), created), true),
            (Compare::CreateRevision(a(), modified), false),
            (Compare::ModRevision(a(), modified), true),
            (Compare::ModRevision(a(), created), false),
            (Compare::ModRevision(gone(), 0), false),
            (Compare::Value(a(), bytes("2")), true),
            (Compare::Value(a(), bytes("1")), false),
            (Compare::Value(gone(), bytes("")), false),
            (Compare::NoneBelow(a()), false),
            (Compare::NoneBelow("a/".to_owned()), true),
            (Compare::NoneBelow(String::new()), false),
        ] {
            let outcome = store.txn(Txn::new().when(compare.clone())).await.unwrap();
            assert_eq!(outcome.held, holds, "{compare:?}");
        }
    }

    async fn a_transaction_lists_what_is_there_with_what_it_wrote(store: Arc<dyn Store>) {
        for key in ["p/a", "p/b", "q"] {
            put(&store, key, "1").await;
        }
        let list = |limit| Op::List { prefix: "p/".to_owned(), limit };
        let txn = Txn::new().then(list(10)).then(Op::put("p/c", "2", None)).then(list(10)).then(list(2)).then(list(3));
        let answers = store.txn(txn).await.unwrap().answers;
        let listed = |answer: &Answer| match answer {
            Answer::Listed { entries, more } => {
                (entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>().join(" "), *more)
            }
            other => (format!("{other:?}"), false),
        };
        assert_eq!(answers.iter().map(listed).collect::<Vec<_>>(), [
            ("p/a p/b".to_owned(), false),
            ("Put".to_owned(), false),
            ("p/a p/b p/c".to_owned(), false),
            ("p/a p/b".to_owned(), true),
            ("p/a p/b p/c".to_owned(), false),
        ]);
        let none = Txn::new().then(Op::List { prefix: "r/".to_owned(), limit: 1 });
        let answers = store.txn(none).await.unwrap().answers;
        assert_eq!(answers, [Answer::Listed { entries: Vec::new(), more: false }]);
    }

    async fn a_malformed_transaction_changes_nothing(store: Arc<dyn Store>) {
        let before = put(&store, "a", "1").await;
        let twice = Txn::new().then(Op::put("b", "1", None)).then(Op::put("b", "2", None));
        let both = Txn::new().then(Op::put("p/a", "1", None)).then(Op::DeletePrefix("p/".to_owned()));
        let mut many = Txn::new();
        many.then = (0..=MAX_TXN_OPS).map(|n| Op::put(format!("k{n}"), "x", None)).collect();
        let large = Txn::new().then(Op::put("b", vec![0; MAX_TXN_BYTES], None));
        for bad in [twice, both, many, large] {
            assert!(matches!(store.txn(bad).await, Err(StoreError::BadTxn(_))));
        }
        let ghost = LeaseId(12345);
        let half = Txn::new().then(Op::put("c", "1", None)).then(Op::put("b", "2", Some(ghost)));
        assert_eq!(store.txn(half).await, Err(StoreError::LeaseNotFound(ghost)));
        assert_eq!(keys(&store, "").await, ["a"]);
        assert_eq!(store.header().await.unwrap().revision, before);
    }

    async fn concurrent_increments_are_not_lost(store: Arc<dyn Store>) {
        put(&store, "n", "0").await;
        let add = |store: Arc<dyn Store>| async move {
            for _ in 0..10 {
                loop {
                    let entry = store.get("n").await.unwrap().unwrap();
                    let n: u64 = entry.text().unwrap().parse().unwrap();
                    let same = Compare::ModRevision("n".to_owned(), entry.mod_revision);
                    let txn = Txn::new().when(same).then(Op::put("n", (n + 1).to_string(), None));
                    if store.txn(txn).await.unwrap().held {
                        break;
                    }
                }
            }
        };
        let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(add(Arc::clone(&store)))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.get("n").await.unwrap().unwrap().text(), Some("40"));
    }

    async fn the_status_is_one_line(store: Arc<dyn Store>) {
        put(&store, "a", "1").await;
        let status = store.status().await;
        assert!(status.healthy, "{}", status.text);
        assert_eq!(status.text.lines().count(), 1, "{}", status.text);
        assert_eq!(status.header, store.header().await.unwrap());
    }
}
