//! Stores that go away, come back, come back different; and the process itself.

use std::time::Duration;

use villus_kvstore::{Fault, Verb};
use villus_mesh::State;

use crate::world::{Content, Witness, World, address, content, eventually, put, text};

async fn fill(world: &World, name: &str, id: u32) {
    let remote = &world.remotes[name];
    put(remote, &format!("cilium/state/nodes/v1/{name}/n1"), "node").await;
    put(remote, &format!("cilium/state/identities/v1/id/{}", (id << 16) + 1), "k8s:app=web;").await;
    for n in 1..=20 {
        let ip = format!("10.{id}.0.{n}");
        put(remote, &format!("cilium/state/ip/v1/default/{ip}"), &address(&ip, (id << 16) + 1)).await;
    }
}

async fn copies(world: &World) -> Content {
    content(&world.local, "cilium/cache/").await
}

#[tokio::test]
async fn a_remote_that_is_away_keeps_its_last_state_and_is_called_stale() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2), ("c3", 3)]).await;
    fill(&world, "c2", 2).await;
    fill(&world, "c3", 3).await;
    world.start();
    world.ready("c2").await;
    world.ready("c3").await;
    let witness = Witness::of(&world.local, "cilium/");
    let before = copies(&world).await;
    memories[0].go_down();
    world.all_are("c2", State::Stale).await;
    assert_eq!(copies(&world).await, before);
    assert!(world.remote("c2").unwrap().num_failures > 0);
    // The others go on.
    put(&world.remotes["c3"], "cilium/state/nodes/v1/c3/n2", "new").await;
    eventually("c3 goes on", || async { copies(&world).await.contains_key("cilium/cache/nodes/v1/c3/n2") })
        .await;
    // The store notes how it is, for whoever comes next.
    eventually("the note", || async {
        content(&world.local, "cilium/.kvstoremesh/c2").await.values().any(|note| note.contains("stale"))
    })
    .await;
    memories[0].heal();
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n2", "new").await;
    world.ready("c2").await;
    eventually("changes come", || async { copies(&world).await.contains_key("cilium/cache/nodes/v1/c2/n2") })
        .await;
    witness.catches_up("cilium/cache/nodes/v1/c2/n2").await;
    assert!(witness.deleted().is_empty(), "{:?}", witness.deleted());
    // Nothing was written again either.
    assert!(before.keys().all(|key| witness.written(key) == 1));
    world.stop().await;
}

#[tokio::test]
async fn compaction_makes_up_the_difference_and_nothing_else() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2)]).await;
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let witness = Witness::of(&world.local, "cilium/cache/");
    memories[0].inject(Verb::Watch, Fault::Refused, 50);
    memories[0].interrupt();
    let remote = &world.remotes["c2"];
    remote.delete("cilium/state/ip/v1/default/10.2.0.1").await.unwrap();
    put(remote, "cilium/state/nodes/v1/c2/n2", "new").await;
    memories[0].compact().await.unwrap();
    memories[0].heal();
    eventually("the difference", || async {
        let now = copies(&world).await;
        now.contains_key("cilium/cache/nodes/v1/c2/n2") && !now.contains_key("cilium/cache/ip/v1/c2/10.2.0.1")
    })
    .await;
    put(remote, "cilium/state/nodes/v1/c2/last", "x").await;
    witness.catches_up("cilium/cache/nodes/v1/c2/last").await;
    assert_eq!(witness.deleted().into_iter().collect::<Vec<_>>(), ["cilium/cache/ip/v1/c2/10.2.0.1"]);
    assert_eq!(witness.written("cilium/cache/ip/v1/c2/10.2.0.2"), 1);
    world.stop().await;
}

#[tokio::test]
async fn what_a_wiped_remote_lacks_waits_for_it_to_be_filled_again() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2)]).await;
    // However short the time is: as long as the remote does not say that it is complete, nothing goes.
    world.settings.rewind_grace = Duration::from_millis(1);
    fill(&world, "c2", 2).await;
    world.says_when_complete("c2", 2).await;
    world.start();
    world.ready("c2").await;
    let witness = Witness::of(&world.local, "cilium/");
    let before = copies(&world).await;
    memories[0].wipe().await.unwrap();
    eventually("it is noticed", || async {
        world.remote("c2").is_some_and(|remote| remote.prefixes.iter().map(|one| one.held).sum::<u64>() == 22)
    })
    .await;
    assert_eq!(copies(&world).await, before);
    // Its agents write again what is theirs, but for one address.
    fill(&world, "c2", 2).await;
    world.remotes["c2"].delete("cilium/state/ip/v1/default/10.2.0.7").await.unwrap();
    world.says_when_complete("c2", 2).await;
    let mut wanted = before;
    wanted.remove("cilium/cache/ip/v1/c2/10.2.0.7");
    world.becomes("cilium/cache/", &wanted).await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/last", "x").await;
    witness.catches_up("cilium/cache/nodes/v1/c2/last").await;
    assert_eq!(witness.deleted().into_iter().collect::<Vec<_>>(), ["cilium/cache/ip/v1/c2/10.2.0.7"]);
    world.stop().await;
}

