//! Real etcds: three clusters, one of which dies, is wiped, compacted, restored.

use std::{sync::Arc, time::Duration};

use villus_kvstore::{Etcd, EtcdOptions, Store};
use villus_mesh::State;
use villus_testbed::EtcdServer;

use crate::world::{Content, Witness, World, address, content, eventually, patiently, put};

const ADDRESSES: usize = 2500;

fn store(server: &EtcdServer) -> Arc<dyn Store> {
    let mut options = EtcdOptions::new(vec![server.url()]);
    options.qps = 10_000;
    Arc::new(Etcd::new(options).unwrap())
}

/// What the agents of a cluster write; again after their store has lost it.
async fn fill(store: &Arc<dyn Store>, name: &str, id: u32) {
    put(store, &format!("cilium/state/nodes/v1/{name}/n1"), "node").await;
    put(store, &format!("cilium/state/identities/v1/id/{}", id << 16), "k8s:app=web;").await;
    let all: Vec<usize> = (0..ADDRESSES).collect();
    for some in all.chunks(100) {
        let mut txn = villus_kvstore::Txn::new();
        for n in some {
            let ip = format!("10.{id}.{}.{}", n / 250, n % 250);
            let key = format!("cilium/state/ip/v1/default/{ip}");
            txn = txn.then(villus_kvstore::Op::put(key, address(&ip, id << 16), None));
        }
        patiently(|| store.txn(txn.clone())).await;
    }
}

async fn of(world: &World, cluster: &str) -> Content {
    let mut all = content(&world.local, "cilium/cache/").await;
    all.retain(|key, _| key.contains(&format!("/{cluster}/")));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_clusters_one_fails_in_every_way_and_the_others_do_not_notice() {
    let (here, mut second, third) = (EtcdServer::start(), EtcdServer::start(), EtcdServer::start());
    let stores = vec![store(&second), store(&third)];
    let mut world = World::new(store(&here), &[("c2", 2), ("c3", 3)], stores).await;
    // They say when they are complete: that alone must be enough.
    world.settings.rewind_grace = Duration::from_millis(1);
    world.settings.election = true;
    fill(&world.remotes["c2"], "c2", 2).await;
    fill(&world.remotes["c3"], "c3", 3).await;
    let backup = tempfile::tempdir().unwrap();
    second.save(&backup.path().join("old"));
    world.says_when_complete("c2", 2).await;
    world.says_when_complete("c3", 3).await;
    world.start();
    world.ready("c2").await;
    world.ready("c3").await;
    let before = of(&world, "c2").await;
    assert_eq!((before.len(), of(&world, "c3").await.len()), (ADDRESSES + 2, ADDRESSES + 2));
    let witness = Witness::of(&world.local, "cilium/");

    // It dies. Its copies stay, the others go on.
    second.kill();
    world.all_are("c2", State::Stale).await;
    put(&world.remotes["c3"], "cilium/state/nodes/v1/c3/n2", "new").await;
    witness.catches_up("cilium/cache/nodes/v1/c3/n2").await;
    assert_eq!(of(&world, "c2").await, before);

    // It comes back; what happened meanwhile is compacted.
    second.resume();
    second.wait();
    second.etcdctl(&["del", "cilium/state/ip/v1/default/10.2.0.7"]).unwrap();
    let now = patiently(|| world.remotes["c2"].header()).await.revision;
    second.etcdctl(&["compact", &now.to_string()]).unwrap();
    let mut wanted = before.clone();
    wanted.remove("cilium/cache/ip/v1/c2/10.2.0.7");
    world.becomes("cilium/cache/ip/v1/c2/", &only(&wanted, "/ip/")).await;
    world.ready("c2").await;

    // It loses everything, and its agents write it again.
    second.kill();
    second.wipe();
    second.resume();
    second.wait();
    fill(&world.remotes["c2"], "c2", 2).await;
    world.says_when_complete("c2", 2).await;
    world.becomes("cilium/cache/ip/v1/c2/", &only(&before, "/ip/")).await;

    // It is restored from a backup of its first day; meanwhile the mesh is another process.
    second.kill();
    world.stop().await;
    second.restore(&backup.path().join("old"));
    second.resume();
    second.wait();
    world.start();
    fill(&world.remotes["c2"], "c2", 2).await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n2", "new").await;
    world.says_when_complete("c2", 2).await;
    witness.catches_up("cilium/cache/nodes/v1/c2/n2").await;
    world.ready("c2").await;
    eventually("nothing is held any more", || async {
        world.remote("c2").is_some_and(|remote| remote.prefixes.iter().all(|one| one.held_until.is_none()))
    })
    .await;
    let mut wanted = before;
    wanted.insert("cilium/cache/nodes/v1/c2/n2".to_owned(), "new".to_owned());
    assert_eq!(of(&world, "c2").await, wanted);
    let gone = witness.deleted();
    let copies: Vec<_> = gone.iter().filter(|key| key.starts_with("cilium/cache/")).collect();
    assert_eq!(copies, ["cilium/cache/ip/v1/c2/10.2.0.7"], "nothing else was ever missing");
    world.stop().await;
}

fn only(all: &Content, part: &str) -> Content {
    all.iter().filter(|(key, _)| key.contains(part)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_etcd_dies_and_loses_everything_and_is_filled_again() {
    let (mut here, second) = (EtcdServer::start(), EtcdServer::start());
    let mut world = World::new(store(&here), &[("c2", 2)], vec![store(&second)]).await;
    fill(&world.remotes["c2"], "c2", 2).await;
    world.start();
    world.ready("c2").await;
    here.kill();
    for n in 0..50 {
        put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n1", &format!("value {n}")).await;
    }
    here.resume();
    here.wait();
    eventually("the last counts", || async {
        of(&world, "c2").await.get("cilium/cache/nodes/v1/c2/n1").is_some_and(|value| value == "value 49")
    })
    .await;
    here.kill();
    here.wipe();
    here.resume();
    here.wait();
    eventually("it is filled again", || async { of(&world, "c2").await.len() == ADDRESSES + 2 }).await;
    world.stop().await;
}
