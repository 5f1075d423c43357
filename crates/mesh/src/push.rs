//! Writes to the local store: by key, the latest wins; in transactions of many keys, several under way at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use tokio::task::JoinSet;
use villus_kvstore::{LeaseId, Op, Pace, Store, StoreError, Txn, TxnOutcome};

use crate::{
    guard::{Guard, Highest},
    leases::Leases,
};

/// Keys in one transaction at most; etcd takes 128 operations.
const KEYS: usize = 100;
/// Bytes in one transaction at most, but for a single value that is larger; etcd takes 1.5 MiB.
const BYTES: usize = 512 << 10;
/// Transactions under way at once.
const PARALLEL: usize = 4;
/// Changes that may wait, in number and bytes; beyond that nothing more is taken, and the remote's watch waits.
const MOST_KEYS: usize = 8192;
const MOST_BYTES: usize = 16 << 20;

/// What became of a transaction that ended.
#[derive(Debug)]
pub(crate) enum Pushed {
    /// It was carried out: so many keys written and deleted, the oldest of them waiting since.
    Done {
        /// Keys written.
        written: u64,
        /// Keys deleted.
        deleted: u64,
        /// When the oldest change of it came.
        since: Instant,
    },
    /// It failed for now and is tried again.
    Failed(StoreError),
    /// The store will never take this value.
    Refused(Arc<str>, StoreError),
    /// Somebody else leads.
    LostLead,
    /// A lease is gone, and keys with it.
    LostLease(LeaseId),
}

struct Change {
    /// `None`: the key goes.
    value: Option<Bytes>,
    since: Instant,
}

struct Batch {
    changes: Vec<(Arc<str>, Change)>,
    outcome: Result<TxnOutcome, StoreError>,
}

/// Changes on their way to the keys below one prefix.
pub(crate) struct Push {
    store: Arc<dyn Store>,
    prefix: Arc<str>,
    guard: Guard,
    highest: Highest,
    leases: Arc<Leases>,
    waiting: HashMap<Arc<str>, Change>,
    order: VecDeque<Arc<str>>,
    bytes: usize,
    flying: HashSet<Arc<str>>,
    under_way: JoinSet<Batch>,
    pace: Pace,
    chance: fastrand::Rng,
    failures: u32,
    not_before: Option<tokio::time::Instant>,
    /// So many of the next keys go alone: one of them is what the store did not take.
    alone: usize,
}

// === impl Push ===

impl Push {
    pub fn new(
        store: Arc<dyn Store>,
        prefix: &str,
        guard: Guard,
        highest: Highest,
        leases: Arc<Leases>,
        pace: Pace,
    ) -> Self {
        Self {
            store,
            prefix: prefix.into(),
            guard,
            highest,
            leases,
            waiting: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            flying: HashSet::new(),
            under_way: JoinSet::new(),
            pace,
            chance: fastrand::Rng::new(),
            failures: 0,
            not_before: None,
            alone: 0,
        }
    }

    /// The key below the prefix is to have this value, or to go.
    pub fn set(&mut self, rest: Arc<str>, value: Option<Bytes>) {
        self.bytes += value.as_ref().map_or(0, Bytes::len);
        // Who waits keeps the time from when it has been waiting.
        match self.waiting.get_mut(&rest) {
            Some(change) => {
                self.bytes -= change.value.as_ref().map_or(0, Bytes::len);
                change.value = value;
            }
            None => {
                self.order.push_back(Arc::clone(&rest));
                self.waiting.insert(rest, Change { value, since: Instant::now() });
            }
        }
    }

