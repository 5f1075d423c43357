//! Global identities: one number for one label set in the whole cluster, agreed on through the store
//! (reference `kvstore` 1.8).

mod copies;
mod open;
mod protocol;
mod state;
mod watcher;

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use villus_kvstore::{Compare, Header, Locks, Pace, Session, Store, StoreError, Together, Witness, keys};
use villus_labels::{IdentityError, Labels, MaxConnectedClusters, NumericIdentity};
use villus_table::Stop;

use self::state::State;
use crate::{
    clusters::Clusters, error::AllocateError, identities::Identities, leased::Leased, reserved::Reserved,
};

/// How an allocator goes about it.
#[derive(Clone, Debug)]
pub struct AllocatorConfig {
    /// This cluster's id; its numbers lie in the range of that id.
    pub cluster_id: u32,
    /// How many clusters may be joined.
    pub clusters: MaxConnectedClusters,
    /// What tells this node's slave keys from others': its address.
    pub node: String,
    /// How long slave keys outlive a dead agent (`kvstore-lease-ttl`).
    pub lease_ttl: Duration,
    /// How long one attempt waits for the lock of a label set.
    pub lock_patience: Duration,
    /// How long an allocation may take, all attempts together (`identity-allocation-timeout`).
    pub timeout: Duration,
    /// How often an allocation is tried.
    pub attempts: u32,
    /// How long it waits between two attempts, and how long the watch does.
    pub pace: Pace,
    /// How long a store that fails is waited for before a label set gets a number without it ([`Allocator::open`]);
    /// `None` waits and fails.
    pub patience: Option<Duration>,
    /// How long numbers that a rewound store has lost are kept (`stale-grace`).
    pub stale_grace: Duration,
    /// How often what is owned is compared with the store (`kvstore-periodic-sync`).
    pub sync_interval: Duration,
    /// Identities that resolve without the store.
    pub reserved: Reserved,
    /// What other clusters say of themselves.
    pub others: Clusters,
}

/// What is known from before the start.
#[derive(Clone, Debug, Default)]
pub struct KnownIdentities {
    /// Numbers and their labels.
    pub rows: Vec<(NumericIdentity, Labels)>,
    /// Which store said so, and at which revision at least.
    pub seen: Option<Header>,
    /// A write of then, of whatever key.
    pub witness: Option<Witness>,
    /// Numbers of addresses under leases.
    pub leased: BTreeSet<NumericIdentity>,
}

/// A label set of this node whose number the store has still to confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenIdentity {
    /// The labels.
    pub labels: Labels,
    /// The number in use: one of the cluster that was known, or one of this node alone
    /// ([`NumericIdentity::is_interim`]).
    pub number: NumericIdentity,
}

/// How full the cluster's range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Numbers that some label set has.
    pub used: u64,
    /// Numbers there are.
    pub total: u64,
}

/// Allocates global identities and knows those of all nodes. Needs a tokio runtime.
///
/// What it knows goes on being true when the store is not there; only label sets that it does not know can
/// not be allocated then.
pub struct Allocator {
    shared: Arc<Shared>,
    stop: Stop,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Arc<dyn Store>,
    config: AllocatorConfig,
    range: RangeInclusive<u32>,
    locks: Locks,
    together: Together,
    session: Session,
    table: Identities,
    state: Mutex<State>,
    /// Numbers of others' addresses under leases.
    leased: Leased,
    synced: watch::Sender<bool>,
    /// The store does not answer: label sets get numbers without it.
    dark: watch::Sender<bool>,
    /// There are numbers to confirm.
    opened: Notify,
    /// What is owned is to be compared with the store now.
    compare: Notify,
    /// What the store says of others' identities is not taken in.
    held: watch::Sender<bool>,
    /// Counts numbers of this node that the store confirmed or changed.
    settled: watch::Sender<u64>,
}

// === impl Allocator ===

impl Allocator {
    /// Begins to follow the store's identities into `table` and to keep alive what this node uses. Returns at
    /// once; see [`Allocator::synced`].
    ///
    /// # Errors
    /// When the cluster id does not fit the number of clusters.
    pub fn start(
        store: Arc<dyn Store>,
        config: AllocatorConfig,
        table: Identities,
    ) -> Result<Self, IdentityError> {
        Self::resume(store, config, table, KnownIdentities::default())
    }

