//! Locks of the store: a key per contender under a lease, the oldest holds (etcd's recipe, so that all
//! clients of one store agree).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use villus_table::Backoff;

use crate::{
    error::StoreError,
    model::{Answer, Compare, Entry, LeaseId, LeasePurpose, Op, Txn},
    pace::{ClusterSize, Pace},
    store::Store,
};

/// How long a lock outlives a holder that is gone.
const TTL: Duration = Duration::from_secs(25);
/// How long to wait for an event before looking again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long to wait before a lock is tried to be given back again, the first time, and at most.
const GIVE_BACK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Locks of one process on one store. Within the process contenders wait for each other without asking the
/// store. Clones share everything.
#[derive(Clone)]
pub struct Locks {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    size: ClusterSize,
    lease: AsyncMutex<Option<(LeaseId, Instant)>>,
    names: Mutex<HashMap<String, Weak<Name>>>,
}

/// Who in this process has a lock; inside, our key of the lock if it is still to be deleted.
type Name = AsyncMutex<Option<String>>;

/// A lock that is held within this process only: nobody else of this process has it, and the store does not know.
pub struct Local {
    inner: Arc<Inner>,
    name: String,
    guard: OwnedMutexGuard<Option<String>>,
}

/// A lock that is held. Dropping it gives it back as soon as the store can be reached.
pub struct Lock {
    inner: Arc<Inner>,
    name: String,
    key: String,
    /// Revision at which our key was created; 0 while that is not known.
    created: u64,
    /// Taken when the lock is given back.
    local: Option<OwnedMutexGuard<Option<String>>>,
}

// === impl Locks ===

impl Locks {
    /// No lock is held yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::of_cluster(store, ClusterSize::default())
    }

    /// As [`Locks::new`], of one of many nodes: what fails is tried again the more seldom the more there are.
    pub fn of_cluster(store: Arc<dyn Store>, size: ClusterSize) -> Self {
        let (lease, names) = (AsyncMutex::new(None), Mutex::new(HashMap::new()));
        Self { inner: Arc::new(Inner { store, size, lease, names }) }
    }

    /// Waits for the lock `name`, at most for `patience`.
    ///
    /// # Errors
    /// When the time passes or the store is not there.
    pub async fn acquire(&self, name: &str, patience: Duration) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + patience;
        self.local(name, patience).await?.acquire_until(deadline, patience).await
    }

    /// Waits for the lock `name` within this process, at most for `patience`.
    ///
    /// # Errors
    /// When the time passes.
    pub async fn local(&self, name: &str, patience: Duration) -> Result<Local, StoreError> {
        let timeout = |_| StoreError::LockTimeout {
            name: name.to_owned(),
            waited: patience,
            holder: "this process".to_owned(),
        };
        let mutex = self.inner.local(name);
        let guard = tokio::time::timeout(patience, mutex.lock_owned()).await.map_err(timeout)?;
        Ok(Local { inner: Arc::clone(&self.inner), name: name.to_owned(), guard })
    }

    /// Keeps what is held alive where a lock is held for long: to be called every few seconds. Whether a lock is still
    /// held is said by [`Lock::is_held`].
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        self.inner.lease().await.map(|_| ())
    }
}

// === impl Local ===

impl Local {
    /// The condition that nobody has or wants the lock in the store: a transaction with it is as good as one that is
    /// carried out while the lock is held.
    pub fn free(&self) -> Compare {
        Compare::NoneBelow(below(&self.name))
    }

    /// Waits for the lock in the store too, at most for `patience`.
    ///
    /// # Errors
    /// When the time passes or the store is not there.
    pub async fn acquire(self, patience: Duration) -> Result<Lock, StoreError> {
        self.acquire_until(Instant::now() + patience, patience).await
    }

