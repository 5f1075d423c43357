//! The largest cluster that a store would carry, by what it did.

use std::num::NonZeroU32;

use serde::Serialize;
use villus_gate::window;
use villus_kvstore::Pages;

use super::layout::ALIKE;

/// The share of what was measured that is counted on: the rest is for compactions, elections and bad days.
const SHARE: f64 = 0.5;
/// Bytes of an entry with its key, as a rule.
pub(crate) const ENTRY: usize = 300;
/// Largest cluster that is considered.
const LARGEST: u32 = 200_000;

/// Leases of a node: of its addresses and of its identities.
const LEASES: f64 = 2.0;
/// How often leases are kept alive in their time.
const KEPT: f64 = 3.0;

/// What a store did in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Pages listed.
    pub pages: f64,
    /// Leases kept alive.
    pub keep_alives: f64,
    /// Identities allocated.
    pub identities: f64,
    /// Single writes.
    pub writes: f64,
    /// Changes delivered to watches, all together.
    pub deliveries: f64,
}

/// A cluster, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Pods of a node.
    pub pods_per_node: f64,
    /// Changes of a pod in a second.
    pub changes_per_pod: f64,
    /// Seconds that leases last (`kvstore-lease-ttl`).
    pub lease_ttl: f64,
}

/// What keeps a cluster from being larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// All agents start within one window of the gate, and each lists everything.
    Lists,
    /// Every agent keeps its leases alive.
    KeepAlives,
    /// All agents start within one window of the gate, and each has its identities confirmed.
    Identities,
    /// Every change is written.
    Writes,
    /// Every change goes to every agent.
    Deliveries,
    /// Nothing, up to the largest that is considered.
    Nothing,
}

/// The largest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Its nodes.
    pub nodes: u32,
    /// What keeps it from being larger.
    pub bound: Bound,
}

/// The largest cluster of this shape, if the store does no more than half of what was measured. Writes and deliveries were
/// measured under a load that may not have been the most: they are what is proven.
#[must_use]
pub fn estimate(measured: &Measured, shape: &Shape) -> Estimate {
    let fits = |nodes: u32| -> Option<Bound> {
        let count = f64::from(nodes);
        let pods = count * shape.pods_per_node;
        // Addresses, one identity for some of them, nodes.
        let lists = [pods, pods / f64::from(ALIKE), count].map(|entries| Pages::count(entries as u64, ENTRY));
        let pages = lists.iter().sum::<u64>() as f64;
        let window = NonZeroU32::new(nodes).map_or(1.0, |nodes| window::of_nodes(nodes).as_secs_f64());
        let changes = pods * shape.changes_per_pod;
        [
            (count * pages / window, measured.pages, Bound::Lists),
            (count * LEASES * KEPT / shape.lease_ttl.max(1.0), measured.keep_alives, Bound::KeepAlives),
            ((pods / window).max(changes), measured.identities, Bound::Identities),
            (changes, measured.writes, Bound::Writes),
            (changes * count, measured.deliveries, Bound::Deliveries),
        ]
        .into_iter()
        .find(|(needed, there, _)| *needed > there * SHARE)
        .map(|(_, _, bound)| bound)
    };
    // Every need grows with the nodes, so the largest that fits is found by halving.
    let (mut below, mut above) = (0, LARGEST + 1);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if fits(middle).is_none() { below = middle } else { above = middle }
    }
    Estimate {
        nodes: below,
        bound: if below == LARGEST { Bound::Nothing } else { fits(above).unwrap_or(Bound::Nothing) },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: f64 = 1.0 / 86_400.0;

    #[test]
    fn what_is_scarcest_bounds_the_cluster() {
        let plenty =
            Measured { pages: 1e9, keep_alives: 1e9, identities: 1e9, writes: 1e9, deliveries: 1e12 };
        let shape = |lease_ttl| Shape { pods_per_node: 30.0, changes_per_pod: DAY, lease_ttl };
        let bound = |measured| estimate(&measured, &shape(86_400.0));
        assert_eq!(bound(plenty), Estimate { nodes: LARGEST, bound: Bound::Nothing });
        // Six times in a quarter of an hour for each node, of which the store does half of ten a second.
        let kept = Measured { keep_alives: 10.0, ..plenty };
        assert_eq!(estimate(&kept, &shape(900.0)), Estimate { nodes: 750, bound: Bound::KeepAlives });
        assert_eq!(bound(Measured { identities: 20.0, ..plenty }).bound, Bound::Identities);
        assert_eq!(bound(Measured { pages: 1_000.0, ..plenty }).bound, Bound::Lists);
        assert_eq!(bound(Measured { writes: 1.0, ..plenty }).nodes, 1440);
        assert_eq!(bound(Measured { deliveries: 10_000.0, ..plenty }).bound, Bound::Deliveries);
        assert_eq!(bound(Measured { pages: 0.0, ..plenty }).nodes, 0);
    }

    proptest! {
        #[test]
        fn more_of_anything_never_makes_it_smaller(
            pages in 1.0f64..1e6, keep_alives in 0.1f64..1e5, identities in 1.0f64..1e5, writes in 1.0f64..1e5, deliveries in 1.0f64..1e8, pods in 1.0f64..200.0, more in 1.0f64..10.0,
        ) {
            let measured = Measured { pages, keep_alives, identities, writes, deliveries };
            let nodes = |measured: &Measured, pods_per_node: f64| {
                estimate(measured, &Shape { pods_per_node, changes_per_pod: DAY, lease_ttl: 900.0 }).nodes
            };
            let base = nodes(&measured, pods);
            for better in [
                Measured { pages: pages * more, ..measured },
                Measured { keep_alives: keep_alives * more, ..measured },
                Measured { identities: identities * more, ..measured },
                Measured { writes: writes * more, ..measured },
                Measured { deliveries: deliveries * more, ..measured },
            ] {
                prop_assert!(nodes(&better, pods) >= base);
            }
            prop_assert!(nodes(&measured, pods * more) <= base);
        }
    }
}
