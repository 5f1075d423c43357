//! The routes by which other systems say which external resources there are.

use std::collections::BTreeMap;

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Path, RawQuery, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::{Value, json};
use villus_api::ApiError;
use villus_external::{
    ExternalError, Externals, Outcome, Problem, Problems, Refusal, Writing, read_batch, read_names, read_spec,
};

/// Largest body of a request, bytes: some 100,000 resources.
pub const MAX_BODY: usize = 32 << 20;

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Peer(pub String);

/// A body that says what is wrong with the request.
#[derive(Serialize)]
struct Wrong {
    #[serde(flatten)]
    error: ApiError,
    problems: Vec<Problem>,
}

/// One resource of an answer about many.
#[derive(Serialize)]
struct Item {
    name: String,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
}

type Ctx = State<Externals>;

/// `/v1/external`; a layer must say who asks.
pub(crate) fn routes(externals: Externals) -> Router {
    Router::new()
        .route("/v1/external", get(list).post(put_many).delete(delete_many))
        .route("/v1/external/{name}", get(one).put(put_one).delete(delete_one))
        .method_not_allowed_fallback(async || {
            ApiError::new(405, "the path does not know this method")
                .hint("use GET, POST and DELETE on /v1/external, GET, PUT and DELETE on /v1/external/NAME")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(externals)
}

async fn list(State(externals): Ctx, RawQuery(query): RawQuery) -> Result<Response, Failed> {
    no_parameters(query.as_deref())?;
    let (records, damaged) = externals.list().await?;
    let items: Vec<Value> = records.iter().map(villus_external::Record::object).collect();
    let damaged: Vec<Value> =
        damaged.into_iter().map(|(key, reason)| json!({"key": key, "reason": reason})).collect();
    Ok(answer(StatusCode::OK, &json!({"items": items, "damaged": damaged})))
}

async fn one(State(externals): Ctx, Path(name): Path<String>) -> Result<Response, Failed> {
    match externals.get(&name).await? {
        Some(record) => Ok(answer(StatusCode::OK, &record.object())),
        None => Err(ApiError::not_found(format!("there is no external resource {name}"))
            .hint("see GET /v1/external")
            .into()),
    }
}

async fn put_one(
    State(externals): Ctx,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    Body(body): Body,
) -> Result<Response, Failed> {
    let wanted = read_spec(&name, &body)?;
    let how = writing(peer, query.as_deref())?;
    let outcome = externals.put(vec![wanted], &how).await?.into_iter().next();
    let Some(Outcome { result, record, .. }) = outcome else {
        return Err(ApiError::internal("nothing was done").into());
    };
    let what = result.map_err(|refusal| refused(&refusal))?;
    let status = match what {
        villus_external::What::Created if !how.dry_run => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let resource = record.as_ref().map(villus_external::Record::object);
    Ok(answer(status, &json!({"result": what, "resource": resource})))
}

async fn delete_one(
    State(externals): Ctx,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failed> {
    let how = writing(peer, query.as_deref())?;
    let outcome = externals.delete([name].into(), &how).await?.into_iter().next();
    let what = outcome.map_or(Ok(villus_external::What::Absent), |outcome| outcome.result);
    Ok(answer(StatusCode::OK, &json!({"result": what.map_err(|refusal| refused(&refusal))?})))
}

async fn put_many(
    State(externals): Ctx,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
    Body(body): Body,
) -> Result<Response, Failed> {
    let wanted = read_batch(&body)?;
    let how = writing(peer, query.as_deref())?;
    Ok(many(externals.put(wanted, &how).await?, how.dry_run))
}

async fn delete_many(
    State(externals): Ctx,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
    Body(body): Body,
) -> Result<Response, Failed> {
    let names = read_names(&body)?;
    let how = writing(peer, query.as_deref())?;
    Ok(many(externals.delete(names, &how).await?, how.dry_run))
}

/// What became of each. The status is that of the worst: 200 if all are as asked for, 503 if the store was not there for
/// one, else 409.
fn many(outcomes: Vec<Outcome>, dry_run: bool) -> Response {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut status = StatusCode::OK;
    let mut items = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let identity = outcome.record.map(|record| record.identity.0).filter(|number| *number > 0);
        let (result, error) = match outcome.result {
            Ok(what) => (what.name(), None),
            Err(refusal) => {
                let error = refused(&refusal);
                if error.status == 503 || status == StatusCode::OK {
                    status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::CONFLICT);
                }
                ("refused", Some(error))
            }
        };
        *counts.entry(result).or_default() += 1;
        items.push(Item { name: outcome.name, result, identity, error });
    }
    answer(status, &json!({"dryRun": dry_run, "counts": counts, "items": items}))
}

fn refused(refusal: &Refusal) -> ApiError {
    let text = refusal.to_string();
    let (what, hint) = text.rsplit_once("; ").unwrap_or((&text, ""));
    let (status, field) = match refusal {
        Refusal::Taken { .. } => (409, Some("addresses".to_owned())),
        Refusal::Contended => (409, None),
        Refusal::Identity(_) => (503, Some("labels".to_owned())),
        Refusal::Store(_) => (503, None),
    };
    ApiError { field, ..ApiError::new(status, what).hint(hint) }
}

fn writing(peer: Peer, query: Option<&str>) -> Result<Writing, ApiError> {
    let dry_run = match query.unwrap_or_default() {
        "" | "dry-run=false" => false,
        "dry-run" | "dry-run=true" => true,
        _ => {
            return Err(
                ApiError::bad_request("the query is not understood").hint("write ?dry-run=true, or nothing")
            );
        }
    };
    Ok(Writing { author: peer.0, dry_run })
}

fn no_parameters(query: Option<&str>) -> Result<(), ApiError> {
    match query.unwrap_or_default() {
        "" => Ok(()),
        _ => Err(ApiError::bad_request("the path has no parameters").hint("leave the query out")),
    }
}

/// A body, or why it can't be had.
struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let too_large = || {
            ApiError::new(413, format!("the body is larger than {} MiB", MAX_BODY >> 20))
                .hint("say the resources in several requests")
        };
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|text| text.to_str().ok());
        if length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > MAX_BODY as u64) {
            return Err(too_large());
        }
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                too_large()
            } else {
                ApiError::bad_request(format!("the body could not be read: {}", rejection.body_text()))
            }
        })
    }
}

