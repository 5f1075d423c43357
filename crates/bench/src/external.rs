//! External resources: 40,000 imported by the command from a file, and single ones said to an operator one after the other.
//!
//! etcd has its data on tmpfs, and what writes is the program that users run.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use villus_kvstore::{Op, Store, Txn};
use villus_testbed::EtcdServer;

use crate::{
    mesh::{on_tmpfs, store},
    report::{Row, row},
};

const RESOURCES: usize = 40_000;
/// Label sets that they have.
const LABEL_SETS: usize = 2000;
const PER_TXN: usize = 100;
const SINGLES: usize = 2000;
const WAIT: Duration = Duration::from_secs(30);

/// Runs the benchmark.
pub fn run() -> Result<Vec<Row>> {
    on_tmpfs()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = import(&runtime)?;
    rows.extend(singles()?);
    Ok(rows)
}

fn villus(etcd: &EtcdServer, args: &[&str]) -> Result<Command> {
    let program = std::env::current_exe()?.with_file_name("villus");
    let mut command = Command::new(program);
    let option = format!("--kvstore-opt=etcd.address={}", etcd.url());
    command.args(args).args(["--cluster-name=c7", "--cluster-id=7"]).arg(option);
    Ok(command)
}

fn address(n: usize) -> String {
    format!("10.{}.{}.{}", 64 + (n >> 16), (n >> 8) & 255, n & 255)
}

/// Resources as a file has them, and the keys and values that they become, written by one client in transactions.
fn import(runtime: &tokio::runtime::Runtime) -> Result<Vec<Row>> {
    let (reference, etcd) = (EtcdServer::start(), EtcdServer::start());
    let directory = tempfile::tempdir()?;
    let mut rows = Vec::new();
    let mut yaml = String::new();
    let mut objects = Vec::new();
    for n in 0..RESOURCES {
        let labels = format!("k8s:app=app{}", n % LABEL_SETS);
        writeln!(
            yaml,
            "---\napiVersion: villus.io/v1alpha1\nkind: ExternalResource\nmetadata: {{name: vm-{n}}}\nspec:\n  kind: vm\n  \
             addresses: [{}]\n  labels: [\"{labels}\"]",
            address(n)
        )?;
        objects.push(serde_json::json!({
            "apiVersion": "villus.io/v1alpha1", "kind": "ExternalResource", "metadata": {"name": format!("vm-{n}")},
            "spec": {"kind": "vm", "addresses": [address(n)], "labels": [labels]},
        }));
    }
    let (text, list) = (directory.path().join("vms.yaml"), directory.path().join("vms.json"));
    std::fs::write(&text, yaml)?;
    std::fs::write(&list, serde_json::to_string(&objects)?)?;
    let timed = |file: &Path| -> Result<f64> {
        let start = Instant::now();
        let output = villus(&etcd, &["external", "import"])?.arg(file).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(start.elapsed().as_secs_f64())
    };
    let took = timed(&text)?;
    let (written, keys) = runtime.block_on(again(&etcd, &reference))?;
    ensure!(keys >= 2 * RESOURCES, "{keys} keys are too few");
    let case = "import of 40,000 in YAML, 2,000 label sets";
    rows.push(row(case, took, "s", (written, "writing the same keys"), "< 10 s", |row| row.ours < 10.0));
    let took = timed(&list)?;
    let case = "import of the same in JSON, nothing to change";
    rows.push(row(case, took, "s", (written, "writing the same keys"), "< 10 s", |row| row.ours < 10.0));
    let start = Instant::now();
    let output = villus(&etcd, &["external", "list", "-o", "json"])?.output()?;
    ensure!(output.status.success() && output.stdout.len() > RESOURCES * 100, "the list is too short");
    let listed = start.elapsed().as_secs_f64();
    rows.push(row(
        "list of 40,000 as JSON",
        listed,
        "s",
        (written, "writing the same keys"),
        "reported",
        |_| true,
    ));
    Ok(rows)
}

/// Writes every key of one store into the other: how long that takes one client, and how many they are.
async fn again(from: &EtcdServer, to: &EtcdServer) -> Result<(f64, usize)> {
    let entries = store(from)?.list_prefix("").await?.entries;
    let to = store(to)?;
    let start = Instant::now();
    for some in entries.chunks(PER_TXN) {
        let put = |txn: Txn, entry: &villus_kvstore::Entry| {
            txn.then(Op::put(entry.key.to_string(), entry.value.clone(), None))
        };
        to.txn(some.iter().fold(Txn::new(), put)).await?;
    }
    Ok((start.elapsed().as_secs_f64(), entries.len()))
}

/// An operator under way.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One after the other, each on a connection of its own, as another system would; every tenth has labels that nobody had.
fn singles() -> Result<Vec<Row>> {
    let etcd = EtcdServer::start();
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("operator.sock");
    let _operator = Operator(
        villus(&etcd, &["operator"])?
            .arg("--operator-socket")
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let start = Instant::now();
    while ask(&socket, "GET", "/v1/external", "").is_err() {
        ensure!(start.elapsed() < WAIT, "the operator does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (mut known, mut new, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    let raw = store_and_runtime(&etcd)?;
    for n in 0..SINGLES {
        let fresh = n % 10 == 0;
        let labels = if fresh { format!("app=new{n}") } else { "app=db".to_owned() };
        let spec = format!(r#"{{"kind":"vm","addresses":["{}"],"labels":["{labels}"]}}"#, address(n));
        let start = Instant::now();
        let status = ask(&socket, "PUT", &format!("/v1/external/vm-{n}"), &spec)?;
        let took = start.elapsed();
        ensure!(status == 201, "status {status}");
        // The first one with its labels allocates as well.
        if fresh || n == 1 {
            new.push(took)
        } else {
            known.push(took)
        }
        let start = Instant::now();
        raw.0.block_on(raw.1.update(&format!("raw/{n}"), spec.into(), None))?;
        puts.push(start.elapsed());
    }
    let base = (at(&mut puts, 0.99), "one key, p99");
    let median = (at(&mut puts, 0.5), "one key, p50");
    Ok(vec![
        row("one create, labels in use, p50", at(&mut known, 0.5), "ms", median, "reported", |_| true),
        row("one create, labels in use, p99", at(&mut known, 0.99), "ms", base, "< 20 ms", |row| {
            row.ours < 20.0
        }),
        row("one create, new labels, p50", at(&mut new, 0.5), "ms", median, "reported", |_| true),
        row("one create, new labels, p99", at(&mut new, 0.99), "ms", base, "< 20 ms", |row| row.ours < 20.0),
    ])
}

fn store_and_runtime(etcd: &EtcdServer) -> Result<(tokio::runtime::Runtime, Arc<dyn Store>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = {
        let _inside = runtime.enter();
        store(etcd)?
    };
    Ok((runtime, store))
}

/// Milliseconds.
fn at(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let n = ((times.len().saturating_sub(1)) as f64 * share) as usize;
    times.get(n).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<u16> {
    let mut stream = UnixStream::connect(socket)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| answer)
}
