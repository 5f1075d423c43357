//! `villus node`, `villus freeze` and `villus thaw`.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use villus_api::model::{FreezeRequest, NodeForget, NodeForgotten};
use villus_identity::end_keys;
use villus_print::{NodeRow, node_list};

use crate::{
    connect::Host,
    failure::Failure,
    kvstore::StoreArgs,
    out::{self, OutputArgs},
};

/// How long the agent of this node is given to see that keys are gone.
const FOLLOWS: Duration = Duration::from_secs(30);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List the nodes that this one knows.
    #[command(after_help = "Example:\n  villus node list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say that a node does not come back: its keys and leases in the store end, for the whole cluster.
    #[command(
        after_help = "Examples:\n  villus node forget rack7-12 --dry-run\n  villus node forget rack7-12 --force\n  \
                      villus node forget rack7-12 --force --kvstore-opt etcd.config=operator.yaml\n\n\
                      The agent of this node knows what the other one has in the store. It deletes that itself, if its \
                      certificate may; with options of a store this command does, as the user that they name."
    )]
    Forget {
        /// Its name, with its cluster before a slash if that is another.
        name: String,
        /// Also while its key is in the store: the machine is dead, and only its lease lasts.
        #[arg(long)]
        force: bool,
        /// Say what would go, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Args, Debug)]
pub struct FreezeArgs {
    /// Why, for those who wonder.
    #[arg(default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct ThawArgs {}

pub fn run(host: &Host, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List { output } => {
            let nodes = host.client()?.nodes()?;
            let rows: Vec<NodeRow> = nodes.iter().map(NodeRow::from).collect();
            output.print(&nodes, || node_list(&rows))?;
            host.say_if_frozen(&output);
            Ok(())
        }
        NodeCommand::Forget { name, force, dry_run, store, output } => {
            let mut forgotten = match store.is_given() && !dry_run {
                true => forget(host, name, force, &store)?,
                false => host.client()?.forget_node(&NodeForget { name, force, dry_run })?,
            };
            forgotten.values.clear();
            output.print(&forgotten, || {
                let verb = if dry_run { "would go" } else { "gone" };
                let mut text: String = forgotten.keys.iter().map(|key| format!("{verb}: {key}\n")).collect();
                if !dry_run {
                    text.push_str(&format!(
                        "{} is forgotten; {} leases ended\n",
                        forgotten.name, forgotten.leases
                    ));
                }
                text
            })
        }
    }
}

/// Deletes as the user of the store's options what the agent of this node knows of another one.
fn forget(host: &Host, name: String, force: bool, store: &StoreArgs) -> Result<NodeForgotten, Failure> {
    let (client, shared) = (host.client()?, store.open(host)?);
    let mut forgotten = client.forget_node(&NodeForget { name, force, dry_run: true })?;
    let keys = forgotten.keys.iter().cloned();
    let keys: Vec<(String, String)> = keys.zip(std::mem::take(&mut forgotten.values)).collect();
    forgotten.leases = shared.wait(end_keys(shared.store.as_ref(), &keys))?;
    let end = Instant::now() + FOLLOWS;
    while client.nodes()?.iter().any(|node| node.name == forgotten.name) {
        if Instant::now() >= end {
            let said = "the keys are gone, and the agent of this node has not followed: see `villus status`";
            out::complain(&format!("villus: {said}"));
            break;
        }
        std::thread::sleep(AGAIN);
    }
    Ok(forgotten)
}

pub fn freeze(host: &Host, args: FreezeArgs) -> Result<(), Failure> {
    host.client()?.freeze(&FreezeRequest { reason: args.reason })?;
    out::line("frozen: policies, identities, addresses and nodes stay as they are until `villus thaw`")
}

pub fn thaw(host: &Host, _: ThawArgs) -> Result<(), Failure> {
    host.client()?.thaw()?;
    out::line("thawed")
}