#[tokio::test]
async fn a_remote_that_was_restored_while_no_mesh_ran_is_told_from_one_where_things_were_deleted() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2)]).await;
    world.settings.rewind_grace = Duration::from_secs(3600);
    let backup = memories[0].backup();
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let before = copies(&world).await;
    eventually("the note", || async {
        content(&world.local, "cilium/.kvstoremesh/c2")
            .await
            .values()
            .all(|note| serde_json::from_str::<villus_mesh::Record>(note).unwrap().last().is_some())
    })
    .await;
    world.stop().await;
    memories[0].restore(&backup).await.unwrap();
    world.start();
    eventually("it is noticed", || async {
        world.remote("c2").is_some_and(|remote| remote.prefixes.iter().map(|one| one.held).sum::<u64>() == 22)
    })
    .await;
    assert_eq!(copies(&world).await, before);
    // A process that is started again meanwhile waits for the rest of the time.
    eventually("the note", || async {
        content(&world.local, "cilium/.kvstoremesh/c2").await.values().all(|note| note.contains("held-until"))
    })
    .await;
    world.stop().await;
    world.start();
    world.ready("c2").await;
    assert_eq!(copies(&world).await, before);
    world.stop().await;
}

#[tokio::test]
async fn another_id_takes_the_identities_of_the_former_one_along() {
    for layout in [villus_mesh::Layout::Cache, villus_mesh::Layout::State] {
        let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
        world.settings.layouts = vec![layout];
        fill(&world, "c2", 2).await;
        world.start();
        world.ready("c2").await;
        let remote = world.remotes["c2"].clone();
        put(&remote, "cilium/state/identities/v1/id/262145", "k8s:app=web;").await;
        put(&remote, "cilium/cluster-config/c2", r#"{"id":4}"#).await;
        world.stop().await;
        // At once, rather than with the next look.
        world.start();
        eventually("the new range alone", || async {
            let all = content(&world.local, &format!("cilium/{layout}/identities/")).await;
            all.len() == 1 && all.keys().all(|key| key.ends_with("/262145"))
        })
        .await;
        world.stop().await;
    }
}

#[tokio::test]
async fn while_the_local_store_is_away_the_latest_of_each_key_waits() {
    let (mut world, local, _) = World::in_memory(&[("c2", 2)]).await;
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    local.go_down();
    let remote = world.remotes["c2"].clone();
    for n in 0..3000 {
        put(&remote, "cilium/state/nodes/v1/c2/n1", &format!("value {n}")).await;
    }
    remote.delete("cilium/state/ip/v1/default/10.2.0.1").await.unwrap();
    eventually("they wait", || async {
        world.remote("c2").is_some_and(|remote| {
            let waiting = remote.prefixes.iter().map(|one| one.pending).sum::<u64>();
            waiting == 2 && remote.prefixes.iter().map(|one| one.received).sum::<u64>() >= 3001
        })
    })
    .await;
    local.heal();
    eventually("the last counts", || async {
        let now = copies(&world).await;
        now["cilium/cache/nodes/v1/c2/n1"] == "value 2999"
            && !now.contains_key("cilium/cache/ip/v1/c2/10.2.0.1")
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_local_store_that_was_wiped_is_filled_again() {
    let (mut world, local, _) = World::in_memory(&[("c2", 2)]).await;
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let before = copies(&world).await;
    local.wipe().await.unwrap();
    world.becomes("cilium/cache/", &before).await;
    world.stop().await;
}

#[tokio::test]
async fn a_configuration_that_comes_back_in_time_costs_nothing() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    world.settings.grace = Duration::from_secs(3600);
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let witness = Witness::of(&world.local, "cilium/");
    world.unconfigure("c2");
    world.all_are("c2", State::Removing).await;
    assert!(world.remote("c2").unwrap().removal_at.is_some());
    // Also when the process is another one by then.
    world.stop().await;
    world.start();
    eventually("it is still leaving", || async {
        world.remote("c2").is_some_and(|remote| remote.removal_at.is_some())
    })
    .await;
    world.configure("c2", "");
    world.ready("c2").await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/last", "x").await;
    witness.catches_up("cilium/cache/nodes/v1/c2/last").await;
    assert!(witness.deleted().is_empty(), "{:?}", witness.deleted());
    world.stop().await;
}

#[tokio::test]
async fn a_file_that_is_spoiled_changes_nothing() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let before = copies(&world).await;
    std::fs::write(world.directory.path().join("c2"), "endpoints: [").unwrap();
    eventually("it is named", || async {
        world
            .remote("c2")
            .is_some_and(|remote| remote.file.is_some_and(|why| why.contains("unclosed bracket")))
    })
    .await;
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n2", "new").await;
    eventually("it goes on", || async { copies(&world).await.len() == before.len() + 1 }).await;
    world.configure("c2", "");
    eventually("it is mended", || async { world.remote("c2").is_some_and(|remote| remote.file.is_none()) })
        .await;
    world.ready("c2").await;
    world.stop().await;
}

#[tokio::test]
async fn without_the_process_copies_stay_with_leases_too() {
    let (mut world, local, _) = World::in_memory(&[("c2", 2)]).await;
    world.settings.lease_ttl = Duration::from_secs(2 * 86_400);
    fill(&world, "c2", 2).await;
    world.start();
    world.ready("c2").await;
    let before = copies(&world).await;
    let entries = world.local.list_prefix("cilium/cache/").await.unwrap().entries;
    assert!(entries.iter().all(|entry| entry.lease.is_some()));
    world.stop().await;
    let witness = Witness::of(&world.local, "cilium/cache/");
    local.advance(Duration::from_secs(86_400)).await.unwrap();
    assert_eq!(copies(&world).await, before);
    // The next process keeps the same leases alive; nothing is written again.
    world.start();
    world.ready("c2").await;
    assert!(before.keys().all(|key| witness.written(key) <= 1) && witness.deleted().is_empty());
    // Leases that have ended are replaced, and so are the keys that went with them.
    local.advance(Duration::from_secs(30 * 86_400)).await.unwrap();
    put(&world.remotes["c2"], "cilium/state/nodes/v1/c2/n1", "other").await;
    let mut wanted = before.clone();
    wanted.insert("cilium/cache/nodes/v1/c2/n1".to_owned(), "other".to_owned());
    world.becomes("cilium/cache/", &wanted).await;
    // Without leases from now on.
    world.stop().await;
    world.settings.lease_ttl = Duration::ZERO;
    world.start();
    world.ready("c2").await;
    let entries = world.local.list_prefix("cilium/cache/").await.unwrap().entries;
    assert!(entries.len() == before.len() && entries.iter().all(|entry| entry.lease.is_none()));
    world.stop().await;
}

#[tokio::test]
async fn services_of_a_remote_that_is_away_for_too_long_go_if_that_is_wanted() {
    let (mut world, _, memories) = World::in_memory(&[("c2", 2)]).await;
    fill(&world, "c2", 2).await;
    put(&world.remotes["c2"], "cilium/state/services/v1/c2/shop/web", "service").await;
    world.configure("c2", "cache-ttl: 1s\n");
    world.start();
    world.ready("c2").await;
    let before = copies(&world).await;
    memories[0].go_down();
    let mut without = before.clone();
    without.remove("cilium/cache/services/v1/c2/shop/web");
    world.becomes("cilium/cache/", &without).await;
    memories[0].heal();
    world.becomes("cilium/cache/", &before).await;
    world.stop().await;
}

#[tokio::test]
async fn an_address_in_two_spaces_is_copied_once_and_the_other_is_found_when_one_goes() {
    let (mut world, _, _) = World::in_memory(&[("c2", 2)]).await;
    let remote = world.remotes["c2"].clone();
    put(&remote, "cilium/state/ip/v1/default/10.2.0.1", &address("10.2.0.1", 131_073)).await;
    put(&remote, "cilium/state/ip/v1/c2/10.2.0.1", &address("10.2.0.1", 131_074)).await;
    world.start();
    world.ready("c2").await;
    let copy = |id| text(&[("cilium/cache/ip/v1/c2/10.2.0.1", &address("10.2.0.1", id))]);
    world.becomes("cilium/cache/ip/", &copy(131_073)).await;
    let witness = Witness::of(&world.local, "cilium/cache/");
    remote.delete("cilium/state/ip/v1/default/10.2.0.1").await.unwrap();
    world.becomes("cilium/cache/ip/", &copy(131_074)).await;
    remote.delete("cilium/state/ip/v1/c2/10.2.0.1").await.unwrap();
    world.becomes("cilium/cache/ip/", &Content::new()).await;
    eventually("one deletion", || async { witness.deleted().len() == 1 }).await;
    assert_eq!(witness.written("cilium/cache/ip/v1/c2/10.2.0.1"), 2);
    world.stop().await;
}
