//! The allocation protocol: lock the label set, reuse a number that some node uses, else one that has a
//! master key, else create one; write this node's slave key in the same transaction.
//!
//! Where nobody has or wants the lock, one transaction does all of it, on the condition that nobody does: to whoever
//! locks, before or after, that is as if it had been locked in between. Such transactions of many label sets share
//! requests.

use std::{collections::BTreeSet, time::Instant};

use villus_kvstore::{Answer, Compare, Entry, Local, Lock, Op, StoreError, Txn, TxnOutcome, keys};
use villus_labels::{Labels, NumericIdentity, Scope};

use super::{Shared, lock_name, master_key, slave_prefix, state::Used};
use crate::error::AllocateError;

/// Random numbers that are tried before the range is searched in order.
const DRAWS: u32 = 32;
/// Slave keys that are looked at without the lock: that all nodes use one number is seen from some of them.
const SLAVES: usize = 64;
/// Master keys that are looked at in one request.
const MASTERS: usize = 100;

/// Why an attempt did not succeed.
enum Failed {
    /// Another attempt may.
    Store(StoreError),
    Exhausted,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// One allocation, over all its attempts.
struct Allocation<'a> {
    shared: &'a Shared,
    labels: &'a Labels,
    text: &'a str,
    wanted: Option<NumericIdentity>,
    /// Numbers that turned out to be somebody else's.
    taken: BTreeSet<NumericIdentity>,
    /// The label set is in use already, by a number that nobody has confirmed.
    confirm: bool,
    /// The lock was given back with the last transaction.
    ended: bool,
}

pub(super) async fn allocate(
    shared: &Shared,
    labels: &Labels,
    text: &str,
    wanted: Option<NumericIdentity>,
) -> Result<NumericIdentity, AllocateError> {
    run(shared, labels, text, wanted, false).await
}

/// Asks the store for the number of a label set that is in use, `had` if that is possible. Returns whether it is in use
/// still.
pub(super) async fn confirm(
    shared: &Shared,
    text: &str,
    labels: &Labels,
    had: NumericIdentity,
) -> Result<bool, AllocateError> {
    let number = run(shared, labels, text, Some(had), true).await?;
    let mut state = shared.state();
    let used = state.confirm(text, number);
    if !used {
        // Released meanwhile: the key that was written just now goes again.
        shared.session.disown(&shared.slave_key(text));
        state.doomed.insert(text.to_owned(), number);
    } else if number != had {
        tracing::info!(labels = text, %had, %number, "the cluster has another number for labels of this node");
    }
    Ok(used)
}

async fn run(
    shared: &Shared,
    labels: &Labels,
    text: &str,
    wanted: Option<NumericIdentity>,
    confirm: bool,
) -> Result<NumericIdentity, AllocateError> {
    // What is listed is not known yet: a label set could get a second number.
    shared.synced().await;
    let wanted = wanted.filter(|number| shared.range.contains(&number.0));
    let mut allocation =
        Allocation { shared, labels, text, wanted, taken: BTreeSet::new(), confirm, ended: false };
    let began = Instant::now();
    let mut chance = fastrand::Rng::new();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let last = match allocation.attempt().await {
            Ok(number) => return Ok(number),
            Err(Failed::Exhausted) => {
                let usage = shared.usage();
                let cluster = shared.config.cluster_id;
                return Err(AllocateError::Exhausted { cluster, used: usage.used, total: usage.total });
            }
            Err(Failed::Store(error)) => error,
        };
        let impatient = shared.config.patience.is_some_and(|patience| began.elapsed() >= patience);
        if attempts >= shared.config.attempts || impatient {
            return Err(AllocateError::Store { labels: text.to_owned(), attempts, last });
        }
        tracing::debug!(labels = text, attempts, error = %last, "an allocation is tried again");
        if matches!(last, StoreError::LeaseNotFound(_)) {
            // Finds the lost lease and replaces it; if it can't, the next attempt says so.
            let _ = shared.session.keep_alive().await;
        }
        tokio::time::sleep(shared.config.pace.delay(attempts, &mut chance)).await;
    }
}

