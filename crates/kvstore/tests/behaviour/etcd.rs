//! What only a store on a network goes through.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use villus_kvstore::{
    Etcd, EtcdOptions, Follow, Item, LeasePurpose, Op, Past, Relisted, Session, Store, StoreError, Txn,
};
use villus_testbed::EtcdServer;

use crate::{bytes, keys, put, quick, shown, shown_items};

const LONG: Duration = Duration::from_secs(60);

fn store_of(servers: &[EtcdServer]) -> Arc<dyn Store> {
    let mut options = EtcdOptions::new(servers.iter().map(EtcdServer::url).collect());
    options.qps = 10_000;
    Arc::new(Etcd::new(options).unwrap())
}

/// Applies batches until the mirror holds `wanted`.
async fn until(follow: &mut Follow, mirror: &mut BTreeMap<String, String>, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let all = async {
        while *mirror != wanted {
            for item in follow.next().await.unwrap().items {
                match item {
                    Item::Put(entry) => {
                        mirror.insert(entry.key.to_string(), entry.text().unwrap().to_owned());
                    }
                    Item::Delete { key, .. } => {
                        assert!(mirror.remove(&*key).is_some(), "known: {key}");
                    }
                }
            }
        }
    };
    tokio::time::timeout(LONG, all).await.expect("what is there was told");
}