    /// Whether more may be taken.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < MOST_KEYS && self.bytes < MOST_BYTES
    }

    /// Whether a change of this key is not in the store for certain.
    pub fn has(&self, rest: &str) -> bool {
        self.waiting.contains_key(rest) || self.flying.contains(rest)
    }

    /// Changes that are not in the store for certain.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    /// Writes until a transaction has ended; for ever if there is nothing to write. Cancelling loses nothing.
    pub async fn next(&mut self) -> Pushed {
        if let Some(at) = self.not_before {
            if self.under_way.is_empty() {
                tokio::time::sleep_until(at).await;
                self.not_before = None;
            } else if tokio::time::Instant::now() >= at {
                self.not_before = None;
            }
        }
        while self.not_before.is_none() && self.under_way.len() < PARALLEL {
            let Some(changes) = self.take() else { break };
            self.send(changes);
        }
        match self.under_way.join_next().await {
            Some(Ok(batch)) => self.ended(batch),
            // There is nothing to write, or the runtime ends.
            None | Some(Err(_)) => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Option<Vec<(Arc<str>, Change)>> {
        let most = if self.alone > 0 { 1 } else { KEYS };
        let (mut taken, mut bytes, mut skipped) = (Vec::new(), 0, Vec::new());
        while taken.len() < most
            && let Some(rest) = self.order.pop_front()
        {
            // The same key is under way: one after the other.
            if self.flying.contains(&rest) {
                skipped.push(rest);
                continue;
            }
            let size = rest.len() + self.prefix.len();
            let size = size + self.waiting.get(&rest).and_then(|c| c.value.as_ref()).map_or(0, Bytes::len);
            if !taken.is_empty() && bytes + size > BYTES {
                self.order.push_front(rest);
                break;
            }
            let Some(change) = self.waiting.remove(&rest) else { continue };
            bytes += size;
            self.bytes -= change.value.as_ref().map_or(0, Bytes::len);
            self.flying.insert(Arc::clone(&rest));
            taken.push((rest, change));
        }
        for rest in skipped.into_iter().rev() {
            self.order.push_front(rest);
        }
        self.alone = self.alone.saturating_sub(taken.len());
        (!taken.is_empty()).then_some(taken)
    }

    fn send(&mut self, changes: Vec<(Arc<str>, Change)>) {
        let (store, prefix) = (Arc::clone(&self.store), Arc::clone(&self.prefix));
        let (guard, leases) = (self.guard.clone(), Arc::clone(&self.leases));
        self.under_way.spawn(async move {
            let outcome = write(store.as_ref(), &prefix, &guard, &leases, &changes).await;
            Batch { changes, outcome }
        });
    }

    fn ended(&mut self, batch: Batch) -> Pushed {
        for (rest, _) in &batch.changes {
            self.flying.remove(rest);
        }
        match batch.outcome {
            Ok(outcome) if !outcome.held => Pushed::LostLead,
            Ok(outcome) => {
                self.failures = 0;
                self.highest.note(outcome.revision);
                let deleted = batch.changes.iter().filter(|(_, change)| change.value.is_none()).count();
                let since = batch.changes.iter().map(|(_, change)| change.since).min();
                Pushed::Done {
                    written: (batch.changes.len() - deleted) as u64,
                    deleted: deleted as u64,
                    since: since.unwrap_or_else(Instant::now),
                }
            }
            Err(error @ (StoreError::BadTxn(_) | StoreError::BadKey { .. })) => {
                self.refused(batch.changes, error)
            }
            Err(StoreError::LeaseNotFound(lease)) => {
                self.put_back(batch.changes);
                Pushed::LostLease(lease)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.put_back(batch.changes);
                let wait = self.pace.delay(self.failures, &mut self.chance);
                self.not_before = Some(tokio::time::Instant::now() + wait);
                Pushed::Failed(error)
            }
        }
    }

    fn refused(&mut self, mut changes: Vec<(Arc<str>, Change)>, error: StoreError) -> Pushed {
        if changes.len() == 1
            && let Some((rest, _)) = changes.pop()
        {
            return Pushed::Refused(rest, error);
        }
        self.alone += changes.len();
        self.put_back(changes);
        Pushed::Failed(error)
    }

    /// What has been said about a key since then is newer.
    fn put_back(&mut self, changes: Vec<(Arc<str>, Change)>) {
        for (rest, change) in changes.into_iter().rev() {
            match self.waiting.get_mut(&rest) {
                Some(newer) => newer.since = newer.since.min(change.since),
                None => {
                    self.bytes += change.value.as_ref().map_or(0, Bytes::len);
                    self.order.push_front(Arc::clone(&rest));
                    self.waiting.insert(rest, change);
                }
            }
        }
    }
}

async fn write(
    store: &dyn Store,
    prefix: &str,
    guard: &Guard,
    leases: &Leases,
    changes: &[(Arc<str>, Change)],
) -> Result<TxnOutcome, StoreError> {
    let puts = changes.iter().filter(|(_, change)| change.value.is_some()).count();
    let lease = leases.lease(puts).await?;
    let mut txn = guard.txn();
    for (rest, change) in changes {
        let key = format!("{prefix}{rest}");
        txn = txn.then(match &change.value {
            Some(value) => Op::put(key, value.clone(), lease),
            None => Op::Delete(key),
        });
    }
    store.txn(txn).await
}

/// Deletes keys in transactions of many. Returns how many there were.
pub(crate) async fn delete(store: &dyn Store, guard: &Guard, keys: &[Arc<str>]) -> Result<u64, StoreError> {
    let mut deleted = 0;
    for some in keys.chunks(KEYS) {
        let txn = some.iter().fold(guard.txn(), |txn: Txn, key| txn.then(Op::Delete(key.to_string())));
        if !store.txn(txn).await?.held {
            return Err(Guard::lost());
        }
        deleted += some.len() as u64;
    }
    Ok(deleted)
}
