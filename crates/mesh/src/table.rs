//! What one mirror knows of each copy: its key, a hash of its value, and which source has it. Values are not kept.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

/// Sources that a mirror may have.
pub(crate) const SOURCES: usize = 2;
/// The hash of nothing that is known: whatever comes differs.
const UNKNOWN: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Row {
    /// Of the value that lies in the local store, or is on its way there.
    hash: u64,
    /// The identity it was passed with.
    id: u32,
    /// Sources that have the entry, a bit each.
    has: u8,
    /// Sources in whose list under way it was.
    seen: u8,
    /// The source whose value this is.
    from: u8,
    /// The comparison under way has found it, or it came since that began.
    found: bool,
}

/// What has to be done for a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// Nothing.
    Keep,
    /// Write the value.
    Put,
    /// Delete the copy.
    Delete,
    /// Another source has it too: its value must be read.
    Reread(u8),
}

/// Copies by what follows the target's prefix in their key.
#[derive(Default, Debug)]
pub(crate) struct Table {
    rows: HashMap<Arc<str>, Row>,
}

pub(crate) fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish().max(UNKNOWN + 1)
}

// === impl Table ===

impl Table {
    /// Copies that are there or on their way.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// A copy that lies in the local store. Nobody has it yet. `None`: it must be written again in any case.
    pub fn found(&mut self, rest: &str, value: Option<&[u8]>) {
        let hash = value.map_or(UNKNOWN, hash);
        self.rows.insert(rest.into(), Row { hash, id: 0, has: 0, seen: 0, from: 0, found: true });
    }

    /// The key of a copy that is there, shared; a new one of what is not.
    pub fn key(&self, rest: &str) -> Arc<str> {
        self.rows.get_key_value(rest).map_or_else(|| rest.into(), |(key, _)| Arc::clone(key))
    }

    /// Whether a copy is there, and the identity it was passed with.
    pub fn get(&self, rest: &str) -> Option<u32> {
        self.rows.get(rest).map(|row| row.id)
    }

    /// A source has the entry. Whether an earlier one has it too, whose value counts.
    pub fn is_shadowed(&mut self, rest: &str, source: u8) -> bool {
        let Some(row) = self.rows.get_mut(rest) else { return false };
        let shadowed = row.has.trailing_zeros() < u32::from(source);
        if shadowed {
            row.has |= 1 << source;
            row.seen |= 1 << source;
        }
        shadowed
    }

    /// A source has the entry with this value; no earlier one has it.
    pub fn put(&mut self, rest: &str, source: u8, value: &[u8], id: u32) -> Act {
        let (bit, hash) = (1 << source, hash(value));
        let Some(row) = self.rows.get_mut(rest) else {
            let row = Row { hash, id, has: bit, seen: bit, from: source, found: true };
            self.rows.insert(rest.into(), row);
            return Act::Put;
        };
        row.has |= bit;
        row.seen |= bit;
        (row.from, row.id, row.found) = (source, id, true);
        if std::mem::replace(&mut row.hash, hash) == hash { Act::Keep } else { Act::Put }
    }

    /// A source does not have the entry any more.
    pub fn remove(&mut self, rest: &str, source: u8) -> Act {
        let Some(row) = self.rows.get_mut(rest) else { return Act::Keep };
        let bit = 1 << source;
        if row.has & bit == 0 {
            return Act::Keep;
        }
        row.has &= !bit;
        if row.has != 0 {
            return if row.from == source { Act::Reread(row.has.trailing_zeros() as u8) } else { Act::Keep };
        }
        self.rows.remove(rest);
        Act::Delete
    }

    /// The copy does not count as one with an identity any more.
    pub fn forget_id(&mut self, rest: &str) {
        if let Some(row) = self.rows.get_mut(rest) {
            row.id = 0;
        }
    }

    /// The store took no such value: whatever comes next is written.
    pub fn forget_value(&mut self, rest: &str) {
        if let Some(row) = self.rows.get_mut(rest) {
            row.hash = UNKNOWN;
        }
    }

    /// A comparison with what really lies in the local store begins.
    pub fn begin_comparison(&mut self) {
        self.rows.values_mut().for_each(|row| row.found = false);
    }

    /// This lies in the local store. What differs from what is known is written again when a source has it, and goes when
    /// none has. Returns whether it differs.
    pub fn compare(&mut self, rest: &str, value: Option<&[u8]>) -> bool {
        let Some(row) = self.rows.get_mut(rest) else {
            self.found(rest, value);
            return true;
        };
        row.found = true;
        let differs = value.is_none_or(|value| hash(value) != row.hash);
        if differs {
            row.hash = UNKNOWN;
        }
        differs
    }

    /// The comparison is complete: what it has not found is written again. Returns how many these are.
    pub fn end_comparison(&mut self, is_under_way: impl Fn(&str) -> bool) -> u64 {
        let mut missing = 0;
        for (rest, row) in self.rows.iter_mut().filter(|(_, row)| !row.found) {
            if row.hash != UNKNOWN && !is_under_way(rest) {
                row.hash = UNKNOWN;
                missing += 1;
            }
        }
        missing
    }