    /// As [`Allocator::start`], by one who knows identities from before: they are in the table at once and count until
    /// the store has said otherwise.
    ///
    /// # Errors
    /// When the cluster id does not fit the number of clusters.
    pub fn resume(
        store: Arc<dyn Store>,
        config: AllocatorConfig,
        table: Identities,
        known: KnownIdentities,
    ) -> Result<Self, IdentityError> {
        let range = config.clusters.range(config.cluster_id)?;
        let source = table.source("identities");
        let shared = Arc::new(Shared {
            locks: Locks::of_cluster(Arc::clone(&store), config.pace.size().clone()),
            together: Together::new(Arc::clone(&store)),
            session: Session::new(Arc::clone(&store), config.lease_ttl),
            state: Mutex::new(State::new(range.clone())),
            leased: Leased::known(known.leased.clone()),
            synced: watch::Sender::new(false),
            dark: watch::Sender::new(false),
            opened: Notify::new(),
            compare: Notify::new(),
            held: watch::Sender::new(false),
            settled: watch::Sender::new(0),
            store,
            config,
            range,
            table,
        });
        let past = watcher::remember(&shared, known);
        let stop = Stop::new();
        let tasks = vec![
            tokio::spawn(watcher::run(Arc::clone(&shared), source, past)),
            tokio::spawn(open::run(Arc::clone(&shared), stop.clone())),
            tokio::spawn(keep_alive(Arc::clone(&shared), stop.clone())),
            tokio::spawn(sync(Arc::clone(&shared), stop.clone())),
        ];
        Ok(Self { shared, stop, tasks })
    }

    /// Waits until the store's identities were listed once.
    pub async fn synced(&self) {
        self.shared.synced().await;
    }

