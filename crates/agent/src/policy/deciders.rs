//! Which policies are behind the verdicts and denials that the packet path reports.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use villus_abi::Reason;
use villus_abi::policy::Direction;
use villus_flows::{FlowEvent, Kind, PolicyName};
use villus_policy::{Origin, Verdict};

use crate::node::Node;

/// What policy was asked: endpoint, direction, identity of the other side, port, protocol.
type Question = (u16, Direction, u32, u16, u8);

/// Whether policy decided what an event tells.
pub(crate) fn is_of_policy(event: &FlowEvent) -> bool {
    match event.kind {
        Kind::Verdict { .. } => true,
        Kind::Drop { reason } => reason == Reason::POLICY || reason == Reason::POLICY_DENY,
        Kind::Trace { .. } => false,
    }
}

impl Node {
    /// Names the policies that decided. An event that policies of now do not explain gets no name.
    pub fn name_policies(&self, events: &mut [FlowEvent]) {
        let mut known: HashMap<(Question, u8), Option<Arc<[PolicyName]>>> = HashMap::new();
        for event in events.iter_mut().filter(|event| is_of_policy(event)) {
            let Some((port, proto)) = event.asked() else { continue };
            let question = (event.endpoint, event.direction, event.remote_identity(), port, proto);
            let reason = event.reason().unwrap_or(Reason::FORWARDED);
            let names = known.entry((question, reason.0)).or_insert_with(|| self.deciders(question, reason));
            event.policies.clone_from(names);
        }
    }

    fn deciders(
        &self,
        (endpoint, direction, identity, port, proto): Question,
        reason: Reason,
    ) -> Option<Arc<[PolicyName]>> {
        let explanation = self.policy_of(endpoint)?.explain(direction, identity, port, proto);
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
