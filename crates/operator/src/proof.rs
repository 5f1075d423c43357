//! Whether the store answers with a quorum, and whether it always did.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use villus_kvstore::{Header, Store};

/// What is known about the store's quorum. It is not proven before the first answer.
#[derive(Debug)]
pub(crate) struct Proof(watch::Sender<Known>);

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    proven: bool,
    lost: u64,
}

// === impl Proof ===

impl Proof {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Known::default()))
    }

    /// Waits until it is proven, and says how often it was lost so far: equal numbers say that it held in between.
    pub(crate) async fn proven(&self) -> u64 {
        let mut known = self.0.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        known.wait_for(|known| known.proven).await.map_or(0, |known| known.lost)
    }

    /// Waits until it was lost once more than `lost` says.
    pub(crate) async fn lost_since(&self, lost: u64) {
        let _ = self.0.subscribe().wait_for(|known| known.lost != lost).await;
    }

    pub(crate) fn held_since(&self, lost: u64) -> bool {
        let known = *self.0.borrow();
        known.proven && known.lost == lost
    }

    pub(crate) fn lose(&self) {
        self.0.send_modify(|known| *known = Known { proven: false, lost: known.lost + 1 });
    }

    /// Asks again and again with a read that needs a quorum. A store that goes back in time, or is another, counts as
    /// one that was lost.
    pub(crate) async fn run(&self, store: Arc<dyn Store>, interval: Duration) {
        let mut last: Option<Header> = None;
        loop {
            match store.header().await {
                Ok(now) => {
                    if last.is_some_and(|last| last.cluster != now.cluster || last.revision > now.revision) {
                        self.lose();
                    }
                    last = Some(now);
                    self.0.send_if_modified(|known| !std::mem::replace(&mut known.proven, true));
                }
                Err(error) => {
                    if self.0.borrow().proven {
                        tracing::warn!(%error, "the store's quorum is not proven");
                        self.lose();
                    }
                }
            }
            tokio::time::sleep(interval).await;
        }
    }
}
