//! What a change of policies would do, said before it is made.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use villus_abi::PolicyKey;
use villus_flows::Direction;
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{
    Audit, EndpointPolicy, Explanation, NamedPort, Overflow, Settings, Verdict, with_named_ports,
};

use crate::{Count, Numbers, Objects, Observation, Observations, Peer, Side, side::with_prefixes};

/// The endpoint that a change is looked at for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subject {
    /// Its id; 0 where only its labels are known.
    pub id: u16,
    /// Labels of its identity.
    pub labels: Labels,
    /// Its own named ports; where only its labels are known, those of all who have them count.
    pub ports: BTreeSet<NamedPort>,
    /// Directions in which audit mode lets pass whatever its policy denies.
    pub audit: Audit,
}

/// Everything that a preview is made from.
#[derive(Debug)]
pub struct Plan {
    /// What the meaning of policies depends on.
    pub settings: Settings,
    /// The policies in force, and what they refer to.
    pub before: Objects,
    /// The same after the change.
    pub after: Objects,
    /// Numbers of identities and prefixes.
    pub numbers: Numbers,
    /// Endpoints whose maps are compared.
    pub subjects: Vec<Subject>,
    /// Directions that are audited where nothing else is known.
    pub audit: Audit,
    /// Most entries of a map.
    pub max_entries: usize,
}

/// What a change would do.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Preview {
    /// Policies that are different.
    pub policies: Vec<PolicyStep>,
    /// Endpoints whose maps would be different.
    pub endpoints: Vec<EndpointChange>,
    /// Observed flows with another verdict.
    pub flows: Vec<FlowChange>,
    /// How many different flows were judged.
    pub judged: u64,
    /// How many endpoints were compared.
    pub compared: u64,
}

/// A policy that is different.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyStep {
    /// Kind, namespace and name.
    pub policy: String,
    /// What becomes of it.
    pub step: Step,
}

/// What becomes of a policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// There was none of its name.
    Added,
    /// It is different.
    Replaced,
    /// It is gone.
    Deleted,
}

/// An endpoint whose map would be different.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointChange {
    /// Its id; 0 where only its labels are known.
    pub id: u16,
    /// Labels of its identity.
    pub labels: Labels,
    /// Entries that are new.
    pub added: Vec<Entry>,
    /// Entries that go.
    pub removed: Vec<Entry>,
    /// Entries that deny instead of allow, or the other way round; as they would be.
    pub altered: Vec<Entry>,
    /// Entries before and after.
    pub entries: [u64; 2],
    /// Whether what nothing allows is denied, before: ingress, egress.
    pub enforced_before: [bool; 2],
    /// The same after.
    pub enforced_after: [bool; 2],
    /// Why its map would stay as it is: the policy does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An entry of a policy map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    /// Numeric identity of the peer; 0 is anybody, none one that has no number yet.
    pub identity: Option<u32>,
    /// Its labels, where they are known.
    pub labels: String,
    /// First port; 0 is all.
    pub port: u16,
    /// Last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// Protocol number; 0 is all.
    pub protocol: u8,
    /// `Ingress` or `Egress`.
    pub direction: String,
    /// Whether it denies.
    pub deny: bool,
}

/// An observed flow that would have another verdict.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowChange {
    /// The flow.
    pub flow: Observation,
    /// At whose policy: `Ingress` of the destination or `Egress` of the source.
    pub direction: String,
    /// How often it was seen.
    pub seen: Count,
    /// The verdict now.
    pub before: Outcome,
    /// The verdict after the change.
    pub after: Outcome,
    /// What decides after the change: rules of policies, or what switched the direction to default deny.
    pub by: Vec<String>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It passes.
    Allowed,
    /// Policy denies it; audit mode lets it pass.
    Audited,
    /// It is dropped.
    Denied,
}

impl Outcome {
    /// `allowed`, `audited` or `denied`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Audited => "audited",
            Self::Denied => "denied",
        }
    }
}

impl Preview {
    /// Flows that pass now and would be dropped.
    #[must_use]
    pub fn newly_denied(&self) -> usize {
        self.flows.iter().filter(|flow| flow.after == Outcome::Denied).count()
    }

    /// Flows that policy allows now and would be let pass by audit mode only.
    #[must_use]
    pub fn newly_audited(&self) -> usize {
        let audited = |flow: &&FlowChange| flow.after == Outcome::Audited && flow.before == Outcome::Allowed;
        self.flows.iter().filter(audited).count()
    }