impl Allocation<'_> {
    async fn attempt(&mut self) -> Result<NumericIdentity, Failed> {
        let patience = self.shared.config.lock_patience;
        let local = self.shared.locks.local(&lock_name(self.text), patience).await?;
        // Of a label set that nobody has as far as is known here the transaction finds out whether that is so; whoever
        // loses a race for it finds the winner's number when it looks.
        let is_new = self.shared.state().masters(self.labels).is_empty();
        for looks in if is_new { &[false, true][..] } else { &[true] } {
            if let Some(number) = self.unlocked(&local, *looks).await? {
                return Ok(number);
            }
        }
        let lock = local.acquire(patience).await?;
        let outcome = self.under(&lock).await;
        match self.ended {
            true => lock.was_given_back(),
            false => lock.release().await,
        }
        outcome
    }

    /// Tries to do without the lock. `None`: somebody has it, or was faster, or what there is wants a closer look.
    async fn unlocked(&mut self, local: &Local, looks: bool) -> Result<Option<NumericIdentity>, Failed> {
        // Somebody in this process may have been faster.
        if !self.confirm
            && let Some(number) = self.shared.state().reuse(self.text)
        {
            return Ok(Some(number));
        }
        let known = self.shared.state().masters(self.labels).first().copied();
        let used = match looks {
            false => None,
            true => match self.used_by_some(local).await? {
                Some(used) => used,
                None => return Ok(None),
            },
        };
        let txn = Txn::new().when(local.free());
        let (number, txn) = match (used, known) {
            (Some((number, slave)), _) => (number, txn.when(slave).when(self.is_ours(number))),
            (None, Some(number)) => (number, txn.when(self.is_unused()).when(self.is_ours(number))),
            (None, None) => {
                let number = self.pick().ok_or(Failed::Exhausted)?;
                let key = master_key(number);
                let master = Op::put(key.as_str(), self.text.to_owned(), None);
                (number, txn.when(self.is_unused()).when(Compare::Absent(key)).then(master))
            }
        };
        let room = self.shared.session.room().await?;
        let (key, value) = (self.shared.slave_key(self.text), bytes::Bytes::from(number.to_string()));
        let txn = txn.then(Op::put(key.as_str(), value.clone(), Some(room.lease())));
        if !self.shared.together.txn(txn).await?.held {
            return Ok(None);
        }
        self.shared.session.own(&key, value, room);
        self.done(number);
        Ok(Some(number))
    }

    /// The number that nodes use of this label set, if they do, and the condition that one of them still does. Outside
    /// `None`: they do not agree, or can't be read, or somebody has the lock.
    async fn used_by_some(
        &self,
        local: &Local,
    ) -> Result<Option<Option<(NumericIdentity, Compare)>>, Failed> {
        let prefix = slave_prefix(self.text);
        let list = Op::List { prefix: prefix.clone(), limit: SLAVES };
        let outcome = self.shared.together.txn(Txn::new().when(local.free()).then(list)).await?;
        let Some(Answer::Listed { entries, .. }) = outcome.answers.into_iter().next() else {
            return Ok(None);
        };
        let mut used = None;
        for entry in entries {
            let number = slave_number(&entry).filter(|number| self.shared.range.contains(&number.0));
            let is_longer = entry.key.get(prefix.len()..).is_none_or(|node| node.contains('/'));
            let Some(number) = number.filter(|_| !is_longer) else { return Ok(None) };
            match &used {
                None => {
                    used = Some((number, Compare::ModRevision(entry.key.to_string(), entry.mod_revision)))
                }
                Some((first, _)) if *first == number => {}
                Some(_) => return Ok(None),
            }
        }
        Ok(Some(used))
    }

    fn is_unused(&self) -> Compare {
        Compare::NoneBelow(slave_prefix(self.text))
    }

    fn is_ours(&self, number: NumericIdentity) -> Compare {
        Compare::Value(master_key(number), self.text.to_owned().into())
    }

    async fn under(&mut self, lock: &Lock) -> Result<NumericIdentity, Failed> {
        // Somebody in this process may have been faster.
        if !self.confirm
            && let Some(number) = self.shared.state().reuse(self.text)
        {
            return Ok(number);
        }
        for number in self.used_by_nodes().await? {
            if self.take_used(lock, number).await? {
                return Ok(number);
            }
        }
        let known = self.shared.state().masters(self.labels);
        for number in known {
            let is_stale = self.shared.state().stale.contains_key(&number);
            if self.take_known(lock, number).await? || (is_stale && self.create(lock, number).await?) {
                return Ok(number);
            }
        }
        loop {
            let number = self.pick().ok_or(Failed::Exhausted)?;
            if self.create(lock, number).await? {
                return Ok(number);
            }
            self.taken.insert(number);
        }
    }

    /// Numbers in the slave keys of this label set, the most used first.
    async fn used_by_nodes(&self) -> Result<Vec<NumericIdentity>, Failed> {
        let prefix = slave_prefix(self.text);
        let listing = self.shared.store.list_prefix(&prefix).await?;
        let mut votes: Vec<(NumericIdentity, usize)> = Vec::new();
        for entry in &listing.entries {
            // A longer label string that begins like ours has another `/` behind the prefix.
            if entry.key.get(prefix.len()..).is_none_or(|node| node.contains('/')) {
                continue;
            }
            let Some(number) = slave_number(entry) else {
                let reason = "the value is not the number of a global identity".to_owned();
                if self.shared.state().refuse(&entry.key, reason) {
                    tracing::warn!(key = &*entry.key, "a slave key holds no identity and is left out");
                }
                continue;
            };
            match votes.iter_mut().find(|(known, _)| *known == number) {
                Some((_, count)) => *count += 1,
                // Another cluster's, whose number goes with it.
                None if !self.shared.range.contains(&number.0) => {}
                None => votes.push((number, 1)),
            }
        }
        votes.sort_by_key(|(number, count)| (usize::MAX - count, *number));
        Ok(votes.into_iter().map(|(number, _)| number).collect())
    }

    /// Uses a number that some node uses; its master key is created again if it is missing.
    async fn take_used(&mut self, lock: &Lock, number: NumericIdentity) -> Result<bool, Failed> {
        if self.take_known(lock, number).await? || self.create(lock, number).await? {
            return Ok(true);
        }
        tracing::error!(%number, labels = self.text, "a slave key names a number whose master key has other labels");
        Ok(false)
    }

    /// Uses a number whose master key has our labels.
    async fn take_known(&mut self, lock: &Lock, number: NumericIdentity) -> Result<bool, Failed> {
        let txn = Txn::new().when(self.is_ours(number)).otherwise(Op::Get(master_key(number)));
        self.write(lock, number, txn).await
    }

    /// Creates the master key of a number that nobody has.
    async fn create(&mut self, lock: &Lock, number: NumericIdentity) -> Result<bool, Failed> {
        let key = master_key(number);
        let free = Compare::Absent(key.clone());
        let master = Op::put(key.as_str(), self.text.to_owned(), None);
        self.write(lock, number, Txn::new().when(free).then(master).otherwise(Op::Get(key))).await
    }

    /// Adds our slave key to a transaction and carries it out while the lock is held. Returns whether its
    /// condition held.
    async fn write(&mut self, lock: &Lock, number: NumericIdentity, txn: Txn) -> Result<bool, Failed> {
        let room = self.shared.session.room().await?;
        let (key, value) = (self.shared.slave_key(self.text), bytes::Bytes::from(number.to_string()));
        let slave = Op::put(key.as_str(), value.clone(), Some(room.lease()));
        let txn = txn.when(lock.held()).then(slave).then(lock.end());
        let outcome = self.shared.store.txn(txn).await?;
        if outcome.held {
            self.ended = true;
            self.shared.session.own(&key, value, room);
            self.done(number);
            return Ok(true);
        }
        self.still_held(lock).await?;
        self.learn(number, &outcome);
        Ok(false)
    }

    async fn still_held(&self, lock: &Lock) -> Result<(), Failed> {
        let held = self.shared.store.txn(Txn::new().when(lock.held())).await?.held;
        if held { Ok(()) } else { Err(StoreError::LockLost(lock.name().to_owned()).into()) }
    }

    fn done(&self, number: NumericIdentity) {
        let mut write = self.shared.table.write();
        write.put_if_changed(number, self.labels.clone());
        write.commit();
        let mut state = self.shared.state();
        state.doomed.remove(self.text);
        state.add_master(self.labels, number);
        state.shadowed.remove(&number);
        if !self.confirm {
            state.begin_use(self.text, number, self.labels);
        }
    }

    /// Notes what the master key of a number really holds; the watch may be behind.
    fn learn(&self, number: NumericIdentity, outcome: &TxnOutcome) {
        let entry = outcome.answers.iter().find_map(|answer| match answer {
            Answer::Got(entry) => Some(entry.as_ref()),
            Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
        });
        if entry.flatten().and_then(|entry| entry.text()) != Some(self.text) {
            self.shared.state().remove_master(self.labels, number);
        }
    }

    /// A free number of the cluster's range: the wanted one, a random one, any.
    fn pick(&mut self) -> Option<NumericIdentity> {
        let rows = self.shared.table.snapshot();
        let ours = |number: &NumericIdentity| self.confirm && rows.get(number) == Some(self.labels);
        let free = |number: &NumericIdentity| {
            (rows.get(number).is_none() || ours(number)) && !self.taken.contains(number)
        };
        if let Some(wanted) = self.wanted.filter(&free) {
            return Some(wanted);
        }
        let range = self.shared.range.clone();
        let draw = |_| NumericIdentity(fastrand::u32(range.clone()));
        if let Some(number) = (0..DRAWS).map(draw).find(&free) {
            return Some(number);
        }
        let (first, last) = (*range.start(), *range.end());
        let start = fastrand::u32(range.clone());
        (start..=last).chain(first..start).map(NumericIdentity).find(&free)
    }
}

