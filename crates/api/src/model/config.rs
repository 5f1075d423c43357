//! The agent's configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The configuration: what can be changed while the agent runs, and all of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonConfiguration {
    /// What can be changed.
    pub spec: DaemonConfigurationSpec,
    /// How it is.
    pub status: DaemonConfigurationStatus,
}

/// What can be changed while the agent runs; also the body of `PATCH /config`, which changes what it names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct DaemonConfigurationSpec {
    /// Options by Cilium's runtime names, for example `PolicyAuditMode`, `MonitorAggregationLevel`.
    pub options: BTreeMap<String, String>,
    /// `default`, `always` or `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_enforcement: Option<String>,
}

/// How the configuration is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonConfigurationStatus {
    /// The spec that is in effect.
    pub realized: DaemonConfigurationSpec,
    /// Every option with its value.
    #[serde(rename = "daemonConfigurationMap")]
    pub options: BTreeMap<String, serde_json::Value>,
    /// Where an option's value comes from, for those that are not defaults: a file, a flag, the environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// MTU of endpoints' devices.
    #[serde(rename = "deviceMTU")]
    pub device_mtu: u32,
    /// MTU of routes.
    #[serde(rename = "routeMTU")]
    pub route_mtu: u32,
    /// Options that were given and have no effect, each with why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
