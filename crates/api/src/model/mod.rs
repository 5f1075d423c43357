//! Bodies and query parameters.
//!
//! Requests refuse unknown fields; answers leave out what is empty, and readers of answers ignore what they
//! do not know, so that agent and command line of different versions understand each other.

mod cluster;
mod config;
mod emergency;
mod endpoint;
mod identity;
mod mac;
mod maps;
mod mesh;
mod monitor;
mod operator;
mod policy;
mod request;
mod status;
mod verify;
mod why;

pub use cluster::{ClusterNode, FreezeRequest, NodeForget, NodeForgotten};
pub use config::{DaemonConfiguration, DaemonConfigurationSpec, DaemonConfigurationStatus};
pub use emergency::{EmergencyEntry, EmergencyList, Hold, HoldRequest};
pub use endpoint::{
    Addressing, Endpoint, EndpointDeleted, EndpointHealth, EndpointLogEntry, EndpointNetworking,
    EndpointPolicy, EndpointPolicyStatus, EndpointSpec, EndpointState, EndpointStatus, EndpointVillus,
    ExternalIdentifiers, LabelConfigurationSpec, LabelConfigurationStatus, PolicyEnabled,
};
pub use identity::{Identity, IdentityEndpoints, IpListEntry, IpMetadata, IpQuery, LabelQuery};
pub use mac::{Mac, MacError};
pub use maps::{BpfMap, BpfMapEntry, BpfMapList, MetricValue};
pub use mesh::{ClusterMeshStatus, RemoteCluster, RemoteClusterConfig, RemoteClusterSynced};
pub use monitor::MonitorQuery;
pub use operator::{OperatorCollection, OperatorExternal, OperatorStatus};
pub use policy::{
    Impact, ObservedFlows, Part, Policy, PolicyChange, PolicyDelete, PolicyImport, PolicyName, PolicyOrigin,
    PolicyProblem, PolicyQuery, PolicySettings, PolicySummary, PolicyText, PolicyValidation, PolicyWait,
    PolicyWaitQuery, PreviewRequest, Selector, SelectorAudit, SelectorAuditDelete, SelectorAuditRequest,
    StalePolicy, WaitingChange,
};
pub use request::{
    AddressPair, DatapathConfiguration, EndpointBatchDelete, EndpointChangeRequest, EndpointConfigPatch,
    EndpointPatch,
};
pub use status::{
    Feature, IpamStatus, MonitorStatus, ServiceState, State, StatusDetails, StatusQuery, StatusResponse,
    Warning,
};
pub use verify::{Checked, Difference, DifferenceKind, VerifyReport, VerifyRequest};
pub use why::{Explanation, Leaving, Step, WhyReply, WhyRequest};

/// Leaves out what is as it would be if it were left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
