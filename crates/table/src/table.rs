//! The table: write transactions, snapshots, and the sources that have to fill it.

use std::{
    collections::BTreeMap,
    fmt,
    ops::RangeBounds,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::{changes::Changes, row::Row, state::State};

/// Version of a table. Each write of a row takes the next one; 0 is the empty table.
pub type Revision = u64;

/// A versioned map. The handle is cheap to clone; all clones see the same rows.
///
/// One writer at a time, any number of readers, and no reader ever waits for a writer that is still at it.
/// A row's value should be cheap to clone (put large parts behind an `Arc`).
pub struct Table<K, V> {
    shared: Arc<Shared<K, V>>,
}

pub(crate) struct Shared<K, V> {
    name: String,
    writer: Mutex<()>,
    state: RwLock<State<K, V>>,
    /// Last revision seen by each consumer.
    pub(crate) cursors: Mutex<BTreeMap<u64, Revision>>,
    next_consumer: AtomicU64,
    /// Names of the sources that have not delivered everything yet.
    pending: watch::Sender<Vec<String>>,
    pub(crate) revision: watch::Sender<Revision>,
    /// Pairs with `bell_lock` for consumers that block a thread.
    pub(crate) bell: Condvar,
    pub(crate) bell_lock: Mutex<()>,
}

// === impl Table ===

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// An empty table. The name appears in logs and metrics.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.into(),
                writer: Mutex::new(()),
                state: RwLock::new(State::default()),
                cursors: Mutex::new(BTreeMap::new()),
                next_consumer: AtomicU64::new(0),
                pending: watch::Sender::new(Vec::new()),
                revision: watch::Sender::new(0),
                bell: Condvar::new(),
                bell_lock: Mutex::new(()),
            }),
        }
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Revision of the last write.
    pub fn revision(&self) -> Revision {
        *self.shared.revision.borrow()
    }

    /// All rows as they are now. Later writes do not show in it.
    pub fn snapshot(&self) -> Snapshot<K, V> {
        self.shared.read(|state| Snapshot { rows: state.rows.clone(), revision: state.revision })
    }

    /// One value as it is now.
    pub fn get(&self, key: &K) -> Option<V> {
        self.shared.read(|state| state.rows.get(key).map(|row| row.value.clone()))
    }

    /// How many rows there are now.
    pub fn len(&self) -> usize {
        self.shared.read(|state| state.rows.len())
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deleted rows that are still kept because some consumer has not looked since.
    pub fn unseen_deletions(&self) -> usize {
        self.shared.read(|state| state.graves.len())
    }

    /// Starts a transaction, waiting for the one under way. Nothing is visible before [`Write::commit`];
    /// dropping it instead leaves the table as it was.
    pub fn write(&self) -> Write<'_, K, V> {
        let guard = lock(&self.shared.writer);
        let state = self.shared.read(Clone::clone);
        let before = state.revision;
        let seen_by_all = self.shared.seen_by_all(before);
        Write { shared: &self.shared, state, before, amended: false, seen_by_all, _guard: guard }
    }

    /// Writes one row in a transaction of its own and returns the value that was there.
    pub fn put(&self, key: K, value: V) -> Option<V> {
        let mut write = self.write();
        let old = write.put(key, value);
        write.commit();
        old
    }

    /// Deletes one row in a transaction of its own and returns its value.
    pub fn delete(&self, key: &K) -> Option<V> {
        let mut write = self.write();
        let old = write.delete(key);
        write.commit();
        old
    }

    /// Gives back memory that is kept for rows to come: many rows in the order of their keys leave half of it empty. No row
    /// and no revision changes. It takes as long as writing all rows.
    pub fn pack(&self) {
        let _guard = lock(&self.shared.writer);
        let packed = self.shared.read(State::packed);
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = packed;
    }

    /// A new consumer of the change feed. It knows nothing yet: the first look yields all rows as inserted.
    /// A consumer that exists must look from time to time, or be dropped: deletions are kept for it.
    pub fn changes(&self) -> Changes<K, V> {
        let id = self.shared.next_consumer.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.cursors).insert(id, 0);
        Changes::new(Arc::clone(&self.shared), id)
    }

    /// Announces a source that still has to deliver rows. The table is incomplete until it says
    /// [`Source::complete`]; a source that is dropped without saying so leaves the table incomplete for good,
    /// so that its rows are never taken for superfluous.
    pub fn source(&self, name: impl Into<String>) -> Source {
        let name = name.into();
        self.shared.pending.send_modify(|pending| pending.push(name.clone()));
        Source { name, pending: self.shared.pending.clone() }
    }

    /// Names of the sources that have not delivered everything yet.
    pub fn missing_sources(&self) -> Vec<String> {
        self.shared.pending.borrow().clone()
    }

    /// Whether every source has delivered all it knows.
    pub fn is_complete(&self) -> bool {
        self.shared.pending.borrow().is_empty()
    }

    /// Waits until every source has delivered all it knows.
    pub async fn completed(&self) {
        let mut pending = self.shared.pending.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = pending.wait_for(Vec::is_empty).await;
    }

    pub(crate) fn watch_pending(&self) -> watch::Receiver<Vec<String>> {
        self.shared.pending.subscribe()
    }
}

// === impl Shared ===

