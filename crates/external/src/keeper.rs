//! What time and mishaps make of resources, put right: those whose time is over go, keys without a resource go, keys
//! that somebody took away come back, and so does what a store has lost that went back in time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use villus_identity::{master_key, use_key};
use villus_kvstore::{Answer, Batch, Compare, Entry, Follow, Item, Op, Pace, Pages, StoreError, Txn};
use villus_labels::{Labels, NumericIdentity};

use crate::{
    externals::Externals,
    job::{Goal, Job, What},
    record::{Record, owner, written},
};

/// Keys that are read in one transaction.
const TOGETHER: usize = 116;
/// Longest wait for the next moment at which something is over: clocks are set.
const LONGEST: Duration = Duration::from_secs(30);

/// How a keeper goes about it.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// How often everything is compared with the store.
    pub compare: Duration,
    /// How long deletions are gathered before numbers that nobody uses any more are given up.
    pub gather: Duration,
    /// What is tried again waits so long.
    pub pace: Pace,
}

/// What a keeper has done, all counts since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Resources that there are.
    pub resources: u64,
    /// Resources that went because their time was over.
    pub expired: u64,
    /// Resources whose keys were written again.
    pub mended: u64,
    /// Resources that a store had lost and that were written again.
    pub restored: u64,
    /// Addresses without a resource that were deleted.
    pub orphans: u64,
    /// Numbers that no resource uses any more and that were given up.
    pub unused: u64,
    /// Resources that can't be as they are recorded, with the reason.
    pub broken: BTreeMap<String, String>,
    /// When everything was last compared, RFC 3339.
    pub compared: String,
    /// What went wrong last; nothing if all is well.
    pub problem: String,
}

/// Follows the resources of a cluster, and keeps them in order where it leads.
pub struct Keeper {
    externals: Externals,
    config: KeeperConfig,
    known: Mutex<Known>,
    kept: Mutex<Kept>,
    synced: watch::Sender<bool>,
    bell: Notify,
}

#[derive(Default)]
struct Known {
    records: BTreeMap<String, Record>,
    expiries: BTreeSet<(Timestamp, String)>,
    /// What a store that went back in time does not know any more.
    lost: BTreeMap<String, Record>,
    /// Records that went: their addresses should have gone with them.
    gone: Vec<Record>,
    /// Somebody must look after them.
    leads: bool,
    /// Some number may be used no more.
    untidy: bool,
}

// === impl Keeper ===

impl Keeper {
    /// Knows nothing yet; see [`Keeper::follow`].
    pub fn new(externals: Externals, config: KeeperConfig) -> Self {
        let (known, kept) = (Mutex::default(), Mutex::default());
        Self { externals, config, known, kept, synced: watch::Sender::new(false), bell: Notify::new() }
    }

    /// The resources that it looks after.
    pub fn externals(&self) -> &Externals {
        &self.externals
    }

    /// What it has done.
    pub fn kept(&self) -> Kept {
        let resources = self.known().records.len() as u64;
        Kept { resources, ..self.done().clone() }
    }

    /// Follows what there is, until it is dropped.
    pub async fn follow(&self) {
        let prefix = self.externals.keys().resources();
        let store = self.externals.store().clone();
        let mut follow = Follow::start(store, &prefix, self.config.pace.clone());
        while let Some(batch) = follow.next().await {
            self.known().apply(&batch, &prefix);
            self.synced.send_replace(true);
            self.bell.notify_one();
        }
    }

