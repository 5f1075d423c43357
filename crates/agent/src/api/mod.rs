//! The operations of the REST API.

mod config;
mod endpoints;
mod identities;
mod limit;
mod maps;
mod metrics;
mod model;
mod observed;
mod policies;
mod preview;
mod status;
mod verify;
mod why;

use async_trait::async_trait;
use villus_api::model::{
    BpfMap, BpfMapList, ClusterNode, DaemonConfiguration, DaemonConfigurationSpec, EmergencyList, Endpoint,
    EndpointChangeRequest, EndpointConfigPatch, EndpointDeleted, EndpointPatch, FreezeRequest, Hold,
    HoldRequest, Identity, IdentityEndpoints, IpListEntry, IpQuery, MetricValue, NodeForget, NodeForgotten,
    ObservedFlows, Policy, PolicyChange, PolicyDelete, PolicyImport, PolicyQuery, PolicyValidation,
    PolicyWait, PolicyWaitQuery, PreviewRequest, Selector, SelectorAudit, SelectorAuditDelete,
    SelectorAuditRequest, StatusDetails, StatusResponse, VerifyReport, VerifyRequest, WhyReply, WhyRequest,
};
use villus_api::{ApiResult, Backend, EndpointRef};
use villus_flows::{Filter, Observer};
use villus_rollout::Preview;

use crate::agent::Agent;

pub(crate) use limit::Limiters;

/// Records that an observer may be behind.
const QUEUE: usize = 4096;

/// The agent as the API's backend.
pub(crate) struct Api(pub Agent);

#[async_trait]
impl Backend for Api {
    async fn status(&self, brief: bool) -> ApiResult<StatusResponse> {
        let history = self.0.history.clone();
        self.0.with(move |node| node.status(brief, &history)).await
    }

    async fn status_details(&self) -> ApiResult<StatusDetails> {
        let history = self.0.history.clone();
        // Asks other programs, which may take a while.
        let foreign = tokio::task::spawn_blocking(status::foreign).await.unwrap_or_default();
        let limits = self.0.limiters.seen();
        self.0.with(move |node| node.status_details(&history, foreign, &limits)).await
    }

    async fn config(&self) -> ApiResult<DaemonConfiguration> {
        self.0.with(|node| node.configuration()).await
    }

    async fn patch_config(&self, spec: DaemonConfigurationSpec) -> ApiResult<()> {
        self.0.with(move |node| node.configure(&spec)).await?
    }

    async fn endpoints(&self, labels: Vec<String>) -> ApiResult<Vec<Endpoint>> {
        self.0.limiters.run("endpoint-list", self.list_endpoints(labels)).await
    }

    async fn endpoint(&self, id: EndpointRef) -> ApiResult<Endpoint> {
        let work = async { self.0.with(move |node| Ok(node.model(node.find(&id)?))).await? };
        self.0.limiters.run("endpoint-get", work).await
    }

    async fn create_endpoint(&self, id: EndpointRef, request: EndpointChangeRequest) -> ApiResult<Endpoint> {
        self.0.limiters.run("endpoint-create", self.create(id, request)).await
    }

    async fn patch_endpoint(&self, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
        self.0.limiters.run("endpoint-patch", self.relabel(id, patch)).await
    }

    async fn configure_endpoint(&self, id: EndpointRef, patch: EndpointConfigPatch) -> ApiResult<Endpoint> {
        let work = async { self.0.with(move |node| node.configure_endpoint(&id, &patch)).await? };
        self.0.limiters.run("endpoint-patch", work).await
    }

    async fn delete_endpoint(&self, id: EndpointRef) -> ApiResult<EndpointDeleted> {
        self.0.limiters.run("endpoint-delete", self.delete(id)).await
    }

    async fn identities(&self, labels: Vec<String>) -> ApiResult<Vec<Identity>> {
        self.0.with(move |node| node.identity_list(&labels)).await?
    }

    async fn identity(&self, id: u32) -> ApiResult<Identity> {
        self.0.with(move |node| node.identity_of(id)).await?
    }

    async fn identity_endpoints(&self) -> ApiResult<Vec<IdentityEndpoints>> {
        self.0.with(|node| node.identity_endpoints()).await
    }

    async fn ips(&self, query: IpQuery) -> ApiResult<Vec<IpListEntry>> {
        self.0.with(move |node| node.ips(&query)).await?
    }

