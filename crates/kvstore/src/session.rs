//! What a process owns in the store, kept alive under its leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use villus_table::{Backoff, Stop};

use crate::{
    error::StoreError,
    model::{Answer, Compare, LeaseId, LeasePurpose, Op, Txn},
    pace::ClusterSize,
    store::Store,
    together,
};

/// Keys under one lease at most; etcd is slow to end larger ones.
const KEYS_PER_LEASE: usize = 1000;
/// How long to wait at least, for a cluster of one node, before leases that could not be kept alive are tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Keys that are compared in one request.
const COMPARED: usize = 100;
/// Bytes of values that are compared in one request, unless one value alone has more.
const COMPARED_BYTES: usize = 512 << 10;

/// The keys that this process owns. They go when the process does not keep them alive for the lease's time;
/// a lease that is lost is replaced and its keys are written again.
pub struct Session {
    store: Arc<dyn Store>,
    ttl: Duration,
    /// The key that is not to outlive the others.
    last: Option<String>,
    inner: Mutex<Inner>,
    granting: tokio::sync::Mutex<()>,
}

/// Room for one key under a lease. Given back when it is dropped, unless a key took it ([`Session::own`]).
#[must_use]
pub struct Room<'a> {
    session: &'a Session,
    lease: LeaseId,
}

#[derive(Default)]
struct Inner {
    leases: BTreeMap<LeaseId, Under>,
    owned: BTreeMap<String, (Bytes, LeaseId)>,
    /// Owned keys whose lease is gone and which are not written again yet.
    orphans: BTreeSet<String>,
}

/// What is under a lease.
#[derive(Default)]
struct Under {
    keys: BTreeSet<String>,
    /// Keys that are about to be written.
    reserved: usize,
}

// === impl Session ===

impl Session {
    /// Nothing is owned yet; leases last `ttl` without being kept alive.
    pub fn new(store: Arc<dyn Store>, ttl: Duration) -> Self {
        Self { store, ttl, last: None, inner: Mutex::default(), granting: tokio::sync::Mutex::new(()) }
    }

    /// Whoever finds a key gone but this one still there takes it for deleted: the lease of this key is kept alive last,
    /// and only where all others were.
    #[must_use]
    pub fn with_last(mut self, key: &str) -> Self {
        self.last = Some(key.to_owned());
        self
    }

