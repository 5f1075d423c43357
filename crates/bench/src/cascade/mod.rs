//! The cascade: an API server fails, then the store beside it, then everybody (reference `peers` 3.2), replayed with a thousand
//! agents' clients against real etcds. Time is compressed: what takes minutes there takes seconds here.
//!
//! Two clusters of 500 agents. The agents of the first restart because of their API server; while they list, their store dies,
//! and comes back. Each client is one of etcd as agents have it, with connections of its own. There are agents that restart when
//! something that they are coupled to fails, as the published ones did, and agents of Villus, whose lists, watches and waits are
//! those of [`Follow`](villus_kvstore::Follow); each with ClusterMesh and with KVStoreMesh, which is the real one.

mod agents;
mod draw;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use villus_kvstore::{Etcd, EtcdOptions, Pace, Store};
use villus_labels::MaxConnectedClusters;
use villus_mesh::{Kind, Layout, Mesh, Own, Settings, remotes::RemoteConfig};
use villus_table::{Backoff, Stop};
use villus_testbed::EtcdServer;

use crate::{
    mesh::{entries, on_tmpfs, store, write},
    report::Row,
};
use agents::{Agents, Manner};

/// Agents of each cluster.
const AGENTS: usize = 500;
const ADDRESSES: usize = 1000;
const IDENTITIES: usize = 60;
/// When the API server of the first cluster fails, when its store dies, when that is back, and when it is over: seconds.
const API_FAILS: u64 = 10;
const STORE_DIES: u64 = 15;
const STORE_BACK: u64 = 35;
const END: u64 = 55;
/// What a probe waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the clusters know each other, and how agents take failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Variant {
    cluster_mesh: bool,
    manner: Manner,
}

/// What was seen in each second.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Requests that the second cluster's store answered.
    requests: Vec<f64>,
    /// Agents of the second cluster that do not serve.
    down: Vec<f64>,
    /// How long one request took there, in milliseconds.
    probe: Vec<f64>,
}

// === impl Variant ===

impl Variant {
    const ALL: [Self; 4] = [
        Self { cluster_mesh: true, manner: Manner::Restarts },
        Self { cluster_mesh: false, manner: Manner::Restarts },
        Self { cluster_mesh: true, manner: Manner::Waits },
        Self { cluster_mesh: false, manner: Manner::Waits },
    ];

    fn name(self) -> String {
        let mesh = if self.cluster_mesh { "ClusterMesh" } else { "KVStoreMesh" };
        let manner = match self.manner {
            Manner::Restarts => "agents restart",
            Manner::Waits => "agents of Villus",
        };
        format!("{mesh}, {manner}")
    }
}

/// Runs it, and draws the picture.
pub fn run(svg: Option<&Path>) -> Result<Vec<Row>> {
    on_tmpfs()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut all = Vec::new();
    for variant in Variant::ALL {
        println!("{} …", variant.name());
        let seen = runtime.block_on(replay(variant)).with_context(|| variant.name())?;
        all.push((variant, seen));
    }
    if let Some(file) = svg {
        std::fs::write(file, draw::svg(&all)).with_context(|| file.display().to_string())?;
        println!("drawn into {}", file.display());
    }
    Ok(all.iter().flat_map(|(variant, seen)| rows(*variant, seen)).collect())
}

fn rows(variant: Variant, seen: &Seen) -> Vec<Row> {
    let name = variant.name();
    let calm = seen.requests[2..API_FAILS as usize].iter().sum::<f64>() / (API_FAILS - 2) as f64;
    let after = &seen.requests[API_FAILS as usize..];
    let worst = after.windows(3).map(|three| three.iter().sum::<f64>() / 3.0).fold(0.0, f64::max);
    let down = seen.down[API_FAILS as usize..].iter().copied().fold(0.0, f64::max);
    let probe = |seconds: &[f64]| seconds.iter().copied().fold(0.0, f64::max);
    let (before, during) = seen.probe.split_at(API_FAILS as usize);
    // Both clusters' clients share the machine: some that restart may miss two looks though their store is well.
    let (goal, most) = match variant {
        Variant { manner: Manner::Waits, .. } => ("nobody", 0),
        Variant { cluster_mesh: false, .. } => ("< 5 %", AGENTS / 20),
        Variant { cluster_mesh: true, .. } => ("reported", AGENTS),
    };
    let row = |case: String, ours: f64, baseline: f64, unit: &str, goal: &str, holds: bool| Row {
        case,
        ours,
        baseline,
        baseline_name: "before".to_owned(),
        ratio: ours / baseline.max(f64::MIN_POSITIVE),
        unit: unit.to_owned(),
        goal: goal.to_owned(),
        holds,
    };
    vec![
        row(format!("{name}: other cluster's store asked"), worst, calm, "1/s", "reported", true),
        row(
            format!("{name}: other cluster's agents down"),
            down,
            AGENTS as f64,
            "agents",
            goal,
            down <= most as f64,
        ),
        row(format!("{name}: a request there took"), probe(during), probe(before), "ms", "reported", true),
    ]
}

