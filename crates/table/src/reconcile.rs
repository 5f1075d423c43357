//! The reconciler: a state machine that makes a target equal to a table.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use crate::{
    backoff::Backoff,
    changes::{Change, Changes, Kind},
    status::{RowState, RowStatus, Statuses},
    table::{Revision, Snapshot, Table},
};

/// What a table is reconciled into. Every verb may be repeated at any time without harm.
pub trait Target<K, V> {
    /// Why the target refused.
    type Error: fmt::Display;

    /// Makes the target hold this row.
    ///
    /// # Errors
    /// When it could not; the row is tried again later.
    fn update(&mut self, key: &K, value: &V) -> Result<(), Self::Error>;

    /// Makes the target not hold this key. That it does not hold it already is success.
    ///
    /// # Errors
    /// When it could not; the key is tried again later.
    fn delete(&mut self, key: &K) -> Result<(), Self::Error>;

    /// Compares everything the target holds with `rows`, makes it equal and says what differed.
    ///
    /// # Errors
    /// When it could not be compared, or not be made equal, completely.
    fn prune(&mut self, rows: &Snapshot<K, V>) -> Result<Pruned, Self::Error>;

    /// Makes the target hold all rows, whatever else it holds, and says that it does. Called once, before anything else, if
    /// there are many; a target that is not faster so leaves it, and is told row by row.
    ///
    /// # Errors
    /// When not all could be written; they are tried again row by row.
    fn fill(&mut self, rows: &Snapshot<K, V>) -> Result<bool, Self::Error> {
        let _ = rows;
        Ok(false)
    }

    /// Carries out many operations, one result for each, in their order. A target that is faster in batches
    /// overrides this.
    fn apply(&mut self, ops: &[Op<K, V>]) -> Vec<Result<(), Self::Error>> {
        let one = |op: &Op<K, V>| match &op.value {
            Some(value) => self.update(&op.key, value),
            None => self.delete(&op.key),
        };
        ops.iter().map(one).collect()
    }
}

/// One thing for a target to do: hold `value` under `key`, or without a value nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op<K, V> {
    /// The key.
    pub key: K,
    /// The wanted value, `None` to delete.
    pub value: Option<V>,
    /// Revision of the row, or of its deletion.
    pub revision: Revision,
}

/// What a full comparison found and mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Rows that the target did not hold.
    pub missing: u64,
    /// Keys that the target held without a row.
    pub extra: u64,
    /// Rows that the target held with another value.
    pub altered: u64,
}

/// How a reconciler goes about it.
#[derive(Clone, Debug)]
pub struct Config {
    full_interval: Duration,
    batch: usize,
    backoff: Backoff,
}

/// Why a [`Config`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// Comparing without pause.
    #[error("the interval between full comparisons is zero; it must be longer")]
    ZeroInterval,
    /// No progress would be made.
    #[error("a batch of zero rows makes no progress; it must hold at least one")]
    EmptyBatch,
}

/// Totals since the reconciler was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Rows written to the target.
    pub updates: u64,
    /// Keys deleted from the target.
    pub deletes: u64,
    /// Operations that failed.
    pub failures: u64,
    /// Operations that were tried again.
    pub retries: u64,
    /// Full comparisons that succeeded.
    pub full_runs: u64,
    /// Full comparisons that failed.
    pub full_failures: u64,
    /// What the full comparisons after the first one mended: drift.
    pub drift: Pruned,
    /// What the first full comparison mended: what a restart found.
    pub first: Pruned,
}

/// What a step left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Operations tried in this step.
    pub tried: usize,
    /// Rows that wait for another try.
    pub failing: usize,
    /// The table has more changes than one batch holds: step again at once.
    pub more: bool,
    /// Step again at the latest then, or as soon as the table changes. `None`: only when it changes.
    pub next: Option<Instant>,
}

