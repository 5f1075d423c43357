//! Paths and methods, and which operation each asks for.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, RawQuery, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use villus_flows::Filter;

use super::{
    Backend, MAX_BODY, MAX_REQUESTS, MAX_STREAMS,
    extract::{Id, Json, Name, Query, Text, json, known_parameters, query},
    monitor::stream_of,
};
use crate::{
    ApiError, ApiResult, EndpointRef,
    model::{
        DaemonConfigurationSpec, EndpointBatchDelete, EndpointChangeRequest, EndpointConfigPatch,
        EndpointDeleted, EndpointPatch, FreezeRequest, HoldRequest, IpQuery, LabelConfigurationSpec,
        LabelQuery, MonitorQuery, NodeForget, PolicyDelete, PolicyImport, PolicyQuery, PolicyWaitQuery,
        PreviewRequest, SelectorAuditDelete, SelectorAuditRequest, StatusQuery, VerifyRequest, WhyRequest,
    },
};

/// What every request has at hand.
#[derive(Clone)]
struct Context {
    backend: Arc<dyn Backend>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Context {
    fn stream(&self) -> ApiResult<OwnedSemaphorePermit> {
        Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| ApiError::too_many(format!("{MAX_STREAMS} streams and waits are under way already")))
    }
}

type Ctx = State<Context>;
type Answer = ApiResult<Response>;

/// The routes of the API over a backend, `/v1` and below.
pub fn router(backend: Arc<dyn Backend>) -> Router {
    let context = Context {
        backend,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
    };
    let v1 = Router::new()
        .merge(agent_routes())
        .merge(endpoint_routes())
        .merge(policy_routes())
        .nest("/villus", own_routes())
        .method_not_allowed_fallback(wrong_method);
    Router::new()
        .nest("/v1", v1)
        .fallback(no_route)
        .layer(from_fn_with_state(context.clone(), limit))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(context)
}

fn agent_routes() -> Router<Context> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/config", get(config).patch(patch_config))
        .route("/identity", get(identities))
        .route("/identity/endpoints", get(identity_endpoints))
        .route("/identity/{id}", get(identity))
        .route("/ip", get(ips))
        .route("/map", get(maps))
        .route("/map/{name}", get(map))
        .route("/metrics", get(metrics))
        .route("/metrics/", get(metrics))
}

fn endpoint_routes() -> Router<Context> {
    Router::new()
        .route("/endpoint", get(endpoints).delete(delete_container))
        .route(
            "/endpoint/{id}",
            get(endpoint).put(create_endpoint).patch(patch_endpoint).delete(delete_endpoint),
        )
        .route("/endpoint/{id}/config", get(endpoint_config).patch(configure_endpoint))
        .route("/endpoint/{id}/labels", get(endpoint_labels).patch(patch_labels))
        .route("/endpoint/{id}/log", get(endpoint_log))
        .route("/endpoint/{id}/healthz", get(endpoint_health))
}

fn policy_routes() -> Router<Context> {
    Router::new()
        .route("/policy", get(policy).put(import_policy).delete(delete_policy))
        .route("/policy/selectors", get(selectors))
}

fn own_routes() -> Router<Context> {
    Router::new()
        .route("/status", get(status_details))
        .route("/monitor", get(monitor))
        .route("/policy/validate", post(validate_policy))
        .route("/policy/wait", get(wait_policy))
        .route("/policy/preview", post(preview_policy))
        .route("/policy/waiting/{id}", put(confirm_policy).delete(reject_policy))
        .route("/flows", get(observed_flows))
        .route("/policy/audit", get(audits).put(put_audit).delete(delete_audit))
        .route("/verify", post(verify))
        .route("/why", post(why))
        .route("/nodes", get(nodes).delete(forget_node))
        .route("/freeze", put(freeze).delete(thaw))
        .route("/emergency", get(emergencies))
        .route("/emergency/{id}", delete(undo_emergency))
        .route("/hold/{id}", put(hold).delete(release))
}

/// Answers 429 instead of piling up requests. Streams and waits, which last, are counted on their own.
async fn limit(State(context): Ctx, request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/v1/villus/monitor" | "/v1/villus/policy/wait") {
        return next.run(request).await;
    }
    match context.requests.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => {
            ApiError::too_many(format!("{MAX_REQUESTS} requests are under way already")).into_response()
        }
    }
}

async fn no_route(request: Request) -> ApiError {
    ApiError::not_found(format!("there is no {}", request.uri().path()))
        .hint("paths start with /v1; is the agent older than this program?")
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(405, format!("{} does not understand {}", request.uri().path(), request.method()))
}

