//! The last events, and those who watch new ones arrive.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{Counters, Filter, FlowEvent};

/// What an observer receives, in the order in which it happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// An event that passed the observer's filter.
    Event(FlowEvent),
    /// Events are missing here.
    Lost {
        /// Who lost them.
        #[serde(rename = "lost")]
        source: LossSource,
        /// How many.
        count: u64,
    },
}

/// Where events were lost.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossSource {
    /// The kernel's ring was full: the agent reads too slowly.
    KernelRing,
    /// The observer's queue was full: the observer reads too slowly.
    ObserverQueue,
}

impl fmt::Display for LossSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelRing => "the kernel's ring was full",
            Self::ObserverQueue => "the observer reads too slowly",
        })
    }
}

/// The last events of this node, how many there were, and the observers of new ones.
///
/// One writer and any number of readers. A writer holds the lock for a copy of each event and never waits
/// for an observer.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
    counters: Counters,
    lost_kernel: AtomicU64,
    lost_observers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    events: VecDeque<FlowEvent>,
    seen: u64,
    observers: Vec<Slot>,
    closed: bool,
}

/// The writer's side of an observer.
#[derive(Debug)]
struct Slot {
    filter: Filter,
    queue: mpsc::Sender<Record>,
    missed: Arc<AtomicU64>,
}

/// Receives the events that pass a filter. Dropping it ends the observation.
#[derive(Debug)]
pub struct Observer {
    queue: mpsc::Receiver<Record>,
    past: VecDeque<FlowEvent>,
    missed: Arc<AtomicU64>,
}

impl History {
    /// A history of the last `capacity` events; 0 keeps none but still serves observers.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let inner = Inner {
            capacity,
            events: VecDeque::with_capacity(capacity.min(65_536)),
            seen: 0,
            observers: Vec::new(),
            closed: false,
        };
        Self {
            inner: Mutex::new(inner),
            counters: Counters::default(),
            lost_kernel: AtomicU64::new(0),
            lost_observers: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Adds events in the order in which they happened.
    pub fn push(&self, events: &[FlowEvent]) {
        events.iter().for_each(|event| self.counters.count(event));
        let mut inner = self.lock();
        inner.seen += events.len() as u64;
        inner.keep(events);
        for event in events {
            inner.offer(
                |slot| slot.filter.matches(event),
                &Record::Event(event.clone()),
                &self.lost_observers,
            );
        }
    }

    /// Says that the kernel's ring had no room for `count` events; every observer is told.
    pub fn lost_in_kernel(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.lost_kernel.fetch_add(count, Relaxed);
        let record = Record::Lost { source: LossSource::KernelRing, count };
        self.lock().offer(|_| true, &record, &self.lost_observers);
    }

    /// The last `count` events that pass `filter`, oldest first.
    #[must_use]
    pub fn last(&self, count: usize, filter: &Filter) -> Vec<FlowEvent> {
        self.lock().last(count, filter).into()
    }

    /// Observes events that pass `filter`: first the last `past` of the history, then new ones through a
    /// queue of `queue` records (at least 2). None is missed or repeated between the two.
    #[must_use]
    pub fn observe(&self, filter: Filter, past: usize, queue: usize) -> Observer {
        let (sender, receiver) = mpsc::channel(queue.max(2));
        let missed = Arc::new(AtomicU64::new(0));
        let mut inner = self.lock();
        let past = inner.last(past, &filter);
        if !inner.closed {
            inner.observers.push(Slot { filter, queue: sender, missed: Arc::clone(&missed) });
        }
        Observer { queue: receiver, past, missed }
    }

    /// Ends every observation, now and later: observers receive what is queued and then the end.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.observers.clear();
    }

    /// How many observers there are.
    #[must_use]
    pub fn observers(&self) -> usize {
        let mut inner = self.lock();
        inner.observers.retain(|slot| !slot.queue.is_closed());
        inner.observers.len()
    }

    /// How many events were pushed since the start.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.lock().seen
    }

    /// How many events are kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether no event is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events were lost at `source` since the start, observers' losses added up.
    #[must_use]
    pub fn lost(&self, source: LossSource) -> u64 {
        match source {
            LossSource::KernelRing => self.lost_kernel.load(Relaxed),
            LossSource::ObserverQueue => self.lost_observers.load(Relaxed),
        }
    }

    /// Events by type, reason and direction.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is whole after every single step, so a panic elsewhere has not broken it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, events: &[FlowEvent]) {
        let fresh = &events[events.len().saturating_sub(self.capacity)..];
        let excess = (self.events.len() + fresh.len()).saturating_sub(self.capacity);
        self.events.drain(..excess.min(self.events.len()));
        self.events.extend(fresh.iter().cloned());
    }

    fn last(&self, count: usize, filter: &Filter) -> VecDeque<FlowEvent> {
        let mut found = VecDeque::new();
        for event in self.events.iter().rev().filter(|event| filter.matches(event)).take(count) {
            found.push_front(event.clone());
        }
        found
    }

    /// Gives a record to every observer that wants it and forgets those that have gone.
    fn offer(&mut self, wants: impl Fn(&Slot) -> bool, record: &Record, lost: &AtomicU64) {
        self.observers.retain(|slot| {
            if slot.queue.is_closed() {
                return false;
            }
            if wants(slot) {
                slot.offer(record.clone(), lost);
            }
            true
        });
    }
}

impl Slot {
    fn offer(&self, record: Record, lost: &AtomicU64) {
        let missed = self.missed.load(Relaxed);
        let needed = if missed == 0 { 1 } else { 2 };
        if self.queue.capacity() < needed {
            // A loss report that finds no room is repeated with the next record, not counted as an event.
            let count = if let Record::Lost { count, .. } = record { count } else { 1 };
            self.missed.fetch_add(count, Relaxed);
            lost.fetch_add(count, Relaxed);
            return;
        }
        if missed > 0 {
            let count = self.missed.swap(0, Relaxed);
            if count > 0 {
                let _ = self.queue.try_send(Record::Lost { source: LossSource::ObserverQueue, count });
            }
        }
        let _ = self.queue.try_send(record);
    }
}

impl Observer {
    /// The next record; `None` when the history was closed and everything was received.
    ///
    /// May be dropped before it is ready without losing anything.
    pub async fn next(&mut self) -> Option<Record> {
        if let Some(record) = self.ready() {
            return Some(record);
        }
        self.queue.recv().await.or_else(|| self.missed_record())
    }

    /// The next record if one is there already.
    pub fn ready(&mut self) -> Option<Record> {
        if let Some(event) = self.past.pop_front() {
            return Some(Record::Event(event));
        }
        self.queue.try_recv().ok().or_else(|| self.missed_record())
    }

    /// What was missed since the queue was last written to; asked when the queue is empty.
    fn missed_record(&self) -> Option<Record> {
        match self.missed.swap(0, Relaxed) {
            0 => None,
            count => Some(Record::Lost { source: LossSource::ObserverQueue, count }),
        }
    }
}
