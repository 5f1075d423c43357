//! What the store holds at one revision, and what transactions do to it. No time, no disk, no waiting.

use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::Duration};

use imbl::{OrdMap, OrdSet};

use crate::{
    error::StoreError,
    model::{
        Answer, Compare, Entry, Event, LeaseId, LeasePurpose, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Txn, TxnOutcome,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl: Duration,
    pub(crate) purpose: LeasePurpose,
}

/// Cloning shares everything.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) revision: u64,
    pub(crate) entries: OrdMap<Arc<str>, Arc<Entry>>,
    pub(crate) leases: OrdMap<LeaseId, Lease>,
    leased: OrdSet<(LeaseId, Arc<str>)>,
}

impl State {
    /// Puts an entry as it was stored; for loading only.
    pub(crate) fn load(&mut self, entry: Entry) {
        if let Some(lease) = entry.lease {
            self.leased.insert((lease, Arc::clone(&entry.key)));
        }
        self.entries.insert(Arc::clone(&entry.key), Arc::new(entry));
    }

    /// Whether an entry survives the process.
    pub(crate) fn is_durable(&self, entry: &Entry) -> bool {
        let lease = entry.lease.and_then(|id| self.leases.get(&id));
        lease.is_none_or(|lease| lease.purpose == LeasePurpose::Entries)
    }

    /// Entries that begin with `prefix` and come after `after`.
    pub(crate) fn below<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = after.filter(|after| *after > prefix).unwrap_or(prefix);
        let range = self.entries.range::<_, str>((Bound::Included(from), Bound::Unbounded));
        let fresh = move |key: &str| after.is_none_or(|after| key > after);
        range
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter(move |(key, _)| fresh(key))
            .map(|(_, entry)| entry)
    }

    /// Carries out a transaction; an error leaves the state as it was. The events carry the new revision.
    pub(crate) fn apply(&mut self, txn: &Txn) -> Result<(TxnOutcome, Vec<Event>), StoreError> {
        check(txn)?;
        let held = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if held { &txn.then } else { &txn.otherwise };
        let mut run = Run { state: self.clone(), events: Vec::new(), written: BTreeSet::new() };
        run.state.revision += 1;
        let answers = ops.iter().map(|op| run.op(op)).collect::<Result<Vec<_>, _>>()?;
        if !run.events.is_empty() {
            *self = run.state;
        }
        Ok((TxnOutcome { held, revision: self.revision, answers }, run.events))
    }

    /// Takes a lease and all its keys away.
    pub(crate) fn end_lease(&mut self, id: LeaseId) -> Vec<Event> {
        let keys: Vec<Arc<str>> = self
            .leased
            .range((id, Arc::from(""))..)
            .take_while(|(lease, _)| *lease == id)
            .map(|(_, key)| Arc::clone(key))
            .collect();
        let mut run = Run { state: self.clone(), events: Vec::new(), written: BTreeSet::new() };
        run.state.revision += u64::from(!keys.is_empty());
        for key in &keys {
            run.remove(key);
        }
        run.state.leases.remove(&id);
        *self = run.state;
        run.events
    }

    fn holds(&self, compare: &Compare) -> bool {
        let get = |key: &String| self.entries.get(key.as_str());
        match compare {
            Compare::Absent(key) => get(key).is_none(),
            Compare::Present(key) => get(key).is_some(),
            Compare::ModRevision(key, at) => get(key).is_some_and(|entry| entry.mod_revision == *at),
            Compare::CreateRevision(key, at) => get(key).is_some_and(|entry| entry.create_revision == *at),
            Compare::Value(key, value) => get(key).is_some_and(|entry| entry.value == *value),
            Compare::NoneBelow(prefix) => self.below(prefix, None).next().is_none(),
        }
    }
}

/// A transaction under way on a copy of the state.
struct Run {
    state: State,
    events: Vec<Event>,
    written: BTreeSet<Arc<str>>,
}

