//! Finding the selectors that labels may meet, and the identities that a selector may mean, without trying all.

use std::collections::HashMap;

use villus_labels::{KEY_CLUSTER, KEY_NAMESPACE, Labels, NumericIdentity, Operator, Selector};

/// Selectors by the key of one requirement that needs it. `T` is what a selector is known by.
#[derive(Debug)]
pub(crate) struct Index<T> {
    by_key: HashMap<Box<str>, HashMap<Box<str>, Vec<T>>>,
    /// Those that need no label to be there.
    others: Vec<T>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), others: Vec::new() }
    }
}

/// Under this value stand the selectors that only need the key.
const ANY_VALUE: &str = "\u{0}";

impl<T: Copy + Eq> Index<T> {
    /// Key and values under which a selector is found; the namespace only if nothing tells more.
    fn places(selector: &Selector) -> Option<(&str, Vec<&str>)> {
        let rank = |key: &str, operator: &Operator| {
            let common = usize::from(key == KEY_NAMESPACE || key == KEY_CLUSTER);
            match operator {
                Operator::In(values) => Some((common, values.len())),
                Operator::Exists => Some((common + 2, 0)),
                Operator::NotIn(_) | Operator::DoesNotExist => None,
            }
        };
        let (_, requirement) = selector
            .requirements()
            .iter()
            .filter_map(|requirement| {
                Some((rank(requirement.key.key(), &requirement.operator)?, requirement))
            })
            .min_by_key(|(rank, _)| *rank)?;
        let values = match &requirement.operator {
            Operator::In(values) => values.iter().map(|value| &**value).collect(),
            _ => vec![ANY_VALUE],
        };
        Some((requirement.key.key(), values))
    }

    pub(crate) fn add(&mut self, selector: &Selector, id: T) {
        let Some((key, values)) = Self::places(selector) else {
            self.others.push(id);
            return;
        };
        let by_value = self.by_key.entry(key.into()).or_default();
        for value in values {
            by_value.entry(value.into()).or_default().push(id);
        }
    }

    pub(crate) fn remove(&mut self, selector: &Selector, id: T) {
        let Some((key, values)) = Self::places(selector) else {
            self.others.retain(|other| *other != id);
            return;
        };
        let Some(by_value) = self.by_key.get_mut(key) else { return };
        for value in values {
            if let Some(ids) = by_value.get_mut(value) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Every selector that labels may meet, once.
    pub(crate) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = T> + 'a {
        let keyed = labels.iter().filter_map(|label| Some((label, self.by_key.get(label.key())?)));
        keyed
            .flat_map(|(label, by_value)| [by_value.get(label.value()), by_value.get(ANY_VALUE)])
            .flatten()
            .chain([&self.others])
            .flatten()
            .copied()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.others.is_empty()
    }
}

/// Sorted.
type Identities = Vec<NumericIdentity>;

/// Identities by each of their labels, whatever its source.
#[derive(Default, Debug)]
pub(crate) struct Postings {
    by_value: HashMap<Box<str>, HashMap<Box<str>, Identities>>,
    /// Labels without a value: prefixes and reserved ones.
    bare: HashMap<Box<str>, Identities>,
}

impl Postings {
    pub(crate) fn add(&mut self, identity: NumericIdentity, labels: &Labels) {
        for label in labels {
            let (key, value) = (label.key(), label.value());
            let identities = if value.is_empty() {
                self.bare.entry(key.into()).or_default()
            } else {
                self.by_value.entry(key.into()).or_default().entry(value.into()).or_default()
            };
            if let Err(at) = identities.binary_search(&identity) {
                identities.insert(at, identity);
            }
        }
    }

    pub(crate) fn remove(&mut self, identity: NumericIdentity, labels: &Labels) {
        for label in labels {
            let (key, value) = (label.key(), label.value());
            if value.is_empty() {
                take_out(&mut self.bare, key, identity);
            } else if let Some(by_value) = self.by_value.get_mut(key) {
                take_out(by_value, value, identity);
                if by_value.is_empty() {
                    self.by_value.remove(key);
                }
            }
        }
    }

    /// The identities that a selector may mean, sorted: those that one requirement leaves, the one that leaves fewest.
    /// `None` if no requirement needs a label to be there.
    pub(crate) fn candidates(&self, selector: &Selector) -> Option<Identities> {
        let needed = selector.requirements().iter().filter_map(|requirement| {
            let key = requirement.key.key();
            let mut lists: Vec<&Identities> = Vec::new();
            match &requirement.operator {
                Operator::In(values) => lists.extend(values.iter().filter_map(|value| self.of(key, value))),
                Operator::Exists => {
                    lists.extend(self.by_value.get(key).into_iter().flat_map(HashMap::values));
                    lists.extend(self.bare.get(key));
                }
                Operator::NotIn(_) | Operator::DoesNotExist => return None,
            }
            Some((lists.iter().map(|list| list.len()).sum::<usize>(), lists))
        });
        let (_, lists) = needed.min_by_key(|(count, _)| *count)?;
        let mut identities: Identities = lists.into_iter().flatten().copied().collect();
        // One label per key: the lists have no identity in common.
        identities.sort_unstable();
        Some(identities)
    }

    fn of(&self, key: &str, value: &str) -> Option<&Identities> {
        if value.is_empty() { self.bare.get(key) } else { self.by_value.get(key)?.get(value) }
    }
}

fn take_out(lists: &mut HashMap<Box<str>, Identities>, key: &str, identity: NumericIdentity) {
    let Some(identities) = lists.get_mut(key) else { return };
    if let Ok(at) = identities.binary_search(&identity) {
        identities.remove(at);
    }
    if identities.is_empty() {
        lists.remove(key);
    }
}
