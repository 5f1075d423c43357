//! Identities of this node: those of workloads through the store, those of prefixes, and the table of all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use villus_config::Config;
use villus_identity::{
    AllocateError, Allocator, AllocatorConfig, Gc, Identities, KnownIdentities, LocalIdentities,
    NodeIdentities, Numbered, Reserved, new_identities,
};
use villus_kvstore::{Embedded, Store};
use villus_labels::{IdentityError, Labels, MaxConnectedClusters, NumericIdentity};
use villus_table::Backoff;

use crate::AgentError;
use crate::cluster::SharedStore;
use crate::state::StateDir;

const STORE: &str = "store.redb";
const PREFIXES: &str = "local-identities.json";
const NODES: &str = "node-identities.json";
/// How long the number of a prefix that no policy names, or of a node that is gone, rests before another may get it.
const LOCAL_REST: Duration = Duration::from_secs(600);
/// How long an attempt waits for the lock of a label set, and how often an allocation is tried: as Cilium's agents do
/// (reference `kvstore` 1.8). A lock whose holder died is free after 25 s.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 16;
/// How long a shared store that fails is waited for before an endpoint begins without it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Everything that gives numbers to labels.
pub(crate) struct IdentityRoom {
    pub table: Identities,
    pub local: LocalIdentities,
    /// Of other nodes, where policy tells them apart.
    pub nodes: Arc<NodeIdentities>,
    pub allocator: Arc<Allocator>,
    /// The store that nodes share; none where this node has one of its own.
    pub shared: Option<Arc<SharedStore>>,
    /// Numbers that no node uses any more, in a store of this node's own; in a shared one the operator looks for them.
    pub garbage: Option<tokio::sync::Mutex<Gc>>,
    /// What was wrong with files.
    pub problems: Vec<String>,
}

impl IdentityRoom {
    /// Opens the embedded store, if there is none that is shared, and follows it. Must be called inside a runtime.
    pub fn open(
        config: &Config,
        state: &StateDir,
        node: &str,
        shared: Option<Arc<SharedStore>>,
        known: KnownIdentities,
    ) -> Result<Self, AgentError> {
        let mut problems = Vec::new();
        let store = match &shared {
            Some(shared) => shared.store.clone(),
            None => own_store(state, &mut problems)?,
        };
        let reserved = reserved(config)?;
        let table = new_identities(&reserved);
        let local = LocalIdentities::new(table.clone(), LOCAL_REST);
        load(&local, state, PREFIXES, "the numbers of prefixes", &mut problems);
        let nodes = NodeIdentities::new(table.clone(), LOCAL_REST);
        load(&nodes, state, NODES, "the numbers of nodes", &mut problems);
        let settings = allocator_config(config, node, reserved, shared.as_deref())?;
        let wrong =
            |error: IdentityError| AgentError::Option { option: "cluster-id", reason: error.to_string() };
        let range = settings.clusters.range(settings.cluster_id).map_err(wrong)?;
        let garbage = shared
            .is_none()
            .then(|| tokio::sync::Mutex::new(Gc::new(store.clone(), range, settings.lock_patience)));
        let allocator = Allocator::resume(store, settings, table.clone(), known).map_err(wrong)?;
        let nodes = Arc::new(nodes);
        Ok(Self { table, local, nodes, allocator: Arc::new(allocator), shared, garbage, problems })
    }

    /// The number of a workload's identity-relevant labels; `init` where there are none.
    pub async fn allocate(
        &self,
        labels: &Labels,
        wanted: Option<NumericIdentity>,
    ) -> Result<NumericIdentity, AllocateError> {
        if labels.is_empty() {
            return Ok(NumericIdentity::INIT);
        }
        self.allocator.allocate(labels, wanted).await
    }

    /// The identity of an endpoint of before the start. A store that is shared is not waited for.
    pub async fn take_over(
        &self,
        labels: &Labels,
        had: NumericIdentity,
    ) -> Result<NumericIdentity, AllocateError> {
        if self.shared.is_none() || labels.is_empty() {
            return self.allocate(labels, Some(had)).await;
        }
        self.allocator.adopt(labels, Some(had))
    }

    /// Gives back what [`Self::allocate`] gave. When the store does not answer the key goes later; a shared one is not
    /// waited for.
    pub async fn release(&self, labels: &Labels) {
        if labels.is_empty() {
            return;
        }
        let (allocator, labels) = (self.allocator.clone(), labels.clone());
        let work = async move {
            if let Err(error) = allocator.release(&labels).await {
                tracing::warn!(%error, %labels, "an identity is given back later");
            }
        };
        match self.shared {
            Some(_) => drop(tokio::spawn(work)),
            None => work.await,
        }
    }

