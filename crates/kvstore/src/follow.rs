//! List and watch: a prefix as a stream of changes that goes on through every interruption.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    error::StoreError,
    model::{Entry, Event, Header},
    pace::Pace,
    store::{Store, Watch},
};

/// Batches that may wait for a slow consumer before the follower waits with it.
const WAITING: usize = 64;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The key has this entry now.
    Put(Arc<Entry>),
    /// The key is gone.
    Delete {
        /// The key.
        key: Arc<str>,
        /// Revision of the deletion; of one that was only found by listing again, the list's.
        revision: u64,
        /// Whether the key was under a lease when it was last written.
        leased: bool,
    },
}

/// Why a prefix was listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relisted {
    /// It is the first list.
    First,
    /// The changes in between are forgotten.
    Compacted,
    /// The same store is at an earlier revision than it was: it was wiped, or restored from a backup.
    Rewound,
    /// Another store answers.
    OtherStore,
}

/// Changes that belong together: a transaction's, or a list's against what was known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The prefix is as of this revision now.
    pub revision: u64,
    /// The changes. A list without a difference is a batch without changes.
    pub items: Vec<Item>,
    /// Whether this is the outcome of a list, and why it was made. Deletions in it were concluded.
    pub relisted: Option<Relisted>,
}

/// The changes below a prefix: ordered, each once, each transaction whole, resumed after interruptions, nothing
/// left out. Where changes were missed the prefix is listed again and the difference is made up.
pub struct Follow {
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

// === impl Follow ===

impl Follow {
    /// Begins to follow. The first batch is the list, even when it is empty. Failures are tried again with
    /// `pace` until it succeeds or the follower is dropped. Needs a tokio runtime.
    pub fn start(store: Arc<dyn Store>, prefix: &str, pace: impl Into<Pace>) -> Self {
        Self::resume(store, prefix, pace, Past::default())
    }

    /// As [`Self::start`], by one who knows keys from before: the list's batch tells what became of them too.
    pub fn resume(store: Arc<dyn Store>, prefix: &str, pace: impl Into<Pace>, past: Past) -> Self {
        let (sender, batches) = mpsc::channel(WAITING);
        let known = past.keys.into_iter().map(|(key, leased)| (key, Known { revision: 0, leased }));
        let follower = Follower {
            store,
            prefix: prefix.to_owned(),
            pace: pace.into(),
            chance: fastrand::Rng::new(),
            known: known.collect(),
            seen: past.seen,
            sender,
        };
        Self { batches, task: tokio::spawn(follower.run()) }
    }

    /// The next batch. Cancelling loses nothing. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of a prefix from before.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its keys, and whether each was under a lease.
    pub keys: Vec<(Arc<str>, bool)>,
    /// Which store said so, and at which revision at least.
    pub seen: Option<Header>,
}

/// A key that was passed on.
#[derive(Clone, Copy)]
struct Known {
    /// Revision of its last write; 0 if it is known from before.
    revision: u64,
    leased: bool,
}

struct Follower {
    store: Arc<dyn Store>,
    prefix: String,
    pace: Pace,
    chance: fastrand::Rng,
    /// Each key's last write that was passed on.
    known: BTreeMap<Arc<str>, Known>,
    /// Everything up to this revision of this store was passed on.
    seen: Option<Header>,
    sender: mpsc::Sender<Batch>,
}

/// Why the follower left off.
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

// === impl Known ===

impl Known {
    fn of(entry: &Entry) -> Self {
        Self { revision: entry.mod_revision, leased: entry.lease.is_some() }
    }
}

// === impl Follower ===

impl Follower {
    async fn run(mut self) {
        let mut failures: u32 = 0;
        let mut why = Some(Relisted::First);
        loop {
            let before = self.seen;
            let Err(left) = self.follow(&mut why).await;
            let error = match left {
                Left::Alone => return,
                Left::Failed(error) => error,
            };
            if matches!(error, StoreError::Compacted { .. }) {
                why.get_or_insert(Relisted::Compacted);
            }
            failures = if self.seen == before { failures.saturating_add(1) } else { 1 };
            let wait = self.pace.delay(failures, &mut self.chance);
            tracing::debug!(prefix = self.prefix, %error, ?wait, "following was interrupted");
            tokio::select! {
                () = self.sender.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn follow(&mut self, why: &mut Option<Relisted>) -> Result<std::convert::Infallible, Left> {
        self.check_history(why).await?;
        if let Some(reason) = *why {
            self.list(reason).await?;
            *why = None;
        }
        let from = self.seen.map_or(1, |seen| seen.revision + 1);
        let mut watch = self.store.watch(&self.prefix, from).await?;
        loop {
            let batch = watch.next().await;
            self.skip_to(watch.as_ref());
            let batch = batch?;
            let items = batch.events.into_iter().filter_map(|event| self.pass(event)).collect();
            self.send(Batch { revision: batch.revision, items, relisted: None }).await?;
        }
    }

    /// What the store says is compared with what it said before: a watch from a revision that does not exist
    /// yet would wait in silence.
    async fn check_history(&mut self, why: &mut Option<Relisted>) -> Result<(), Left> {
        let Some(seen) = self.seen else { return Ok(()) };
        let now = self.store.header().await?;
        if now.cluster != seen.cluster {
            *why = Some(Relisted::OtherStore);
        } else if now.revision < seen.revision {
            *why = Some(Relisted::Rewound);
        }
        Ok(())
    }

    async fn list(&mut self, reason: Relisted) -> Result<(), Left> {
        let listing = self.store.list_prefix(&self.prefix).await?;
        let revision = listing.header.revision;
        // In another history equal revisions are not equal writes.
        let comparable = matches!(reason, Relisted::First | Relisted::Compacted);
        let mut gone = std::mem::take(&mut self.known);
        let mut items = Vec::new();
        for entry in listing.entries {
            let old = gone.remove(&entry.key);
            self.known.insert(Arc::clone(&entry.key), Known::of(&entry));
            if !comparable || old.map(|old| old.revision) != Some(entry.mod_revision) {
                items.push(Item::Put(Arc::new(entry)));
            }
        }
        let delete = |(key, known): (Arc<str>, Known)| Item::Delete { key, revision, leased: known.leased };
        let deleted = gone.into_iter().map(delete);
        items.splice(0..0, deleted);
        self.seen = Some(listing.header);
        self.send(Batch { revision, items, relisted: Some(reason) }).await
    }

    fn pass(&mut self, event: Event) -> Option<Item> {
        match event {
            Event::Put(entry) => {
                let old = self.known.insert(Arc::clone(&entry.key), Known::of(&entry));
                (old.map(|old| old.revision) != Some(entry.mod_revision)).then_some(Item::Put(entry))
            }
            Event::Delete { key, revision, leased } => {
                let known = self.known.remove(&key)?;
                // Not every store says of a deletion what the key was.
                Some(Item::Delete { key, revision, leased: leased.unwrap_or(known.leased) })
            }
        }
    }

    fn skip_to(&mut self, watch: &dyn Watch) {
        if let Some(seen) = &mut self.seen {
            seen.revision = seen.revision.max(watch.position().saturating_sub(1));
        }
    }

    async fn send(&self, batch: Batch) -> Result<(), Left> {
        if batch.items.is_empty() && batch.relisted.is_none() {
            return Ok(());
        }
        self.sender.send(batch).await.map_err(|_| Left::Alone)
    }
}
