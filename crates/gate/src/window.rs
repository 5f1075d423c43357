//! How long the starts of a cluster's agents are spread.

use std::{num::NonZeroU32, time::Duration};

/// Published for large clusters: nodes, and seconds of their window.
const POINTS: [(f64, f64); 2] = [(1_000.0, 20.0 * 60.0), (5_000.0, 60.0 * 60.0)];

/// The window of a cluster with so many nodes, in whole seconds: 20 min for 1,000, 60 min for 5,000. Below, between and
/// above it is the straight line through these two on doubly logarithmic paper: it grows with nodes^0.683, so that ten
/// nodes have 52 s, 10,000 have 96 min, and the starts a second grow slower than the cluster does.
#[must_use]
pub fn of_nodes(nodes: NonZeroU32) -> Duration {
    let [(few, short), (many, long)] = POINTS;
    let exponent = (long / short).ln() / (many / few).ln();
    let seconds = short * (f64::from(nodes.get()) / few).powf(exponent);
    Duration::from_secs_f64(seconds.round())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(nodes: u32) -> u64 {
        of_nodes(NonZeroU32::new(nodes).unwrap()).as_secs()
    }

    #[test]
    fn the_published_points_are_met_and_continued() {
        assert_eq!(seconds(1_000), 20 * 60);
        assert_eq!(seconds(5_000), 60 * 60);
        assert_eq!((seconds(1), seconds(10), seconds(100)), (11, 52, 249));
        assert_eq!(seconds(10_000) / 60, 96);
    }

    proptest! {
        #[test]
        fn larger_clusters_have_longer_windows_and_no_fewer_starts_a_second(a in 1u32..2_000_000, b in 1u32..2_000_000) {
            let (small, large) = (a.min(b), a.max(b));
            prop_assert!(seconds(small) <= seconds(large));
            // Whole seconds round small windows, so the rate is compared from a hundred nodes on.
            if small >= 100 {
                let rate = |nodes: u32| f64::from(nodes) / seconds(nodes) as f64;
                prop_assert!(rate(small) <= rate(large) * 1.01);
            }
        }
    }
}
