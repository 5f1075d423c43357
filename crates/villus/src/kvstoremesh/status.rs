//! `villus kvstoremesh status`.

use std::path::{Path, PathBuf};

use clap::Args;
use villus_mesh::{MeshStatus, RemoteStatus, State};
use villus_print::Table;

use crate::{
    failure::{FAILED, Failure},
    out::OutputArgs,
};

/// Where a mesh leaves its status.
pub const DEFAULT_FILE: &str = "/var/run/villus/kvstoremesh.json";
/// A status that is older was left behind.
const OLD: i64 = 30;

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the mesh leaves its status.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_FILE, value_hint = clap::ValueHint::FilePath)]
    status_file: PathBuf,
    /// Also list each type.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let status = read(&args.status_file)?;
    args.output.print(&status, || text(&status, args.verbose))?;
    let sound = status.local.connected && status.directory.is_none();
    let all_ready = status.remotes.iter().all(|remote| remote.ready);
    if sound && (!status.leading || all_ready) { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

/// The status that a mesh has left.
pub fn read(path: &Path) -> Result<MeshStatus, Failure> {
    let fix = "start one with `villus kvstoremesh`, or name its file with --status-file";
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::new(format!("no mesh says how it is: {}: {error}", path.display())).fix(fix)
    })?;
    let status: MeshStatus = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(format!("{} is no status of a mesh: {error}", path.display()))
            .fix("another version may have written it: use that version's command")
    })?;
    let age = status.updated.duration_until(jiff::Timestamp::now()).as_secs();
    if age > OLD {
        return Err(Failure::new(format!(
            "the mesh (pid {}) has not said anything for {age} s; what it has copied stays",
            status.pid
        ))
        .fix(fix));
    }
    Ok(status)
}

fn text(status: &MeshStatus, verbose: bool) -> String {
    let ready = status.remotes.iter().filter(|remote| remote.ready).count();
    let layouts: Vec<&str> = status.layouts.iter().map(|layout| layout.name()).collect();
    let role = match (status.leading, status.local.connected) {
        (true, _) => "copying",
        (false, true) => "waiting, another replica copies",
        (false, false) => "waiting for the local store",
    };
    let mut text = format!(
        "KVStoreMesh of {} (id {}): {ready}/{} remote clusters ready, layout {}, {role}\nLocal store: {}\n",
        status.cluster,
        status.cluster_id,
        status.remotes.len(),
        layouts.join(" and "),
        status.local.status
    );
    if let Some(problem) = &status.directory {
        text.push_str(&format!("Configurations: {problem}\n"));
    }
    for remote in &status.remotes {
        text.push_str(&one(remote, verbose));
    }
    text
}

fn one(remote: &RemoteStatus, verbose: bool) -> String {
    let word = match (&remote.removal_at, remote.ready) {
        (Some(at), _) => format!("removing, copies go at {at}"),
        (None, true) => "ready".to_owned(),
        (None, false) => "not-ready".to_owned(),
    };
    let failures = match remote.last_failure {
        Some(at) => format!("{} failures (last: {at})", remote.num_failures),
        None => "0 failures (last: never)".to_owned(),
    };
    let mut text = format!(
        "  {}: {word}, {} nodes, {} endpoints, {} identities, {} services, {failures}\n  └ {}\n",
        remote.name,
        remote.num_nodes,
        remote.num_endpoints,
        remote.num_identities,
        remote.num_shared_services,
        remote.status
    );
    for problem in remote.refused.iter().chain(&remote.file) {
        text.push_str(&format!("  └ {problem}\n"));
    }
    let config = &remote.config;
    if config.retrieved {
        text.push_str(&format!(
            "  └ remote configuration: retrieved=true, cluster-id={}, kvstoremesh={}, sync-canaries={}\n",
            config.cluster_id, config.kvstoremesh, config.sync_canaries
        ));
    }
    let stale: Vec<String> = remote
        .prefixes
        .iter()
        .filter(|one| one.state != State::Synced)
        .map(|one| format!("{} {} since {}", one.kind, one.state.name(), one.since))
        .collect();
    let sync = if stale.is_empty() { "all synced".to_owned() } else { stale.join(", ") };
    text.push_str(&format!("  └ synchronization status: {sync}\n"));
    let problems: std::collections::BTreeSet<&String> =
        remote.prefixes.iter().filter_map(|one| one.problem.as_ref()).collect();
    for problem in problems {
        text.push_str(&format!("  └ {problem}\n"));
    }
    let held: u64 = remote.prefixes.iter().map(|one| one.held).sum();
    if held > 0 {
        let until = remote.prefixes.iter().filter_map(|one| one.held_until).max();
        let until = until.map(|at| at.to_string()).unwrap_or_default();
        text.push_str(&format!("  └ {held} copies that the remote lacks stay until {until}\n"));
    }
    if verbose {
        text.push_str(&table(remote));
    }
    text
}

fn table(remote: &RemoteStatus) -> String {
    let header = [
        "TYPE",
        "LAYOUT",
        "STATE",
        "ENTRIES",
        "PENDING",
        "RECEIVED",
        "WRITTEN",
        "DELETED",
        "DELAY",
        "NOT COPIED",
    ];
    let mut table = Table::new(header);
    for one in &remote.prefixes {
        let dropped: Vec<String> =
            one.dropped.iter().map(|(reason, count)| format!("{}={count}", reason.name())).collect();
        table.row([
            one.kind.to_string(),
            one.layout.to_string(),
            one.state.name().to_owned(),
            one.entries.to_string(),
            one.pending.to_string(),
            one.received.to_string(),
            one.written.to_string(),
            one.deleted.to_string(),
            format!("{} ms", one.delay_ms),
            dropped.join(" "),
        ]);
    }
    table.render().lines().map(|line| format!("    {line}\n")).collect()
}