    /// Room for another key under a lease.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn room(&self) -> Result<Room<'_>, StoreError> {
        if let Some(room) = self.room_left() {
            return Ok(room);
        }
        let _one_at_a_time = self.granting.lock().await;
        if let Some(room) = self.room_left() {
            return Ok(room);
        }
        let lease = self.store.grant(self.ttl, LeasePurpose::Entries).await?;
        self.inner().leases.insert(lease, Under { keys: BTreeSet::new(), reserved: 1 });
        Ok(Room { session: self, lease })
    }

    /// How many leases and keys there are.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.leases.len(), inner.owned.len())
    }

    /// Writes a key and owns it from now on.
    ///
    /// # Errors
    /// When the store is not there; the key is then not owned.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        let outcome = self.put_all(vec![(key.to_owned(), value)]).await.pop();
        outcome.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes keys in few requests and owns them from now on, each that was written. One that is refused holds up no
    /// other.
    ///
    /// # Errors
    /// Of each key by itself, in their order: as [`Self::put`].
    pub async fn put_all(&self, keys: Vec<(String, Bytes)>) -> Vec<Result<(), StoreError>> {
        let mut outcomes: Vec<Result<(), StoreError>> = self.put_once(&keys).await;
        let lost: BTreeSet<LeaseId> = outcomes.iter().filter_map(lost_lease).collect();
        for lease in lost {
            if let Err(error) = self.replace(lease).await {
                tracing::debug!(%error, "the keys of a lost lease are written later");
            }
        }
        let again: Vec<usize> = (0..keys.len()).filter(|at| lost_lease(&outcomes[*at]).is_some()).collect();
        let second = self.put_once(&again.iter().map(|at| keys[*at].clone()).collect::<Vec<_>>()).await;
        for (at, outcome) in again.into_iter().zip(second) {
            outcomes[at] = outcome;
        }
        outcomes
    }

    async fn put_once(&self, keys: &[(String, Bytes)]) -> Vec<Result<(), StoreError>> {
        let mut rooms = Vec::with_capacity(keys.len());
        for (key, _) in keys {
            let has = {
                let inner = self.inner();
                let lease = inner.owned.get(key).map(|(_, lease)| *lease);
                lease.filter(|lease| inner.leases.contains_key(lease))
            };
            rooms.push(match has {
                Some(lease) => (lease, None),
                None => match self.room().await {
                    Ok(room) => (room.lease, Some(room)),
                    Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
                },
            });
        }
        let put = |((key, value), (lease, _)): (&(String, Bytes), &(LeaseId, Option<Room<'_>>))| {
            Txn::new().then(Op::put(key.as_str(), value.clone(), Some(*lease)))
        };
        let txns = keys.iter().zip(&rooms).map(put).collect();
        let written = together::all(&*self.store, txns).await;
        let mut outcomes = Vec::with_capacity(keys.len());
        for (((key, value), (lease, _room)), outcome) in keys.iter().zip(rooms).zip(written) {
            outcomes.push(outcome.map(|_| self.inner().own(key, value.clone(), lease)));
        }
        outcomes
    }

    /// Owns a key that a transaction has just written under the lease of `room`.
    pub fn own(&self, key: &str, value: Bytes, room: Room<'_>) {
        self.inner().own(key, value, room.lease);
    }

    /// A transaction has just written a key under the lease of `room` that is nobody's: it goes with the lease, and is
    /// not written again.
    pub fn leave(&self, key: &str, room: Room<'_>) {
        if let Some(under) = self.inner().leases.get_mut(&room.lease) {
            under.keys.insert(key.to_owned());
        }
    }

    /// Does not own the key any more, without touching the store.
    pub fn disown(&self, key: &str) {
        self.inner().forget(key);
    }

    /// Deletes a key that is owned, if it still has the value that was written. Returns whether it did.
    ///
    /// # Errors
    /// When the store is not there; the key is owned still. One that the store does not let be deleted is not, and goes
    /// with its lease.
    pub async fn remove(&self, key: &str) -> Result<bool, StoreError> {
        let outcome = self.remove_all(vec![key.to_owned()]).await.pop();
        outcome.unwrap_or(Err(StoreError::Closed))
    }

    /// Deletes keys in few requests, each as [`Self::remove`] does.
    ///
    /// # Errors
    /// Of each key by itself, in their order: as [`Self::remove`].
    pub async fn remove_all(&self, keys: Vec<String>) -> Vec<Result<bool, StoreError>> {
        let owned: Vec<Option<(Bytes, LeaseId)>> = {
            let mut inner = self.inner();
            keys.iter().map(|key| inner.forget(key)).collect()
        };
        let delete = |(key, owned): (&String, &Option<(Bytes, LeaseId)>)| {
            let same = Compare::Value(key.clone(), owned.as_ref()?.0.clone());
            Some(Txn::new().when(same).then(Op::Delete(key.clone())))
        };
        let txns = keys.iter().zip(&owned).filter_map(delete).collect();
        let mut deleted = together::all(&*self.store, txns).await.into_iter();
        let mut outcomes = Vec::with_capacity(keys.len());
        for (key, owned) in keys.iter().zip(owned) {
            let Some((value, lease)) = owned else {
                outcomes.push(Ok(false));
                continue;
            };
            let outcome = deleted.next().unwrap_or(Err(StoreError::Closed));
            if outcome.as_ref().is_err_and(|error| !error.is_of_one_key()) && !self.owns(key) {
                self.inner().own(key, value, lease);
            }
            outcomes.push(outcome.map(|outcome| outcome.held));
        }
        outcomes
    }

    /// The value that an owned key should have.
    pub fn value(&self, key: &str) -> Option<Bytes> {
        self.inner().owned.get(key).map(|(value, _)| value.clone())
    }

    /// All keys that are owned.
    pub fn keys(&self) -> Vec<String> {
        self.inner().owned.keys().cloned().collect()
    }

    /// Whether this process owns the key.
    pub fn owns(&self, key: &str) -> bool {
        self.inner().owned.contains_key(key)
    }

    /// Keeps all leases alive, all at once but that of the last key, and replaces those that are gone.
    ///
    /// # Errors
    /// When the store is not there. All leases were tried, but that of the last key where another could not be kept.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        let (mut outcome, mut lost) = (self.adopt_orphans().await, false);
        let (last, others): (Vec<LeaseId>, Vec<LeaseId>) = {
            let inner = self.inner();
            let of_last = self.last.as_ref().and_then(|key| inner.owned.get(key)).map(|(_, lease)| *lease);
            inner.leases.keys().copied().partition(|lease| Some(*lease) == of_last)
        };
        for leases in [others, last] {
            let kept = leases.into_iter().map(|lease| self.store.keep_alive(lease));
            let mut is_away = false;
            for kept in futures_util::future::join_all(kept).await {
                match kept {
                    Err(StoreError::LeaseNotFound(gone)) => lost |= self.lose(gone),
                    kept => {
                        is_away |= kept.as_ref().is_err_and(|error| !error.is_of_one_key());
                        outcome = outcome.and(kept);
                    }
                }
            }
            if is_away {
                break;
            }
        }
        // Only when all leases that are gone are known: under none of them they are written.
        if lost { outcome.and(self.adopt_orphans().await) } else { outcome }
    }

    /// Writes every owned key again that is not there or has another value. Returns how many that were.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn reassert(&self) -> Result<u64, StoreError> {
        let mut written = 0;
        for outcome in self.reassert_all(self.keys()).await {
            written += u64::from(outcome?);
        }
        Ok(written)
    }

    /// Writes owned keys again that are not there or have another value, in few requests. Says of each whether it was so.
    ///
    /// # Errors
    /// Of each key by itself, in their order: when the store is not there, or does not take this one.
    pub async fn reassert_all(&self, keys: Vec<String>) -> Vec<Result<bool, StoreError>> {
        let mut outcomes: BTreeMap<String, Result<bool, StoreError>> = BTreeMap::new();
        let owned: Vec<(String, Bytes, LeaseId)> = {
            let inner = self.inner();
            let of = |key: &String| {
                inner.owned.get(key).map(|(value, lease)| (key.clone(), value.clone(), *lease))
            };
            keys.iter().filter_map(of).collect()
        };
        let (mut wrong, mut size) = (Vec::new(), 0);
        let mut some: Vec<(String, Bytes, LeaseId)> = Vec::new();
        for one in owned {
            size += one.0.len() + one.1.len();
            if some.len() == COMPARED || (size > COMPARED_BYTES && !some.is_empty()) {
                size = one.0.len() + one.1.len();
                wrong.append(&mut self.wrong(std::mem::take(&mut some), &mut outcomes).await);
            }
            some.push(one);
        }
        if !some.is_empty() {
            wrong.append(&mut self.wrong(some, &mut outcomes).await);
        }
        self.write_again(wrong, &mut outcomes).await;
        keys.iter().map(|key| outcomes.remove(key).unwrap_or(Ok(false))).collect()
    }

    /// Which of these keys are not there or have another value; those that can't be read are said in `outcomes`.
    async fn wrong(
        &self,
        keys: Vec<(String, Bytes, LeaseId)>,
        outcomes: &mut BTreeMap<String, Result<bool, StoreError>>,
    ) -> Vec<(String, Bytes, LeaseId)> {
        let mut groups = vec![keys];
        let mut wrong = Vec::new();
        while let Some(mut group) = groups.pop() {
            let look = group.iter().fold(Txn::new(), |txn, (key, value, _)| {
                txn.when(Compare::Value(key.clone(), value.clone())).otherwise(Op::Get(key.clone()))
            });
            match self.store.txn(look).await {
                Ok(outcome) if outcome.held => {}
                Ok(outcome) => {
                    let has = |answer: Answer| if let Answer::Got(entry) = answer { entry } else { None };
                    let has = outcome.answers.into_iter().map(has);
                    let differs = group.into_iter().zip(has).filter(|((_, value, _), entry)| {
                        entry.as_ref().is_none_or(|entry| entry.value != *value)
                    });
                    wrong.extend(differs.map(|(one, _)| one));
                }
                Err(error) if error.is_of_one_key() && group.len() > 1 => {
                    let second = group.split_off(group.len() / 2);
                    groups.extend([second, group]);
                }
                Err(error) => {
                    outcomes.extend(group.into_iter().map(|(key, ..)| (key, Err(error.clone()))));
                }
            }
        }
        wrong
    }

    async fn write_again(
        &self,
        wrong: Vec<(String, Bytes, LeaseId)>,
        outcomes: &mut BTreeMap<String, Result<bool, StoreError>>,
    ) {
        let put = |(key, value, lease): &(String, Bytes, LeaseId)| {
            Txn::new().then(Op::put(key.as_str(), value.clone(), Some(*lease)))
        };
        let written = together::all(&*self.store, wrong.iter().map(put).collect()).await;
        let mut lost = BTreeSet::new();
        for ((key, value, _), outcome) in wrong.into_iter().zip(written) {
            let outcome = match outcome {
                Ok(_) => {
                    tracing::warn!(key, "a key of this node was missing or altered and was written again");
                    self.undo(&key, &value).await.map(|()| true)
                }
                Err(StoreError::LeaseNotFound(lease)) => {
                    lost.insert(lease);
                    Ok(true)
                }
                Err(error) => Err(error),
            };
            outcomes.insert(key, outcome);
        }
        for lease in lost {
            if let Err(error) = self.replace(lease).await {
                outcomes
                    .values_mut()
                    .filter(|outcome| outcome.is_ok())
                    .for_each(|outcome| *outcome = Err(error.clone()));
            }
        }
    }

    /// A key was just written again. If it was released or changed meanwhile, it must not stay so.
    async fn undo(&self, key: &str, written: &Bytes) -> Result<(), StoreError> {
        let owned = self.inner().owned.get(key).cloned();
        match owned {
            Some((value, _)) if value == *written => return Ok(()),
            Some((value, lease)) => {
                self.store.update(key, value, Some(lease)).await?;
                return Ok(());
            }
            None => self.store.delete(key).await?,
        };
        // Unless it was taken again while that was mended.
        let again = self.inner().owned.get(key).cloned();
        if let Some((value, lease)) = again {
            self.store.update(key, value, Some(lease)).await?;
        }
        Ok(())
    }

    /// Ends all leases: whatever is owned goes, and nothing is owned any more.
    ///
    /// # Errors
    /// When the store is not there; the keys go when their leases' time is over. All leases were tried.
    pub async fn end(&self) -> Result<(), StoreError> {
        let leases = std::mem::take(&mut *self.inner()).leases;
        let mut outcome = Ok(());
        for lease in leases.into_keys() {
            outcome = outcome.and(self.store.revoke(lease).await);
        }
        outcome
    }

    /// Keeps everything alive until `stop` is said: a third of the lease's time between two rounds. After one that failed
    /// the next comes the later the more nodes there are, and the more have failed, but after a sixth of that time at the
    /// latest.
    pub async fn run(&self, stop: &Stop, size: &ClusterSize) {
        let (first, latest) = ((self.ttl / 30).max(FIRST_RETRY), self.ttl / 6);
        let (mut failures, mut chance) = (0, fastrand::Rng::new());
        loop {
            let wait = match failures {
                0 => (self.ttl / 3).mul_f64(0.9 + 0.1 * fastrand::f64()),
                n => Backoff::half(size.stretch(first).min(latest), latest).delay(n, &mut chance),
            };
            tokio::select! {
                () = stop.stopped() => return,
                () = tokio::time::sleep(wait) => {}
            }
            failures = match self.keep_alive().await {
                Ok(()) => 0,
                Err(error) => {
                    tracing::warn!(%error, "leases could not be kept alive");
                    failures + 1
                }
            };
        }
    }

    /// Writes the keys of a lost lease again, under another.
    async fn replace(&self, lost: LeaseId) -> Result<(), StoreError> {
        self.lose(lost);
        self.adopt_orphans().await
    }

    /// A lease is gone. Returns whether keys are to be written again.
    fn lose(&self, lost: LeaseId) -> bool {
        let keys = self.inner().orphan(lost);
        tracing::warn!(lease = %lost, keys, "a lease is gone; its keys are written again");
        keys > 0
    }

    async fn adopt_orphans(&self) -> Result<(), StoreError> {
        let orphans: Vec<(String, Bytes)> = {
            let inner = self.inner();
            let value = |key: &String| inner.owned.get(key).map(|(value, _)| (key.clone(), value.clone()));
            inner.orphans.iter().filter_map(value).collect()
        };
        let mut outcome = Ok(());
        for written in self.put_once(&orphans).await {
            if let Some(lost) = lost_lease(&written) {
                self.inner().orphan(lost);
            }
            outcome = outcome.and(written);
        }
        outcome
    }

    /// Room under a lease that is not full, what is about to be written counted.
    fn room_left(&self) -> Option<Room<'_>> {
        let mut inner = self.inner();
        let has_room = |under: &Under| under.keys.len() + under.reserved < KEYS_PER_LEASE;
        let (lease, under) = inner.leases.iter_mut().rev().find(|(_, under)| has_room(under))?;
        under.reserved += 1;
        Some(Room { session: self, lease: *lease })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Room ===

