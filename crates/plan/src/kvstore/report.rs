//! The outcome for people.

use villus_print::Table;

use super::{Bound, Estimate, Latency, Outcome};

/// The outcome as text.
#[must_use]
pub fn text(outcome: &Outcome, estimate: &Estimate) -> String {
    let load = &outcome.load;
    let mut table = Table::new(["OPERATION", "COUNT", "PER SECOND", "P50 MS", "P99 MS", "MAX MS"]);
    for (name, latency) in [
        ("lease granted", outcome.grant),
        ("100 entries written", outcome.fill),
        ("lease kept alive", outcome.keep_alive),
        ("page listed", outcome.page),
        ("identity allocated", outcome.identity),
        ("identity under lock", outcome.locked),
        ("entry written", outcome.write),
        ("change delivered", outcome.delivery),
    ] {
        let Latency { count, rate, p50, p99, max } = latency;
        table.row([
            name.to_owned(),
            count.to_string(),
            format!("{rate:.0}"),
            format!("{p50:.1}"),
            format!("{p99:.1}"),
            format!("{max:.1}"),
        ]);
    }
    let mut text = format!(
        "{} nodes, {} pods; {} clients list, {} watches under {} writes a second\n\n{}\n",
        load.nodes,
        load.pods,
        load.listers,
        load.watchers,
        load.churn,
        table.render()
    );
    if outcome.missed > 0 {
        text += &format!("{} changes did not reach a watch in time\n", outcome.missed);
    }
    let pods_per_node = f64::from(load.pods) / f64::from(load.nodes.max(1));
    let why = match estimate.bound {
        Bound::Lists => "beyond that the lists of agents that start within the gate's window take more",
        Bound::KeepAlives => {
            "beyond that keeping leases alive takes more; let them last longer (kvstore-lease-ttl)"
        }
        Bound::Identities => "beyond that agents that start within the gate's window ask for more identities",
        Bound::Writes => "beyond that more is written than was proven here; replay with more --churn",
        Bound::Deliveries => {
            "beyond that more changes go to agents than was proven here; replay with more --watchers or --churn"
        }
        Bound::Nothing => "nothing that was measured bounds it",
    };
    text += &format!(
        "With {pods_per_node:.0} pods a node and half of what was measured, it would carry {} nodes: {why}.\n",
        estimate.nodes
    );
    text
}
