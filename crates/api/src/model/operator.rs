//! How an operator is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::State;

/// Answer of `GET /operator` on the operator's own socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OperatorStatus {
    /// Its name among the candidates.
    pub name: String,
    /// The cluster that it works for.
    pub cluster: String,
    /// It leads: only then it does anything.
    pub leads: bool,
    /// Who leads; empty while nobody is known to.
    pub leader: String,
    /// When it began to lead, or ended; RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// How often it was elected.
    pub terms: u64,
    /// The store.
    pub store: State,
    /// When the heartbeat was last written; RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub heartbeat: String,
    /// Garbage collection of identities.
    pub collection: OperatorCollection,
    /// External resources.
    pub external: OperatorExternal,
}

/// How the cluster's external resources are, all counts since the operator's start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OperatorExternal {
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
    /// Identities that no resource uses any more and that were given up.
    pub unused: u64,
    /// Resources that can't be as they are recorded, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub broken: BTreeMap<String, String>,
    /// When all of them were last compared with the store; RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub compared: String,
    /// Why they could not be kept in order last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// What collecting identities came to, all counts since the operator's start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OperatorCollection {
    /// When the last pass ended; RFC 3339.
    pub time: String,
    /// Passes that came to their end.
    pub passes: u64,
    /// Passes that did not.
    pub failures: u64,
    /// Why the last pass did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// Identities in use, as of the last pass.
    pub used: u64,
    /// Identities that the last pass was the first to find unused.
    pub marked: u64,
    /// Identities found unused before too, whose grace (`identity-gc-grace`) is not over.
    pub waiting: u64,
    /// Identities that the last pass deleted.
    pub deleted: u64,
    /// Identities that it left to the next.
    pub deferred: u64,
    /// Identities of other clusters' ranges, and what cannot be read.
    pub skipped: u64,
    /// Identities deleted.
    pub deleted_total: u64,
}
