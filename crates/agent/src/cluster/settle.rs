//! Endpoints whose identity the store has changed, or has still to say.

use std::collections::BTreeMap;

use villus_abi::endpoint::HOST_ID;
use villus_labels::NumericIdentity;

use crate::node::Node;

impl Node {
    /// Gives endpoints the identities that the store has said. What they had before is kept until the last has its new one.
    pub fn settle_identities(&mut self) {
        if self.identities.shared.is_none() || !self.sources.complete || self.freeze.is_frozen() {
            return;
        }
        let changed: Vec<(u16, NumericIdentity)> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.id() != HOST_ID && !endpoint.identity_labels.is_empty())
            .filter_map(|endpoint| {
                let number = self.identities.allocator.number_in_use(&endpoint.identity_labels)?;
                (endpoint.file.identity != 0 && endpoint.identity() != number)
                    .then_some((endpoint.id(), number))
            })
            .collect();
        for (id, number) in changed {
            let result = self.change_identity(id, number);
            self.save_endpoint(id);
            self.conditions.note(
                &format!("identity of endpoint {id}"),
                result.err().map(|error| format!("{number} could not be put in force: {error}")),
            );
        }
        let used: Vec<NumericIdentity> = self.endpoints.values().map(|e| e.identity()).collect();
        self.identities.allocator.forget_left(|number| used.contains(&number));
        self.note_interim();
    }

    /// Says which endpoints have an identity that only this node knows.
    fn note_interim(&mut self) {
        let interim = self.endpoints.values().filter(|endpoint| endpoint.identity().is_interim());
        let all: BTreeMap<String, String> = interim
            .map(|endpoint| {
                let (id, number) = (endpoint.id(), endpoint.identity());
                let what = format!(
                    "{number} until the store has said which its labels have; other nodes do not know it"
                );
                (format!("interim identity of endpoint {id}"), what)
            })
            .collect();
        self.conditions.replace("interim identity of endpoint ", all);
    }
}
