//! Identities of this node: those of workloads through the store, those of prefixes, and the table of all.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use villus_config::Config;
use villus_identity::{
    AllocateError, Allocator, AllocatorConfig, Gc, Identities, LocalIdentities, Reserved, new_identities,
};
use villus_kvstore::{Embedded, Store};
use villus_labels::{IdentityError, Labels, MaxConnectedClusters, NumericIdentity};
use villus_table::Backoff;

use crate::AgentError;
use crate::state::StateDir;

const STORE: &str = "store.redb";
const PREFIXES: &str = "local-identities.json";
/// How long the number of a prefix that no policy names rests before another prefix may get it.
const LOCAL_REST: Duration = Duration::from_secs(600);

/// Everything that gives numbers to labels.
pub(crate) struct IdentityRoom {
    pub table: Identities,
    pub local: LocalIdentities,
    pub allocator: Allocator,
    /// Numbers that no node uses any more.
    pub garbage: tokio::sync::Mutex<Gc>,
    /// What was wrong with files.
    pub problems: Vec<String>,
}

impl IdentityRoom {
    /// Opens the embedded store and follows it. Must be called inside a runtime.
    pub fn open(config: &Config, state: &StateDir, node: &str) -> Result<Self, AgentError> {
        let mut problems = Vec::new();
        let opened =
            Embedded::open(&state.path(STORE)).map_err(|error| AgentError::Store(error.to_string()))?;
        if let Some((kept, reason)) = opened.damaged {
            problems.push(format!(
                "the store of identities was damaged ({reason}) and lies in {}",
                kept.display()
            ));
        }
        let store: Arc<dyn Store> = Arc::new(opened.store);
        let reserved = Reserved::new();
        let table = new_identities(&reserved);
        let local = LocalIdentities::new(table.clone(), LOCAL_REST);
        match local.load(&state.path(PREFIXES)) {
            Ok(None) => {}
            Ok(Some((kept, reason))) => {
                problems.push(format!(
                    "the numbers of prefixes were damaged ({reason}) and lie in {}",
                    kept.display()
                ));
            }
            Err(error) => problems.push(error.to_string()),
        }
        let settings = allocator_config(config, node, reserved)?;
        let wrong =
            |error: IdentityError| AgentError::Option { option: "cluster-id", reason: error.to_string() };
        let range = settings.clusters.range(settings.cluster_id).map_err(wrong)?;
        let garbage = tokio::sync::Mutex::new(Gc::new(store.clone(), range, settings.lock_patience));
        let allocator = Allocator::start(store, settings, table.clone()).map_err(wrong)?;
        Ok(Self { table, local, allocator, garbage, problems })
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

    /// Gives back what [`Self::allocate`] gave. When the store does not answer the key goes later.
    pub async fn release(&self, labels: &Labels) {
        if labels.is_empty() {
            return;
        }
        if let Err(error) = self.allocator.release(labels).await {
            tracing::warn!(%error, %labels, "an identity is given back later");
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

    /// Writes the numbers of prefixes down, if they changed.
    pub fn save(&self, state: &StateDir) {
        if let Err(error) = self.local.save(Path::new(&state.path(PREFIXES))) {
            tracing::error!(%error, "the numbers of prefixes cannot be written down");
        }
    }

    /// The labels of a number.
    pub fn labels_of(&self, identity: NumericIdentity) -> Option<Labels> {
        self.table.snapshot().get(&identity).cloned()
    }
}

fn allocator_config(config: &Config, node: &str, reserved: Reserved) -> Result<AllocatorConfig, AgentError> {
    let wrong = |option, reason: String| AgentError::Option { option, reason };
    let clusters = MaxConnectedClusters::from_number(config.node.max_connected_clusters)
        .map_err(|error| wrong("max-connected-clusters", error.to_string()))?;
    let backoff = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(30), 0.5)
        .map_err(|error| wrong("identity-allocation-timeout", error.to_string()))?;
    Ok(AllocatorConfig {
        cluster_id: config.node.cluster_id,
        clusters,
        node: node.to_owned(),
        lease_ttl: Duration::from_secs(900),
        lock_patience: Duration::from_secs(10),
        timeout: Duration::from_secs(120),
        attempts: 8,
        backoff,
        sync_interval: Duration::from_secs(300),
        reserved,
    })
}
