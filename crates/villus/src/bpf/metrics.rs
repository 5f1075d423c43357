//! `villus bpf metrics`.

use clap::Subcommand;
use villus_abi::{Direction, Reason};
use villus_print::{MetricsRow, bpf_metrics_list};

use crate::{failure::Failure, kernel::PlaceArgs, out::OutputArgs};

#[derive(Subcommand, Debug)]
pub enum MetricsCommand {
    /// List packets and bytes by reason and direction.
    #[command(after_help = "Example:\n  villus bpf metrics list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

pub fn run(command: MetricsCommand) -> Result<(), Failure> {
    let MetricsCommand::List { output, places } = command;
    let counters = villus_datapath::metrics(&places.kernel()?.maps)?;
    let rows: Vec<MetricsRow> = counters
        .iter()
        .map(|(index, metric)| {
            let direction = if index & 1 == 0 { Direction::Ingress } else { Direction::Egress };
            let reason = Reason(u8::try_from(index >> 1).unwrap_or(u8::MAX));
            MetricsRow::new(reason, direction, metric.packets, metric.bytes)
        })
        .collect();
    output.print(&rows, || bpf_metrics_list(&rows))
}
