//! The committed content of a table: rows, their order of change, and graves.
//!
//! All three are persistent maps: cloning shares everything, so that a write transaction works on its own
//! copy and a snapshot is never disturbed.

use std::sync::Arc;

use imbl::OrdMap;

use crate::{
    row::{Grave, Past, Row},
    table::Revision,
};

pub(crate) struct State<K, V> {
    pub(crate) rows: OrdMap<K, Arc<Row<V>>>,
    /// Live rows by the revision of their last write.
    pub(crate) order: OrdMap<Revision, K>,
    /// Deleted rows by the revision of their deletion.
    pub(crate) graves: OrdMap<Revision, Arc<Grave<K, V>>>,
    /// Where a key's grave lies.
    pub(crate) buried: OrdMap<K, Revision>,
    pub(crate) revision: Revision,
}

impl<K, V> Clone for State<K, V> {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            order: self.order.clone(),
            graves: self.graves.clone(),
            buried: self.buried.clone(),
            revision: self.revision,
        }
    }
}

impl<K, V> Default for State<K, V> {
    fn default() -> Self {
        Self {
            rows: OrdMap::new(),
            order: OrdMap::new(),
            graves: OrdMap::new(),
            buried: OrdMap::new(),
            revision: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone> State<K, V> {
    /// Writes a row at the next revision and returns the value that was there.
    pub(crate) fn put(&mut self, key: K, value: V) -> Option<V> {
        self.revision += 1;
        let revision = self.revision;
        let old = self.rows.get(&key).cloned();
        let (created, past) = match &old {
            Some(row) => {
                self.order.remove(&row.revision);
                (row.created, row.past.clone())
            }
            None => (revision, self.exhume(&key)),
        };
        self.order.insert(revision, key.clone());
        self.rows.insert(key, Arc::new(Row { value, revision, created, past }));
        old.map(|row| row.value.clone())
    }

    /// Deletes a row at the next revision and returns its value; `None`, and no new revision, without one.
    pub(crate) fn delete(&mut self, key: &K, seen_by_all: Revision) -> Option<V> {
        let (key, row) = self.rows.remove_with_key(key)?;
        self.revision += 1;
        self.order.remove(&row.revision);
        let past = row.past.clone().ended(row.created, self.revision, seen_by_all);
        let grave = Grave { key: key.clone(), last: row.value.clone(), past };
        self.graves.insert(self.revision, Arc::new(grave));
        self.buried.insert(key, self.revision);
        Some(row.value.clone())
    }

    /// The same in as little memory as it takes.
    pub(crate) fn packed(&self) -> Self {
        Self { rows: packed(&self.rows), order: packed(&self.order), ..self.clone() }
    }

    /// Forgets graves that every consumer has seen.
    pub(crate) fn forget(&mut self, seen_by_all: Revision) {
        while let Some((revision, grave)) = self.graves.get_min() {
            if *revision > seen_by_all {
                return;
            }
            let (revision, key) = (*revision, grave.key.clone());
            self.graves.remove(&revision);
            self.buried.remove(&key);
        }
    }

    fn exhume(&mut self, key: &K) -> Past {
        let grave = self.buried.remove(key).and_then(|revision| self.graves.remove(&revision));
        grave.map(|grave| grave.past.clone()).unwrap_or_default()
    }
}

/// Every second key first: a node that overflows is split in halves, which the other keys fill up then.
fn packed<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>) -> OrdMap<K, V> {
    let half = |first| map.iter().skip(first).step_by(2);
    half(0).chain(half(1)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