fn ok<T: Serialize>(value: T) -> Answer {
    Ok(json(StatusCode::OK, &value))
}

async fn healthz(State(context): Ctx, headers: HeaderMap, Query(query): Query<StatusQuery>) -> Answer {
    let header = headers.get("brief").is_some_and(|value| value.as_bytes() == b"true");
    ok(context.backend.status(query.brief || header).await?)
}

async fn status_details(State(context): Ctx) -> Answer {
    ok(context.backend.status_details().await?)
}

async fn config(State(context): Ctx) -> Answer {
    ok(context.backend.config().await?)
}

async fn patch_config(State(context): Ctx, Json(spec): Json<DaemonConfigurationSpec>) -> Answer {
    context.backend.patch_config(spec).await?;
    ok(context.backend.config().await?)
}

async fn endpoints(State(context): Ctx, Query(query): Query<LabelQuery>) -> Answer {
    ok(context.backend.endpoints(query.list()).await?)
}

async fn endpoint(State(context): Ctx, Id(id): Id) -> Answer {
    ok(context.backend.endpoint(id).await?)
}

async fn create_endpoint(
    State(context): Ctx,
    Id(id): Id,
    Json(request): Json<EndpointChangeRequest>,
) -> Answer {
    let status = if request.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json(status, &context.backend.create_endpoint(id, request).await?))
}

async fn patch_endpoint(State(context): Ctx, Id(id): Id, Json(patch): Json<EndpointPatch>) -> Answer {
    if patch.labels.is_some() && !(patch.add_labels.is_empty() && patch.delete_labels.is_empty()) {
        return Err(ApiError::bad_field(
            "labels",
            "replaces all labels, so nothing can be added or deleted beside it",
        )
        .hint("give either labels, or add-labels and delete-labels"));
    }
    ok(context.backend.patch_endpoint(id, patch).await?)
}

async fn patch_labels(State(context): Ctx, Id(id): Id, Json(spec): Json<LabelConfigurationSpec>) -> Answer {
    let patch = EndpointPatch { labels: Some(spec.user), ..EndpointPatch::default() };
    ok(context.backend.patch_endpoint(id, patch).await?.status.labels)
}

async fn configure_endpoint(
    State(context): Ctx,
    Id(id): Id,
    Json(patch): Json<EndpointConfigPatch>,
) -> Answer {
    ok(context.backend.configure_endpoint(id, patch).await?)
}

async fn endpoint_config(State(context): Ctx, Id(id): Id) -> Answer {
    ok(context.backend.endpoint(id).await?.status.realized)
}

async fn endpoint_labels(State(context): Ctx, Id(id): Id) -> Answer {
    ok(context.backend.endpoint(id).await?.status.labels)
}

async fn endpoint_log(State(context): Ctx, Id(id): Id) -> Answer {
    ok(context.backend.endpoint(id).await?.status.log)
}

async fn endpoint_health(State(context): Ctx, Id(id): Id) -> Answer {
    ok(context.backend.endpoint(id).await?.status.health)
}

async fn delete_endpoint(State(context): Ctx, Id(id): Id) -> Answer {
    Ok(deleted(&context.backend.delete_endpoint(id).await?))
}

async fn delete_container(State(context): Ctx, Json(batch): Json<EndpointBatchDelete>) -> Answer {
    let id = EndpointRef::ContainerId(batch.container_id);
    Ok(deleted(&context.backend.delete_endpoint(id).await?))
}

