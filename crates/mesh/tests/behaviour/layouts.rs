//! From one layout to the other and back, under changes.

use villus_kvstore::{Follow, Item};
use villus_mesh::Layout;

use crate::world::{World, address, content, eventually, put, quick};

/// At every revision of the local store each address is in one layout at least.
async fn never_in_neither(world: &World, addresses: usize) -> tokio::task::JoinHandle<usize> {
    let mut follow = Follow::start(world.local.clone(), "cilium/", quick());
    let mut there = std::collections::BTreeMap::<String, u32>::new();
    tokio::spawn(async move {
        let mut least = usize::MAX;
        while let Some(batch) = follow.next().await {
            for item in batch.items {
                let (key, by) = match &item {
                    Item::Put(entry) => (entry.key.to_string(), true),
                    Item::Delete { key, .. } => (key.to_string(), false),
                };
                if key == "cilium/end" {
                    return least;
                }
                let Some((_, ip)) = key.split_once("/ip/v1/c2/") else { continue };
                let bit = if key.starts_with("cilium/cache/") { 2 } else { 1 };
                let bits = there.entry(ip.to_owned()).or_default();
                *bits = if by { *bits | bit } else { *bits & !bit };
            }
            let now = there.values().filter(|bits| **bits != 0).count();
            if there.len() >= addresses {
                least = least.min(now);
            }
        }
        least
    })
}

#[tokio::test]
async fn layouts_change_and_no_key_is_ever_in_neither() {
    const ADDRESSES: usize = 150;
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/identities/v1/id/131073", "k8s:app=web;").await;
    put(&remote, "cilium/state/identities/v1/value/k8s:app=web;/10.9.0.1", "131073").await;
    for n in 0..ADDRESSES {
        let ip = format!("10.2.0.{n}");
        put(&remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(&ip, 131_073)).await;
    }
    world.settings.layouts = vec![Layout::State];
    world.start();
    world.ready("c2").await;
    let witness = never_in_neither(&world, ADDRESSES).await;
    for layout in [Layout::Cache, Layout::State, Layout::Cache] {
        world.stop().await;
        world.settings.layouts = vec![layout];
        world.start();
        // Values change meanwhile.
        for n in 0..ADDRESSES / 3 {
            let ip = format!("10.2.0.{n}");
            put(&remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(&ip, 131_073 + n as u32))
                .await;
        }
        eventually("the former layout is cleared away", || async {
            let former = content(&world.local, &format!("cilium/{}/", layout.other())).await;
            former.is_empty()
                && content(&world.local, &format!("cilium/{layout}/ip/")).await.len() == ADDRESSES
        })
        .await;
        let config = content(&world.local, "cilium/cluster-config/c2").await;
        let cached = config["cilium/cluster-config/c2"].contains("cached");
        assert_eq!(cached, layout == Layout::Cache);
        let canaries = content(&world.local, "cilium/synced/").await;
        assert!(canaries.keys().all(|key| key.contains(&format!("/cilium/{layout}/"))), "{canaries:?}");
    }
    put(&world.local, "cilium/end", "x").await;
    assert_eq!(witness.await.unwrap(), ADDRESSES);
    world.stop().await;
}

#[tokio::test]
async fn both_layouts_can_stand_beside_each_other() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/nodes/v1/c2/n1", "node").await;
    world.settings.layouts = vec![Layout::State, Layout::Cache];
    world.start();
    world.ready("c2").await;
    for layout in ["state", "cache"] {
        let nodes = content(&world.local, &format!("cilium/{layout}/nodes/v1/c2/")).await;
        assert_eq!(nodes.len(), 1, "{layout}");
    }
    world.stop().await;
}
