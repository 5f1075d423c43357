//! Named ports: whose they are, told to the policies that ask for them.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Says which named ports the workloads of these identities have, on this node and on others, where that is news.
    pub fn announce_ports(&mut self, identities: impl IntoIterator<Item = NumericIdentity>) {
        let mut all: BTreeMap<NumericIdentity, BTreeSet<NamedPort>> =
            identities.into_iter().map(|identity| (identity, BTreeSet::new())).collect();
        if all.is_empty() {
            return;
        }
        for endpoint in self.endpoints.values().filter(|endpoint| !endpoint.file.named_ports.is_empty()) {
            if let Some(ports) = all.get_mut(&endpoint.identity()) {
                ports.extend(endpoint.file.named_ports.iter().cloned());
            }
        }
        if let Some(remote) = &self.remote {
            for (identity, ports) in &mut all {
                ports.extend(remote.ports_of(*identity).filter_map(port_of));
            }
        }
        let change = self.repository.set_named_ports(all);
        if !change.is_empty() && self.sources.complete {
            self.realize(&change);
        }
    }

    /// As [`Self::announce_ports`], of every endpoint.
    pub fn announce_all_ports(&mut self) {
        let all: BTreeSet<NumericIdentity> = self.endpoints.values().map(Endpoint::identity).collect();
        self.announce_ports(all);
    }
}

/// What the store says of a port; one that policies cannot name is nobody's.
fn port_of(port: &villus_kvstore::NamedPort) -> Option<NamedPort> {
    format!("{}={}/{}", port.name, port.port, port.protocol).parse().ok()
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