    /// Whether the store's identities were listed once.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// The number of a label set, allocated if nobody has one yet. Each call takes a reference that
    /// [`Allocator::release`] gives back. `wanted` is taken if the label set has no number and it is free: the
    /// number from before a restart.
    ///
    /// # Errors
    /// When there are no labels, no number is left, or the store does not answer in time.
    pub async fn allocate(
        &self,
        labels: &Labels,
        wanted: Option<NumericIdentity>,
    ) -> Result<NumericIdentity, AllocateError> {
        if let Some(number) = self.shared.config.reserved.number(labels) {
            return Ok(number);
        }
        if labels.is_empty() {
            return Err(AllocateError::NoLabels);
        }
        let text = labels.to_kvstore();
        if let Some(number) = self.shared.state().reuse(&text) {
            return Ok(number);
        }
        let limit = self.shared.config.timeout;
        let allocation = protocol::allocate(&self.shared, labels, &text, wanted);
        let Some(patience) = self.shared.config.patience else {
            let timeout = || AllocateError::Timeout { labels: text.clone(), limit };
            return tokio::time::timeout(limit, allocation).await.unwrap_or_else(|_| Err(timeout()));
        };
        // A store that has not said yet what it knows may never do; while that is not taken in it is not waited for.
        let patience = if *self.shared.held.borrow() { Duration::ZERO } else { patience };
        let is_listed = tokio::time::timeout(patience, self.shared.synced()).await.is_ok();
        if !is_listed || self.shared.is_dark() {
            return open::assume(&self.shared, labels, &text, wanted);
        }
        let mut dark = self.shared.dark.subscribe();
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(limit, allocation) => outcome,
            // An error means that the sender is gone, which `self` prevents.
            _ = dark.wait_for(|dark| *dark) => return open::assume(&self.shared, labels, &text, wanted),
        };
        match outcome {
            Ok(Err(error @ AllocateError::Store { .. })) => {
                tracing::warn!(%error, "a label set gets a number without the store");
                if error.is_of_whole_store() {
                    self.shared.set_dark(true);
                }
                open::assume(&self.shared, labels, &text, wanted)
            }
            Ok(outcome) => outcome,
            Err(_) => open::assume(&self.shared, labels, &text, wanted),
        }
    }

    /// Takes a reference to a label set as [`Allocator::allocate`] does, without asking the store now: by `had`, the
    /// number from before a restart, if no other labels have that. The store confirms it or says another later.
    ///
    /// # Errors
    /// When there are no labels or no number is left.
    pub fn adopt(
        &self,
        labels: &Labels,
        had: Option<NumericIdentity>,
    ) -> Result<NumericIdentity, AllocateError> {
        if let Some(number) = self.shared.config.reserved.number(labels) {
            return Ok(number);
        }
        if labels.is_empty() {
            return Err(AllocateError::NoLabels);
        }
        open::assume(&self.shared, labels, &labels.to_kvstore(), had)
    }

    /// Says whether the store answers. While it does not, label sets get numbers without it.
    pub fn set_reachable(&self, reachable: bool) {
        self.shared.set_dark(!reachable);
    }

    /// Label sets of this node whose numbers the store has still to confirm.
    pub fn open(&self) -> Vec<OpenIdentity> {
        let open = self.shared.state().unconfirmed();
        open.into_iter().map(|(_, used)| OpenIdentity { labels: used.labels, number: used.number }).collect()
    }

    /// The number that this node uses for a label set now.
    pub fn number_in_use(&self, labels: &Labels) -> Option<NumericIdentity> {
        self.shared.state().number_of(&labels.to_kvstore())
    }

    /// Conditions of a transaction: the store says that `number` is the label set's, and that this process uses it. While
    /// they hold nobody collects the number.
    pub fn in_use(&self, labels: &Labels, number: NumericIdentity) -> [Compare; 2] {
        let text = labels.to_kvstore();
        let used = Compare::Value(self.shared.slave_key(&text), number.to_string().into());
        [Compare::Value(master_key(number), text.into()), used]
    }

    /// Changes whenever the store has confirmed or changed a number of this node.
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.shared.settled.subscribe()
    }

    /// Nobody on this node has these numbers any more: what the store says of them counts again. A number that
    /// [`Allocator::number_in_use`] has replaced is kept until then.
    pub fn forget_left(&self, is_used: impl Fn(NumericIdentity) -> bool) {
        let left: Vec<_> = self.shared.state().left.iter().copied().filter(|n| !is_used(*n)).collect();
        for number in left {
            self.shared.state().left.remove(&number);
            self.shared.unshadow(number);
        }
    }

    /// What should outlive the process: all identities that came from the store, but for [`Self::copied_rows`].
    pub fn rows(&self) -> Vec<(NumericIdentity, Labels)> {
        let first = NumericIdentity::ALLOCATED_MIN;
        let last = NumericIdentity(NumericIdentity::SCOPE_LOCAL);
        let rows = self.shared.table.snapshot();
        let state = self.shared.state();
        let rows = rows.range(first..last).filter(|(number, _)| !state.is_copy(**number));
        rows.map(|(number, labels)| (*number, labels.clone())).collect()
    }

    /// Whether a number that is in the table now is one of [`Self::rows`].
    pub fn outlives(&self, number: NumericIdentity) -> bool {
        let range = NumericIdentity::ALLOCATED_MIN.0..NumericIdentity::SCOPE_LOCAL;
        range.contains(&number.0) && !self.shared.state().is_copy(number)
    }

    /// While it is held the table does not follow the store; what was missed is made up afterwards.
    pub fn hold(&self, hold: bool) {
        self.shared.held.send_replace(hold);
    }

    /// Compares what this node uses with the store at once, in the background.
    pub fn compare_now(&self) {
        self.shared.compare.notify_one();
    }

    /// Gives a reference back. With the last one this node's slave key goes; the number itself stays until
    /// [`crate::Gc`] finds it unused. Returns whether it was the last one.
    ///
    /// # Errors
    /// When the store is not there: the reference is given back all the same, and the key goes when it is.
    pub async fn release(&self, labels: &Labels) -> Result<bool, StoreError> {
        if self.shared.config.reserved.number(labels).is_some() {
            return Ok(false);
        }
        protocol::release(&self.shared, &labels.to_kvstore()).await
    }

    /// References that this node holds to a label set.
    pub fn references(&self, labels: &Labels) -> u32 {
        self.shared.state().references(&labels.to_kvstore())
    }

    /// The number of a label set, if this node knows one. Takes no reference.
    pub fn lookup(&self, labels: &Labels) -> Option<NumericIdentity> {
        let reserved = self.shared.config.reserved.number(labels);
        reserved.or_else(|| self.shared.state().known(&labels.to_kvstore(), labels))
    }

    /// Where is counted which numbers addresses under leases have. A number that one has keeps its labels when its master
    /// key is deleted, until no such address is left.
    pub fn leased(&self) -> Leased {
        self.shared.leased.clone()
    }

    /// The numbers of this cluster.
    pub fn range(&self) -> RangeInclusive<u32> {
        self.shared.range.clone()
    }

    /// How full the cluster's range is.
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }

    /// Writes again what this node uses and the store lost, and deletes what could not be deleted when it was
    /// released. Runs by itself every [`AllocatorConfig::sync_interval`].
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn reassert(&self) -> Result<u64, StoreError> {
        protocol::reassert(&self.shared).await
    }

    /// Gives back all that this process uses, whatever references there are: its keys go at once, not when their leases
    /// end.
    ///
    /// # Errors
    /// When the store is not there; the keys go with their leases.
    pub async fn end(&self) -> Result<(), StoreError> {
        self.stop.stop();
        self.shared.session.end().await
    }

    /// Keeps the leases alive at once. Runs by itself.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        self.shared.session.keep_alive().await
    }

    /// Why the store does not permit this node to read the identities, if it does not. What is known of them goes on
    /// counting.
    pub fn unread(&self) -> Option<String> {
        self.shared.state().unread.clone()
    }

    /// Entries of the store that could not be read and were left out, by key.
    pub fn refused(&self) -> Vec<(String, String)> {
        self.shared.state().refused()
    }

    /// How many values were refused so far.
    pub fn refused_total(&self) -> u64 {
        self.shared.state().refused_total()
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        self.stop.stop();
        for task in &self.tasks {
            task.abort();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    fn is_dark(&self) -> bool {
        *self.dark.borrow()
    }

    fn set_dark(&self, dark: bool) {
        if self.dark.send_replace(dark) && !dark {
            self.opened.notify_one();
        }
    }

    /// A number that nobody on this node has any more: its row is what the store says.
    fn unshadow(&self, number: NumericIdentity) {
        let labels = {
            let mut state = self.state();
            if state.left.contains(&number) || state.user_of(number).is_some() {
                return;
            }
            state.shadowed.remove(&number)
        };
        if let Some(labels) = labels {
            self.state().add_master(&labels, number);
            self.table.put(number, labels);
        } else if number.is_interim() {
            self.table.delete(&number);
        }
    }

    fn usage(&self) -> Usage {
        let (first, last) = (NumericIdentity(*self.range.start()), NumericIdentity(*self.range.end()));
        let used = self.table.snapshot().range(first..=last).count() as u64;
        Usage { used, total: u64::from(last.0 - first.0) + 1 }
    }

    fn slave_key(&self, labels: &str) -> String {
        use_key(labels, &self.config.node)
    }
}

/// The key that says which labels a number has.
pub fn master_key(number: NumericIdentity) -> String {
    format!("{}/{number}", keys::IDENTITY_IDS)
}

/// The key by which `user` says that it uses the number of a label string. A user is a node's address, or anything else
/// without a `/`.
pub fn use_key(labels: &str, user: &str) -> String {
    slave_prefix(labels) + user
}

/// Not joined by [`keys::join_key`]: a label string is taken as it is, repeated slashes included.
pub(crate) fn slave_prefix(labels: &str) -> String {
    format!("{}/{labels}/", keys::IDENTITY_VALUES)
}

pub(crate) fn lock_name(labels: &str) -> String {
    format!("{}/{labels}.lock", keys::IDENTITY_LOCKS)
}

async fn keep_alive(shared: Arc<Shared>, stop: Stop) {
    shared.session.run(&stop, shared.config.pace.size()).await;
}

async fn sync(shared: Arc<Shared>, stop: Stop) {
    let mut failures = 0;
    let mut chance = fastrand::Rng::new();
    loop {
        let wait = match failures {
            0 => shared.config.pace.size().interval(shared.config.sync_interval),
            n => shared.config.pace.delay(n, &mut chance),
        };
        tokio::select! {
            () = stop.stopped() => return,
            () = tokio::time::sleep(wait) => {}
            () = shared.compare.notified() => {}
        }
        watcher::forget_stale(&shared);
        copies::forget_stale(&shared);
        match protocol::reassert(&shared).await {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "identities could not be compared with the store");
            }
        }
    }
}
