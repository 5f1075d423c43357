//! A store that is only used once it is known to be this cluster's.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    cluster::ClusterConfig,
    error::StoreError,
    model::{Header, LeaseId, LeasePurpose, Listing, Page, Status, Txn, TxnOutcome},
    store::{Store, Watch},
};

/// How long a store that was refused is not asked again.
const AGAIN: Duration = Duration::from_secs(30);

/// Passes on to another store what it is asked, but nothing before that store was asked which cluster it is of, and
/// nothing while it names another cluster. A store whose header tells it from the one before is asked again.
pub struct Guard {
    inner: Arc<dyn Store>,
    name: String,
    own: ClusterConfig,
    asking: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    /// The store that may be used.
    admitted: Option<u64>,
    /// Why the one that answers may not, and since when.
    refused: Option<(String, Instant)>,
    /// What is odd about it although it is used.
    odd: Option<String>,
}

// === impl Guard ===

impl Guard {
    /// In front of a store of the cluster with this name.
    pub fn new(inner: Arc<dyn Store>, name: &str, own: ClusterConfig) -> Self {
        let (asking, known) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { inner, name: name.to_owned(), own, asking, known }
    }

    /// Why the store is not used although it answers.
    pub fn refusal(&self) -> Option<String> {
        self.known().refused.clone().map(|(reason, _)| reason)
    }

    /// What is odd about what the store says of the cluster, though it is used.
    pub fn oddity(&self) -> Option<String> {
        self.known().odd.clone()
    }

    /// Asks the store again which cluster it is of, now.
    ///
    /// # Errors
    /// The store is not there, or it is another cluster's.
    pub async fn check(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.asking.lock().await;
        self.ask().await
    }

    async fn admit(&self) -> Result<(), StoreError> {
        if self.known().admitted.is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.asking.lock().await;
        let known = self.known().clone();
        if known.admitted.is_some() {
            return Ok(());
        }
        match known.refused {
            Some((reason, at)) if at.elapsed() < AGAIN => Err(refused(reason)),
            _ => self.ask().await,
        }
    }

    async fn ask(&self) -> Result<(), StoreError> {
        let key = ClusterConfig::key(&self.name);
        let header = self.inner.header().await?;
        let entry = self.inner.get(&key).await?;
        let mut odd = None;
        let differs = entry.and_then(|entry| match ClusterConfig::read(&entry.value) {
            Ok(theirs) => self.own.differs(&theirs),
            Err(reason) => {
                odd = Some(format!("`{key}` can't be read and is left alone: {reason}"));
                None
            }
        });
        let mut known = self.known();
        known.odd = odd;
        let Some(differs) = differs else {
            known.admitted = Some(header.cluster);
            known.refused = None;
            return Ok(());
        };
        let reason = format!(
            "the store is another cluster's: `{key}` says that {differs}; \
             mend `kvstore-opt`, `cluster-name` or `cluster-id`, or delete the key if it is wrong"
        );
        known.admitted = None;
        known.refused = Some((reason.clone(), Instant::now()));
        Err(refused(reason))
    }

    /// Whether an answer is of the store that was admitted.
    fn is_of_admitted(&self, header: Header) -> bool {
        let mut known = self.known();
        let same = known.admitted == Some(header.cluster);
        if !same {
            known.admitted = None;
        }
        same
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(reason: String) -> StoreError {
    StoreError::Unavailable { what: "any use", reason }
}

#[async_trait]
impl Store for Guard {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.admit().await?;
        self.inner.txn(txn).await
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        self.admit().await?;
        let page = self.inner.list_page(prefix, after, limit, revision).await?;
        match self.is_of_admitted(page.header) {
            true => Ok(page),
            false => Err(refused("another store answers; which cluster it is of is asked first".to_owned())),
        }
    }

    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.admit().await?;
        let listing = self.inner.list_prefix(prefix).await?;
        match self.is_of_admitted(listing.header) {
            true => Ok(listing),
            false => Err(refused("another store answers; which cluster it is of is asked first".to_owned())),
        }
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        self.admit().await?;
        self.inner.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        self.admit().await?;
        self.inner.grant(ttl, purpose).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.admit().await?;
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.admit().await?;
        self.inner.revoke(lease).await
    }

    async fn status(&self) -> Status {
        let mut status = self.inner.status().await;
        if let Some(reason) = self.refusal() {
            status.healthy = false;
            status.text = format!("{}; {reason}", status.text);
        }
        status
    }

    async fn header(&self) -> Result<Header, StoreError> {
        self.admit().await?;
        let header = self.inner.header().await?;
        if !self.is_of_admitted(header) {
            self.admit().await?;
        }
        Ok(header)
    }
}
