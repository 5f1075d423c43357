//! `villus plan restart`.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use clap::Args;
use villus_plan::restart::{Scenario, compare, svg, text};

use crate::{failure::Failure, out::OutputArgs};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus plan restart --nodes 10000\n  villus plan restart --nodes 5000 --outage 20m --capacity 3000 --svg restart.svg\n\n\
                  Simulates agents that all go down and come back: the gate and the backoff are those that agents run."
)]
pub struct RestartArgs {
    /// Nodes of the cluster.
    #[arg(long)]
    nodes: NonZeroU32,
    /// Pods of the cluster [default: 30 a node].
    #[arg(long)]
    pods: Option<u32>,
    /// Identities of the cluster [default: one for 15 pods].
    #[arg(long)]
    identities: Option<u32>,
    /// Requests a second that the store answers, most of them pages of thousands of entries; `villus plan kvstore`
    /// measures it.
    #[arg(long, value_name = "REQUESTS", default_value = "2000")]
    capacity: NonZeroU32,
    /// For how long after the nodes are back the store is still gone.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = villus_config::duration::parse)]
    outage: Duration,
    /// Within which time the nodes are back.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = villus_config::duration::parse)]
    spread: Duration,
    /// The gate's window [default: what follows from the nodes].
    #[arg(long, value_name = "DURATION", value_parser = villus_config::duration::parse)]
    window: Option<Duration>,
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also draw a picture into this file.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &RestartArgs) -> Result<(), Failure> {
    let usual = Scenario::of_nodes(args.nodes);
    let addresses = args.pods.unwrap_or(usual.addresses);
    let scenario = Scenario {
        addresses,
        identities: args.identities.unwrap_or(addresses / 15),
        capacity: args.capacity,
        outage: args.outage,
        spread: args.spread,
        window: args.window.unwrap_or(usual.window),
        seed: args.seed,
        ..usual
    };
    let comparison = compare(&scenario).map_err(|error| crate::failure::split(&error.to_string()))?;
    if let Some(file) = &args.svg {
        std::fs::write(file, svg(&comparison))
            .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    }
    args.output.print(&comparison, || text(&comparison))
}
