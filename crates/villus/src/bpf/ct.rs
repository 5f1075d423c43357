//! `villus bpf ct`.

use std::sync::Arc;

use clap::Subcommand;
use villus_abi::{Flow, time::to_ns};
use villus_datapath::{FlowKey, Flows, Maps, now};
use villus_print::{CtOptions, CtRow, ct_list};

use crate::{
    connect::Host,
    failure::Failure,
    kernel::{Kernel, PlaceArgs},
    out::{self, OutputArgs},
};

#[derive(Subcommand, Debug)]
pub enum CtCommand {
    /// List flows, both directions of each in one line.
    #[command(after_help = "Examples:\n  villus bpf ct list -d\n  villus bpf ct list 794 -o json")]
    List {
        /// Only flows of this endpoint; `global` for all.
        #[arg(default_value = "global")]
        endpoint: String,
        /// Also how long each flow remains valid without a packet.
        #[arg(short = 'd', long)]
        time_diff: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Forget flows: each open connection is judged again at its next packet.
    #[command(after_help = "Examples:\n  villus bpf ct flush 794\n  villus bpf ct flush global --dry-run")]
    Flush {
        /// The endpoint whose flows are forgotten; `global` for all.
        endpoint: String,
        /// Say how many flows would be forgotten, and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

/// The kernel's maps, where the flows are.
fn kernel(places: &PlaceArgs) -> Result<Kernel, Failure> {
    let kernel = places.kernel()?;
    if !Maps::knows_flows(&kernel.pins) {
        let what =
            "the agent of this node is of an earlier version and keeps its flows in maps of another layout";
        return Err(Failure::new(what).fix("start the agent of this version, which takes them over"));
    }
    Ok(kernel)
}

pub fn run(host: &Host, command: CtCommand) -> Result<(), Failure> {
    match command {
        CtCommand::List { endpoint, time_diff, output, places } => {
            let kernel = kernel(&places)?;
            let which = which(&kernel, &endpoint, host)?;
            let mut all = Flows::new(Arc::new(kernel.maps)).list()?;
            all.retain(|(_, flow)| of(flow, which));
            let mut rows: Vec<CtRow> = all.iter().map(|(key, flow)| row(key, flow)).collect();
            rows.sort_by_key(|row| (row.src, row.dst, row.proto));
            let options = CtOptions { now: time_diff.then(|| to_ns(now()) / 1_000_000_000) };
            output.print(&rows, || ct_list(&rows, options))
        }
        CtCommand::Flush { endpoint, dry_run, places } => {
            let kernel = kernel(&places)?;
            let which = which(&kernel, &endpoint, host)?;
            let flows = Flows::new(Arc::new(kernel.maps));
            if dry_run {
                let count = flows.list()?.iter().filter(|(_, flow)| of(flow, which)).count();
                return out::line(&format!("would forget {count} flows"));
            }
            let count = flows.remove_if(|_, flow| of(flow, which))?;
            out::line(&format!("{count} flows forgotten"))
        }
    }
}

fn which(kernel: &Kernel, text: &str, host: &Host) -> Result<Option<u16>, Failure> {
    if text == "global" { Ok(None) } else { kernel.endpoint(text, host).map(Some) }
}

fn of(flow: &Flow, endpoint: Option<u16>) -> bool {
    endpoint.is_none_or(|id| flow.src_endpoint == id || flow.dst_endpoint == id)
}

fn row(key: &FlowKey, flow: &Flow) -> CtRow {
    match key {
        FlowKey::V4(key) => CtRow::v4(key, flow),
        FlowKey::V6(key) => CtRow::v6(key, flow),
    }
}
