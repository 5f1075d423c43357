//! The shared store at the size of a large cluster: from etcd into the kernel maps of agents, and numbers of identities from it.
//!
//! One etcd of one member holds 300,000 addresses and 20,000 identities, as nodes write them; three agents share it, and one of
//! them starts again when it is dead.

mod agents;

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_identity::{Allocator, AllocatorConfig, Clusters, Reserved, new_identities};
use villus_kvstore::{Etcd, EtcdOptions, Event, IpIdentityPair, Op, Store, Txn, keys};
use villus_labels::{Labels, MaxConnectedClusters};
use villus_table::Backoff;
use villus_testbed::EtcdServer;

use crate::{apart::apart, report::Row};
use agents::Agent;

const ADDRESSES: u32 = 300_000;
const IDENTITIES: u32 = 20_000;
/// Writes in one transaction while the store is filled, and transactions under way at once.
const TOGETHER: u32 = 100;
const WRITERS: u32 = 16;
const ROUNDS: usize = 3;
const NODES: usize = 3;
const CHANGES: u32 = 500;
/// How long an agent is left alone before it is looked at what it holds.
const SETTLE: Duration = Duration::from_secs(20);
const ALLOCATIONS: usize = 4000;
const IN_FLIGHT: usize = 64;

/// Runs the benchmark in namespaces of its own.
pub fn run() -> Result<Vec<Row>> {
    apart()?;
    let root = tempfile::tempdir()?;
    // Namespaces with names are this run's own.
    let run = root.path().join("netns");
    std::fs::create_dir(&run)?;
    std::fs::create_dir_all("/run/netns")?;
    let bound = Command::new("mount").arg("--bind").arg(&run).arg("/run/netns").status()?;
    ensure!(bound.success(), "a place for namespaces");
    measure(root.path())
}

fn measure(root: &Path) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    agents::switch()?;
    let server = EtcdServer::cluster_at(agents::STORE, 1, &[]).pop().context("etcd")?;
    runtime.block_on(fill(&server))?;
    let mut rows = Vec::new();
    let alone = (0..ROUNDS).map(|_| etcdctl(&server)).collect::<Result<Vec<_>>>()?;
    let (mut nodes, mut filled) = (Vec::new(), Vec::new());
    for n in 0..NODES {
        let mut agent = Agent::start(root, n, &server.url())?;
        agent.serves()?;
        let sample: Vec<Ipv4Addr> = (0..ADDRESSES).step_by(997).map(host).collect();
        filled.push(agent.holds(&sample, ADDRESSES as usize)?);
        nodes.push(agent);
    }
    rows.push(at_most(
        "start of an agent to 300,000 addresses in the kernel's ipcache, 20,000 identities known",
        median(filled).as_secs_f64(),
        "s",
        (median(alone).as_secs_f64(), "etcdctl get --prefix"),
        8.0,
    ));
    std::thread::sleep(SETTLE);
    let held = nodes.iter().map(|agent| agent.resident("VmRSS:")).collect::<Result<Vec<_>>>()?;
    let most = nodes.iter().map(|agent| agent.resident("VmHWM:")).collect::<Result<Vec<_>>>()?;
    rows.push(at_most(
        "agent resident with all of them",
        largest(&held),
        "MB",
        (largest(&most), "its peak"),
        200.0,
    ));
    let (p50, p99) = runtime.block_on(changes(&server, &nodes))?;
    rows.push(at_most(
        "a change in the ipcaches of all three nodes after a plain watcher saw it, p99",
        p99,
        "ms",
        (p50, "p50"),
        20.0,
    ));
    let last = nodes.pop().context("an agent")?;
    drop(nodes);
    let (plain, allocated) = runtime.block_on(allocations(&server))?;
    rows.push(at_least(
        "identities allocated, 64 in flight",
        allocated,
        "1/s",
        (plain, "puts, 64 in flight"),
        500.0,
    ));
    drop(server);
    rows.extend(from_snapshot(root, last)?);
    Ok(rows)
}

