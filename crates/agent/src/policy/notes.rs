//! What policies in force say and cannot have now, as conditions.

use std::collections::{BTreeMap, BTreeSet};

use villus_abi::{Direction, endpoint::MASK_PROTO};
use villus_labels::Labels;
use villus_policy::{MANY_SIZES, Origin, Policy, SubjectSelector, unresolved};

use crate::node::Node;

/// How the names of these conditions begin.
const PREFIX: &str = "rules of ";
/// How those about port ranges begin.
const RANGES: &str = "port ranges of ";

impl Node {
    /// Says of each policy what it names and nobody has, and that nodes are not held to it.
    pub fn note_policies(&mut self) {
        let mut notes = BTreeMap::new();
        for policy in self.repository.policies() {
            let mut said: Vec<String> =
                unresolved(policy, self.repository.referents()).iter().map(ToString::to_string).collect();
            if !self.config.policy.host_firewall {
                said.extend(unenforced_on_nodes(policy));
            }
            if !said.is_empty() {
                notes.insert(format!("{PREFIX}{} ({})", policy.key, policy.key.origin), said.join("; "));
            }
        }
        let policies = self.repository.shadowed().map(|(policy, winner)| (&policy.key, winner));
        for (key, winner) in policies.chain(self.repository.referents().shadowed()) {
            let message = format!(
                "not in force: {} holds an object of the same name, and sorts first; rename or remove one of them",
                winner.origin
            );
            notes.insert(format!("{PREFIX}{key} ({})", key.origin), message);
        }
        self.conditions.replace(PREFIX, notes);
        self.note_port_ranges();
    }
}

impl Node {
    /// Says whose rules make packets of an endpoint look for many sizes of port ranges.
    fn note_port_ranges(&mut self) {
        let mut notes = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let Some(policy) = self.policy_of(endpoint.id()) else { continue };
            for (direction, mask) in Direction::ALL.into_iter().zip(policy.mask()) {
                let sizes = (mask & !MASK_PROTO).count_ones();
                if sizes > MANY_SIZES {
                    let message = format!(
                        "{} policy looks for port ranges of {sizes} sizes, more than {MANY_SIZES}, because of {}; \
                         raise bpf-policy-map-max, or write ranges that begin and end at multiples of larger powers of two",
                        direction.name(),
                        self.range_writers(&endpoint.subject_labels(), direction).join(", ")
                    );
                    notes.insert(format!("{RANGES}endpoint {}", endpoint.id()), message);
                }
            }
        }
        self.conditions.replace(RANGES, notes);
    }

    /// The policies with port ranges that select a subject.
    fn range_writers(&self, subject: &Labels, direction: Direction) -> Vec<String> {
        let rules = self.repository.rules_of(subject).flat_map(|rule| &rule.clauses);
        let ranged = rules.filter(|clause| {
            clause.direction == direction && clause.ports.iter().any(|ports| ports.is_range())
        });
        let names: BTreeSet<String> = ranged
            .filter_map(|clause| match &clause.origin {
                Origin::Rule(rule) => Some(rule.policy.to_string()),
                _ => None,
            })
            .collect();
        names.into_iter().collect()
    }
}

fn unenforced_on_nodes(policy: &Policy) -> Option<String> {
    let rule = policy.rules.iter().find(|rule| matches!(rule.subject, SubjectSelector::Nodes(_)))?;
    Some(format!("{} selects nodes, which are not held to policies: enable-host-firewall is off", rule.path))
}