/// Makes a target equal to a table. A state machine: [`Reconciler::step`] does what is due and says when to
/// come back; a thread or a task drives it ([`Reconciler::run`]), a test drives it with a clock of its own.
///
/// Nothing is pruned before every source has filled the table ([`Table::source`]), so that an agent that has
/// just started never empties a target that its predecessor filled.
pub struct Reconciler<K, V> {
    table: Table<K, V>,
    changes: Changes<K, V>,
    config: Config,
    chance: fastrand::Rng,
    retries: BTreeMap<K, Retry>,
    /// The target has been told something, or asked to be.
    is_begun: bool,
    /// The target was equal to the table as of this revision before the batch under way.
    before_batch: Revision,
    full_due: Option<Instant>,
    full_failures: u32,
    full_error: Option<String>,
    statuses: Statuses<K>,
    counters: watch::Sender<Counters>,
    reconciled: watch::Sender<Revision>,
    trigger: FullTrigger,
}

struct Retry {
    failures: u32,
    due: Instant,
    revision: Revision,
    /// Writes after this revision may not have arrived.
    held: Revision,
}

/// Asks a reconciler for a full comparison as soon as possible.
#[derive(Clone, Debug, Default)]
pub struct FullTrigger(Arc<(AtomicBool, Notify)>);

// === impl FullTrigger ===

impl FullTrigger {
    /// Asks.
    pub fn request(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_one();
    }

    pub(crate) async fn requested(&self) {
        self.0.1.notified().await;
    }

    fn pending(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    fn clear(&self) {
        self.0.0.store(false, Ordering::Release);
    }
}

// === impl Config ===

impl Config {
    /// Full comparisons every `full_interval` (a random tenth earlier), `batch` rows at a time at most,
    /// failures tried again after `backoff`.
    ///
    /// # Errors
    /// When the interval or the batch is zero.
    pub fn try_new(full_interval: Duration, batch: usize, backoff: Backoff) -> Result<Self, InvalidConfig> {
        if full_interval.is_zero() {
            return Err(InvalidConfig::ZeroInterval);
        }
        if batch == 0 {
            return Err(InvalidConfig::EmptyBatch);
        }
        Ok(Self { full_interval, batch, backoff })
    }
}

// === impl Counters ===

impl Pruned {
    fn add(&mut self, other: Self) {
        self.missing += other.missing;
        self.extra += other.extra;
        self.altered += other.altered;
    }

    /// Everything that differed.
    pub fn total(&self) -> u64 {
        self.missing + self.extra + self.altered
    }
}

// === impl Reconciler ===

impl<K: Ord + Clone, V: Clone> Reconciler<K, V> {
    /// A reconciler of `table`, with `seed` for its jitter. The first full comparison is due at once.
    pub fn new(table: &Table<K, V>, config: Config, seed: u64) -> Self {
        Self {
            table: table.clone(),
            changes: table.changes(),
            config,
            chance: fastrand::Rng::with_seed(seed),
            retries: BTreeMap::new(),
            is_begun: false,
            before_batch: 0,
            full_due: None,
            full_failures: 0,
            full_error: None,
            statuses: Statuses::new(),
            counters: watch::Sender::new(Counters::default()),
            reconciled: watch::Sender::new(0),
            trigger: FullTrigger::default(),
        }
    }

    /// The statuses of rows that the target does not hold as wanted, readable while the reconciler runs elsewhere.
    pub fn statuses(&self) -> Statuses<K> {
        self.statuses.clone()
    }

    /// The totals, readable while the reconciler runs elsewhere.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.counters.subscribe()
    }

    /// The revision up to which every write has arrived at the target, or a later write of the same row. Wait
    /// on it to know that a write has arrived.
    pub fn reconciled(&self) -> watch::Receiver<Revision> {
        self.reconciled.subscribe()
    }

    /// A handle that asks for a full comparison.
    pub fn full_trigger(&self) -> FullTrigger {
        self.trigger.clone()
    }

    /// Why the last full comparison failed, if it did.
    pub fn full_error(&self) -> Option<&str> {
        self.full_error.as_deref()
    }

    pub(crate) fn table(&self) -> &Table<K, V> {
        &self.table
    }

