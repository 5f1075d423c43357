//! The shared store at the size of a large cluster: from etcd into this process, and numbers of identities from it.
//!
//! One etcd of one member on loopback holds 300,000 addresses and 20,000 identities, as nodes write them.

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_identity::{Allocator, AllocatorConfig, Identities, Reserved, new_identities};
use villus_kvstore::{Etcd, EtcdOptions, Follow, IpIdentityPair, Item, Op, Store, Txn, keys};
use villus_labels::{Labels, MaxConnectedClusters};
use villus_table::Backoff;
use villus_testbed::EtcdServer;

use crate::report::Row;

const ADDRESSES: u32 = 300_000;
const IDENTITIES: u32 = 20_000;
/// Writes in one transaction while the store is filled, and transactions under way at once.
const TOGETHER: u32 = 100;
const WRITERS: u32 = 16;
const ROUNDS: usize = 3;
const ALLOCATIONS: usize = 4000;
const IN_FLIGHT: usize = 64;

/// Runs the benchmark.
pub fn run() -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = EtcdServer::start();
    runtime.block_on(fill(&server))?;
    let mut rows = Vec::new();
    let alone = (0..ROUNDS).map(|_| etcdctl(&server)).collect::<Result<Vec<_>>>()?;
    let before = resident()?;
    let mut ours = Vec::new();
    let mut held = 0.0;
    for _ in 0..ROUNDS {
        let (took, mirror) = runtime.block_on(sync(&server))?;
        ours.push(took);
        held = resident()?;
        ensure!(mirror.0.len() == ADDRESSES as usize, "{} addresses", mirror.0.len());
        drop(mirror);
    }
    let (alone, ours) = (median(alone), median(ours));
    rows.push(at_most(
        "full list of 300,000 addresses and 20,000 identities, read and held",
        ours.as_secs_f64(),
        "s",
        (alone.as_secs_f64(), "etcdctl get --prefix"),
        8.0,
    ));
    rows.push(at_most("resident with all of them", held, "MB", (before, "before it"), 200.0));
    let (plain, allocated) = runtime.block_on(allocations(&server))?;
    rows.push(at_least(
        "identities allocated, 64 in flight",
        allocated,
        "1/s",
        (plain, "puts, 64 in flight"),
        500.0,
    ));
    Ok(rows)
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

fn address(n: u32) -> (String, String) {
    let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
    let node = std::net::Ipv4Addr::from(0xac10_0000 + n / 30);
    let mut pair = IpIdentityPair::new(ip.into(), 256 + n % IDENTITIES, Some(node.into()));
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

/// Everything that the store says, as an agent reads and keeps it.
type Mirror = (Vec<IpIdentityPair>, Identities, Allocator, Follow);

async fn sync(server: &EtcdServer) -> Result<(Duration, Mirror)> {
    let store = connect(server)?;
    let start = Instant::now();
    let reserved = Reserved::new();
    let table = new_identities(&reserved);
    let allocator = Allocator::start(Arc::clone(&store), config(reserved)?, table.clone())?;
    let mut follow = Follow::start(store, &format!("{}/", keys::IPS), backoff()?);
    let batch = follow.next().await.context("the list of addresses")?;
    let mut pairs = Vec::with_capacity(batch.items.len());
    for item in batch.items {
        if let Item::Put(entry) = item {
            pairs.push(IpIdentityPair::read(&entry.key, &entry.value)?.1);
        }
    }
    allocator.synced().await;
    Ok((start.elapsed(), (pairs, table, allocator, follow)))
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
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("VmRSS")?.parse::<f64>()? / 1024.0)
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
