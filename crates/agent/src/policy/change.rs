//! From a change of policies or identities to the maps, in an order in which nothing is denied on the way.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use villus_identity::{Claim, Mapping, Rank};
use villus_policy::PolicyChange;
use villus_table::Kind;

use crate::node::Node;

/// Owner of the ipcache's rows that policies ask for.
const OWNER: &str = "policy";

impl Node {
    /// Carries a change of policies into the kernel: new prefixes get numbers, policy maps know them, then addresses
    /// have them; prefixes that nobody names go the other way round.
    pub fn realize(&mut self, change: &PolicyChange) {
        let mut affected: BTreeSet<u16> = self
            .endpoints
            .values()
            .filter(|endpoint| change.affects(&endpoint.identity_labels))
            .map(|endpoint| endpoint.id())
            .collect();
        self.acquire_prefixes(&change.new_prefixes);
        affected.extend(self.absorb_identities());
        self.regenerate(affected);
        self.claim_prefixes();
        self.release_prefixes(&change.gone_prefixes);
        let affected = self.absorb_identities();
        self.regenerate(affected);
        self.bump_unaffected();
        self.note_policies();
        self.identities.save(&self.state);
    }

    /// Gives prefixes numbers. Those that get none stay part of the world, which is said in the status.
    pub fn acquire_prefixes(&mut self, prefixes: &[IpNet]) {
        for prefix in prefixes {
            if self.prefixes.contains_key(prefix) {
                continue;
            }
            match self.identities.acquire_prefix(*prefix) {
                Ok(identity) => {
                    self.prefixes.insert(*prefix, identity);
                    self.conditions.note(&format!("prefix {prefix}"), None);
                }
                Err(error) => self.conditions.note(&format!("prefix {prefix}"), Some(error.to_string())),
            }
        }
    }

    /// Maps every prefix in use to its number.
    pub fn claim_prefixes(&mut self) {
        let mut edit = self.ipcache.edit();
        for (prefix, identity) in self.prefixes.iter().filter(|(prefix, _)| prefix.prefix_len() > 0) {
            let mapping = Mapping::plain(*identity);
            edit.upsert(*prefix, Claim { rank: Rank::Generated, owner: OWNER.into(), revision: 0, mapping });
        }
        drop(edit);
        self.step_ipcache();
    }

    fn release_prefixes(&mut self, prefixes: &[IpNet]) {
        let gone: Vec<IpNet> =
            prefixes.iter().filter(|p| self.prefixes.remove(p).is_some()).copied().collect();
        let owner: Arc<str> = OWNER.into();
        self.ipcache.edit().retain(|prefix, claim| claim.owner != owner || !gone.contains(&prefix));
        self.step_ipcache();
        for prefix in gone {
            self.identities.release_prefix(prefix);
        }
    }

    /// Learns of identities that came or went; returns the endpoints whose policy is different for it.
    pub fn absorb_identities(&mut self) -> BTreeSet<u16> {
        let mut affected = BTreeSet::new();
        for change in self.identity_feed.take() {
            let selectors = match change.kind {
                Kind::Inserted | Kind::Updated => self.repository.upsert_identity(change.key, &change.value),
                Kind::Deleted => self.repository.remove_identity(change.key),
            };
            let repository = &self.repository;
            affected.extend(
                self.endpoints
                    .values()
                    .filter(|endpoint| repository.affects(&selectors, &endpoint.identity_labels))
                    .map(|endpoint| endpoint.id()),
            );
        }
        affected
    }

    /// What identities that came or went mean for policy maps.
    pub fn follow_identities(&mut self) {
        let affected = self.absorb_identities();
        if self.sources.complete {
            self.regenerate(affected);
        }
    }
}
