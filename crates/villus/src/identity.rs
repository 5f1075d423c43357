//! `villus identity`.

use clap::Subcommand;
use villus_labels::NumericIdentity;
use villus_print::{IdentityRow, identity_list};

use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum IdentityCommand {
    /// List identities and their labels.
    #[command(
        after_help = "Examples:\n  villus identity list k8s:app=web\n  villus identity list --endpoints"
    )]
    List {
        /// Only identities with all these labels.
        labels: Vec<String>,
        /// Only identities of this node's endpoints, and how many endpoints have each.
        #[arg(long, conflicts_with = "labels")]
        endpoints: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show an identity.
    #[command(after_help = "Examples:\n  villus identity get 298951\n  villus identity get world")]
    Get {
        /// Its number, or the name of a reserved one.
        identity: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(host: &Host, command: IdentityCommand) -> Result<(), Failure> {
    match command {
        IdentityCommand::List { endpoints: true, output, .. } => {
            let identities = host.client()?.identity_endpoints()?;
            let rows: Vec<IdentityRow> = identities.iter().map(IdentityRow::from).collect();
            output.print(&identities, || identity_list(&rows))
        }
        IdentityCommand::List { labels, output, .. } => {
            let identities = host.client()?.identities(&labels)?;
            let rows: Vec<IdentityRow> = identities.iter().map(IdentityRow::from).collect();
            output.print(&identities, || identity_list(&rows))?;
            host.say_if_frozen(&output);
            Ok(())
        }
        IdentityCommand::Get { identity, output } => {
            let number = NumericIdentity::parse(&identity).map_err(Failure::usage)?;
            let identity = host.client()?.identity(number.0)?;
            output.print(&identity, || identity_list(&[IdentityRow::from(&identity)]))
        }
    }
}
