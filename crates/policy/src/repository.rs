//! All policies in force, the selectors they use, and the compiler from both to an endpoint's entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use villus_abi::{Direction, PolicyKey};
use villus_labels::{Labels, NumericIdentity, Selector};

use crate::{
    Clause, Cost, EndpointPolicy, EnforcementMode, ObjectKey, Origin, Overflow, Peers, Policy, Referents,
    ResolvedRule, SelectorCache, Settings,
    endpoint::{Builder, Origins, TooMany},
    named_port::without_named_ports,
    resolve,
};

/// The policies in force. Same policies and identities give the same entries, in whatever order they came.
#[derive(Debug)]
pub struct Repository {
    settings: Settings,
    pub(crate) referents: Referents,
    installed: BTreeMap<ObjectKey, Installed>,
    selectors: SelectorCache,
    prefixes: BTreeMap<IpNet, usize>,
    revision: u64,
}

#[derive(Debug)]
struct Installed {
    policy: Arc<Policy>,
    rules: Vec<ResolvedRule>,
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

/// What a change of identities did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdentityChange {
    /// The selectors whose selection changed, sorted.
    pub selectors: Vec<Selector>,
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
            installed: BTreeMap::new(),
            selectors,
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
        let gone = self.installed.keys().filter(|key| *key.origin == *origin && !kept.contains(key));
        let gone = gone.cloned().collect();
        self.change(gone, policies)
    }

    fn change(&mut self, removed: Vec<ObjectKey>, policies: Vec<Policy>) -> PolicyChange {
        let mut change = PolicyChange::default();
        let mut touched = Touched::new();
        for key in removed {
            if let Some(old) = self.installed.remove(&key) {
                self.count(&old.rules, false, &mut touched);
                change.subjects.extend(old.rules.into_iter().map(|rule| rule.subject));
                change.removed.push(key);
            }
        }
        for policy in policies {
            if self.installed.get(&policy.key).is_some_and(|old| *old.policy == policy) {
                continue;
            }
            let rules = resolve(&policy, &self.settings, &self.referents);
            self.install(Arc::new(policy), rules, &mut change, &mut touched);
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
            if self.installed.get(&policy.key).is_some_and(|old| old.rules != rules) {
                self.install(policy, rules, &mut change, &mut touched);
            }
        }
        self.finish(change, touched)
    }

    fn install(
        &mut self,
        policy: Arc<Policy>,
        rules: Vec<ResolvedRule>,
        change: &mut PolicyChange,
        touched: &mut Touched,
    ) {
        // The new one first, so that selectors both use keep their selection.
        self.count(&rules, true, touched);
        change.subjects.extend(rules.iter().map(|rule| rule.subject.clone()));
        change.updated.push(policy.key.clone());
        let key = policy.key.clone();
        if let Some(old) = self.installed.insert(key, Installed { policy, rules }) {
            self.count(&old.rules, false, touched);
            change.subjects.extend(old.rules.into_iter().map(|rule| rule.subject));
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

    /// Counts or uncounts the selectors and prefixes of rules.
    fn count(&mut self, rules: &[ResolvedRule], add: bool, touched: &mut Touched) {
        for rule in rules {
            for selector in rule.clauses.iter().flat_map(peer_selectors) {
                if add {
                    self.selectors.acquire(selector);
                } else {
                    self.selectors.release(selector);
                }
            }
            for prefix in &rule.prefixes {
                touched.entry(*prefix).or_insert_with(|| self.prefixes.contains_key(prefix));
                let users = self.prefixes.entry(*prefix).or_default();
                *users = if add { *users + 1 } else { users.saturating_sub(1) };
                if *users == 0 {
                    self.prefixes.remove(prefix);
                }
            }
        }
    }

    /// Resolves all policies anew under other settings, as a new revision.
    pub fn set_settings(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        self.settings = settings;
        for (key, mut installed) in std::mem::take(&mut self.installed) {
            let rules = resolve(&installed.policy, &self.settings, &self.referents);
            let mut touched = Touched::new();
            self.count(&rules, true, &mut touched);
            self.count(&installed.rules, false, &mut touched);
            installed.rules = rules;
            self.installed.insert(key, installed);
        }
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

    /// The policies, in order of their keys.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.installed.values().map(|installed| &*installed.policy)
    }

    /// One policy.
    #[must_use]
    pub fn policy(&self, key: &ObjectKey) -> Option<&Policy> {
        self.installed.get(key).map(|installed| &*installed.policy)
    }

    /// The policies whose own labels a selector selects.
    pub fn policies_with_labels<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Policy> {
        self.policies().filter(|policy| selector.matches(&policy.labels()))
    }

    /// What a policy that is not in force would mean.
    #[must_use]
    pub fn resolve(&self, policy: &Policy) -> Vec<ResolvedRule> {
        resolve(policy, &self.settings, &self.referents)
    }

    /// The rules of a policy, their meaning resolved.
    #[must_use]
    pub fn rules(&self, key: &ObjectKey) -> &[ResolvedRule] {
        self.installed.get(key).map_or(&[], |installed| &installed.rules)
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
    pub fn upsert_identity(&mut self, identity: NumericIdentity, labels: &Labels) -> IdentityChange {
        let labels = self.referents.with_ports(identity, labels);
        IdentityChange { selectors: self.selectors.upsert(identity, &labels) }
    }

    /// The named ports of an identity are others.
    pub(crate) fn relabel_identity(&mut self, identity: NumericIdentity) -> IdentityChange {
        match self.selectors.labels_of(identity).map(without_named_ports) {
            Some(labels) => self.upsert_identity(identity, &labels),
            None => IdentityChange::default(),
        }
    }

    /// Forgets an identity.
    pub fn remove_identity(&mut self, identity: NumericIdentity) -> IdentityChange {
        IdentityChange { selectors: self.selectors.remove(identity) }
    }

    /// Whether the policy of an endpoint with these labels is different after a change of identities.
    #[must_use]
    pub fn affects(&self, change: &IdentityChange, subject: &Labels) -> bool {
        !change.selectors.is_empty()
            && self
                .rules_of(subject)
                .flat_map(|rule| &rule.clauses)
                .flat_map(peer_selectors)
                .any(|selector| change.selectors.binary_search(selector).is_ok())
    }

    // === endpoints ===

    /// The rules that select an endpoint with these labels.
    pub fn rules_of<'a>(&'a self, subject: &'a Labels) -> impl Iterator<Item = &'a ResolvedRule> {
        let rules = self.installed.values().flat_map(|installed| &installed.rules);
        rules.filter(|rule| rule.subject.matches(subject))
    }

    /// What the policy map of an endpoint with these labels should hold.
    ///
    /// # Errors
    /// More than `max_entries` entries, with what costs most; then what was in force before should stay.
    pub fn endpoint_policy(&self, subject: &Labels, max_entries: usize) -> Result<EndpointPolicy, Overflow> {
        self.compile(subject, max_entries).map_err(|TooMany| self.overflow(subject, max_entries))
    }

    fn compile(&self, subject: &Labels, max_entries: usize) -> Result<EndpointPolicy, TooMany> {
        let mut builder = Builder::new(self.revision, max_entries);
        for direction in Direction::ALL {
            let side = usize::from(direction == Direction::Egress);
            let by = self.enforced_by(subject, side);
            let enforced = !by.is_empty();
            builder.policy.enforced[side] = enforced;
            builder.policy.enforced_by[side] = by;
            if !enforced {
                let origins: Origins = Arc::from([Origin::NotEnforced]);
                builder.add(PolicyKey::new(0, 0, 0, direction), false, &origins)?;
            }
        }
        if self.settings.mode == EnforcementMode::Never {
            return Ok(builder.policy);
        }
        if self.settings.allow_localhost && builder.policy.enforced[0] {
            let origins: Origins = Arc::from([Origin::AllowLocalhost]);
            let key = PolicyKey::new(NumericIdentity::HOST.0, 0, 0, Direction::Ingress);
            builder.add(key, false, &origins)?;
        }
        for clause in self.rules_of(subject).flat_map(|rule| &rule.clauses) {
            self.add_clause(&mut builder, clause)?;
        }
        Ok(builder.policy)
    }

    fn enforced_by(&self, subject: &Labels, side: usize) -> Vec<Origin> {
        if self.settings.mode == EnforcementMode::Never {
            return Vec::new();
        }
        let rules = self.rules_of(subject).filter(|rule| rule.default_deny[side]);
        let mut by: Vec<Origin> = rules.map(|rule| rule.origin.clone()).collect();
        if self.settings.mode == EnforcementMode::Always {
            by.push(Origin::AlwaysEnforced);
        }
        if subject.has_reserved("init") {
            by.push(Origin::Init);
        }
        by.sort_unstable();
        by.dedup();
        by
    }

    fn add_clause(&self, builder: &mut Builder, clause: &Clause) -> Result<(), TooMany> {
        let origins: Origins = Arc::from([clause.origin.clone()]);
        let mut add = |identity: u32| {
            let mut keys = clause.ports.iter().flat_map(|ports| ports.keys(identity, clause.direction));
            keys.try_for_each(|key| builder.add(key, clause.deny, &origins))
        };
        match &clause.peers {
            Peers::Any => add(0),
            Peers::Selected(selectors) => selectors
                .iter()
                .flat_map(|selector| self.selectors.identities_of(selector))
                .try_for_each(|identity| add(identity.0)),
        }
    }

    fn overflow(&self, subject: &Labels, max_entries: usize) -> Overflow {
        let clauses = self.rules_of(subject).flat_map(|rule| &rule.clauses);
        let costs = clauses.map(|clause| self.cost(clause)).collect();
        Overflow::new(max_entries, costs)
    }

    fn cost(&self, clause: &Clause) -> Cost {
        let keys: usize = clause.ports.iter().map(|ports| ports.key_count()).sum();
        let count = |selector: &Selector| self.selectors.identities_of(selector).len();
        let (identities, costliest) = match &clause.peers {
            Peers::Any => (1, None),
            Peers::Selected(selectors) => (
                selectors.iter().map(count).sum(),
                selectors.iter().max_by_key(|selector| count(selector)).cloned(),
            ),
        };
        Cost { origin: clause.origin.clone(), entries: identities * keys, identities, costliest }
    }
}

fn peer_selectors(clause: &Clause) -> impl Iterator<Item = &Selector> {
    match &clause.peers {
        Peers::Any => &[],
        Peers::Selected(selectors) => selectors.as_slice(),
    }
    .iter()
}