    async fn policy(&self, query: PolicyQuery) -> ApiResult<Policy> {
        self.0.with(move |node| node.policies(&query)).await?
    }

    async fn import_policy(&self, import: PolicyImport) -> ApiResult<PolicyChange> {
        self.0.with(move |node| node.import(&import)).await?
    }

    async fn delete_policy(&self, delete: PolicyDelete) -> ApiResult<PolicyChange> {
        self.0.with(move |node| node.delete_policies(&delete)).await?
    }

    async fn validate_policy(&self, import: PolicyImport) -> ApiResult<PolicyValidation> {
        self.0.with(move |node| node.validate(&import)).await
    }

    async fn preview_policy(&self, request: PreviewRequest) -> ApiResult<Preview> {
        preview::preview(&self.0, request).await
    }

    async fn confirm_policy(&self, id: u64) -> ApiResult<PolicyChange> {
        self.0.with(move |node| node.confirm_policies(id)).await?
    }

    async fn reject_policy(&self, id: u64) -> ApiResult<PolicyChange> {
        self.0.with(move |node| node.reject_policies(id)).await?
    }

    async fn observed_flows(&self) -> ApiResult<ObservedFlows> {
        observed::flows(&self.0).await
    }

    async fn wait_policy(&self, query: PolicyWaitQuery) -> ApiResult<PolicyWait> {
        policies::wait(&self.0, query).await
    }

    async fn selectors(&self) -> ApiResult<Vec<Selector>> {
        self.0.with(|node| node.selectors()).await
    }

    async fn audits(&self) -> ApiResult<Vec<SelectorAudit>> {
        self.0.with(|node| node.list_audits()).await
    }

    async fn put_audit(&self, request: SelectorAuditRequest) -> ApiResult<Vec<SelectorAudit>> {
        self.0.with(move |node| node.put_audit(&request)).await?
    }

    async fn delete_audit(&self, delete: SelectorAuditDelete) -> ApiResult<Vec<SelectorAudit>> {
        self.0.with(move |node| node.delete_audit(&delete)).await?
    }

    async fn maps(&self) -> ApiResult<BpfMapList> {
        self.0.with(|node| node.maps()).await?
    }

    async fn map(&self, name: String) -> ApiResult<BpfMap> {
        self.0.with(move |node| node.map(&name)).await?
    }

    async fn metrics(&self) -> ApiResult<Vec<MetricValue>> {
        let history = self.0.history.clone();
        let limits = self.0.limiters.seen();
        let exported = self.0.exported.clone();
        self.0.with(move |node| node.metrics(&history, &limits, &exported)).await?
    }

    async fn monitor(&self, filter: Filter, past: usize) -> ApiResult<Observer> {
        Ok(self.0.history.observe(filter, past, QUEUE))
    }

    async fn verify(&self, request: VerifyRequest) -> ApiResult<VerifyReport> {
        self.0.with(move |node| node.verify(&request)).await?
    }

    async fn why(&self, request: WhyRequest) -> ApiResult<WhyReply> {
        self.0.with(move |node| node.why(&request)).await?
    }

    async fn emergencies(&self) -> ApiResult<EmergencyList> {
        self.0.with(|node| node.emergency_list()).await?
    }

    async fn undo_emergency(&self, id: String) -> ApiResult<EmergencyList> {
        self.0.with(move |node| node.undo_emergency(&id)).await?
    }

    async fn nodes(&self) -> ApiResult<Vec<ClusterNode>> {
        self.0.with(|node| node.list_nodes()).await
    }

    async fn forget_node(&self, forget: NodeForget) -> ApiResult<NodeForgotten> {
        crate::cluster::forget(&self.0, forget).await
    }

    async fn freeze(&self, request: FreezeRequest) -> ApiResult<()> {
        self.0.with(move |node| node.freeze(&request)).await?
    }

    async fn thaw(&self) -> ApiResult<()> {
        self.0.with(|node| node.thaw()).await?
    }

    async fn hold(&self, id: EndpointRef, request: HoldRequest) -> ApiResult<Hold> {
        self.0.with(move |node| node.hold(node.find(&id)?, &request)).await?
    }

    async fn release(&self, id: EndpointRef) -> ApiResult<()> {
        self.0.with(move |node| node.release_hold(node.find(&id)?)).await?
    }
}
