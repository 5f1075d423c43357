//! `villus policy confirm` and `reject`.

use clap::Args;
use villus_api::model::{PolicyChange, PolicyQuery, WaitingChange};

use crate::{
    connect::Host,
    failure::Failure,
    out::{self, OutputArgs},
};

/// The change was not made: it waits to be confirmed.
pub const WAITS: u8 = 7;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy confirm 3\n  villus policy confirm --all\n\n`villus policy get` and `villus status` \
                  show what waits and what it would do. What waits survives restarts of the agent."
)]
pub struct ConfirmArgs {
    /// Number of the change.
    #[arg(required_unless_present = "all")]
    id: Option<u64>,
    /// All that wait.
    #[arg(long, conflicts_with = "id")]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy reject 3\n\nOf a file in the directory of policies what was in force before stays, \
                  until the file changes again."
)]
pub struct RejectArgs {
    /// Number of the change.
    id: u64,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn confirm(host: &Host, args: &ConfirmArgs) -> Result<(), Failure> {
    let client = host.client()?;
    let ids = match args.id {
        Some(id) => vec![id],
        None => client.policy(&PolicyQuery::default())?.waiting.iter().map(|change| change.id).collect(),
    };
    let mut done = Vec::new();
    for id in &ids {
        done.push(client.confirm_policy(*id)?);
    }
    args.output.print(&done, || said(&ids, &done, "done"))
}

pub fn reject(host: &Host, args: &RejectArgs) -> Result<(), Failure> {
    let answer = host.client()?.reject_policy(args.id)?;
    args.output.print(&answer, || format!("change {} is dropped\n", args.id))
}

fn said(ids: &[u64], done: &[PolicyChange], what: &str) -> String {
    let warnings = done.iter().flat_map(|change| &change.warnings);
    warnings.for_each(|warning| out::complain(&format!("Warning: {warning}")));
    if ids.is_empty() {
        return "no change waits\n".to_owned();
    }
    ids.iter().map(|id| format!("change {id} is {what}\n")).collect()
}

/// A change that waits, on one line.
pub fn line(waiting: &WaitingChange) -> String {
    format!(
        "Waiting: {} since {}: {waiting}; villus policy confirm {}\n",
        waiting.id, waiting.since, waiting.id
    )
}