/// 206 says that something could not be removed.
fn deleted(answer: &EndpointDeleted) -> Response {
    let status = if answer.errors.is_empty() { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    json(status, answer)
}

async fn identities(State(context): Ctx, Query(query): Query<LabelQuery>) -> Answer {
    ok(context.backend.identities(query.list()).await?)
}

async fn identity(State(context): Ctx, Name(id): Name) -> Answer {
    let id = id.parse().map_err(|_| {
        ApiError::bad_field("id", format!("{id:?} is no identity: a number from 0 to 4294967295"))
    })?;
    ok(context.backend.identity(id).await?)
}

async fn identity_endpoints(State(context): Ctx) -> Answer {
    ok(context.backend.identity_endpoints().await?)
}

async fn ips(State(context): Ctx, Query(query): Query<IpQuery>) -> Answer {
    ok(context.backend.ips(query).await?)
}

async fn maps(State(context): Ctx) -> Answer {
    ok(context.backend.maps().await?)
}

async fn map(State(context): Ctx, Name(name): Name) -> Answer {
    ok(context.backend.map(name).await?)
}

async fn metrics(State(context): Ctx) -> Answer {
    ok(context.backend.metrics().await?)
}

async fn policy(State(context): Ctx, Query(query): Query<PolicyQuery>) -> Answer {
    ok(context.backend.policy(query).await?)
}

async fn import_policy(State(context): Ctx, Query(query): Query<PolicyImport>, Text(text): Text) -> Answer {
    ok(context.backend.import_policy(PolicyImport { text, ..query }).await?)
}

async fn delete_policy(State(context): Ctx, Query(query): Query<PolicyDelete>) -> Answer {
    let chosen = [!query.name.is_empty(), !query.labels.is_empty(), query.all];
    if chosen.into_iter().filter(|chosen| *chosen).count() != 1 {
        return Err(ApiError::bad_field("name", "exactly one of name, labels and all=true must be given"));
    }
    ok(context.backend.delete_policy(query).await?)
}

async fn validate_policy(State(context): Ctx, Query(query): Query<PolicyImport>, Text(text): Text) -> Answer {
    ok(context.backend.validate_policy(PolicyImport { text, ..query }).await?)
}

async fn preview_policy(State(context): Ctx, Json(request): Json<PreviewRequest>) -> Answer {
    ok(context.backend.preview_policy(request).await?)
}

async fn confirm_policy(State(context): Ctx, Name(id): Name) -> Answer {
    ok(context.backend.confirm_policy(change_id(&id)?).await?)
}

async fn reject_policy(State(context): Ctx, Name(id): Name) -> Answer {
    ok(context.backend.reject_policy(change_id(&id)?).await?)
}

fn change_id(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| ApiError::bad_field("id", format!("{text:?} is not the number of a change")))
}

async fn observed_flows(State(context): Ctx) -> Answer {
    ok(context.backend.observed_flows().await?)
}

async fn wait_policy(State(context): Ctx, Query(query): Query<PolicyWaitQuery>) -> Answer {
    let _permit = context.stream()?;
    ok(context.backend.wait_policy(query).await?)
}

async fn audits(State(context): Ctx) -> Answer {
    ok(context.backend.audits().await?)
}

async fn put_audit(State(context): Ctx, Json(request): Json<SelectorAuditRequest>) -> Answer {
    ok(context.backend.put_audit(request).await?)
}

async fn delete_audit(State(context): Ctx, Query(query): Query<SelectorAuditDelete>) -> Answer {
    ok(context.backend.delete_audit(query).await?)
}

async fn selectors(State(context): Ctx) -> Answer {
    ok(context.backend.selectors().await?)
}

async fn monitor(State(context): Ctx, RawQuery(text): RawQuery) -> Answer {
    let text = text.unwrap_or_default();
    known_parameters(&text, &MonitorQuery::PARAMETERS)?;
    let wanted: MonitorQuery = query(&text)?;
    let filter = Filter::try_from(&wanted.filter)
        .map_err(|error| ApiError::bad_field(error.field, format!("{:?} {}", error.value, error.problem)))?;
    let permit = context.stream()?;
    let past = usize::try_from(wanted.last).unwrap_or(usize::MAX);
    let observer = context.backend.monitor(filter, past).await?;
    Ok(stream_of(observer, wanted.follow, permit))
}

async fn verify(State(context): Ctx, Json(request): Json<VerifyRequest>) -> Answer {
    ok(context.backend.verify(request).await?)
}

async fn why(State(context): Ctx, Json(request): Json<WhyRequest>) -> Answer {
    ok(context.backend.why(request).await?)
}

async fn nodes(State(context): Ctx) -> Answer {
    ok(context.backend.nodes().await?)
}

async fn forget_node(State(context): Ctx, Query(forget): Query<NodeForget>) -> Answer {
    ok(context.backend.forget_node(forget).await?)
}

async fn freeze(State(context): Ctx, Json(request): Json<FreezeRequest>) -> Answer {
    ok(context.backend.freeze(request).await?)
}

async fn thaw(State(context): Ctx) -> Answer {
    ok(context.backend.thaw().await?)
}

async fn emergencies(State(context): Ctx) -> Answer {
    ok(context.backend.emergencies().await?)
}

async fn undo_emergency(State(context): Ctx, Name(id): Name) -> Answer {
    ok(context.backend.undo_emergency(id).await?)
}

async fn hold(State(context): Ctx, Id(id): Id, Json(request): Json<HoldRequest>) -> Answer {
    ok(context.backend.hold(id, request).await?)
}

async fn release(State(context): Ctx, Id(id): Id) -> Answer {
    context.backend.release(id).await?;
    ok(serde_json::json!({}))
}
