//! List and watch: a prefix as a stream of changes that goes on through every interruption.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    model::{Entry, Event, Header, WatchBatch},
    pace::Pace,
    pull::{Pull, Pulled, Relisted},
    store::Store,
    witness::Witness,
};

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

/// What is known of a prefix from before.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its keys, and whether each was under a lease.
    pub keys: Vec<(Arc<str>, bool)>,
    /// Which store said so, and at which revision at least.
    pub seen: Option<Header>,
    /// A write of then, of whatever key.
    pub witness: Option<Witness>,
}

/// The changes below a prefix: ordered, each once, each transaction whole, resumed after interruptions, nothing
/// left out. Where changes were missed the prefix is listed again and the difference is made up.
pub struct Follow {
    store: Arc<dyn Store>,
    prefix: String,
    pace: Pace,
    pull: Pull,
    /// Who answered last, as far as it was passed on.
    seen: Option<Header>,
    /// Each key's last write that was passed on.
    known: BTreeMap<Arc<str>, Known>,
    /// Everything up to this revision was passed on; 0 if all that is known is from before.
    revision: u64,
    listing: Option<Gathered>,
    witness: Option<Witness>,
}

/// A key that was passed on.
#[derive(Clone, Copy)]
struct Known {
    /// Revision of its last write; 0 if it is known from before.
    revision: u64,
    leased: bool,
}

/// A list as far as it has come.
struct Gathered {
    why: Relisted,
    known: BTreeMap<Arc<str>, Known>,
    items: Vec<Item>,
    /// Entries that are as they were, unless the store's past turns out to be another.
    same: Vec<Entry>,
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
        let known = past.keys.into_iter().map(|(key, leased)| (key, Known { revision: 0, leased }));
        let pace = pace.into();
        Self {
            pull: Pull::after(Arc::clone(&store), prefix, pace.clone(), past.seen, past.witness),
            store,
            prefix: prefix.to_owned(),
            pace,
            seen: past.seen,
            known: known.collect(),
            revision: 0,
            listing: None,
            witness: None,
        }
    }

    /// The next batch. Cancelling loses nothing. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            let piece = self.pull.next().await?;
            if let Some(batch) = self.take(piece) {
                return Some(batch);
            }
        }
    }

    /// Lists the prefix once more and tells every entry again, whether or not it has changed: for who judges them by other
    /// rules now.
    pub fn again(&mut self) {
        self.listing = None;
        self.known.values_mut().for_each(|known| known.revision = 0);
        let (store, pace, witness) = (Arc::clone(&self.store), self.pace.clone(), self.witness.clone());
        self.pull = Pull::after(store, &self.prefix, pace, self.seen, witness);
    }

    /// The newest write that was passed on.
    pub fn witness(&self) -> Option<&Witness> {
        self.witness.as_ref()
    }

    fn take(&mut self, piece: Pulled) -> Option<Batch> {
        match piece {
            Pulled::Listing { why, .. } => self.listing = Some(Gathered::new(why)),
            Pulled::Page(entries) => {
                for entry in entries {
                    self.gather(entry);
                }
            }
            Pulled::Listed(header) => {
                self.seen = Some(header);
                return self.conclude(header.revision);
            }
            Pulled::Changes(batch) => return self.changes(batch),
            Pulled::Watching => {}
            // What was listed so far is void.
            Pulled::Lost(_) => self.listing = None,
        }
        None
    }

    /// Takes in an entry of a list.
    fn gather(&mut self, entry: Entry) {
        let Some(listing) = &mut self.listing else { return };
        listing.known.insert(Arc::clone(&entry.key), Known::of(&entry));
        let old = self.known.get(&entry.key).map(|old| old.revision);
        let is_news = old != Some(entry.mod_revision);
        if listing.why == Relisted::Compacted && is_news && entry.mod_revision <= self.revision {
            // Everything of then was known: this write is of another past.
            listing.why = Relisted::Rewound;
        }
        // In another past equal revisions are not equal writes.
        match matches!(listing.why, Relisted::First | Relisted::Compacted) && !is_news {
            true => listing.same.push(entry),
            false => listing.items.push(Item::Put(Arc::new(entry))),
        }
    }

    /// A list is complete.
    fn conclude(&mut self, revision: u64) -> Option<Batch> {
        let Gathered { why, known, mut items, same } = self.listing.take()?;
        if why == Relisted::Rewound {
            items.extend(same.into_iter().map(|entry| Item::Put(Arc::new(entry))));
        }
        let newest = items.iter().filter_map(Item::entry).max_by_key(|entry| entry.mod_revision);
        if let Some(entry) = newest {
            self.witness = Some(Witness::of(entry));
        }
        let before = std::mem::replace(&mut self.known, known);
        let gone = before.into_iter().filter(|(key, _)| !self.known.contains_key(key));
        let deleted = gone.map(|(key, old)| Item::Delete { key, revision, leased: old.leased });
        items.splice(0..0, deleted.collect::<Vec<_>>());
        self.revision = revision;
        Some(Batch { revision, items, relisted: Some(why) })
    }

    fn changes(&mut self, batch: WatchBatch) -> Option<Batch> {
        let revision = batch.revision;
        let items: Vec<Item> = batch.events.into_iter().filter_map(|event| self.pass(event)).collect();
        self.revision = self.revision.max(revision);
        if let Some(seen) = &mut self.seen {
            seen.revision = seen.revision.max(revision);
        }
        if let Some(entry) = items.iter().rev().find_map(Item::entry) {
            self.witness = Some(Witness::of(entry));
        }
        (!items.is_empty()).then_some(Batch { revision, items, relisted: None })
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
}

// === impl Item ===

impl Item {
    /// The key that it is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Put(entry) => Some(entry),
            Self::Delete { .. } => None,
        }
    }
}

// === impl Known ===

impl Known {
    fn of(entry: &Entry) -> Self {
        Self { revision: entry.mod_revision, leased: entry.lease.is_some() }
    }
}

// === impl Gathered ===

impl Gathered {
    fn new(why: Relisted) -> Self {
        Self { why, known: BTreeMap::new(), items: Vec::new(), same: Vec::new() }
    }
}
