//! What policies refer to comes, changes and goes: the policies that use it are resolved anew.

use std::collections::BTreeSet;

use villus_labels::NumericIdentity;

use crate::{NamedPort, ObjectKey, PolicyChange, Referent, Referents, Repository};

impl Repository {
    /// What policies refer to by name.
    #[must_use]
    pub fn referents(&self) -> &Referents {
        &self.referents
    }

    /// Makes these objects all that policies can refer to from an origin.
    pub fn replace_referents(&mut self, origin: &str, mut referents: Vec<Referent>) -> PolicyChange {
        for referent in &mut referents {
            if *referent.key.origin != *origin {
                referent.key.origin = origin.into();
            }
        }
        if self.referents.replace_origin(origin, referents) { self.resolve_again() } else { self.no_change() }
    }

    /// Puts objects in place that policies can refer to, in place of others with their keys.
    pub fn upsert_referents(&mut self, referents: Vec<Referent>) -> PolicyChange {
        let mut changed = false;
        for referent in referents {
            changed |= self.referents.upsert(referent);
        }
        if changed { self.resolve_again() } else { self.no_change() }
    }

    /// Removes objects that policies can refer to; those that are not there are no error.
    pub fn delete_referents<'a>(&mut self, keys: impl IntoIterator<Item = &'a ObjectKey>) -> PolicyChange {
        let mut changed = false;
        for key in keys {
            changed |= self.referents.remove(key);
        }
        if changed { self.resolve_again() } else { self.no_change() }
    }

    /// Says which named ports the workloads of identities have, of each all of them together.
    pub fn set_named_ports(
        &mut self,
        ports: impl IntoIterator<Item = (NumericIdentity, BTreeSet<NamedPort>)>,
    ) -> PolicyChange {
        let known = self.referents.named_ports();
        for (identity, ports) in ports {
            if self.referents.set_named_ports(identity, ports) {
                self.relabel_identity(identity);
            }
        }
        // Who has a port is a matter of labels; rules speak of the ports that somebody has.
        if self.referents.named_ports() == known { self.no_change() } else { self.resolve_again() }
    }

    fn no_change(&self) -> PolicyChange {
        PolicyChange { revision: self.revision(), ..PolicyChange::default() }
    }
}
