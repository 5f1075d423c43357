//! Whose policies are compiled, and what came of it.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use villus_abi::PolicyEntry;
use villus_labels::{Labels, NumericIdentity};

use crate::{
    Edit, EndpointPolicy, Overflow, SelectorCache, SelectorId,
    askers::Decision,
    compile::{Compiler, TooMany, number_of},
    packed::Packed,
    plan::Plan,
    rules::{RuleId, Rules},
    selectors::Reselected,
};

/// A subject, that is all that rules know of an endpoint: its identity-relevant labels and those of its named ports
/// ([`crate::with_named_ports`]). Endpoints alike in them share one compiled policy. Numbers are not used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubjectId(u32);

/// How the policy of a subject differs from what it was at the last [`crate::Repository::sync`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubjectChange {
    /// Whose.
    pub subject: SubjectId,
    /// The version that the edits start from: who holds another one needs the whole policy.
    pub from: u64,
    /// The version that they lead to.
    pub to: u64,
    /// Entries that are different, in order of their keys. None if only the revision or the reasons are, and none from
    /// version 0, which nobody holds. Subjects that one change concerns alike share them.
    pub edits: Arc<[Edit]>,
}

/// One subject's policy and what it hangs on.
#[derive(Debug)]
pub(crate) struct Compiled {
    subject: Labels,
    users: usize,
    rules: Vec<RuleId>,
    /// Who asks.
    plan: Plan,
    /// It fits only with ranges cut for room, and is to be compiled anew as soon as anything is different.
    tight: bool,
    /// Selectors that know of it.
    links: Vec<SelectorId>,
    pub(crate) policy: Arc<EndpointPolicy>,
    /// Rules changed, so all of it is to be compiled anew.
    stale: bool,
    /// It does not fit; the policy is the last one that did.
    pub(crate) overflow: Option<Overflow>,
    /// What has become different since the last sync, in its sequence.
    turns: Vec<Turn>,
    pub(crate) version: u64,
}

/// An entry that has become different: the flags of what stood there and of what stands there.
#[derive(Clone, Copy, Debug)]
struct Turn {
    key: Packed,
    before: Option<u8>,
    after: Option<u8>,
}

/// How much room for turns is kept between two syncs.
const TURNS: usize = 16;

/// Every subject whose policy is kept compiled.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    by_id: BTreeMap<SubjectId, Compiled>,
    ids: HashMap<Labels, SubjectId>,
    next: u32,
    /// Those with something to tell at the next sync.
    touched: BTreeSet<SubjectId>,
}

impl Subjects {
    /// Counts one more user of a subject; says whether it is the first.
    pub(crate) fn acquire(&mut self, subject: &Labels) -> (SubjectId, bool) {
        if let Some(id) = self.ids.get(subject) {
            if let Some(compiled) = self.by_id.get_mut(id) {
                compiled.users += 1;
            }
            return (*id, false);
        }
        let id = SubjectId(self.next);
        self.next = self.next.wrapping_add(1);
        let compiled = Compiled {
            subject: subject.clone(),
            users: 1,
            rules: Vec::new(),
            plan: Plan::default(),
            tight: false,
            links: Vec::new(),
            policy: Arc::default(),
            stale: true,
            overflow: None,
            turns: Vec::new(),
            version: 0,
        };
        self.ids.insert(subject.clone(), id);
        self.by_id.insert(id, compiled);
        self.touched.insert(id);
        (id, true)
    }

    /// Counts one user less; the last one takes the subject with it.
    pub(crate) fn release(&mut self, id: SubjectId, rules: &mut Rules, selectors: &mut SelectorCache) {
        let Some(compiled) = self.by_id.get_mut(&id) else { return };
        compiled.users -= 1;
        if compiled.users > 0 {
            return;
        }
        if let Some(gone) = self.by_id.remove(&id) {
            self.ids.remove(&gone.subject);
            self.touched.remove(&id);
            gone.links.iter().for_each(|selector| selectors.unlink(*selector, id));
            for rule in &gone.rules {
                if let Some(stored) = rules.get_mut(*rule) {
                    stored.subjects.remove(&id);
                }
            }
        }
    }

