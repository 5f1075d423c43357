//! A store is written to only while it is known to be this cluster's.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use villus_kvstore::{ClusterConfig, Etcd, EtcdOptions, Guard, LeasePurpose, Session, Store, StoreError};
use villus_testbed::EtcdServer;

use crate::{bytes, keys, put};

const MINUTE: Duration = Duration::from_secs(60);

/// An address that leads to one server and then to another.
struct Door {
    url: String,
    to: Arc<Mutex<String>>,
    /// Connections end when it moves.
    cuts: watch::Sender<u64>,
}

impl Door {
    async fn to(server: &EtcdServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let to = Arc::new(Mutex::new(String::new()));
        let door = Self { url, to: Arc::clone(&to), cuts: watch::Sender::new(0) };
        door.leads_to(server).await;
        let cuts = door.cuts.subscribe();
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let (address, mut cuts) = (to.lock().unwrap().clone(), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(address).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        door
    }

    /// From now on; all connections have ended.
    async fn leads_to(&self, server: &EtcdServer) {
        *self.to.lock().unwrap() = server.url().trim_start_matches("http://").to_owned();
        self.cuts.send_modify(|cuts| *cuts += 1);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn ours() -> ClusterConfig {
    ClusterConfig::new(1, 255)
}

async fn store(server: &EtcdServer) -> (Door, Arc<Guard>, Arc<Etcd>) {
    let door = Door::to(server).await;
    let guard = Arc::new(Guard::new("c1", ours()));
    let options = EtcdOptions { qps: 10_000, ..EtcdOptions::new(vec![door.url.clone()]) };
    let store = Arc::new(Etcd::guarded(options, Arc::clone(&guard)).unwrap());
    (door, guard, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn into_another_clusters_store_behind_the_same_address_nothing_is_written() {
    let [own, other] = [EtcdServer::start(), EtcdServer::start()];
    let theirs = ClusterConfig::new(7, 255).to_json();
    other.etcdctl(&["put", "cilium/cluster-config/c1", &theirs]).unwrap();
    let (door, guard, store) = store(&own).await;
    let session = Session::new(store.clone() as Arc<dyn Store>, MINUTE);
    session.put("mine/0", bytes("1")).await.unwrap();
    let lease = store.grant(MINUTE, LeasePurpose::Locks).await.unwrap();
    let revision = other.etcdctl(&["get", "nothing", "-w", "json"]).unwrap();
    door.leads_to(&other).await;
    // Nobody reads.
    for n in 1..20 {
        let failed = [
            session.put(&format!("mine/{n}"), bytes("1")).await,
            session.keep_alive().await,
            store.delete("cilium/cluster-config/c1").await.map(drop),
            store.grant(MINUTE, LeasePurpose::Locks).await.map(drop),
            store.keep_alive(lease).await,
        ];
        assert!(
            failed.iter().all(|failed| matches!(failed, Err(StoreError::Unavailable { .. }))),
            "{failed:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let error = store.delete("mine/0").await.unwrap_err().to_string();
    assert!(error.contains("another cluster's: `cilium/cluster-config/c1`"), "{error}");
    assert!(guard.refusal().is_some());
    assert_eq!(other.etcdctl(&["get", "nothing", "-w", "json"]).unwrap(), revision);
    assert!(other.etcdctl(&["lease", "list"]).unwrap().starts_with("found 0 leases"));
    let status = store.status().await;
    assert!(!status.healthy && status.text.contains("1/1 connected"), "{}", status.text);
    assert!(status.text.contains("another cluster's"), "{}", status.text);

    door.leads_to(&own).await;
    store.check().await.unwrap();
    session.put("mine/1", bytes("1")).await.unwrap();
    session.keep_alive().await.unwrap();
    assert_eq!(keys(&(store.clone() as Arc<dyn Store>), "").await, ["mine/0", "mine/1"]);
    assert_eq!(guard.refusal(), None);
    assert!(store.status().await.healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ended_while_nobody_used_it_fails_no_request_and_one_that_says_nothing_is_ours() {
    let server = EtcdServer::start();
    let (door, guard, etcd) = store(&server).await;
    let store: Arc<dyn Store> = etcd.clone();
    put(&store, "mine/0", "1").await;
    for n in 1..5 {
        door.leads_to(&server).await;
        put(&store, &format!("mine/{n}"), "1").await;
    }
    // What the store says is asked again when somebody wants it, over the connection that there is.
    put(&store, "cilium/cluster-config/c1", "no configuration").await;
    etcd.check().await.unwrap();
    assert!(guard.oddity().is_some_and(|odd| odd.contains("cilium/cluster-config/c1")));
    put(&store, "cilium/cluster-config/c1", &ClusterConfig::new(7, 255).to_json()).await;
    let error = etcd.check().await.unwrap_err().to_string();
    assert!(error.contains("another cluster's"), "{error}");
    assert!(store.update("mine/9", bytes("1"), None).await.is_err());
    server.etcdctl(&["put", "cilium/cluster-config/c1", &ours().to_json()]).unwrap();
    etcd.check().await.unwrap();
    put(&store, "mine/9", "1").await;
    assert_eq!((guard.oddity(), guard.refusal()), (None, None));
}
