//! The different sets of labels as a table, a column for each key: which keys tell the same, and what a key adds to others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
};

use villus_labels::Label;

use super::count::{Key, key};

/// A column for each key, a row for each set. Values are numbers; 0 says that the set lacks the key.
pub(super) struct Columns(BTreeMap<Key, Vec<u32>>);

/// Which rows are told apart: those of different classes.
pub(super) struct Classes {
    of_rows: Vec<u32>,
    count: usize,
}

// === impl Columns ===

impl Columns {
    pub(super) fn of(sets: &HashSet<Vec<&Label>>) -> Self {
        let mut numbers: HashMap<(&str, &str, &str), u32> = HashMap::new();
        let mut columns: BTreeMap<Key, Vec<u32>> = BTreeMap::new();
        for (row, label) in sets.iter().enumerate().flat_map(|(row, set)| set.iter().map(move |l| (row, *l)))
        {
            let next = numbers.len() as u32 + 1;
            let number = *numbers.entry((label.source(), label.key(), label.value())).or_insert(next);
            columns.entry(key(label)).or_insert_with(|| vec![0; sets.len()])[row] = number;
        }
        Self(columns)
    }

    /// The keys whose values determine each other, each such group in the order of its keys. What is the same everywhere
    /// determines nothing.
    pub(super) fn groups(&self) -> Vec<Vec<Key>> {
        let mut groups: BTreeMap<Vec<u32>, Vec<Key>> = BTreeMap::new();
        for (key, column) in &self.0 {
            let classes = Classes::of(column.iter());
            if classes.count > 1 {
                groups.entry(classes.of_rows).or_default().push(key.clone());
            }
        }
        groups.into_values().filter(|group| group.len() > 1).collect()
    }

    /// Rows told apart by all keys that are not picked.
    pub(super) fn without(&self, picked: impl Fn(&Key) -> bool) -> Classes {
        let rows = self.0.values().next().map_or(0, Vec::len);
        let none = Classes { of_rows: vec![0; rows], count: usize::from(rows > 0) };
        let kept = self.0.iter().filter(|(key, _)| !picked(key));
        kept.fold(none, |classes, (_, column)| classes.with(column))
    }

    /// How many classes there are more if a key tells rows apart too.
    pub(super) fn adds(&self, classes: &Classes, key: &Key) -> usize {
        let Some(column) = self.0.get(key) else { return 0 };
        let pairs: HashSet<(u32, u32)> = classes.pairs(column).collect();
        pairs.len() - classes.count
    }

    /// Rows told apart by a key too.
    pub(super) fn add(&self, classes: Classes, key: &Key) -> Classes {
        match self.0.get(key) {
            Some(column) => classes.with(column),
            None => classes,
        }
    }
}

// === impl Classes ===

impl Classes {
    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Numbered in the order in which they come first.
    fn of<T: Eq + Hash>(rows: impl Iterator<Item = T>) -> Self {
        let mut numbers: HashMap<T, u32> = HashMap::new();
        let number = |value| {
            let next = numbers.len() as u32;
            *numbers.entry(value).or_insert(next)
        };
        let of_rows = rows.map(number).collect();
        Self { of_rows, count: numbers.len() }
    }

    fn with(&self, column: &[u32]) -> Self {
        Self::of(self.pairs(column))
    }

    fn pairs<'a>(&'a self, column: &'a [u32]) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.of_rows.iter().copied().zip(column.iter().copied())
    }
}
