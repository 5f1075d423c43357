//! What is copied, where it lies, and what is refused.

use villus_labels::MaxConnectedClusters;

use crate::world::{World, address, content, eventually, put, text};

const NODE: &str = r#"{"Name":"n1","Cluster":"c2"}"#;

#[tokio::test]
async fn golden_keys_and_values_in_the_cache() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    for (key, value) in [
        ("cilium/state/nodes/v1/c2/n1", NODE),
        ("cilium/state/nodes/v1/c3/n1", "another cluster's"),
        ("cilium/state/services/v1/c2/shop/web", r#"{"cluster":"c2"}"#),
        ("cilium/state/identities/v1/id/131080", "k8s:app=web;"),
        ("cilium/state/identities/v1/id/70000", "k8s:app=ours;"),
        ("cilium/state/identities/v1/value/k8s:app=web;/10.9.0.1", "131080"),
        ("cilium/state/ip/v1/default/10.2.0.1", &address("10.2.0.1", 131_080)),
        ("cilium/state/ip/v1/c2/10.2.0.2", &address("10.2.0.2", 131_080)),
        ("cilium/state/ip/v1/default/10.2.0.0/16", &address("10.2.0.0", 131_080)),
    ] {
        put(&remote, key, value).await;
    }
    world.start();
    world.ready("c2").await;
    let wanted = text(&[
        ("cilium/cache/identities/v1/c2/id/131080", "k8s:app=web;"),
        ("cilium/cache/ip/v1/c2/10.2.0.0/16", &address("10.2.0.0", 131_080)),
        ("cilium/cache/ip/v1/c2/10.2.0.1", &address("10.2.0.1", 131_080)),
        ("cilium/cache/ip/v1/c2/10.2.0.2", &address("10.2.0.2", 131_080)),
        ("cilium/cache/nodes/v1/c2/n1", NODE),
        ("cilium/cache/services/v1/c2/shop/web", r#"{"cluster":"c2"}"#),
    ]);
    assert_eq!(content(&world.local, "cilium/cache/").await, wanted);
    let config = content(&world.local, "cilium/cluster-config/").await;
    assert_eq!(
        config["cilium/cluster-config/c2"],
        r#"{"capabilities":{"cached":true,"syncedCanaries":true},"id":2}"#
    );
    // Canaries follow the entries; they say when.
    eventually("canaries", || async {
        let canaries = content(&world.local, "cilium/synced/").await;
        let keys: Vec<_> = canaries.keys().map(String::as_str).collect();
        keys == [
            "cilium/synced/c2/cilium/cache/identities/v1",
            "cilium/synced/c2/cilium/cache/ip/v1",
            "cilium/synced/c2/cilium/cache/nodes/v1",
            "cilium/synced/c2/cilium/cache/services/v1",
        ] && canaries.values().all(|value| value.parse::<jiff::Timestamp>().is_ok())
    })
    .await;
    assert!(content(&world.local, "cilium/state/").await.is_empty());
    let remote = world.remote("c2").unwrap();
    assert_eq!((remote.num_nodes, remote.num_identities, remote.num_endpoints), (1, 1, 3));
    // Live.
    let store = world.remotes["c2"].clone();
    put(&store, "cilium/state/ip/v1/default/10.2.0.1", &address("10.2.0.1", 131_081)).await;
    store.delete("cilium/state/nodes/v1/c2/n1").await.unwrap();
    let mut wanted = wanted;
    wanted.insert("cilium/cache/ip/v1/c2/10.2.0.1".to_owned(), address("10.2.0.1", 131_081));
    wanted.remove("cilium/cache/nodes/v1/c2/n1");
    world.becomes("cilium/cache/", &wanted).await;
    world.stop().await;
    assert_eq!(content(&world.local, "cilium/cache/").await, wanted, "the process is gone, copies stay");
}

#[tokio::test]
async fn golden_keys_and_values_in_the_state() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.settings.layouts = vec![villus_mesh::Layout::State];
    let remote = world.remotes["c2"].clone();
    for (key, value) in [
        ("cilium/state/nodes/v1/c2/n1", NODE),
        ("cilium/state/identities/v1/id/131080", "k8s:app=web;"),
        ("cilium/state/identities/v1/id/70000", "k8s:app=theirs;"),
        ("cilium/state/identities/v1/value/k8s:app=web;/10.9.0.1", "131080"),
        ("cilium/state/identities/v1/value/k8s:app=x;/10.9.0.1", "70000"),
        ("cilium/state/ip/v1/default/10.2.0.1", &address("10.2.0.1", 131_080)),
        // It says that it has an identity of ours.
        ("cilium/state/ip/v1/default/10.2.0.66", &address("10.2.0.66", 70_000)),
    ] {
        put(&remote, key, value).await;
    }
    let own = [
        ("cilium/state/nodes/v1/c1/n1", "our node"),
        ("cilium/state/identities/v1/id/70001", "k8s:app=ours;"),
        ("cilium/state/identities/v1/value/k8s:app=ours;/10.8.0.1", "70001"),
        ("cilium/state/ip/v1/default/10.1.0.1", "our address"),
        // Copies of a third cluster, by somebody else.
        ("cilium/state/identities/v1/id/200000", "k8s:app=third;"),
    ];
    for (key, value) in own {
        put(&world.local, key, value).await;
    }
    world.start();
    world.ready("c2").await;
    let mut wanted = text(&own);
    wanted.extend(text(&[
        ("cilium/state/nodes/v1/c2/n1", NODE),
        ("cilium/state/identities/v1/id/131080", "k8s:app=web;"),
        ("cilium/state/identities/v1/value/k8s:app=web;/10.9.0.1", "131080"),
        ("cilium/state/ip/v1/c2/10.2.0.1", &address("10.2.0.1", 131_080)),
    ]));
    assert_eq!(content(&world.local, "cilium/state/").await, wanted);
    let config = content(&world.local, "cilium/cluster-config/c2").await;
    assert_eq!(config["cilium/cluster-config/c2"], r#"{"capabilities":{"syncedCanaries":true},"id":2}"#);
    // When the configuration goes, only copies go, and only after the grace period.
    world.unconfigure("c2");
    world.becomes("cilium/state/", &text(&own)).await;
    eventually("nothing of it is left", || async {
        content(&world.local, "cilium/").await.keys().all(|key| key.starts_with("cilium/state/"))
    })
    .await;
    eventually("nor in the status", || async { world.remote("c2").is_none() }).await;
    world.stop().await;
}

#[tokio::test]
async fn a_remote_that_is_itself_a_copy_is_copied() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    let config = r#"{"id":2,"capabilities":{"cached":true,"syncedCanaries":true}}"#;
    put(&remote, "cilium/cluster-config/c2", config).await;
    let all = text(&[
        ("cilium/cache/identities/v1/c2/id/131080", "k8s:app=web;"),
        ("cilium/cache/ip/v1/c2/10.2.0.1", &address("10.2.0.1", 131_080)),
        ("cilium/cache/nodes/v1/c2/n1", NODE),
    ]);
    for (key, value) in &all {
        put(&remote, key, value).await;
    }
    put(&remote, "cilium/cache/nodes/v1/c3/n1", "a third cluster's").await;
    world.start();
    // It is not complete before it says so.
    eventually("it is waited for", || async {
        let problems = world.remote("c2").map(|remote| remote.prefixes).unwrap_or_default();
        problems.len() == 4
            && problems.iter().all(|one| one.problem.as_ref().is_some_and(|p| p.contains("synced/c2")))
    })
    .await;
    assert!(content(&world.local, "cilium/cache/").await.is_empty());
    for kind in ["nodes", "services", "identities", "ip"] {
        put(&remote, &format!("cilium/synced/c2/cilium/cache/{kind}/v1"), "2026-01-01T00:00:00Z").await;
    }
    world.ready("c2").await;
    assert_eq!(content(&world.local, "cilium/cache/").await, all);
    world.stop().await;
}

