//! One request, one connection.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::ClientError;
use crate::{ApiError, DEFAULT_SOCKET, SOCKET_ENV};

/// How long a request may take unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What stays as it is in a part of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Asks the agent over its unix socket, blocking.
///
/// Must not be used from inside an async runtime; there, use it in `spawn_blocking`.
#[derive(Debug)]
pub struct Client {
    pub(super) runtime: Runtime,
    path: PathBuf,
    timeout: Duration,
}

/// A request about to be sent.
pub(super) struct Call {
    method: &'static str,
    target: String,
    body: Bytes,
    extra: Duration,
}

impl Call {
    /// A request for a path below `/v1`; its parts are encoded.
    pub(super) fn new(method: &'static str, parts: &[&str]) -> Self {
        let mut target = "/v1".to_owned();
        for part in parts {
            target.push('/');
            target.extend(utf8_percent_encode(part, SEGMENT));
        }
        Self { method, target, body: Bytes::new(), extra: Duration::ZERO }
    }

    /// Adds query parameters.
    pub(super) fn query(mut self, query: &impl Serialize) -> Result<Self, ClientError> {
        let text = serde_urlencoded::to_string(query).map_err(|error| self.unprintable(&error))?;
        if !text.is_empty() {
            self.target.push('?');
            self.target.push_str(&text);
        }
        Ok(self)
    }

    /// Adds a JSON body.
    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        self.body = serde_json::to_vec(body).map_err(|error| self.unprintable(&error))?.into();
        Ok(self)
    }

    /// Adds a body of text.
    pub(super) fn text(mut self, body: &str) -> Self {
        self.body = Bytes::copy_from_slice(body.as_bytes());
        self
    }

    /// Lets the request take longer by this much.
    pub(super) const fn longer(mut self, extra: Duration) -> Self {
        self.extra = extra;
        self
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    fn unprintable(&self, problem: &impl ToString) -> ClientError {
        ClientError::Answer { request: self.name(), problem: problem.to_string() }
    }
}

impl Client {
    /// A client of the agent on this socket. Nothing is connected yet.
    ///
    /// # Errors
    /// When the system has no resources for it.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Setup)?;
        Ok(Self { runtime, path: path.into(), timeout: TIMEOUT })
    }

    /// A client of the socket that `-H`, else `VILLUS_SOCK`, else the default names; `unix://` may precede
    /// the path.
    ///
    /// # Errors
    /// When the system has no resources for it.
    pub fn from_host(host: Option<&str>) -> Result<Self, ClientError> {
        let named = host.map(str::to_owned).or_else(|| std::env::var(SOCKET_ENV).ok());
        let path = named.filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
        Self::new(path.strip_prefix("unix://").unwrap_or(&path))
    }

    /// Changes how long a request may take.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request and reads the whole answer.
    pub(super) fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let name = call.name();
        let limit = self.timeout.saturating_add(call.extra);
        let work = async {
            let response = self.send(call).await?;
            self.body(response).await
        };
        let bytes = self
            .runtime
            .block_on(async { timeout(limit, work).await })
            .map_err(|_| ClientError::Timeout { path: self.path.clone(), after: limit })??;
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Answer { request: name, problem: error.to_string() })
    }

    /// Sends a request and leaves the body of its answer to be read.
    pub(super) fn open(&self, call: Call) -> Result<Incoming, ClientError> {
        let limit = self.timeout;
        self.runtime
            .block_on(async { timeout(limit, self.send(call)).await })
            .map_err(|_| ClientError::Timeout { path: self.path.clone(), after: limit })?
            .map(Response::into_body)
    }

    async fn send(&self, call: Call) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder()
            .method(call.method)
            .uri(&call.target)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(call.body.clone()))
            .map_err(|error| call.unprintable(&error))?;
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| ClientError::connecting(&self.path, &error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ClientError::broken(&self.path, error))?;
        // Ends with the connection; its errors come back through the sender and the body.
        tokio::spawn(connection);
        let response =
            sender.send_request(request).await.map_err(|error| ClientError::broken(&self.path, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let bytes = self.body(response).await?;
        Err(api_error(status, &bytes).into())
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = response.into_body().collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| ClientError::broken(&self.path, error))
    }
}

/// The error of an answer; its text where it is no object.
fn api_error(status: u16, body: &[u8]) -> ApiError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => ApiError { status, ..error },
        Err(_) => ApiError::new(status, String::from_utf8_lossy(body).trim()),
    }
}
