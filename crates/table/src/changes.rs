//! The change feed of one consumer.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    row::Grave,
    state::State,
    table::{Revision, Shared, lock},
};

/// What happened to a key since the consumer last looked. Several writes of one key are one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    /// The key.
    pub key: K,
    /// Inserted, updated or deleted, as this consumer sees it.
    pub kind: Kind,
    /// The value now; of a deleted row the last one it had.
    pub value: V,
    /// Revision of the write.
    pub revision: Revision,
}

/// Kind of a [`Change`], relative to what the consumer knew before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The consumer did not know the key.
    Inserted,
    /// The consumer knew the key with an older value.
    Updated,
    /// The consumer knew the key; it is gone.
    Deleted,
}

/// The feed of one consumer: applied to what it already knows, it makes that equal to the table. No deletion
/// is ever missed, a key inserted and deleted between two looks does not appear.
pub struct Changes<K, V> {
    shared: Arc<Shared<K, V>>,
    id: u64,
    cursor: Revision,
    round: Option<Round<K, V>>,
    seen: watch::Receiver<Revision>,
}

/// A look that is yielded in parts: the table as it was when the look began, and how far it was yielded.
struct Round<K, V> {
    state: State<K, V>,
    /// Rows that are still to be yielded, by the revision of their last write.
    live: VecDeque<(Revision, K)>,
    yielded: Revision,
}

// === impl Changes ===

impl<K, V> Changes<K, V> {
    pub(crate) fn new(shared: Arc<Shared<K, V>>, id: u64) -> Self {
        let seen = shared.revision.subscribe();
        Self { shared, id, cursor: 0, round: None, seen }
    }

    /// Everything written up to this revision has been yielded.
    pub fn cursor(&self) -> Revision {
        self.cursor
    }

    /// Whether there is something to yield: the table has been written since.
    pub fn is_behind(&self) -> bool {
        self.round.is_some() || *self.shared.revision.borrow() > self.cursor
    }

    /// Waits until the table has been written since. Cancelling loses nothing.
    pub async fn changed(&mut self) {
        if self.round.is_some() {
            return;
        }
        let cursor = self.cursor;
        // An error means that the sender is gone, which `self.shared` prevents.
        let _ = self.seen.wait_for(|revision| *revision > cursor).await;
    }

    /// Blocks the thread until the table has been written since, or `timeout` has passed. Returns whether it
    /// has been written.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut guard = lock(&self.shared.bell_lock);
        while !self.is_behind() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.shared.bell.wait_timeout(guard, left);
            guard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl<K: Ord + Clone, V: Clone> Changes<K, V> {
    /// All changes since the last look, in the order of their writes.
    pub fn take(&mut self) -> Vec<Change<K, V>> {
        let mut changes = self.take_up_to(usize::MAX);
        if self.is_behind() {
            // The first half finished a look that had been taken in parts; one key may appear in both.
            changes.extend(self.take_up_to(usize::MAX));
        }
        changes
    }

    /// At most `limit` changes of one look, in the order of their writes. A look that does not fit goes on
    /// with the next call, from the table as it was when the look began; a transaction is then seen in parts.
    /// Ask [`Changes::is_behind`] whether there is more: a call may yield nothing in between.
    pub fn take_up_to(&mut self, limit: usize) -> Vec<Change<K, V>> {
        let mut round = self.round.take().unwrap_or_else(|| self.begin());
        let changes = round.collect(self.cursor, limit);
        if round.yielded < round.state.revision {
            self.round = Some(round);
        } else {
            self.cursor = round.state.revision;
        }
        changes
    }

    /// Takes everything written up to a revision for known, unless something was yielded before. Says whether it did.
    pub(crate) fn begin_after(&mut self, revision: Revision) -> bool {
        if self.cursor > 0 || self.round.is_some() {
            return false;
        }
        lock(&self.shared.cursors).insert(self.id, revision);
        self.cursor = revision;
        self.shared.forget_seen();
        true
    }

    fn begin(&self) -> Round<K, V> {
        let state = self.shared.read(|state| {
            lock(&self.shared.cursors).insert(self.id, state.revision);
            state.clone()
        });
        self.shared.forget_seen();
        let live = state.written_after(self.cursor).into();
        Round { state, live, yielded: self.cursor }
    }
}

// === impl Round ===

impl<K: Ord + Clone, V: Clone> Round<K, V> {
    /// The next changes for a consumer that knew the table as of `cursor`.
    fn collect(&mut self, cursor: Revision, limit: usize) -> Vec<Change<K, V>> {
        let mut dead = self.state.graves.range(self.yielded + 1..).peekable();
        let mut changes = Vec::new();
        while changes.len() < limit {
            let next_live = self.live.front().map(|(revision, _)| *revision);
            let next_dead = dead.peek().map(|(revision, _)| **revision);
            let take_live = match (next_live, next_dead) {
                (None, None) => {
                    self.yielded = self.state.revision;
                    return changes;
                }
                (Some(live), Some(dead)) => live < dead,
                (live, _) => live.is_some(),
            };
            if take_live {
                let next = self.live.pop_front();
                changes.extend(next.and_then(|(revision, key)| written(&self.state, cursor, revision, key)));
            } else {
                changes.extend(dead.next().and_then(|(revision, grave)| deleted(cursor, *revision, grave)));
            }
        }
        self.yielded = changes.last().map_or(self.yielded, |last| last.revision);
        changes
    }
}

fn written<K: Ord + Clone, V: Clone>(
    state: &State<K, V>,
    cursor: Revision,
    revision: Revision,
    key: K,
) -> Option<Change<K, V>> {
    let row = state.rows.get(&key)?;
    let known = row.created <= cursor || row.past.known_at(cursor);
    let kind = if known { Kind::Updated } else { Kind::Inserted };
    Some(Change { key, kind, value: row.value.clone(), revision })
}

fn deleted<K: Clone, V: Clone>(
    cursor: Revision,
    revision: Revision,
    grave: &Grave<K, V>,
) -> Option<Change<K, V>> {
    let known = grave.past.known_at(cursor);
    let (key, value) = (grave.key.clone(), grave.last.clone());
    known.then_some(Change { key, kind: Kind::Deleted, value, revision })
}

impl<K, V> Drop for Changes<K, V> {
    fn drop(&mut self) {
        lock(&self.shared.cursors).remove(&self.id);
    }
}
