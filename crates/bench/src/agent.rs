//! The agent's own figures: how long an endpoint takes, how soon a killed agent serves again, what it holds.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_api::{
    Client, EndpointRef,
    model::{EndpointChangeRequest, EndpointPatch, PolicyImport},
};
use villus_datapath::Pins;

use crate::{apart::apart, report::Row, wire::Workload};

const MANY: usize = 100;
const ALL: usize = 250;
const IDENTITIES: usize = 1000;
const CREATE: &str = "Cilium 1.19.4, second CNI ADD (reference)";
/// Longer than moving the programs of a hundred endpoints takes.
const SETTLE: Duration = Duration::from_secs(12);
const WAIT: Duration = Duration::from_secs(30);

/// Runs the benchmark in namespaces of its own.
pub fn run() -> Result<Vec<Row>> {
    apart()?;
    let dir = std::env::temp_dir().join(format!("villus-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let rows = measure(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    rows
}

struct Agent {
    child: Child,
    client: Client,
}

impl Agent {
    /// Starts the agent and waits until it serves `endpoints` ready endpoints. Says how long that took.
    fn start(dir: &Path, endpoints: usize) -> Result<(Self, Duration)> {
        let villus = std::env::current_exe()?.with_file_name("villus");
        let start = Instant::now();
        let child = Command::new(&villus)
            .arg("agent")
            .arg("--config-dir")
            .arg(dir.join("options"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .spawn()
            .with_context(|| format!("{}", villus.display()))?;
        let client = Client::new(dir.join("state/villus.sock")).map_err(|e| anyhow!("{e}"))?;
        let mut agent = Self { child, client };
        loop {
            let ready = agent.client.endpoints(&[]).map(|list| {
                list.iter().filter(|e| format!("{:?}", e.status.state).eq_ignore_ascii_case("ready")).count()
            });
            if matches!(ready, Ok(n) if n == endpoints) {
                return Ok((agent, start.elapsed()));
            }
            ensure!(agent.child.try_wait()?.is_none(), "the agent ended: {}", log(dir));
            ensure!(
                start.elapsed() < WAIT,
                "the agent does not serve {endpoints} endpoints: {ready:?}: {}",
                log(dir)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("VmRSS")?.parse::<f64>()? / 1024.0)
    }

    fn add(&self, workload: &Workload, n: usize) -> Result<Duration> {
        let request = EndpointChangeRequest {
            container_netns_path: Some(workload.path()),
            labels: vec![format!("k8s:app=app{}", n % 20)],
            ..EndpointChangeRequest::default()
        };
        let start = Instant::now();
        self.client.create_endpoint(&EndpointRef::Id(0), &request).map_err(|e| anyhow!("{e}"))?;
        Ok(start.elapsed())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

fn options(dir: &Path) -> Result<PathBuf> {
    let options = dir.join("options");
    for folder in ["options", "state", "lib", "bpf"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    let bpf = dir.join("bpf");
    let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpf).status()?;
    ensure!(mounted.success(), "mounting a bpffs");
    for (name, value) in [
        ("state-dir", dir.join("state").display().to_string()),
        ("lib-dir", dir.join("lib").display().to_string()),
        ("bpf-root", bpf.display().to_string()),
        ("ipv4-range", "10.201.0.0/22".into()),
        ("ipv6-range", "fd00:201::/112".into()),
    ] {
        std::fs::write(options.join(name), value)?;
    }
    Ok(options)
}

fn measure(dir: &Path) -> Result<Vec<Row>> {
    options(dir)?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    ensure!(status.success(), "ip link set lo up");
    let mut rows = Vec::new();
    let (agent, empty) = Agent::start(dir, 0)?;
    rows.push(row(
        "agent start to serving, no endpoints",
        empty.as_secs_f64(),
        "s",
        12.0,
        "Cilium 1.19.4 (reference)",
        None,
    ));
    let workloads: Vec<Workload> = (0..MANY).map(|_| Workload::new()).collect::<Result<_>>()?;
    let mut times = Vec::new();
    for (n, workload) in workloads.iter().enumerate() {
        times.push(agent.add(workload, n)?.as_secs_f64() * 1e3);
        if n == 2 {
            let resident = agent.resident()?;
            rows.push(row(
                "agent resident memory, 3 endpoints",
                resident,
                "MB",
                160.0,
                "Cilium 1.19.4 (reference)",
                Some(25.0),
            ));
        }
    }
    times.sort_by(f64::total_cmp);
    rows.push(row("endpoint create, median", times[MANY / 2], "ms", 220.0, CREATE, Some(15.0)));
    rows.push(row(
        "agent resident memory, 100 endpoints",
        agent.resident()?,
        "MB",
        160.0,
        "Cilium 1.19.4, 3 endpoints (reference)",
        Some(60.0),
    ));
    drop(agent);
    let (agent, restored) = Agent::start(dir, MANY)?;
    rows.push(row(
        "killed agent to serving, 100 endpoints just made",
        restored.as_secs_f64(),
        "s",
        12.0,
        "Cilium 1.19.4, no endpoints (reference)",
        Some(1.0),
    ));
    // Time to move their programs to links that stay.
    std::thread::sleep(SETTLE);
    drop(agent);
    let (agent, restored) = Agent::start(dir, MANY)?;
    rows.push(row(
        "killed agent to serving, 100 endpoints restored",
        restored.as_secs_f64(),
        "s",
        12.0,
        "Cilium 1.19.4, no endpoints (reference)",
        Some(1.0),
    ));
    rows.extend(at_scale(&agent, dir, workloads)?);
    Ok(rows)
}

/// 250 endpoints, the last 150 of them made at the same time, and a thousand identities.
fn at_scale(agent: &Agent, dir: &Path, mut workloads: Vec<Workload>) -> Result<Vec<Row>> {
    let before = workloads.len();
    while workloads.len() < ALL {
        workloads.push(Workload::new()?);
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (before..)
            .zip(&workloads[before..])
            .map(|(n, workload)| scope.spawn(move || agent.add(workload, n)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread broke off"))?.map(drop))
    })?;
    let together = start.elapsed().as_secs_f64() * 1e3 / (ALL - before) as f64;
    let endpoints = agent.client.endpoints(&[]).map_err(|e| anyhow!("{e}"))?;
    ensure!(endpoints.len() == ALL, "{} endpoints instead of {ALL}", endpoints.len());
    // A change of labels is another identity; those of before stay known.
    for round in 0..IDENTITIES / ALL {
        for endpoint in &endpoints {
            let labels =
                vec![format!("k8s:app=app{}", endpoint.id % 20), format!("k8s:own={}-{round}", endpoint.id)];
            let patch = EndpointPatch { labels: Some(labels), ..EndpointPatch::default() };
            let id = EndpointRef::Id(endpoint.id);
            agent.client.patch_endpoint(&id, &patch).map_err(|e| anyhow!("{e}"))?;
        }
    }
    let known = agent.client.identities(&[]).map_err(|e| anyhow!("{e}"))?.len();
    ensure!(known >= IDENTITIES, "{known} identities instead of {IDENTITIES}");
    let import = PolicyImport { text: policies(), ..PolicyImport::default() };
    agent.client.import_policy(&import).map_err(|e| anyhow!("{e}"))?;
    Ok(vec![
        row("endpoint create, 150 at once, each", together, "ms", 220.0, CREATE, Some(15.0)),
        row(
            "agent resident memory, 250 endpoints, 1000 identities",
            agent.resident()?,
            "MB",
            160.0,
            "Cilium 1.19.4, 3 endpoints (reference)",
            Some(60.0),
        ),
        row(
            "kernel memory of all maps, 250 endpoints, 1000 identities",
            kernel_memory(dir)?,
            "MB",
            233.0,
            "Cilium's defaults, 3 endpoints (reference)",
            None,
        ),
    ])
}

/// Twenty applications; each may be reached by the next one, on two ports.
fn policies() -> String {
    (0..20)
        .map(|n| {
            format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: app{n}, namespace: default}}\n\
                 spec:\n  endpointSelector: {{matchLabels: {{app: app{n}}}}}\n  ingress:\n  \
                 - fromEndpoints: [{{matchLabels: {{app: app{}}}}}]\n    \
                 toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}, {{port: \"443\", protocol: TCP}}]}}]\n---\n",
                (n + 1) % 20
            )
        })
        .collect()
}

/// Megabytes of everything that is pinned, policy maps included.
fn kernel_memory(dir: &Path) -> Result<f64> {
    let pins = Pins::existing(&dir.join("bpf"))?;
    let mut bytes = 0;
    for name in pins.list()? {
        // Pins of links are no maps.
        if let Ok(Some(map)) = pins.map(&name) {
            bytes += map.memory()?;
        }
    }
    Ok(bytes as f64 / (1024.0 * 1024.0))
}

fn row(case: &str, ours: f64, unit: &str, baseline: f64, name: &str, goal: Option<f64>) -> Row {
    Row {
        case: case.into(),
        ours,
        baseline,
        baseline_name: name.into(),
        ratio: ours / baseline,
        unit: unit.into(),
        goal: goal.map_or_else(|| "-".into(), |most| format!("< {most} {unit}")),
        holds: goal.is_none_or(|most| ours < most),
    }
}
