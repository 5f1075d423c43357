//! What one resource needs: what must be known of the store first, then one step that makes it so, or the reason why not.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bytes::Bytes;
use jiff::Timestamp;
use villus_kvstore::{Compare, Entry, Op};
use villus_labels::{Labels, NumericIdentity};

use crate::{
    error::Refusal,
    nodes::Nodes,
    record::{Keys, Record, owner},
};

/// What became of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It was not there.
    Created,
    /// It was otherwise.
    Updated,
    /// It is as it was, and stays longer.
    Renewed,
    /// It is as it was.
    Unchanged,
    /// It was there and is gone.
    Deleted,
    /// It was not there.
    Absent,
}

/// How a resource is to be.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// As this record says.
    Be(Box<Record>),
    /// As this record says, its keys included; nothing else of it is new.
    Mend(Box<Record>),
    /// As this record says, if nothing is there.
    Restore(Box<Record>),
    /// Gone.
    Go,
    /// Gone, if its time is over.
    Expire(Timestamp),
}

/// One resource on its way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub name: String,
    pub goal: Goal,
    /// Entries by key as they were read last; `None` is absent.
    pub known: BTreeMap<String, Option<Entry>>,
    /// What is not known is taken for absent: the transaction finds out.
    pub guess: bool,
    pub outcome: Option<Result<What, Refusal>>,
}

/// The next step of a job.
pub(crate) enum Step {
    /// These keys must be read.
    Read(Vec<String>),
    /// This makes it so.
    Write(Plan),
    /// There is nothing more to do.
    Done(Result<What, Refusal>),
}

/// Operations of one transaction, all of one resource.
pub(crate) struct Plan {
    /// Each key that is looked at, with what must be there.
    pub compares: Vec<(String, Compare)>,
    pub ops: Vec<Op>,
    pub what: What,
    /// The labels whose number it uses, and the number.
    pub labels: Option<(Labels, NumericIdentity)>,
}

/// What there is to know of an address.
enum Holder<'e> {
    Nobody,
    Ours(&'e Entry),
    Other(&'e Entry),
}

// === impl What ===

impl What {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Renewed => "renewed",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Absent => "absent",
        }
    }
}

// === impl Job ===

impl Job {
    pub fn new(name: String, goal: Goal) -> Self {
        let guess = matches!(goal, Goal::Be(_) | Goal::Restore(_));
        Self { name, goal, known: BTreeMap::new(), guess, outcome: None }
    }

    /// The record that is to be there.
    pub fn record(&self) -> Option<&Record> {
        match &self.goal {
            Goal::Be(record) | Goal::Mend(record) | Goal::Restore(record) => Some(record),
            Goal::Go | Goal::Expire(_) => None,
        }
    }

    /// What it costs at most in conditions or operations, as far as that is known before.
    pub fn cost(&self) -> usize {
        2 + 2 * self.record().map_or(2, |record| record.addresses.len())
    }

    /// What was found out about a key.
    pub fn learn(&mut self, key: &str, entry: Option<Entry>) {
        self.known.insert(key.to_owned(), entry);
        self.guess = false;
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        self.known.clear();
        self.guess = false;
    }

    /// What is to be done next.
    pub fn step(&self, keys: &Keys, nodes: &Nodes) -> Step {
        let own = keys.resource(&self.name);
        let wanted = self.record().map(|record| record.addresses.clone()).unwrap_or_default();
        let addresses = || wanted.iter().flat_map(|address| keys.address(*address));
        let Some(found) = self.find(&own) else {
            return Step::Read(std::iter::once(own).chain(addresses()).collect());
        };
        // Of copies nothing is guessed: they are not among the conditions of the transaction.
        let copies: Vec<String> = match self.goal {
            Goal::Be(_) => self.unread_copies(keys, nodes).collect(),
            _ => Vec::new(),
        };
        if !copies.is_empty() {
            return Step::Read(std::iter::once(own).chain(addresses()).chain(copies).collect());
        }
        // What can't be read is written anew; what it may have left behind is found as an orphan.
        let old = found.and_then(|entry| Record::read(entry).ok());
        match &self.goal {
            Goal::Go | Goal::Expire(_) if found.is_none() => return Step::Done(Ok(What::Absent)),
            Goal::Expire(now) if old.as_ref().is_none_or(|old| !old.is_expired(*now)) => {
                return Step::Done(Ok(What::Unchanged));
            }
            Goal::Restore(_) if found.is_some() => return Step::Done(Ok(What::Unchanged)),
            // It was deleted or said anew since: whoever did that wrote all of it.
            Goal::Mend(record) if old.as_ref() != Some(record) => return Step::Done(Ok(What::Unchanged)),
            _ => {}
        }
        let before = old.as_ref().map(|old| old.addresses.clone()).unwrap_or_default();
        let all: BTreeSet<IpAddr> = wanted.union(&before).copied().collect();
        let unknown: Vec<String> = all
            .iter()
            .flat_map(|address| keys.address(*address))
            .filter(|key| self.find(key).is_none())
            .collect();
        if !unknown.is_empty() {
            return Step::Read(unknown);
        }
        self.plan(keys, nodes, found, old.as_ref(), &all)
    }

