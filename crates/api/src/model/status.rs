//! How the agent is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use villus_print::StatusLine;

use super::{ClusterMeshStatus, is_default};

/// Query of `GET /healthz`; the header `brief: true` says the same.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusQuery {
    /// Only what a probe needs.
    #[serde(skip_serializing_if = "is_default")]
    pub brief: bool,
}

/// Answer of `GET /healthz`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct StatusResponse {
    /// The agent itself; the message is its version.
    pub cilium: State,
    /// The key-value store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvstore: Option<State>,
    /// Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<State>,
    /// The container runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<State>,
    /// Addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<IpamStatus>,
    /// Other clusters whose stores the agent reads itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_mesh: Option<ClusterMeshStatus>,
    /// Events.
    #[serde(rename = "nodeMonitor", skip_serializing_if = "Option::is_none")]
    pub node_monitor: Option<MonitorStatus>,
    /// `tcx` or `tc`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub attach_mode: String,
    /// Probes that have not answered for long, and since when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stale: BTreeMap<String, String>,
}

impl StatusResponse {
    /// Whether nothing has failed.
    #[must_use]
    pub fn healthy(&self) -> bool {
        [Some(&self.cilium), self.kvstore.as_ref(), self.kubernetes.as_ref(), self.container_runtime.as_ref()]
            .into_iter()
            .flatten()
            .all(|part| part.state != ServiceState::Failure)
    }
}

/// State of a part.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How it is.
    pub state: ServiceState,
    /// More about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

/// How a part is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the field's")]
pub enum ServiceState {
    Ok,
    Warning,
    Failure,
    #[default]
    Disabled,
}

/// Addresses of this node's pools.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamStatus {
    /// Address to owner.
    pub allocations: BTreeMap<String, String>,
    /// IPv4 addresses in use.
    pub ipv4: Vec<String>,
    /// IPv6 addresses in use.
    pub ipv6: Vec<String>,
    /// In words: `IPv4: 3/254 allocated from 10.15.0.0/24`.
    pub status: String,
}

/// Events of the packet path.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorStatus {
    /// CPUs.
    pub cpus: u32,
    /// Pages of the ring.
    pub npages: u32,
    /// Bytes of a page.
    pub pagesize: u32,
    /// Events lost.
    #[serde(skip_serializing_if = "is_default")]
    pub lost: u64,
    /// Records that were no events.
    #[serde(skip_serializing_if = "is_default")]
    pub unknown: u64,
}

/// Answer of `GET /villus/status`: all that `villus status --verbose` prints.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct StatusDetails {
    /// Version of the agent.
    pub version: String,
    /// Seconds since its start.
    pub uptime: u64,
    /// The lines of `villus status`, in order.
    pub lines: Vec<StatusLine>,
    /// What is not as it should be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// What the kernel offers, and whether it is used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// What.
    pub message: String,
    /// The line that mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

/// A feature of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// It is used.
    pub used: bool,
    /// Why not, or what for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
