//! Leases of what is written, where there are any.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use villus_kvstore::{LeaseId, LeasePurpose, Store, StoreError};

/// Keys under one lease at most; etcd is slow to end larger ones.
const KEYS: usize = 1000;

/// Leases under which copies lie. Without a time to live there are none, and copies stay until they are deleted.
pub(crate) struct Leases {
    store: Arc<dyn Store>,
    ttl: Duration,
    inner: Mutex<Inner>,
    granting: tokio::sync::Mutex<()>,
    /// Counts losses: what lies in the store is not known any more when it moves.
    losses: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// How many keys were written under each since it last had its turn.
    leases: BTreeMap<LeaseId, usize>,
    /// Copies there are, by prefix.
    copies: BTreeMap<String, usize>,
}

// === impl Leases ===

impl Leases {
    pub fn new(store: Arc<dyn Store>, ttl: Duration) -> Self {
        Self {
            store,
            ttl,
            inner: Mutex::default(),
            granting: tokio::sync::Mutex::default(),
            losses: watch::Sender::new(0),
        }
    }

    /// Whether an entry that was found lies as one that is written now would. Its lease is kept alive from now on.
    pub fn fits(&self, found: Option<LeaseId>) -> bool {
        match found {
            Some(lease) if !self.ttl.is_zero() => {
                *self.inner().leases.entry(lease).or_default() += 1;
                true
            }
            Some(_) => false,
            None => self.ttl.is_zero(),
        }
    }

    /// A lease for so many keys more; `None` without leases.
    pub async fn lease(&self, keys: usize) -> Result<Option<LeaseId>, StoreError> {
        if self.ttl.is_zero() || keys == 0 {
            return Ok(None);
        }
        if let Some(lease) = self.with_room(keys) {
            return Ok(Some(lease));
        }
        let _one_at_a_time = self.granting.lock().await;
        if let Some(lease) = self.with_room(keys) {
            return Ok(Some(lease));
        }
        let lease = self.store.grant(self.ttl, LeasePurpose::Entries).await?;
        self.inner().leases.insert(lease, keys);
        Ok(Some(lease))
    }

    /// A lease is gone, and its keys with it.
    pub fn lost(&self, lease: LeaseId) {
        if self.inner().leases.remove(&lease).is_some() {
            tracing::warn!(%lease, "a lease of copies is gone; what lies in the local store is looked up again");
            self.losses.send_modify(|n| *n += 1);
        }
    }

    /// Moves when keys may have gone with a lease.
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    /// Keeps all alive, for ever.
    pub async fn keep_alive(&self) {
        if self.ttl.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let mut wait = self.ttl / 3;
            let leases: Vec<LeaseId> = self.inner().leases.keys().copied().collect();
            for lease in leases {
                match self.store.keep_alive(lease).await {
                    Ok(()) => {}
                    Err(StoreError::LeaseNotFound(_)) => self.lost(lease),
                    Err(error) => {
                        tracing::warn!(%error, "leases of copies could not be kept alive");
                        wait = self.ttl / 30;
                        break;
                    }
                }
            }
            tokio::time::sleep(wait.max(Duration::from_millis(200)).mul_f64(0.9 + 0.1 * fastrand::f64()))
                .await;
        }
    }

    /// How many copies lie below a prefix.
    pub fn copies(&self, prefix: &str, count: usize) {
        if !self.ttl.is_zero() {
            self.inner().copies.insert(prefix.to_owned(), count);
        }
    }

    /// Values that are written again move from lease to lease. Once there are twice as many leases as the copies need, those
    /// that are there take turns.
    fn with_room(&self, keys: usize) -> Option<LeaseId> {
        let mut inner = self.inner();
        let enough = inner.leases.len() * KEYS > inner.copies.values().sum::<usize>() * 2 + KEYS;
        let room = inner.leases.iter_mut().rev().find(|(_, used)| **used + keys <= KEYS);
        if let Some((lease, used)) = room {
            *used += keys;
            return Some(*lease);
        }
        if enough {
            inner.leases.values_mut().for_each(|used| *used = 0);
            return inner.leases.keys().next().copied();
        }
        None
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