/// Tries until a write gets through: for times at which the cluster has no leader.
async fn patiently<T>(write: impl AsyncFn() -> Result<T, StoreError>) {
    let tries = async {
        while let Err(error) = write().await {
            assert!(error.is_transient(), "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, tries).await.unwrap();
}

async fn put_patiently(store: &Arc<dyn Store>, key: &str, value: &str) {
    patiently(async || store.update(key, bytes(value), None).await).await;
}

/// As [`put_patiently`] for a key that nobody has, and once: an attempt that failed may have taken place. Several members on a
/// busy machine elect another leader at any time.
async fn create_patiently(store: &Arc<dyn Store>, key: &str, value: &str) {
    patiently(async || store.create(key, bytes(value), None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_interrupts_nobody_for_long() {
    let mut servers = EtcdServer::cluster(3);
    let store = store_of(&servers);
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    let mut mirror = BTreeMap::new();
    create_patiently(&store, "p/a", "1").await;
    until(&mut follow, &mut mirror, &[("p/a", "1")]).await;
    let leader = EtcdServer::leader(&servers);
    servers[leader].kill();
    put_patiently(&store, "p/b", "2").await;
    until(&mut follow, &mut mirror, &[("p/a", "1"), ("p/b", "2")]).await;
    // The two may elect once more.
    let begin = Instant::now();
    loop {
        let status = store.status().await;
        let text = &status.text;
        let all = text.starts_with("etcd: 2/3 connected, leases=0, lock leases=0, has-quorum=true: ");
        if status.healthy && all && text.contains("3.4") && text.contains("(Leader)") {
            break;
        }
        assert!(begin.elapsed() < LONG, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_invented_and_afterwards_all_goes_on() {
    let mut servers = EtcdServer::cluster(3);
    let store = store_of(&servers);
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    let mut mirror = BTreeMap::new();
    create_patiently(&store, "p/a", "1").await;
    until(&mut follow, &mut mirror, &[("p/a", "1")]).await;
    servers.iter_mut().for_each(EtcdServer::kill);
    let error = store.get("p/a").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let status = store.status().await;
    assert!(!status.healthy && status.text.contains("0/3 connected"), "{}", status.text);
    assert!(status.text.contains("has-quorum=false, consecutive-errors=1"), "{}", status.text);
    let quiet = tokio::time::timeout(Duration::from_millis(300), follow.next()).await;
    assert!(quiet.is_err(), "a store that is away deletes nothing: {quiet:?}");
    servers.iter_mut().for_each(EtcdServer::resume);
    put_patiently(&store, "p/b", "2").await;
    until(&mut follow, &mut mirror, &[("p/a", "1"), ("p/b", "2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_has_lost_its_leader_ends_its_watches() {
    let servers = EtcdServer::cluster(3);
    let alone = store_of(&servers[..1]);
    create_patiently(&alone, "p/a", "1").await;
    let watches = async || {
        let mut watch = alone.watch("p/", 1).await?;
        let batch = watch.next().await?;
        assert_eq!(shown(&batch), ["p/a=1"]);
        Ok::<_, StoreError>(watch)
    };
    let begin = Instant::now();
    let mut watch = loop {
        match watches().await {
            Ok(watch) => break watch,
            Err(error) => assert!(error.is_transient() && begin.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // They keep their connections and say nothing, as behind a network that is cut.
    servers[1..].iter().for_each(EtcdServer::pause);
    let ended =
        tokio::time::timeout(LONG, watch.next()).await.expect("the watch ends although its member is there");
    let error = ended.unwrap_err();
    assert!(matches!(error, StoreError::Interrupted { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains("no leader"), "{error}");
    let mut follow = Follow::start(Arc::clone(&alone), "p/", quick());
    let quiet = tokio::time::timeout(Duration::from_millis(300), follow.next()).await;
    assert!(quiet.is_err(), "nothing is invented: {quiet:?}");
    servers[1..].iter().for_each(EtcdServer::go_on);
    put_patiently(&alone, "p/b", "2").await;
    until(&mut follow, &mut BTreeMap::new(), &[("p/a", "1"), ("p/b", "2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_were_compacted_meanwhile_are_made_up() {
    let mut servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    let first = put(&store, "p/a", "1").await;
    put(&store, "p/gone", "x").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    let mut mirror = BTreeMap::new();
    until(&mut follow, &mut mirror, &[("p/a", "1"), ("p/gone", "x")]).await;
    // The watch breaks; before it is back, its past is forgotten.
    servers[0].kill();
    servers[0].resume();
    servers[0].wait();
    servers[0].etcdctl(&["del", "p/gone"]).unwrap();
    servers[0].etcdctl(&["put", "p/a", "2"]).unwrap();
    servers[0].etcdctl(&["put", "elsewhere", "x"]).unwrap();
    let now = store.header().await.unwrap().revision;
    servers[0].etcdctl(&["compact", &now.to_string()]).unwrap();
    until(&mut follow, &mut mirror, &[("p/a", "2")]).await;
    let error = store.list_page("p/", None, 10, first).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { requested, .. } if requested == first), "{error}");
    let mut watch = store.watch("p/", first).await.unwrap();
    let error = watch.next().await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { oldest, .. } if oldest == now), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_is_told_from_one_where_everything_was_deleted() {
    let mut servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    for n in 0..5 {
        put(&store, &format!("p/{n}"), "x").await;
    }
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    assert_eq!(follow.next().await.unwrap().relisted, Some(Relisted::First));
    servers[0].kill();
    servers[0].wipe();
    servers[0].resume();
    servers[0].wait();
    let batch = tokio::time::timeout(LONG, follow.next()).await.unwrap().unwrap();
    assert!(
        matches!(batch.relisted, Some(Relisted::Rewound | Relisted::OtherStore)),
        "{:?} {:?}",
        batch.relisted,
        shown_items(&batch.items)
    );
    put(&store, "p/new", "x").await;
    let batch = tokio::time::timeout(LONG, follow.next()).await.unwrap().unwrap();
    assert_eq!(shown_items(&batch.items), ["p/new=x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_that_has_passed_the_last_revision_again_is_told_from_one_that_went_on() {
    let mut servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    put(&store, "p/a", "1").await;
    let directory = tempfile::tempdir().unwrap();
    let backup = directory.path().join("backup");
    servers[0].save(&backup);
    put(&store, "p/lost", "1").await;
    let mut follow = Follow::start(Arc::clone(&store), "p/", quick());
    let mut mirror = BTreeMap::new();
    until(&mut follow, &mut mirror, &[("p/a", "1"), ("p/lost", "1")]).await;
    let past = Past {
        keys: mirror.keys().map(|key| (key.as_str().into(), false)).collect(),
        seen: Some(store.header().await.unwrap()),
        witness: follow.witness().cloned(),
    };
    drop(follow);
    let again = async |past: &Past| {
        let mut follow = Follow::resume(Arc::clone(&store), "p/", quick(), past.clone());
        let batch = tokio::time::timeout(LONG, follow.next()).await.unwrap().unwrap();
        (batch.relisted, shown_items(&batch.items))
    };
    let listed = ["p/a=1", "p/lost=1"].map(str::to_owned).to_vec();
    put(&store, "elsewhere", "x").await;
    assert_eq!(again(&past).await, (Some(Relisted::First), listed));
    servers[0].kill();
    servers[0].restore(&backup);
    servers[0].resume();
    servers[0].wait();
    for n in 0..5 {
        put_patiently(&store, "elsewhere", &n.to_string()).await;
    }
    assert!(store.header().await.unwrap().revision > past.seen.unwrap().revision);
    let listed = ["-p/lost", "p/a=1"].map(str::to_owned).to_vec();
    assert_eq!(again(&past).await, (Some(Relisted::Rewound), listed));
    // Without the write nobody can know.
    let past = Past { witness: None, ..past };
    assert_eq!(again(&past).await.0, Some(Relisted::First));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcdctl_does_is_seen_and_what_we_do_etcdctl_sees() {
    let servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    let mut follow = Follow::start(Arc::clone(&store), "cilium/", quick());
    let mut mirror = BTreeMap::new();
    servers[0].etcdctl(&["put", "cilium/state/identities/v1/id/15614229", "k8s:app=app1;"]).unwrap();
    until(&mut follow, &mut mirror, &[("cilium/state/identities/v1/id/15614229", "k8s:app=app1;")]).await;
    put(&store, "cilium/x", "1").await;
    assert_eq!(servers[0].etcdctl(&["get", "cilium/x", "--print-value-only"]).unwrap(), "1\n");
    // A transaction of etcdctl is one batch.
    let lease = store.grant(LONG, LeasePurpose::Entries).await.unwrap();
    let listed = servers[0].etcdctl(&["lease", "list"]).unwrap();
    assert!(listed.contains(&lease.to_string()), "{listed} has no {lease}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_requests_and_events_took_is_counted_by_what_they_were() {
    let server = EtcdServer::start();
    let store = Etcd::new(EtcdOptions::new(vec![server.url()])).unwrap();
    let key = "cilium/state/ip/v1/default/10.0.0.1";
    let from = store.update(key, bytes("1"), None).await.unwrap();
    let mut watch = store.watch("cilium/state/ip/v1/", from).await.unwrap();
    store.delete(key).await.unwrap();
    assert!(store.update(key, bytes("1"), Some(villus_kvstore::LeaseId(77))).await.is_err());
    for _ in 0..2 {
        watch.next().await.unwrap();
    }
    let counted: Vec<_> = store
        .figures()
        .operations()
        .into_iter()
        .map(|(of, succeeded, took)| (of.scope, of.kind, of.action, succeeded, took.count))
        .collect();
    assert_eq!(
        counted,
        [
            ("ip/v1", "delete", "txn", true, 1),
            ("ip/v1", "read", "watch", true, 1),
            ("ip/v1", "set", "txn", false, 1),
            ("ip/v1", "set", "txn", true, 1),
        ]
    );
    let waits: Vec<_> = store
        .figures()
        .waits()
        .into_iter()
        .map(|(scope, action, took)| (scope, action, took.count))
        .collect();
    assert_eq!(waits, [("ip/v1", "delete", 1), ("ip/v1", "update", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_megabyte_and_thousands_of_keys_come_whole() {
    let servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    let from = store.header().await.unwrap().revision + 1;
    let large = "x".repeat(1 << 20);
    for n in 0..6 {
        put(&store, &format!("large/{n}"), &large).await;
    }
    for page in 0..20 {
        let mut txn = villus_kvstore::Txn::new();
        for n in 0..100 {
            txn = txn.then(villus_kvstore::Op::put(format!("many/{page:02}{n:02}"), "x", None));
        }
        store.txn(txn).await.unwrap();
    }
    assert_eq!(keys(&store, "many/").await.len(), 2000);
    let listing = store.list_prefix("large/").await.unwrap();
    assert!(listing.entries.len() == 6 && listing.entries.iter().all(|entry| entry.value.len() == 1 << 20));
    let mut watch = store.watch("", from).await.unwrap();
    let mut seen = 0;
    while seen < 2006 {
        let batch = tokio::time::timeout(LONG, watch.next()).await.unwrap().unwrap();
        assert!([1, 100].contains(&batch.events.len()), "transactions come whole");
        seen += batch.events.len();
    }
    let refused = store.update("large/x", bytes(&"x".repeat(2 << 20)), None).await.unwrap_err();
    assert!(matches!(refused, StoreError::BadTxn(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_a_restart_of_the_store() {
    let mut servers = vec![EtcdServer::start()];
    let store = store_of(&servers);
    let session = Session::new(Arc::clone(&store), Duration::from_secs(6));
    session.put("mine", bytes("1")).await.unwrap();
    servers[0].kill();
    assert!(session.keep_alive().await.unwrap_err().is_transient());
    servers[0].resume();
    servers[0].wait();
    // Longer than the lease lasts.
    let gone = async {
        // An error says nothing about the key.
        while !matches!(store.get("mine").await, Ok(None)) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.unwrap();
    session.keep_alive().await.unwrap();
    assert_eq!(store.get("mine").await.unwrap().unwrap().text(), Some("1"));
}

#[tokio::test]
async fn a_member_that_never_answers_is_named() {
    let store = Etcd::new(EtcdOptions::new(vec!["http://127.0.0.1:1".to_owned()])).unwrap();
    let error = store.get("a").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_larger_than_a_message_is_asked_for_again_as_a_small_one() {
    let server = EtcdServer::start();
    let options = EtcdOptions { max_message: 200 << 10, qps: 10_000, ..EtcdOptions::new(vec![server.url()]) };
    let store = Etcd::new(options).unwrap();
    for some in (0..1000).collect::<Vec<u32>>().chunks(100) {
        let put = |n: &u32| Op::put(format!("p/{n:04}"), "v".repeat(500), None);
        store.txn(some.iter().map(put).fold(Txn::new(), Txn::then)).await.unwrap();
    }
    let page = store.list_page("p/", None, 1000, 0).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (256, true));
    let all = store.list_prefix("p/").await.unwrap();
    let numbers: Vec<String> = all.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(numbers, (0..1000).map(|n| format!("p/{n:04}")).collect::<Vec<_>>());
}

/// An etcd with users, and one of them who may write below `mine/`.
fn with_users(argument: &str) -> (EtcdServer, Arc<dyn Store>) {
    let server = EtcdServer::cluster_at("127.0.0.1", 1, &[argument]).pop().unwrap();
    for line in [
        "role add some",
        "role grant-permission --prefix=true some readwrite mine/",
        "user add a:secret",
        "user grant-role a some",
        "user add root:secret",
        "user grant-role root root",
        "auth enable",
    ] {
        server.etcdctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let user = Some(("a".to_owned(), "secret".to_owned()));
    let options = EtcdOptions { user, qps: 10_000, ..EtcdOptions::new(vec![server.url()]) };
    (server, Arc::new(Etcd::new(options).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_before_roles_were_changed_is_made_anew_and_nobody_notices() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "x".repeat(64)).unwrap();
    let (server, store) =
        with_users(&format!("--auth-token=jwt,priv-key={},sign-method=HS256,ttl=10m", key.display()));
    let line = "--user root:secret role grant-permission some read other/";
    let change_roles = || server.etcdctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    put(&store, "mine/a", "1").await;
    for n in 0..3 {
        change_roles();
        put(&store, "mine/a", &n.to_string()).await;
        change_roles();
        assert_eq!(keys(&store, "mine/").await, ["mine/a"]);
    }
    let denied = store.update("theirs/a", bytes("1"), None).await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_and_what_has_no_space_is_told_from_a_store_that_is_away() {
    let (_server, store) = with_users("--quota-backend-bytes=1048576");
    put(&store, "mine/a", "1").await;
    let denied = store.update("theirs/a", bytes("1"), None).await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }) && denied.is_of_one_key(), "{denied}");
    let denied = store.list_prefix("theirs/").await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }) && denied.is_transient(), "{denied}");
    // It is told as well to who follows, again and again.
    let mut follow = Follow::start(Arc::clone(&store), "theirs/", quick());
    for _ in 0..2 {
        let heard = tokio::time::timeout(LONG, follow.heard()).await.unwrap().unwrap();
        assert!(matches!(heard, Err(StoreError::Denied { .. })), "{heard:?}");
    }
    let large = "x".repeat(100 << 10);
    let mut full = None;
    for n in 0..100 {
        full = full.or(store.update(&format!("mine/{n}"), bytes(&large), None).await.err());
    }
    let full = full.unwrap();
    assert!(matches!(full, StoreError::Full { .. }) && full.is_transient(), "{full}");
    assert!(!full.is_of_one_key() && full.to_string().contains("etcdctl alarm disarm"), "{full}");
}
