//! Options that change what policies mean.

use serde::Serialize;
use villus_labels::{KEY_CLUSTER, Label, LabelError, source};

/// What the meaning of a policy depends on beside its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `enable-policy`.
    pub mode: EnforcementMode,
    /// Whether the node itself may always reach its endpoints (`allow-localhost`, already decided).
    pub allow_localhost: bool,
    /// The label of the local cluster, `k8s:io.cilium.k8s.policy.cluster=<cluster-name>`.
    pub cluster: Label,
    /// Selectors that name no cluster mean the local one (`policy-default-local-cluster`).
    pub default_local_cluster: bool,
    /// The node itself is a workload: an `endpointSelector` that its labels meet selects it as a `nodeSelector` does
    /// (`host-only`).
    pub host_is_workload: bool,
    /// How many entries the policies that are kept compiled may have (`bpf-policy-map-max`, less what is kept free).
    pub max_entries: usize,
}

impl Settings {
    /// Mode `default`, localhost by policy, selectors mean any cluster, any number of entries.
    ///
    /// # Errors
    /// A cluster name that can't be a label's value.
    pub fn new(cluster_name: &str) -> Result<Self, LabelError> {
        Ok(Self {
            mode: EnforcementMode::Default,
            allow_localhost: false,
            cluster: Label::new(source::K8S, KEY_CLUSTER, cluster_name)?,
            default_local_cluster: false,
            host_is_workload: false,
            max_entries: usize::MAX,
        })
    }
}

/// When endpoints are enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnforcementMode {
    /// An endpoint is free in a direction until a rule selects it there.
    #[default]
    Default,
    /// Every endpoint is enforced.
    Always,
    /// None is.
    Never,
}

impl EnforcementMode {
    /// The option's value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Always => "always",
            Self::Never => "never",
        }
    }

    /// Reads the option's value.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "default" => Some(Self::Default),
            "always" => Some(Self::Always),
            "never" => Some(Self::Never),
            _ => None,
        }
    }
}