    pub(crate) fn feed(&mut self) -> &mut Changes<K, V> {
        &mut self.changes
    }

    /// Does what is due at `now`: new changes, rows whose backoff has passed, a full comparison.
    pub fn step<T: Target<K, V>>(&mut self, now: Instant, target: &mut T) -> Step {
        let mut tried = self.fill(target);
        let ops = self.due_ops(now);
        if !ops.is_empty() {
            let results = target.apply(&ops);
            tried += ops.len();
            self.settle(now, ops, results.into_iter().map(|result| result.map_err(|e| e.to_string())));
        }
        if !self.changes.is_behind()
            && let Some(rows) = self.due_full(now)
        {
            let outcome = target.prune(&rows).map_err(|e| e.to_string());
            self.settle_full(now, &rows, outcome);
        }
        Step { tried, failing: self.retries.len(), more: self.changes.is_behind(), next: self.next_due() }
    }

    /// The first rows, if they are more than a batch and the target takes them all. Returns how many it took.
    fn fill<T: Target<K, V>>(&mut self, target: &mut T) -> usize {
        if std::mem::replace(&mut self.is_begun, true) || self.table.len() <= self.config.batch {
            return 0;
        }
        let rows = self.table.snapshot();
        match target.fill(&rows) {
            Ok(true) if self.changes.begin_after(rows.revision()) => {}
            Ok(_) => return 0,
            Err(error) => {
                tracing::warn!(table = self.table.name(), %error, "the first rows are written one by one");
                return 0;
            }
        }
        self.counters.send_modify(|counters| counters.updates += rows.len() as u64);
        self.publish_reconciled();
        rows.len()
    }

    /// The operations that are due at `now`, at most a batch of changes and all rows whose backoff has
    /// passed. For targets that need more than [`Reconciler::step`] offers; hand the outcome to
    /// [`Reconciler::settle`].
    pub fn due_ops(&mut self, now: Instant) -> Vec<Op<K, V>> {
        self.before_batch = self.changes.cursor();
        let changes = self.changes.take_up_to(self.config.batch);
        let mut ops = self.retry_ops(now, &changes);
        self.statuses.edit(|rows| {
            for change in changes {
                let deleting = change.kind == Kind::Deleted;
                let status = RowStatus { state: RowState::Pending, since: now, deleting };
                rows.insert(change.key.clone(), status);
                let value = (!deleting).then_some(change.value);
                ops.push(Op { key: change.key, value, revision: change.revision });
            }
        });
        ops
    }

    /// The rows whose backoff has passed. Those with a new change start over with it instead.
    fn retry_ops(&mut self, now: Instant, changes: &[Change<K, V>]) -> Vec<Op<K, V>> {
        for change in changes {
            if let Some(retry) = self.retries.get_mut(&change.key) {
                retry.failures = 0;
                retry.due = now + self.config.full_interval;
            }
        }
        let due = self.retries.iter().filter(|(_, retry)| retry.due <= now);
        let op = |(key, retry): (&K, &Retry)| {
            let (key, value) = (key.clone(), self.table.get(key));
            Op { key, value, revision: retry.revision }
        };
        let ops: Vec<_> = due.map(op).collect();
        self.counters.send_modify(|counters| counters.retries += ops.len() as u64);
        ops
    }

    /// Takes the outcome of operations from [`Reconciler::due_ops`], one result for each in their order; an
    /// operation without a result counts as failed.
    pub fn settle(
        &mut self,
        now: Instant,
        ops: Vec<Op<K, V>>,
        results: impl IntoIterator<Item = Result<(), String>>,
    ) {
        let mut results = results.into_iter();
        let mut counters = *self.counters.borrow();
        for op in ops {
            let result = results.next().unwrap_or_else(|| Err("the target gave no answer".to_owned()));
            match result {
                Ok(()) if op.value.is_some() => counters.updates += 1,
                Ok(()) => counters.deletes += 1,
                Err(_) => counters.failures += 1,
            }
            match result {
                Ok(()) => self.succeeded(&op),
                Err(message) => self.failed(now, op, message),
            }
        }
        self.counters.send_replace(counters);
        self.publish_reconciled();
    }

