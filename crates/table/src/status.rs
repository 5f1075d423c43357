//! What the target of a reconciler does not hold as wanted yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

/// How far a row has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowState {
    /// Not yet tried.
    Pending,
    /// The target refused it; it will be tried again.
    Error {
        /// What the target said last.
        message: String,
        /// Failures in a row.
        failures: u32,
    },
}

/// State of a row and since when it has had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowStatus {
    /// Pending or in error.
    pub state: RowState,
    /// When the row came into this state. A repeated error keeps the time of the first.
    pub since: Instant,
    /// The row is to be deleted at the target.
    pub deleting: bool,
}

/// The statuses of rows that the target does not hold as wanted: readable from anywhere, written by the reconciler alone.
#[derive(Debug)]
pub struct Statuses<K> {
    rows: Arc<RwLock<BTreeMap<K, RowStatus>>>,
}

// === impl Statuses ===

impl<K> Clone for Statuses<K> {
    fn clone(&self) -> Self {
        Self { rows: Arc::clone(&self.rows) }
    }
}

impl<K: Ord + Clone> Statuses<K> {
    pub(crate) fn new() -> Self {
        Self { rows: Arc::new(RwLock::new(BTreeMap::new())) }
    }

    /// Status of one row; `None` when the target holds it as wanted, or the reconciler has not seen it.
    pub fn get(&self, key: &K) -> Option<RowStatus> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Rows that the target does not hold as wanted, with their status.
    pub fn unsettled(&self) -> Vec<(K, RowStatus)> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.iter().map(|(key, status)| (key.clone(), status.clone())).collect()
    }

    pub(crate) fn edit<R>(&self, edit: impl FnOnce(&mut BTreeMap<K, RowStatus>) -> R) -> R {
        edit(&mut self.rows.write().unwrap_or_else(PoisonError::into_inner))
    }
}
