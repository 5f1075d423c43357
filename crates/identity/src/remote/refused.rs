//! Entries of the store that cannot be used, each said once.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
};

/// Of so many the reasons are kept; of those beyond, which were said.
const MOST: usize = 1000;

/// Entries that cannot be used, by key, and how many there have been.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    now: BTreeMap<String, String>,
    /// Those beyond: hashes of their keys and reasons.
    more: HashMap<u64, u64>,
    hasher: RandomState,
    total: u64,
}

// === impl Refused ===

impl Refused {
    /// Those that are in the store now, with what is wrong with them; at most a thousand.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.now.iter().map(|(key, reason)| (key.as_str(), reason.as_str()))
    }

    /// How many are in the store now.
    pub fn count(&self) -> usize {
        self.now.len() + self.more.len()
    }

    /// How many values were refused so far: each write, and each reason that came otherwise.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// A value cannot be used. It is said once; one that was written just now is counted each time.
    pub(super) fn refuse_write(&mut self, key: &str, reason: String, just_now: bool) {
        let is_news = self.refuse(key, reason);
        self.total += u64::from(just_now && !is_news);
    }

    /// A value cannot be used. It is said and counted once. Returns whether it is news.
    pub(super) fn refuse(&mut self, key: &str, reason: String) -> bool {
        let (hashed, hash) = (self.hasher.hash_one(key), self.hasher.hash_one(&reason));
        if self.now.get(key) == Some(&reason) || self.more.get(&hashed) == Some(&hash) {
            return false;
        }
        self.total += 1;
        tracing::warn!(key, reason, "an entry of the store can't be used and is left out");
        if self.now.len() < MOST || self.now.contains_key(key) {
            self.more.remove(&hashed);
            self.now.insert(key.to_owned(), reason);
        } else {
            self.more.insert(hashed, hash);
        }
        true
    }

    /// The key is gone, or its value can be used now.
    pub(super) fn accept(&mut self, key: &str) {
        self.now.remove(key);
        if !self.more.is_empty() {
            self.more.remove(&self.hasher.hash_one(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_once_for_each_reason_however_many_there_are() {
        let mut refused = Refused::default();
        let keys: Vec<String> = (0..MOST + 500).map(|n| format!("key/{n}")).collect();
        for _ in 0..3 {
            for key in &keys {
                refused.refuse(key, "bad".to_owned());
            }
            let all = keys.len();
            assert_eq!((refused.total(), refused.count(), refused.iter().count()), (all as u64, all, MOST));
        }
        for key in [&keys[0], &keys[MOST]] {
            let total = refused.total();
            refused.refuse(key, "worse".to_owned());
            refused.refuse(key, "worse".to_owned());
            assert_eq!(refused.total(), total + 1, "{key}: the reason is another");
            refused.refuse_write(key, "worse".to_owned(), false);
            assert_eq!(refused.total(), total + 1, "{key}: it was only listed again");
            refused.refuse_write(key, "worse".to_owned(), true);
            assert_eq!(refused.total(), total + 2, "{key}: it was written again");
        }
        for (gone, key) in keys.iter().enumerate() {
            assert_eq!(refused.count(), keys.len() - gone);
            refused.accept(key);
            refused.accept(key);
        }
        refused.refuse(&keys[MOST], "bad".to_owned());
        assert_eq!((refused.count(), refused.iter().count()), (1, 1), "what comes back is said again");
    }
}
