//! Which policies are behind the verdicts and denials that the packet path reports.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use villus_abi::Reason;
use villus_abi::policy::Direction;
use villus_flows::{FlowEvent, Kind, PolicyName};
use villus_policy::{Origin, Verdict};

use crate::node::Node;

/// Answers that are kept. They begin anew when there are more, as while somebody tries all ports.
const MOST: usize = 8192;

/// What an endpoint's policy was asked, and what became of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Question {
    direction: Direction,
    /// Of the other side.
    identity: u32,
    port: u16,
    protocol: u8,
    reason: Reason,
}

/// The policies that decided; `None` where policies do not explain it.
type Names = Option<Arc<[PolicyName]>>;

/// Answers of the policies in force, so that many alike events cost the node one look. What is known of an endpoint is
/// forgotten before a change of its policy reaches the kernel.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_endpoint: HashMap<u16, HashMap<Question, Names>>,
    count: usize,
}

/// Whether policy decided what an event tells.
pub(crate) fn is_of_policy(event: &FlowEvent) -> bool {
    match event.kind {
        Kind::Verdict { .. } => true,
        Kind::Drop { reason } => reason == Reason::POLICY || reason == Reason::POLICY_DENY,
        Kind::Trace { .. } => false,
    }
}

/// What an event is about; `None` where no policy decided it.
fn question(event: &FlowEvent) -> Option<Question> {
    let (port, protocol) = event.asked().filter(|_| is_of_policy(event))?;
    Some(Question {
        direction: event.direction,
        identity: event.remote_identity(),
        port,
        protocol,
        reason: event.reason().unwrap_or(Reason::FORWARDED),
    })
}

// === impl Answers ===

impl Answers {
    /// Names the policies that decided, where it is known; says whether it is of all events.
    pub fn name(&self, events: &mut [FlowEvent]) -> bool {
        let known = self.known();
        let mut all = true;
        for event in events {
            let Some(question) = question(event) else { continue };
            match known.get(event.endpoint, &question) {
                Some(names) => event.policies.clone_from(names),
                None => all = false,
            }
        }
        all
    }

    /// An endpoint's policy changes.
    pub fn forget(&self, endpoint: u16) {
        let mut known = self.known();
        let gone = known.by_endpoint.remove(&endpoint).map_or(0, |answers| answers.len());
        known.count -= gone;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn get(&self, endpoint: u16, question: &Question) -> Option<&Names> {
        self.by_endpoint.get(&endpoint)?.get(question)
    }

    fn keep(&mut self, endpoint: u16, question: Question, names: Names) {
        if self.count == MOST {
            *self = Self::default();
        }
        let before = self.by_endpoint.entry(endpoint).or_default().insert(question, names);
        self.count += usize::from(before.is_none());
    }
}

// === impl Node ===

impl Node {
    /// Names the policies that decided. An event that policies of now do not explain gets no name.
    pub fn name_policies(&self, events: &mut [FlowEvent]) {
        // What is kept while the node is held cannot be of policies before.
        let mut known = self.answers.known();
        for event in events {
            let Some(question) = question(event) else { continue };
            if let Some(names) = known.get(event.endpoint, &question) {
                event.policies.clone_from(names);
                continue;
            }
            let names = self.deciders(event.endpoint, question);
            event.policies.clone_from(&names);
            known.keep(event.endpoint, question, names);
        }
    }

    fn deciders(&self, endpoint: u16, question: Question) -> Names {
        let Question { direction, identity, port, protocol, reason } = question;
        let explanation = self.policy_of(endpoint)?.explain(direction, identity, port, protocol);
        let told = match explanation.verdict {
            Verdict::Allowed(_) => Reason::FORWARDED,
            Verdict::Denied(_) => Reason::POLICY_DENY,
            Verdict::DeniedByDefault => Reason::POLICY,
        };
        if told != reason {
            return None;
        }
        let names: BTreeSet<PolicyName> = explanation.deciders().iter().filter_map(name_of).collect();
        (!names.is_empty()).then(|| names.into_iter().collect())
    }
}

fn name_of(origin: &Origin) -> Option<PolicyName> {
    let Origin::Rule(rule) = origin else { return None };
    let key = &rule.policy;
    Some(PolicyName {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.as_deref().unwrap_or_default().to_owned(),
        name: key.name.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(port: u16) -> Question {
        Question { direction: Direction::Ingress, identity: 300, port, protocol: 6, reason: Reason::POLICY }
    }

    #[test]
    fn answers_last_until_the_endpoint_s_policy_changes_and_are_not_kept_without_end() {
        let answers = Answers::default();
        let name = PolicyName { kind: "CNP".into(), namespace: "shop".into(), name: "web".into() };
        let names: Names = Some([name].into());
        answers.known().keep(1, question(80), names.clone());
        answers.known().keep(1, question(80), names.clone());
        answers.known().keep(2, question(80), None);
        assert_eq!(answers.known().get(1, &question(80)), Some(&names));
        assert_eq!(answers.known().get(2, &question(80)), Some(&None));
        assert_eq!(answers.known().get(1, &question(81)), None);
        answers.forget(1);
        answers.forget(3);
        assert_eq!(answers.known().get(1, &question(80)), None);
        assert_eq!(answers.known().get(2, &question(80)), Some(&None));
        assert_eq!(answers.known().count, 1);
        (0..=u16::MAX).for_each(|port| answers.known().keep(4, question(port), None));
        let known = answers.known();
        assert!(known.count <= MOST);
        assert_eq!(known.by_endpoint.values().map(HashMap::len).sum::<usize>(), known.count);
        assert_eq!(known.get(4, &question(u16::MAX)), Some(&None));
    }
}
