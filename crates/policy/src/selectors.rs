//! Which identities each selector in use selects, kept up to date as identities come and go.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use villus_labels::{Labels, NumericIdentity, Operator, Selector};

/// Selectors in use, shared between all rules that write the same, and the identities they select.
#[derive(Default, Debug)]
pub struct SelectorCache {
    selectors: HashMap<Selector, Selected>,
    identities: BTreeMap<NumericIdentity, Labels>,
    index: Index,
}

#[derive(Default, Debug)]
struct Selected {
    users: usize,
    /// Sorted.
    identities: Vec<NumericIdentity>,
}

/// One row of `policy selectors`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SelectorRow {
    /// The selector.
    pub selector: Selector,
    /// How many clauses use it.
    pub users: usize,
    /// What it selects now.
    pub identities: Vec<NumericIdentity>,
}

impl SelectorCache {
    /// Counts one more user of a selector.
    pub fn acquire(&mut self, selector: &Selector) {
        if let Some(known) = self.selectors.get_mut(selector) {
            known.users += 1;
            return;
        }
        let matching = self.identities.iter().filter(|(_, labels)| selector.matches(labels));
        let identities = matching.map(|(identity, _)| *identity).collect();
        self.index.add(selector);
        self.selectors.insert(selector.clone(), Selected { users: 1, identities });
    }

    /// Counts one user less; the last one takes the selector with it.
    pub fn release(&mut self, selector: &Selector) {
        let Some(known) = self.selectors.get_mut(selector) else { return };
        known.users -= 1;
        if known.users == 0 {
            self.selectors.remove(selector);
            self.index.remove(selector);
        }
    }

    /// What a selector in use selects, sorted; nothing if nobody uses it.
    #[must_use]
    pub fn identities_of(&self, selector: &Selector) -> &[NumericIdentity] {
        self.selectors.get(selector).map_or(&[], |selected| &selected.identities)
    }

    /// Learns of an identity, or of its new labels. Returns the selectors whose selection changed.
    pub fn upsert(&mut self, identity: NumericIdentity, labels: &Labels) -> Vec<Selector> {
        let old = self.identities.insert(identity, labels.clone());
        if old.as_ref() == Some(labels) {
            return Vec::new();
        }
        self.reselect(identity, old.as_ref(), Some(labels))
    }

    /// Forgets an identity. Returns the selectors whose selection changed.
    pub fn remove(&mut self, identity: NumericIdentity) -> Vec<Selector> {
        match self.identities.remove(&identity) {
            Some(old) => self.reselect(identity, Some(&old), None),
            None => Vec::new(),
        }
    }

    fn reselect(
        &mut self,
        identity: NumericIdentity,
        old: Option<&Labels>,
        new: Option<&Labels>,
    ) -> Vec<Selector> {
        let mut candidates = HashSet::new();
        for labels in [old, new].into_iter().flatten() {
            candidates.extend(self.index.candidates(labels));
        }
        let mut changed: Vec<Selector> = Vec::new();
        for selector in candidates {
            let Some(selected) = self.selectors.get_mut(&selector) else { continue };
            let wanted = new.is_some_and(|labels| selector.matches(labels));
            match (selected.identities.binary_search(&identity), wanted) {
                (Ok(at), false) => drop(selected.identities.remove(at)),
                (Err(at), true) => selected.identities.insert(at, identity),
                _ => continue,
            }
            changed.push(selector);
        }
        changed.sort_unstable();
        changed
    }

    /// The identities known, with their labels.
    pub fn identities(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.identities.iter().map(|(identity, labels)| (*identity, labels))
    }

    /// The labels of an identity.
    #[must_use]
    pub fn labels_of(&self, identity: NumericIdentity) -> Option<&Labels> {
        self.identities.get(&identity)
    }

    /// The selectors in use, sorted.
    #[must_use]
    pub fn rows(&self) -> Vec<SelectorRow> {
        let mut rows: Vec<SelectorRow> = self
            .selectors
            .iter()
            .map(|(selector, Selected { users, identities })| SelectorRow {
                selector: selector.clone(),
                users: *users,
                identities: identities.clone(),
            })
            .collect();
        rows.sort_unstable_by(|a, b| a.selector.cmp(&b.selector));
        rows
    }
}

/// Finds the selectors that labels may meet without trying all: by the key of one requirement that needs it.
#[derive(Default, Debug)]
struct Index {
    by_key: HashMap<Box<str>, HashMap<Box<str>, HashSet<Selector>>>,
    /// Those that need no label to be there.
    others: HashSet<Selector>,
}

/// Under this value stand the selectors that only need the key.
const ANY_VALUE: &str = "\u{0}";

