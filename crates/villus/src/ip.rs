//! `villus ip`.

use clap::Subcommand;
use villus_api::model::IpQuery;
use villus_print::{IpRow, ip_list};

use crate::{connect::Host, failure::Failure, identity_names::IdentityNames, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum IpCommand {
    /// List prefixes, their identities and where they come from.
    #[command(after_help = "Examples:\n  villus ip list -n\n  villus ip list 10.0.0.0/8 --verbose")]
    List {
        /// Only prefixes inside this one.
        #[arg(value_name = "PREFIX")]
        cidr: Option<String>,
        /// Only prefixes whose identity has all these labels, separated by commas.
        #[arg(short, long, default_value = "", hide_default_value = true)]
        labels: String,
        /// Numbers of identities instead of their labels.
        #[arg(short, long)]
        numeric: bool,
        /// Also the node behind which addresses live, and the encryption key.
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(host: &Host, command: IpCommand) -> Result<(), Failure> {
    let IpCommand::List { cidr, labels, numeric, verbose, output } = command;
    let entries = host.client()?.ips(&IpQuery { cidr: cidr.unwrap_or_default(), labels })?;
    let names = if numeric || !output.is_text() { IdentityNames::none() } else { IdentityNames::ask(host) };
    let rows: Vec<IpRow> = entries
        .iter()
        .map(|entry| IpRow { labels: names.labels(entry.identity), ..IpRow::from(entry) })
        .collect();
    output.print(&entries, || ip_list(&rows, numeric, verbose))?;
    host.say_if_frozen(&output);
    Ok(())
}