    /// The number of a prefix, made if it has none; each call takes a reference.
    pub fn acquire_prefix(&self, prefix: IpNet) -> Result<NumericIdentity, villus_identity::LocalError> {
        match NumericIdentity::of_prefix(prefix) {
            Some(world) => Ok(world),
            None => self.local.acquire(prefix, Instant::now()),
        }
    }

    /// Gives a reference to a prefix's number back.
    pub fn release_prefix(&self, prefix: IpNet) {
        if NumericIdentity::of_prefix(prefix).is_none() {
            self.local.release(prefix, Instant::now());
        }
    }

    /// Writes the numbers of prefixes and nodes down, if they changed.
    pub fn save(&self, state: &StateDir) {
        for (what, result) in [
            ("prefixes", self.local.save(&state.path(PREFIXES))),
            ("nodes", self.nodes.save(&state.path(NODES))),
        ] {
            if let Err(error) = result {
                tracing::error!(%error, "the numbers of {what} cannot be written down");
            }
        }
    }

    /// Numbers of before the start that nothing came back for are given up.
    pub fn end_restore(&self, now: Instant) {
        self.local.end_restore(now);
        self.nodes.end_restore(now);
    }

    /// The labels of a number.
    pub fn labels_of(&self, identity: NumericIdentity) -> Option<Labels> {
        self.table.snapshot().get(&identity).cloned()
    }
}

/// Takes up numbers of before the start; says what was wrong with their file.
fn load<K: Numbered>(
    numbers: &LocalIdentities<K>,
    state: &StateDir,
    file: &str,
    what: &str,
    problems: &mut Vec<String>,
) {
    match numbers.load(&state.path(file)) {
        Ok(None) => {}
        Ok(Some((kept, reason))) => {
            problems.push(format!("{what} were damaged ({reason}) and lie in {}", kept.display()));
        }
        Err(error) => problems.push(error.to_string()),
    }
}

fn own_store(state: &StateDir, problems: &mut Vec<String>) -> Result<Arc<dyn Store>, AgentError> {
    let opened = Embedded::open(&state.path(STORE)).map_err(|error| AgentError::Store(error.to_string()))?;
    if let Some((kept, reason)) = opened.damaged {
        let kept = kept.display();
        problems.push(format!("the store of identities was damaged ({reason}) and lies in {kept}"));
    }
    Ok(Arc::new(opened.store))
}

/// The identities that nobody allocates.
fn reserved(config: &Config) -> Result<Reserved, AgentError> {
    let identity = &config.identity;
    let wrong = |option, reason: String| AgentError::Option { option, reason };
    let mut reserved = Reserved::new();
    if identity.well_known {
        reserved = reserved
            .with_well_known(&config.node.cluster_name, &identity.operator_namespace)
            .map_err(|error| wrong("k8s-namespace", error.to_string()))?;
    }
    reserved
        .with_mapping(identity.fixed.iter().map(|(number, name)| (number.as_str(), name.as_str())))
        .map_err(|error| wrong("fixed-identity-mapping", error.to_string()))
}

fn allocator_config(
    config: &Config,
    node: &str,
    reserved: Reserved,
    shared: Option<&SharedStore>,
) -> Result<AllocatorConfig, AgentError> {
    let wrong = |option, reason: String| AgentError::Option { option, reason };
    let clusters = MaxConnectedClusters::from_number(config.node.max_connected_clusters)
        .map_err(|error| wrong("max-connected-clusters", error.to_string()))?;
    let backoff = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(30), 0.5)
        .map_err(|error| wrong("identity-allocation-timeout", error.to_string()))?;
    Ok(AllocatorConfig {
        cluster_id: config.node.cluster_id,
        clusters,
        node: node.to_owned(),
        // Nobody else looks at a store of this node's own.
        lease_ttl: shared.map_or(Duration::from_secs(900), |_| config.kvstore.lease_ttl),
        lock_patience: LOCK_PATIENCE,
        timeout: config.kvstore.allocation_timeout,
        attempts: ATTEMPTS,
        pace: shared.map_or(backoff.into(), |shared| shared.pace.clone()),
        patience: shared.map(|_| PATIENCE),
        stale_grace: config.kvstore.stale_grace,
        sync_interval: config.kvstore.sync_interval,
        reserved,
        others: shared.map(|shared| shared.others.clone()).unwrap_or_default(),
    })
}
