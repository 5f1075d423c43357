//! Numbers for label sets that nobody has, as agents allocate them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use villus_kvstore::{Compare, LeaseId, Op, Store, StoreError, Txn};

use super::{Latency, Load, PREFIX, ReplayError, layout::labels, replay::while_it};

/// Agents that allocate at the same time.
const AT_ONCE: usize = 64;
/// One of so many takes the lock of its labels.
const LOCKED: u32 = 8;
/// Keys of users that are looked at.
const LOOKED: usize = 64;

/// Keys of one label set.
struct Keys {
    lock: String,
    users: String,
    id: String,
}

/// Allocates numbers as fast as it goes: those where nobody has or wants the lock, and those under the lock.
pub(super) async fn allocate(
    store: &Arc<dyn Store>,
    load: &Load,
    leases: &[LeaseId],
) -> Result<(Latency, Latency), ReplayError> {
    let (begin, end) = (Instant::now(), Instant::now() + load.time);
    let next = Arc::new(AtomicU32::new(0));
    let mut running = JoinSet::new();
    for agent in 0..AT_ONCE {
        let (store, next) = (Arc::clone(store), Arc::clone(&next));
        let lease = leases.get(agent % leases.len().max(1)).copied();
        running.spawn(async move {
            let (mut free, mut locked): (Vec<Duration>, Vec<Duration>) = Default::default();
            while Instant::now() < end {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (begin, keys) = (Instant::now(), Keys::of(number));
                if number.is_multiple_of(LOCKED) {
                    keys.under_lock(store.as_ref(), lease, agent).await?;
                    locked.push(begin.elapsed());
                } else {
                    keys.unlocked(store.as_ref(), lease, agent).await?;
                    free.push(begin.elapsed());
                }
            }
            Ok::<_, StoreError>((free, locked))
        });
    }
    let (mut free, mut locked) = (Vec::new(), Vec::new());
    while let Some(done) = running.join_next().await {
        let (some, others) = done?.map_err(while_it("allocating identities"))?;
        free.extend(some);
        locked.extend(others);
    }
    let took = begin.elapsed();
    Ok((Latency::of(free, took), Latency::of(locked, took)))
}

// === impl Keys ===

impl Keys {
    fn of(number: u32) -> Self {
        let text = labels(number);
        Self {
            lock: format!("{PREFIX}allocated/locks/{text}.lock/"),
            users: format!("{PREFIX}allocated/value/{text}/"),
            id: format!("{PREFIX}allocated/id/{number}"),
        }
    }

    /// One look and one transaction, with the condition that nobody has or wants the lock.
    async fn unlocked(
        &self,
        store: &dyn Store,
        lease: Option<LeaseId>,
        agent: usize,
    ) -> Result<(), StoreError> {
        let free = Txn::new().when(Compare::NoneBelow(self.lock.clone()));
        store.txn(free.clone().then(Op::List { prefix: self.users.clone(), limit: LOOKED })).await?;
        let unused = free.when(Compare::NoneBelow(self.users.clone()));
        store.txn(self.written(unused, lease, agent)).await.map(drop)
    }

    /// The lock is written and looked at, then the number with the lock's end.
    async fn under_lock(
        &self,
        store: &dyn Store,
        lease: Option<LeaseId>,
        agent: usize,
    ) -> Result<(), StoreError> {
        let key = format!("{}{agent}", self.lock);
        store.create(&key, "".into(), lease).await?;
        store.list_page(&self.lock, None, LOOKED, 0).await?;
        store.list_page(&self.users, None, LOOKED, 0).await?;
        let held = Txn::new().when(Compare::Present(key.clone()));
        store.txn(self.written(held, lease, agent).then(Op::Delete(key))).await.map(drop)
    }

    fn written(&self, txn: Txn, lease: Option<LeaseId>, agent: usize) -> Txn {
        txn.when(Compare::Absent(self.id.clone()))
            .then(Op::put(self.id.as_str(), self.users.clone(), None))
            .then(Op::put(format!("{}{agent}", self.users), self.id.clone(), lease))
    }
}
