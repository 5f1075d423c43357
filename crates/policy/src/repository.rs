//! All policies in force, the selectors they use, and the compiler from both to an endpoint's entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use villus_labels::{Labels, NumericIdentity, Selector};

use crate::{
    EndpointPolicy, ObjectKey, Overflow, Policy, Referents, ResolvedRule, SelectorCache, Settings,
    SubjectChange, SubjectId,
    compile::{Compiler, TooMany},
    named_port::without_named_ports,
    resolve,
    rules::{RuleId, Rules},
    subject::Subjects,
};

/// The policies in force. Same policies and identities give the same entries, in whatever order they came.
#[derive(Debug)]
pub struct Repository {
    settings: Settings,
    pub(crate) referents: Referents,
    /// Every policy that some origin holds.
    known: BTreeMap<ObjectKey, Arc<Policy>>,
    /// Of those with one kind, namespace and name the one whose origin sorts first.
    installed: BTreeMap<ObjectKey, Installed>,
    rules: Rules,
    selectors: SelectorCache,
    subjects: Subjects,
    prefixes: BTreeMap<IpNet, usize>,
    revision: u64,
}

#[derive(Debug)]
struct Installed {
    policy: Arc<Policy>,
    rules: Vec<RuleId>,
}

/// Prefixes whose users were counted, and whether they had any before.
type Touched = BTreeMap<IpNet, bool>;

/// What a change of policies did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyChange {
    /// The revision after it.
    pub revision: u64,
    /// Objects that are new or different.
    pub updated: Vec<ObjectKey>,
    /// Objects that are gone.
    pub removed: Vec<ObjectKey>,
    /// Whom the old and the new rules select.
    pub subjects: Vec<Selector>,
    /// Prefixes that need an identity from now on.
    pub new_prefixes: Vec<IpNet>,
    /// Prefixes that need none any more.
    pub gone_prefixes: Vec<IpNet>,
}

impl PolicyChange {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty()
    }

    /// Whether the policy of an endpoint with these labels may be different now.
    #[must_use]
    pub fn affects(&self, subject: &Labels) -> bool {
        self.subjects.iter().any(|selector| selector.matches(subject))
    }
}

