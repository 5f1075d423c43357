//! Watches of the engine: each follows the published history at its own pace; nothing is queued for it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch as signal;

use super::{Published, Shared};
use crate::{
    error::StoreError,
    model::{Event, WatchBatch},
    store::Watch,
};

pub(crate) struct EngineWatch {
    shared: Arc<Shared>,
    prefix: String,
    position: u64,
    era: u64,
    bell: signal::Receiver<u64>,
}

impl EngineWatch {
    pub(crate) fn new(shared: &Arc<Shared>, prefix: &str, from: u64) -> Self {
        let bell = shared.revision.subscribe();
        let era = shared.read(|p| p.era);
        Self { shared: Arc::clone(shared), prefix: prefix.to_owned(), position: from.max(1), era, bell }
    }

    /// The next batch that is already there.
    fn look(&mut self) -> Result<Option<WatchBatch>, StoreError> {
        let shared = Arc::clone(&self.shared);
        shared.read(|p| {
            if p.era != self.era {
                let reason = "the store's content was replaced".to_owned();
                return Err(StoreError::Interrupted { prefix: self.prefix.clone(), reason });
            }
            if self.position < p.oldest && self.position <= p.state.revision {
                return Err(StoreError::Compacted { requested: self.position, oldest: p.oldest });
            }
            Ok(self.scan(p))
        })
    }

    fn scan(&mut self, published: &Published) -> Option<WatchBatch> {
        let first = published.history.partition_point(|batch| batch.revision < self.position);
        for batch in published.history.range(first..) {
            let mine: Vec<Event> =
                batch.events.iter().filter(|e| e.key().starts_with(&self.prefix)).cloned().collect();
            self.position = batch.revision + 1;
            if !mine.is_empty() {
                return Some(WatchBatch { revision: batch.revision, events: mine });
            }
        }
        // Revisions without changes (after a restart) are seen too.
        self.position = self.position.max(published.state.revision + 1);
        None
    }
}

#[async_trait]
impl Watch for EngineWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.bell.mark_unchanged();
            if let Some(batch) = self.look()? {
                return Ok(batch);
            }
            self.bell.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    fn position(&self) -> u64 {
        self.position
    }
}
