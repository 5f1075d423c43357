//! The resources of one cluster, in its store.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{sync::OnceCell, task::JoinSet};
use villus_identity::{Allocator, AllocatorConfig, Clusters, Reserved, master_key, new_identities, use_key};
use villus_kvstore::{ClusterConfig, Compare, Pace, Store, StoreError, keys};
use villus_labels::{
    KEY_CLUSTER, KEY_NAMESPACE, Label, LabelFilter, Labels, MaxConnectedClusters, NumericIdentity, source,
};

use crate::{
    error::{ExternalError, Refusal},
    job::{Goal, Job, What},
    nodes::Nodes,
    problem::{MAX_PROBLEMS, Problem, Problems},
    record::{Keys, Record, expiry, written},
    spec::{Place, Wanted},
    write::{self, Terms},
};

/// Allocations under way at once.
const ALLOCATIONS: usize = 32;
/// How long a number that no resource has is held for the next one.
const IDLE: Duration = Duration::from_secs(60);
/// Where a resource lives whose labels do not say it.
const NAMESPACE: &str = "default";

/// How the resources of a cluster are written.
#[derive(Clone, Debug)]
pub struct ExternalConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Its id.
    pub cluster_id: u32,
    /// How many clusters may be joined.
    pub clusters: MaxConnectedClusters,
    /// The agents write addresses below the cluster's name (`kvstore-address-space`).
    pub space_of_cluster: bool,
    /// The rules by which labels count for identities, as the agents have them (`labels`).
    pub label_rules: String,
    /// What tells this process from others, without a `/`.
    pub writer: String,
    /// How long what this process holds while it writes outlives it.
    pub lease_ttl: Duration,
    /// How long the store may take over one number.
    pub patience: Duration,
    /// What is tried again waits so long.
    pub pace: Pace,
}

/// The external resources of one cluster. Clones share everything. Needs a tokio runtime.
///
/// A resource is its record, one key for each address, and the keys that say that its labels' number is used; all of
/// them are written and deleted in one transaction, without a lease. So no moment and no death leaves half of one.
#[derive(Clone)]
pub struct Externals {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub nodes: Nodes,
    pub allocator: Allocator,
    config: ExternalConfig,
    filter: LabelFilter,
    cluster_label: Label,
    admitted: OnceCell<()>,
    /// Label sets whose numbers this process keeps from being collected, and when they were last asked for.
    held: Mutex<HashMap<Labels, Instant>>,
    /// Numbers that resources have already.
    settled: Mutex<HashMap<Labels, NumericIdentity>>,
}

/// Who writes, and whether anything is written.
#[derive(Clone, Debug, Default)]
pub struct Writing {
    /// Who says it, for people.
    pub author: String,
    /// Nothing is written; what would become of it is said.
    pub dry_run: bool,
}

/// What became of one resource.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What was done, or why nothing was.
    pub result: Result<What, Refusal>,
    /// It as it is now; nothing of what was deleted or not written. With `dry_run` its number may be 0: not given yet.
    pub record: Option<Record>,
}

/// What one resource comes to, before it has a number.
struct Resolved {
    wanted: Wanted,
    host: Option<std::net::IpAddr>,
    labels: Labels,
}

// === impl Externals ===

