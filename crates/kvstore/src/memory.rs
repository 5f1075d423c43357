//! The store that forgets: for tests, with faults on request.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch as signal;

use crate::{
    engine::{Engine, EngineWatch, NoDisk, State},
    error::StoreError,
    model::{Header, LeaseId, LeasePurpose, Listing, Page, Status, Txn, TxnOutcome, WatchBatch},
    store::{Store, Watch},
};

/// Kinds of operation that a [`Fault`] can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Transactions, and all that is made of them.
    Txn,
    /// Lists.
    List,
    /// Beginning a watch.
    Watch,
    /// Granting, keeping and revoking leases.
    Lease,
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused and nothing happens.
    Refused,
    /// It takes place, but its answer is lost.
    AnswerLost,
    /// It hangs until [`Memory::heal`].
    Hangs,
}

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    faults: Mutex<Vec<(Verb, Fault, u32)>>,
    /// Counts interruptions; watches end when it moves.
    interruptions: signal::Sender<u64>,
    /// Whether every operation fails.
    down: signal::Sender<bool>,
    healed: signal::Sender<u64>,
    operations: AtomicU64,
}

/// The content of a [`Memory`] at some time.
#[derive(Clone)]
pub struct Backup {
    state: State,
    cluster: u64,
}

// === impl Memory ===

impl Memory {
    /// An empty store.
    ///
    /// # Errors
    /// When its thread can't be started.
    pub fn new() -> io::Result<Self> {
        let engine = Engine::start("memory-store", State::default(), fastrand::u64(1..), Box::new(NoDisk))?;
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                faults: Mutex::new(Vec::new()),
                interruptions: signal::Sender::new(0),
                down: signal::Sender::new(false),
                healed: signal::Sender::new(0),
                operations: AtomicU64::new(0),
            }),
        })
    }

    /// The next `times` operations of this kind go wrong like this.
    pub fn inject(&self, verb: Verb, fault: Fault, times: u32) {
        self.faults().push((verb, fault, times));
    }

    /// Every operation is refused and every watch ends, until [`Memory::heal`].
    pub fn go_down(&self) {
        self.inner.down.send_replace(true);
        self.interrupt();
    }

    /// Takes back all faults; what hangs goes on.
    pub fn heal(&self) {
        self.faults().clear();
        self.inner.down.send_replace(false);
        self.inner.healed.send_modify(|n| *n += 1);
    }

    /// Ends all watches.
    pub fn interrupt(&self) {
        self.inner.interruptions.send_modify(|n| *n += 1);
    }

    /// Lets time pass for leases.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn advance(&self, by: Duration) -> Result<(), StoreError> {
        self.inner.engine.advance(by).await
    }

    /// Forgets all changes up to now.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn compact(&self) -> Result<(), StoreError> {
        let now = self.inner.engine.header().revision;
        self.inner.engine.compact(now + 1).await
    }

    /// The content, to be put back later.
    pub fn backup(&self) -> Backup {
        self.inner.engine.shared().read(|p| Backup { state: p.state.clone(), cluster: p.cluster })
    }

    /// Puts an earlier content back, its revision included: what a store restored from a snapshot does.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn restore(&self, backup: &Backup) -> Result<(), StoreError> {
        self.inner.engine.replace(backup.state.clone(), backup.cluster).await
    }

    /// Loses everything, as another store under the same address.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn wipe(&self) -> Result<(), StoreError> {
        self.inner.engine.replace(State::default(), fastrand::u64(1..)).await
    }

    /// Operations that were asked for so far.
    pub fn operations(&self) -> u64 {
        self.inner.operations.load(Ordering::Relaxed)
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Vec<(Verb, Fault, u32)>> {
        self.inner.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, verb: Verb) -> Option<Fault> {
        let mut faults = self.faults();
        let (_, fault, times) = faults.iter_mut().find(|(hit, _, times)| *hit == verb && *times > 0)?;
        *times -= 1;
        Some(*fault)
    }

    async fn through<T>(
        &self,
        verb: Verb,
        what: &'static str,
        operation: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.inner.operations.fetch_add(1, Ordering::Relaxed);
        let refused = |reason: &str| StoreError::Unavailable { what, reason: reason.to_owned() };
        if *self.inner.down.borrow() {
            return Err(refused("it is down"));
        }
        let fault = self.next_fault(verb);
        if fault == Some(Fault::Hangs) {
            let mut healed = self.inner.healed.subscribe();
            // An error means that the sender is gone, which `self` prevents.
            let _ = healed.changed().await;
        }
        if fault == Some(Fault::Refused) {
            return Err(refused("injected fault"));
        }
        let outcome = operation.await;
        if fault == Some(Fault::AnswerLost) {
            return Err(refused("injected fault: the answer is lost"));
        }
        outcome
    }
}

#[async_trait]
impl Store for Memory {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.through(Verb::Txn, "transaction", self.inner.engine.txn(txn)).await
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        let page = async { self.inner.engine.list_page(prefix, after, limit, revision) };
        self.through(Verb::List, "list", page).await
    }

    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.through(Verb::List, "list", async { Ok(self.inner.engine.list(prefix)) }).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        let begin = async {
            let inner = EngineWatch::new(self.inner.engine.shared(), prefix, from);
            let interruptions = self.inner.interruptions.subscribe();
            let watch: Box<dyn Watch> =
                Box::new(Interruptible { inner, interruptions, prefix: prefix.to_owned() });
            Ok(watch)
        };
        self.through(Verb::Watch, "watch", begin).await
    }

    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        self.through(Verb::Lease, "lease", self.inner.engine.grant(ttl, purpose)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.through(Verb::Lease, "keep-alive", self.inner.engine.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.through(Verb::Lease, "revoke", self.inner.engine.revoke(lease)).await
    }

    async fn status(&self) -> Status {
        let header = self.inner.engine.header();
        let healthy = !*self.inner.down.borrow();
        let word = if healthy { "Ok" } else { "down" };
        Status { text: format!("Memory: {word}, revision {}", header.revision), healthy, header }
    }

    async fn header(&self) -> Result<Header, StoreError> {
        self.through(Verb::Txn, "header", async { Ok(self.inner.engine.header()) }).await
    }
}

struct Interruptible {
    inner: EngineWatch,
    interruptions: signal::Receiver<u64>,
    prefix: String,
}

#[async_trait]
impl Watch for Interruptible {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        tokio::select! {
            biased;
            _ = self.interruptions.changed() => {
                let reason = "injected fault".to_owned();
                Err(StoreError::Interrupted { prefix: self.prefix.clone(), reason })
            }
            batch = self.inner.next() => batch,
        }
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }
}
