//! Whether this machine's calendar is that of the others. Nothing is decided by it: what runs out runs out by a clock that does
//! not jump. It is said, for certificates, policies' times and logs are read by it.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use villus_kvstore::keys::HEARTBEAT;

/// What is said: less is what a busy machine and its network take, and disturbs nothing.
const TOLERANCE: Duration = Duration::from_secs(300);

/// The heartbeat of the store as it was found: the operator's time at which it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Beat {
    pub revision: u64,
    pub text: String,
}

/// Two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub steady: Instant,
    pub calendar: Timestamp,
}

/// What is known of the calendar.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    last: Option<Moment>,
    /// The newest heartbeat, and when it was looked for.
    beat: Option<(u64, Instant)>,
    /// By how much this calendar is ahead of the one by which the heartbeat is written, as far as is known.
    offset: SignedDuration,
    jumps: u64,
}

// === impl Moment ===

impl Moment {
    pub fn now() -> Self {
        Self { steady: Instant::now(), calendar: Timestamp::now() }
    }
}

// === impl Calendar ===

impl Calendar {
    /// How often it jumped.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    /// By how much it is ahead of the one by which the heartbeat is written; 0 where they agree or none is written.
    pub fn offset(&self) -> SignedDuration {
        self.offset
    }

    /// Notes that it is now. Returns by how much the calendar has jumped forward since the last time, if it has.
    pub fn tick(&mut self, now: Moment) -> Option<SignedDuration> {
        let last = self.last.replace(now)?;
        let passed = SignedDuration::try_from(now.steady.duration_since(last.steady)).ok()?;
        let jump = now.calendar.duration_since(last.calendar).checked_sub(passed)?;
        if jump.unsigned_abs() < TOLERANCE {
            return None;
        }
        self.jumps += 1;
        Some(jump)
    }

    /// Compares it with a heartbeat that was found. Only one that was written since the last look says what time it was
    /// then.
    pub fn compare(&mut self, beat: &Beat, now: Moment) {
        let Some((revision, looked)) = self.beat.replace((beat.revision, now.steady)) else { return };
        if revision == beat.revision {
            return;
        }
        let Ok(written) = beat.text.parse::<Timestamp>() else { return };
        let ahead = now.calendar.duration_since(written);
        let since = SignedDuration::try_from(now.steady.duration_since(looked)).unwrap_or_default();
        // Written at some time since then.
        let least = ahead.saturating_sub(since);
        let off = if ahead.is_negative() { ahead } else { least.max(SignedDuration::ZERO) };
        self.offset = if off.unsigned_abs() < TOLERANCE { SignedDuration::ZERO } else { off };
    }

    /// What is wrong with it.
    pub fn problem(&self) -> Option<String> {
        let seconds = self.offset.as_secs();
        let (size, side) = match seconds {
            0 => return None,
            1.. => (seconds, "ahead of"),
            _ => (-seconds, "behind"),
        };
        Some(format!(
            "this node's clock is {size}s {side} the one by which `{HEARTBEAT}` is written: nothing here depends on it but \
             certificates, times in logs and in `villus policy history`; set the one that is wrong"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Moment, steady: u64, calendar: i64) -> Moment {
        Moment {
            steady: begin.steady + Duration::from_secs(steady),
            calendar: begin.calendar + SignedDuration::from_secs(calendar),
        }
    }

    fn beat(revision: u64, moment: Moment) -> Beat {
        Beat { revision, text: moment.calendar.to_string() }
    }

    #[test]
    fn only_a_jump_is_counted_and_once() {
        let (begin, mut calendar) = (Moment::now(), Calendar::default());
        for (steady, time, jump) in
            [(0, 0, None), (30, 31, None), (60, 3660, Some(3599)), (90, 3690, None), (120, 120, Some(-3600))]
        {
            let jumped = calendar.tick(at(begin, steady, time)).map(|jump| jump.as_secs());
            assert_eq!(jumped, jump, "after {steady}s");
        }
        assert_eq!(calendar.jumps(), 2);
    }

    #[test]
    fn a_heartbeat_says_how_far_a_calendar_is_off_only_if_it_is_fresh() {
        for (off, said) in [(0, None), (200, None), (3600, Some("ahead of")), (-3600, Some("behind"))] {
            let (begin, mut calendar) = (Moment::now(), Calendar::default());
            calendar.compare(&beat(1, at(begin, 0, -86_400)), at(begin, 0, off));
            calendar.compare(&beat(1, at(begin, 0, -86_400)), at(begin, 30, 30 + off));
            assert_eq!(calendar.problem(), None, "an old one says nothing");
            calendar.compare(&beat(2, at(begin, 0, 40)), at(begin, 60, 60 + off));
            let problem = calendar.problem();
            assert_eq!(problem.is_some(), said.is_some(), "{off}: {problem:?}");
            if let (Some(problem), Some(said)) = (problem, said) {
                assert!(problem.contains(said), "{problem}");
            }
            calendar.compare(&beat(3, at(begin, 0, 70)), at(begin, 90, 90));
            assert_eq!(calendar.problem(), None, "the clock was set right");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_heartbeat_is_read(text in ".*", revision: u64) {
            let mut calendar = Calendar::default();
            calendar.compare(&Beat { revision: revision ^ 1, text: String::new() }, Moment::now());
            calendar.compare(&Beat { revision, text }, Moment::now());
            let _ = calendar.problem();
        }
    }
}