/// After a boot while the store is dead: until the agent serves, and all that it knew before is in the kernel. Beside it one
/// that knew nothing.
fn from_snapshot(root: &Path, mut agent: Agent) -> Result<[Row; 2]> {
    let (mut full, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        agent.boot()?;
        let serving = agent.serves()?;
        let maps = agent.maps()?;
        for n in (0..ADDRESSES).step_by(997) {
            ensure!(Agent::look(&maps, host(n))?.is_some(), "it serves before {} is known", host(n));
        }
        ensure!(maps.ipcache.count()? >= ADDRESSES as usize, "it serves before all addresses are known");
        full.push(serving);
        peaks.push(agent.resident("VmHWM:")?);
    }
    drop(agent);
    let nobody = format!("http://{}:2379", agents::STORE);
    let mut empty = Agent::start(root, NODES, &nobody)?;
    let mut bare = vec![empty.serves()?];
    for _ in 1..ROUNDS {
        empty.boot()?;
        bare.push(empty.serves()?);
    }
    Ok([
        at_most(
            "boot without the store to serving, 300,000 addresses and 20,000 identities from the disk in the kernel",
            median(full).as_secs_f64(),
            "s",
            (median(bare).as_secs_f64(), "nothing in it"),
            1.0,
        ),
        at_most(
            "agent's peak at that start",
            largest(&peaks),
            "MB",
            (empty.resident("VmHWM:")?, "nothing in it"),
            220.0,
        ),
    ])
}

fn connect(server: &EtcdServer) -> Result<Arc<dyn Store>> {
    let mut options = EtcdOptions::new(vec![server.url()]);
    // What an operator allows is not what is measured.
    (options.qps, options.bootstrap_qps) = (1_000_000, 1_000_000);
    options.page = 2048;
    Ok(Arc::new(Etcd::new(options).map_err(|error| anyhow!("{error}"))?))
}

fn backoff() -> Result<Backoff> {
    Backoff::try_new(Duration::from_millis(10), Duration::from_secs(1), 0.5)
        .map_err(|error| anyhow!("{error}"))
}

fn labels(n: u32) -> String {
    format!(
        "k8s:app=app{n};k8s:io.cilium.k8s.policy.cluster=cluster1;k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=ns{};",
        n % 200
    )
}

/// The address with this number.
fn host(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

fn address(n: u32) -> (String, String) {
    address_of(n, identity(n))
}

fn identity(n: u32) -> u32 {
    256 + n % IDENTITIES
}

fn address_of(n: u32, identity: u32) -> (String, String) {
    let node = Ipv4Addr::from(0xac10_0000 + n / 30);
    let mut pair = IpIdentityPair::new(host(n).into(), identity, Some(node.into()));
    (pair.namespace, pair.pod) = (format!("ns{}", n % 200), format!("app{}-{n}", n % IDENTITIES));
    (pair.key("default"), pair.to_json())
}

async fn fill(server: &EtcdServer) -> Result<()> {
    let store = connect(server)?;
    let all = ADDRESSES + IDENTITIES;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.push(tokio::spawn(async move {
            for first in (writer * TOGETHER..all).step_by((WRITERS * TOGETHER) as usize) {
                let txn = (first..(first + TOGETHER).min(all)).fold(Txn::new(), |txn, n| {
                    let (key, value) = match n.checked_sub(ADDRESSES) {
                        None => address(n),
                        Some(n) => (format!("{}/{}", keys::IDENTITY_IDS, 256 + n), labels(n)),
                    };
                    txn.then(Op::put(key, value, None))
                });
                store.txn(txn).await?;
            }
            Ok::<_, villus_kvstore::StoreError>(())
        }));
    }
    for writer in writers {
        writer.await??;
    }
    Ok(())
}

/// The tool that comes with etcd, for the same keys.
fn etcdctl(server: &EtcdServer) -> Result<Duration> {
    let start = Instant::now();
    for prefix in [keys::IPS, keys::IDENTITY_IDS] {
        let status = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &server.url(), "--command-timeout=60s", "get", "--prefix", prefix])
            .stdout(Stdio::null())
            .status()
            .context("etcdctl")?;
        ensure!(status.success(), "etcdctl failed");
    }
    Ok(start.elapsed())
}

