//! Kernel maps and metrics as the agent knows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_default;

/// The maps that the agent keeps.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BpfMapList {
    /// The maps, without their entries.
    pub maps: Vec<BpfMap>,
}

/// A map and what it should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct BpfMap {
    /// Pin below the bpffs.
    pub path: String,
    /// What it should hold, and whether it does; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Vec<BpfMapEntry>>,
    /// Entries it should hold.
    pub entries: u64,
    /// Entries it can hold.
    pub max_entries: u64,
    /// Entries that could not be written.
    #[serde(skip_serializing_if = "is_default")]
    pub errors: u64,
}

impl BpfMap {
    /// The map's name: the last part of its path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// An entry of a map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct BpfMapEntry {
    /// The key's text.
    pub key: String,
    /// The value's text.
    pub value: String,
    /// `ok`, `insert` or `delete`: what is still to be done.
    pub desired_action: String,
    /// Why it could not be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_error: String,
}

/// One value of one metric.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricValue {
    /// Name with its prefix.
    pub name: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}
