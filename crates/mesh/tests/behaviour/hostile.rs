//! Remotes that are wrong, slow or loud, and copies that somebody has touched: nobody else is harmed.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use villus_kvstore::{Etcd, EtcdOptions, Memory, Op, Store, Txn};
use villus_mesh::Layout;
use villus_testbed::{Authority, EtcdServer};

use crate::world::{World, address, content, eventually, put};

/// What may wait in one mirror, with what is on its way.
const MOST_WAITING: u64 = 8192 + 1000 + 400;

#[tokio::test]
async fn a_store_of_another_cluster_with_our_name_is_refused() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.remotes["c2"].delete("cilium/cluster-config/c2").await.unwrap();
    put(&world.remotes["c2"], "cilium/cluster-config/c1", r#"{"id":2}"#).await;
    world.start();
    eventually("it is named", || async {
        let refused = world.remote("c2").and_then(|remote| remote.refused).unwrap_or_default();
        refused.contains("called c1 too") && refused.contains("--cluster-name")
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_cluster_lets_nobody_in_and_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (theirs, others) = (Authority::new("ca of c3"), Authority::new("ca of c4"));
    theirs.write(&path.join("ca.crt"));
    others.write(&path.join("other.crt"));
    for name in ["server", "admin"] {
        theirs.issue(path, name);
    }
    let server = EtcdServer::secure(path);
    let config = path.join("c3.yaml");
    let text = |ca: &Path| {
        format!(
            "endpoints: ['{}']\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            server.url(),
            ca.display(),
            path.join("admin.crt").display(),
            path.join("admin.key").display()
        )
    };
    let open = |ca: &str| -> Arc<dyn Store> {
        fs::write(&config, text(&path.join(ca))).unwrap();
        Arc::new(Etcd::new(EtcdOptions::read_file(&config).unwrap()).unwrap())
    };
    let (mut world, _, _) = World::in_memory(&[("c2", 2), ("c3", 3)]).await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n1", "node").await;
    server.etcdctl(&["put", "cilium/cluster-config/c3", r#"{"id":3}"#]).unwrap();
    world.remotes.insert("c3".to_owned(), open("other.crt"));
    world.start();
    world.ready("c2").await;
    eventually("it is said what is wrong", || async {
        world
            .remote("c3")
            .is_some_and(|remote| !remote.connected && !remote.ready && remote.status.contains("certificate"))
    })
    .await;
    world.stop().await;
    world.remotes.insert("c3".to_owned(), open("ca.crt"));
    world.start();
    world.ready("c3").await;
    world.stop().await;
}

/// Takes connections and never says a word.
struct Silent {
    url: String,
    stop: Arc<AtomicBool>,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let said = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while !said.load(Ordering::Relaxed) {
                open.extend(listener.accept());
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { url, stop }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_is_slow_for_ever_holds_nobody_up_and_its_next_member_is_asked() {
    let (silent, sound) = (Silent::start(), EtcdServer::start());
    let open = |urls: Vec<String>| -> Arc<dyn Store> { Arc::new(Etcd::new(EtcdOptions::new(urls)).unwrap()) };
    let (mut world, _, _) = World::in_memory(&[("c2", 2), ("c3", 3), ("c4", 4)]).await;
    sound.etcdctl(&["put", "cilium/cluster-config/c4", r#"{"id":4}"#]).unwrap();
    world.remotes.insert("c3".to_owned(), open(vec![silent.url.clone()]));
    world.remotes.insert("c4".to_owned(), open(vec![silent.url.clone(), sound.url()]));
    world.start();
    world.ready("c2").await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n1", "node").await;
    eventually("c2 goes on", || async {
        !content(&world.local, "cilium/cache/nodes/v1/c2/").await.is_empty()
    })
    .await;
    world.ready("c4").await;
    eventually("it is said", || async {
        let remote = world.remote("c3");
        remote
            .is_some_and(|remote| !remote.ready && !remote.connected && remote.status != "not connected yet")
    })
    .await;
    world.stop().await;
}

/// Writes as fast as the store takes it until it is told to stop; says how many changes that were.
async fn flood(memory: Memory, stop: Arc<AtomicBool>) -> u64 {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut txn = Txn::new();
        for n in 0..100u64 {
            let ip = format!("10.3.{}.{n}", changes / 100 % 30);
            let key = format!("cilium/state/ip/v1/default/{ip}");
            txn = txn.then(Op::put(key, address(&ip, 196_608 + (changes % 1000) as u32), None));
        }
        memory.txn(txn).await.unwrap();
        changes += 100;
        // Fifty thousand in a second, where the machine can.
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_floods_holds_nobody_up_and_is_copied_to_the_end() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2), ("c3", 3)]).await;
    world.start();
    world.ready("c2").await;
    world.ready("c3").await;
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = tokio::spawn(flood(memories[1].clone(), Arc::clone(&stop)));
    let addresses = |world: &World| {
        let prefixes = world.remote("c3").unwrap().prefixes;
        let one = prefixes.iter().find(|one| one.kind == villus_mesh::Kind::Addresses).unwrap().clone();
        assert!(one.pending <= MOST_WAITING, "{} changes wait", one.pending);
        one
    };
    for n in 0..20 {
        let key = format!("cilium/state/nodes/v1/c2/n{n}");
        put(&world.remotes["c2"], &key, "node").await;
        let copy = key.replace("/state/", "/cache/");
        eventually("the other remote is copied meanwhile", || async {
            addresses(&world);
            world.local.get(&copy).await.unwrap().is_some()
        })
        .await;
    }
    eventually("the flood is heard", || async { addresses(&world).received > 50_000 }).await;
    stop.store(true, Ordering::Relaxed);
    let changes = flooding.await.unwrap();
    let wanted = content(&world.remotes["c3"], "cilium/state/ip/v1/default/").await;
    let wanted =
        wanted.into_iter().map(|(key, value)| (key.replace("state/ip/v1/default", "cache/ip/v1/c3"), value));
    world.becomes("cilium/cache/ip/v1/c3/", &wanted.collect()).await;
    let written = addresses(&world).written;
    assert!(written <= changes, "{written} writes for {changes} changes");
    world.stop().await;
}

async fn touched_copies_are_mended(layout: Layout) {
    let (mut world, _, _) = World::in_memory(&[("c2", 2), ("c3", 3)]).await;
    world.settings.layouts = vec![layout];
    world.settings.compare = Duration::from_millis(50);
    for (name, id) in [("c2", 131_072), ("c3", 196_608)] {
        let remote = world.remotes[name].clone();
        for n in 0..5 {
            put(&remote, &format!("cilium/state/nodes/v1/{name}/n{n}"), "node").await;
            put(&remote, &format!("cilium/state/identities/v1/id/{}", id + n), "k8s:app=web;").await;
        }
    }
    // This cluster's own lie beside them in one of the layouts.
    put(&world.local, "cilium/state/identities/v1/id/65540", "k8s:app=ours;").await;
    put(&world.local, "cilium/state/nodes/v1/c1/n1", "ours").await;
    world.start();
    world.ready("c2").await;
    world.ready("c3").await;
    let prefix = format!("cilium/{layout}/");
    let right = content(&world.local, &prefix).await;
    let ids = match layout {
        Layout::Cache => "cilium/cache/identities/v1/c2/id/",
        Layout::State => "cilium/state/identities/v1/id/",
    };
    world.local.delete(&format!("cilium/{layout}/nodes/v1/c2/n3")).await.unwrap();
    put(&world.local, &format!("cilium/{layout}/nodes/v1/c3/n4"), "touched").await;
    put(&world.local, &format!("cilium/{layout}/nodes/v1/c2/nobodys"), "junk").await;
    put(&world.local, &format!("{ids}131073"), "k8s:app=touched;").await;
    put(&world.local, &format!("{ids}131999"), "k8s:app=junk;").await;
    world.becomes(&prefix, &right).await;
    eventually("it is said", || async {
        let all = world.status().remotes.into_iter().flat_map(|remote| remote.prefixes);
        let (repaired, compared): (u64, bool) =
            all.fold((0, true), |(sum, every), one| (sum + one.repaired, every && one.compared.is_some()));
        repaired >= 5 && compared
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn copies_that_somebody_touched_are_mended_by_comparison_and_nothing_else_is() {
    touched_copies_are_mended(Layout::Cache).await;
    touched_copies_are_mended(Layout::State).await;
}
