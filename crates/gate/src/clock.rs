//! Two clocks: the calendar, which jumps, and the time since this boot, which does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment by both clocks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds of the calendar since 1970, UTC.
    pub unix_ms: u64,
    /// The kernel's boot id.
    pub boot: String,
    /// Milliseconds since that boot, time asleep included.
    pub uptime_ms: u64,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::new(
            u64::try_from(up.tv_sec).unwrap_or_default(),
            u32::try_from(up.tv_nsec).unwrap_or_default(),
        );
        Self { unix_ms: millis(unix), boot: boot.trim().to_owned(), uptime_ms: millis(up) }
    }

    /// How long ago an earlier moment was: within one boot by the clock that does not jump, else by the calendar, and
    /// then nothing at all if that has gone backwards.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Duration {
        Duration::from_millis(if self.boot == earlier.boot && !self.boot.is_empty() {
            self.uptime_ms.saturating_sub(earlier.uptime_ms)
        } else {
            self.unix_ms.saturating_sub(earlier.unix_ms)
        })
    }
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs() {
        let first = Moment::now();
        assert!(!first.boot.is_empty() && first.uptime_ms > 0);
        std::thread::sleep(Duration::from_millis(2));
        assert!(Moment::now().since(&first) >= Duration::from_millis(1));
    }
}
