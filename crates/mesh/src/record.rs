//! What a mesh notes in the local store about each remote that it copies: `cilium/.kvstoremesh/<cluster>`.
//!
//! So that whoever comes next (another process, another replica) knows what is a copy, where it lies, and whether the
//! remote is still the store that it was. Other readers of the store do not look there.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_kvstore::{Header, Op, Store, StoreError, keys::join_key};

use crate::{guard::Guard, layout::Layout, status::State};

/// Prefix of the notes.
pub const RECORDS: &str = "cilium/.kvstoremesh";

/// The note about one remote.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The remote's id: its range of identities.
    pub id: u32,
    /// Layouts that hold copies of it.
    pub layouts: Vec<Layout>,
    /// Which store it was: etcd's cluster id, hexadecimal.
    #[serde(default)]
    pub store: String,
    /// Its revision when it was last copied from.
    #[serde(default)]
    pub revision: u64,
    /// Ids that it had before, whose identities are not cleared away yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<u32>,
    /// It was restored or wiped; what it lacks stays until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// It is not configured any more; copies go then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal_at: Option<Timestamp>,
    /// How each prefix is (`cache/nodes`), and since when.
    #[serde(default)]
    pub states: BTreeMap<String, (State, Timestamp)>,
}

// === impl Record ===

impl Record {
    pub(crate) fn new(id: u32) -> Self {
        Self {
            id,
            layouts: Vec::new(),
            store: String::new(),
            revision: 0,
            retired: Vec::new(),
            held_until: None,
            removal_at: None,
            states: BTreeMap::new(),
        }
    }

    /// Its key.
    pub fn key(cluster: &str) -> String {
        join_key([RECORDS, cluster])
    }

    /// What the remote's store was like; `None` if that is not known.
    pub fn last(&self) -> Option<Header> {
        let cluster = u64::from_str_radix(&self.store, 16).ok()?;
        (self.revision > 0).then_some(Header { cluster, revision: self.revision })
    }

    pub(crate) async fn read(store: &dyn Store, cluster: &str) -> Result<Option<Self>, StoreError> {
        let Some(entry) = store.get(&Self::key(cluster)).await? else { return Ok(None) };
        let read = serde_json::from_slice(&entry.value);
        if let Err(error) = &read {
            // Nothing is deleted on the strength of what can't be read.
            tracing::warn!(cluster, %error, "the note about a remote can't be read; it is written anew");
        }
        Ok(read.ok())
    }

    /// All notes.
    pub(crate) async fn all(store: &dyn Store) -> Result<BTreeMap<String, Self>, StoreError> {
        let prefix = format!("{RECORDS}/");
        let entries = store.list_prefix(&prefix).await?.entries;
        let read = |entry: villus_kvstore::Entry| {
            let cluster = entry.key.strip_prefix(&prefix)?.to_owned();
            Some((cluster, serde_json::from_slice(&entry.value).ok()?))
        };
        Ok(entries.into_iter().filter_map(read).collect())
    }

    pub(crate) async fn write(
        &self,
        store: &Arc<dyn Store>,
        guard: &Guard,
        cluster: &str,
    ) -> Result<(), StoreError> {
        // Names, numbers and times only: this can't fail, and an empty value would be read as none.
        let value = serde_json::to_string(self).unwrap_or_default();
        let outcome = store.txn(guard.txn().then(Op::put(Self::key(cluster), value, None))).await?;
        if outcome.held { Ok(()) } else { Err(Guard::lost()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_note_comes_back_as_it_was_written() {
        let mut record = Record::new(2);
        record.layouts = vec![Layout::Cache];
        (record.store, record.revision) = ("ff".to_owned(), 7);
        record.states.insert("cache/ip".to_owned(), (State::Stale, Timestamp::UNIX_EPOCH));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert_eq!(record.last(), Some(Header { cluster: 255, revision: 7 }));
        assert_eq!(Record::new(2).last(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value in prop::collection::vec(any::<u8>(), 0..80), id in any::<u64>()) {
            let _ = serde_json::from_slice::<Record>(&value);
            let _ = serde_json::from_str::<Record>(&format!(r#"{{"id":{id},"layouts":["cache"],"store":"{id}"}}"#));
        }
    }
}
