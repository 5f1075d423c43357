//! `villus metrics`.

use clap::Subcommand;
use villus_print::Table;

use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum MetricsCommand {
    /// List the agent's metrics and their values.
    #[command(
        after_help = "Examples:\n  villus metrics list\n  villus metrics list kvstore\n  villus metrics list -o json\n\n\
                      The same is served to Prometheus at --prometheus-serve-addr of the agent. What the kernel's programs count is \
                      also in `villus bpf metrics list`, which needs no agent."
    )]
    List {
        /// Only metrics whose name has this in it.
        #[arg(default_value = "", hide_default_value = true)]
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(host: &Host, command: MetricsCommand) -> Result<(), Failure> {
    let MetricsCommand::List { name, output } = command;
    let mut values = host.client()?.metrics()?;
    values.retain(|value| value.name.contains(&name));
    output.print(&values, || {
        let mut table = Table::new(["METRIC", "LABELS", "VALUE"]);
        for value in &values {
            let labels = value.labels.iter().map(|(key, of)| format!("{key}={of}"));
            table.row([value.name.clone(), labels.collect::<Vec<_>>().join(" "), value.value.to_string()]);
        }
        table.render()
    })
}