    /// Endpoints whose policy would not fit.
    #[must_use]
    pub fn overflows(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.problem.is_some()).count()
    }
}

/// Tells what the change of a plan would do to maps and to observed flows. Nothing is changed.
#[must_use]
pub fn preview(mut plan: Plan, observations: &Observations) -> Preview {
    let policies = steps(&plan.before, &plan.after);
    let observations = match plan.numbers.has_node_prefixes() {
        true => Cow::Borrowed(observations),
        false => Cow::Owned(observations.without_node_addresses()),
    };
    if plan.numbers.has_node_prefixes() {
        let host = host_of(&observations);
        plan.before.host = plan.before.host.or_else(|| host.clone());
        plan.after.host = plan.after.host.or(host);
    }
    for peer in observations.iter().flat_map(|(row, _)| [&row.source, &row.destination]) {
        if let Some(labels) = plan.numbers.labels_of(peer) {
            plan.numbers.of_labels(&labels);
        }
    }
    for subject in &plan.subjects {
        plan.numbers.of_labels(&subject.labels);
    }
    let mut side = |objects| Side::new(plan.settings.clone(), objects, &mut plan.numbers, plan.max_entries);
    let before = side(std::mem::take(&mut plan.before));
    let after = side(std::mem::take(&mut plan.after));
    let mut compared = Comparison { before, after, plan: &plan, names: plan.numbers.labels() };
    let endpoints = plan.subjects.iter().filter_map(|subject| compared.endpoint(subject)).collect();
    let mut flows = Vec::new();
    for (observation, seen) in observations.iter() {
        for direction in Direction::ALL {
            flows.extend(compared.flow(observation, direction, seen.total()));
        }
    }
    // What hurts most comes first.
    flows.sort_by(|a: &FlowChange, b| {
        (b.after, b.seen.count).cmp(&(a.after, a.seen.count)).then_with(|| a.flow.cmp(&b.flow))
    });
    Preview {
        policies,
        endpoints,
        flows,
        judged: observations.len() as u64,
        compared: plan.subjects.len() as u64,
    }
}

/// The labels of the node itself where no agent says them: with the prefixes of all addresses that it was seen under.
fn host_of(observations: &Observations) -> Option<Labels> {
    let peers = observations.iter().flat_map(|(row, _)| [&row.source, &row.destination]);
    peers.fold(None, |host, peer| match peer {
        Peer::Node { labels, address } if labels.has_reserved("host") => {
            Some(with_prefixes(host.unwrap_or_else(|| labels.clone()), *address))
        }
        _ => host,
    })
}

fn steps(before: &Objects, after: &Objects) -> Vec<PolicyStep> {
    let (before, after) = (before.by_key(), after.by_key());
    let mut steps: Vec<PolicyStep> = Vec::new();
    for (key, object) in &after {
        let step = match before.get(key) {
            None => Step::Added,
            Some(old) if old != object => Step::Replaced,
            Some(_) => continue,
        };
        steps.push(PolicyStep { policy: key.to_string(), step });
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        let name = key.to_string();
        // The same object from another file.
        match steps.iter_mut().find(|step| step.policy == name && step.step == Step::Added) {
            Some(step) => step.step = Step::Replaced,
            None => steps.push(PolicyStep { policy: name, step: Step::Deleted }),
        }
    }
    steps
}

struct Comparison<'a> {
    before: Side,
    after: Side,
    plan: &'a Plan,
    names: BTreeMap<NumericIdentity, Labels>,
}