impl Room<'_> {
    /// The lease.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        // A lease that was lost meanwhile has no room.
        if let Some(under) = self.session.inner().leases.get_mut(&self.lease) {
            under.reserved = under.reserved.saturating_sub(1);
        }
    }
}

// === impl Inner ===

impl Inner {
    fn own(&mut self, key: &str, value: Bytes, lease: LeaseId) {
        self.forget(key);
        self.leases.entry(lease).or_default().keys.insert(key.to_owned());
        self.owned.insert(key.to_owned(), (value, lease));
    }

    fn forget(&mut self, key: &str) -> Option<(Bytes, LeaseId)> {
        let (value, lease) = self.owned.remove(key)?;
        self.orphans.remove(key);
        if let Some(under) = self.leases.get_mut(&lease) {
            under.keys.remove(key);
        }
        Some((value, lease))
    }

    /// A lease is gone: its keys are to be written again. Returns how many.
    fn orphan(&mut self, lost: LeaseId) -> usize {
        let under = self.leases.remove(&lost).unwrap_or_default();
        let owned =
            under.keys.into_iter().filter(|key| self.owned.get(key).is_some_and(|(_, of)| *of == lost));
        let before = self.orphans.len();
        self.orphans.extend(owned);
        self.orphans.len() - before
    }
}

fn lost_lease<T>(outcome: &Result<T, StoreError>) -> Option<LeaseId> {
    match outcome {
        Err(StoreError::LeaseNotFound(lease)) => Some(*lease),
        _ => None,
    }
}