    /// The rows to compare with the whole target, when a full comparison is due at `now` and the table is
    /// complete. Hand the outcome to [`Reconciler::settle_full`].
    pub fn due_full(&self, now: Instant) -> Option<Snapshot<K, V>> {
        let due = self.full_due.is_none_or(|due| due <= now) || self.trigger.pending();
        (due && self.table.is_complete()).then(|| self.table.snapshot())
    }

    /// Takes the outcome of a full comparison with `rows`. Success settles every row of them.
    pub fn settle_full(&mut self, now: Instant, rows: &Snapshot<K, V>, outcome: Result<Pruned, String>) {
        self.trigger.clear();
        let mut counters = *self.counters.borrow();
        match outcome {
            Ok(pruned) => {
                let kind = if counters.full_runs == 0 { &mut counters.first } else { &mut counters.drift };
                kind.add(pruned);
                counters.full_runs += 1;
                self.full_failures = 0;
                self.full_error = None;
                self.full_due = Some(now + self.shortened(self.config.full_interval));
                self.settle_all(rows);
            }
            Err(message) => {
                counters.full_failures += 1;
                self.full_failures = self.full_failures.saturating_add(1);
                let wait = self.config.backoff.delay(self.full_failures, &mut self.chance);
                self.full_due = Some(now + wait);
                tracing::warn!(table = self.table.name(), %message, ?wait, "full comparison failed");
                self.full_error = Some(message);
            }
        }
        self.counters.send_replace(counters);
        self.publish_reconciled();
    }

    fn succeeded(&mut self, op: &Op<K, V>) {
        self.retries.remove(&op.key);
        self.statuses.edit(|rows| rows.remove(&op.key));
    }

    fn failed(&mut self, now: Instant, op: Op<K, V>, message: String) {
        let before = self.retries.get(&op.key);
        let failures = before.map_or(0, |retry| retry.failures).saturating_add(1);
        let held = before.map_or(self.before_batch, |retry| retry.held);
        let due = now + self.config.backoff.delay(failures, &mut self.chance);
        if failures == 1 {
            tracing::warn!(table = self.table.name(), %message, "a row could not be reconciled");
        }
        self.retries.insert(op.key.clone(), Retry { failures, due, revision: op.revision, held });
        let deleting = op.value.is_none();
        self.statuses.edit(|rows| {
            let since = match rows.get(&op.key) {
                Some(RowStatus { state: RowState::Error { .. }, since, .. }) => *since,
                _ => now,
            };
            let state = RowState::Error { message, failures };
            rows.insert(op.key, RowStatus { state, since, deleting });
        });
    }

    /// After a full comparison: all rows of the snapshot are done, and what is not in it is gone.
    fn settle_all(&mut self, snapshot: &Snapshot<K, V>) {
        let revision = snapshot.revision();
        self.retries.retain(|_, retry| retry.revision > revision);
        let retries = &self.retries;
        self.statuses.edit(|rows| rows.retain(|key, _| retries.contains_key(key)));
    }

    fn next_due(&self) -> Option<Instant> {
        let retry = self.retries.values().map(|retry| retry.due).min();
        // Before the first comparison there is nothing to wait for but the table's completion.
        let full = if self.table.is_complete() { self.full_due } else { None };
        [retry, full].into_iter().flatten().min()
    }

    fn publish_reconciled(&self) {
        let held = self.retries.values().map(|retry| retry.held).min();
        let upto = held.unwrap_or_else(|| self.changes.cursor());
        self.reconciled.send_if_modified(|at| {
            let forward = upto > *at;
            if forward {
                *at = upto;
            }
            forward
        });
    }

    fn shortened(&mut self, interval: Duration) -> Duration {
        interval - interval.mul_f64(0.1 * self.chance.f64())
    }
}