impl Run {
    fn op(&mut self, op: &Op) -> Result<Answer, StoreError> {
        match op {
            Op::Get(key) => {
                let entry = self.state.entries.get(key.as_str());
                Ok(Answer::Got(entry.map(|entry| Entry::clone(entry))))
            }
            Op::List { prefix, limit } => {
                let mut found = self.state.below(prefix, None);
                let entries = found.by_ref().take(*limit).map(|entry| Entry::clone(entry)).collect();
                Ok(Answer::Listed { entries, more: found.next().is_some() })
            }
            Op::Put { key, value, lease } => {
                if let Some(lease) = lease
                    && !self.state.leases.contains_key(lease)
                {
                    return Err(StoreError::LeaseNotFound(*lease));
                }
                let key: Arc<str> = Arc::from(key.as_str());
                self.once(&key)?;
                let old = self.state.entries.get(&key).cloned();
                let revision = self.state.revision;
                let entry = Arc::new(Entry {
                    key: Arc::clone(&key),
                    value: value.clone(),
                    create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    version: old.as_ref().map_or(1, |old| old.version + 1),
                    lease: *lease,
                });
                self.relink(&key, old.and_then(|old| old.lease), *lease);
                self.state.entries.insert(key, Arc::clone(&entry));
                self.events.push(Event::Put(entry));
                Ok(Answer::Put)
            }
            Op::Delete(key) => {
                let key: Arc<str> = Arc::from(key.as_str());
                let there = self.state.entries.contains_key(&key);
                if there {
                    self.once(&key)?;
                    self.remove(&key);
                }
                Ok(Answer::Deleted(u64::from(there)))
            }
            Op::DeletePrefix(prefix) => {
                let keys: Vec<_> =
                    self.state.below(prefix, None).map(|entry| Arc::clone(&entry.key)).collect();
                for key in &keys {
                    self.once(key)?;
                    self.remove(key);
                }
                Ok(Answer::Deleted(keys.len() as u64))
            }
        }
    }

    fn once(&mut self, key: &Arc<str>) -> Result<(), StoreError> {
        if self.written.insert(Arc::clone(key)) {
            return Ok(());
        }
        Err(StoreError::BadTxn(format!("it writes `{}` twice", excerpt(key))))
    }

    fn remove(&mut self, key: &Arc<str>) {
        let Some(old) = self.state.entries.remove(key) else { return };
        self.relink(key, old.lease, None);
        let (revision, leased) = (self.state.revision, Some(old.lease.is_some()));
        self.events.push(Event::Delete { key: Arc::clone(key), revision, leased });
    }

    fn relink(&mut self, key: &Arc<str>, old: Option<LeaseId>, new: Option<LeaseId>) {
        if let Some(old) = old {
            self.state.leased.remove(&(old, Arc::clone(key)));
        }
        if let Some(new) = new {
            self.state.leased.insert((new, Arc::clone(key)));
        }
    }
}

pub(crate) fn check(txn: &Txn) -> Result<(), StoreError> {
    for ops in [&txn.then, &txn.otherwise] {
        if ops.len() > MAX_TXN_OPS || txn.compare.len() > MAX_TXN_OPS {
            let count = ops.len().max(txn.compare.len());
            return Err(StoreError::BadTxn(format!("{count} operations are more than {MAX_TXN_OPS}")));
        }
        let size: usize = ops.iter().map(size).sum();
        if size > MAX_TXN_BYTES {
            return Err(StoreError::BadTxn(format!("{size} bytes are more than {MAX_TXN_BYTES}")));
        }
        for op in ops {
            if let Op::Put { key, .. } = op
                && key.is_empty()
            {
                return Err(StoreError::BadKey { key: String::new(), reason: "it is empty" });
            }
        }
    }
    Ok(())
}

fn size(op: &Op) -> usize {
    match op {
        Op::Get(key) | Op::Delete(key) | Op::DeletePrefix(key) => key.len(),
        Op::List { prefix, .. } => prefix.len(),
        Op::Put { key, value, .. } => key.len() + value.len(),
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}
