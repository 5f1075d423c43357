//! `villus kvstoremesh status`.

use std::path::Path;

use clap::Args;
use villus_mesh::{MeshStatus, RemoteStatus};
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
    /// Also list each type.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &StatusArgs, file: &Path) -> Result<(), Failure> {
    let status = read(file)?;
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
    let text: String = remote.lines().iter().map(|line| format!("  {line}\n")).collect();
    if verbose { text + &table(remote) } else { text }
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
