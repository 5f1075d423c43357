//! A store that is only used once it is known to be this cluster's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cluster::ClusterConfig;

/// Judges by a store's entry for the cluster whether the store is this cluster's.
///
/// [`crate::Etcd::guarded`] asks it about each connection before anything else goes over that, and makes no connection anew
/// without it: nothing is written into another cluster's store, whatever the address leads to.
pub struct Guard {
    key: String,
    own: ClusterConfig,
    known: Mutex<Known>,
}

/// What came of it last.
#[derive(Default)]
struct Known {
    /// Why the store that answers may not be used.
    refused: Option<String>,
    /// What is odd about it although it is used.
    odd: Option<String>,
}

// === impl Guard ===

impl Guard {
    /// Of the cluster with this name.
    pub fn new(name: &str, own: ClusterConfig) -> Self {
        Self { key: ClusterConfig::key(name), own, known: Mutex::default() }
    }

    /// Why the store is not used although it answers.
    pub fn refusal(&self) -> Option<String> {
        self.known().refused.clone()
    }

    /// What is odd about what the store says of the cluster, though it is used.
    pub fn oddity(&self) -> Option<String> {
        self.known().odd.clone()
    }

    /// The key that says which cluster a store is of.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether a store may be used that has this value there. `Err`: why not.
    pub(crate) fn judge(&self, value: Option<&[u8]>) -> Result<(), String> {
        let key = &self.key;
        let mut known = self.known();
        known.odd = None;
        let differs = value.and_then(|value| match ClusterConfig::read(value) {
            Ok(theirs) => self.own.differs(&theirs),
            Err(reason) => {
                known.odd = Some(format!("`{key}` can't be read and is left alone: {reason}"));
                None
            }
        });
        known.refused = differs.map(|differs| {
            format!(
                "the store is another cluster's: `{key}` says that {differs}; \
                 mend `kvstore-opt`, `cluster-name` or `cluster-id`, or delete the key if it is wrong"
            )
        });
        known.refused.clone().map_or(Ok(()), Err)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
