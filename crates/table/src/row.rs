//! One row of a table and what is remembered of rows that are gone.

use crate::table::Revision;

/// A value with the revisions at which it came and last changed.
#[derive(Clone, Debug)]
pub struct Row<V> {
    pub(crate) value: V,
    pub(crate) revision: Revision,
    pub(crate) created: Revision,
    pub(crate) past: Past,
}

impl<V> Row<V> {
    /// The value.
    pub fn value(&self) -> &V {
        &self.value
    }

    /// Revision of the last write of this row.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Revision at which the row was inserted; later writes leave it alone.
    pub fn created(&self) -> Revision {
        self.created
    }
}

/// Earlier lives of a key as `[created, deleted)`, kept only while some consumer has not seen their end.
///
/// They decide whether a consumer already knows a key, so that a key deleted and inserted again between two
/// looks reads as an update and one inserted and deleted between two looks reads as nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past(Option<Box<Lives>>);

/// Few rows have any.
#[derive(Clone, Debug, Default)]
struct Lives(Vec<(Revision, Revision)>);

impl Past {
    pub(crate) fn ended(mut self, created: Revision, deleted: Revision, seen_by_all: Revision) -> Self {
        let lives = &mut self.0.get_or_insert_default().0;
        lives.retain(|(_, end)| *end > seen_by_all);
        lives.push((created, deleted));
        self
    }

    /// Whether a consumer that has seen everything up to `cursor` held the key at that time.
    pub(crate) fn known_at(&self, cursor: Revision) -> bool {
        self.0
            .iter()
            .flat_map(|lives| &lives.0)
            .any(|(created, deleted)| *created <= cursor && cursor < *deleted)
    }
}

/// A deleted row that some consumer has not seen going yet.
#[derive(Clone, Debug)]
pub(crate) struct Grave<K, V> {
    pub(crate) key: K,
    pub(crate) last: V,
    pub(crate) past: Past,
}
