//! What an allocator remembers: master keys of all nodes, and the label sets that this node uses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Instant;

use smallvec::SmallVec;
use villus_labels::{Labels, NumericIdentity};

use super::copies::Copies;

/// Refused entries that are remembered at most.
const REFUSED: usize = 1000;

pub(super) struct State {
    /// The numbers of this cluster.
    range: RangeInclusive<u32>,
    /// Numbers that have a master key.
    pub(super) stated: HashSet<NumericIdentity>,
    /// What copies of other clusters' master keys say.
    pub(super) copies: Copies,
    /// Labels to the numbers whose master keys say so, sorted. More than one is a leak that GC mends.
    masters: HashMap<Labels, SmallVec<[NumericIdentity; 4]>>,
    /// Labels that were learned last.
    last: Labels,
    /// Label string to what this node uses.
    used: HashMap<String, Used>,
    /// Label strings whose slave key of ours is to go, with its value.
    pub(super) doomed: BTreeMap<String, NumericIdentity>,
    /// Numbers that this node uses for other labels than the store does: what the store says, for later.
    pub(super) shadowed: BTreeMap<NumericIdentity, Labels>,
    /// Numbers that label sets in use here had before the store gave them another, until nobody has them any more.
    pub(super) left: BTreeSet<NumericIdentity>,
    /// Numbers without a master key that count still: since when a rewound store lacks it; without a time it was deleted
    /// while an address under a lease had the number.
    pub(super) stale: BTreeMap<NumericIdentity, Option<Instant>>,
    /// Why the store does not let this node read the identities, if it does not.
    pub(super) unread: Option<String>,
    refused: BTreeMap<String, String>,
    /// How many values were refused so far.
    refused_total: u64,
}

#[derive(Clone)]
pub(super) struct Used {
    pub(super) number: NumericIdentity,
    pub(super) labels: Labels,
    pub(super) references: u32,
    /// The store has said so, to this process.
    pub(super) confirmed: bool,
}

impl State {
    /// Nothing is known of a cluster with these numbers.
    pub(super) fn new(range: RangeInclusive<u32>) -> Self {
        Self {
            range,
            stated: HashSet::new(),
            copies: Copies::default(),
            masters: HashMap::new(),
            last: Labels::default(),
            used: HashMap::new(),
            doomed: BTreeMap::new(),
            shadowed: BTreeMap::new(),
            left: BTreeSet::new(),
            stale: BTreeMap::new(),
            unread: None,
            refused: BTreeMap::new(),
            refused_total: 0,
        }
    }

    /// Makes room for so many master keys more.
    pub(super) fn reserve(&mut self, more: usize) {
        self.stated.reserve(more);
        self.masters.reserve(more);
    }

    /// Whether a number has a master key.
    pub(super) fn is_stated(&self, number: NumericIdentity) -> bool {
        self.stated.contains(&number)
    }

    /// Whether only copies of another cluster's master keys say what a number is.
    pub(super) fn is_copy(&self, number: NumericIdentity) -> bool {
        !self.is_stated(number) && self.copies.labels(number).is_some()
    }

    /// Takes another reference to a label set that is in use.
    pub(super) fn reuse(&mut self, text: &str) -> Option<NumericIdentity> {
        let used = self.used.get_mut(text)?;
        used.references += 1;
        Some(used.number)
    }

    /// Takes a reference to a label set whose number the store has said.
    pub(super) fn begin_use(&mut self, text: &str, number: NumericIdentity, labels: &Labels) {
        let before = self.used.get(text).map_or(0, |used| used.references);
        let used = Used { number, labels: labels.clone(), references: before + 1, confirmed: true };
        self.replace(text, used);
    }

    /// Takes the first reference to a label set whose number the store has still to confirm.
    pub(super) fn assume(&mut self, text: &str, number: NumericIdentity, labels: &Labels) {
        let used = Used { number, labels: labels.clone(), references: 1, confirmed: false };
        self.replace(text, used);
    }

    /// The store has said the number of a label set. Returns whether it is in use still.
    pub(super) fn confirm(&mut self, text: &str, number: NumericIdentity) -> bool {
        let Some(used) = self.used.get(text).cloned() else { return false };
        self.replace(text, Used { number, confirmed: true, ..used });
        true
    }

