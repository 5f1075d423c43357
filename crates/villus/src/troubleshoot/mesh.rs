//! `villus troubleshoot mesh`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use villus_labels::MaxConnectedClusters;
use villus_mesh::{Findings, Own, RemoteStatus, remotes, troubleshoot};

use crate::{
    failure::{FAILED, Failure},
    kvstoremesh::{DEFAULT_FILE, read_status},
    out::OutputArgs,
};

/// Where an agent with `clustermesh-config` leaves the status of its own mesh.
const AGENTS_FILE: &str = "/var/run/villus/clustermesh.json";

#[derive(Args, Debug)]
pub struct MeshArgs {
    /// Remotes to look at; all if none is named.
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Directory with one file for each remote cluster.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, default_value = "/var/lib/cilium/clustermesh")]
    clustermesh_config: PathBuf,
    /// Name of this cluster, whose own file is left out.
    #[arg(long, value_name = "NAME", default_value = "default")]
    cluster_name: String,
    /// Id of this cluster, which no remote may have.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    cluster_id: u32,
    /// How many clusters there can be: 255 or 511.
    #[arg(long, value_name = "NUMBER", default_value_t = 255)]
    max_connected_clusters: u32,
    /// How long a step may take.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = villus_config::duration::parse)]
    timeout: Duration,
    /// Where a running mesh leaves its status, for the lag [default: what `villus kvstoremesh` or an agent has left].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    status_file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A remote, and how far a running mesh is behind it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    findings: Findings,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<String>,
}

pub fn run(args: &MeshArgs) -> Result<(), Failure> {
    let clusters = MaxConnectedClusters::from_number(args.max_connected_clusters)
        .map_err(|error| Failure::usage(format!("--max-connected-clusters: {error}")))?;
    let own = Own { name: args.cluster_name.clone(), id: args.cluster_id, clusters };
    let directory = &args.clustermesh_config;
    let mut found = remotes::read(directory, &own.name).map_err(|error| {
        Failure::new(format!("{}: {error}", directory.display()))
            .fix("name the directory with --clustermesh-config")
    })?;
    if let Some(unknown) = args.clusters.iter().find(|name| !found.contains_key(*name)) {
        let all: Vec<&str> = found.keys().map(String::as_str).collect();
        return Err(Failure::new(format!("{} has no configuration of {unknown}", directory.display()))
            .fix(format!("there are: {}", all.join(", "))));
    }
    found.retain(|name, _| args.clusters.is_empty() || args.clusters.contains(name));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("sockets can't be used: {error}")))?;
    // Without a running mesh there is no lag.
    let files = match &args.status_file {
        Some(file) => vec![file.clone()],
        None => [DEFAULT_FILE, AGENTS_FILE].map(PathBuf::from).into(),
    };
    let status = files.iter().find_map(|file| read_status(file).ok());
    let mut shown = Vec::new();
    for (name, file) in &found {
        let findings = runtime.block_on(troubleshoot(name, file, &own, args.timeout));
        let remote = status.as_ref().and_then(|status| status.remotes.iter().find(|one| one.name == *name));
        let lag = remote.map(|remote| lag(remote, findings.revision));
        shown.push(Shown { findings, lag });
    }
    args.output.print(&shown, || shown.iter().map(text).collect())?;
    if shown.iter().all(|one| one.findings.is_ok()) { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

fn lag(remote: &RemoteStatus, revision: Option<u64>) -> String {
    let pending: u64 = remote.prefixes.iter().map(|one| one.pending).sum();
    let slowest = remote.prefixes.iter().map(|one| one.delay_ms).max().unwrap_or(0);
    let state = remote.synchronization();
    let heard = match revision {
        Some(revision) => format!("the mesh has heard revision {} of {revision}", remote.revision),
        None => format!("the mesh has last heard revision {}", remote.revision),
    };
    format!("{heard}; {pending} changes wait, the last took {slowest} ms; {state}")
}

fn text(shown: &Shown) -> String {
    let mut text = format!("{}:\n", shown.findings.name);
    for check in &shown.findings.checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        text.push_str(&format!("  {mark} {}: {}\n", check.step, check.found));
    }
    if let Some(lag) = &shown.lag {
        text.push_str(&format!("  lag: {lag}\n"));
    }
    text
}
