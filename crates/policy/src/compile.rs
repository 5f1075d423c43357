//! From the rules that select a subject to the entries of its policy.

use villus_abi::{Direction, PolicyKey};
use villus_labels::{Labels, NumericIdentity};

use crate::{
    Audit, Bound, Clause, Cost, EndpointPolicy, EnforcementMode, Origin, Overflow, Peers, SelectorCache,
    SelectorId, Settings,
    askers::{Asker, Askers},
    packed::Packed,
    plan::Plan,
    rules::{RuleId, Rules},
};

/// More entries than allowed are asked for.
pub(crate) struct TooMany;

/// A clause by its rule and its place in it.
pub(crate) type ClauseRef = (RuleId, u32);

/// Numbers of those who ask in each compiled policy: two options, then the clauses in the order of
/// [`Plan::clauses`].
const NOT_ENFORCED: u32 = 0;
const ALLOW_LOCALHOST: u32 = 1;
const FIRST_CLAUSE: u32 = 2;

/// The number of a clause among those who ask.
pub(crate) fn number_of(clause: usize) -> u32 {
    u32::try_from(clause).unwrap_or(u32::MAX).saturating_add(FIRST_CLAUSE)
}

/// What a policy is compiled from.
#[derive(Clone, Copy)]
pub(crate) struct Compiler<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) rules: &'a Rules,
    pub(crate) selectors: &'a SelectorCache,
    pub(crate) revision: u64,
}

impl<'a> Compiler<'a> {
    /// Who asks of the rules that count for a subject: audited policies have no say in a direction for which others ask for
    /// default deny.
    pub(crate) fn plan(&self, subject: &Labels, rules: &[RuleId]) -> Plan {
        if self.settings.mode == EnforcementMode::Never {
            return Plan::default();
        }
        let enforced =
            Direction::ALL.map(|direction| !self.enforced_by(subject, rules, direction, false).is_empty());
        let of = |id: &RuleId| {
            let rule = self.rules.get(*id).map(|stored| &stored.rule);
            let counts = |clause: &Clause, audit: Audit| {
                !(audit.has(clause.direction) && enforced[clause.direction as usize])
            };
            let clauses = rule
                .into_iter()
                .flat_map(|rule| (0..).zip(&rule.clauses).filter(|(_, clause)| counts(clause, rule.audit)));
            clauses.map(|(at, _): (u32, _)| (*id, at)).collect::<Vec<_>>()
        };
        Plan::new(rules.iter().flat_map(of).collect(), self)
    }

    /// As [`Self::compile_as`], with as many sizes of port blocks as it takes to fit.
    pub(crate) fn compile(
        &self,
        subject: &Labels,
        rules: &[RuleId],
        plan: &mut Plan,
        max_entries: usize,
    ) -> Result<EndpointPolicy, TooMany> {
        match self.compile_as(subject, rules, plan, max_entries) {
            Err(TooMany) if plan.cut_for_room() => self.compile_as(subject, rules, plan, max_entries),
            result => result,
        }
    }

    /// A clause and the selectors of its peers.
    pub(crate) fn clause(&self, (rule, at): ClauseRef) -> Option<(&'a Clause, &'a [SelectorId])> {
        let stored = self.rules.get(rule)?;
        Some((stored.rule.clauses.get(at as usize)?, stored.peers.get(at as usize)?))
    }

    fn is_audited(&self, (rule, _): ClauseRef, direction: Direction) -> bool {
        self.rules.get(rule).is_some_and(|stored| stored.rule.audit.has(direction))
    }

    /// The policy of a subject that these rules select; the plan is theirs.
    fn compile_as(
        &self,
        subject: &Labels,
        rules: &[RuleId],
        plan: &Plan,
        max_entries: usize,
    ) -> Result<EndpointPolicy, TooMany> {
        let mut enforced_by =
            Direction::ALL.map(|direction| self.enforced_by(subject, rules, direction, false));
        let mut audit = [false; 2];
        for (side, direction) in Direction::ALL.into_iter().enumerate() {
            if enforced_by[side].is_empty() {
                enforced_by[side] = self.enforced_by(subject, rules, direction, true);
                audit[side] = !enforced_by[side].is_empty();
            }
        }
        let enforced = enforced_by.each_ref().map(|by| !by.is_empty());
        let mut asks = Asks { all: Vec::new(), most: max_entries, full: 0 };
        for direction in Direction::ALL.into_iter().filter(|direction| !enforced[*direction as usize]) {
            asks.push(PolicyKey::new(0, 0, 0, direction), NOT_ENFORCED)?;
        }
        if let Some((key, ask)) = self.option_asks(NumericIdentity::HOST, enforced) {
            asks.push(key, ask)?;
        }
        let mut single = vec![
            Asker { origin: Origin::NotEnforced, deny: false, audit: false },
            Asker { origin: Origin::AllowLocalhost, deny: false, audit: false },
        ];
        for (at, reference) in plan.clauses.iter().enumerate() {
            let Some((clause, peers)) = self.clause(*reference) else { continue };
            let audit = self.is_audited(*reference, clause.direction);
            single.push(Asker { origin: clause.origin.clone(), deny: clause.deny, audit });
            let ask = number_of(at);
            let mut ask_for = |peer| plan.keys(clause, peer, self).try_for_each(|key| asks.push(key, ask));
            match clause.peers {
                Peers::Any => match plan.instead_of_any(clause, self) {
                    Some(bound) => bound.iter().try_for_each(|peer| ask_for(*peer))?,
                    None => ask_for(NumericIdentity::UNKNOWN)?,
                },
                Peers::Selected(_) => {
                    let mut selected = peers.iter().flat_map(|id| self.selectors.selection(*id));
                    selected.try_for_each(|peer| ask_for(*peer))?;
                }
            }
        }
        let mut policy = EndpointPolicy::of_asks(Askers::new(single), &mut asks.all);
        if policy.len() > max_entries {
            return Err(TooMany);
        }
        policy.revision = self.revision;
        policy.enforced = enforced;
        policy.audit = audit;
        policy.enforced_by = enforced_by;
        Ok(policy)
    }

