//! One of many: a key of the store under a lease, which its writer keeps alive.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use villus_kvstore::{Answer, Compare, LeaseId, LeasePurpose, Op, Store, StoreError, Txn};
use villus_table::Backoff;

/// How long a candidate waits for an event before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// An office that one process at a time holds.
pub struct Election {
    store: Arc<dyn Store>,
    key: String,
    name: String,
    ttl: Duration,
    backoff: Backoff,
}

/// The time in office. It ends when the store says so, or when the store has not answered for so long that it may
/// have given the office to another.
pub struct Term {
    store: Arc<dyn Store>,
    key: String,
    created: u64,
    lease: LeaseId,
    ttl: Duration,
}

/// Value of the key, for people.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    name: String,
    since: String,
}

// === impl Election ===

impl Election {
    /// A candidate of this name for the office that `key` stands for. A holder that is gone loses it after `ttl`.
    pub fn new(store: Arc<dyn Store>, key: &str, name: &str, ttl: Duration, backoff: Backoff) -> Self {
        Self { store, key: key.to_owned(), name: name.to_owned(), ttl, backoff }
    }

    /// Waits until the office is this candidate's. `seen` is told who holds it meanwhile (`None` while nobody is
    /// known to) and what keeps the candidate from asking.
    pub async fn win(&self, mut seen: impl FnMut(Result<Option<String>, StoreError>)) -> Term {
        let mut failures = 0;
        let mut chance = fastrand::Rng::new();
        loop {
            match self.stand().await {
                Ok(Stand::Won(term)) => return term,
                Ok(Stand::Held { by, revision }) => {
                    failures = 0;
                    seen(Ok(by));
                    self.until_it_may_be_free(revision).await;
                }
                Err(error) => {
                    failures += 1;
                    seen(Err(error));
                    tokio::time::sleep(self.backoff.delay(failures, &mut chance)).await;
                }
            }
        }
    }

    async fn stand(&self) -> Result<Stand, StoreError> {
        let revision = self.store.header().await?.revision;
        if let Some(entry) = self.store.get(&self.key).await? {
            return Ok(Stand::held(entry.text(), revision));
        }
        let lease = self.store.grant(self.ttl, LeasePurpose::Locks).await?;
        let holder = Holder { name: self.name.clone(), since: crate::now() };
        let value = serde_json::to_string(&holder).unwrap_or_default();
        let txn = Txn::new()
            .when(Compare::Absent(self.key.clone()))
            .then(Op::put(self.key.as_str(), value, Some(lease)))
            .otherwise(Op::Get(self.key.clone()));
        let outcome = self.store.txn(txn).await;
        let (store, key, ttl) = (Arc::clone(&self.store), self.key.clone(), self.ttl);
        match outcome {
            Ok(outcome) if outcome.held => {
                Ok(Stand::Won(Term { store, key, created: outcome.revision, lease, ttl }))
            }
            other => {
                // Whether an attempt that failed took place is not known; with the lease its key goes.
                let _ = self.store.revoke(lease).await;
                let outcome = other?;
                let entry = outcome.answers.iter().find_map(|answer| match answer {
                    Answer::Got(entry) => entry.as_ref(),
                    Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
                });
                Ok(Stand::held(entry.and_then(|entry| entry.text()), outcome.revision))
            }
        }
    }

    async fn until_it_may_be_free(&self, revision: u64) {
        let Ok(mut watch) = self.store.watch(&self.key, revision + 1).await else { return };
        // Whatever the watch says, or that it ended: look again.
        let _ = tokio::time::timeout(LOOK_AGAIN, watch.next()).await;
    }
}

enum Stand {
    Won(Term),
    Held { by: Option<String>, revision: u64 },
}

impl Stand {
    fn held(value: Option<&str>, revision: u64) -> Self {
        let holder = value.and_then(|value| serde_json::from_str::<Holder>(value).ok());
        Self::Held { by: holder.map(|holder| holder.name), revision }
    }
}

// === impl Term ===

impl Term {
    /// The condition that the office is still held. Every write of its holder carries it.
    pub fn held(&self) -> Compare {
        Compare::CreateRevision(self.key.clone(), self.created)
    }

    /// Keeps the office until it is lost.
    pub async fn keep(&self) {
        // The lease was granted before, so this is late by the time that took; two thirds leave room for it.
        let mut kept = Instant::now();
        let mut wait = self.ttl / 3;
        loop {
            tokio::time::sleep(wait).await;
            let asked = Instant::now();
            let left = (self.ttl * 2 / 3).saturating_sub(kept.elapsed());
            wait = match tokio::time::timeout(left, self.store.keep_alive(self.lease)).await {
                Ok(Ok(())) => {
                    kept = asked;
                    self.ttl / 3
                }
                Ok(Err(StoreError::LeaseNotFound(_))) | Err(_) => return,
                Ok(Err(_)) if kept.elapsed() >= self.ttl * 2 / 3 => return,
                Ok(Err(_)) => self.ttl / 15,
            };
        }
    }

    /// Gives the office back at once. If the store does not answer, it goes with its lease.
    pub async fn resign(self) {
        let _ = self.store.revoke(self.lease).await;
    }
}
