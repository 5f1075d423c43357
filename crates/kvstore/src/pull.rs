//! List and watch in pieces, for who keeps a record of its own of what is known and must know when contact is lost.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    error::StoreError,
    model::{Entry, Event, Header, WatchBatch},
    pace::Pace,
    pages::Pages,
    store::{Store, Watch},
    witness::{Recall, Witness},
};

/// Pieces that may wait for a slow consumer before the puller waits with it.
const WAITING: usize = 4;

/// Why a prefix was listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relisted {
    /// It is the first list.
    First,
    /// The changes in between are forgotten.
    Compacted,
    /// The same store has another past than it had: it was wiped, or restored from a backup.
    Rewound,
    /// Another store answers.
    OtherStore,
}

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

/// The content of a prefix and then its changes, in pieces of bounded size: nothing is remembered here but a revision and
/// one write, by which a store that was rewound is known even when it has passed that revision again.
pub struct Pull {
    pieces: mpsc::Receiver<Pulled>,
    task: JoinHandle<()>,
}

// === impl Pull ===

impl Pull {
    /// Begins. `last` is what the store was like when it was last pulled from, perhaps by another process: the first list
    /// then says whether the store was rewound or is another. Failures are tried again with `pace` until it is
    /// dropped. Needs a tokio runtime.
    pub fn start(store: Arc<dyn Store>, prefix: &str, pace: impl Into<Pace>, last: Option<Header>) -> Self {
        Self::after(store, prefix, pace, last, None)
    }

    /// As [`Pull::start`], by one who knows a write from then, of whatever key.
    pub fn after(
        store: Arc<dyn Store>,
        prefix: &str,
        pace: impl Into<Pace>,
        last: Option<Header>,
        witness: Option<Witness>,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        let puller = Puller {
            store,
            prefix: prefix.to_owned(),
            pace: pace.into(),
            chance: fastrand::Rng::new(),
            seen: last,
            changed: 0,
            witness,
            sender,
        };
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
    pace: Pace,
    chance: fastrand::Rng,
    /// Everything up to this revision of this store was passed on.
    seen: Option<Header>,
    /// Nothing was changed after this revision, up to the one that was seen; 0 if that is not known.
    changed: u64,
    /// The last write that was passed on.
    witness: Option<Witness>,
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
            let wait = self.pace.delay(failures, &mut self.chance);
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
        self.check_past(why).await?;
        if let Some(reason) = *why {
            self.list(reason).await?;
            *why = None;
        }
        let seen = self.seen.map_or(0, |seen| seen.revision);
        // A store that was rewound to a revision behind the last change and has passed the last seen one may have changed
        // in between. Where nothing is known of that time any more, what was seen must do.
        let changed = if self.changed == 0 { seen } else { self.changed };
        match self.watch(changed + 1).await {
            Err(Left::Failed(StoreError::Compacted { .. })) if changed < seen && self.changed == changed => {
                self.changed = seen;
                self.watch(seen + 1).await
            }
            left => left,
        }
    }

    /// What the store says is compared with what it said before: a watch from a revision that does not exist yet would
    /// wait in silence.
    async fn check_past(&self, why: &mut Option<Relisted>) -> Result<(), Left> {
        let Some(seen) = self.seen else { return Ok(()) };
        let now = self.store.header().await?;
        if now.cluster != seen.cluster {
            *why = Some(Relisted::OtherStore);
        } else if now.revision < seen.revision {
            *why = Some(Relisted::Rewound);
        } else if let Some(witness) = &self.witness
            && witness.recalled(self.store.as_ref(), now).await? == Recall::Never
        {
            *why = Some(Relisted::Rewound);
        }
        Ok(())
    }

    async fn watch(&mut self, from: u64) -> Result<std::convert::Infallible, Left> {
        let mut watch = self.store.watch(&self.prefix, from).await?;
        self.send(Pulled::Watching).await?;
        loop {
            let batch = watch.next().await;
            self.skip_to(watch.as_ref());
            let batch = batch?;
            self.changed = batch.revision;
            let put = batch.events.iter().rev().find_map(|event| match event {
                Event::Put(entry) => Some(entry),
                Event::Delete { .. } => None,
            });
            if let Some(entry) = put {
                self.witness = Some(Witness::of(entry));
            }
            self.send(Pulled::Changes(batch)).await?;
        }
    }

    async fn list(&mut self, why: Relisted) -> Result<(), Left> {
        let mut pages = Pages::of(&self.prefix);
        let Some(mut page) = pages.next(self.store.as_ref()).await? else { return Ok(()) };
        let header = page.header;
        let mut newest: Option<Witness> = None;
        self.send(Pulled::Listing { why, header }).await?;
        loop {
            if let Some(entry) = page.entries.iter().max_by_key(|entry| entry.mod_revision)
                && newest.as_ref().is_none_or(|newest| newest.revision < entry.mod_revision)
            {
                newest = Some(Witness::of(entry));
            }
            self.send(Pulled::Page(page.entries)).await?;
            let Some(next) = pages.next(self.store.as_ref()).await? else { break };
            page = next;
        }
        self.seen = Some(header);
        self.changed = header.revision;
        self.witness = newest;
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
