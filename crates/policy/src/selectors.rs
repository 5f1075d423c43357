//! Which identities each selector in use selects, kept up to date as identities come and go.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use villus_labels::{Labels, NumericIdentity, Selector};

use crate::{
    SubjectId,
    index::{Index, Postings},
};

/// A selector in use. Numbers of selectors that nobody uses any more are given to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SelectorId(u32);

/// Selectors in use, shared between all rules that write the same, and the identities they select.
#[derive(Default, Debug)]
pub struct SelectorCache {
    ids: HashMap<Selector, SelectorId>,
    slots: Vec<Option<Selected>>,
    free: Vec<SelectorId>,
    identities: BTreeMap<NumericIdentity, Labels>,
    index: Index<SelectorId>,
    postings: Postings,
}

#[derive(Debug)]
struct Selected {
    selector: Selector,
    users: usize,
    /// Sorted.
    identities: Vec<NumericIdentity>,
    /// Compiled policies that ask for what it selects, each with the numbers of its asks.
    askers: BTreeMap<SubjectId, Vec<u32>>,
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

/// What an identity's coming, going or new labels did to selectors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Reselected {
    /// Those that select it now and did not, or the other way round.
    pub(crate) changed: Vec<SelectorId>,
    /// Those that select it now.
    pub(crate) selecting: Vec<SelectorId>,
}