    async fn acquire_until(self, deadline: Instant, patience: Duration) -> Result<Lock, StoreError> {
        let mut lock = self.inner.contend(&self.name, self.guard).await?;
        match lock.wait(deadline, patience).await {
            Ok(()) => Ok(lock),
            Err(error) => {
                lock.give_back().await;
                Err(error)
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    fn local(&self, name: &str) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mutex) = names.get(name).and_then(Weak::upgrade) {
            return mutex;
        }
        names.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = Arc::new(AsyncMutex::new(None));
        names.insert(name.to_owned(), Arc::downgrade(&mutex));
        mutex
    }

    /// The lease of all locks of this process, kept alive when a third of its time is over.
    async fn lease(&self) -> Result<LeaseId, StoreError> {
        let mut lease = self.lease.lock().await;
        if let Some((id, kept)) = *lease {
            if kept.elapsed() < TTL / 3 {
                return Ok(id);
            }
            match self.store.keep_alive(id).await {
                Ok(()) => {
                    *lease = Some((id, Instant::now()));
                    return Ok(id);
                }
                Err(StoreError::LeaseNotFound(_)) => *lease = None,
                Err(error) => return Err(error),
            }
        }
        let id = self.store.grant(TTL, LeasePurpose::Locks).await?;
        *lease = Some((id, Instant::now()));
        Ok(id)
    }

    /// Writes this process's key for the lock. From the first attempt on a [`Lock`] stands for the key, so that
    /// it is taken away again whatever happens.
    async fn contend(
        self: &Arc<Self>,
        name: &str,
        local: OwnedMutexGuard<Option<String>>,
    ) -> Result<Lock, StoreError> {
        let mut local = Some(local);
        loop {
            let lease = self.lease().await?;
            let key = format!("{name}/{lease}");
            let txn = Txn::new()
                .when(Compare::Absent(key.clone()))
                .then(Op::put(key.as_str(), Bytes::new(), Some(lease)))
                .otherwise(Op::Get(key.clone()));
            let (inner, name) = (Arc::clone(self), name.to_owned());
            let mut lock = Lock { inner, name, key, created: 0, local: local.take() };
            // A key that is left over from before is this lock's now.
            if let Some(leftover) = lock.local.as_deref_mut() {
                *leftover = None;
            }
            match self.store.txn(txn).await {
                Ok(outcome) => {
                    // A key that is there already is one of ours whose deletion did not arrive.
                    let old = outcome.answers.into_iter().find_map(|answer| match answer {
                        Answer::Got(Some(entry)) => Some(entry.create_revision),
                        _ => None,
                    });
                    lock.created = old.unwrap_or(outcome.revision);
                    return Ok(lock);
                }
                Err(StoreError::LeaseNotFound(lost)) => {
                    // Nothing was written; the next round has a lease of its own.
                    local = lock.local.take();
                    self.forget_lease(lost).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn forget_lease(&self, lost: LeaseId) {
        let mut lease = self.lease.lock().await;
        if lease.is_some_and(|(id, _)| id == lost) {
            *lease = None;
        }
    }

    /// Deletes our key of a lock, again and again while the store does not answer, unless the lock is taken
    /// again. When it takes too long, the lease is given up, and the key goes with it.
    async fn clean_up(self: Arc<Self>, name: Arc<Name>) {
        let begun = Instant::now();
        let (mut failures, mut chance) = (0, fastrand::Rng::new());
        let pace = Pace::new(Backoff::half(GIVE_BACK.0, GIVE_BACK.1), self.size.clone());
        loop {
            {
                let mut leftover = name.lock().await;
                let Some(key) = leftover.as_deref() else { return };
                let Err(error) = self.store.delete(key).await else {
                    *leftover = None;
                    return;
                };
                if begun.elapsed() > TTL {
                    tracing::warn!(key, %error, "a lock could not be given back; it goes with its lease");
                    *self.lease.lock().await = None;
                    return;
                }
            }
            failures += 1;
            tokio::time::sleep(pace.delay(failures, &mut chance)).await;
        }
    }
}

// === impl Lock ===

impl Lock {
    /// The condition that this lock is still held. Every transaction made under it carries it.
    pub fn held(&self) -> Compare {
        Compare::CreateRevision(self.key.clone(), self.created)
    }

    /// The operation that gives the lock back, for the last transaction made under it; then say so with
    /// [`Lock::was_given_back`].
    pub fn end(&self) -> Op {
        Op::Delete(self.key.clone())
    }

    /// A transaction with [`Lock::end`] was carried out.
    pub fn was_given_back(mut self) {
        self.local = None;
    }

    /// Whether the store says that this lock is held.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn is_held(&self) -> Result<bool, StoreError> {
        let entry = self.inner.store.get(&self.key).await?;
        Ok(entry.is_some_and(|entry| entry.create_revision == self.created))
    }

    /// The lock's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the lock back and waits until the store knows, or has failed once: then it is tried again in the
    /// background.
    pub async fn release(mut self) {
        self.give_back().await;
    }

    async fn give_back(&mut self) {
        // Only then is the lock not ours any more; cancelled or failed, `drop` takes over.
        if self.inner.store.delete(&self.key).await.is_ok() {
            self.local = None;
        }
    }

    async fn wait(&self, deadline: Instant, patience: Duration) -> Result<(), StoreError> {
        let below = below(&self.name);
        loop {
            let listing = self.inner.store.list_prefix(&below).await?;
            let oldest = listing.entries.iter().min_by_key(|entry: &&Entry| entry.create_revision);
            let Some(oldest) = oldest else { return Err(StoreError::LockLost(self.name.clone())) };
            if *oldest.key == *self.key {
                return Ok(());
            }
            if !listing.entries.iter().any(|entry| *entry.key == *self.key) {
                return Err(StoreError::LockLost(self.name.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (name, holder) = (self.name.clone(), oldest.key.to_string());
                return Err(StoreError::LockTimeout { name, waited: patience, holder });
            }
            let mut watch = self.inner.store.watch(&below, listing.header.revision + 1).await?;
            // Whatever the watch says, or that it ended: look again.
            let _ = tokio::time::timeout(left.min(LOOK_AGAIN), watch.next()).await;
            self.inner.lease().await?;
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Some(mut local) = self.local.take() else { return };
        *local = Some(std::mem::take(&mut self.key));
        let name = Arc::clone(OwnedMutexGuard::mutex(&local));
        drop(local);
        // Without a runtime nothing can be said to the store; its lease ends the lock.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(Arc::clone(&self.inner).clean_up(name));
        }
    }
}

/// Below it lies a key for each contender.
fn below(name: &str) -> String {
    format!("{name}/")
}
