//! Two replicas, one of which copies.

use std::sync::Arc;

use villus_kvstore::Store;
use villus_table::Stop;

use crate::world::{PATIENCE, Witness, World, content, eventually, put};

#[tokio::test]
async fn of_two_replicas_one_copies_and_the_other_takes_over() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.settings.election = true;
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/nodes/v1/c2/n1", "node").await;
    world.start();
    world.ready("c2").await;
    let second = world.mesh();
    let (board, stop) = (second.board(), Stop::new());
    let said = stop.clone();
    let task = tokio::spawn(async move { second.run(&said).await });
    eventually("the second knows", || async {
        board.status().local.status.contains("another") || !board.status().leading
    })
    .await;
    assert!(world.status().leading && !board.status().leading);
    let witness = Witness::of(&world.local, "cilium/cache/");
    world.stop().await;
    eventually("it takes over", || async { board.status().leading }).await;
    put(&remote, "cilium/state/nodes/v1/c2/n2", "node").await;
    witness.catches_up("cilium/cache/nodes/v1/c2/n2").await;
    assert!(witness.deleted().is_empty() && witness.written("cilium/cache/nodes/v1/c2/n1") == 1);
    stop.stop();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_has_lost_the_lock_writes_nothing_more() {
    let (mut world, local, _) = World::in_memory(&[("c2", 2)]).await;
    world.settings.election = true;
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/nodes/v1/c2/n1", "node").await;
    world.start();
    world.ready("c2").await;
    // Somebody else has it, and this process has not noticed.
    let store: Arc<dyn Store> = Arc::new(local.clone());
    let held = content(&store, "cilium/kvstoremesh-lock/").await;
    // First the other's key, which waits behind: between the two nobody would have the lock.
    put(&store, "cilium/kvstoremesh-lock/0", "").await;
    assert_eq!(held.len(), 1, "{held:?}");
    for key in held.keys() {
        store.delete(key).await.unwrap();
    }
    put(&remote, "cilium/state/nodes/v1/c2/n2", "node").await;
    eventually("it has noticed", || async { !world.status().leading }).await;
    assert_eq!(content(&store, "cilium/cache/").await.len(), 1);
    store.delete("cilium/kvstoremesh-lock/0").await.unwrap();
    eventually("it leads again", || async { content(&store, "cilium/cache/").await.len() == 2 }).await;
    world.stop().await;
}
