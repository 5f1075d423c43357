//! What a process owns in the store, kept alive under its leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use villus_table::Stop;

use crate::{
    error::StoreError,
    model::{Compare, LeaseId, LeasePurpose, Op, Txn},
    store::Store,
};

/// Keys under one lease at most; etcd is slow to end larger ones.
const KEYS_PER_LEASE: usize = 1000;

/// The keys that this process owns. They go when the process does not keep them alive for the lease's time;
/// a lease that is lost is replaced and its keys are written again.
pub struct Session {
    store: Arc<dyn Store>,
    ttl: Duration,
    inner: Mutex<Inner>,
    granting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    leases: BTreeMap<LeaseId, BTreeSet<String>>,
    owned: BTreeMap<String, (Bytes, LeaseId)>,
    /// Owned keys whose lease is gone and which are not written again yet.
    orphans: BTreeSet<String>,
}

// === impl Session ===

impl Session {
    /// Nothing is owned yet; leases last `ttl` without being kept alive.
    pub fn new(store: Arc<dyn Store>, ttl: Duration) -> Self {
        Self { store, ttl, inner: Mutex::default(), granting: tokio::sync::Mutex::new(()) }
    }

    /// A lease with room for another key.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn lease(&self) -> Result<LeaseId, StoreError> {
        if let Some(lease) = self.lease_with_room() {
            return Ok(lease);
        }
        let _one_at_a_time = self.granting.lock().await;
        if let Some(lease) = self.lease_with_room() {
            return Ok(lease);
        }
        let lease = self.store.grant(self.ttl, LeasePurpose::Entries).await?;
        self.inner().leases.insert(lease, BTreeSet::new());
        Ok(lease)
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
        let owned = self.inner().owned.get(key).map(|(_, lease)| *lease);
        for _ in 0..2 {
            let lease = match owned.filter(|lease| self.inner().leases.contains_key(lease)) {
                Some(lease) => lease,
                None => self.lease().await?,
            };
            match self.store.update(key, value.clone(), Some(lease)).await {
                Ok(_) => {
                    self.own(key, value, lease);
                    return Ok(());
                }
                Err(StoreError::LeaseNotFound(lost)) => self.replace(lost).await?,
                Err(error) => return Err(error),
            }
        }
        self.lease().await.and_then(|lease| Err(StoreError::LeaseNotFound(lease)))
    }

    /// Owns a key that a transaction has just written under `lease` ([`Session::lease`]).
    pub fn own(&self, key: &str, value: Bytes, lease: LeaseId) {
        let mut inner = self.inner();
        inner.forget(key);
        inner.leases.entry(lease).or_default().insert(key.to_owned());
        inner.owned.insert(key.to_owned(), (value, lease));
    }

    /// Does not own the key any more, without touching the store.
    pub fn disown(&self, key: &str) {
        self.inner().forget(key);
    }

    /// Deletes a key that is owned, if it still has the value that was written. Returns whether it did.
    ///
    /// # Errors
    /// When the store is not there; the key is not owned any more and goes with its lease.
    pub async fn remove(&self, key: &str) -> Result<bool, StoreError> {
        let Some((value, _)) = self.inner().forget(key) else { return Ok(false) };
        self.store.compare_and_delete(key, Compare::Value(key.to_owned(), value)).await
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

    /// Keeps all leases alive, and replaces those that are gone.
    ///
    /// # Errors
    /// When the store is not there. All leases were tried.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        let leases: Vec<LeaseId> = self.inner().leases.keys().copied().collect();
        let mut outcome = self.adopt_orphans().await;
        for lease in leases {
            let kept = match self.store.keep_alive(lease).await {
                Err(StoreError::LeaseNotFound(lost)) => self.replace(lost).await,
                kept => kept,
            };
            outcome = outcome.and(kept);
        }
        outcome
    }

    /// Writes every owned key again that is not there or has another value. Returns how many that were.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn reassert(&self) -> Result<u64, StoreError> {
        let owned: Vec<String> = self.inner().owned.keys().cloned().collect();
        let mut written = 0;
        for key in owned {
            written += u64::from(self.reassert_one(&key).await?);
        }
        Ok(written)
    }

    /// Writes an owned key again if it is not there or has another value. Returns whether it was so.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn reassert_one(&self, key: &str) -> Result<bool, StoreError> {
        let Some((value, lease)) = self.inner().owned.get(key).cloned() else { return Ok(false) };
        let same = Compare::Value(key.to_owned(), value.clone());
        let txn = Txn::new().when(same).otherwise(Op::put(key, value, Some(lease)));
        let written = match self.store.txn(txn).await {
            Ok(outcome) => !outcome.held,
            Err(StoreError::LeaseNotFound(lost)) => {
                self.replace(lost).await?;
                true
            }
            Err(error) => return Err(error),
        };
        if written {
            tracing::warn!(key, "a key of this node was missing or altered and was written again");
        }
        // Released while the transaction was under way: it must not come back. Unless it was taken again
        // while that was mended.
        if !self.owns(key) {
            self.store.delete(key).await?;
            let again = self.inner().owned.get(key).cloned();
            if let Some((value, lease)) = again {
                self.store.update(key, value, Some(lease)).await?;
            }
        }
        Ok(written)
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

    /// Keeps everything alive until `stop` is said: a third of the lease's time between two rounds.
    pub async fn run(&self, stop: &Stop) {
        let mut wait = self.ttl / 3;
        loop {
            tokio::select! {
                () = stop.stopped() => return,
                () = tokio::time::sleep(wait.mul_f64(0.9 + 0.1 * fastrand::f64())) => {}
            }
            wait = match self.keep_alive().await {
                Ok(()) => self.ttl / 3,
                Err(error) => {
                    tracing::warn!(%error, "leases could not be kept alive");
                    (self.ttl / 30).max(Duration::from_millis(500))
                }
            };
        }
    }

    /// Writes the keys of a lost lease again, under another.
    async fn replace(&self, lost: LeaseId) -> Result<(), StoreError> {
        {
            let mut inner = self.inner();
            let keys = inner.leases.remove(&lost).unwrap_or_default();
            tracing::warn!(lease = %lost, keys = keys.len(), "a lease is gone; its keys are written again");
            inner.orphans.extend(keys);
        }
        self.adopt_orphans().await
    }

    async fn adopt_orphans(&self) -> Result<(), StoreError> {
        let orphans: Vec<String> = self.inner().orphans.iter().cloned().collect();
        for key in orphans {
            let Some((value, _)) = self.inner().owned.get(&key).cloned() else { continue };
            let lease = self.lease().await?;
            match self.store.update(&key, value.clone(), Some(lease)).await {
                Ok(_) => self.own(&key, value, lease),
                Err(StoreError::LeaseNotFound(lost)) => {
                    let mut inner = self.inner();
                    let keys = inner.leases.remove(&lost).unwrap_or_default();
                    inner.orphans.extend(keys);
                    return Err(StoreError::LeaseNotFound(lost));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lease_with_room(&self) -> Option<LeaseId> {
        let inner = self.inner();
        inner.leases.iter().rev().find(|(_, keys)| keys.len() < KEYS_PER_LEASE).map(|(id, _)| *id)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn forget(&mut self, key: &str) -> Option<(Bytes, LeaseId)> {
        let (value, lease) = self.owned.remove(key)?;
        self.orphans.remove(key);
        if let Some(keys) = self.leases.get_mut(&lease) {
            keys.remove(key);
        }
        Some((value, lease))
    }
}
