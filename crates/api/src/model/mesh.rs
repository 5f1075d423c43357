//! Other clusters, as an agent that reads their stores itself knows them.

use serde::{Deserialize, Serialize};

/// `cluster-mesh` of `GET /healthz`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ClusterMeshStatus {
    /// The clusters, by name.
    pub clusters: Vec<RemoteCluster>,
    /// Services that several clusters have.
    pub num_global_services: u64,
}

/// One cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RemoteCluster {
    /// Its name.
    pub name: String,
    /// Connected, its configuration read, and all of it known.
    pub ready: bool,
    /// Whether its store answers.
    pub connected: bool,
    /// What its store says; why it is not connected, if it is refused.
    pub status: String,
    /// Its nodes.
    pub num_nodes: u64,
    /// Its services.
    pub num_shared_services: u64,
    /// Its identities.
    pub num_identities: u64,
    /// Its addresses.
    pub num_endpoints: u64,
    /// Times that contact was lost.
    pub num_failures: u64,
    /// When it last was, RFC 3339; not there if it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// What it says of itself.
    pub config: RemoteClusterConfig,
    /// What of it is known completely.
    pub synced: RemoteClusterSynced,
}

/// What a cluster says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RemoteClusterConfig {
    /// Whether it must say something.
    pub required: bool,
    /// Whether that was read.
    pub retrieved: bool,
    /// Its id.
    pub cluster_id: u32,
    /// Whether its store is itself a copy.
    pub kvstoremesh: bool,
    /// Whether it says when it has written everything.
    pub sync_canaries: bool,
}

/// What of a cluster is known completely.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RemoteClusterSynced {
    /// Its nodes.
    pub nodes: bool,
    /// Its services; true where they are not asked for.
    pub services: bool,
    /// Its identities.
    pub identities: bool,
    /// Its addresses.
    pub endpoints: bool,
}
