//! What a packet costs: time in from-endpoint by the kernel's own account, under real traffic.
//!
//! The kernel's clock is read before and after each run, so a program that does nothing would show tens of nanoseconds.
//! Medians of many short windows: a neighbour on the machine spoils some of them.

use std::time::Duration;

use anyhow::Result;
use villus_datapath::{EventRing, Flows, Hook};

use crate::{
    load::{self, Place},
    report::Row,
    wire::{Node, Pair, median},
};

/// What Cilium 1.19.4 took for an established packet on a machine of the same kind, ns (its better figure).
pub(crate) const PEER: f64 = 1153.0;
const WINDOWS: usize = 15;
const WINDOW: Duration = Duration::from_millis(200);
/// Packets of a window whose packets are counted: fewer than the event ring has room for reports.
const PACKETS: u16 = 2000;
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The cases, for one family. `name` is IPv4 or IPv6.
pub(crate) fn rows(node: &Node, only: &str, name: &str, pair: &Pair<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let before = std::fs::read_to_string(STATS)?;
    std::fs::write(STATS, "1")?;
    let measured = measure(node, only, name, pair, rows);
    std::fs::write(STATS, before.trim())?;
    measured
}

fn measure(node: &Node, only: &str, name: &str, pair: &Pair<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let goal = (name == "IPv4").then_some(450.0);
    for (ends, place) in [("one CPU", Place::Together), ("two CPUs", Place::Apart)] {
        if place == Place::Apart && std::thread::available_parallelism()?.get() < 2 {
            continue;
        }
        case(node, only, (&format!("established {name}, {ends}"), goal), rows, || {
            load::round_trip(pair.from, pair.to, WINDOW, place).map(drop)
        })?;
    }
    let mut ring = EventRing::open(&node.maps)?;
    let flows = Flows::new(node.maps.clone());
    for (what, port, goal) in
        [("first packet of a flow", load::SINK, None), ("denied and reported", load::DENIED, Some(900.0))]
    {
        case(node, only, (&format!("{what}, {name}"), goal), rows, || {
            flows.flush()?;
            ring.read(usize::MAX, |_| ());
            load::datagrams(pair.from, pair.to, port, PACKETS)
        })?;
    }
    Ok(())
}

/// One case: `traffic` makes a window's packets.
fn case(
    node: &Node,
    only: &str,
    (what, goal): (&str, Option<f64>),
    rows: &mut Vec<Row>,
    mut traffic: impl FnMut() -> Result<()>,
) -> Result<()> {
    let case = format!("program time per packet, {what}");
    if !case.contains(only) {
        return Ok(());
    }
    let program = node.object.program(Hook::FromEndpoint)?;
    let mut windows = Vec::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        let start = program.current_info()?;
        traffic()?;
        let end = program.current_info()?;
        let runs = (end.runs - start.runs).max(1);
        windows.push((end.run_time_ns - start.run_time_ns) as f64 / runs as f64);
    }
    let ours = median(windows);
    rows.push(Row {
        case,
        ours,
        baseline: PEER,
        baseline_name: "Cilium 1.19.4, established IPv4 (reference)".into(),
        ratio: ours / PEER,
        unit: "ns".into(),
        goal: goal.map_or("-".into(), |goal| format!("<= {goal} ns")),
        holds: goal.is_none_or(|goal| ours <= goal),
    });
    Ok(())
}
