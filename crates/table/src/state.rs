//! The committed content of a table: rows, the order of those that not all consumers have seen, and graves.
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
    pub(crate) rows: OrdMap<K, Row<V>>,
    /// Live rows by the revision of their last write, those after `settled`.
    order: OrdMap<Revision, K>,
    /// What was written up to here was seen by every consumer, or came in a long list. Nearly all rows lie there, and their
    /// order is found again for a consumer that has not looked since.
    settled: Revision,
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
            settled: self.settled,
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
            settled: 0,
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
        self.order.insert(revision, key.clone());
        if let Some(row) = self.rows.get_mut(&key) {
            self.order.remove(&row.revision);
            row.revision = revision;
            return Some(std::mem::replace(&mut row.value, value));
        }
        let past = self.exhume(&key);
        self.rows.insert(key, Row { value, revision, created: revision, past });
        None
    }

    /// Writes a row at the next revision, whose order is not kept; gives the value back if there is such a row.
    pub(crate) fn fill(&mut self, key: K, value: V) -> Result<(), V> {
        let revision = self.revision + 1;
        let past = if self.buried.is_empty() { Past::default() } else { self.exhume(&key) };
        let row = Row { value, revision, created: revision, past };
        if let Some(old) = self.rows.insert(key.clone(), row) {
            let refused = self.rows.insert(key, old);
            return refused.map_or(Ok(()), |row| Err(row.value));
        }
        (self.revision, self.settled) = (revision, revision);
        if !self.order.is_empty() {
            self.order = OrdMap::new();
        }
        Ok(())
    }

    /// Replaces the value of a row and nothing else of it. Says whether there is such a row.
    pub(crate) fn amend(&mut self, key: &K, value: V) -> bool {
        self.rows.get_mut(key).map(|row| row.value = value).is_some()
    }

    /// Deletes a row at the next revision and returns its value; `None`, and no new revision, without one.
    pub(crate) fn delete(&mut self, key: &K, seen_by_all: Revision) -> Option<V> {
        let (key, row) = self.rows.remove_with_key(key)?;
        self.revision += 1;
        self.order.remove(&row.revision);
        let past = row.past.ended(row.created, self.revision, seen_by_all);
        let grave = Grave { key: key.clone(), last: row.value.clone(), past };
        self.graves.insert(self.revision, Arc::new(grave));
        self.buried.insert(key, self.revision);
        Some(row.value)
    }

    /// The same in as little memory as it takes.
    pub(crate) fn packed(&self) -> Self {
        Self { rows: packed(&self.rows), ..self.clone() }
    }

    /// Live rows that were written after this revision, in the order of their writes.
    pub(crate) fn written_after(&self, revision: Revision) -> Vec<(Revision, K)> {
        if revision >= self.settled {
            let order = self.order.range(revision + 1..);
            return order.map(|(revision, key)| (*revision, key.clone())).collect();
        }
        let rows = self.rows.iter().filter(|(_, row)| row.revision > revision);
        let mut order: Vec<_> = rows.map(|(key, row)| (row.revision, key.clone())).collect();
        order.sort_unstable_by_key(|(revision, _)| *revision);
        order
    }

    /// Whether nothing is kept for consumers that have not seen it.
    pub(crate) fn is_settled(&self) -> bool {
        self.graves.is_empty() && self.order.is_empty()
    }

    /// Forgets what is kept for consumers and was seen by all of them.
    pub(crate) fn forget(&mut self, seen_by_all: Revision) {
        self.settled = self.settled.max(seen_by_all);
        match self.order.get_max() {
            Some((last, _)) if *last <= seen_by_all => self.order = OrdMap::new(),
            _ => {
                while let Some(first) =
                    self.order.get_min().map(|(first, _)| *first).filter(|first| *first <= seen_by_all)
                {
                    self.order.remove(&first);
                }
            }
        }
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
