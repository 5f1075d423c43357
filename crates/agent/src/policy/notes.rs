//! What policies in force say and cannot have now, as conditions.

use std::collections::BTreeMap;

use villus_policy::{Policy, SubjectSelector, unresolved};

use crate::node::Node;

/// How the names of these conditions begin.
const PREFIX: &str = "rules of ";

impl Node {
    /// Says of each policy what it names and nobody has, and that nodes are not enforced.
    pub fn note_policies(&mut self) {
        let mut notes = BTreeMap::new();
        for policy in self.repository.policies() {
            let mut said: Vec<String> =
                unresolved(policy, self.repository.referents()).iter().map(ToString::to_string).collect();
            said.extend(unenforced_on_nodes(policy));
            if !said.is_empty() {
                notes.insert(format!("{PREFIX}{} ({})", policy.key, policy.key.origin), said.join("; "));
            }
        }
        self.conditions.replace(PREFIX, notes);
    }
}

fn unenforced_on_nodes(policy: &Policy) -> Option<String> {
    let rule = policy.rules.iter().find(|rule| matches!(rule.subject, SubjectSelector::Nodes(_)))?;
    Some(format!("{} selects nodes, and is accepted but not enforced on them", rule.path))
}
