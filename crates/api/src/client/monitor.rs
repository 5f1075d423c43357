//! The stream of events, read line by line.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use villus_flows::Record;

use super::{Client, ClientError};

/// Longest line that is taken, bytes.
const MAX_LINE: usize = 1 << 20;

/// Events as they happen; an iterator that blocks until the next one and ends with the agent.
#[derive(Debug)]
pub struct Monitor<'a> {
    client: &'a Client,
    body: Incoming,
    partial: Vec<u8>,
    ready: VecDeque<Record>,
    ended: bool,
}

impl<'a> Monitor<'a> {
    pub(super) const fn new(client: &'a Client, body: Incoming) -> Self {
        Self { client, body, partial: Vec::new(), ready: VecDeque::new(), ended: false }
    }

    /// Waits for the next record at most so long; `None` when none came or the stream has ended.
    ///
    /// # Errors
    /// When the connection breaks or the agent sends something else.
    pub fn next_within(&mut self, wait: Duration) -> Result<Option<Record>, ClientError> {
        let client = self.client;
        let deadline = async { tokio::time::timeout(wait, self.receive()).await };
        client.runtime.block_on(deadline).unwrap_or(Ok(None))
    }

    /// Whether the agent has ended the stream.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// The next record; may be dropped while it waits.
    async fn receive(&mut self) -> Result<Option<Record>, ClientError> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                None => self.ended = true,
                Some(Err(error)) => {
                    self.ended = true;
                    return Err(ClientError::broken(self.client.path(), error));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.take(&data)?;
                    }
                }
            }
        }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), ClientError> {
        self.partial.extend_from_slice(data);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            if self.partial.len() > MAX_LINE {
                self.ended = true;
                return Err(self.strange("a line without end"));
            }
            return Ok(());
        };
        let rest = self.partial.split_off(end + 1);
        let lines = std::mem::replace(&mut self.partial, rest);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = serde_json::from_slice(line).map_err(|error| self.strange(&error.to_string()))?;
            self.ready.push_back(record);
        }
        Ok(())
    }

    fn strange(&self, problem: &str) -> ClientError {
        ClientError::Answer { request: "GET /v1/villus/monitor".to_owned(), problem: problem.to_owned() }
    }
}

impl Iterator for Monitor<'_> {
    type Item = Result<Record, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let client = self.client;
        client.runtime.block_on(self.receive()).transpose()
    }
}
