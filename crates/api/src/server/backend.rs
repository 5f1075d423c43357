//! What the agent implements.

use async_trait::async_trait;
use villus_flows::{Filter, Observer};
use villus_rollout::Preview;

use crate::{
    ApiError, ApiResult, EndpointRef,
    model::{
        BpfMap, BpfMapList, ClusterNode, DaemonConfiguration, DaemonConfigurationSpec, EmergencyList,
        Endpoint, EndpointChangeRequest, EndpointConfigPatch, EndpointDeleted, EndpointPatch, FreezeRequest,
        Hold, HoldRequest, Identity, IdentityEndpoints, IpListEntry, IpQuery, MetricValue, NodeForget,
        NodeForgotten, ObservedFlows, Policy, PolicyChange, PolicyDelete, PolicyImport, PolicyQuery,
        PolicyValidation, PolicyWait, PolicyWaitQuery, PreviewRequest, Selector, SelectorAudit,
        SelectorAuditDelete, SelectorAuditRequest, StatusDetails, StatusResponse, VerifyReport,
        VerifyRequest, WhyReply, WhyRequest,
    },
};

/// The operations of the API. Each is answered with 501 until it is implemented.
///
/// Operations run beside each other; an operation whose client has gone is dropped at its next `await`.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// `GET /healthz`.
    async fn status(&self, brief: bool) -> ApiResult<StatusResponse> {
        let _ = brief;
        not_offered("its status")
    }

    /// `GET /villus/status`.
    async fn status_details(&self) -> ApiResult<StatusDetails> {
        not_offered("details of its status")
    }

    /// `GET /config`.
    async fn config(&self) -> ApiResult<DaemonConfiguration> {
        not_offered("its configuration")
    }

    /// `PATCH /config`: changes the options that the spec names, all or none.
    async fn patch_config(&self, spec: DaemonConfigurationSpec) -> ApiResult<()> {
        let _ = spec;
        not_offered("changes of its configuration")
    }

    /// `GET /endpoint`: endpoints that have all these labels.
    async fn endpoints(&self, labels: Vec<String>) -> ApiResult<Vec<Endpoint>> {
        let _ = labels;
        not_offered("endpoints")
    }

    /// `GET /endpoint/{id}` and the paths below it.
    async fn endpoint(&self, id: EndpointRef) -> ApiResult<Endpoint> {
        let _ = id;
        not_offered("endpoints")
    }

    /// `PUT /endpoint/{id}`: id 0 asks for a new one.
    async fn create_endpoint(&self, id: EndpointRef, request: EndpointChangeRequest) -> ApiResult<Endpoint> {
        let _ = (id, request);
        not_offered("new endpoints")
    }

    /// `PATCH /endpoint/{id}` and `PATCH /endpoint/{id}/labels`.
    async fn patch_endpoint(&self, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
        let _ = (id, patch);
        not_offered("changes of endpoints")
    }

    /// `PATCH /endpoint/{id}/config`.
    async fn configure_endpoint(&self, id: EndpointRef, patch: EndpointConfigPatch) -> ApiResult<Endpoint> {
        let _ = (id, patch);
        not_offered("options of endpoints")
    }

    /// `DELETE /endpoint/{id}`; `DELETE /endpoint` asks with a container id.
    async fn delete_endpoint(&self, id: EndpointRef) -> ApiResult<EndpointDeleted> {
        let _ = id;
        not_offered("deletion of endpoints")
    }

    /// `GET /identity`: identities that have all these labels.
    async fn identities(&self, labels: Vec<String>) -> ApiResult<Vec<Identity>> {
        let _ = labels;
        not_offered("identities")
    }

    /// `GET /identity/{id}`.
    async fn identity(&self, id: u32) -> ApiResult<Identity> {
        let _ = id;
        not_offered("identities")
    }

    /// `GET /identity/endpoints`.
    async fn identity_endpoints(&self) -> ApiResult<Vec<IdentityEndpoints>> {
        not_offered("identities")
    }

    /// `GET /ip`.
    async fn ips(&self, query: IpQuery) -> ApiResult<Vec<IpListEntry>> {
        let _ = query;
        not_offered("addresses")
    }

    /// `GET /policy`.
    async fn policy(&self, query: PolicyQuery) -> ApiResult<Policy> {
        let _ = query;
        not_offered("policies")
    }

    /// `PUT /policy`: all policies of the text or none.
    async fn import_policy(&self, import: PolicyImport) -> ApiResult<PolicyChange> {
        let _ = import;
        not_offered("import of policies")
    }

    /// `DELETE /policy`.
    async fn delete_policy(&self, delete: PolicyDelete) -> ApiResult<PolicyChange> {
        let _ = delete;
        not_offered("deletion of policies")
    }

    /// `POST /villus/policy/validate`; a text that is wrong is a success that says what is wrong.
    async fn validate_policy(&self, import: PolicyImport) -> ApiResult<PolicyValidation> {
        let _ = import;
        not_offered("validation of policies")
    }

    /// `POST /villus/policy/preview`: nothing is changed.
    async fn preview_policy(&self, request: PreviewRequest) -> ApiResult<Preview> {
        let _ = request;
        not_offered("previews of policies")
    }

    /// `PUT /villus/policy/waiting/{id}`: does what waits to be confirmed.
    async fn confirm_policy(&self, id: u64) -> ApiResult<PolicyChange> {
        let _ = id;
        not_offered("changes that wait")
    }

    /// `DELETE /villus/policy/waiting/{id}`: drops what waits to be confirmed.
    async fn reject_policy(&self, id: u64) -> ApiResult<PolicyChange> {
        let _ = id;
        not_offered("changes that wait")
    }

    /// `GET /villus/flows`.
    async fn observed_flows(&self) -> ApiResult<ObservedFlows> {
        not_offered("observed flows")
    }

    /// `GET /villus/policy/wait`; returns at the latest when the query's time is up.
    async fn wait_policy(&self, query: PolicyWaitQuery) -> ApiResult<PolicyWait> {
        let _ = query;
        not_offered("waiting for policies")
    }

    /// `GET /policy/selectors`.
    async fn selectors(&self) -> ApiResult<Vec<Selector>> {
        not_offered("selectors")
    }

    /// `GET /villus/policy/audit`.
    async fn audits(&self) -> ApiResult<Vec<SelectorAudit>> {
        not_offered("audit by selectors")
    }

    /// `PUT /villus/policy/audit`: answers with all there are then.
    async fn put_audit(&self, request: SelectorAuditRequest) -> ApiResult<Vec<SelectorAudit>> {
        let _ = request;
        not_offered("audit by selectors")
    }

    /// `DELETE /villus/policy/audit`: answers with all there are then.
    async fn delete_audit(&self, delete: SelectorAuditDelete) -> ApiResult<Vec<SelectorAudit>> {
        let _ = delete;
        not_offered("audit by selectors")
    }

    /// `GET /map`: without the maps' entries.
    async fn maps(&self) -> ApiResult<BpfMapList> {
        not_offered("maps")
    }

    /// `GET /map/{name}`.
    async fn map(&self, name: String) -> ApiResult<BpfMap> {
        let _ = name;
        not_offered("maps")
    }

    /// `GET /metrics/`.
    async fn metrics(&self) -> ApiResult<Vec<MetricValue>> {
        not_offered("metrics")
    }

    /// `GET /villus/monitor`: an observer that starts with the last `past` events.
    async fn monitor(&self, filter: Filter, past: usize) -> ApiResult<Observer> {
        let _ = (filter, past);
        not_offered("events")
    }

    /// `POST /villus/verify`.
    async fn verify(&self, request: VerifyRequest) -> ApiResult<VerifyReport> {
        let _ = request;
        not_offered("verification")
    }

    /// `POST /villus/why`.
    async fn why(&self, request: WhyRequest) -> ApiResult<WhyReply> {
        let _ = request;
        not_offered("explanations")
    }

    /// `GET /villus/emergency`.
    async fn emergencies(&self) -> ApiResult<EmergencyList> {
        not_offered("emergency entries")
    }

    /// `DELETE /villus/emergency/{id}`: takes the entry out; answers with what is left.
    async fn undo_emergency(&self, id: String) -> ApiResult<EmergencyList> {
        let _ = id;
        not_offered("emergency entries")
    }

    /// `GET /villus/nodes`.
    async fn nodes(&self) -> ApiResult<Vec<ClusterNode>> {
        not_offered("nodes")
    }

    /// `DELETE /villus/nodes`: the word that a node does not come back.
    async fn forget_node(&self, forget: NodeForget) -> ApiResult<NodeForgotten> {
        let _ = forget;
        not_offered("nodes")
    }

    /// `PUT /villus/freeze`: no change of others is applied until it is thawed.
    async fn freeze(&self, request: FreezeRequest) -> ApiResult<()> {
        let _ = request;
        not_offered("standing still")
    }

    /// `DELETE /villus/freeze`.
    async fn thaw(&self) -> ApiResult<()> {
        not_offered("standing still")
    }

    /// `PUT /villus/hold/{endpoint}`: keeps the agent's hands off its policy map.
    async fn hold(&self, id: EndpointRef, request: HoldRequest) -> ApiResult<Hold> {
        let _ = (id, request);
        not_offered("holds")
    }

    /// `DELETE /villus/hold/{endpoint}`.
    async fn release(&self, id: EndpointRef) -> ApiResult<()> {
        let _ = id;
        not_offered("holds")
    }
}

fn not_offered<T>(what: &str) -> ApiResult<T> {
    Err(ApiError::not_offered(what))
}
