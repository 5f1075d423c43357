//! The operations of the REST API.

mod endpoints;
mod model;

use async_trait::async_trait;
use villus_api::model::{
    Endpoint, EndpointChangeRequest, EndpointDeleted, EndpointPatch, PolicyChange, PolicyDelete,
    PolicyImport, PolicyValidation,
};
use villus_api::{ApiResult, Backend, EndpointRef};
use villus_flows::{Filter, Observer};

use crate::agent::Agent;

/// Records that an observer may be behind.
const QUEUE: usize = 4096;

/// The agent as the API's backend.
pub(crate) struct Api(pub Agent);

#[async_trait]
impl Backend for Api {
    async fn endpoints(&self, labels: Vec<String>) -> ApiResult<Vec<Endpoint>> {
        self.list_endpoints(labels).await
    }

    async fn endpoint(&self, id: EndpointRef) -> ApiResult<Endpoint> {
        self.0.with(move |node| Ok(node.model(node.find(&id)?))).await?
    }

    async fn create_endpoint(&self, id: EndpointRef, request: EndpointChangeRequest) -> ApiResult<Endpoint> {
        self.create(id, request).await
    }

    async fn patch_endpoint(&self, id: EndpointRef, patch: EndpointPatch) -> ApiResult<Endpoint> {
        self.relabel(id, patch).await
    }

    async fn delete_endpoint(&self, id: EndpointRef) -> ApiResult<EndpointDeleted> {
        self.delete(id).await
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

    async fn monitor(&self, filter: Filter, past: usize) -> ApiResult<Observer> {
        Ok(self.0.history.observe(filter, past, QUEUE))
    }
}
