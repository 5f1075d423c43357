//! What vanished: on purpose, or because its owner is silent.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{AddressRecord, Layer, Remote, Surroundings};
use villus_labels::NumericIdentity;

use crate::{ipcache::Edit, nodes::NodeName};

/// How long the deletion of a key under a lease waits for word of its owner: the keys of a lease go together, but addresses
/// and nodes are told apart.
const HOLD: Duration = Duration::from_millis(100);
/// How long a deletion can be taken back: keys under several leases go within a second.
const REGRET: Duration = Duration::from_secs(2);

/// Whether an owner is there.
pub(super) enum Owner {
    /// It is no node that is known.
    Unknown,
    Present,
    Silent,
}

/// Of an address that nobody stands behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) since: Instant,
    /// The revision at which its key was deleted, while it is not known whether that was on purpose; else 0.
    pub(super) deleted: u64,
}

// === impl Remote ===

impl Remote {
    /// A key was deleted in the store.
    pub(super) fn delete_address(
        &mut self,
        edit: &mut Edit<'_>,
        key: &Arc<str>,
        leased: bool,
        revision: u64,
        now: Instant,
    ) {
        let has_owner = self.addresses.get(key).is_some_and(|address| address.host.is_some());
        if !leased || !has_owner {
            self.drop_address(edit, key);
            return;
        }
        match self.owner_of(key) {
            Owner::Silent => self.lose_address(edit, key, now),
            _ if !self.has_heard(Layer::of(key), revision, now) => {
                self.doubt_address(edit, key, revision, now)
            }
            Owner::Unknown => drop(self.drop_address(edit, key)),
            Owner::Present => {
                // Until then it counts as it was; a write takes the word back.
                if let Some(address) = self.addresses.get_mut(key) {
                    address.revision = 0;
                    address.waits = true;
                    self.held.push_back((now + HOLD, Arc::clone(key), revision));
                }
            }
        }
    }

    /// An address was deleted, but its owner has not been heard of since: it may be silent.
    fn doubt_address(&mut self, edit: &mut Edit<'_>, key: &Arc<str>, revision: u64, now: Instant) {
        self.lose_address(edit, key, now);
        if let Some(stale) = self.stale.get_mut(key) {
            stale.deleted = revision;
            self.may_doubt = true;
        }
    }

    /// An address was deleted on purpose, as far as is known.
    pub(super) fn bury_address(&mut self, edit: &mut Edit<'_>, key: Arc<str>, now: Instant) {
        if let Some(address) = self.drop_address(edit, &key) {
            self.buried.push_back((now + REGRET, key, address));
        }
    }

    /// Nobody stands behind an address any more.
    pub(super) fn lose_address(&mut self, edit: &mut Edit<'_>, key: &Arc<str>, now: Instant) {
        let Some(address) = self.addresses.get_mut(key) else { return };
        let stale = self.stale.entry(Arc::clone(key)).or_insert(Stale { since: now, deleted: 0 });
        stale.deleted = 0;
        // Whoever claims it now has said so later.
        address.revision = 0;
        let address = address.clone();
        edit.remove(address.prefix, Layer::of(key).rank(), key, u64::MAX);
        self.claim(edit, key, &address, self.is_unresolved(key, &address));
        self.settle_rivals(edit, address.prefix);
    }

    /// A node has fallen silent: so is what was deleted of it a moment ago.
    pub(super) fn lose_owner(&mut self, node: &str, around: &dyn Surroundings, now: Instant) {
        let is_its = |host: Option<IpAddr>| {
            host.and_then(|host| self.hosts.get(&host)).is_some_and(|owner| **owner == *node)
        };
        let back: Vec<_> = self.buried.iter().filter(|(_, _, a)| is_its(a.host)).cloned().collect();
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for (_, key, address) in back {
            if !self.addresses.contains_key(&key) {
                self.put_address(&mut edit, Arc::clone(&key), address, around);
                self.lose_address(&mut edit, &key, now);
            }
        }
    }

    pub(super) fn owner_of(&self, key: &str) -> Owner {
        let host = self.addresses.get(key).and_then(|address| address.host);
        let member = host.and_then(|host| self.hosts.get(&host)).and_then(|node| self.members.get(node));
        match member {
            None => Owner::Unknown,
            Some(member) if member.stale.is_some() => Owner::Silent,
            Some(_) => Owner::Present,
        }
    }

    /// When [`Self::tick`] has something to do at the latest.
    pub fn due(&self) -> Option<Instant> {
        let held = self.held.front().map(|(at, ..)| *at);
        let live = self.doubts().filter_map(|(key, _)| self.heard[Layer::of(key) as usize].live);
        held.into_iter().chain(live).min()
    }

