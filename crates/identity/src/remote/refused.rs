//! Entries of the store that cannot be used, each said once.

use std::collections::BTreeMap;

/// How many are remembered.
const MOST: usize = 1000;

/// Entries that cannot be used, by key, and how many there have been.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    now: BTreeMap<String, String>,
    total: u64,
}

// === impl Refused ===

impl Refused {
    /// Those that are in the store now, with what is wrong with them; at most a thousand.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.now.iter().map(|(key, reason)| (key.as_str(), reason.as_str()))
    }

    /// How many values were refused so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// A value cannot be used. It is said once.
    pub(super) fn refuse(&mut self, key: &str, reason: String) {
        self.total += 1;
        if self.now.get(key) == Some(&reason) {
            return;
        }
        tracing::warn!(key, reason, "an entry of the store can't be used and is left out");
        if self.now.len() < MOST || self.now.contains_key(key) {
            self.now.insert(key.to_owned(), reason);
        }
    }

    /// The key is gone, or its value can be used now.
    pub(super) fn accept(&mut self, key: &str) {
        self.now.remove(key);
    }
}
