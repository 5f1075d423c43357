//! How often the store is asked again, by how many nodes ask it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use villus_table::Backoff;

/// How many nodes the cluster has, as far as is known. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ClusterSize(Arc<AtomicU32>);

/// A backoff that is stretched by `ln(1 + nodes)`, so that what the store has to bear grows slower than the cluster.
#[derive(Clone, Debug)]
pub struct Pace {
    backoff: Backoff,
    size: ClusterSize,
}

// === impl ClusterSize ===

impl ClusterSize {
    /// From now on the cluster has so many nodes.
    pub fn set(&self, nodes: usize) {
        self.0.store(u32::try_from(nodes).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// A time between two rounds of work of a small cluster, as this one should wait: `base · ln(1 + nodes)`, never
    /// below `base`.
    pub fn stretch(&self, base: Duration) -> Duration {
        base.mul_f64(f64::from(self.0.load(Ordering::Relaxed)).ln_1p().max(1.0))
    }

    /// As [`Self::stretch`], shortened by up to a tenth by chance.
    pub fn interval(&self, base: Duration) -> Duration {
        self.stretch(base).mul_f64(0.9 + 0.1 * fastrand::f64())
    }
}

// === impl Pace ===

impl From<Backoff> for Pace {
    /// Of a cluster of one node.
    fn from(backoff: Backoff) -> Self {
        Self { backoff, size: ClusterSize::default() }
    }
}

impl Pace {
    /// A backoff for a cluster of this size, now and later.
    pub fn new(backoff: Backoff, size: ClusterSize) -> Self {
        Self { backoff, size }
    }

    /// The size that it goes by.
    pub fn size(&self) -> &ClusterSize {
        &self.size
    }

    /// How long to wait after the `failures`-th failure in a row (the first is 1).
    pub fn delay(&self, failures: u32, chance: &mut fastrand::Rng) -> Duration {
        self.size.stretch(self.backoff.delay(failures, chance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_nodes_wait_seven_times_as_long_as_one() {
        let size = ClusterSize::default();
        let base = Duration::from_secs(10);
        for (nodes, seconds) in [(0, 10.0), (1, 10.0), (2, 10.986), (1023, 69.31), (9999, 92.10)] {
            size.set(nodes);
            let stretched = size.stretch(base).as_secs_f64();
            assert!((stretched - seconds).abs() < 0.01, "{nodes}: {stretched}");
            let interval = size.interval(base).as_secs_f64();
            assert!((seconds * 0.89..=seconds * 1.001).contains(&interval), "{nodes}: {interval}");
        }
    }
}