impl Comparison<'_> {
    fn endpoint(&mut self, subject: &Subject) -> Option<EndpointChange> {
        let labels = match subject.id {
            0 if subject.ports.is_empty() => self.before.with_ports(&subject.labels),
            _ => with_named_ports(&subject.labels, &subject.ports),
        };
        let before = self.before.policy_of(&labels);
        let after = self.after.policy_of(&labels);
        let problem = after.as_ref().err().map(ToString::to_string);
        let known = |policy: Result<Arc<EndpointPolicy>, Overflow>| policy.unwrap_or_default();
        let (before, after) = (known(before), known(after));
        let mut change = EndpointChange {
            id: subject.id,
            labels: subject.labels.clone(),
            entries: [&before, &after].map(|policy| policy.map_entries().len() as u64),
            enforced_before: before.enforced,
            enforced_after: after.enforced,
            problem,
            ..EndpointChange::default()
        };
        if change.problem.is_none() {
            self.differences(&before, &after, &mut change);
        }
        let same = change.added.is_empty() && change.removed.is_empty() && change.altered.is_empty();
        let enforced = change.enforced_before == change.enforced_after;
        (!same || !enforced || change.problem.is_some()).then_some(change)
    }

    fn differences(&self, before: &EndpointPolicy, after: &EndpointPolicy, change: &mut EndpointChange) {
        let of = |policy: &EndpointPolicy| -> BTreeMap<PolicyKey, bool> {
            policy.map_entries().map(|(key, entry)| (key, entry.is_deny())).collect()
        };
        let (before, after) = (of(before), of(after));
        for (key, deny) in &after {
            match before.get(key) {
                None => change.added.push(self.entry(*key, *deny)),
                Some(old) if old != deny => change.altered.push(self.entry(*key, *deny)),
                Some(_) => {}
            }
        }
        let gone = before.iter().filter(|(key, _)| !after.contains_key(key));
        change.removed.extend(gone.map(|(key, deny)| self.entry(*key, *deny)));
    }

    fn entry(&self, key: PolicyKey, deny: bool) -> Entry {
        let identity = NumericIdentity(key.identity);
        let labels = self.names.get(&identity);
        let last = u32::from(key.port()) + (1_u32 << key.block_log2()) - 1;
        Entry {
            identity: (!self.plan.numbers.is_made_up(identity)).then_some(key.identity),
            labels: labels.map(ToString::to_string).unwrap_or_default(),
            port: key.port(),
            end_port: u16::try_from(last).ok().filter(|last| *last != key.port()),
            protocol: key.proto,
            direction: key.dir().name().to_owned(),
            deny,
        }
    }

    fn flow(&mut self, flow: &Observation, direction: Direction, seen: Count) -> Option<FlowChange> {
        let (subject, peer) = match direction {
            Direction::Ingress => (&flow.destination, &flow.source),
            Direction::Egress => (&flow.source, &flow.destination),
        };
        let labels = subject.labels().filter(|_| subject.is_workload())?;
        let numbers = &self.plan.numbers;
        let ask = |side: &mut Side| {
            let identity = side.identity_of(peer, numbers)?;
            // A policy that does not fit leaves the map as it is; that is said of the endpoint.
            side.judge(labels, direction, identity, flow.port, flow.protocol).ok()
        };
        let (before, after) = (ask(&mut self.before)?, ask(&mut self.after)?);
        let audit = self.audit_of(labels);
        let (old, new) = (outcome(&before, audit), outcome(&after, audit));
        (old != new).then(|| FlowChange {
            flow: flow.clone(),
            direction: direction.name().to_owned(),
            seen,
            before: old,
            after: new,
            by: reasons(&after),
        })
    }

    /// The directions that are audited for an endpoint; where several have the labels, for all of them.
    fn audit_of(&self, labels: &Labels) -> Audit {
        let mut known = self.plan.subjects.iter().filter(|subject| subject.labels == *labels).peekable();
        if known.peek().is_none() {
            return self.plan.audit;
        }
        known.fold(Audit::BOTH, |all, subject| all.and(subject.audit))
    }
}

fn outcome(explanation: &Explanation, audit: Audit) -> Outcome {
    match (explanation.verdict.is_allowed(), explanation.audited || audit.has(explanation.direction)) {
        (true, _) => Outcome::Allowed,
        (false, true) => Outcome::Audited,
        (false, false) => Outcome::Denied,
    }
}

/// What decided: the rules behind the entry, or what denies by default.
fn reasons(explanation: &Explanation) -> Vec<String> {
    let origins = match explanation.verdict {
        Verdict::DeniedByDefault => explanation.default_deny_by.clone(),
        Verdict::Allowed(key) | Verdict::Denied(key) => {
            let lookup = explanation.lookups.iter().find(|lookup| lookup.key == key);
            let found = lookup.and_then(|lookup| lookup.found.as_ref());
            found.map(|wanted| wanted.origins.to_vec()).unwrap_or_default()
        }
    };
    origins.iter().map(ToString::to_string).collect()
}

/// The endpoints that observations show: every different set of labels of a workload.
#[must_use]
pub fn subjects_of(observations: &Observations) -> Vec<Subject> {
    let peers = observations.iter().flat_map(|(row, _)| [&row.source, &row.destination]);
    let labels: std::collections::BTreeSet<&Labels> =
        peers.filter(|peer| peer.is_workload()).filter_map(Peer::labels).collect();
    labels.into_iter().map(|labels| Subject { labels: labels.clone(), ..Subject::default() }).collect()
}