    /// A list of the source begins.
    pub fn begin(&mut self, source: u8) {
        for row in self.rows.values_mut() {
            row.seen &= !(1 << source);
        }
    }

    /// The list of the source is complete: it does not have what was not in it. Returns what was in it before and is
    /// not had by anybody now, which still stands in the table, and sources whose values must be read.
    pub fn end(&mut self, source: u8) -> (Vec<(Arc<str>, u32)>, Option<u8>) {
        let bit = 1 << source;
        let (mut gone, mut reread) = (Vec::new(), None);
        for (rest, row) in &mut self.rows {
            if row.has & bit == 0 || row.seen & bit != 0 {
                continue;
            }
            row.has &= !bit;
            if row.has == 0 {
                gone.push((Arc::clone(rest), row.id));
            } else if row.from == source {
                reread = Some(row.has.trailing_zeros() as u8);
            }
        }
        (gone, reread)
    }

    /// How many copies no source has.
    pub fn count_unclaimed(&self) -> usize {
        self.rows.values().filter(|row| row.has == 0).count()
    }

    /// Copies that no source has.
    pub fn unclaimed(&self) -> Vec<(Arc<str>, u32)> {
        let nobodys = self.rows.iter().filter(|(_, row)| row.has == 0);
        nobodys.map(|(rest, row)| (Arc::clone(rest), row.id)).collect()
    }

    /// Forgets a copy if no source has it. Returns whether it did.
    pub fn drop_unclaimed(&mut self, rest: &str) -> bool {
        let unclaimed = self.rows.get(rest).is_some_and(|row| row.has == 0);
        if unclaimed {
            self.rows.remove(rest);
        }
        unclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_sources_counts() {
        let mut table = Table::default();
        assert_eq!(table.put("a", 1, b"second", 0), Act::Put);
        assert_eq!(table.put("a", 0, b"first", 0), Act::Put);
        assert!(table.is_shadowed("a", 1) && !table.is_shadowed("a", 0) && !table.is_shadowed("b", 1));
        assert_eq!(table.remove("a", 0), Act::Reread(1));
        assert_eq!(table.put("a", 1, b"other", 0), Act::Put);
        assert_eq!(table.remove("a", 1), Act::Delete);
        assert_eq!(table.remove("a", 1), Act::Keep);
    }

    #[test]
    fn what_lies_in_the_store_is_not_written_again() {
        let mut table = Table::default();
        table.found("same", Some(b"1"));
        table.found("differs", Some(b"1"));
        table.found("again", None);
        table.found("gone", Some(b"1"));
        table.begin(0);
        assert_eq!(table.put("same", 0, b"1", 0), Act::Keep);
        assert_eq!(table.put("differs", 0, b"2", 0), Act::Put);
        assert_eq!(table.put("again", 0, b"1", 0), Act::Put);
        assert_eq!(table.end(0), (Vec::new(), None));
        assert_eq!(table.unclaimed(), [("gone".into(), 0)]);
        assert!(table.drop_unclaimed("gone") && !table.drop_unclaimed("same"));
    }

    #[test]
    fn a_comparison_finds_what_differs_what_is_missing_and_what_nobody_has() {
        let mut table = Table::default();
        for rest in ["same", "differs", "missing", "on its way"] {
            table.put(rest, 0, b"1", 0);
        }
        table.begin_comparison();
        assert!(!table.compare("same", Some(b"1")));
        assert!(table.compare("differs", Some(b"2")) && table.compare("nobody's", Some(b"1")));
        table.put("new", 0, b"1", 0);
        assert_eq!(table.end_comparison(|rest| rest == "on its way"), 1);
        table.begin(0);
        for (rest, act) in
            [("same", Act::Keep), ("differs", Act::Put), ("missing", Act::Put), ("new", Act::Keep)]
        {
            assert_eq!(table.put(rest, 0, b"1", 0), act, "{rest}");
        }
        assert_eq!(table.unclaimed(), [("nobody's".into(), 0)]);
    }

    #[test]
    fn what_a_list_lacks_is_gone() {
        let mut table = Table::default();
        table.put("stays", 0, b"1", 3);
        table.put("goes", 0, b"1", 4);
        table.put("moves", 0, b"1", 5);
        assert!(table.is_shadowed("moves", 1));
        table.begin(0);
        table.put("stays", 0, b"1", 3);
        assert_eq!(table.end(0), (vec![("goes".into(), 4)], Some(1)));
        assert_eq!(table.get("goes"), Some(4));
        // It comes back before anybody has drawn a conclusion.
        assert_eq!(table.put("goes", 0, b"1", 4), Act::Keep);
        assert!(!table.drop_unclaimed("goes"));
    }
}