impl Repository {
    /// An empty repository, at revision 1, that knows the reserved identities.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut selectors = SelectorCache::default();
        for (identity, _) in NumericIdentity::reserved() {
            if let Some(labels) = identity.reserved_labels() {
                selectors.upsert(identity, &labels);
            }
        }
        Self {
            settings,
            referents: Referents::default(),
            known: BTreeMap::new(),
            installed: BTreeMap::new(),
            rules: Rules::default(),
            selectors,
            subjects: Subjects::default(),
            prefixes: BTreeMap::new(),
            revision: 1,
        }
    }

    // === policies ===

    /// Puts one policy in place, in place of another with its key. The same policy again changes nothing.
    pub fn upsert(&mut self, policy: Policy) -> PolicyChange {
        self.change(Vec::new(), vec![policy])
    }

    /// Removes policies; those that are not there are no error.
    pub fn delete(&mut self, keys: impl IntoIterator<Item = ObjectKey>) -> PolicyChange {
        self.change(keys.into_iter().collect(), Vec::new())
    }

    /// Makes these policies all that there is from an origin; others from it are removed.
    pub fn replace_origin(&mut self, origin: &str, mut policies: Vec<Policy>) -> PolicyChange {
        for policy in &mut policies {
            if *policy.key.origin != *origin {
                policy.key.origin = origin.into();
            }
        }
        let kept: BTreeSet<&ObjectKey> = policies.iter().map(|policy| &policy.key).collect();
        let gone = self.known.keys().filter(|key| *key.origin == *origin && !kept.contains(key));
        let gone = gone.cloned().collect();
        self.change(gone, policies)
    }

    fn change(&mut self, removed: Vec<ObjectKey>, policies: Vec<Policy>) -> PolicyChange {
        let mut change = PolicyChange::default();
        let mut touched = Touched::new();
        let mut names = BTreeSet::new();
        for key in removed {
            if self.known.remove(&key).is_some() {
                names.insert(first_of_name(&key));
            }
        }
        for policy in policies {
            names.insert(first_of_name(&policy.key));
            self.known.insert(policy.key.clone(), Arc::new(policy));
        }
        for first in names {
            let winner = of_name(&self.known, &first).map(|(_, policy)| policy.clone());
            let old = of_name(&self.installed, &first).map(|(key, old)| (key.clone(), old.policy.clone()));
            if let Some((key, _)) =
                old.as_ref().filter(|(key, _)| winner.as_ref().is_none_or(|new| new.key != *key))
                && let Some(gone) = self.installed.remove(key)
            {
                self.uninstall(gone.rules, &mut touched, &mut change.subjects);
                change.removed.push(key.clone());
            }
            if let Some(winner) = winner
                && old.is_none_or(|(_, old)| *old != *winner)
            {
                let rules = resolve(&winner, &self.settings, &self.referents);
                self.install(winner, rules, &mut change, &mut touched);
            }
        }
        self.finish(change, touched)
    }

    /// Resolves the policies that refer to something by name anew.
    pub(crate) fn resolve_again(&mut self) -> PolicyChange {
        let mut change = PolicyChange::default();
        let mut touched = Touched::new();
        let referring = self.installed.values().filter(|installed| installed.policy.refers());
        for policy in referring.map(|installed| installed.policy.clone()).collect::<Vec<_>>() {
            let rules = resolve(&policy, &self.settings, &self.referents);
            if !self.rules(&policy.key).eq(&rules) {
                self.install(policy, rules, &mut change, &mut touched);
            }
        }
        self.finish(change, touched)
    }

    /// The new rules first, then without the old ones, so that selectors both use keep their selection.
    fn install(
        &mut self,
        policy: Arc<Policy>,
        rules: Vec<ResolvedRule>,
        change: &mut PolicyChange,
        touched: &mut Touched,
    ) {
        let mut ids = Vec::with_capacity(rules.len());
        for rule in rules {
            change.subjects.push(rule.subject.clone());
            self.count_prefixes(&rule, true, touched);
            let selected: Vec<SubjectId> =
                self.subjects.iter().filter(|(_, subject)| rule.selects(subject)).map(|(id, _)| id).collect();
            let id = self.rules.add(rule, &mut self.selectors);
            for subject in &selected {
                self.subjects.relate(*subject, id, true);
            }
            if let Some(stored) = self.rules.get_mut(id) {
                stored.subjects.extend(selected);
            }
            ids.push(id);
        }
        let key = policy.key.clone();
        change.updated.push(key.clone());
        if let Some(old) = self.installed.insert(key, Installed { policy, rules: ids }) {
            self.uninstall(old.rules, touched, &mut change.subjects);
        }
    }

    fn finish(&mut self, mut change: PolicyChange, touched: Touched) -> PolicyChange {
        if !change.is_empty() {
            self.revision += 1;
        }
        change.subjects.sort_unstable();
        change.subjects.dedup();
        change.revision = self.revision;
        for (prefix, was_used) in touched {
            match (was_used, self.prefixes.contains_key(&prefix)) {
                (false, true) => change.new_prefixes.push(prefix),
                (true, false) => change.gone_prefixes.push(prefix),
                _ => {}
            }
        }
        change
    }

    fn uninstall(&mut self, rules: Vec<RuleId>, touched: &mut Touched, subjects: &mut Vec<Selector>) {
        for id in rules {
            let Some(stored) = self.rules.remove(id, &mut self.selectors) else { continue };
            for subject in &stored.subjects {
                self.subjects.relate(*subject, id, false);
            }
            self.count_prefixes(&stored.rule, false, touched);
            subjects.push(stored.rule.subject);
        }
    }

    fn count_prefixes(&mut self, rule: &ResolvedRule, add: bool, touched: &mut Touched) {
        for prefix in &rule.prefixes {
            touched.entry(*prefix).or_insert_with(|| self.prefixes.contains_key(prefix));
            let users = self.prefixes.entry(*prefix).or_default();
            *users = if add { *users + 1 } else { users.saturating_sub(1) };
            if *users == 0 {
                self.prefixes.remove(prefix);
            }
        }
    }

    /// Resolves all policies anew under other settings, as a new revision.
    pub fn set_settings(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        self.settings = settings;
        let all: Vec<Arc<Policy>> =
            self.installed.values().map(|installed| installed.policy.clone()).collect();
        for policy in all {
            let rules = resolve(&policy, &self.settings, &self.referents);
            self.install(policy, rules, &mut PolicyChange::default(), &mut Touched::new());
        }
        self.subjects.spoil_all();
        self.revision += 1;
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Grows with each change of policies or settings.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The policy of a kind, namespace and name that is in force, from whatever origin.
    #[must_use]
    pub fn in_force(&self, key: &ObjectKey) -> Option<&Policy> {
        of_name(&self.installed, &first_of_name(key)).map(|(_, installed)| &*installed.policy)
    }

    /// Every policy that some origin holds, in force or not, in order of their keys.
    pub fn known(&self) -> impl Iterator<Item = &Policy> {
        self.known.values().map(|policy| &**policy)
    }

    /// The policies that are not in force because another origin holds one of the same kind, namespace and name, each
    /// with the one that is.
    pub fn shadowed(&self) -> impl Iterator<Item = (&Policy, &ObjectKey)> {
        self.known().filter_map(|policy| {
            let (winner, _) = of_name(&self.known, &first_of_name(&policy.key))?;
            (*winner != policy.key).then_some((policy, winner))
        })
    }

    /// The policies in force, in order of their keys.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.installed.values().map(|installed| &*installed.policy)
    }

    /// One policy.
    #[must_use]
    pub fn policy(&self, key: &ObjectKey) -> Option<&Policy> {
        self.installed.get(key).map(|installed| &*installed.policy)
    }

    /// The policies whose own labels a selector selects, in force or not.
    pub fn policies_with_labels<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Policy> {
        self.known().filter(|policy| selector.matches(&policy.labels()))
    }

    /// What a policy that is not in force would mean.
    #[must_use]
    pub fn resolve(&self, policy: &Policy) -> Vec<ResolvedRule> {
        resolve(policy, &self.settings, &self.referents)
    }

    /// The rules of a policy, their meaning resolved.
    pub fn rules(&self, key: &ObjectKey) -> impl Iterator<Item = &ResolvedRule> {
        let ids = self.installed.get(key).map(|installed| &installed.rules);
        ids.into_iter().flatten().filter_map(|id| Some(&self.rules.get(*id)?.rule))
    }

    /// Every prefix that some policy names. Each needs an identity with the labels of
    /// [`villus_labels::cidr_labels`]; those of length 0 have [`NumericIdentity::of_prefix`].
    pub fn prefixes_in_use(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.keys().copied()
    }

    // === identities ===

    /// The selectors in use and the identities known.
    #[must_use]
    pub fn selectors(&self) -> &SelectorCache {
        &self.selectors
    }

    /// Learns of an identity, or of its new labels.
    pub fn upsert_identity(&mut self, identity: NumericIdentity, labels: &Labels) {
        if identity != NumericIdentity::UNKNOWN {
            let labels = self.referents.with_ports(identity, labels);
            let change = self.selectors.upsert(identity, &labels);
            let compiler = Self::compiler(&self.settings, &self.rules, &self.selectors, self.revision);
            self.subjects.follow(identity, &change, compiler);
        }
    }

    /// The named ports of an identity are others.
    pub(crate) fn relabel_identity(&mut self, identity: NumericIdentity) {
        if let Some(labels) = self.selectors.labels_of(identity).map(without_named_ports) {
            self.upsert_identity(identity, &labels);
        }
    }

    /// Forgets an identity.
    pub fn remove_identity(&mut self, identity: NumericIdentity) {
        let change = self.selectors.remove(identity);
        let compiler = Self::compiler(&self.settings, &self.rules, &self.selectors, self.revision);
        self.subjects.follow(identity, &change, compiler);
    }

    // === policies of endpoints ===

    /// The rules that select a subject, in order of their origins.
    pub fn rules_of(&self, subject: &Labels) -> impl Iterator<Item = &ResolvedRule> {
        let ids = self.rules.selecting(subject);
        let mut rules: Vec<&ResolvedRule> =
            ids.into_iter().filter_map(|id| Some(&self.rules.get(id)?.rule)).collect();
        rules.sort_by(|a, b| a.origin.cmp(&b.origin));
        rules.into_iter()
    }

    /// What the policy map of a subject should hold, compiled from nothing.
    ///
    /// # Errors
    /// More than `max_entries` entries, with what costs most; then what was in force before should stay.
    pub fn endpoint_policy(&self, subject: &Labels, max_entries: usize) -> Result<EndpointPolicy, Overflow> {
        let compiler = Self::compiler(&self.settings, &self.rules, &self.selectors, self.revision);
        let rules = self.rules.selecting(subject);
        let mut plan = compiler.plan(subject, &rules);
        compiler
            .compile(subject, &rules, &mut plan, max_entries)
            .map_err(|TooMany| compiler.overflow(&plan, max_entries))
    }

    fn compiler<'a>(
        settings: &'a Settings,
        rules: &'a Rules,
        selectors: &'a SelectorCache,
        revision: u64,
    ) -> Compiler<'a> {
        Compiler { settings, rules, selectors, revision }
    }

    /// From now on the policy of a subject is kept compiled, until it is released as often as it was acquired. It is
    /// there after the next [`Self::sync`].
    pub fn acquire_subject(&mut self, subject: &Labels) -> SubjectId {
        let selecting = self.rules.selecting(subject);
        let (id, new) = self.subjects.acquire(subject);
        if new {
            for rule in selecting {
                self.subjects.relate(id, rule, true);
                if let Some(stored) = self.rules.get_mut(rule) {
                    stored.subjects.insert(id);
                }
            }
        }
        id
    }

    /// Somebody does not need a subject's policy any more.
    pub fn release_subject(&mut self, id: SubjectId) {
        self.subjects.release(id, &mut self.rules, &mut self.selectors);
    }

    /// The policy of a subject as of the last [`Self::sync`], with its version: the last one that fitted.
    #[must_use]
    pub fn compiled(&self, id: SubjectId) -> Option<(&Arc<EndpointPolicy>, u64)> {
        let compiled = self.subjects.get(id).filter(|compiled| compiled.version > 0)?;
        Some((&compiled.policy, compiled.version))
    }

    /// Why the policy of a subject is not what its rules ask for: it has more entries than [`Settings::max_entries`].
    #[must_use]
    pub fn overflow(&self, id: SubjectId) -> Option<&Overflow> {
        self.subjects.get(id)?.overflow.as_ref()
    }

    /// Brings all compiled policies up to date; says which entries are different since the last time. One identity that
    /// came or went costs what its own entries cost, a policy the compiling of those it selects.
    pub fn sync(&mut self) -> Vec<SubjectChange> {
        let touched = self.subjects.take_touched();
        let mut changes: Vec<SubjectChange> = Vec::with_capacity(touched.len());
        for id in touched {
            self.subjects.refresh(id, &self.settings, &self.rules, &mut self.selectors, self.revision);
            let change = self.subjects.take_change(id, changes.last());
            changes.extend(change);
        }
        changes
    }
}

/// What sorts before every object of the same kind, namespace and name.
fn first_of_name(key: &ObjectKey) -> ObjectKey {
    ObjectKey { origin: "".into(), ..key.clone() }
}

/// The first object of a kind, namespace and name.
fn of_name<'a, T>(objects: &'a BTreeMap<ObjectKey, T>, first: &ObjectKey) -> Option<(&'a ObjectKey, &'a T)> {
    let (key, object) = objects.range(first..).next()?;
    let is_it = (key.kind, &key.namespace, &key.name) == (first.kind, &first.namespace, &first.name);
    is_it.then_some((key, object))
}
