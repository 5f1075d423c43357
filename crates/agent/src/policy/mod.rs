//! Policies: where they come from, and how they reach the policy maps.

mod audit;
mod change;
mod cluster;
mod cluster_gate;
mod cluster_kept;
mod deciders;
mod directory;
mod follow;
mod half;
mod impact;
mod import;
mod notes;
mod regenerate;
mod rejudge;
mod waiting;

use std::collections::BTreeMap;
use std::path::PathBuf;

use villus_config::Config;
use villus_config::config::{AllowLocalhost, Enforcement};
use villus_datapath::ROOM;
use villus_labels::{KEY_CLUSTER, Label, source};
use villus_policy::{EnforcementMode, Settings};

use crate::AgentError;

pub(crate) use audit::Selected;
pub(crate) use cluster::ClusterPolicies;
pub(crate) use cluster_kept::Seen;
pub(crate) use deciders::Answers;
pub(crate) use directory::Watcher;
pub(crate) use import::parse_import;
pub(crate) use waiting::Waiting;

/// Origin of policies that came by the API.
pub(crate) const API: &str = "api";

/// Where policies come from, and what was last found there.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// `static-cnp-path`.
    pub directory: Option<PathBuf>,
    /// Files of the directory with what was last read of them.
    pub files: BTreeMap<PathBuf, FileState>,
    /// Versions of files that may be half written, which wait.
    pub halves: BTreeMap<PathBuf, half::Half>,
    /// Every source was read once completely.
    pub complete: bool,
}

/// What was last found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileState {
    /// Its text, as a hash.
    pub fingerprint: u64,
    /// Which file it was.
    pub id: half::FileId,
    /// What is wrong with it; its last good version is in force.
    pub problem: Option<String>,
    /// What its author may want to know.
    pub warnings: Vec<String>,
}

/// Whether this process runs in a pod: Kubernetes tells every container where its API is.
fn is_in_kubernetes() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// What options make of policies.
///
/// # Errors
/// [`AgentError::Option`] for a cluster name that can't be a label's value.
pub fn settings(config: &Config, enforcement: Enforcement) -> Result<Settings, AgentError> {
    let mut settings = Settings::new(&config.node.cluster_name)
        .map_err(|error| AgentError::Option { option: "cluster-name", reason: error.to_string() })?;
    settings.mode = match enforcement {
        Enforcement::Default => EnforcementMode::Default,
        Enforcement::Always => EnforcementMode::Always,
        Enforcement::Never => EnforcementMode::Never,
    };
    settings.allow_localhost = match config.policy.allow_localhost {
        AllowLocalhost::Always => true,
        AllowLocalhost::Policy => false,
        // Its nodes probe their pods.
        AllowLocalhost::Auto => is_in_kubernetes(),
    };
    settings.max_entries = (config.datapath.policy_map_max as usize).saturating_sub(ROOM);
    settings.host_is_workload = config.policy.host_only;
    settings.default_local_cluster = config.policy.default_local_cluster;
    settings.cluster = Label::new(source::K8S, KEY_CLUSTER, &config.node.cluster_name)
        .map_err(|error| AgentError::Option { option: "cluster-name", reason: error.to_string() })?;
    Ok(settings)
}