impl<K, V> Shared<K, V> {
    pub(crate) fn read<R>(&self, look: impl FnOnce(&State<K, V>) -> R) -> R {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn seen_by_all(&self, current: Revision) -> Revision {
        lock(&self.cursors).values().copied().min().unwrap_or(current)
    }

    pub(crate) fn ring(&self, revision: Revision) {
        self.revision.send_replace(revision);
        // Taken so that a consumer between its check and its wait does not miss the bell.
        drop(lock(&self.bell_lock));
        self.bell.notify_all();
    }
}

impl<K: Ord + Clone, V: Clone> Shared<K, V> {
    /// Forgets what all consumers have seen, unless a writer is at work: its commit does the same.
    pub(crate) fn forget_seen(&self) {
        if self.read(State::is_settled) {
            return;
        }
        let Ok(_guard) = self.writer.try_lock() else { return };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen_by_all(state.revision);
        state.forget(seen);
    }
}

/// A poisoned lock only says that another thread panicked; what these locks guard is replaced in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A write transaction. Reads in it see its own writes.
#[must_use = "nothing is written before `commit`"]
pub struct Write<'t, K, V> {
    shared: &'t Shared<K, V>,
    state: State<K, V>,
    before: Revision,
    amended: bool,
    seen_by_all: Revision,
    _guard: MutexGuard<'t, ()>,
}

// === impl Write ===

impl<K: Ord + Clone, V: Clone> Write<'_, K, V> {
    /// The row's value as this transaction sees it.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.state.rows.get(key).map(|row| &row.value)
    }

    /// Writes a row and returns the value that was there.
    pub fn put(&mut self, key: K, value: V) -> Option<V> {
        self.state.put(key, value)
    }

    /// Writes a row where there is none; gives the value back where there is. For many rows: consumers that have not looked
    /// since find their order by a look at all rows.
    ///
    /// # Errors
    /// The value, if there is such a row.
    pub fn fill(&mut self, key: K, value: V) -> Result<(), V> {
        self.state.fill(key, value)
    }

    /// Writes a row unless it already has this very value. Returns whether it wrote.
    pub fn put_if_changed(&mut self, key: K, value: V) -> bool
    where
        V: PartialEq,
    {
        if self.get(&key) == Some(&value) {
            return false;
        }
        self.put(key, value);
        true
    }

    /// Puts another value in a row's place that says the same to every consumer: the row keeps its revision, and nobody hears
    /// of it. Without such a row nothing happens.
    pub fn amend(&mut self, key: &K, value: V) {
        self.amended |= self.state.amend(key, value);
    }

    /// Deletes a row and returns its value. Without such a row nothing happens.
    pub fn delete(&mut self, key: &K) -> Option<V> {
        self.state.delete(key, self.seen_by_all)
    }

    /// Deletes the row if it was last written at `revision`. Returns whether it did.
    pub fn compare_and_delete(&mut self, key: &K, revision: Revision) -> bool {
        let same = self.state.rows.get(key).is_some_and(|row| row.revision == revision);
        same && self.delete(key).is_some()
    }

    /// Keeps the rows for which `keep` says yes and returns how many it deleted.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) -> usize {
        let go: Vec<K> = self
            .state
            .rows
            .iter()
            .filter(|(key, row)| !keep(key, &row.value))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &go {
            self.delete(key);
        }
        go.len()
    }

    /// Rows as this transaction sees them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.state.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// Makes all writes of the transaction visible at once, wakes the consumers and returns the new
    /// revision. Without any write the revision stays and nobody is woken.
    pub fn commit(mut self) -> Revision {
        let revision = self.state.revision;
        let is_news = revision != self.before;
        if !is_news && !self.amended {
            return revision;
        }
        {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            // Asked again under the lock: consumers move their cursors only under its read side.
            self.state.forget(self.shared.seen_by_all(revision));
            *state = self.state;
        }
        if is_news {
            self.shared.ring(revision);
        }
        revision
    }
}

/// Immutable rows of one moment.
pub struct Snapshot<K, V> {
    rows: imbl::OrdMap<K, Row<V>>,
    revision: Revision,
}

// === impl Snapshot ===

impl<K, V> Clone for Snapshot<K, V> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), revision: self.revision }
    }
}

impl<K: Ord + Clone, V: Clone> Snapshot<K, V> {
    /// Revision of the table at that moment.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// One value.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.row(key).map(Row::value)
    }

    /// One row with its revisions.
    pub fn row(&self, key: &K) -> Option<&Row<V>> {
        self.rows.get(key)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// All rows with their revisions, in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = (&K, &Row<V>)> {
        self.rows.iter()
    }

    /// Rows whose keys lie in `range`, in the order of their keys.
    pub fn range<'a>(&'a self, range: impl RangeBounds<K> + 'a) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.rows.range(range).map(|(key, row)| (key, &row.value))
    }
}

/// A source that has to fill a table. See [`Table::source`].
#[derive(Debug)]
pub struct Source {
    name: String,
    pending: watch::Sender<Vec<String>>,
}

// === impl Source ===

impl Source {
    /// Says that all rows of this source have been written.
    pub fn complete(self) {
        self.pending.send_modify(|pending| {
            if let Some(at) = pending.iter().position(|name| *name == self.name) {
                pending.swap_remove(at);
            }
        });
    }
}
