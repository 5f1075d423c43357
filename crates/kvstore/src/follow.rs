//! List and watch: a prefix as a stream of changes that goes on through every interruption.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::sync::watch as signal;

use crate::{
    error::StoreError,
    model::{Entry, Event, Header, WatchBatch},
    pace::Pace,
    pull::{Pull, Pulled, Relisted},
    store::Store,
    witness::Witness,
};

/// So many entries of a list are much memory of which little is kept.
const LARGE: usize = 10_000;
/// So many entries at least are in a part of a list.
const PART: usize = 4096;

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
    /// The prefix is as of this revision now; after a part of a list only what is in it.
    pub revision: u64,
    /// The changes. A list without a difference is a batch without changes.
    pub items: Vec<Item>,
    /// Whether this is the outcome of a list, and why it was made. Deletions in it were concluded. Parts of a list that were
    /// told before ([`Follow::in_parts`]) look like changes.
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
    in_parts: bool,
    /// Since when changes come by a watch.
    stands: signal::Sender<Option<Instant>>,
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
    revision: u64,
    known: Vec<(Arc<str>, Known)>,
    items: Vec<Item>,
    /// Entries that are as they were, unless the store's past turns out to be another.
    same: Vec<Entry>,
    /// So many of the known were told in parts.
    told: usize,
    /// The newest write of those parts.
    newest: Option<Witness>,
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
            in_parts: false,
            stands: signal::Sender::new(None),
        }
    }

    /// Tells a long first list in parts while it is read, each a batch of its own, so that all of it is never in memory at
    /// once. The batch that has `relisted` comes after them: only then is nothing missing, and what is in none of them is
    /// deleted.
    pub fn in_parts(self) -> Self {
        Self { in_parts: true, ..self }
    }

    /// The next batch. Cancelling loses nothing. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            if let Ok(batch) = self.heard().await? {
                return Some(batch);
            }
        }
    }

    /// As [`Self::next`], and also why contact was lost, each time: it is tried again all the same.
    pub async fn heard(&mut self) -> Option<Result<Batch, StoreError>> {
        loop {
            let piece = self.pull.next().await?;
            if let Pulled::Lost(error) = piece {
                self.void();
                self.stands.send_replace(None);
                return Some(Err(error));
            }
            if let Some(batch) = self.take(piece) {
                return Some(Ok(batch));
            }
        }
    }

    /// Lists the prefix once more and tells every entry again, whether or not it has changed: for who judges them by other
    /// rules now.
    pub fn again(&mut self) {
        self.void();
        self.stands.send_replace(None);
        self.known.values_mut().for_each(|known| known.revision = 0);
        let (store, pace, witness) = (Arc::clone(&self.store), self.pace.clone(), self.witness.clone());
        self.pull = Pull::after(store, &self.prefix, pace, self.seen, witness);
    }

    /// Since when changes come by a watch that stands, as far as this follower has heard; `None` while it is made again. The store may
    /// still have to tell what was missed before.
    pub fn stands(&self) -> signal::Receiver<Option<Instant>> {
        self.stands.subscribe()
    }

    /// Which store the last batch was of, and up to which revision all was passed on; before the first list what was known
    /// from before.
    pub fn seen(&self) -> Option<Header> {
        self.seen
    }

    /// The newest write that was passed on.
    pub fn witness(&self) -> Option<&Witness> {
        self.witness.as_ref()
    }

    fn take(&mut self, piece: Pulled) -> Option<Batch> {
        match piece {
            Pulled::Listing { why, header } => {
                self.void();
                self.listing = Some(Gathered::new(why, header.revision));
            }
            Pulled::Page(entries) => {
                for entry in entries {
                    self.gather(entry);
                }
                return self.part();
            }
            Pulled::Listed(header) => {
                self.seen = Some(header);
                return self.conclude(header.revision);
            }
            Pulled::Changes(batch) => return self.changes(batch),
            Pulled::Watching => {
                self.stands.send_replace(Some(Instant::now()));
            }
            Pulled::Lost(_) => {}
        }
        None
    }

    /// What was listed so far is void; what was told of it is known from before.
    fn void(&mut self) {
        let Some(Gathered { mut known, told, .. }) = self.listing.take() else { return };
        known.truncate(told);
        self.known.extend(known.into_iter().map(|(key, known)| (key, Known { revision: 0, ..known })));
    }

    /// Tells what was gathered of a list, if that is much and nothing can turn up that puts it in another light.
    fn part(&mut self) -> Option<Batch> {
        let listing = self.listing.as_mut()?;
        if !self.in_parts || listing.why != Relisted::First || listing.items.len() < PART {
            return None;
        }
        listing.told = listing.known.len();
        let items = std::mem::take(&mut listing.items);
        listing.newest = newest(&items, listing.newest.take());
        Some(Batch { revision: listing.revision, items, relisted: None })
    }

    /// Takes in an entry of a list.
    fn gather(&mut self, entry: Entry) {
        let Some(listing) = &mut self.listing else { return };
        listing.known.push((Arc::clone(&entry.key), Known::of(&entry)));
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
        let Gathered { why, mut known, mut items, same, newest: before, .. } = self.listing.take()?;
        if why == Relisted::Rewound {
            items.extend(same.into_iter().map(|entry| Item::Put(Arc::new(entry))));
        }
        if let Some(newest) = newest(&items, before) {
            self.witness = Some(newest);
        }
        if items.len() >= LARGE {
            set_apart(&mut items, &mut known);
        }
        let before = std::mem::replace(&mut self.known, known.into_iter().collect());
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

/// The newest of these writes and one from before.
fn newest(items: &[Item], before: Option<Witness>) -> Option<Witness> {
    let newest = items.iter().filter_map(Item::entry).max_by_key(|entry| entry.mod_revision);
    let newer =
        newest.filter(|entry| before.as_ref().is_none_or(|before| before.revision < entry.mod_revision));
    newer.map(Witness::of).or(before)
}

/// Keys outlive their entries. Lying between them they would keep all of their memory from being of use again: so they get
/// memory of their own while that of the entries is taken.
fn set_apart(items: &mut [Item], known: &mut [(Arc<str>, Known)]) {
    let apart: Vec<Arc<str>> = known.iter().map(|(key, _)| Arc::from(&**key)).collect();
    let mut next = 0;
    for ((key, _), apart) in known.iter_mut().zip(apart) {
        // Items are in the order of the list; some of the list may be none.
        if let Some(Item::Put(entry)) = items.get_mut(next)
            && Arc::ptr_eq(&entry.key, key)
        {
            next += 1;
            if let Some(entry) = Arc::get_mut(entry) {
                entry.key = Arc::clone(&apart);
            }
        }
        *key = apart;
    }
}

// === impl Batch ===

impl Batch {
    /// Whether the store's past is another than it was: what is missing was not deleted by anybody.
    pub fn is_of_another_past(&self) -> bool {
        matches!(self.relisted, Some(Relisted::Rewound | Relisted::OtherStore))
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
    fn new(why: Relisted, revision: u64) -> Self {
        let (known, items, same) = (Vec::new(), Vec::new(), Vec::new());
        Self { why, revision, known, items, same, told: 0, newest: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_set_apart_are_the_same_and_shared() {
        let entry = |n: u64| Entry {
            key: format!("k/{n}").into(),
            value: "v".into(),
            create_revision: n,
            mod_revision: n,
            version: 1,
            lease: None,
        };
        let entries: Vec<Entry> = (1..=5).map(entry).collect();
        let mut known: Vec<_> =
            entries.iter().map(|entry| (Arc::clone(&entry.key), Known::of(entry))).collect();
        // The second is as it was.
        let news = entries.into_iter().filter(|entry| entry.mod_revision != 2);
        let mut items: Vec<Item> = news.map(|entry| Item::Put(Arc::new(entry))).collect();
        let copy = |item: &Item| item.entry().map(|entry| Item::Put(Arc::new(entry.clone())));
        let before: Vec<Item> = items.iter().filter_map(copy).collect();
        let keys = known.clone();
        set_apart(&mut items, &mut known);
        assert_eq!(items, before);
        for ((key, known), (was, _)) in known.iter().zip(&keys) {
            assert!(key == was && !Arc::ptr_eq(key, was));
            let item =
                items.iter().filter_map(Item::entry).find(|entry| entry.mod_revision == known.revision);
            assert!(item.is_none_or(|entry| Arc::ptr_eq(&entry.key, key)), "{key}");
        }
    }
}
