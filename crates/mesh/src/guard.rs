//! The condition under which anything is written: that this process leads; and how far the store was when it was.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use villus_kvstore::{Compare, StoreError, Txn};

/// Stands in every transaction; without election it is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard(pub Option<Compare>);

// === impl Guard ===

impl Guard {
    /// A transaction that is only carried out while this process leads.
    pub fn txn(&self) -> Txn {
        match &self.0 {
            Some(held) => Txn::new().when(held.clone()),
            None => Txn::new(),
        }
    }

    /// Somebody else leads.
    pub fn lost() -> StoreError {
        StoreError::LockLost(crate::LOCK.to_owned())
    }
}

/// The highest revision at which the local store has acknowledged anything. A store that is below it later is not what it was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Highest(Arc<AtomicU64>);

// === impl Highest ===

impl Highest {
    pub fn note(&self, revision: u64) {
        self.0.fetch_max(revision, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The store is another now.
    pub fn begin_anew(&self, revision: u64) {
        self.0.store(revision, Ordering::Relaxed);
    }
}
