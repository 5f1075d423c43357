//! KVStoreMesh: the first sync of a large remote, changes as they come, three remotes at once; time, memory, CPU.
//!
//! Every etcd has its data on tmpfs, and the mesh is the program that users run. What it does stands beside what writing the same keys
//! takes one client, in transactions of a hundred, in the same run.

use std::{
    collections::{HashMap, HashSet},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use villus_kvstore::{Etcd, EtcdOptions, Event, Op, Pages, Store, Txn};
use villus_mesh::MeshStatus;
use villus_testbed::EtcdServer;

use crate::report::{Row, row};

/// Where etcd's data and the mesh's files lie.
const TMPFS: &str = "/dev/shm";
const IDENTITIES: usize = 20_000;
const PER_TXN: usize = 100;
const CHANGES_A_SECOND: usize = 5000;
const SECONDS: usize = 10;
const WAIT: Duration = Duration::from_secs(240);

/// Starts the program again with temporary files on tmpfs, where they are not yet: what an etcd writes is not to wait for a
/// disk.
pub(crate) fn on_tmpfs() -> Result<()> {
    if std::env::var_os("TMPDIR").is_none_or(|dir| dir != TMPFS) {
        let error = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env("TMPDIR", TMPFS)
            .exec();
        return Err(error).context("starting again with TMPDIR on tmpfs");
    }
    Ok(())
}

/// Runs the benchmark.
pub fn run() -> Result<Vec<Row>> {
    on_tmpfs()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rows = Vec::new();
    for addresses in [100_000, 300_000] {
        rows.extend(first_sync(&runtime, addresses)?);
    }
    rows.extend(steady(&runtime)?);
    rows.push(three(&runtime)?);
    Ok(rows)
}

/// A mesh under way.
struct Mesh {
    child: Child,
    directory: TempDir,
}

impl Mesh {
    fn start(local: &EtcdServer, remotes: &[EtcdServer]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configs = directory.path().join("mesh");
        std::fs::create_dir(&configs)?;
        for (n, server) in remotes.iter().enumerate() {
            std::fs::write(configs.join(name(n)), format!("endpoints: ['{}']\n", server.url()))?;
        }
        let villus = std::env::current_exe()?.with_file_name("villus");
        let child = Command::new(&villus)
            .args(["kvstoremesh", "--cluster-name=c1", "--cluster-id=1"])
            .arg(format!("--kvstore-opt=etcd.address={}", local.url()))
            .arg(format!("--clustermesh-config={}", configs.display()))
            .arg(format!("--status-file={}", directory.path().join("status").display()))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log"))?)
            .spawn()
            .with_context(|| villus.display().to_string())?;
        Ok(Self { child, directory })
    }

    fn status(&self) -> Option<MeshStatus> {
        serde_json::from_slice(&std::fs::read(self.directory.path().join("status")).ok()?).ok()
    }

    fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.split_whitespace().next().context("VmHWM")?.parse::<f64>()? / 1024.0)
    }

    /// Seconds of CPU so far.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name of a cluster; its id is the number.
pub(crate) fn name(n: usize) -> String {
    format!("c{}", n + 2)
}

/// A client that is not held back.
pub(crate) fn store(server: &EtcdServer) -> Result<Arc<dyn Store>> {
    let mut options = EtcdOptions::new(vec![server.url()]);
    (options.qps, options.max_inflight) = (100_000, 64);
    options.bootstrap_qps = options.qps;
    Ok(Arc::new(Etcd::new(options)?))
}

fn address(cluster: usize, n: usize) -> (String, String) {
    let id = ((cluster + 2) << 16) + n % IDENTITIES;
    let ip = format!("10.{}.{}.{}", 8 * cluster + (n >> 16), (n >> 8) & 255, n & 255);
    let value = format!(
        r#"{{"IP":"{ip}","Mask":null,"HostIP":"10.200.{}.{}","ID":{id},"Key":0,"Metadata":"cilium-global:{}:node{}:{n}","K8sNamespace":"shop","K8sPodName":"web-{n}"}}"#,
        ((n / 30) >> 8) & 255,
        (n / 30) & 255,
        name(cluster),
        n / 30
    );
    (ip, value)
}

