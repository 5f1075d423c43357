//! Named ports of others' workloads, by their identities.

use std::collections::BTreeSet;

use villus_kvstore::NamedPort;
use villus_labels::NumericIdentity;

use super::{AddressRecord, Remote};

// === impl Remote ===

impl Remote {
    /// The named ports that addresses of an identity have, all together, as their keys say.
    pub fn ports_of(&self, identity: NumericIdentity) -> impl Iterator<Item = &NamedPort> {
        self.ports.get(&identity).into_iter().flat_map(|ports| ports.keys())
    }

    /// The identities whose named ports are others since this was called.
    pub fn take_new_ports(&mut self) -> BTreeSet<NumericIdentity> {
        std::mem::take(&mut self.new_ports)
    }

    /// Counts the ports of an address, or does not count them any more.
    pub(super) fn count_ports(&mut self, address: &AddressRecord, more: bool) {
        if address.ports.is_empty() {
            return;
        }
        let all = self.ports.entry(address.identity).or_default();
        for port in address.ports.iter() {
            let users = all.entry(port.clone()).or_default();
            *users = if more { *users + 1 } else { users.saturating_sub(1) };
            if *users == usize::from(more) {
                self.new_ports.insert(address.identity);
            }
            if *users == 0 {
                all.remove(port);
            }
        }
        if all.is_empty() {
            self.ports.remove(&address.identity);
        }
    }
}