impl SelectorCache {
    /// Counts one more user of a selector.
    pub fn acquire(&mut self, selector: &Selector) -> SelectorId {
        if let Some(id) = self.ids.get(selector) {
            let id = *id;
            if let Some(known) = self.slot_mut(id) {
                known.users += 1;
            }
            return id;
        }
        let identities = self.select(selector);
        let selected = Selected { selector: selector.clone(), users: 1, identities, askers: BTreeMap::new() };
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.slots.push(None);
                SelectorId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
            }
        };
        self.slots[id.0 as usize] = Some(selected);
        self.index.add(selector, id);
        self.ids.insert(selector.clone(), id);
        id
    }

    fn select(&self, selector: &Selector) -> Vec<NumericIdentity> {
        let matches = |identity: &NumericIdentity| {
            self.identities.get(identity).is_some_and(|labels| selector.matches(labels))
        };
        match self.postings.candidates(selector) {
            Some(mut candidates) => {
                candidates.retain(matches);
                candidates.shrink_to_fit();
                candidates
            }
            None => self.identities.keys().filter(|identity| matches(identity)).copied().collect(),
        }
    }

    /// Counts one user less; the last one takes the selector with it.
    pub fn release(&mut self, id: SelectorId) {
        let Some(known) = self.slot_mut(id) else { return };
        known.users -= 1;
        if known.users > 0 {
            return;
        }
        if let Some(gone) = self.slots.get_mut(id.0 as usize).and_then(Option::take) {
            self.ids.remove(&gone.selector);
            self.index.remove(&gone.selector, id);
            self.free.push(id);
        }
    }

    fn slot(&self, id: SelectorId) -> Option<&Selected> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    fn slot_mut(&mut self, id: SelectorId) -> Option<&mut Selected> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// What a selector in use selects, sorted; nothing if nobody uses it.
    #[must_use]
    pub fn identities_of(&self, selector: &Selector) -> &[NumericIdentity] {
        self.ids.get(selector).map_or(&[], |id| self.selection(*id))
    }

    /// What a selector selects, sorted.
    #[must_use]
    pub fn selection(&self, id: SelectorId) -> &[NumericIdentity] {
        self.slot(id).map_or(&[], |selected| &selected.identities)
    }

    /// A selector in use.
    #[must_use]
    pub fn selector(&self, id: SelectorId) -> Option<&Selector> {
        self.slot(id).map(|selected| &selected.selector)
    }

    // === who asks ===

    /// An ask of a compiled policy is about what the selector selects.
    pub(crate) fn link(&mut self, id: SelectorId, subject: SubjectId, ask: u32) {
        if let Some(selected) = self.slot_mut(id) {
            selected.askers.entry(subject).or_default().push(ask);
        }
    }

    /// No ask of a compiled policy is about what the selector selects any more.
    pub(crate) fn unlink(&mut self, id: SelectorId, subject: SubjectId) {
        if let Some(selected) = self.slot_mut(id) {
            selected.askers.remove(&subject);
        }
    }

    /// Compiled policies that ask for what a selector selects, each with the numbers of its asks.
    pub(crate) fn askers(&self, id: SelectorId) -> impl Iterator<Item = (SubjectId, &[u32])> {
        let askers = self.slot(id).map(|selected| &selected.askers);
        askers.into_iter().flatten().map(|(subject, asks)| (*subject, asks.as_slice()))
    }

    // === identities ===

    /// Learns of an identity, or of its new labels.
    pub(crate) fn upsert(&mut self, identity: NumericIdentity, labels: &Labels) -> Reselected {
        let old = self.identities.insert(identity, labels.clone());
        if old.as_ref() == Some(labels) {
            return Reselected::default();
        }
        self.reselect(identity, old.as_ref(), Some(labels))
    }

    /// Forgets an identity.
    pub(crate) fn remove(&mut self, identity: NumericIdentity) -> Reselected {
        match self.identities.remove(&identity) {
            Some(old) => self.reselect(identity, Some(&old), None),
            None => Reselected::default(),
        }
    }

    fn reselect(
        &mut self,
        identity: NumericIdentity,
        old: Option<&Labels>,
        new: Option<&Labels>,
    ) -> Reselected {
        let mut candidates: Vec<SelectorId> = Vec::new();
        for labels in [old, new].into_iter().flatten() {
            candidates.extend(self.index.candidates(labels));
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut reselected = Reselected::default();
        for id in candidates {
            let Some(selected) = self.slots.get_mut(id.0 as usize).and_then(Option::as_mut) else { continue };
            let wanted = new.is_some_and(|labels| selected.selector.matches(labels));
            if wanted {
                reselected.selecting.push(id);
            }
            match (selected.identities.binary_search(&identity), wanted) {
                (Ok(at), false) => drop(selected.identities.remove(at)),
                (Err(at), true) => selected.identities.insert(at, identity),
                _ => continue,
            }
            reselected.changed.push(id);
        }
        if let Some(old) = old {
            self.postings.remove(identity, old);
        }
        if let Some(new) = new {
            self.postings.add(identity, new);
        }
        reselected
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
            .slots
            .iter()
            .flatten()
            .map(|Selected { selector, users, identities, .. }| SelectorRow {
                selector: selector.clone(),
                users: *users,
                identities: identities.clone(),
            })
            .collect();
        rows.sort_unstable_by(|a, b| a.selector.cmp(&b.selector));
        rows
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
        let id = cache.acquire(&web);
        assert_eq!(cache.acquire(&web), id);
        assert_eq!(cache.identities_of(&web), [NumericIdentity(300)]);
        let came = cache.upsert(NumericIdentity(299), &labels("app=web,env=a"));
        assert_eq!(came, Reselected { changed: vec![id], selecting: vec![id] });
        let stays = cache.upsert(NumericIdentity(299), &labels("app=web,env=b"));
        assert_eq!(stays, Reselected { changed: vec![], selecting: vec![id] });
        assert_eq!(cache.upsert(NumericIdentity(400), &labels("app=db")), Reselected::default());
        assert_eq!(cache.identities_of(&web), [299, 300].map(NumericIdentity));
        assert_eq!(cache.remove(NumericIdentity(300)).changed, [id]);
        assert_eq!(
            cache.rows(),
            [SelectorRow { selector: web.clone(), users: 2, identities: vec![NumericIdentity(299)] }]
        );
        cache.release(id);
        cache.release(id);
        assert!(cache.rows().is_empty() && cache.index.is_empty());
        assert_eq!(cache.identities_of(&web), []);
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
            early.iter().for_each(|s| { cache.acquire(s); });
            for (identity, what) in steps {
                match what {
                    Some(values) => {
                        let (a, b, c) = values;
                        let text: Vec<String> = [a, b, c].iter().enumerate().filter(|(_, v)| **v < 3)
                            .map(|(k, v)| if *v == 2 { format!("k{k}") } else { format!("k{k}=v{v}") }).collect();
                        drop(cache.upsert(NumericIdentity(identity), &labels(&text.join(","))));
                    }
                    None => drop(cache.remove(NumericIdentity(identity))),
                }
            }
            late.iter().for_each(|s| { cache.acquire(s); });
            for selector in &selectors {
                let expected: Vec<_> = cache.identities().filter(|(_, l)| selector.matches(l)).map(|(i, _)| i).collect();
                prop_assert_eq!(cache.identities_of(selector), expected);
            }
        }
    }
}