/// Why a request failed as a whole.
enum Failed {
    Api(ApiError),
    Problems(Problems),
}

// === impl Failed ===

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<Problems> for Failed {
    fn from(problems: Problems) -> Self {
        Self::Problems(problems)
    }
}

impl From<ExternalError> for Failed {
    fn from(error: ExternalError) -> Self {
        let status = match error {
            ExternalError::Bad(problems) => return problems.into(),
            ExternalError::Store(_) => 503,
            _ => 500,
        };
        let text = error.to_string();
        let (what, hint) = text.rsplit_once("; ").unwrap_or((&text, "say it again"));
        Self::Api(ApiError::new(status, what).hint(hint))
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        match self {
            Self::Api(error) => error.into_response(),
            Self::Problems(Problems(problems)) => {
                let error = problems.first().map_or_else(
                    || ApiError::bad_request("the request is wrong"),
                    |first| {
                        let all = problems.len();
                        let more =
                            if all > 1 { format!(" (the first of {all} problems)") } else { String::new() };
                        let about =
                            first.name.as_ref().map(|name| format!("resource {name}: ")).unwrap_or_default();
                        ApiError::bad_field(&first.field, format!("{about}{}{more}", first.reason))
                            .hint(&first.fix)
                    },
                );
                answer(StatusCode::BAD_REQUEST, &Wrong { error, problems })
            }
        }
    }
}

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    // Texts, numbers and lists only: this can't fail.
    let text = serde_json::to_string(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}
