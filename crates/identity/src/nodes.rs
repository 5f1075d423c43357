//! The table of all nodes that this node knows, itself among them.

use std::{fmt, sync::Arc, time::SystemTime};

use villus_kvstore::NodeEntry;
use villus_table::Table;

use crate::ipcache::Rank;

/// Cluster and name to node. Routes, tunnels and the checks of what other nodes send follow from it.
pub type Nodes = Table<NodeName, Node>;

/// What tells a node from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its name within the cluster.
    pub name: Arc<str>,
}

/// A node as its last word says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it says of itself: addresses, prefixes of its endpoints, labels.
    pub entry: Arc<NodeEntry>,
    /// Who told: [`Rank::Local`] for this node itself.
    pub rank: Rank,
    /// Since when nobody stands behind it any more; it goes on counting until it is forgotten.
    pub stale: Option<SystemTime>,
}

/// A table without any node.
pub fn new_nodes() -> Nodes {
    Table::new("nodes")
}

// === impl NodeName ===

impl NodeName {
    /// From its parts.
    pub fn new(cluster: &str, name: &str) -> Self {
        Self { cluster: cluster.into(), name: name.into() }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.name)
    }
}

// === impl Node ===

impl Node {
    /// A node of which somebody has just told.
    pub fn new(entry: NodeEntry, rank: Rank) -> Self {
        Self { entry: Arc::new(entry), rank, stale: None }
    }

    /// Its key in the table.
    pub fn name(&self) -> NodeName {
        NodeName::new(&self.entry.cluster, &self.entry.name)
    }

    /// Whether it is this node itself.
    pub fn is_local(&self) -> bool {
        self.rank == Rank::Local
    }
}