impl Index {
    /// Key and values under which a selector is found; the namespace only if nothing tells more.
    fn places(selector: &Selector) -> Option<(&str, Vec<&str>)> {
        let rank = |key: &str, operator: &Operator| {
            let common =
                usize::from(key == villus_labels::KEY_NAMESPACE || key == villus_labels::KEY_CLUSTER);
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

    fn add(&mut self, selector: &Selector) {
        let Some((key, values)) = Self::places(selector) else {
            self.others.insert(selector.clone());
            return;
        };
        let by_value = self.by_key.entry(key.into()).or_default();
        for value in values {
            by_value.entry(value.into()).or_default().insert(selector.clone());
        }
    }

    fn remove(&mut self, selector: &Selector) {
        let Some((key, values)) = Self::places(selector) else {
            self.others.remove(selector);
            return;
        };
        let Some(by_value) = self.by_key.get_mut(key) else { return };
        for value in values {
            if let Some(selectors) = by_value.get_mut(value) {
                selectors.remove(selector);
                if selectors.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_key.remove(key);
        }
    }

    fn candidates(&self, labels: &Labels) -> impl Iterator<Item = Selector> {
        let keyed = labels.iter().filter_map(|label| Some((label, self.by_key.get(label.key())?)));
        keyed
            .flat_map(|(label, by_value)| [by_value.get(label.value()), by_value.get(ANY_VALUE)])
            .flatten()
            .chain([&self.others])
            .flatten()
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(text: &str) -> Labels {
        Labels::parse_list(text, "k8s").unwrap()
    }

    #[test]
    fn a_selection_follows_identities() {
        let mut cache = SelectorCache::default();
        let web = Selector::parse("app=web").unwrap();
        cache.upsert(NumericIdentity(300), &labels("app=web"));
        cache.acquire(&web);
        cache.acquire(&web);
        assert_eq!(cache.identities_of(&web), [NumericIdentity(300)]);
        assert_eq!(cache.upsert(NumericIdentity(299), &labels("app=web,env=a")), std::slice::from_ref(&web));
        assert!(cache.upsert(NumericIdentity(299), &labels("app=web,env=b")).is_empty());
        assert!(cache.upsert(NumericIdentity(400), &labels("app=db")).is_empty());
        assert_eq!(cache.identities_of(&web), [299, 300].map(NumericIdentity));
        assert_eq!(cache.remove(NumericIdentity(300)), std::slice::from_ref(&web));
        assert_eq!(
            cache.rows(),
            [SelectorRow { selector: web.clone(), users: 2, identities: vec![NumericIdentity(299)] }]
        );
        cache.release(&web);
        cache.release(&web);
        assert!(cache.rows().is_empty() && cache.index.by_key.is_empty());
    }

    fn any_selector() -> impl Strategy<Value = Selector> {
        let requirement = (0..3u8, 0..4u8, 0..3u8).prop_map(|(key, operator, value)| {
            let (key, value) = (format!("k{key}"), format!("v{value}"));
            match operator {
                0 => villus_labels::Requirement::equals(&key, &value),
                1 => villus_labels::Requirement::expression(&key, "NotIn", [value.as_str()]),
                2 => villus_labels::Requirement::expression(&key, "Exists", []),
                _ => villus_labels::Requirement::expression(&key, "DoesNotExist", []),
            }
            .unwrap()
        });
        proptest::collection::vec(requirement, 0..3).prop_map(|r| Selector::new(r).unwrap())
    }

    proptest! {
        #[test]
        fn incremental_is_as_from_scratch(
            selectors in proptest::collection::vec(any_selector(), 1..8),
            steps in proptest::collection::vec((0..6u32, proptest::option::of((0..4u8, 0..4u8, 0..4u8))), 0..24),
        ) {
            let mut cache = SelectorCache::default();
            let (early, late) = selectors.split_at(selectors.len() / 2);
            early.iter().for_each(|s| cache.acquire(s));
            for (identity, what) in steps {
                match what {
                    Some(values) => {
                        let (a, b, c) = values;
                        let text: Vec<String> = [a, b, c].iter().enumerate().filter(|(_, v)| **v < 3)
                            .map(|(k, v)| format!("k{k}=v{v}")).collect();
                        drop(cache.upsert(NumericIdentity(identity), &labels(&text.join(","))));
                    }
                    None => drop(cache.remove(NumericIdentity(identity))),
                }
            }
            late.iter().for_each(|s| cache.acquire(s));
            for selector in &selectors {
                let expected: Vec<_> = cache.identities().filter(|(_, l)| selector.matches(l)).map(|(i, _)| i).collect();
                prop_assert_eq!(cache.identities_of(selector), expected);
            }
        }
    }
}
