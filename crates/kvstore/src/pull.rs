//! List and watch in pieces, for who keeps a record of its own of what is known and must know when contact is lost.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{sync::mpsc, task::JoinHandle};
use villus_table::Backoff;

use crate::{
    error::StoreError,
    follow::Relisted,
    model::{Entry, Header, WatchBatch},
    store::{Store, Watch},
};

/// Pieces that may wait for a slow consumer before the puller waits with it.
const WAITING: usize = 4;
/// Entries of a list that come together.
const PIECE: usize = 1000;

/// A piece of what happens below a prefix.
#[derive(Clone, Debug)]
pub enum Pulled {
    /// A list begins, as of this revision. One that was under way is void.
    Listing {
        /// Why it is made.
        why: Relisted,
        /// Who answers.
        header: Header,
    },
    /// Entries of the list.
    Page(Vec<Entry>),
    /// The list is complete: what was in none of its pages is not there.
    Listed(Header),
    /// The watch stands; changes come in their order from here on, and nothing was missed.
    Watching,
    /// What one transaction changed. Some of it may be known from the list already.
    Changes(WatchBatch),
    /// Contact is lost. What was said before still is the last that is known; it is tried again.
    Lost(StoreError),
}

/// The content of a prefix and then its changes, in pieces of bounded size: nothing is remembered here but a revision.
pub struct Pull {
    pieces: mpsc::Receiver<Pulled>,
    task: JoinHandle<()>,
}

// === impl Pull ===

impl Pull {
    /// Begins. `last` is what the store was like when it was last pulled from, perhaps by another process: the first list
    /// then says whether the store was rewound or is another. Failures are tried again with `backoff` until it is
    /// dropped. Needs a tokio runtime.
    pub fn start(store: Arc<dyn Store>, prefix: &str, backoff: Backoff, last: Option<Header>) -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        let chance = fastrand::Rng::new();
        let puller = Puller { store, prefix: prefix.to_owned(), backoff, chance, seen: last, sender };
        Self { pieces, task: tokio::spawn(puller.run()) }
    }

    /// The next piece. Cancelling loses nothing. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Pulled> {
        self.pieces.recv().await
    }

    /// As [`Pull::next`], for who waits for several.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Pulled>> {
        self.pieces.poll_recv(context)
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Puller {
    store: Arc<dyn Store>,
    prefix: String,
    backoff: Backoff,
    chance: fastrand::Rng,
    /// Everything up to this revision of this store was passed on.
    seen: Option<Header>,
    sender: mpsc::Sender<Pulled>,
}

/// Why the puller left off.
enum Left {
    /// Nobody listens any more.
    Alone,
    Failed(StoreError),
}

impl From<StoreError> for Left {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

// === impl Puller ===

impl Puller {
    async fn run(mut self) {
        let mut failures: u32 = 0;
        let mut why = Some(Relisted::First);
        loop {
            let before = self.seen;
            let Err(left) = self.pull(&mut why).await;
            let error = match left {
                Left::Alone => return,
                Left::Failed(error) => error,
            };
            if matches!(error, StoreError::Compacted { .. }) {
                why.get_or_insert(Relisted::Compacted);
            }
            failures = if self.seen == before { failures.saturating_add(1) } else { 1 };
            let wait = self.backoff.delay(failures, &mut self.chance);
            tracing::debug!(prefix = self.prefix, %error, ?wait, "pulling was interrupted");
            if self.send(Pulled::Lost(error)).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.sender.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn pull(&mut self, why: &mut Option<Relisted>) -> Result<std::convert::Infallible, Left> {
        let now = self.store.header().await?;
        // A watch from a revision that does not exist yet would wait in silence.
        match self.seen {
            Some(seen) if seen.cluster != now.cluster => *why = Some(Relisted::OtherStore),
            Some(seen) if now.revision < seen.revision => *why = Some(Relisted::Rewound),
            _ => {}
        }
        if let Some(reason) = *why {
            self.list(reason).await?;
            *why = None;
        }
        let from = self.seen.map_or(1, |seen| seen.revision + 1);
        let mut watch = self.store.watch(&self.prefix, from).await?;
        self.send(Pulled::Watching).await?;
        loop {
            let batch = watch.next().await;
            self.skip_to(watch.as_ref());
            self.send(Pulled::Changes(batch?)).await?;
        }
    }

    async fn list(&mut self, why: Relisted) -> Result<(), Left> {
        let mut page = self.store.list_page(&self.prefix, None, PIECE, 0).await?;
        let header = page.header;
        self.send(Pulled::Listing { why, header }).await?;
        loop {
            let after = page.entries.last().map(|entry| Arc::clone(&entry.key));
            let more = page.more;
            self.send(Pulled::Page(page.entries)).await?;
            let (true, Some(after)) = (more, after) else { break };
            page = self.store.list_page(&self.prefix, Some(&after), PIECE, header.revision).await?;
        }
        self.seen = Some(header);
        self.send(Pulled::Listed(header)).await
    }

    fn skip_to(&mut self, watch: &dyn Watch) {
        if let Some(seen) = &mut self.seen {
            seen.revision = seen.revision.max(watch.position().saturating_sub(1));
        }
    }

    async fn send(&self, piece: Pulled) -> Result<(), Left> {
        self.sender.send(piece).await.map_err(|_| Left::Alone)
    }
}