    fn plan(
        &self,
        keys: &Keys,
        nodes: &Nodes,
        found: Option<&Entry>,
        old: Option<&Record>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Step {
        let own = keys.resource(&self.name);
        let mut plan = Plan {
            compares: vec![(own.clone(), as_seen(&own, found))],
            ops: Vec::new(),
            what: What::Deleted,
            labels: None,
        };
        for address in addresses {
            let wanted = self.record().filter(|record| record.addresses.contains(address));
            let value = wanted.map(|record| record.pair(*address, keys.cluster()));
            if let Err(refusal) = self.address(&mut plan, keys, nodes, *address, value) {
                return Step::Done(Err(refusal));
            }
        }
        match &self.goal {
            Goal::Go | Goal::Expire(_) => plan.ops.push(Op::Delete(own)),
            Goal::Mend(record) => {
                plan.what = What::Updated;
                plan.labels = Some((record.identity_labels(), record.identity));
            }
            Goal::Be(record) | Goal::Restore(record) => {
                let same = old.is_some_and(|old| old.says_the_same(record)) && plan.ops.is_empty();
                if same && record.ttl_seconds.is_none() {
                    return Step::Done(Ok(What::Unchanged));
                }
                plan.what = match (found, same) {
                    (None, _) => What::Created,
                    (Some(_), true) => What::Renewed,
                    (Some(_), false) => What::Updated,
                };
                let created = old.map_or_else(|| record.created.clone(), |old| old.created.clone());
                let written = Record { created, ..Record::clone(record) };
                plan.ops.push(Op::put(own, written.to_json(), None));
                plan.labels = Some((record.identity_labels(), record.identity));
            }
        }
        Step::Write(plan)
    }

    /// Makes the keys of an address what they should be: `value`, or gone.
    fn address(
        &self,
        plan: &mut Plan,
        keys: &Keys,
        nodes: &Nodes,
        address: IpAddr,
        value: Option<Bytes>,
    ) -> Result<(), Refusal> {
        let taken = |owner| Refusal::Taken { address, owner };
        if value.is_some()
            && matches!(self.goal, Goal::Be(_))
            && let Some(owner) = nodes.owner(address)
        {
            return Err(taken(owner));
        }
        let held = || {
            let known = keys.address(address).into_iter().filter_map(|key| self.find(&key).flatten());
            known.into_iter().any(|entry| keys.owner_of(entry).as_deref() == Some(&self.name))
        };
        if value.is_some()
            && matches!(self.goal, Goal::Be(_))
            && !held()
            && let Some(copy) =
                keys.copies(address, &nodes.clusters()).find_map(|key| self.known.get(&key)?.as_ref())
        {
            return Err(taken(owner(copy)));
        }
        // Only the first of both keys shall be there.
        let wanted = [value.clone(), None];
        for (key, wanted) in keys.address(address).into_iter().zip(wanted) {
            let entry = self.find(&key).flatten();
            let holder = match entry {
                None => Holder::Nobody,
                Some(entry) if keys.owner_of(entry).as_deref() == Some(&self.name) => Holder::Ours(entry),
                Some(entry) => Holder::Other(entry),
            };
            match (holder, wanted) {
                (Holder::Other(entry), _) if value.is_some() && !matches!(self.goal, Goal::Mend(_)) => {
                    return Err(taken(owner(entry)));
                }
                // Somebody has taken what was ours once; it is theirs.
                (Holder::Other(_), _) => continue,
                (Holder::Nobody, None) if value.is_none() => continue,
                (Holder::Nobody, None) => {}
                (Holder::Ours(entry), Some(wanted)) if entry.value == wanted && entry.lease.is_none() => {}
                (_, Some(wanted)) => plan.ops.push(Op::put(key.as_str(), wanted, None)),
                (Holder::Ours(_), None) => plan.ops.push(Op::Delete(key.clone())),
            }
            let compare = as_seen(&key, entry);
            plan.compares.push((key, compare));
        }
        Ok(())
    }

    /// Keys that an address of it would have as a copy of another cluster's, and that were not read.
    fn unread_copies(&self, keys: &Keys, nodes: &Nodes) -> impl Iterator<Item = String> {
        let clusters = nodes.clusters();
        let addresses = self.record().into_iter().flat_map(|record| &record.addresses);
        let copies = addresses.flat_map(move |address| keys.copies(*address, &clusters).collect::<Vec<_>>());
        copies.filter(|key| !self.known.contains_key(key))
    }

    /// What is known of a key: nothing, that it is absent, or its entry.
    fn find(&self, key: &str) -> Option<Option<&Entry>> {
        match self.known.get(key) {
            Some(entry) => Some(entry.as_ref()),
            None if self.guess => Some(None),
            None => None,
        }
    }
}

fn as_seen(key: &str, entry: Option<&Entry>) -> Compare {
    match entry {
        None => Compare::Absent(key.to_owned()),
        Some(entry) => Compare::ModRevision(key.to_owned(), entry.mod_revision),
    }
}
