//! Nodes of the cluster, and an agent that stands still.

use serde::{Deserialize, Serialize};

use super::is_default;

/// A node of the cluster, or of another.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ClusterNode {
    /// `<cluster>/<node>`.
    pub name: String,
    /// Whether it is the node that answers.
    #[serde(skip_serializing_if = "is_default")]
    pub local: bool,
    /// The addresses by which other nodes reach it.
    pub addresses: Vec<String>,
    /// The prefixes that its endpoints have addresses of.
    pub ranges: Vec<String>,
    /// Who told of it.
    pub source: String,
    /// Since when nobody stands behind it any more, RFC 3339; empty if somebody does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub silent_since: String,
}

/// Query of `DELETE /villus/nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeForget {
    /// `<node>` of this cluster, or `<cluster>/<node>`.
    pub name: String,
    /// Also if its key is still in the store.
    #[serde(skip_serializing_if = "is_default")]
    pub force: bool,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// Answer of `DELETE /villus/nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct NodeForgotten {
    /// The node.
    pub name: String,
    /// Its keys, which are gone from the store.
    pub keys: Vec<String>,
    /// In a dry run, what is known of each key: a silent node's are not in the store any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Leases that were ended.
    pub leases: u64,
}

/// Body of `PUT /villus/freeze`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FreezeRequest {
    /// Why, for those who wonder.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