async fn replay(variant: Variant) -> Result<Seen> {
    let (mut first, second) = (EtcdServer::start(), EtcdServer::start());
    let urls = [first.url(), second.url()];
    for (n, server) in [&first, &second].into_iter().enumerate() {
        write(&store(server)?, entries(n, ADDRESSES, IDENTITIES)).await?;
    }
    let stop = Stop::new();
    let directory = tempfile::tempdir()?;
    let mut meshes = Vec::new();
    if !variant.cluster_mesh {
        for n in 0..2 {
            let (mesh, stop) = (mesh(directory.path(), n, &urls)?, stop.clone());
            meshes.push(tokio::spawn(async move { mesh.run(&stop).await }));
        }
    }
    let sources = |n: usize| match variant.cluster_mesh {
        true => vec![urls[n].clone(), urls[1 - n].clone()],
        false => vec![urls[n].clone()],
    };
    let clusters = [0, 1].map(|n| Agents::start(AGENTS, variant.manner, &sources(n)));
    clusters[0].all_serve().await?;
    clusters[1].all_serve().await?;
    let (mut asked, probe) = (second.requests().unwrap_or(0), client(&urls[1])?);
    let mut seen = Seen::default();
    let begin = Instant::now();
    for second_of in 0..END {
        match second_of {
            API_FAILS => clusters[0].lose_api_server(),
            STORE_DIES => first.kill(),
            STORE_BACK => first.resume(),
            _ => {}
        }
        let asked_at = Instant::now();
        // One that is not answered took as long as was waited.
        let _ = tokio::time::timeout(PATIENCE, probe.get("cilium/.heartbeat")).await;
        seen.probe.push(asked_at.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep_until((begin + Duration::from_secs(second_of + 1)).into()).await;
        let now = tokio::task::block_in_place(|| second.requests()).unwrap_or(0);
        seen.requests.push(now.saturating_sub(std::mem::replace(&mut asked, now)) as f64);
        seen.down.push((AGENTS - clusters[1].serving()) as f64);
    }
    stop.stop();
    drop(clusters);
    for mesh in meshes {
        // One that panicked would have been seen by what it did not copy.
        let _ = mesh.await;
    }
    Ok(seen)
}

fn client(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(Etcd::new(EtcdOptions::new(vec![url.to_owned()]))?))
}

/// The process that copies into cluster `n`.
fn mesh(directory: &Path, n: usize, urls: &[String; 2]) -> Result<Mesh> {
    let configs = directory.join(n.to_string());
    std::fs::create_dir_all(&configs)?;
    std::fs::write(configs.join(crate::mesh::name(1 - n)), format!("endpoints: ['{}']\n", urls[1 - n]))?;
    let backoff = Backoff::try_new(Duration::from_millis(100), Duration::from_secs(30), 0.5)?;
    let settings = Settings {
        own: Own { name: crate::mesh::name(n), id: n as u32 + 2, clusters: MaxConnectedClusters::C255 },
        directory: configs,
        layouts: vec![Layout::Cache],
        kinds: Kind::ALL.to_vec(),
        lease_ttl: Duration::ZERO,
        cache_ttl: Duration::ZERO,
        grace: Duration::from_secs(180),
        rewind_grace: Duration::from_secs(900),
        election: true,
        scan: Duration::from_secs(1),
        compare: Duration::ZERO,
        pace: Pace::from(backoff),
    };
    let connect = |_: &str, config: &RemoteConfig| -> Result<Arc<dyn Store>, String> {
        Ok(Arc::new(Etcd::new(config.etcd.clone()).map_err(|error| error.to_string())?))
    };
    Ok(Mesh::new(settings, client(&urls[n])?, Arc::new(connect)))
}
