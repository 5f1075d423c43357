//! `villus node`, `villus freeze` and `villus thaw`.

use clap::{Args, Subcommand};
use villus_api::model::{FreezeRequest, NodeForget};
use villus_print::{NodeRow, node_list};

use crate::{
    connect::Host,
    failure::Failure,
    out::{self, OutputArgs},
};

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
        after_help = "Examples:\n  villus node forget rack7-12 --dry-run\n  villus node forget rack7-12 --force"
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
            output.print(&nodes, || node_list(&rows))
        }
        NodeCommand::Forget { name, force, dry_run, output } => {
            let forgotten = host.client()?.forget_node(&NodeForget { name, force, dry_run })?;
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

pub fn freeze(host: &Host, args: FreezeArgs) -> Result<(), Failure> {
    host.client()?.freeze(&FreezeRequest { reason: args.reason })?;
    out::line("frozen: policies, identities, addresses and nodes stay as they are until `villus thaw`")
}

pub fn thaw(host: &Host, _: ThawArgs) -> Result<(), Failure> {
    host.client()?.thaw()?;
    out::line("thawed")
}
