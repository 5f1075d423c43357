//! Garbage collection of numbers that no node uses any more.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use villus_kvstore::{
    Compare, Entry, Header, IpIdentityPair, Locks, Op, Pages, Store, StoreError, Txn, keys,
};

use crate::allocator::{lock_name, slave_prefix};

/// Deletes master keys that no slave key and no address names, in two passes: a key goes only if passes have found it unused
/// for a whole grace, the one before this among them, and nobody has written it since. Only numbers of one cluster's range
/// are looked at.
pub struct Gc {
    store: Arc<dyn Store>,
    locks: Locks,
    range: RangeInclusive<u32>,
    patience: Duration,
    /// How long a key has to be unused.
    grace: Duration,
    /// Conditions that every deletion carries.
    fence: Vec<Compare>,
    /// Keys found unused by the last pass.
    unused: BTreeMap<Arc<str>, Idle>,
    /// Keys that two passes found unused and that are not deleted yet.
    due: VecDeque<Unused>,
    /// The store of the last pass.
    last: Option<Header>,
}

/// Since when a key was found unused, and its revision.
#[derive(Clone, Copy)]
struct Idle {
    revision: u64,
    since: Instant,
}

/// A master key that nobody uses.
struct Unused {
    master: Entry,
    labels: String,
    number: u32,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Numbers that some node uses.
    pub used: u64,
    /// Numbers found unused for the first time.
    pub marked: u64,
    /// Numbers that passes before have found unused too, and whose grace is not over.
    pub waiting: u64,
    /// Numbers deleted.
    pub deleted: u64,
    /// Numbers outside the range, or that can't be read.
    pub skipped: u64,
    /// Numbers that would go too, had not enough been deleted: see [`Gc::rest`].
    pub deferred: u64,
}

// === impl Gc ===

impl Gc {
    /// A collector of the numbers in `range`, without a grace; it waits `patience` for the lock of a label set.
    pub fn new(store: Arc<dyn Store>, range: RangeInclusive<u32>, patience: Duration) -> Self {
        let locks = Locks::new(Arc::clone(&store));
        let (fence, unused, due) = (Vec::new(), BTreeMap::new(), VecDeque::new());
        Self { store, locks, range, patience, grace: Duration::ZERO, fence, unused, due, last: None }
    }

    /// Deletes only what has been unused for so long: nodes that are silent come back and use what they used.
    #[must_use]
    pub fn after(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Deletes only while this holds.
    #[must_use]
    pub fn fenced(mut self, condition: Compare) -> Self {
        self.fence.push(condition);
        self
    }

    /// Forgets what earlier passes found: two more are needed before anything is deleted.
    pub fn forget(&mut self) {
        self.unused.clear();
        self.due.clear();
    }

    /// One pass, which deletes at most `limit` keys. A store that went back in time, or is another one, begins anew.
    ///
    /// # Errors
    /// When the store is not there. What was found so far is kept only from the last complete look.
    pub async fn pass(&mut self, limit: u64) -> Result<GcReport, StoreError> {
        self.due.clear();
        let (mut report, unused, header) = self.look().await?;
        if self.last.is_some_and(|last| last.cluster != header.cluster || last.revision > header.revision) {
            self.unused.clear();
        }
        self.last = Some(header);
        let before = std::mem::take(&mut self.unused);
        let mut over = Vec::new();
        for found in unused {
            let (key, revision) = (Arc::clone(&found.master.key), found.master.mod_revision);
            let known = before.get(&key).filter(|idle| idle.revision == revision).copied();
            self.unused.insert(key, known.unwrap_or_else(|| Idle { revision, since: Instant::now() }));
            match known {
                Some(idle) if idle.since.elapsed() >= self.grace => over.push(found),
                Some(_) => report.waiting += 1,
                None => report.marked += 1,
            }
        }
        self.due.extend(over);
        let rest = self.rest(limit).await?;
        report.used += rest.used;
        (report.deleted, report.deferred) = (rest.deleted, rest.deferred);
        Ok(report)
    }

    /// Deletes at most `limit` of the keys that the last pass left to do, but those whose number an address has by now.
    ///
    /// # Errors
    /// When the store is not there. The next pass finds again what is left.
    pub async fn rest(&mut self, limit: u64) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let named = self.named().await?;
        for found in std::mem::take(&mut self.due) {
            if named.contains(&found.number) {
                // Its grace begins anew.
                self.unused.remove(&found.master.key);
                report.used += 1;
            } else {
                self.due.push_back(found);
            }
        }
        while report.deleted < limit
            && let Some(due) = self.due.pop_front()
        {
            if self.delete(&due).await? {
                self.unused.remove(&due.master.key);
                report.deleted += 1;
            }
        }
        report.deferred = self.due.len() as u64;
        Ok(report)
    }

