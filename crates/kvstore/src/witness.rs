//! One write that was seen: a store in whose past it is missing has another past than it had.

use serde::{Deserialize, Serialize};

use crate::{
    error::StoreError,
    model::{Entry, Header},
    store::Store,
};

/// A write of a key, by what tells it from every other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The key.
    pub key: String,
    /// Revision of the write.
    pub revision: u64,
    created: u64,
    version: u64,
    lease: u64,
}

/// Whether a store remembers a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recall {
    /// It took place.
    Yes,
    /// What was then is compacted.
    Forgotten,
    /// It never did.
    Never,
}

// === impl Witness ===

impl Witness {
    /// The write by which an entry is as it is.
    pub fn of(entry: &Entry) -> Self {
        Self {
            key: entry.key.to_string(),
            revision: entry.mod_revision,
            created: entry.create_revision,
            version: entry.version,
            lease: entry.lease.map_or(0, |lease| lease.0),
        }
    }

    /// Whether a store that is at `now` remembers it.
    pub(crate) async fn recalled(&self, store: &dyn Store, now: Header) -> Result<Recall, StoreError> {
        if now.revision < self.revision {
            return Ok(Recall::Never);
        }
        // As the key is now: for most keys that says it already, and history may be short.
        match self.at(store, 0).await? {
            Some(entry) if entry.mod_revision <= self.revision => return Ok(self.is(Some(&entry))),
            _ => {}
        }
        match self.at(store, self.revision).await {
            Ok(entry) => Ok(self.is(entry.as_ref())),
            Err(StoreError::Compacted { .. }) => Ok(Recall::Forgotten),
            Err(error) => Err(error),
        }
    }

    fn is(&self, entry: Option<&Entry>) -> Recall {
        match entry.is_some_and(|entry| Self::of(entry) == *self) {
            true => Recall::Yes,
            false => Recall::Never,
        }
    }

    /// The key as of a revision.
    async fn at(&self, store: &dyn Store, revision: u64) -> Result<Option<Entry>, StoreError> {
        // It is the first of the keys that begin with it.
        let page = store.list_page(&self.key, None, 1, revision).await?;
        Ok(page.entries.into_iter().find(|entry| *entry.key == *self.key))
    }
}