    /// Does what time has decided: deletions whose owners are there, stale entries whose owners are done without them or
    /// whose grace is over.
    pub fn tick(&mut self, now: Instant) {
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        while let Some((_, key, revision)) = self.held.pop_front_if(|(at, ..)| *at <= now) {
            let address = self.addresses.get_mut(&key);
            if !address.is_some_and(|address| std::mem::take(&mut address.waits)) {
                continue;
            }
            match self.owner_of(&key) {
                Owner::Silent => self.lose_address(&mut edit, &key, now),
                _ if !self.has_heard(Layer::of(&key), revision, now) => {
                    self.doubt_address(&mut edit, &key, revision, now);
                }
                _ => self.bury_address(&mut edit, key, now),
            }
        }
        while self.buried.pop_front_if(|(until, _, _)| *until <= now).is_some() {}
        drop(edit);
        self.end_doubts(now);
        self.end_stale(now);
    }

    /// Stale entries whose time is over.
    pub fn end_stale(&mut self, now: Instant) {
        let (settle, grace) = (self.config.settle, self.config.stale_grace);
        let is_over = |since: Instant| now.duration_since(since) >= grace;
        let silent: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| member.stale.is_some_and(|since| is_over(since.0)))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in silent {
            self.drop_node(&key);
        }
        self.follow_hosts();
        let finished = |address: &AddressRecord, since: Instant| {
            let owner = address.host.and_then(|host| self.hosts.get(&host)).and_then(|n| self.members.get(n));
            // Who copies another cluster's entries writes its nodes before it has copied what they have; and what has no
            // lease is not said by the node behind which it lives.
            owner.is_some_and(|owner| {
                address.leased
                    && *owner.name.cluster == *self.config.cluster
                    && owner.stale.is_none()
                    && owner.told.is_some_and(|told| told > since && now.duration_since(told) >= settle)
            })
        };
        let gone: Vec<Arc<str>> = self
            .stale
            .iter()
            .filter(|(key, stale)| {
                let address = self.addresses.get(*key);
                address.is_some_and(|address| is_over(stale.since) || finished(address, stale.since))
            })
            .map(|(key, _)| Arc::clone(key))
            .collect();
        self.drop_addresses(gone);
    }

    fn drop_addresses(&mut self, keys: impl IntoIterator<Item = Arc<str>>) -> usize {
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        keys.into_iter().filter_map(|key| self.drop_address(&mut edit, &key)).count()
    }

    /// Where the word on a node lies that counts.
    pub fn layer_of(&self, name: &NodeName) -> Option<Layer> {
        self.members.values().find(|member| !member.own && member.name == *name).map(|member| member.layer)
    }

    /// Keys and values of a node: of its addresses first, then its own.
    pub fn keys_of(&self, name: &NodeName) -> Vec<(String, String)> {
        let Some((key, member)) = self.members.iter().find(|(_, m)| !m.own && m.name == *name) else {
            return Vec::new();
        };
        let of = |a: &AddressRecord| {
            a.host.and_then(|host| self.hosts.get(&host)).is_some_and(|owner| owner == key)
        };
        let addresses = self.addresses.iter().filter(|(_, address)| of(address));
        let addresses = addresses.map(|(key, address)| (key.to_string(), address.value(key)));
        addresses.chain([(key.to_string(), member.entry.to_json())]).collect()
    }

    /// Numbers of a node's addresses, of those under leases, and what it may be called where it says that it uses them
    /// ([`crate::use_key`]).
    pub fn used_by(&self, name: &NodeName) -> (BTreeSet<NumericIdentity>, Vec<String>) {
        let Some((key, member)) = self.members.iter().find(|(_, m)| !m.own && m.name == *name) else {
            return Default::default();
        };
        // What a machine that lives has now is no name of the dead one.
        let is_anothers = |ip: &IpAddr| {
            let others = self.members.iter().filter(|(other, m)| *other != key && m.stale.is_none());
            others.flat_map(|(_, m)| &m.entry.addresses).any(|address| address.ip == *ip)
        };
        let addresses = [true, false].into_iter().filter_map(|v4| member.entry.address(v4));
        let addresses = addresses.filter(|ip| !is_anothers(ip));
        let users = addresses.map(|ip| ip.to_string()).chain([name.name.to_string()]).collect();
        let of = |a: &&AddressRecord| {
            a.leased && a.host.and_then(|host| self.hosts.get(&host)).is_some_and(|owner| owner == key)
        };
        (self.addresses.values().filter(of).map(|address| address.identity).collect(), users)
    }

    /// The operator's word that a node does not come back: its row and its addresses go now. Returns its keys; `None` if no
    /// such node is known.
    pub fn forget(&mut self, name: &NodeName) -> Option<BTreeSet<String>> {
        let (key, member) = self
            .members
            .iter()
            .find(|(_, member)| !member.own && member.name == *name)
            .map(|(key, member)| (Arc::clone(key), Arc::clone(&member.entry)))?;
        let hosts: Vec<_> = member.addresses.iter().map(|address| address.ip).collect();
        let of = |a: &AddressRecord| a.host.is_some_and(|host| hosts.contains(&host));
        let keys: Vec<Arc<str>> =
            self.addresses.iter().filter(|(_, a)| of(a)).map(|(key, _)| Arc::clone(key)).collect();
        let mut all: BTreeSet<String> = keys.iter().map(ToString::to_string).collect();
        self.drop_addresses(keys);
        self.echoes.forget(&key);
        self.drop_node(&key);
        self.follow_hosts();
        all.insert(key.to_string());
        Some(all)
    }
}
