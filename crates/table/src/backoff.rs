//! Exponential backoff with jitter.

use std::time::Duration;

/// Waiting times that double with each failure, from `min` to `max`, each shortened by a random part of
/// itself so that those who failed together do not return together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
}

/// Why a [`Backoff`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidBackoff {
    /// A zero minimum would retry without pause.
    #[error("the shortest backoff is zero; it must be longer")]
    ZeroMin,
    /// The range is empty.
    #[error("the longest backoff {max:?} is below the shortest {min:?}")]
    MaxBelowMin {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// Not a share.
    #[error("the jitter {0} is not a number from 0 to 1")]
    Jitter(f64),
}

// === impl Backoff ===

impl Backoff {
    /// `jitter` is the share of each waiting time that chance may take away: 0 takes nothing, 1 everything.
    ///
    /// # Errors
    /// When `min` is zero, `max` is below `min`, or `jitter` is not within 0 and 1.
    pub fn try_new(min: Duration, max: Duration, jitter: f64) -> Result<Self, InvalidBackoff> {
        if min.is_zero() {
            return Err(InvalidBackoff::ZeroMin);
        }
        if max < min {
            return Err(InvalidBackoff::MaxBelowMin { min, max });
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(InvalidBackoff::Jitter(jitter));
        }
        Ok(Self { min, max, jitter })
    }

    /// As [`Backoff::try_new`], of which chance may take half. A `min` of zero counts as a millisecond, and a `max` below
    /// `min` as `min`.
    pub fn half(min: Duration, max: Duration) -> Self {
        let min = min.max(Duration::from_millis(1));
        Self { min, max: max.max(min), jitter: 0.5 }
    }

    /// How long to wait after the `failures`-th failure in a row (the first is 1).
    pub fn delay(&self, failures: u32, chance: &mut fastrand::Rng) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full - full.mul_f64(self.jitter * chance.f64()).min(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Backoff::try_new(Duration::ZERO, MS, 0.5), Err(InvalidBackoff::ZeroMin));
        assert!(matches!(Backoff::try_new(2 * MS, MS, 0.5), Err(InvalidBackoff::MaxBelowMin { .. })));
        for jitter in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(Backoff::try_new(MS, MS, jitter), Err(InvalidBackoff::Jitter(_))));
        }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::try_new(10 * MS, 100 * MS, 0.0).unwrap();
        let mut chance = fastrand::Rng::with_seed(1);
        let delays: Vec<_> = (1..=6).map(|n| backoff.delay(n, &mut chance).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 100, 100]);
        assert_eq!(backoff.delay(u32::MAX, &mut chance), 100 * MS);
    }

    #[test]
    fn jitter_only_shortens_and_never_by_more_than_its_share() {
        let backoff = Backoff::try_new(100 * MS, 100 * MS, 0.3).unwrap();
        let mut chance = fastrand::Rng::with_seed(2);
        for _ in 0..1000 {
            let delay = backoff.delay(1, &mut chance);
            assert!(delay >= 70 * MS - Duration::from_nanos(10) && delay <= 100 * MS, "{delay:?}");
        }
    }
}