    fn replace(&mut self, text: &str, used: Used) {
        self.left.remove(&used.number);
        let number = used.number;
        let old = self.used.insert(text.to_owned(), used);
        if let Some(old) = old.filter(|old| old.number != number) {
            self.left.insert(old.number);
        }
    }

    pub(super) fn is_unconfirmed(&self, text: &str) -> bool {
        self.used.get(text).is_some_and(|used| !used.confirmed)
    }

    /// Label sets whose numbers the store has still to confirm.
    pub(super) fn unconfirmed(&self) -> Vec<(String, Used)> {
        let open = self.used.iter().filter(|(_, used)| !used.confirmed);
        open.map(|(text, used)| (text.clone(), used.clone())).collect()
    }

    /// The number in use for a label set.
    pub(super) fn number_of(&self, text: &str) -> Option<NumericIdentity> {
        self.used.get(text).map(|used| used.number)
    }

    /// Gives a reference back and returns how many are left; `None` without any.
    pub(super) fn give_back(&mut self, text: &str) -> Option<u32> {
        let used = self.used.get_mut(text)?;
        used.references = used.references.saturating_sub(1);
        Some(used.references)
    }

    /// Forgets a label set, unless somebody took a reference meanwhile. Says its number, and whether the store knew.
    pub(super) fn end_use(&mut self, text: &str) -> Option<(NumericIdentity, bool)> {
        let unused = self.used.get(text).is_some_and(|used| used.references == 0);
        unused.then(|| self.used.remove(text)).flatten().map(|used| (used.number, used.confirmed))
    }

    pub(super) fn references(&self, text: &str) -> u32 {
        self.used.get(text).map_or(0, |used| used.references)
    }

    pub(super) fn in_use(&self) -> Vec<(String, Used)> {
        self.used.iter().map(|(text, used)| (text.clone(), used.clone())).collect()
    }

    /// Whether this node uses the number, and for which label string.
    pub(super) fn user_of(&self, number: NumericIdentity) -> Option<String> {
        self.used.iter().find(|(_, used)| used.number == number).map(|(text, _)| text.clone())
    }

    /// A number of the label set: the one in use here, or the lowest known of this cluster.
    pub(super) fn known(&self, text: &str, labels: &Labels) -> Option<NumericIdentity> {
        let used = self.used.get(text).map(|used| used.number);
        used.or_else(|| self.masters(labels).first().copied())
    }

    /// All numbers of this cluster whose master keys hold these labels. Another cluster's are its own: they go with
    /// it.
    pub(super) fn masters(&self, labels: &Labels) -> Vec<NumericIdentity> {
        let all = self.masters.get(labels).into_iter().flatten();
        all.filter(|number| self.range.contains(&number.0)).copied().collect()
    }

    /// The same labels, in one memory with the last ones where both are alike: most identities have much in common.
    pub(super) fn beside_last(&mut self, labels: Labels) -> Labels {
        self.last = labels.sharing(&self.last);
        self.last.clone()
    }

    pub(super) fn add_master(&mut self, labels: &Labels, number: NumericIdentity) {
        let numbers = self.masters.entry(labels.clone()).or_default();
        if let Err(at) = numbers.binary_search(&number) {
            numbers.insert(at, number);
        }
    }

    pub(super) fn remove_master(&mut self, labels: &Labels, number: NumericIdentity) {
        if let Some(numbers) = self.masters.get_mut(labels) {
            numbers.retain(|known| *known != number);
            if numbers.is_empty() {
                self.masters.remove(labels);
            }
        }
    }

    /// Remembers an entry that can't be read. Returns whether it is news.
    pub(super) fn refuse(&mut self, key: &str, reason: String) -> bool {
        self.refused_total += 1;
        if self.refused.len() >= REFUSED && !self.refused.contains_key(key) {
            return false;
        }
        let news = self.refused.get(key) != Some(&reason);
        self.refused.insert(key.to_owned(), reason);
        news
    }

    pub(super) fn accept(&mut self, key: &str) {
        self.refused.remove(key);
    }

    pub(super) fn refused(&self) -> Vec<(String, String)> {
        self.refused.iter().map(|(key, reason)| (key.clone(), reason.clone())).collect()
    }

    pub(super) fn refused_total(&self) -> u64 {
        self.refused_total
    }
}