    /// What options ask for about an identity.
    pub(crate) fn option_asks(
        &self,
        identity: NumericIdentity,
        enforced: [bool; 2],
    ) -> Option<(PolicyKey, u32)> {
        let localhost = self.settings.allow_localhost && self.settings.mode != EnforcementMode::Never;
        let key = PolicyKey::new(identity.0, 0, 0, Direction::Ingress);
        (localhost && enforced[0] && identity == NumericIdentity::HOST).then_some((key, ALLOW_LOCALHOST))
    }

    /// What asks for default deny: of audited policies, or of others and of options.
    fn enforced_by(
        &self,
        subject: &Labels,
        rules: &[RuleId],
        direction: Direction,
        audited: bool,
    ) -> Vec<Origin> {
        if self.settings.mode == EnforcementMode::Never {
            return Vec::new();
        }
        let rules = rules.iter().filter_map(|id| Some(&self.rules.get(*id)?.rule));
        let rules = rules
            .filter(|rule| rule.default_deny[direction as usize] && rule.audit.has(direction) == audited);
        let mut by: Vec<Origin> = rules.map(|rule| rule.origin.clone()).collect();
        if self.settings.mode == EnforcementMode::Always && !audited {
            by.push(Origin::AlwaysEnforced);
        }
        if subject.has_reserved("init") && !audited {
            by.push(Origin::Init);
        }
        by.sort_unstable();
        by.dedup();
        by
    }

    /// What costs most in a policy that does not fit.
    pub(crate) fn overflow(&self, plan: &Plan, max_entries: usize) -> Overflow {
        let clauses = plan.clauses.iter().filter_map(|reference| self.clause(*reference));
        let clauses = clauses.filter(|(clause, _)| clause.bound != Bound::Requirement);
        let costs = clauses.map(|(clause, peers)| self.cost(plan, clause, peers)).collect();
        Overflow::new(max_entries, costs)
    }

    fn cost(&self, plan: &Plan, clause: &Clause, peers: &[SelectorId]) -> Cost {
        let count = |id: &SelectorId| self.selectors.selection(*id).len();
        let keys = |peer: &NumericIdentity| plan.keys(clause, *peer, self).count();
        let selected = || peers.iter().flat_map(|id| self.selectors.selection(*id));
        let (identities, entries, costliest) = match clause.peers {
            Peers::Any => (1, keys(&NumericIdentity::UNKNOWN), None),
            Peers::Selected(_) => {
                let costliest = peers.iter().max_by_key(|id| count(id));
                let costliest = costliest.and_then(|id| self.selectors.selector(*id)).cloned();
                (selected().count(), selected().map(keys).sum(), costliest)
            }
        };
        Cost { origin: clause.origin.clone(), entries, identities, costliest }
    }
}

/// Asks that are gathered, within bounds.
struct Asks {
    all: Vec<(Packed, u32)>,
    most: usize,
    /// How many of them were found to be about different keys.
    full: usize,
}

impl Asks {
    /// How many more asks than entries are gathered before they are counted.
    const SLACK: usize = 1 << 14;

    fn push(&mut self, key: PolicyKey, ask: u32) -> Result<(), TooMany> {
        self.all.push((Packed::from(key), ask));
        if self.all.len() <= self.most.max(2 * self.full).saturating_add(Self::SLACK) {
            return Ok(());
        }
        self.all.sort_unstable();
        self.all.dedup();
        let keys = self.all.chunk_by(|a, b| a.0 == b.0).count();
        self.full = self.all.len();
        if keys > self.most { Err(TooMany) } else { Ok(()) }
    }
}