/// Keys and values of a cluster.
pub(crate) fn entries(
    cluster: usize,
    addresses: usize,
    identities: usize,
) -> impl Iterator<Item = (String, String)> {
    let own = name(cluster);
    let config = (format!("cilium/cluster-config/{own}"), format!(r#"{{"id":{}}}"#, cluster + 2));
    let ids = (0..identities).map(move |n| {
        let id = ((cluster + 2) << 16) + n;
        let labels = format!(
            "k8s:app=app{n};k8s:io.cilium.k8s.policy.cluster={own};k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=shop;"
        );
        (format!("cilium/state/identities/v1/id/{id}"), labels)
    });
    let ips = (0..addresses).map(move |n| {
        let (ip, value) = address(cluster, n);
        (format!("cilium/state/ip/v1/default/{ip}"), value)
    });
    std::iter::once(config).chain(ids).chain(ips)
}

/// One client, one transaction after the other.
pub(crate) async fn write(
    store: &Arc<dyn Store>,
    entries: impl Iterator<Item = (String, String)>,
) -> Result<usize> {
    let (mut txn, mut count, mut all) = (Txn::new(), 0, 0);
    for (key, value) in entries {
        txn = txn.then(Op::put(key, value, None));
        (count, all) = (count + 1, all + 1);
        if count == PER_TXN {
            store.txn(std::mem::take(&mut txn)).await?;
            count = 0;
        }
    }
    store.txn(txn).await?;
    Ok(all)
}

/// Waits until the canaries say of each remote that addresses and identities are complete, as who reads them waits; returns
/// how long that took. That so many copies lie in the local store then is counted there, not asked of the mesh.
async fn copied(
    mesh: &mut Mesh,
    local: &Arc<dyn Store>,
    remotes: usize,
    wanted: usize,
    start: Instant,
) -> Result<Duration> {
    let mut seen = HashSet::new();
    let mut watch = local.watch("cilium/synced/", 1).await?;
    let is_awaited =
        |key: &str| ["cache/ip/v1", "cache/identities/v1"].iter().any(|kind| key.ends_with(kind));
    while seen.len() < 2 * remotes {
        match tokio::time::timeout(WAIT, watch.next()).await {
            Ok(batch) => {
                seen.extend(batch?.events.iter().map(Event::key).filter(|key| is_awaited(key)).cloned())
            }
            Err(_) => bail!("{seen:?} after {:?}: {:#?}", start.elapsed(), mesh.status()),
        }
    }
    let took = start.elapsed();
    ensure!(mesh.child.try_wait()?.is_none(), "the mesh ended");
    let (mut pages, mut copies) = (Pages::of("cilium/cache/"), 0);
    while let Some(page) = pages.next(local.as_ref()).await? {
        copies += page.entries.len();
    }
    ensure!(copies == wanted, "{copies} copies of {wanted} are there when the canaries say so");
    Ok(took)
}

fn first_sync(runtime: &Runtime, addresses: usize) -> Result<Vec<Row>> {
    let (reference, local, remote) = (EtcdServer::start(), EtcdServer::start(), EtcdServer::start());
    runtime.block_on(async {
        let keys = write(&store(&remote)?, entries(0, addresses, IDENTITIES)).await?;
        let to = store(&reference)?;
        let start = Instant::now();
        write(&to, entries(0, addresses, IDENTITIES)).await?;
        let written = start.elapsed();
        drop(reference);
        let to = store(&local)?;
        let start = Instant::now();
        let mut mesh = Mesh::start(&local, std::slice::from_ref(&remote))?;
        let took = copied(&mut mesh, &to, 1, keys - 1, start).await?;
        let resident = mesh.resident()?;
        let case = format!("first sync, {}K addresses, 20K identities", addresses / 1000);
        Ok(vec![
            row(
                &case,
                took.as_secs_f64(),
                "s",
                (written.as_secs_f64(), "writing the same keys"),
                "≤ 1.4×",
                |r| r.ratio <= 1.4,
            ),
            row(&case, resident, "MB peak", (281.0, "Cilium 1.19.4, 100K"), "< 60 MB at 100K", |r| {
                r.ours < 60.0 * (addresses as f64 / 100_000.0)
            }),
            row(&case, mesh.cpu()?, "CPU s", (written.as_secs_f64(), "writing, elapsed"), "reported", |_| {
                true
            }),
        ])
    })
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Changes in transactions; each value holds when it was written.
fn steady(runtime: &Runtime) -> Result<Vec<Row>> {
    const KEYS: usize = 20_000;
    let (local, remote) = (EtcdServer::start(), EtcdServer::start());
    runtime.block_on(async {
        let (from, to) = (store(&remote)?, store(&local)?);
        write(&from, entries(0, KEYS, 1000)).await?;
        let mut mesh = Mesh::start(&local, std::slice::from_ref(&remote))?;
        copied(&mut mesh, &to, 1, KEYS + 1000, Instant::now()).await?;
        let revision = to.header().await?.revision;
        let mut watch = to.watch("cilium/cache/ip/", revision + 1).await?;
        let total = CHANGES_A_SECOND * SECONDS;
        let reader = tokio::spawn(async move {
            // By key, the last change: what the mesh has skipped is as late as what it wrote instead.
            let (mut lags, mut last) = (Vec::new(), HashMap::new());
            while last.len() < KEYS || last.values().filter(|n| **n >= total - KEYS).count() < KEYS {
                let Ok(Ok(batch)) = tokio::time::timeout(WAIT, watch.next()).await else { break };
                let at = now();
                for event in batch.events {
                    let Event::Put(entry) = event else { continue };
                    let text = entry.text().unwrap_or_default();
                    let mut parts = text.split(' ');
                    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
                    let (Some(written), Some(n)) = (number(parts.next()), number(parts.next())) else {
                        continue;
                    };
                    lags.push(at.saturating_sub(Duration::from_micros(written)));
                    last.insert(Arc::clone(&entry.key), n as usize);
                }
            }
            lags
        });
        let cpu = mesh.cpu()?;
        let start = Instant::now();
        let mut n = 0;
        for batch in 0..total / PER_TXN {
            let due =
                start + Duration::from_secs_f64(batch as f64 * PER_TXN as f64 / CHANGES_A_SECOND as f64);
            tokio::time::sleep_until(due.into()).await;
            let mut txn = Txn::new();
            let at = now().as_micros();
            for _ in 0..PER_TXN {
                let (ip, _) = address(0, n % KEYS);
                txn = txn.then(Op::put(
                    format!("cilium/state/ip/v1/default/{ip}"),
                    format!("{at} {n} {:200}", ""),
                    None,
                ));
                n += 1;
            }
            from.txn(txn).await?;
        }
        let generated = start.elapsed().as_secs_f64();
        let mut lags = reader.await?;
        let spent = mesh.cpu()? - cpu;
        ensure!(!lags.is_empty(), "no change came: {:#?}", mesh.status());
        lags.sort_unstable();
        let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
        let rate = total as f64 / generated;
        Ok(vec![
            row(
                "steady, changes a second",
                rate,
                "1/s",
                (CHANGES_A_SECOND as f64, "asked for"),
                "reported",
                |_| true,
            ),
            row("steady, lag p50", at(0.5), "ms", (at(0.5), "itself"), "reported", |_| true),
            row("steady, lag p99", at(0.99), "ms", (100.0, "goal"), "< 100 ms", |r| r.ours < 100.0),
            row(
                "steady, CPU a change",
                spent * 1e6 / total as f64,
                "µs",
                (1e6 / rate, "time a change"),
                "reported",
                |_| true,
            ),
            row(
                "steady, resident",
                mesh.resident()?,
                "MB peak",
                (60.0, "first sync's goal"),
                "reported",
                |_| true,
            ),
        ])
    })
}

/// Three remotes at once beside one that has as much as all three.
fn three(runtime: &Runtime) -> Result<Row> {
    const EACH: usize = 40_000;
    let sync = |sizes: &[usize]| -> Result<f64> {
        let local = EtcdServer::start();
        let remotes: Vec<EtcdServer> = sizes.iter().map(|_| EtcdServer::start()).collect();
        runtime.block_on(async {
            let mut keys = 0;
            for (n, (server, size)) in remotes.iter().zip(sizes).enumerate() {
                keys += write(&store(server)?, entries(n, *size, 1000)).await? - 1;
            }
            let to = store(&local)?;
            let start = Instant::now();
            let mut mesh = Mesh::start(&local, &remotes)?;
            let took = copied(&mut mesh, &to, sizes.len(), keys, start).await?;
            Ok(took.as_secs_f64())
        })
    };
    let one = sync(&[3 * EACH])?;
    let all = sync(&[EACH, EACH, EACH])?;
    Ok(row("three remotes of 40K at once", all, "s", (one, "one of 120K"), "≤ 1.1×", |r| r.ratio <= 1.1))
}
