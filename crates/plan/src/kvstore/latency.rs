//! Times of many operations.

use std::time::Duration;

use serde::Serialize;

/// How long operations took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    /// How many there were.
    pub count: usize,
    /// How many there were in a second, all together.
    pub rate: f64,
    /// Half of them took no longer.
    pub p50: f64,
    /// Of a hundred, one took longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// Of these times, which all fell into `within`.
    #[must_use]
    pub fn of(mut times: Vec<Duration>, within: Duration) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            let index = (last as f64 * share).round() as usize;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self {
            count: times.len(),
            rate: times.len() as f64 / within.as_secs_f64().max(1e-9),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_sorted_times() {
        let times = (1..=101).rev().map(Duration::from_millis).collect();
        let latency = Latency::of(times, Duration::from_secs(1));
        assert_eq!((latency.count, latency.p50, latency.p99, latency.max), (101, 51.0, 100.0, 101.0));
        assert_eq!(Latency::of(Vec::new(), Duration::ZERO), Latency::default());
    }
}
