//! The store that nodes share, as this agent uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use villus_config::Config;
use villus_identity::{Clusters, Publisher, PublisherConfig};
use villus_kvstore::{
    ClusterConfig, ClusterSize, Etcd, EtcdOptions, Guard, Header, NodeEntry, Pace, Status, Store, Witness,
    keys,
};
use villus_labels::MaxConnectedClusters;
use villus_table::{Backoff, Stop};

use super::calendar::Beat;
use crate::AgentError;

/// Between two failures in a row, of a cluster of one node.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Bytes that a time has at most.
const BEAT: usize = 64;

/// The store that nodes share. It need not be there.
pub(crate) struct SharedStore {
    pub etcd: Etcd,
    pub guard: Arc<Guard>,
    /// It, as all parts use it.
    pub store: Arc<dyn Store>,
    pub size: ClusterSize,
    pub pace: Pace,
    pub publisher: Arc<Publisher>,
    /// What other clusters say of themselves.
    pub others: Clusters,
    /// What was seen of the store before the start.
    pub seen: Option<Header>,
    pub stop: Stop,
    health: Mutex<Health>,
    /// The newest write that was seen.
    witness: Mutex<Option<Witness>>,
}

/// How the store was when it was last looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    pub status: Option<Status>,
    /// Since when it does not answer.
    pub down_since: Option<Instant>,
    /// Looks that failed, all together.
    pub quorum_errors: u64,
    /// The store's heartbeat, if there is one.
    pub beat: Option<Beat>,
}

impl SharedStore {
    /// As the options say; nothing is asked yet. `None` where each node has a store of its own.
    ///
    /// # Errors
    /// Options that cannot be used.
    pub fn open(
        config: &Config,
        node: &str,
        seen: Option<Header>,
        witness: Option<Witness>,
    ) -> Result<Option<Self>, AgentError> {
        if !config.kvstore.etcd {
            return Ok(None);
        }
        let wrong = |reason: String| AgentError::Option { option: "kvstore-opt", reason };
        let options = EtcdOptions::read(&config.kvstore.options).map_err(|error| wrong(error.to_string()))?;
        let cluster = &config.node.cluster_name;
        let cluster_config = ClusterConfig::new(config.node.cluster_id, config.node.max_connected_clusters);
        let guard = Arc::new(Guard::new(cluster, cluster_config));
        let etcd = Etcd::guarded(options, Arc::clone(&guard)).map_err(|error| wrong(error.to_string()))?;
        let store: Arc<dyn Store> = Arc::new(etcd.clone());
        let size = ClusterSize::default();
        let backoff =
            Backoff::try_new(FIRST_WAIT, LONGEST_WAIT, 0.5).map_err(|error| wrong(error.to_string()))?;
        let pace = Pace::new(backoff, size.clone());
        let settings = PublisherConfig {
            cluster: cluster.clone(),
            cluster_config,
            last: NodeEntry::new(cluster, node).key(),
            lease_ttl: config.kvstore.lease_ttl,
            sync_interval: config.kvstore.sync_interval,
            pace: pace.clone(),
        };
        let publisher = Arc::new(Publisher::new(store.clone(), settings));
        let numbering =
            MaxConnectedClusters::from_number(config.node.max_connected_clusters).map_err(|error| {
                AgentError::Option { option: "max-connected-clusters", reason: error.to_string() }
            })?;
        let others = Clusters::new(cluster, config.node.cluster_id, numbering);
        let (health, stop, witness) = (Mutex::default(), Stop::new(), Mutex::new(witness));
        Ok(Some(Self { etcd, guard, store, size, pace, publisher, others, seen, stop, health, witness }))
    }

    /// How it was when it was last looked at.
    pub fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at it.
    pub async fn look(&self) -> Health {
        let status = self.store.status().await;
        let beat = match status.healthy {
            true => self.store.get(keys::HEARTBEAT).await.ok().flatten(),
            false => None,
        };
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if status.healthy {
            health.down_since = None;
        } else {
            health.down_since.get_or_insert_with(Instant::now);
            health.quorum_errors += 1;
        }
        health.status = Some(status);
        health.beat = beat.map(|entry| Beat {
            revision: entry.mod_revision,
            text: String::from_utf8_lossy(entry.value.get(..BEAT).unwrap_or(&entry.value)).into_owned(),
        });
        health.clone()
    }

    /// The newest write that was seen.
    pub fn witness(&self) -> Option<Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A write was seen; `anew` in a store with another past.
    pub fn note_witness(&self, seen: Option<&Witness>, anew: bool) {
        let Some(seen) = seen else { return };
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        if anew || witness.as_ref().is_none_or(|known| known.revision < seen.revision) {
            *witness = Some(seen.clone());
        }
    }

    /// What was seen last of the store.
    pub fn header(&self) -> Option<Header> {
        let seen = self.health().status.map(|status| status.header);
        seen.filter(|header| header.revision > 0).or(self.seen)
    }
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.stop.stop();
    }
}
