//! What a filter leaves out, and that it follows changes on either side.

use crate::world::{Witness, World, address, content, eventually, put};

const WEB: &str = "k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;";
const DB: &str = "k8s:app=db;k8s:io.kubernetes.pod.namespace=shop;";

async fn identities(world: &World) -> Vec<String> {
    let all = content(&world.local, "cilium/cache/identities/v1/c2/id/").await;
    all.keys().map(|key| key.rsplit('/').next().unwrap().to_owned()).collect()
}

async fn addresses(world: &World) -> Vec<String> {
    let all = content(&world.local, "cilium/cache/ip/v1/c2/").await;
    all.keys().map(|key| key.rsplit('/').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn addresses_follow_their_identities_whichever_comes_first() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.configure("c2", "labels: ['k8s:app=web']\n");
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/identities/v1/id/131073", WEB).await;
    put(&remote, "cilium/state/identities/v1/id/131074", DB).await;
    for (ip, id) in [("10.2.0.1", 131_073), ("10.2.0.2", 131_074), ("10.2.0.3", 131_075)] {
        put(&remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(ip, id)).await;
    }
    world.start();
    world.ready("c2").await;
    assert_eq!(
        (identities(&world).await, addresses(&world).await),
        (vec!["131073".into()], vec!["10.2.0.1".to_owned()])
    );
    let dropped = |name: &str| {
        let prefixes = world.remote("c2").unwrap().prefixes;
        prefixes
            .iter()
            .flat_map(|one| one.dropped.clone())
            .filter(|(why, _)| why.name() == name)
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    assert_eq!((dropped("labels"), dropped("identity-unknown")), (2, 1));
    // The identity of an address that waits; then one that changes its labels.
    put(&remote, "cilium/state/identities/v1/id/131075", WEB).await;
    eventually("it is let through", || async { addresses(&world).await == ["10.2.0.1", "10.2.0.3"] }).await;
    put(&remote, "cilium/state/identities/v1/id/131073", DB).await;
    eventually("it is taken back", || async {
        addresses(&world).await == ["10.2.0.3"] && identities(&world).await == ["131075"]
    })
    .await;
    // Other rules take effect without a restart.
    world.configure("c2", "cidrs: ['10.2.0.2/32']\n");
    eventually("other rules", || async {
        addresses(&world).await == ["10.2.0.2"] && identities(&world).await.len() == 3
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn only_identities_in_use_are_copied_and_those_in_use_never_flicker() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.configure("c2", "identities-in-use: true\nnamespaces: [shop]\n");
    let remote = world.remotes["c2"].clone();
    for id in 131_073..131_083 {
        put(&remote, &format!("cilium/state/identities/v1/id/{id}"), WEB).await;
    }
    let other = "k8s:app=web;k8s:io.kubernetes.pod.namespace=other;";
    put(&remote, "cilium/state/identities/v1/id/131090", other).await;
    for (ip, id) in
        [("10.2.0.1", 131_073), ("10.2.0.2", 131_073), ("10.2.0.3", 131_074), ("10.2.0.4", 131_090)]
    {
        put(&remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(ip, id)).await;
    }
    world.start();
    eventually("those in use", || async { identities(&world).await == ["131073", "131074"] }).await;
    eventually("and the addresses", || async { addresses(&world).await.len() == 3 }).await;
    let witness = Witness::of(&world.local, "cilium/cache/identities/");
    // Another process, another list: nothing goes and comes back.
    world.ready("c2").await;
    world.stop().await;
    world.start();
    world.ready("c2").await;
    remote.delete("cilium/state/ip/v1/default/10.2.0.1").await.unwrap();
    put(&remote, "cilium/state/ip/v1/default/10.2.0.5", &address("10.2.0.5", 131_075)).await;
    eventually("one more", || async { identities(&world).await == ["131073", "131074", "131075"] }).await;
    assert!(witness.deleted().is_empty(), "{:?}", witness.deleted());
    remote.delete("cilium/state/ip/v1/default/10.2.0.2").await.unwrap();
    eventually("one less", || async { identities(&world).await == ["131074", "131075"] }).await;
    world.stop().await;
}