    /// Which numbers are unused. Slave keys are read after master keys, and page by page: there are many more.
    async fn look(&self) -> Result<(GcReport, Vec<Unused>, Header), StoreError> {
        let mut report = GcReport::default();
        let masters = self.store.list_prefix(&format!("{}/", keys::IDENTITY_IDS)).await?;
        let mut found: HashMap<u32, (Entry, String)> = HashMap::new();
        for master in masters.entries {
            let number = master.key.rsplit_once('/').and_then(|(_, text)| text.parse().ok());
            let number = number.filter(|n| self.range.contains(n));
            match (number, master.text().map(str::to_owned)) {
                (Some(number), Some(labels)) => drop(found.insert(number, (master, labels))),
                _ => report.skipped += 1,
            }
        }
        let used = self.used(&found).await?;
        report.used = used.len() as u64;
        let mut unused: Vec<Unused> = found
            .into_iter()
            .filter(|(number, _)| !used.contains(number))
            .map(|(number, (master, labels))| Unused { master, labels, number })
            .collect();
        unused.sort_unstable_by_key(|unused| unused.number);
        Ok((report, unused, masters.header))
    }

    async fn used(&self, found: &HashMap<u32, (Entry, String)>) -> Result<HashSet<u32>, StoreError> {
        let mut used = HashSet::new();
        if found.is_empty() {
            return Ok(used);
        }
        let prefix = format!("{}/", keys::IDENTITY_VALUES);
        let mut pages = Pages::of(&prefix);
        while let Some(page) = pages.next(self.store.as_ref()).await? {
            for slave in &page.entries {
                // From the last `/` backwards: label strings may hold some.
                let labels = slave.key.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once('/'));
                let number = slave.text().and_then(|text| text.parse::<u32>().ok());
                if let (Some((labels, _)), Some(number)) = (labels, number)
                    && found.get(&number).is_some_and(|(_, of)| of == labels)
                {
                    used.insert(number);
                }
            }
        }
        Ok(used)
    }

    /// Which of the numbers that are to go an address has. There are many addresses: they are read only when something is
    /// to go.
    async fn named(&self) -> Result<HashSet<u32>, StoreError> {
        let mut named = HashSet::new();
        if self.due.is_empty() {
            return Ok(named);
        }
        let numbers: HashSet<u32> = self.due.iter().map(|unused| unused.number).collect();
        let prefix = format!("{}/", keys::IPS);
        let mut pages = Pages::of(&prefix);
        while let Some(page) = pages.next(self.store.as_ref()).await? {
            for entry in &page.entries {
                let pair = IpIdentityPair::read(&entry.key, &entry.value);
                named.extend(pair.ok().map(|(_, pair)| pair.id).filter(|id| numbers.contains(id)));
            }
        }
        Ok(named)
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
    async fn delete(&self, due: &Unused) -> Result<bool, StoreError> {
        let lock = match self.locks.acquire(&lock_name(&due.labels), self.patience).await {
            // Whoever holds it is about to use it.
            Err(StoreError::LockTimeout { .. }) => return Ok(false),
            lock => lock?,
        };
        let deleted = async {
            if self.is_used(&due.labels, due.number).await? {
                return Ok(false);
            }
            let key = due.master.key.to_string();
            let same = Compare::ModRevision(key.clone(), due.master.mod_revision);
            let fenced = self.fence.iter().fold(Txn::new(), |txn, condition| txn.when(condition.clone()));
            let txn = fenced.when(lock.held()).when(same).then(Op::Delete(key));
            Ok(self.store.txn(txn).await?.held)
        };
        let outcome = deleted.await;
        lock.release().await;
        outcome
    }
}
