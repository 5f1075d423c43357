//! Random changes on a remote with faults in between: in the end the copies are what the remote has, and at no moment is
//! an entry missing that the remote had all the time.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use villus_kvstore::{Fault, Memory, Store, Verb};
use villus_mesh::Layout;

use crate::world::{Content, Witness, World, address, content, eventually, put};

const STABLE: usize = 30;
const ROUNDS: usize = 250;

fn is_foreign(key: &str) -> bool {
    key.contains("/c3/") || key.contains("/id/700")
}

/// Where the copy of an entry lies.
fn copy_of(key: &str, layout: Layout) -> Option<String> {
    if is_foreign(key) {
        return None;
    }
    let rest = key.strip_prefix("cilium/state/")?;
    Some(match (layout, rest.split('/').next()?) {
        (Layout::Cache, "identities") => format!("cilium/cache/{}", rest.replace("/v1/id/", "/v1/c2/id/")),
        (_, "ip") => format!("cilium/{layout}/{}", rest.replace("/v1/default/", "/v1/c2/")),
        _ => format!("cilium/{layout}/{rest}"),
    })
}

fn stable() -> Content {
    let mut all = Content::new();
    for n in 0..STABLE {
        let ip = format!("10.2.200.{n}");
        all.insert(format!("cilium/state/ip/v1/default/{ip}"), address(&ip, 131_072 + n as u32));
        all.insert(format!("cilium/state/identities/v1/id/{}", 131_072 + n), format!("k8s:app=a{n};"));
        all.insert(format!("cilium/state/nodes/v1/c2/stable{n}"), "node".to_owned());
    }
    all
}

struct Chance(fastrand::Rng);

impl Chance {
    fn change(&mut self) -> (String, String) {
        let n = self.0.u32(0..12);
        let id = 135_000 + self.0.u32(0..12);
        let value = format!("v{}", self.0.u32(0..4));
        match self.0.u8(0..7) {
            0 => (format!("cilium/state/nodes/v1/c2/n{n}"), value),
            1 => (format!("cilium/state/services/v1/c2/shop/s{n}"), value),
            2 => (format!("cilium/state/identities/v1/id/{id}"), format!("k8s:app={value};")),
            // Not its own.
            3 => (format!("cilium/state/identities/v1/id/7000{n}"), value),
            4 => (format!("cilium/state/nodes/v1/c3/n{n}"), value),
            _ => {
                let ip = format!("10.2.0.{n}");
                (format!("cilium/state/ip/v1/default/{ip}"), address(&ip, id))
            }
        }
    }
}

/// A store that is restored or wiped is filled again by its agents.
async fn refill(world: &World, memory: &Memory, model: &Content) {
    // Injected faults are for the mesh.
    memory.heal();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    for key in content(&store, "cilium/state/").await.keys().filter(|key| !model.contains_key(*key)) {
        store.delete(key).await.unwrap();
    }
    for (key, value) in model {
        put(&store, key, value).await;
    }
    world.says_when_complete("c2", 2).await;
}

async fn run(seed: u64, layout: Layout) {
    let (mut world, local, memories) = World::in_memory(&[("c2", 2)]).await;
    world.settings.layouts = vec![layout];
    world.settings.grace = Duration::from_secs(3600);
    // The remote says when it is complete: that alone must be enough.
    world.settings.rewind_grace = Duration::from_millis(1);
    world.settings.election = seed % 2 == 1;
    let remote = world.remotes["c2"].clone();
    let memory = &memories[0];
    let mut model = stable();
    // A backup of its first day, before it had written anything.
    let backup = memory.backup();
    refill(&world, memory, &model).await;
    world.start();
    world.ready("c2").await;
    let witness = Witness::of(&world.local, "cilium/");
    let mut chance = Chance(fastrand::Rng::with_seed(seed));
    // A backup is old when it is put back: the store's revision is far below what it was.
    for n in 0..5000 {
        put(&remote, "elsewhere", &n.to_string()).await;
    }
    for _ in 0..ROUNDS {
        match chance.0.u8(0..40) {
            0 => memory.interrupt(),
            1 => memory.compact().await.unwrap(),
            2 => memory.inject(Verb::List, Fault::Refused, 2),
            3 => memory.inject(Verb::Watch, Fault::AnswerLost, 2),
            4 => local.inject(Verb::Txn, Fault::Refused, 3),
            5 => local.inject(Verb::Txn, Fault::AnswerLost, 2),
            6 => local.inject(Verb::List, Fault::Refused, 2),
            7 => {
                memory.go_down();
                tokio::time::sleep(Duration::from_millis(20)).await;
                memory.heal();
            }
            8 => {
                local.go_down();
                tokio::time::sleep(Duration::from_millis(20)).await;
                local.heal();
            }
            9 if chance.0.bool() => {
                world.stop().await;
                world.start();
            }
            10 if chance.0.u8(0..4) == 0 => {
                memory.wipe().await.unwrap();
                refill(&world, memory, &model).await;
            }
            11 if chance.0.u8(0..4) == 0 => {
                memory.restore(&backup).await.unwrap();
                refill(&world, memory, &model).await;
            }
            12 => {
                world.unconfigure("c2");
                tokio::time::sleep(Duration::from_millis(30)).await;
                world.configure("c2", "");
            }
            13..20 => tokio::time::sleep(Duration::from_millis(2)).await,
            n => {
                let (key, value) = chance.change();
                // Injected faults are for the mesh; the remote's own agents try again.
                while {
                    let done = if n < 28 {
                        model.remove(&key);
                        remote.delete(&key).await.map(drop)
                    } else {
                        model.insert(key.clone(), value.clone());
                        remote.update(&key, value.clone().into(), None).await.map(drop)
                    };
                    done.is_err()
                } {}
            }
        }
    }
    memory.heal();
    local.heal();
    let wanted: Content =
        model.iter().filter_map(|(key, value)| Some((copy_of(key, layout)?, value.clone()))).collect();
    world.becomes(&format!("cilium/{layout}/"), &wanted).await;
    put(&world.local, "cilium/end", "x").await;
    witness.catches_up("cilium/end").await;
    let kept: BTreeSet<String> = stable().keys().filter_map(|key| copy_of(key, layout)).collect();
    let lost: Vec<_> = witness.deleted().intersection(&kept).cloned().collect();
    assert!(lost.is_empty(), "seed {seed}, {layout}: deleted although it was always there: {lost:?}");
    eventually("the status says so", || async {
        world.remote("c2").is_some_and(|remote| remote.prefixes.iter().all(|one| one.pending == 0))
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_end_copies_are_what_the_remote_has_and_nothing_was_ever_missing() {
    let runs = (0..8).map(|seed| {
        let layout = if seed % 4 < 2 { Layout::Cache } else { Layout::State };
        tokio::spawn(run(seed, layout))
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}
