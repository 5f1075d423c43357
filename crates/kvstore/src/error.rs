//! What can go wrong at the store's edge.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::model::LeaseId;

/// Why an operation on the store failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The store can't be reached or can't write now. Whether the operation took place is not known.
    #[error("the store is not available for `{what}`: {reason}; it is tried again")]
    Unavailable {
        /// The operation.
        what: &'static str,
        /// What the store said.
        reason: String,
    },
    /// The store answers and does not permit it to this user; nothing took place.
    #[error("the store does not permit `{what}`: {reason}; it is tried again")]
    Denied {
        /// The operation.
        what: &'static str,
        /// What the store said.
        reason: String,
    },
    /// The store answers and has no space left for writes; nothing took place.
    #[error(
        "the store has no space for `{what}`: {reason}; compact and defragment it, then `etcdctl alarm disarm`"
    )]
    Full {
        /// The operation.
        what: &'static str,
        /// What the store said.
        reason: String,
    },
    /// The watch ended. Watch again from where it was.
    #[error("the watch of `{prefix}` was interrupted: {reason}")]
    Interrupted {
        /// What was watched.
        prefix: String,
        /// Why.
        reason: String,
    },
    /// Changes that old are forgotten. List again.
    #[error(
        "revision {requested} is forgotten, the oldest that is kept is {oldest}; the prefix must be listed again"
    )]
    Compacted {
        /// The revision asked for.
        requested: u64,
        /// The oldest still known.
        oldest: u64,
    },
    /// The lease has expired or was revoked.
    #[error("lease {0} is gone; its keys must be written again under a new one")]
    LeaseNotFound(LeaseId),
    /// The key can't be a key.
    #[error("`{key}` can't be a key: {reason}")]
    BadKey {
        /// The key, shortened.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The transaction can't be carried out by any store.
    #[error("the transaction is refused: {0}")]
    BadTxn(String),
    /// Somebody else held the lock all the time.
    #[error("lock `{name}` was not free within {waited:?}; `{holder}` holds it")]
    LockTimeout {
        /// The lock.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// The key of the holder.
        holder: String,
    },
    /// The lease of the lock expired while it was held.
    #[error("lock `{0}` was lost: its lease expired while it was held")]
    LockLost(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

// === impl StoreError ===

impl StoreError {
    /// Whether what failed is about the keys that were named, so that other keys may well be written.
    pub fn is_of_one_key(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::BadKey { .. } | Self::BadTxn(_))
    }

    /// Whether the store as a whole can't do it now: with other keys it fares no better.
    pub fn is_of_whole_store(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }

    /// Whether the same operation may succeed later although this process does nothing but wait.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Denied { .. }
                | Self::Full { .. }
                | Self::Interrupted { .. }
                | Self::LockTimeout { .. }
        )
    }
}

/// Why the embedded store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path:?}: another process has this store open; stop the other agent, or give this one its own state directory"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a later version.
    #[error(
        "{path:?}: written by a later version (format {found}, this one reads {known}); start that version, or move the file away to begin anew"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The latest that is known here.
        known: u64,
    },
    /// The file system refused.
    #[error("{path:?}: {reason}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        reason: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The database refused for a reason of its own.
    #[error("{path:?}: can't be opened: {reason}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database said.
        reason: String,
    },
}
