//! One function per operation.

use std::time::Duration;

use villus_rollout::Preview;

use super::{Client, ClientError, Monitor, connection::Call};
use crate::{
    EndpointRef,
    model::{
        BpfMap, BpfMapList, ClusterNode, DaemonConfiguration, DaemonConfigurationSpec, EmergencyList,
        Endpoint, EndpointChangeRequest, EndpointConfigPatch, EndpointDeleted, EndpointHealth,
        EndpointLogEntry, EndpointPatch, FreezeRequest, Hold, HoldRequest, Identity, IdentityEndpoints,
        IpListEntry, IpQuery, LabelQuery, MetricValue, MonitorQuery, NodeForget, NodeForgotten,
        ObservedFlows, OperatorStatus, Policy, PolicyChange, PolicyDelete, PolicyImport, PolicyQuery,
        PolicyValidation, PolicyWait, PolicyWaitQuery, PreviewRequest, Selector, SelectorAudit,
        SelectorAuditDelete, SelectorAuditRequest, StatusDetails, StatusQuery, StatusResponse, VerifyReport,
        VerifyRequest, WhyReply, WhyRequest,
    },
};

type Result<T> = std::result::Result<T, ClientError>;

/// Every function fails with [`ClientError`]: the agent is not there, may not be asked, takes too long, or
/// answers with an error.
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// How the agent is; `brief` is what a probe needs.
    pub fn status(&self, brief: bool) -> Result<StatusResponse> {
        self.call(Call::new("GET", &["healthz"]).query(&StatusQuery { brief })?)
    }

    /// How the agent is, in detail.
    pub fn status_details(&self) -> Result<StatusDetails> {
        self.call(Call::new("GET", &["villus", "status"]))
    }

    /// The configuration.
    pub fn config(&self) -> Result<DaemonConfiguration> {
        self.call(Call::new("GET", &["config"]))
    }

    /// Changes the options that `spec` names.
    pub fn patch_config(&self, spec: &DaemonConfigurationSpec) -> Result<DaemonConfiguration> {
        self.call(Call::new("PATCH", &["config"]).json(spec)?)
    }

    /// Endpoints that have all these labels.
    pub fn endpoints(&self, labels: &[String]) -> Result<Vec<Endpoint>> {
        self.call(Call::new("GET", &["endpoint"]).query(&LabelQuery { labels: labels.join(",") })?)
    }

    /// An endpoint.
    pub fn endpoint(&self, id: &EndpointRef) -> Result<Endpoint> {
        self.call(Call::new("GET", &["endpoint", &id.to_string()]))
    }

    /// What happened to an endpoint.
    pub fn endpoint_log(&self, id: &EndpointRef) -> Result<Vec<EndpointLogEntry>> {
        self.call(Call::new("GET", &["endpoint", &id.to_string(), "log"]))
    }

    /// Health of an endpoint.
    pub fn endpoint_health(&self, id: &EndpointRef) -> Result<EndpointHealth> {
        self.call(Call::new("GET", &["endpoint", &id.to_string(), "healthz"]))
    }

    /// Creates an endpoint; `EndpointRef::Id(0)` for a new id.
    pub fn create_endpoint(&self, id: &EndpointRef, request: &EndpointChangeRequest) -> Result<Endpoint> {
        self.call(Call::new("PUT", &["endpoint", &id.to_string()]).json(request)?)
    }

    /// Changes an endpoint's labels.
    pub fn patch_endpoint(&self, id: &EndpointRef, patch: &EndpointPatch) -> Result<Endpoint> {
        self.call(Call::new("PATCH", &["endpoint", &id.to_string()]).json(patch)?)
    }

    /// Changes an endpoint's options.
    pub fn configure_endpoint(&self, id: &EndpointRef, patch: &EndpointConfigPatch) -> Result<Endpoint> {
        self.call(Call::new("PATCH", &["endpoint", &id.to_string(), "config"]).json(patch)?)
    }

    /// Deletes an endpoint, or all of a container.
    pub fn delete_endpoint(&self, id: &EndpointRef) -> Result<EndpointDeleted> {
        self.call(Call::new("DELETE", &["endpoint", &id.to_string()]))
    }

    /// Identities that have all these labels.
    pub fn identities(&self, labels: &[String]) -> Result<Vec<Identity>> {
        self.call(Call::new("GET", &["identity"]).query(&LabelQuery { labels: labels.join(",") })?)
    }

    /// An identity.
    pub fn identity(&self, id: u32) -> Result<Identity> {
        self.call(Call::new("GET", &["identity", &id.to_string()]))
    }

    /// Identities of this node's endpoints.
    pub fn identity_endpoints(&self) -> Result<Vec<IdentityEndpoints>> {
        self.call(Call::new("GET", &["identity", "endpoints"]))
    }

    /// Prefixes and their identities.
    pub fn ips(&self, query: &IpQuery) -> Result<Vec<IpListEntry>> {
        self.call(Call::new("GET", &["ip"]).query(query)?)
    }

    /// The rules in effect.
    pub fn policy(&self, query: &PolicyQuery) -> Result<Policy> {
        self.call(Call::new("GET", &["policy"]).query(query)?)
    }

    /// Imports the policies of a text, all or none.
    pub fn import_policy(&self, import: &PolicyImport) -> Result<PolicyChange> {
        self.call(Call::new("PUT", &["policy"]).query(import)?.text(&import.text))
    }

    /// Deletes policies.
    pub fn delete_policy(&self, delete: &PolicyDelete) -> Result<PolicyChange> {
        self.call(Call::new("DELETE", &["policy"]).query(delete)?)
    }

    /// The selectors whose endpoints are audited.
    pub fn audits(&self) -> Result<Vec<SelectorAudit>> {
        self.call(Call::new("GET", &["villus", "policy", "audit"]))
    }

    /// Audits the endpoints of a selector.
    pub fn put_audit(&self, request: &SelectorAuditRequest) -> Result<Vec<SelectorAudit>> {
        self.call(Call::new("PUT", &["villus", "policy", "audit"]).json(request)?)
    }

    /// Audits the endpoints of a selector no more.
    pub fn delete_audit(&self, delete: &SelectorAuditDelete) -> Result<Vec<SelectorAudit>> {
        self.call(Call::new("DELETE", &["villus", "policy", "audit"]).query(delete)?)
    }

    /// Says what a text holds and what is wrong with it.
    pub fn validate_policy(&self, import: &PolicyImport) -> Result<PolicyValidation> {
        self.call(Call::new("POST", &["villus", "policy", "validate"]).query(import)?.text(&import.text))
    }

    /// What a change of policies would do.
    pub fn preview_policy(&self, request: &PreviewRequest) -> Result<Preview> {
        self.call(Call::new("POST", &["villus", "policy", "preview"]).json(request)?)
    }

    /// Does what waits to be confirmed.
    pub fn confirm_policy(&self, id: u64) -> Result<PolicyChange> {
        self.call(Call::new("PUT", &["villus", "policy", "waiting", &id.to_string()]))
    }

    /// Drops what waits to be confirmed.
    pub fn reject_policy(&self, id: u64) -> Result<PolicyChange> {
        self.call(Call::new("DELETE", &["villus", "policy", "waiting", &id.to_string()]))
    }

    /// Flows that the agent has observed of late.
    pub fn observed_flows(&self) -> Result<ObservedFlows> {
        self.call(Call::new("GET", &["villus", "flows"]))
    }

    /// Waits until every endpoint is at a revision.
    pub fn wait_policy(&self, query: &PolicyWaitQuery) -> Result<PolicyWait> {
        let wait = Duration::from_secs(query.timeout.into());
        self.call(Call::new("GET", &["villus", "policy", "wait"]).query(query)?.longer(wait))
    }

    /// Selectors and whom they select.
    pub fn selectors(&self) -> Result<Vec<Selector>> {
        self.call(Call::new("GET", &["policy", "selectors"]))
    }

    /// Kernel maps, without their entries.
    pub fn maps(&self) -> Result<BpfMapList> {
        self.call(Call::new("GET", &["map"]))
    }

    /// A kernel map with its entries.
    pub fn map(&self, name: &str) -> Result<BpfMap> {
        self.call(Call::new("GET", &["map", name]))
    }

    /// Metrics.
    pub fn metrics(&self) -> Result<Vec<MetricValue>> {
        self.call(Call::new("GET", &["metrics"]))
    }

    /// Events as they happen.
    pub fn monitor(&self, query: &MonitorQuery) -> Result<Monitor<'_>> {
        let body = self.open(Call::new("GET", &["villus", "monitor"]).query(query)?)?;
        Ok(Monitor::new(self, body))
    }

    /// Compares the kernel's maps with what policy asks for.
    pub fn verify(&self, request: &VerifyRequest) -> Result<VerifyReport> {
        self.call(Call::new("POST", &["villus", "verify"]).json(request)?)
    }

    /// Why a packet passes or does not.
    pub fn why(&self, request: &WhyRequest) -> Result<WhyReply> {
        self.call(Call::new("POST", &["villus", "why"]).json(request)?)
    }

    /// Nodes of the cluster.
    pub fn nodes(&self) -> Result<Vec<ClusterNode>> {
        self.call(Call::new("GET", &["villus", "nodes"]))
    }

    /// The word that a node does not come back.
    pub fn forget_node(&self, forget: &NodeForget) -> Result<NodeForgotten> {
        self.call(Call::new("DELETE", &["villus", "nodes"]).query(forget)?)
    }

    /// No change of others is applied until the agent is thawed.
    pub fn freeze(&self, request: &FreezeRequest) -> Result<()> {
        self.call::<serde::de::IgnoredAny>(Call::new("PUT", &["villus", "freeze"]).json(request)?).map(drop)
    }

    /// Changes of others are applied again.
    pub fn thaw(&self) -> Result<()> {
        self.call::<serde::de::IgnoredAny>(Call::new("DELETE", &["villus", "freeze"])).map(drop)
    }

    /// What operators did by hand.
    pub fn emergencies(&self) -> Result<EmergencyList> {
        self.call(Call::new("GET", &["villus", "emergency"]))
    }

    /// Takes an emergency entry out.
    pub fn undo_emergency(&self, id: &str) -> Result<EmergencyList> {
        self.call(Call::new("DELETE", &["villus", "emergency", id]))
    }

    /// Keeps the agent's hands off an endpoint's policy map.
    pub fn hold(&self, id: &EndpointRef, request: &HoldRequest) -> Result<Hold> {
        self.call(Call::new("PUT", &["villus", "hold", &id.to_string()]).json(request)?)
    }

    /// Ends a hold.
    pub fn release(&self, id: &EndpointRef) -> Result<()> {
        self.call::<serde::de::IgnoredAny>(Call::new("DELETE", &["villus", "hold", &id.to_string()]))
            .map(drop)
    }

    /// How an operator is; the socket is the operator's own.
    pub fn operator(&self) -> Result<OperatorStatus> {
        self.call(Call::new("GET", &["operator"]))
    }
}