#[tokio::test]
async fn among_511_clusters_identities_begin_elsewhere_and_ids_go_on_beyond_255() {
    let (mut world, _, _) = World::in_memory(&[("c300", 300), ("c2", 2)]).await;
    world.settings.own.clusters = MaxConnectedClusters::C511;
    let (first, last) = (300 << 15, (301 << 15) - 1);
    let remote = world.remotes["c300"].clone();
    let config = r#"{"id":300,"capabilities":{"maxConnectedClusters":511}}"#;
    put(&remote, "cilium/cluster-config/c300", config).await;
    for id in [first - 1, first, last, last + 1, 300 << 16] {
        put(&remote, &format!("cilium/state/identities/v1/id/{id}"), "k8s:app=web;").await;
    }
    put(&remote, "cilium/state/ip/v1/default/10.2.0.1", &address("10.2.0.1", first)).await;
    world.start();
    world.ready("c300").await;
    let key = |id: u32| format!("cilium/cache/identities/v1/c300/id/{id}");
    let wanted = text(&[(&key(first), "k8s:app=web;"), (&key(last), "k8s:app=web;")]);
    assert_eq!(content(&world.local, "cilium/cache/identities/").await, wanted);
    let wanted = text(&[("cilium/cache/ip/v1/c300/10.2.0.1", &address("10.2.0.1", first))]);
    assert_eq!(content(&world.local, "cilium/cache/ip/").await, wanted);
    // Who says nothing is one of 255: its numbers lie elsewhere.
    eventually("the other is refused", || async {
        world.remote("c2").and_then(|remote| remote.refused).is_some_and(|why| why.contains("set up for 255"))
    })
    .await;
    assert!(content(&world.local, "cilium/cache/nodes/v1/c2").await.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn remotes_that_cannot_be_are_refused_by_name() {
    let (mut world, _, _) =
        World::in_memory(&[("c2", 2), ("c3", 2), ("c4", 1), ("c5", 5), ("c6", 6), ("c7", 7)]).await;
    // The file of c5 leads to a cluster of another name, that of c6 to our own store, that of c7 to one set up otherwise.
    world.remotes["c5"].delete("cilium/cluster-config/c5").await.unwrap();
    put(&world.remotes["c5"], "cilium/cluster-config/other", "{}").await;
    let local = world.local.clone();
    world.remotes.insert("c6".to_owned(), local);
    put(
        &world.remotes["c7"],
        "cilium/cluster-config/c7",
        r#"{"id":7,"capabilities":{"maxConnectedClusters":511}}"#,
    )
    .await;
    std::fs::write(world.directory.path().join("c8"), "endpoints: [nonsense]\n").unwrap();
    world.start();
    let says = |name: &'static str, part: &'static str| {
        let world = &world;
        async move {
            eventually(&format!("{name}: {part}"), || async {
                world.remote(name).is_some_and(|remote| {
                    let said = [remote.refused, remote.file, Some(remote.status)];
                    said.into_iter().flatten().any(|text| text.contains(part))
                })
            })
            .await;
        }
    };
    says("c4", "this cluster's own").await;
    says("c5", "there are configurations of other").await;
    says("c6", "own store").await;
    says("c7", "set up for 511").await;
    says("c8", "nonsense").await;
    // Of two with one id one is copied.
    eventually("one of two", || async {
        let refused = |name| {
            world.remote(name).and_then(|remote| remote.refused).is_some_and(|why| why.contains("too"))
        };
        let ready = |name| world.remote(name).is_some_and(|remote| remote.ready);
        (refused("c2") && ready("c3")) || (refused("c3") && ready("c2"))
    })
    .await;
    // When it goes, the other has the id.
    let (first, second) = if world.remote("c2").unwrap().ready { ("c2", "c3") } else { ("c3", "c2") };
    world.unconfigure(first);
    world.ready(second).await;
    world.stop().await;
}

#[tokio::test]
async fn a_cluster_that_says_nothing_is_given_an_id() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    remote.delete("cilium/cluster-config/c2").await.unwrap();
    put(&remote, "cilium/state/nodes/v1/c2/n1", NODE).await;
    world.start();
    eventually("the way out is named", || async {
        world.remote("c2").is_some_and(|remote| remote.status.contains("cluster-id"))
    })
    .await;
    world.configure("c2", "cluster-id: 2\n");
    world.ready("c2").await;
    assert_eq!(content(&world.local, "cilium/cache/").await.len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn large_values_pass_and_what_the_store_does_not_take_is_named() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    let large = "x".repeat(1 << 20);
    for n in 0..5 {
        put(&remote, &format!("cilium/state/nodes/v1/c2/n{n}"), &large).await;
    }
    world.start();
    world.ready("c2").await;
    let copies = content(&world.local, "cilium/cache/nodes/").await;
    assert!(copies.len() == 5 && copies.values().all(|value| *value == large));
    world.stop().await;
}
