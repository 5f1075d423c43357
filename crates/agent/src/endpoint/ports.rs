//! Named ports: whose they are, told to the policies that ask for them.

use std::collections::BTreeSet;

use villus_api::{ApiError, ApiResult};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{NamedPort, with_named_ports};

use super::Endpoint;
use crate::node::Node;

impl Endpoint {
    /// All that rules know of it as a subject: its identity's labels and its own named ports.
    pub fn subject_labels(&self) -> Labels {
        with_named_ports(&self.identity_labels, &self.file.named_ports)
    }
}

impl Node {
    /// Says which named ports the workloads of these identities have, where that is news.
    pub fn announce_ports(&mut self, identities: impl IntoIterator<Item = NumericIdentity>) {
        for identity in identities {
            let ours = self.endpoints.values().filter(|endpoint| endpoint.identity() == identity);
            let ports: BTreeSet<NamedPort> =
                ours.flat_map(|endpoint| &endpoint.file.named_ports).cloned().collect();
            let change = self.repository.set_named_ports(identity, ports);
            if !change.is_empty() && self.sources.complete {
                self.realize(&change);
            }
        }
    }

    /// As [`Self::announce_ports`], of every endpoint.
    pub fn announce_all_ports(&mut self) {
        let all: BTreeSet<NumericIdentity> = self.endpoints.values().map(Endpoint::identity).collect();
        self.announce_ports(all);
    }
}

/// Reads the named ports of a request.
pub(super) fn read_ports(texts: &[String]) -> ApiResult<BTreeSet<NamedPort>> {
    let read = |(n, text): (usize, &String)| {
        text.parse().map_err(|error: villus_policy::NamedPortError| {
            ApiError::bad_field(format!("named-ports[{n}]"), error.to_string())
        })
    };
    texts.iter().enumerate().map(read).collect()
}
