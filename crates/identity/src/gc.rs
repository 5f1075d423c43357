//! Garbage collection of numbers that no node uses any more.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use villus_kvstore::{Compare, Entry, Locks, Op, Store, StoreError, Txn, keys};

use crate::allocator::{lock_name, slave_prefix};

/// Deletes master keys that no slave key names, in two passes: a key goes only if the pass before already
/// found it unused and nobody has written it since. Only numbers of one cluster's range are looked at.
pub struct Gc {
    store: Arc<dyn Store>,
    locks: Locks,
    range: RangeInclusive<u32>,
    patience: Duration,
    /// Keys found unused by the last pass, with their revisions.
    unused: BTreeMap<String, u64>,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Numbers that some node uses.
    pub used: u64,
    /// Numbers found unused for the first time.
    pub marked: u64,
    /// Numbers deleted.
    pub deleted: u64,
    /// Numbers outside the range, or that can't be read.
    pub skipped: u64,
    /// Unused numbers that have to wait for the next pass, since this one deleted enough.
    pub deferred: u64,
}

// === impl Gc ===

impl Gc {
    /// A collector of the numbers in `range`; it waits `patience` for the lock of a label set.
    pub fn new(store: Arc<dyn Store>, range: RangeInclusive<u32>, patience: Duration) -> Self {
        let locks = Locks::new(Arc::clone(&store));
        Self { store, locks, range, patience, unused: BTreeMap::new() }
    }

    /// One pass, which deletes at most `limit` keys.
    ///
    /// # Errors
    /// When the store is not there. What was found so far is kept only from the last complete pass.
    pub async fn pass(&mut self, limit: u64) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let mut unused = BTreeMap::new();
        let masters = self.store.list_prefix(&format!("{}/", keys::IDENTITY_IDS)).await?;
        for master in &masters.entries {
            let number = master.key.rsplit_once('/').and_then(|(_, text)| text.parse().ok());
            let (Some(number), Some(text)) = (number.filter(|n| self.range.contains(n)), master.text())
            else {
                report.skipped += 1;
                continue;
            };
            if self.is_used(text, number).await? {
                report.used += 1;
                continue;
            }
            let stale = self.unused.get(&*master.key) == Some(&master.mod_revision);
            if !stale {
                report.marked += 1;
            } else if report.deleted >= limit {
                report.deferred += 1;
            } else if self.delete(master, text, number).await? {
                report.deleted += 1;
                continue;
            }
            unused.insert(master.key.to_string(), master.mod_revision);
        }
        self.unused = unused;
        Ok(report)
    }

    async fn is_used(&self, text: &str, number: u32) -> Result<bool, StoreError> {
        let prefix = slave_prefix(text);
        let slaves = self.store.list_prefix(&prefix).await?;
        let names = |slave: &Entry| {
            let node = slave.key.get(prefix.len()..);
            node.is_some_and(|node| !node.contains('/'))
                && slave.text().is_some_and(|value| value.parse() == Ok(number))
        };
        Ok(slaves.entries.iter().any(names))
    }

    /// Deletes a master key, if under the lock nobody uses it.
    async fn delete(&self, master: &Entry, text: &str, number: u32) -> Result<bool, StoreError> {
        let lock = match self.locks.acquire(&lock_name(text), self.patience).await {
            // Whoever holds it is about to use it.
            Err(StoreError::LockTimeout { .. }) => return Ok(false),
            lock => lock?,
        };
        let deleted = async {
            if self.is_used(text, number).await? {
                return Ok(false);
            }
            let same = Compare::ModRevision(master.key.to_string(), master.mod_revision);
            let txn = Txn::new().when(lock.held()).when(same).then(Op::Delete(master.key.to_string()));
            Ok(self.store.txn(txn).await?.held)
        };
        let outcome = deleted.await;
        lock.release().await;
        outcome
    }
}
