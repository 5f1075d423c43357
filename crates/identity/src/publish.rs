//! What this node says of itself in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};
use villus_kvstore::{ClusterConfig, Pace, Session, Store, StoreError};
use villus_table::Stop;

use crate::remote::Ownership;

/// How long a key is left alone after it was written again, the first time; doubled each time.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// How often a key is tried again that the store does not take, in a cluster of one node.
const DENIED: Duration = Duration::from_secs(30);

/// How a [`Publisher`] goes about it.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// What it is, for the store.
    pub cluster_config: ClusterConfig,
    /// The key that is written last: who sees it knows that all others are there.
    pub last: String,
    /// How long keys outlive the agent (`kvstore-lease-ttl`).
    pub lease_ttl: Duration,
    /// How often everything is compared with the store.
    pub sync_interval: Duration,
    /// How long it waits after a failure.
    pub pace: Pace,
}

/// How a [`Publisher`] is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Keys that should be there.
    pub wanted: usize,
    /// Those of them that are.
    pub written: usize,
    /// Those of them that are not because the store does not take them; it is asked again from time to time.
    pub refused: BTreeSet<String>,
    /// Keys that others changed or deleted and that were written again, by how often.
    pub contested: BTreeMap<String, u32>,
    /// How often keys were written again, all together.
    pub reasserted: u64,
    /// What went wrong last; nothing if all is well.
    pub problem: Option<String>,
}

/// Keeps keys of this node in the store, under lease, whatever happens to them there.
pub struct Publisher {
    store: Arc<dyn Store>,
    config: PublisherConfig,
    session: Session,
    inner: Mutex<Inner>,
    bell: Notify,
}

#[derive(Default)]
struct Inner {
    wanted: BTreeMap<String, Bytes>,
    /// Keys that somebody changed or deleted.
    altered: BTreeMap<String, Fight>,
    /// Everything is to be compared, and the last key written anew.
    anew: bool,
    reasserted: u64,
    problem: Option<String>,
    /// Keys that the store did not take in the last whole round.
    refused: BTreeSet<String>,
}

/// What a round came to.
#[derive(Default)]
struct Step {
    /// Whether everything was compared.
    compared: bool,
    /// The first key that the store did not take, and why.
    denied: Option<String>,
    /// All of them.
    refused: BTreeSet<String>,
}

/// A key that others write too.
struct Fight {
    /// To be looked at then.
    due: Option<Instant>,
    /// How often it was written again.
    times: u32,
    until: Instant,
}

// === impl Publisher ===

impl Publisher {
    /// Nothing is wanted yet.
    pub fn new(store: Arc<dyn Store>, config: PublisherConfig) -> Self {
        let session = Session::new(Arc::clone(&store), config.lease_ttl).with_last(&config.last);
        Self { store, config, session, inner: Mutex::default(), bell: Notify::new() }
    }

    /// From now on these keys should be there with these values, and no others of this node.
    pub fn want(&self, keys: BTreeMap<String, Bytes>) {
        let mut inner = self.inner();
        if inner.wanted != keys {
            inner.altered.retain(|key, _| keys.contains_key(key));
            inner.wanted = keys;
            self.bell.notify_one();
        }
    }

    /// Others have changed or deleted these keys of this node.
    pub fn altered(&self, keys: impl IntoIterator<Item = Arc<str>>) {
        let now = Instant::now();
        let mut inner = self.inner();
        for key in keys {
            let fight =
                inner.altered.entry(key.to_string()).or_insert(Fight { due: None, times: 0, until: now });
            fight.due = Some(fight.until.max(now));
        }
        self.bell.notify_one();
    }

    /// The store's past is another than it was: everything is compared at once, and the last key written anew.
    pub fn reassert_now(&self) {
        self.inner().anew = true;
        self.bell.notify_one();
    }

    /// Whose a key is.
    pub fn ownership(&self, key: &str, value: Option<&[u8]>) -> Ownership {
        let wanted = self.inner().wanted.get(key).cloned();
        let written = self.session.value(key);
        match (wanted, written, value) {
            (None, None, _) => Ownership::Other,
            (wanted, written, Some(value)) => {
                let same = |ours: &Option<Bytes>| ours.as_deref() == Some(value);
                if same(&wanted) || same(&written) { Ownership::AsWritten } else { Ownership::Altered }
            }
            // It goes because it is not wanted any more, or it has not been written yet.
            (None, Some(_), None) => Ownership::AsWritten,
            (Some(_), _, None) => Ownership::Altered,
        }
    }

    /// How it is.
    pub fn state(&self) -> Published {
        let inner = self.inner();
        let is_written = |(key, value): (&String, &Bytes)| self.session.value(key).as_ref() == Some(value);
        let unwritten: BTreeSet<&String> =
            inner.wanted.iter().filter(|one| !is_written(*one)).map(|(key, _)| key).collect();
        let contested = inner.altered.iter().filter(|(_, fight)| fight.times > 0);
        Published {
            wanted: inner.wanted.len(),
            written: inner.wanted.len() - unwritten.len(),
            refused: unwritten.into_iter().filter(|key| inner.refused.contains(*key)).cloned().collect(),
            contested: contested.map(|(key, fight)| (key.clone(), fight.times)).collect(),
            reasserted: inner.reasserted,
            problem: inner.problem.clone(),
        }
    }

    /// Keeps leases alive until `stop` is said.
    pub async fn keep_alive(&self, stop: &Stop) {
        self.session.run(stop, self.config.pace.size()).await;
    }