pub(super) async fn release(shared: &Shared, text: &str) -> Result<bool, StoreError> {
    if shared.state().give_back(text) != Some(0) {
        return Ok(false);
    }
    if shared.state().is_unconfirmed(text) {
        // The store need not be asked; what it may have of it goes when it is there.
        let Some((number, _)) = shared.state().end_use(text) else { return Ok(false) };
        shared.session.disown(&shared.slave_key(text));
        if !number.is_interim() {
            shared.state().doomed.insert(text.to_owned(), number);
        }
        shared.unshadow(number);
        return Ok(true);
    }
    // Others look at master keys, or find the slave key or not: only this process may write it again meanwhile.
    let local = match shared.locks.local(&lock_name(text), shared.config.lock_patience).await {
        Ok(local) => local,
        Err(error) => {
            let mut state = shared.state();
            if let Some((number, _)) = state.end_use(text) {
                shared.session.disown(&shared.slave_key(text));
                state.doomed.insert(text.to_owned(), number);
                drop(state);
                shared.unshadow(number);
            }
            return Err(error);
        }
    };
    let outcome = end_use(shared, text).await;
    drop(local);
    outcome
}

/// Deletes the slave key of a label set that has no reference left, while nobody in this process allocates it.
async fn end_use(shared: &Shared, text: &str) -> Result<bool, StoreError> {
    let Some((number, _)) = shared.state().end_use(text) else { return Ok(false) };
    shared.unshadow(number);
    let key = shared.slave_key(text);
    shared.session.disown(&key);
    let deleted = delete_slave(shared, &key, number).await;
    if deleted.is_err() {
        shared.state().doomed.insert(text.to_owned(), number);
    }
    deleted.map(|()| true)
}

