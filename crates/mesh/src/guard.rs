//! The condition under which anything is written: that this process leads.

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
