//! From a change of policies or identities to the maps, in an order in which nothing is denied on the way.

use std::collections::BTreeSet;

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
        self.acquire_prefixes(&change.new_prefixes);
        if !change.new_prefixes.is_empty() {
            // Before the kernel knows them: an agent that is killed now gives the same numbers again.
            self.identities.save(&self.state);
        }
        self.absorb_identities();
        self.follow_policies();
        self.claim_prefixes(&change.new_prefixes);
        if !change.gone_prefixes.is_empty() {
            self.release_prefixes(&change.gone_prefixes);
            self.absorb_identities();
            self.follow_policies();
            self.identities.save(&self.state);
        }
        self.follow_host();
        self.note_policies();
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

    /// Maps prefixes that have a number to it.
    pub fn claim_prefixes(&mut self, prefixes: &[IpNet]) {
        let mut edit = self.ipcache.edit();
        for prefix in prefixes.iter().filter(|prefix| prefix.prefix_len() > 0) {
            let Some(identity) = self.prefixes.get(prefix) else { continue };
            let mapping = Mapping::plain(*identity);
            edit.upsert(*prefix, Claim { rank: Rank::Generated, owner: OWNER.into(), revision: 0, mapping });
        }
        drop(edit);
        self.step_ipcache();
    }

    fn release_prefixes(&mut self, prefixes: &[IpNet]) {
        let gone: BTreeSet<IpNet> =
            prefixes.iter().filter(|p| self.prefixes.remove(p).is_some()).copied().collect();
        self.ipcache.edit().retain_owned(OWNER, |prefix| !gone.contains(&prefix));
        self.step_ipcache();
        for prefix in gone {
            self.identities.release_prefix(prefix);
        }
    }

    /// Learns of identities that came or went; [`Self::follow_policies`] carries on what it means.
    pub fn absorb_identities(&mut self) {
        let changes = self.identity_feed.take();
        self.learn_identities(&changes);
        for change in changes {
            match change.kind {
                Kind::Inserted | Kind::Updated => {
                    self.repository.upsert_identity(change.key, &change.value);
                    self.known.insert(change.key);
                }
                Kind::Deleted => {
                    self.repository.remove_identity(change.key);
                    self.known.remove(&change.key);
                }
            }
            if self.remote.is_some() && change.kind != Kind::Updated {
                self.arrived.push((change.key, change.kind == Kind::Inserted));
            }
        }
    }

    /// What identities that came or went mean for policy maps.
    pub fn follow_identities(&mut self) {
        self.absorb_identities();
        if self.sources.complete {
            self.follow_policies();
        }
    }
}