/// From the moment in which a plain watcher has a change until the kernel maps of all nodes have it, in milliseconds: the
/// median and the 99th of a hundred. One change at a time.
async fn changes(server: &EtcdServer, nodes: &[Agent]) -> Result<(f64, f64)> {
    let store = connect(server)?;
    let maps = nodes.iter().map(Agent::maps).collect::<Result<Vec<_>>>()?;
    let from = store.header().await?.revision + 1;
    let mut watch = store.watch(&format!("{}/", keys::IPS), from).await?;
    let seen: Arc<Mutex<Option<(String, Instant)>>> = Arc::default();
    let last = Arc::clone(&seen);
    let watcher = tokio::spawn(async move {
        while let Ok(batch) = watch.next().await {
            let now = Instant::now();
            if let Some(Event::Put(entry)) = batch.events.last() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((entry.key.to_string(), now));
            }
        }
    });
    let mut times = Vec::new();
    for n in 0..CHANGES {
        let number = n * 599;
        let other = 256 + (identity(number) - 256 + 1) % IDENTITIES;
        let (key, value) = address_of(number, other);
        store.update(&key, value.into(), None).await?;
        let maps = &maps;
        let reached = tokio::task::block_in_place(|| {
            let begin = Instant::now();
            loop {
                let mut all = true;
                for map in maps {
                    all &= Agent::look(map, host(number))?.is_some_and(|value| value.identity == other);
                }
                if all {
                    return Ok(Instant::now());
                }
                ensure!(begin.elapsed() < Duration::from_secs(30), "a change does not reach all nodes");
                std::thread::sleep(Duration::from_micros(200));
            }
        })?;
        let told = loop {
            let last = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match last {
                Some((told, at)) if told == key => break at,
                _ => tokio::time::sleep(Duration::from_micros(200)).await,
            }
        };
        times.push(reached.saturating_duration_since(told).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    watcher.abort();
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    Ok((at(50), at(99)))
}

/// Plain writes and allocations in a second, each with as many under way at once.
async fn allocations(server: &EtcdServer) -> Result<(f64, f64)> {
    let store = connect(server)?;
    let plain = {
        let store = Arc::clone(&store);
        each(move |n| {
            let store = Arc::clone(&store);
            async move {
                store.update(&format!("bench/{n}"), "x".into(), None).await?;
                Ok(())
            }
        })
        .await?
    };
    let reserved = Reserved::new();
    let table = new_identities(&reserved);
    let allocator = Arc::new(Allocator::start(store, config(reserved)?, table)?);
    allocator.synced().await;
    let allocated = each(move |n| {
        let allocator = Arc::clone(&allocator);
        async move {
            let labels = Labels::parse_kvstore(&format!("k8s:bench={n};"))?;
            allocator.allocate(&labels, None).await?;
            Ok(())
        }
    })
    .await?;
    Ok((plain, allocated))
}

/// How often something is done in a second.
async fn each<F: Future<Output = Result<()>> + Send + 'static>(
    work: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Result<f64> {
    let work = Arc::new(work);
    let start = Instant::now();
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|task| {
            let work = Arc::clone(&work);
            tokio::spawn(async move {
                for n in (task..ALLOCATIONS).step_by(IN_FLIGHT) {
                    work(n).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(ALLOCATIONS as f64 / start.elapsed().as_secs_f64())
}

fn config(reserved: Reserved) -> Result<AllocatorConfig> {
    Ok(AllocatorConfig {
        cluster_id: 0,
        clusters: MaxConnectedClusters::C255,
        node: "10.0.0.1".to_owned(),
        lease_ttl: Duration::from_secs(900),
        lock_patience: Duration::from_secs(60),
        timeout: Duration::from_secs(120),
        attempts: 16,
        pace: backoff()?.into(),
        patience: None,
        stale_grace: Duration::from_secs(3600),
        sync_interval: Duration::from_secs(300),
        reserved,
        others: Clusters::default(),
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn largest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}

fn row(case: &str, ours: f64, unit: &str, baseline: (f64, &str), goal: String, holds: bool) -> Row {
    let (figure, name) = baseline;
    Row {
        case: case.into(),
        ours,
        baseline: figure,
        baseline_name: name.into(),
        ratio: ours / figure,
        unit: unit.into(),
        goal,
        holds,
    }
}

fn at_most(case: &str, ours: f64, unit: &str, baseline: (f64, &str), most: f64) -> Row {
    row(case, ours, unit, baseline, format!("< {most} {unit}"), ours < most)
}

fn at_least(case: &str, ours: f64, unit: &str, baseline: (f64, &str), least: f64) -> Row {
    row(case, ours, unit, baseline, format!(">= {least} {unit}"), ours >= least)
}
