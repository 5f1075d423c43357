//! What identities are called.

use std::{collections::HashMap, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};
use villus_flows::Names;
use villus_labels::NumericIdentity;

use crate::connect::Host;

/// Labels of identities: reserved ones always, others as far as the agent answers.
pub struct IdentityNames {
    labels: HashMap<u32, Vec<String>>,
}

impl IdentityNames {
    /// Asks the agent, if there is one.
    pub fn ask(host: &Host) -> Self {
        let mut labels: HashMap<u32, Vec<String>> = HashMap::new();
        for (identity, _) in NumericIdentity::reserved() {
            let known = identity.reserved_labels();
            labels.insert(
                identity.0,
                known.iter().flat_map(|all| all.iter()).map(ToString::to_string).collect(),
            );
        }
        let answer = host.brief_client().and_then(|client| client.identities(&[]).ok());
        labels.extend(answer.into_iter().flatten().map(|identity| (identity.id, identity.labels)));
        Self { labels }
    }

    /// Nothing but numbers.
    pub fn none() -> Self {
        Self { labels: HashMap::new() }
    }

    /// The labels of an identity, empty if they are not known.
    pub fn labels(&self, identity: u32) -> Vec<String> {
        self.labels.get(&identity).cloned().unwrap_or_default()
    }
}

/// Names for lines of events: reserved identities and interfaces by their names.
pub struct EventNames {
    /// Any socket: the kernel answers questions about interfaces on it.
    socket: Option<OwnedFd>,
}

impl EventNames {
    pub fn new() -> Self {
        Self { socket: socket(AddressFamily::INET, SocketType::DGRAM, None).ok() }
    }
}

impl Names for EventNames {
    fn identity(&self, identity: u32) -> Option<String> {
        NumericIdentity(identity).reserved_name().map(str::to_owned)
    }

    fn interface(&self, ifindex: u32) -> Option<String> {
        index_to_name(self.socket.as_ref()?, ifindex).ok()
    }
}