    /// Keeps order until it is dropped. Whatever it changes it changes only while `office` holds.
    pub async fn lead(&self, office: Compare) {
        // An error means that the sender is gone, which `self` prevents.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
        let _leads = Leads::begin(self);
        let mut chance = fastrand::Rng::new();
        let (mut failures, mut compare_at, mut tidy_at) = (0, Instant::now(), None);
        loop {
            let now = Instant::now();
            if self.known().untidy && tidy_at.is_none() {
                tidy_at = Some(now + self.config.gather);
            }
            let full = now >= compare_at;
            let tidy = full || tidy_at.is_some_and(|at| now >= at);
            match self.round(&office, full, tidy).await {
                Ok(()) => {
                    failures = 0;
                    self.done().problem = String::new();
                    if full {
                        compare_at = Instant::now() + self.config.compare;
                        self.done().compared = written(Timestamp::now());
                    }
                    tidy_at = tidy_at.filter(|_| !tidy);
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "external resources could not be kept in order");
                    self.done().problem = error.to_string();
                    tokio::time::sleep(self.config.pace.delay(failures, &mut chance)).await;
                    continue;
                }
            }
            let next = [Some(compare_at), tidy_at, self.next_expiry()].into_iter().flatten().min();
            tokio::select! {
                () = self.bell.notified() => {}
                () = tokio::time::sleep_until(next.unwrap_or(compare_at)) => {}
            }
        }
    }

    async fn round(&self, office: &Compare, full: bool, tidy: bool) -> Result<(), StoreError> {
        self.restore(office).await?;
        self.expire(office).await?;
        self.check_gone(office).await?;
        if full {
            self.mend(office).await?;
            self.scan(office).await?;
        }
        if tidy {
            self.known().untidy = false;
            let outcome = self.tidy(office).await;
            if outcome.is_err() {
                self.known().untidy = true;
            }
            outcome?;
        }
        Ok(())
    }

    fn next_expiry(&self) -> Option<Instant> {
        let at = self.known().expiries.first().map(|(at, _)| *at)?;
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        // A little later than it says, so that it is over then.
        Some(Instant::now() + left.min(LONGEST) + Duration::from_millis(10))
    }

    /// Writes again what a store has lost.
    async fn restore(&self, office: &Compare) -> Result<(), StoreError> {
        let lost: Vec<Record> = self.known().lost.values().cloned().collect();
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            resources = lost.len(),
            "the store has lost external resources; they are written again"
        );
        let mut jobs = Vec::new();
        for record in lost {
            jobs.push(Job::new(record.name.clone(), Goal::Restore(Box::new(self.numbered(record).await?))));
        }
        for job in self.externals.carry_out(jobs, Some(office.clone())).await {
            let what = self.said(&job)?;
            self.known().lost.remove(&job.name);
            self.done().restored += u64::from(what == Some(What::Created));
        }
        Ok(())
    }

    /// Deletes those whose time is over.
    async fn expire(&self, office: &Compare) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let over: Vec<String> = {
            let known = self.known();
            known.expiries.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()).collect()
        };
        let jobs = over.into_iter().map(|name| Job::new(name, Goal::Expire(now))).collect();
        for job in self.externals.carry_out(jobs, Some(office.clone())).await {
            if self.said(&job)? == Some(What::Deleted) {
                tracing::info!(resource = job.name, "an external resource's time is over");
                self.done().expired += 1;
            }
        }
        Ok(())
    }

    /// A record that somebody deleted by hand leaves its addresses behind.
    async fn check_gone(&self, office: &Compare) -> Result<(), StoreError> {
        let gone = std::mem::take(&mut self.known().gone);
        let keys = self.externals.keys();
        let addresses: Vec<String> =
            gone.iter().flat_map(|record| &record.addresses).flat_map(|one| keys.address(*one)).collect();
        for entry in self.read(addresses).await?.into_iter().flatten() {
            self.end_orphan(&entry, office).await?;
        }
        Ok(())
    }

    /// Looks at every address of the store for those without a resource.
    async fn scan(&self, office: &Compare) -> Result<(), StoreError> {
        for (n, prefix) in self.externals.keys().addresses().into_iter().enumerate() {
            let mut pages = Pages::of(&prefix);
            while let Some(page) = pages.next(self.externals.store().as_ref()).await? {
                for entry in &page.entries {
                    let Some(name) = self.externals.keys().owner_of(entry) else { continue };
                    // None belongs into the second space.
                    if n > 0 || !self.known().has(&name, entry) {
                        self.end_orphan(entry, office).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes an address, if the resource that it says it is of does not have it.
    async fn end_orphan(&self, entry: &Entry, office: &Compare) -> Result<(), StoreError> {
        let keys = self.externals.keys();
        let Some(name) = keys.owner_of(entry) else { return Ok(()) };
        let own = keys.resource(&name);
        let record = self.externals.store().get(&own).await?;
        let says = record.as_ref().map(Record::read);
        let is_its = match &says {
            None => false,
            // Nobody knows what it has.
            Some(Err(_)) => true,
            Some(Ok(record)) => record.addresses.iter().any(|one| keys.address(*one)[0] == *entry.key),
        };
        if is_its {
            return Ok(());
        }
        let as_seen = match &record {
            None => Compare::Absent(own),
            Some(record) => Compare::ModRevision(own, record.mod_revision),
        };
        let key = entry.key.to_string();
        let same = Compare::ModRevision(key.clone(), entry.mod_revision);
        let txn = Txn::new().when(office.clone()).when(as_seen).when(same).then(Op::Delete(key));
        if self.externals.store().txn(txn).await?.held {
            tracing::warn!(key = &*entry.key, resource = name, "an address without a resource is deleted");
            self.done().orphans += 1;
        }
        Ok(())
    }

    /// Writes again the keys of resources that somebody took away or changed.
    async fn mend(&self, office: &Compare) -> Result<(), StoreError> {
        let keys = self.externals.keys();
        let records: Vec<Record> = self.known().records.values().cloned().collect();
        let mut expected: Vec<(usize, String, Vec<u8>)> = Vec::new();
        let mut uses: HashMap<(String, NumericIdentity), Vec<usize>> = HashMap::new();
        for (n, record) in records.iter().enumerate() {
            for address in &record.addresses {
                let [own, _] = keys.address(*address);
                expected.push((n, own, record.pair(*address, keys.cluster()).to_vec()));
            }
            uses.entry((record.identity_labels.clone(), record.identity)).or_default().push(n);
        }
        let mut wrong: BTreeSet<usize> = BTreeSet::new();
        let mut broken = BTreeMap::new();
        let found = self.read(expected.iter().map(|(_, key, _)| key.clone()).collect()).await?;
        for ((n, _, value), entry) in expected.iter().zip(found) {
            match entry {
                Some(entry) if entry.value == *value && entry.lease.is_none() => {}
                Some(entry)
                    if keys.owner_of(&entry).as_ref() != records.get(*n).map(|record| &record.name) =>
                {
                    let name = records.get(*n).map(|record| record.name.clone()).unwrap_or_default();
                    broken.insert(name, format!("{} belongs to {}", entry.key, owner(&entry)));
                }
                _ => drop(wrong.insert(*n)),
            }
        }
        let mut used: Vec<(&Vec<usize>, String, String)> = Vec::new();
        for ((labels, number), of) in &uses {
            used.push((of, master_key(*number), labels.clone()));
            used.push((of, use_key(labels, &keys.user()), number.to_string()));
            used.push((of, keys.identity(*number), labels.clone()));
        }
        let found = self.read(used.iter().map(|(_, key, _)| key.clone()).collect()).await?;
        for ((of, _, value), entry) in used.iter().zip(found) {
            if entry.is_none_or(|entry| entry.value != value.as_bytes() || entry.lease.is_some()) {
                wrong.extend(of.iter());
            }
        }
        let mut jobs = Vec::new();
        for record in wrong.into_iter().filter_map(|n| records.get(n)) {
            let numbered = self.numbered(record.clone()).await?;
            let goal = match numbered.identity == record.identity {
                true => Goal::Mend(Box::new(numbered)),
                false => Goal::Be(Box::new(numbered)),
            };
            jobs.push(Job::new(record.name.clone(), goal));
        }
        for (name, reason) in &broken {
            if self.done().broken.get(name) != Some(reason) {
                tracing::warn!(resource = name, reason, "an external resource can't be as it is recorded");
            }
        }
        self.done().broken = broken;
        for job in self.externals.carry_out(jobs, Some(office.clone())).await {
            if self.said(&job)? == Some(What::Updated) {
                tracing::warn!(resource = job.name, "keys of an external resource are written again");
                self.done().mended += 1;
            }
        }
        Ok(())
    }

    /// Gives up the numbers that no resource uses.
    async fn tidy(&self, office: &Compare) -> Result<(), StoreError> {
        let keys = self.externals.keys();
        let store = self.externals.store();
        // First the numbers, then the resources: who says a resource in between writes its number anew.
        let numbers = store.list_prefix(&keys.identities()).await?.entries;
        let resources = store.list_prefix(&keys.resources()).await?.entries;
        let records: Vec<Record> = resources.iter().filter_map(|entry| Record::read(entry).ok()).collect();
        // What can't be read may use any.
        let all_read = records.len() == resources.len();
        let used: HashSet<(NumericIdentity, &str)> =
            records.iter().map(|record| (record.identity, record.identity_labels.as_str())).collect();
        for entry in numbers {
            let number = entry.key.rsplit('/').next().and_then(|text| text.parse().ok()).map(NumericIdentity);
            let (Some(number), Some(labels)) = (number, entry.text()) else { continue };
            if !all_read || used.contains(&(number, labels)) {
                continue;
            }
            let key = entry.key.to_string();
            let user = use_key(labels, &keys.user());
            let same = Compare::ModRevision(key.clone(), entry.mod_revision);
            let mut txn = Txn::new().when(office.clone()).when(same).then(Op::Delete(key));
            // The labels may have another number by now, which is used.
            if !used.iter().any(|(_, text)| *text == labels) {
                txn = txn.then(Op::Delete(user));
            }
            self.done().unused += u64::from(store.txn(txn).await?.held);
        }
        let labels: HashSet<Labels> = records.iter().map(Record::identity_labels).collect();
        self.externals.inner.release_unused(&labels).await;
        Ok(())
    }

    /// The record with the number that its labels have now: the one that it had, if that is possible.
    async fn numbered(&self, mut record: Record) -> Result<Record, StoreError> {
        let had = Some(record.identity);
        match self.externals.inner.hold(&record.identity_labels(), had).await {
            Ok(number) => record.identity = number,
            Err(crate::Refusal::Store(error)) => return Err(error),
            Err(refusal) => {
                return Err(StoreError::Unavailable { what: "identity", reason: refusal.to_string() });
            }
        }
        Ok(record)
    }

    /// What became of a job; a failure of the store is one of the round.
    fn said(&self, job: &Job) -> Result<Option<What>, StoreError> {
        match &job.outcome {
            Some(Ok(what)) => Ok(Some(*what)),
            Some(Err(crate::Refusal::Store(error))) => Err(error.clone()),
            Some(Err(refusal)) => {
                tracing::warn!(resource = job.name, %refusal, "an external resource can't be as it is recorded");
                self.done().broken.insert(job.name.clone(), refusal.to_string());
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn read(&self, keys: Vec<String>) -> Result<Vec<Option<Entry>>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(TOGETHER) {
            let txn = some.iter().fold(Txn::new(), |txn, key| txn.then(Op::Get(key.clone())));
            found.extend(self.externals.store().txn(txn).await?.answers.into_iter().map(
                |answer| match answer {
                    Answer::Got(entry) => entry,
                    Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
                },
            ));
        }
        Ok(found)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time in which a keeper leads.
struct Leads<'a>(&'a Keeper);

// === impl Leads ===

impl<'a> Leads<'a> {
    fn begin(keeper: &'a Keeper) -> Self {
        let mut known = keeper.known();
        (known.leads, known.untidy) = (true, true);
        drop(known);
        Self(keeper)
    }
}

impl Drop for Leads<'_> {
    fn drop(&mut self) {
        let mut known = self.0.known();
        known.leads = false;
        known.gone.clear();
    }
}

// === impl Known ===

impl Known {
    fn apply(&mut self, batch: &Batch, prefix: &str) {
        let rewound = batch.is_of_another_past();
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    let Some(name) = entry.key.strip_prefix(prefix) else { continue };
                    let old = self.remove(name);
                    self.lost.remove(name);
                    let Ok(record) = Record::read(entry) else { continue };
                    self.untidy |= old.is_some_and(|old| old.identity != record.identity);
                    if let Some(at) = record.expiry() {
                        self.expiries.insert((at, name.to_owned()));
                    }
                    self.records.insert(name.to_owned(), record);
                }
                Item::Delete { key, .. } => {
                    let Some(record) = key.strip_prefix(prefix).and_then(|name| self.remove(name)) else {
                        continue;
                    };
                    if rewound {
                        self.lost.insert(record.name.clone(), record);
                        continue;
                    }
                    self.untidy = true;
                    if self.leads {
                        self.gone.push(record);
                    }
                }
            }
        }
    }

    fn remove(&mut self, name: &str) -> Option<Record> {
        let record = self.records.remove(name)?;
        if let Some(at) = record.expiry() {
            self.expiries.remove(&(at, name.to_owned()));
        }
        Some(record)
    }

    /// Whether the resource has the address that an entry is of, as far as is known.
    fn has(&self, name: &str, entry: &Entry) -> bool {
        let address = entry.key.rsplit('/').next().and_then(|text| text.parse().ok());
        let record = self.records.get(name);
        record.zip(address).is_some_and(|(record, address)| record.addresses.contains(&address))
    }
}
