//! From requests to types, with errors that name the field.

use axum::{
    body::{Body as AxumBody, Bytes},
    extract::{
        FromRequest, FromRequestParts, Path, Request,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};

use super::MAX_BODY;
use crate::{ApiError, ApiResult, EndpointRef};

/// A JSON body; an empty body is `{}`.
pub(super) struct Json<T>(pub T);

/// A body of text.
pub(super) struct Text(pub String);

/// The query parameters.
pub(super) struct Query<T>(pub T);

/// The endpoint that the path names.
pub(super) struct Id(pub EndpointRef);

/// The last variable part of the path, as text.
pub(super) struct Name(pub String);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let bytes = body(request, state).await?;
        let bytes = match bytes.trim_ascii() {
            [] => b"{}",
            // Every body is an object; a list would be read as its fields in order.
            object @ [b'{', ..] => object,
            _ => return Err(ApiError::bad_request("the body is no JSON object: it must start with {")),
        };
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| at_path(&error.path().to_string(), error.inner()))?;
        json.end()
            .map_err(|error| ApiError::bad_request(format!("the body goes on after its end: {error}")))?;
        Ok(Self(value))
    }
}

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let bytes = body(request, state).await?;
        String::from_utf8(bytes.into()).map(Self).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            ApiError::bad_request(format!("the body is not UTF-8 text: wrong byte at offset {at}"))
        })
    }
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> ApiResult<Bytes> {
    Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::new(413, format!("the body is larger than {} MiB", MAX_BODY >> 20))
        } else {
            ApiError::bad_request(format!("the body could not be read: {}", rejection.body_text()))
        }
    })
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// Reads the parameters of a query.
pub(super) fn query<T: DeserializeOwned>(text: &str) -> ApiResult<T> {
    let parameters = serde_urlencoded::Deserializer::new(form(text));
    serde_path_to_error::deserialize(parameters)
        .map_err(|error| at_path(&error.path().to_string(), error.inner()))
}

/// The pairs of a query.
fn form(text: &str) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(text.as_bytes())
}

/// Refuses parameters that are not known; for queries whose type cannot.
pub(super) fn known_parameters(text: &str, known: &[&str]) -> ApiResult<()> {
    for (name, _) in form(text) {
        if !known.contains(&name.as_ref()) {
            let known = known.join(", ");
            return Err(ApiError::bad_field(name, format!("is no parameter; known are {known}")));
        }
    }
    Ok(())
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| ApiError::bad_field("id", rejection.body_text()))?;
        Ok(Self(name))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let Name(name) = Name::from_request_parts(parts, state).await?;
        name.parse().map(Self).map_err(|error| ApiError::bad_field("id", format!("{error}")))
    }
}

/// A 400 that names the field, if the error is inside one.
fn at_path(path: &str, error: &impl ToString) -> ApiError {
    let error_text = error.to_string();
    // An unknown field is the culprit itself, and stands in the text.
    let field = match path {
        "." | "?" => None,
        path => Some(path.to_owned()),
    };
    ApiError { field, ..ApiError::bad_request(error_text) }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self);
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON answer.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            let mut response = Response::new(AxumBody::from(bytes));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            let mut response = Response::new(AxumBody::from(error.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}
