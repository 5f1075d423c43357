//! The trait that every store has.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    error::StoreError,
    model::{
        Answer, Compare, Entry, Header, LeaseId, LeasePurpose, Listing, Op, Page, Status, Txn, TxnOutcome,
        WatchBatch,
    },
    pages::Pages,
};

/// Keys of the first page of a list.
pub const PAGE: usize = 256;

/// A store with revisions, transactions, leases and watches.
///
/// Reads see every write that was acknowledged before. A write that fails with
/// [`StoreError::Unavailable`] may have taken place.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Carries out a transaction.
    ///
    /// # Errors
    /// When the store is not there, a lease is gone or the transaction is malformed.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// At most `limit` entries that begin with `prefix` and come after the key `after`, as of `revision` (0:
    /// now).
    ///
    /// # Errors
    /// When the store is not there or has forgotten that revision.
    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError>;

    /// Watches the keys that begin with `prefix`, from the changes of revision `from` on.
    ///
    /// # Errors
    /// When the store is not there. A revision that is forgotten is reported by the watch.
    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError>;

    /// A new lease that lasts `ttl` after it was last kept alive.
    ///
    /// # Errors
    /// When the store is not there.
    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError>;

    /// Makes a lease last its whole time again.
    ///
    /// # Errors
    /// When the store is not there or the lease is gone.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease; its keys go at one revision. That it is gone already is fine.
    ///
    /// # Errors
    /// When the store is not there.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// How the store is. Never fails: an unreachable store is a status.
    async fn status(&self) -> Status;

    /// Which store answers, and its revision.
    ///
    /// # Errors
    /// When the store is not there.
    async fn header(&self) -> Result<Header, StoreError>;

    /// One entry.
    ///
    /// # Errors
    /// When the store is not there.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let outcome = self.txn(Txn::new().then(Op::Get(key.to_owned()))).await?;
        Ok(outcome.answers.into_iter().find_map(got))
    }

    /// All entries that begin with `prefix`, as of one revision, read page by page.
    ///
    /// # Errors
    /// When the store is not there, or forgets the first page's revision before the last page was read.
    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut pages = Pages::of(prefix);
        let (mut entries, mut header) = (Vec::new(), Header { cluster: 0, revision: 0 });
        while let Some(mut page) = pages.next(self).await? {
            if header.revision == 0 {
                header = page.header;
            }
            entries.append(&mut page.entries);
        }
        Ok(Listing { entries, header })
    }

    /// Writes a key that must not be there. Returns whether it was not.
    ///
    /// # Errors
    /// When the store is not there or the lease is gone.
    async fn create(&self, key: &str, value: Bytes, lease: Option<LeaseId>) -> Result<bool, StoreError> {
        let txn = Txn::new().when(Compare::Absent(key.to_owned())).then(Op::put(key, value, lease));
        Ok(self.txn(txn).await?.held)
    }

    /// Writes a key, whether it is there or not. Returns the revision.
    ///
    /// # Errors
    /// When the store is not there or the lease is gone.
    async fn update(&self, key: &str, value: Bytes, lease: Option<LeaseId>) -> Result<u64, StoreError> {
        Ok(self.txn(Txn::new().then(Op::put(key, value, lease))).await?.revision)
    }

    /// Deletes a key. Returns whether it was there.
    ///
    /// # Errors
    /// When the store is not there.
    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let outcome = self.txn(Txn::new().then(Op::Delete(key.to_owned()))).await?;
        Ok(deleted(&outcome) > 0)
    }

    /// Deletes all keys that begin with `prefix`, at one revision. Returns how many.
    ///
    /// # Errors
    /// When the store is not there.
    async fn delete_prefix(&self, prefix: &str) -> Result<u64, StoreError> {
        let outcome = self.txn(Txn::new().then(Op::DeletePrefix(prefix.to_owned()))).await?;
        Ok(deleted(&outcome))
    }

    /// Deletes a key if the condition holds. Returns whether it was deleted.
    ///
    /// # Errors
    /// When the store is not there.
    async fn compare_and_delete(&self, key: &str, compare: Compare) -> Result<bool, StoreError> {
        let outcome = self.txn(Txn::new().when(compare).then(Op::Delete(key.to_owned()))).await?;
        Ok(outcome.held && deleted(&outcome) > 0)
    }
}

fn got(answer: Answer) -> Option<Entry> {
    match answer {
        Answer::Got(entry) => entry,
        Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
    }
}

fn deleted(outcome: &TxnOutcome) -> u64 {
    let count = |answer: &Answer| if let Answer::Deleted(count) = answer { *count } else { 0 };
    outcome.answers.iter().map(count).sum()
}

/// A watch under way.
#[async_trait]
pub trait Watch: Send {
    /// The next transaction with changes below the prefix. Transactions come in order, each once and whole,
    /// and none is left out. Cancelling loses nothing.
    ///
    /// # Errors
    /// The watch has ended: watch again from [`Watch::position`], or list again if that is forgotten.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;

    /// Everything before this revision has been yielded or did not concern the prefix.
    fn position(&self) -> u64;
}