    pub(crate) fn get(&self, id: SubjectId) -> Option<&Compiled> {
        self.by_id.get(&id)
    }

    /// Every subject.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SubjectId, &Labels)> {
        self.by_id.iter().map(|(id, compiled)| (*id, &compiled.subject))
    }

    /// A rule selects a subject from now on, or not any more.
    pub(crate) fn relate(&mut self, id: SubjectId, rule: RuleId, selects: bool) {
        let Some(compiled) = self.by_id.get_mut(&id) else { return };
        if selects {
            compiled.rules.push(rule);
        } else {
            compiled.rules.retain(|other| *other != rule);
        }
        self.spoil(id);
    }

    /// A subject's policy is to be compiled anew.
    pub(crate) fn spoil(&mut self, id: SubjectId) {
        if let Some(compiled) = self.by_id.get_mut(&id) {
            compiled.stale = true;
            self.touched.insert(id);
        }
    }

    pub(crate) fn spoil_all(&mut self) {
        let all: Vec<SubjectId> = self.by_id.keys().copied().collect();
        all.into_iter().for_each(|id| self.spoil(id));
    }

    /// Compiles a subject's policy anew if it is to be.
    pub(crate) fn refresh(
        &mut self,
        id: SubjectId,
        settings: &crate::Settings,
        rules: &Rules,
        selectors: &mut SelectorCache,
        revision: u64,
    ) {
        let Some(compiled) = self.by_id.get_mut(&id).filter(|compiled| compiled.stale) else { return };
        compiled.stale = false;
        for selector in std::mem::take(&mut compiled.links) {
            selectors.unlink(selector, id);
        }
        compiled.plan =
            Compiler { settings, rules, selectors, revision }.plan(&compiled.subject, &compiled.rules);
        for (at, (rule, clause)) in compiled.plan.clauses.iter().enumerate() {
            let peers = rules.get(*rule).and_then(|stored| stored.peers.get(*clause as usize));
            for selector in peers.into_iter().flatten() {
                selectors.link(*selector, id, number_of(at));
                compiled.links.push(*selector);
            }
        }
        compiled.links.sort_unstable();
        compiled.links.dedup();
        let compiler = Compiler { settings, rules, selectors, revision };
        let most = settings.max_entries;
        let chosen = compiled.plan.cuts();
        let result = compiler.compile(&compiled.subject, &compiled.rules, &mut compiled.plan, most);
        compiled.tight = compiled.plan.cuts() != chosen;
        match result {
            Ok(policy) => {
                if compiled.version > 0 {
                    let edits = compiled.policy.edits_to(&policy);
                    compiled.remember(&edits);
                }
                compiled.policy = Arc::new(policy);
                compiled.overflow = None;
            }
            Err(TooMany) => {
                let overflow = compiler.overflow(&compiled.plan, most);
                compiled.overflow = Some(overflow);
            }
        }
    }

    /// Follows an identity that came, went or has other labels: only its own entries are touched, in the policies
    /// that ask for what the changed selectors select.
    pub(crate) fn follow(&mut self, identity: NumericIdentity, change: &Reselected, compiler: Compiler<'_>) {
        let askers = |selector: &SelectorId| compiler.selectors.askers(*selector);
        let mut concerned: Vec<SubjectId> =
            change.changed.iter().flat_map(askers).map(|(subject, _)| subject).collect();
        concerned.sort_unstable();
        concerned.dedup();
        let mut asks: Vec<(SubjectId, u32)> = Vec::new();
        for (subject, numbers) in change.selecting.iter().flat_map(askers) {
            asks.extend(numbers.iter().map(|number| (subject, *number)));
        }
        asks.sort_unstable();
        let (mut asks, mut keys) = (asks.chunk_by(|a, b| a.0 == b.0).peekable(), Vec::new());
        for id in concerned {
            let is_of = |asks: &&[(SubjectId, u32)], order: Ordering| {
                asks.first().is_some_and(|(subject, _)| subject.cmp(&id) == order)
            };
            while asks.next_if(|asks| is_of(asks, Ordering::Less)).is_some() {}
            let own = asks.next_if(|asks| is_of(asks, Ordering::Equal)).unwrap_or_default();
            let Some(compiled) = self.by_id.get_mut(&id).filter(|compiled| !compiled.stale) else { continue };
            self.touched.insert(id);
            compiled.follow(identity, own.iter().map(|(_, number)| *number), compiler, &mut keys);
        }
    }

    /// What is different since the last time, and the policies themselves are up to date.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<SubjectId> {
        std::mem::take(&mut self.touched)
    }

    /// A subject's change since the last time; `like` may be the same for another.
    pub(crate) fn take_change(
        &mut self,
        id: SubjectId,
        like: Option<&SubjectChange>,
    ) -> Option<SubjectChange> {
        let compiled = self.by_id.get_mut(&id)?;
        // What was changed again was at first as before the first change.
        compiled.turns.sort_by_key(|turn| turn.key);
        let edit = |same: &[Turn]| {
            let (first, last) = (same.first()?, same.last()?);
            let entry = |flags| PolicyEntry { flags, ..PolicyEntry::ALLOW };
            let (before, after) = (first.before.map(entry), last.after.map(entry));
            (before != after).then_some(Edit { key: first.key.into(), before, after })
        };
        let edits = || compiled.turns.chunk_by(|a, b| a.key == b.key).filter_map(edit);
        let like = like.filter(|like| edits().eq(like.edits.iter().copied()));
        let edits: Arc<[Edit]> = like.map_or_else(|| edits().collect(), |like| like.edits.clone());
        compiled.turns.clear();
        compiled.turns.shrink_to(TURNS);
        let from = compiled.version;
        let first = from == 0 && compiled.overflow.is_none();
        compiled.version += u64::from(!edits.is_empty() || first);
        Some(SubjectChange { subject: id, from, to: compiled.version, edits })
    }
}