async fn delete_slave(shared: &Shared, key: &str, number: NumericIdentity) -> Result<(), StoreError> {
    let ours = Compare::Value(key.to_owned(), number.to_string().into());
    shared.together.txn(Txn::new().when(ours).then(Op::Delete(key.to_owned()))).await.map(|_| ())
}

pub(super) async fn reassert(shared: &Shared) -> Result<u64, StoreError> {
    let mut written = restore_masters(shared).await?;
    written += shared.session.reassert().await?;
    let doomed = shared.state().doomed.clone();
    for (text, number) in doomed {
        let local = shared.locks.local(&lock_name(&text), shared.config.lock_patience).await?;
        let unused = shared.state().references(&text) == 0;
        let deleted = match unused {
            true => delete_slave(shared, &shared.slave_key(&text), number).await,
            false => Ok(()),
        };
        drop(local);
        deleted?;
        shared.state().doomed.remove(&text);
    }
    look_again(shared).await?;
    Ok(written)
}

/// Creates the master keys again that this node uses and that are not there. Returns how many that were.
async fn restore_masters(shared: &Shared) -> Result<u64, StoreError> {
    let in_use: Vec<_> = shared.state().in_use().into_iter().filter(|(_, used)| used.confirmed).collect();
    let mut looked = Vec::with_capacity(in_use.len());
    for some in in_use.chunks(MASTERS) {
        let get = |(_, used): &(String, Used)| Op::Get(master_key(used.number));
        looked.extend(shared.store.txn(some.iter().map(get).fold(Txn::new(), Txn::then)).await?.answers);
    }
    let mut missing = Vec::new();
    for ((text, used), answer) in in_use.into_iter().zip(looked) {
        match answer {
            Answer::Got(None) => missing.push((text, used)),
            Answer::Got(Some(entry)) if entry.text() != Some(&text) => {
                tracing::error!(number = %used.number, labels = %used.labels, "the store gives a number of this node to other labels");
            }
            _ => {}
        }
    }
    let mut written = 0;
    let create = |(text, used): &(String, Used)| {
        let key = master_key(used.number);
        let txn = Txn::new().when(Compare::Absent(key.clone())).then(Op::put(key, text.clone(), None));
        shared.together.txn(txn)
    };
    let created = futures_util::future::join_all(missing.iter().map(create)).await;
    for ((text, used), created) in missing.iter().zip(created) {
        if created?.held {
            tracing::warn!(number = %used.number, labels = text, "Re-created missing master key");
            written += 1;
        }
    }
    Ok(written)
}

/// Nobody watches slave keys: of those that were refused it is asked whether somebody has mended or deleted them.
async fn look_again(shared: &Shared) -> Result<(), StoreError> {
    let refused = shared.state().refused();
    for (key, _) in refused.iter().filter(|(key, _)| key.starts_with(keys::IDENTITY_VALUES)) {
        let entry = shared.store.get(key).await?;
        if entry.is_none_or(|entry| slave_number(&entry).is_some()) {
            shared.state().accept(key);
        }
    }
    Ok(())
}

/// The number in a slave key.
fn slave_number(entry: &Entry) -> Option<NumericIdentity> {
    let number = entry.text().and_then(|text| text.parse().ok()).map(NumericIdentity);
    number.filter(|n| !n.is_reserved() && n.scope() == Scope::Global)
}
