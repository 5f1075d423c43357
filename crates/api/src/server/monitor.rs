//! The stream of events: one JSON object per line.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use villus_flows::{Observer, Record};

/// Records are sent together up to about this many bytes.
const CHUNK: usize = 32 << 10;

/// A stream under way.
struct Stream {
    observer: Observer,
    follow: bool,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    /// The records that are there, or the next one; `None` at the end.
    async fn chunk(&mut self) -> Option<Bytes> {
        let first = if self.follow { self.observer.next().await? } else { self.observer.ready()? };
        let mut chunk = Vec::with_capacity(1024);
        line(&mut chunk, &first);
        while chunk.len() < CHUNK
            && let Some(record) = self.observer.ready()
        {
            line(&mut chunk, &record);
        }
        Some(chunk.into())
    }
}

fn line(chunk: &mut Vec<u8>, record: &Record) {
    let start = chunk.len();
    match serde_json::to_writer(&mut *chunk, record) {
        Ok(()) => chunk.push(b'\n'),
        // Half a line would spoil the next one.
        Err(_) => chunk.truncate(start),
    }
}

/// The answer that streams what the observer sees. The permit is given back when the client has gone.
pub(super) fn stream_of(observer: Observer, follow: bool, permit: OwnedSemaphorePermit) -> Response {
    let state = Stream { observer, follow, _permit: permit };
    let chunks = stream::unfold(state, |mut state| async move {
        let chunk = state.chunk().await?;
        Some((Ok::<_, Infallible>(chunk), state))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