impl Compiled {
    fn remember(&mut self, edits: &[Edit]) {
        let flags = |entry: Option<PolicyEntry>| entry.map(|entry| entry.flags);
        self.turns.extend(edits.iter().map(|edit| Turn {
            key: edit.key.into(),
            before: flags(edit.before),
            after: flags(edit.after),
        }));
    }

    /// `asks` is where what is asked for is gathered.
    fn follow(
        &mut self,
        identity: NumericIdentity,
        numbers: impl Iterator<Item = u32>,
        compiler: Compiler<'_>,
        asks: &mut Vec<(Packed, u32)>,
    ) {
        // Numbers are those of the clauses that did not fit.
        if self.overflow.is_some() || self.tight {
            self.stale = true;
            return;
        }
        asks.clear();
        let option = compiler.option_asks(identity, self.policy.enforced);
        asks.extend(option.map(|(key, number)| (key.into(), number)));
        let bound = self.plan.bound_any(&compiler);
        for number in numbers.chain(bound.into_iter().map(number_of)) {
            let at = number.saturating_sub(number_of(0)) as usize;
            let clause = self.plan.clauses.get(at).and_then(|reference| compiler.clause(*reference));
            let keys = clause.into_iter().flat_map(|(clause, _)| self.plan.keys(clause, identity, &compiler));
            asks.extend(keys.map(|key| (key.into(), number)));
        }
        // An ask may be there twice; what seems not to fit is compiled anew and counted exactly.
        let most = compiler.settings.max_entries;
        if self.policy.len() + asks.len() > most && self.policy.len_with(identity.0, asks.len()) > most {
            self.stale = true;
            return;
        }
        let turns = &mut self.turns;
        Arc::make_mut(&mut self.policy).replace_identity(identity.0, asks, |key, before, after| {
            let flags = |decision: Option<Decision>| decision.map(|decision| decision.entry().flags);
            turns.push(Turn { key: key.into(), before: flags(before), after: flags(after) });
        });
    }
}
