//! What a dry run says is what is then copied, and it writes nothing.

use crate::world::{World, address, content, put};

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_what_is_copied_then() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2), ("c3", 2)]).await;
    world.configure("c2", "labels: ['k8s:app=web']\nidentities-in-use: true\n");
    let remote = world.remotes["c2"].clone();
    for (id, labels) in
        [(131_073, "k8s:app=web;"), (131_074, "k8s:app=db;"), (131_075, "k8s:app=web;x8s:a=b;")]
    {
        put(&remote, &format!("cilium/state/identities/v1/id/{id}"), labels).await;
    }
    for (ip, id) in [("10.2.0.1", 131_073), ("10.2.0.2", 131_074)] {
        put(&remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(ip, id)).await;
    }
    put(&remote, "cilium/state/nodes/v1/c2/n1", "node").await;
    let previews = world.mesh().preview().await.unwrap();
    assert!(content(&world.local, "").await.is_empty(), "nothing is written");
    let passes: Vec<(String, u64)> = previews[0]
        .kinds
        .iter()
        .map(|one| (one.target.clone(), one.passes))
        .filter(|(_, n)| *n > 0)
        .collect();
    assert!(previews[1].problem.as_ref().unwrap().contains("which cluster c2 has too"));
    world.unconfigure("c3");
    world.start();
    world.ready("c2").await;
    // Identities come when all addresses were seen.
    for (target, count) in passes {
        crate::world::eventually("as it was said", || async {
            content(&world.local, &target).await.len() as u64 == count
        })
        .await;
    }
    assert_eq!(content(&world.local, "cilium/cache/").await.len(), 3);
    world.stop().await;
}