    /// Makes the store say what is wanted, until `stop` is said.
    pub async fn run(&self, stop: &Stop) {
        let mut chance = fastrand::Rng::new();
        let (mut failures, mut denied) = (0, false);
        let mut compare_at = Instant::now();
        loop {
            let retry = match failures {
                0 => compare_at,
                n => Instant::now() + self.config.pace.delay(n, &mut chance),
            };
            let retry = if denied {
                retry.min(Instant::now() + self.config.pace.size().interval(DENIED))
            } else {
                retry
            };
            let fight = self.inner().altered.values().filter_map(|fight| fight.due).min();
            let next = fight.filter(|_| failures == 0).map_or(retry, |at| at.min(retry));
            tokio::select! {
                () = stop.stopped() => return,
                () = self.bell.notified(), if failures == 0 => {}
                () = tokio::time::sleep_until(next) => {}
            }
            let mut result = self.step(Instant::now() >= compare_at).await;
            if let Err(StoreError::LeaseNotFound(_)) = &result {
                // Finds the lost lease and writes its keys again under another.
                result = self.session.keep_alive().await.map(|()| Step::default());
                self.bell.notify_one();
            }
            let problem =
                result.as_ref().map_or_else(|error| Some(error.to_string()), |step| step.denied.clone());
            self.inner().problem = problem;
            match result {
                Ok(Step { compared, denied: some, refused }) => {
                    self.inner().refused = refused;
                    (failures, denied) = (0, some.is_some());
                    if compared {
                        let size = self.config.pace.size();
                        compare_at = Instant::now() + size.interval(self.config.sync_interval);
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%error, "what this node says of itself could not be written");
                }
            }
        }
    }

    /// Does what is to be done now. A key that the store does not take holds up no other.
    async fn step(&self, compare: bool) -> Result<Step, StoreError> {
        let (wanted, anew) = {
            let inner = self.inner();
            (inner.wanted.clone(), inner.anew)
        };
        let mut step = Step { compared: compare || anew, ..Step::default() };
        let superfluous: Vec<String> =
            self.session.keys().into_iter().filter(|key| !wanted.contains_key(key)).collect();
        let removed = self.session.remove_all(superfluous.clone()).await;
        step.note_all(&superfluous, removed)?;
        let last = wanted.get_key_value(&self.config.last);
        let others = wanted.iter().filter(|(key, _)| **key != self.config.last);
        self.put(others, &mut step).await?;
        self.put(last.into_iter(), &mut step).await?;
        if step.compared {
            let keys = self.session.keys();
            let written = step.note_all(&keys, self.session.reassert_all(keys.clone()).await)?;
            self.inner().reasserted +=
                written.iter().filter(|written| **written == Some(true)).count() as u64;
        }
        if anew {
            if let Some((key, value)) = last {
                step.note(key, self.session.put(key, value.clone()).await)?;
            }
            self.inner().anew = false;
        }
        self.settle_fights(&mut step).await?;
        if step.compared {
            let key = ClusterConfig::key(&self.config.cluster);
            step.note(&key, self.say_cluster(&key).await)?;
        }
        Ok(step)
    }

    /// Writes those of the keys that do not have these values yet.
    async fn put(
        &self,
        keys: impl Iterator<Item = (&String, &Bytes)>,
        step: &mut Step,
    ) -> Result<(), StoreError> {
        let new = keys.filter(|(key, value)| self.session.value(key).as_ref() != Some(*value));
        let new: Vec<(String, Bytes)> = new.map(|(key, value)| (key.clone(), value.clone())).collect();
        let names: Vec<String> = new.iter().map(|(key, _)| key.clone()).collect();
        step.note_all(&names, self.session.put_all(new).await).map(|_| ())
    }

    /// Writes again what others changed, each key more and more seldom.
    async fn settle_fights(&self, step: &mut Step) -> Result<(), StoreError> {
        let now = Instant::now();
        let due: Vec<String> = {
            let inner = self.inner();
            let due = inner.altered.iter().filter(|(_, fight)| fight.due.is_some_and(|at| at <= now));
            due.map(|(key, _)| key.clone()).collect()
        };
        let written = step.note_all(&due, self.session.reassert_all(due.clone()).await)?;
        for (key, written) in due.into_iter().zip(written) {
            let written = written == Some(true);
            let mut inner = self.inner();
            inner.reasserted += u64::from(written);
            let Some(fight) = inner.altered.get_mut(&key) else { continue };
            fight.due = None;
            if written {
                let rest = FIRST_REST.saturating_mul(1 << fight.times.min(16)).min(LONGEST_REST);
                fight.until = now + rest;
                fight.times += 1;
            } else if fight.times == 0 {
                inner.altered.remove(&key);
            }
        }
        Ok(())
    }

    /// Says which cluster the store is of, where nobody has.
    async fn say_cluster(&self, key: &str) -> Result<(), StoreError> {
        let room = self.session.room().await?;
        let config = self.config.cluster_config.to_json().into();
        if self.store.create(key, config, Some(room.lease())).await? {
            self.session.leave(key, room);
        }
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Step ===

impl Step {
    /// What came of each of several keys.
    fn note_all<T>(
        &mut self,
        keys: &[String],
        results: Vec<Result<T, StoreError>>,
    ) -> Result<Vec<Option<T>>, StoreError> {
        keys.iter().zip(results).map(|(key, result)| self.note(key, result)).collect()
    }

    /// What came of a key: nothing where the store does not take this one.
    fn note<T>(&mut self, key: &str, result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_of_one_key() => {
                self.refused.insert(key.to_owned());
                self.denied.get_or_insert_with(|| format!("`{key}`: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