impl Externals {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// Something of the configuration can't be.
    pub fn open(store: Arc<dyn Store>, config: ExternalConfig) -> Result<Self, ExternalError> {
        let filter = LabelFilter::parse(&config.label_rules)?;
        let cluster_label = Label::new(source::K8S, KEY_CLUSTER, &config.cluster)?;
        let reserved = Reserved::new();
        let table = new_identities(&reserved);
        let allocation = AllocatorConfig {
            cluster_id: config.cluster_id,
            clusters: config.clusters,
            node: config.writer.clone(),
            lease_ttl: config.lease_ttl,
            lock_patience: config.patience,
            timeout: config.patience,
            attempts: 8,
            pace: config.pace.clone(),
            patience: None,
            stale_grace: Duration::from_secs(3600),
            sync_interval: Duration::from_secs(300),
            reserved,
            others: Clusters::default(),
        };
        let allocator = Allocator::start(Arc::clone(&store), allocation, table)?;
        let nodes = Nodes::start(Arc::clone(&store), config.pace.clone());
        let keys = Keys::new(&config.cluster, config.space_of_cluster);
        let admitted = OnceCell::new();
        let inner = Inner {
            store,
            keys,
            nodes,
            allocator,
            config,
            filter,
            cluster_label,
            admitted,
            held: Mutex::default(),
            settled: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes resources as they are wanted: those that are so stay untouched. What can be told beforehand is checked for
    /// all of them first; then each is written whole or not at all, and says what became of it, in the order asked.
    ///
    /// # Errors
    /// Something is wrong with one of them, or the store can't be used: nothing was written.
    pub async fn put(&self, wanted: Vec<Wanted>, how: &Writing) -> Result<Vec<Outcome>, ExternalError> {
        self.admit().await?;
        let resolved = self.resolve(wanted)?;
        let numbers = self.numbers(&resolved, how.dry_run).await;
        let now = Timestamp::now();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(resolved.len());
        let (mut jobs, mut places) = (Vec::new(), Vec::new());
        for (place, one) in resolved.into_iter().enumerate() {
            let name = one.wanted.name.clone();
            let result = match numbers.get(&one.labels) {
                Some(Ok(number)) => {
                    let record = one.record(*number, &how.author, now);
                    jobs.push(Job::new(name.clone(), Goal::Be(Box::new(record))));
                    places.push(place);
                    Ok(What::Unchanged)
                }
                Some(Err(refusal)) => Err(refusal.clone()),
                None => Err(Refusal::Contended),
            };
            outcomes.push(Outcome { name, result, record: None });
        }
        // Resources with the same labels share conditions, if they are in the same transaction.
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|n| jobs[*n].record().map(|record| record.identity));
        let places: Vec<usize> = order.iter().map(|n| places[*n]).collect();
        let mut sorted: Vec<Option<Job>> = jobs.into_iter().map(Some).collect();
        let jobs = order.iter().filter_map(|n| sorted[*n].take()).collect();
        let terms = Terms { dry_run: how.dry_run, fence: None };
        for (place, job) in places.into_iter().zip(write::carry_out(&self.inner, jobs, &terms).await) {
            outcomes[place] = job.into();
        }
        Ok(outcomes)
    }

    /// Deletes resources; that one is not there is fine.
    ///
    /// # Errors
    /// The store can't be used: nothing was deleted.
    pub async fn delete(
        &self,
        names: BTreeSet<String>,
        how: &Writing,
    ) -> Result<Vec<Outcome>, ExternalError> {
        self.admit().await?;
        let jobs = names.into_iter().map(|name| Job::new(name, Goal::Go)).collect();
        let terms = Terms { dry_run: how.dry_run, fence: None };
        Ok(write::carry_out(&self.inner, jobs, &terms).await.into_iter().map(Outcome::from).collect())
    }

    /// One resource.
    ///
    /// # Errors
    /// The store can't be used, or what lies there can't be read.
    pub async fn get(&self, name: &str) -> Result<Option<Record>, ExternalError> {
        self.admit().await?;
        let Some(entry) = self.inner.store.get(&self.inner.keys.resource(name)).await? else {
            return Ok(None);
        };
        let damaged = |reason| ExternalError::Damaged { key: entry.key.to_string(), reason };
        Record::read(&entry).map(Some).map_err(damaged)
    }

    /// All resources by name, and what can't be read, by key.
    ///
    /// # Errors
    /// The store can't be used.
    pub async fn list(&self) -> Result<(Vec<Record>, Vec<(String, String)>), ExternalError> {
        self.admit().await?;
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in self.inner.store.list_prefix(&self.inner.keys.resources()).await?.entries {
            match Record::read(&entry) {
                Ok(record) => records.push(record),
                Err(reason) => damaged.push((entry.key.to_string(), reason)),
            }
        }
        Ok((records, damaged))
    }

    /// Makes sure that the store is this cluster's: in another one's, numbers and keys would be wrong.
    ///
    /// # Errors
    /// It is another cluster's, or is not there.
    pub async fn admit(&self) -> Result<(), ExternalError> {
        self.inner.admitted.get_or_try_init(|| self.inner.is_ours()).await.map(|_| ())
    }

    /// Gives back what this process holds, so that nothing of it lies in the store until its lease ends.
    pub async fn end(self) {
        // What fails goes with its lease.
        let _ = self.inner.allocator.end().await;
    }

    /// What is wanted, with hosts and with labels that count.
    fn resolve(&self, wanted: Vec<Wanted>) -> Result<Vec<Resolved>, Problems> {
        let (mut all, mut problems) = (Vec::with_capacity(wanted.len()), Vec::new());
        for one in wanted {
            match self.inner.resolve(one) {
                Ok(resolved) => all.push(resolved),
                Err(problem) => problems.push(problem),
            }
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(Problems(problems)) }
    }

    /// The numbers of all label sets. With `dry_run` none is allocated: one that there is not is 0.
    async fn numbers(
        &self,
        resolved: &[Resolved],
        dry_run: bool,
    ) -> HashMap<Labels, Result<NumericIdentity, Refusal>> {
        let mut numbers = HashMap::new();
        let mut open: BTreeSet<&Labels> = BTreeSet::new();
        for one in resolved {
            match self.inner.number_of(&one.labels) {
                Some(number) => {
                    self.inner.use_now(&one.labels);
                    numbers.insert(one.labels.clone(), Ok(number));
                }
                None => drop(open.insert(&one.labels)),
            }
        }
        let mut open = open.into_iter().cloned();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < ALLOCATIONS
                && let Some(labels) = open.next()
            {
                let inner = Arc::clone(&self.inner);
                under_way.spawn(async move {
                    let number = if dry_run {
                        Ok(inner.lookup(&labels).await)
                    } else {
                        inner.hold(&labels, None).await
                    };
                    (labels, number)
                });
            }
            match under_way.join_next().await {
                Some(outcome) => numbers.extend(outcome),
                None => return numbers,
            }
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Takes a label set's number, or any if it has none, and keeps it from being collected.
    pub async fn hold(
        &self,
        labels: &Labels,
        wanted: Option<NumericIdentity>,
    ) -> Result<NumericIdentity, Refusal> {
        self.use_now(labels);
        if let Some(number) = self.number_of(labels) {
            return Ok(number);
        }
        if let Some(number) = self.settled(labels).await.map_err(Refusal::Store)? {
            self.settled_numbers().insert(labels.clone(), number);
            return Ok(number);
        }
        Ok(self.allocator.allocate(labels, wanted).await?)
    }

    /// The number that a label set has, as far as this process knows.
    fn number_of(&self, labels: &Labels) -> Option<NumericIdentity> {
        let settled = || self.settled_numbers().get(labels).copied();
        self.allocator.number_in_use(labels).or_else(settled)
    }

    /// The number by which some resource has the labels already. While its key is there nobody collects the number, so it
    /// needs no lock.
    async fn settled(&self, labels: &Labels) -> Result<Option<NumericIdentity>, StoreError> {
        let text = labels.to_kvstore();
        let entry = self.store.get(&use_key(&text, &self.keys.user())).await?;
        let number = entry.and_then(|entry| entry.text()?.parse().ok()).map(NumericIdentity);
        Ok(number.filter(|number| !number.is_reserved()))
    }

    /// Conditions under which nobody collects the number of a label set.
    pub fn conditions(&self, labels: &Labels, number: NumericIdentity) -> [Compare; 2] {
        if self.allocator.number_in_use(labels) == Some(number) {
            return self.allocator.in_use(labels, number);
        }
        let text = labels.to_kvstore();
        let used = Compare::Value(use_key(&text, &self.keys.user()), number.to_string().into());
        [Compare::Value(master_key(number), text.into()), used]
    }

    /// The conditions did not hold: makes them hold again, if the number is still to be had.
    pub async fn recover(&self, labels: &Labels, number: NumericIdentity) -> Result<(), Refusal> {
        self.settled_numbers().remove(labels);
        match self.allocator.number_in_use(labels) {
            // The store has lost what this process uses; it is written again.
            Some(_) => drop(self.allocator.reassert().await.map_err(Refusal::Store)?),
            None => drop(self.allocator.allocate(labels, Some(number)).await?),
        }
        Ok(())
    }

    fn settled_numbers(&self) -> MutexGuard<'_, HashMap<Labels, NumericIdentity>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_now(&self, labels: &Labels) {
        self.held().insert(labels.clone(), Instant::now());
    }

    /// Gives back the numbers of label sets that no resource has and that nobody has asked for lately.
    pub async fn release_unused(&self, used: &HashSet<Labels>) {
        self.settled_numbers().retain(|labels, _| used.contains(labels));
        let is_idle = |labels: &Labels, since: &Instant| !used.contains(labels) && since.elapsed() >= IDLE;
        let idle: Vec<Labels> =
            self.held().extract_if(|labels, since| is_idle(labels, since)).map(|(l, _)| l).collect();
        for labels in idle {
            while self.allocator.references(&labels) > 0 {
                // What fails now is done when the store is there.
                let _ = self.allocator.release(&labels).await;
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Labels, Instant>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lookup(&self, labels: &Labels) -> NumericIdentity {
        // Who asks what would be does not wait for ever; without the list the number is not known yet.
        let _ = tokio::time::timeout(self.config.patience, self.allocator.synced()).await;
        self.allocator.lookup(labels).unwrap_or(NumericIdentity::UNKNOWN)
    }

    async fn is_ours(&self) -> Result<(), ExternalError> {
        let own = ClusterConfig::new(self.config.cluster_id, self.config.clusters.max_cluster_id());
        let prefix = format!("{}/", keys::CLUSTER_CONFIG);
        let listing = self.store.list_prefix(&prefix).await?;
        let late =
            |_| StoreError::Unavailable { what: "nodes", reason: "they were not listed in time".to_owned() };
        tokio::time::timeout(self.config.patience, self.nodes.synced()).await.map_err(late)?;
        let named = |key: &str| key.strip_prefix(&prefix).unwrap_or(key).to_owned();
        let Some(entry) = listing.entries.iter().find(|entry| named(&entry.key) == self.config.cluster)
        else {
            let others: Vec<String> = listing.entries.iter().map(|entry| named(&entry.key)).collect();
            return match others.is_empty() {
                true => Ok(()),
                false => Err(ExternalError::OtherCluster(format!(
                    "the store knows cluster {} and no cluster {}",
                    others.join(", "),
                    self.config.cluster
                ))),
            };
        };
        match ClusterConfig::read(&entry.value).map(|theirs| own.differs(&theirs)) {
            Ok(None) | Err(_) => Ok(()),
            Ok(Some(how)) => Err(ExternalError::OtherCluster(format!("`{}` says that {how}", entry.key))),
        }
    }

    fn resolve(&self, wanted: Wanted) -> Result<Resolved, Problem> {
        let cluster = self.keys.cluster();
        let problem = |field: &str, reason: String, fix: &str| Problem {
            place: String::new(),
            name: Some(wanted.name.clone()),
            field: field.to_owned(),
            reason,
            fix: fix.to_owned(),
        };
        let host = match &wanted.spec.place {
            None => None,
            Some(Place::Host(host)) => Some(*host),
            Some(Place::Node(node)) => Some(self.nodes.address(cluster, node).ok_or_else(|| {
                let reason =
                    format!("the store knows no node `{}` of cluster {cluster}", node.escape_debug());
                problem("node", reason, "write one of `villus node list`, or its address as host")
            })?),
        };
        let mut labels = wanted.spec.labels.clone();
        match labels.get(KEY_CLUSTER) {
            Some(label) if label.value() != cluster || label.source() != source::K8S => {
                let reason = format!("`{label}` is of another cluster than {cluster}");
                return Err(problem("labels", reason, "leave it out"));
            }
            Some(_) => {}
            None => labels = labels.with(self.cluster_label.clone()),
        }
        if labels.get(KEY_NAMESPACE).is_none() {
            let namespace = Label::new(source::K8S, KEY_NAMESPACE, NAMESPACE);
            labels = namespace.map_or(labels.clone(), |label| labels.with(label));
        }
        let labels = self.filter.identity_labels(&labels);
        if labels.is_empty() {
            let reason = "none of them counts under the cluster's filter".to_owned();
            return Err(problem("labels", reason, "give it one that counts, or widen the option `labels`"));
        }
        Ok(Resolved { wanted, host, labels })
    }
}

// === impl Resolved ===

impl Resolved {
    fn record(self, identity: NumericIdentity, author: &str, now: Timestamp) -> Record {
        let Wanted { name, spec } = self.wanted;
        let node = match spec.place {
            Some(Place::Node(node)) => Some(node),
            _ => None,
        };
        let ttl_seconds = spec.ttl.map(|ttl| ttl.as_secs());
        Record {
            name,
            kind: spec.kind,
            addresses: spec.addresses,
            labels: spec.labels,
            node,
            host: self.host,
            ttl_seconds,
            expires: ttl_seconds.map(|seconds| expiry(now, seconds)),
            identity,
            identity_labels: self.labels.to_kvstore(),
            created: written(now),
            updated: written(now),
            author: author.to_owned(),
        }
    }
}

impl From<Job> for Outcome {
    fn from(job: Job) -> Self {
        let result = job.outcome.unwrap_or(Err(Refusal::Contended));
        let record = match (&job.goal, &result) {
            (Goal::Be(record), Ok(_)) => Some(Record::clone(record)),
            _ => None,
        };
        Self { name: job.name, result, record }
    }
}

/// Conditions and errors of the keeper's writes are those of everybody.
impl Externals {
    pub(crate) async fn carry_out(&self, jobs: Vec<Job>, fence: Option<Compare>) -> Vec<Job> {
        write::carry_out(&self.inner, jobs, &Terms { dry_run: false, fence }).await
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }
}

impl Outcome {
    /// Whether it was not done for now, and may be later.
    pub fn is_for_now(&self) -> bool {
        matches!(
            &self.result,
            Err(Refusal::Store(
                StoreError::Unavailable { .. } | StoreError::Denied { .. } | StoreError::Full { .. }
            ))
        )
    }
}
