//! How many events there were, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use villus_abi::{Direction, Reason};

use crate::{EventType, FlowEvent};

/// Counts events by type, reason and direction. Packets are counted by the kernel in `villus_metrics_v1`;
/// these are events, of which aggregation and a full ring leave out some.
#[derive(Debug)]
pub struct Counters {
    cells: Box<[AtomicU64]>,
}

/// One line of [`Counters::snapshot`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterRow {
    /// Type of the events.
    pub event: EventType,
    /// Their reason; [`Reason::FORWARDED`] if none.
    pub reason: Reason,
    /// Direction of the endpoint that judged.
    pub direction: Direction,
    /// How many.
    pub count: u64,
}

const TYPES: [EventType; 3] = [EventType::Drop, EventType::Trace, EventType::PolicyVerdict];
const PER_TYPE: usize = 512;

impl Default for Counters {
    fn default() -> Self {
        Self { cells: (0..TYPES.len() * PER_TYPE).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Counters {
    /// Counts an event.
    pub fn count(&self, event: &FlowEvent) {
        let reason = event.reason().unwrap_or_default();
        let kind = match EventType::of(event) {
            EventType::Drop => 0,
            EventType::Trace => 1,
            EventType::PolicyVerdict => 2,
        };
        let index = kind * PER_TYPE + usize::from(reason.0) * 2 + event.direction as usize;
        if let Some(cell) = self.cells.get(index) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Everything that was counted at least once.
    #[must_use]
    pub fn snapshot(&self) -> Vec<CounterRow> {
        let mut rows = Vec::new();
        for (event, cells) in TYPES.into_iter().zip(self.cells.chunks_exact(PER_TYPE)) {
            for (reason, pair) in (0..=u8::MAX).zip(cells.chunks_exact(2)) {
                for (direction, cell) in Direction::ALL.into_iter().zip(pair) {
                    let count = cell.load(Relaxed);
                    if count > 0 {
                        rows.push(CounterRow { event, reason: Reason(reason), direction, count });
                    }
                }
            }
        }
        rows
    }
}
