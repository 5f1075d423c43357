//! A watch of a prefix: each transaction whole and once, resumable from its position.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use async_trait::async_trait;
use etcd_client::{self as etcd, proto::PbEvent};

use super::convert;
use crate::{
    error::StoreError,
    figures::Figures,
    model::{Event, WatchBatch},
    store::Watch,
};

/// Opens the stream. That the first answer says the watch was made is seen by [`EtcdWatch::next`].
pub(super) async fn open(
    client: &etcd::Client,
    prefix: &str,
    from: u64,
    largest: usize,
) -> Result<etcd::WatchStream, etcd::Error> {
    let (key, end) = convert::range(prefix, None);
    let options = etcd::WatchOptions::new()
        .with_range(end)
        .with_start_revision(i64::try_from(from.max(1)).unwrap_or(i64::MAX))
        // Positions go on while nothing happens below the prefix, so that a resumed watch starts after a compaction.
        .with_progress_notify()
        // A transaction may be larger than a message; its parts are put together again.
        .with_fragment();
    let mut watch = client.watch_client().max_decoding_message_size(largest);
    watch.watch(key, Some(options)).await
}

pub(super) struct EtcdWatch {
    stream: etcd::WatchStream,
    prefix: Arc<str>,
    /// Where it was asked to begin.
    from: u64,
    /// Everything before was yielded, or waits in `ready`.
    heard: u64,
    /// Everything before was yielded.
    position: u64,
    /// With when they were received.
    ready: VecDeque<(Instant, WatchBatch)>,
    /// Events of a message whose other parts have not come.
    parts: Vec<PbEvent>,
    figures: Figures,
}

// === impl EtcdWatch ===

impl EtcdWatch {
    pub(super) fn new(stream: etcd::WatchStream, prefix: &str, from: u64, figures: &Figures) -> Self {
        let from = from.max(1);
        Self {
            stream,
            prefix: prefix.into(),
            from,
            heard: from,
            position: from,
            ready: VecDeque::new(),
            parts: Vec::new(),
            figures: figures.clone(),
        }
    }

    fn interrupted(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Interrupted { prefix: self.prefix.to_string(), reason: reason.into() }
    }

    fn take(&mut self, response: etcd::WatchResponse) -> Result<(), StoreError> {
        if response.compact_revision() > 0 {
            let oldest = convert::number(response.compact_revision());
            return Err(StoreError::Compacted { requested: self.position.max(self.from), oldest });
        }
        if response.canceled() {
            return Err(self.interrupted(match response.cancel_reason() {
                "" => "the server ended it",
                reason => reason,
            }));
        }
        let header = convert::header(response.header())?;
        let fragment = response.0.fragment;
        self.parts.extend(response.0.events);
        if fragment {
            return Ok(());
        }
        let events = std::mem::take(&mut self.parts);
        // Word of progress: everything up to the header's revision has been told. A watch that was just made tells
        // nothing yet.
        if events.is_empty() && !response.0.created {
            self.heard = self.heard.max(header.revision + 1);
        }
        for event in events {
            let event = event_of(event)?;
            let revision = event.revision();
            match self.ready.back_mut() {
                Some((_, batch)) if batch.revision == revision => batch.events.push(event),
                _ if revision < self.heard => {}
                _ => {
                    self.heard = revision + 1;
                    self.ready.push_back((Instant::now(), WatchBatch { revision, events: vec![event] }));
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            if let Some((received, batch)) = self.ready.pop_front() {
                self.figures.taken(&batch, received.elapsed());
                self.position = batch.revision + 1;
                return Ok(batch);
            }
            self.position = self.heard;
            match self.stream.message().await {
                Ok(Some(response)) => self.take(response)?,
                Ok(None) => return Err(self.interrupted("the stream ended")),
                Err(error) => return Err(self.interrupted(error.to_string())),
            }
        }
    }

    fn position(&self) -> u64 {
        self.position
    }
}

fn event_of(event: PbEvent) -> Result<Event, StoreError> {
    let kv = event.kv.ok_or_else(|| convert::odd("an event without a key"))?;
    match event.r#type {
        0 => Ok(Event::Put(Arc::new(convert::entry_of(kv)?))),
        1 => Ok(Event::Delete {
            revision: convert::number(kv.mod_revision),
            key: convert::key_of(kv.key)?,
            leased: None,
        }),
        _ => Err(convert::odd("an event that is neither a put nor a delete")),
    }
}
