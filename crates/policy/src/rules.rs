//! The resolved rules of all policies, found by whom they select.

use std::collections::BTreeSet;

use villus_labels::{Labels, Selector};

use crate::{Peers, ResolvedRule, SelectorCache, SelectorId, SubjectId, index::Index};

/// A rule in force. Numbers of rules that are gone are given to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct RuleId(u32);

/// A rule, and what it is linked to.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) rule: ResolvedRule,
    /// For each of its clauses: the selectors of its peers.
    pub(crate) peers: Vec<Box<[SelectorId]>>,
    /// Subjects that it selects and whose policies are compiled.
    pub(crate) subjects: BTreeSet<SubjectId>,
}

#[derive(Debug, Default)]
pub(crate) struct Rules {
    slots: Vec<Option<Stored>>,
    free: Vec<RuleId>,
    index: Index<RuleId>,
}

impl Rules {
    /// Adds a rule and counts it as a user of its selectors.
    pub(crate) fn add(&mut self, mut rule: ResolvedRule, selectors: &mut SelectorCache) -> RuleId {
        let peers = rule
            .clauses
            .iter_mut()
            .map(|clause| match &mut clause.peers {
                Peers::Any => Box::default(),
                Peers::Selected(all) => all.iter_mut().map(|selector| intern(selector, selectors)).collect(),
            })
            .collect();
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.slots.push(None);
                RuleId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
            }
        };
        self.index.add(&rule.subject, id);
        self.slots[id.0 as usize] = Some(Stored { rule, peers, subjects: BTreeSet::new() });
        id
    }

    /// Takes a rule out; the selectors it used are released.
    pub(crate) fn remove(&mut self, id: RuleId, selectors: &mut SelectorCache) -> Option<Stored> {
        let stored = self.slots.get_mut(id.0 as usize)?.take()?;
        for selector in stored.peers.iter().flatten() {
            selectors.release(*selector);
        }
        self.index.remove(&stored.rule.subject, id);
        self.free.push(id);
        Some(stored)
    }

    pub(crate) fn get(&self, id: RuleId) -> Option<&Stored> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: RuleId) -> Option<&mut Stored> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// The rules that select a subject, in no order that means anything.
    pub(crate) fn selecting(&self, subject: &Labels) -> Vec<RuleId> {
        let selects = |id: &RuleId| self.get(*id).is_some_and(|stored| stored.rule.selects(subject));
        self.index.candidates(subject).filter(selects).collect()
    }
}

/// Equal selectors share one allocation.
fn intern(selector: &mut Selector, selectors: &mut SelectorCache) -> SelectorId {
    let id = selectors.acquire(selector);
    if let Some(known) = selectors.selector(id) {
        *selector = known.clone();
    }
    id
}
