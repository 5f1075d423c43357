//! Other nodes.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;
use villus_kvstore::{Batch, Entry, Item, NodeEntry};

use super::{Layer, Ownership, Remote, Surroundings, addresses::as_v4};
use crate::ipcache::{Claim, Mapping};
use crate::nodes::{Node, NodeName};

/// A node as its key says.
pub(super) struct Member {
    pub(super) name: NodeName,
    /// Where it lies that counts.
    pub(super) layer: Layer,
    pub(super) entry: Arc<NodeEntry>,
    pub(super) leased: bool,
    /// It is this node.
    pub(super) own: bool,
    /// When it last said so itself, other than in a list.
    pub(super) told: Option<Instant>,
    /// Since when it is silent.
    pub(super) stale: Option<(Instant, SystemTime)>,
    /// It claims what another node has already.
    pub(super) contested: bool,
}

// === impl Remote ===

impl Remote {
    /// Takes in changes of nodes. Returns the keys of this node that others have changed or deleted.
    pub fn apply_nodes(&mut self, batch: &Batch, around: &dyn Surroundings, now: Instant) -> Vec<Arc<str>> {
        let lost = batch.is_of_another_past();
        let mut altered = Vec::new();
        for item in &batch.items {
            match item {
                Item::Put(entry) => match around.ownership(&entry.key, Some(&entry.value)) {
                    Ownership::Other => match self.read_node(entry) {
                        Ok(node) => {
                            let key: Arc<str> = Layer::in_state(&entry.key).into();
                            let layer = Layer::of(&entry.key);
                            self.tell_node(Arc::clone(&key), layer, node, entry.lease.is_some());
                            let member = self.members.get(&key).filter(|member| member.layer == layer);
                            if !member.is_some_and(|member| member.contested) {
                                self.refused.accept(&entry.key);
                            }
                            if batch.relisted.is_none()
                                && let Some(member) = self.members.get_mut(&key)
                            {
                                member.told = Some(now);
                            }
                        }
                        Err(reason) => {
                            self.refused.refuse_write(&entry.key, reason, batch.relisted.is_none())
                        }
                    },
                    Ownership::AsWritten => {}
                    Ownership::Altered => altered.push(Arc::clone(&entry.key)),
                },
                Item::Delete { key, leased, .. } => {
                    self.refused.accept(key);
                    if around.ownership(key, None) != Ownership::Other {
                        altered.push(Arc::clone(key));
                        continue;
                    }
                    let state: Arc<str> = Layer::in_state(key).into();
                    if self.fall_back(&state, Layer::of(key)) {
                        continue;
                    }
                    if lost || *leased {
                        self.lose_node(&state, around, now);
                    } else {
                        self.drop_node(&state);
                    }
                }
            }
        }
        self.follow_hosts();
        altered
    }

    /// This node itself: others cannot claim what it has.
    pub fn set_own(&mut self, entry: NodeEntry) {
        let key: Arc<str> = entry.key().into();
        if self.members.get(&key).is_some_and(|member| member.own && *member.entry == entry) {
            return;
        }
        self.drop_node(&key);
        self.put_node(key, Layer::State, entry, true);
        self.settle_contests();
        self.follow_hosts();
    }

    fn read_node(&self, entry: &Entry) -> Result<NodeEntry, String> {
        let key = Layer::in_state(&entry.key);
        let node = NodeEntry::read(&key, &entry.value).map_err(|error| error.to_string())?;
        let ours = self.config.cluster_id;
        let layer = Layer::of(&entry.key);
        if layer != Layer::State {
            self.must_be_another_clusters(&node.cluster)?;
        }
        self.config.others.may_say(layer, &node.cluster, node.cluster_id)?;
        if node.cluster != self.config.cluster && node.cluster_id == ours && ours != 0 {
            return Err(format!(
                "a node of cluster {} says cluster-id {ours}, which is this cluster's; give one of them another",
                node.cluster
            ));
        }
        if node.cluster == self.config.cluster && node.cluster_id != ours {
            let theirs = node.cluster_id;
            return Err(format!("a node of this cluster has cluster-id {ours}, this one says {theirs}"));
        }
        if node.cluster == self.config.cluster && node.name == self.config.node {
            return Err("another process writes it under this node's name".to_owned());
        }
        Ok(node)
    }

    pub(super) fn put_node(&mut self, key: Arc<str>, layer: Layer, entry: NodeEntry, leased: bool) {
        let name = NodeName::new(&entry.cluster, &entry.name);
        let own = *name.cluster == *self.config.cluster && *name.name == *self.config.node;
        let told = self.members.get(&key).and_then(|member| member.told);
        self.unclaim(&key);
        let contests = self.contests(&key, &entry);
        let contested = !contests.is_empty();
        if contested {
            self.refused.refuse(&layer.of_state(&key), contests.join("; "));
        }
        let entry = Arc::new(entry);
        let member = Member { name, layer, entry, leased, own, told, stale: None, contested };
        self.enter(&key, &member);
        self.members.insert(key, member);
    }

    /// What a node claims that another has already.
    fn contests(&self, key: &str, entry: &NodeEntry) -> Vec<String> {
        let other = |owner: &Arc<str>| **owner != *key;
        let ips = entry.addresses.iter().filter_map(|address| {
            let owner = self.hosts.get(&address.ip).filter(|owner| other(owner))?;
            Some(format!("`{owner}` has the address {} already", address.ip))
        });
        let ranges = entry.ranges().filter_map(|range| {
            let (taken, owner) = self.overlap(range).filter(|(_, owner)| other(owner))?;
            Some(format!("`{owner}` has the prefix {taken} already, which {range} overlaps"))
        });
        ips.chain(ranges).collect()
    }

    /// The prefix of another node that shares addresses with this one.
    fn overlap(&self, range: IpNet) -> Option<(IpNet, Arc<str>)> {
        let before = self.ranges.range(..=range).next_back().filter(|(net, _)| net.contains(&range));
        let behind = || self.ranges.range(range..).next().filter(|(net, _)| range.contains(*net));
        before.or_else(behind).map(|(net, owner)| (*net, Arc::clone(owner)))
    }

    /// Writes a node's row and claims, without what another has.
    fn enter(&mut self, key: &Arc<str>, member: &Member) {
        let mut entry = (*member.entry).clone();
        entry.addresses.retain(|address| self.hosts.get(&address.ip).is_none_or(|owner| owner == key));
        let free: Vec<IpNet> = entry
            .ranges()
            .filter(|range| self.overlap(*range).is_none_or(|(_, owner)| owner == *key))
            .collect();
        entry.ipv4 = entry.ipv4.filter(|net| free.contains(&IpNet::V4(net.trunc())));
        entry.ipv6 = entry.ipv6.filter(|net| free.contains(&IpNet::V6(net.trunc())));
        entry.more_ipv4.retain(|net| free.contains(&IpNet::V4(net.trunc())));
        entry.more_ipv6.retain(|net| free.contains(&IpNet::V6(net.trunc())));
        for address in &entry.addresses {
            self.host_moves(address.ip);
            self.hosts.insert(address.ip, Arc::clone(key));
        }
        for range in &free {
            self.ranges.insert(*range, Arc::clone(key));
        }
        if member.own {
            return;
        }
        self.tell_apart(key, &entry);
        let tunnel = entry.address(true).filter(|_| self.config.tunnels).and_then(as_v4);
        let rank = member.layer.rank();
        let mut edit = self.ipcache.edit();
        let mut claim = |prefix: IpNet, mapping| {
            // What the key of an address says of a node's own wins, but not that it is a node's.
            let claim = Claim { rank, owner: Arc::clone(key), revision: 1, mapping };
            edit.upsert(prefix, claim);
        };
        for address in &entry.addresses {
            claim(IpNet::from(address.ip), Mapping::plain(self.node_identity(address.ip)));
        }
        for range in free {
            let routed = self.is_routed(range);
            claim(range, Mapping { tunnel, routed, ..Mapping::cluster_range() });
        }
        drop(edit);
        let mut row = Node::new(entry, rank);
        row.stale = member.stale.map(|(_, since)| since);
        let mut write = self.nodes.write();
        write.put_if_changed(member.name.clone(), row);
        write.commit();
    }

    /// Takes back what a node claims.
    fn unclaim(&mut self, key: &str) {
        let Some(member) = self.members.get(key) else { return };
        let (entry, rank) = (Arc::clone(&member.entry), member.layer.rank());
        let is_its = |owner: Option<&Arc<str>>| owner.is_some_and(|owner| **owner == *key);
        let ips: Vec<IpAddr> = entry.addresses.iter().map(|address| address.ip).collect();
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for ip in ips.into_iter().filter(|ip| is_its(self.hosts.get(ip))).collect::<Vec<_>>() {
            self.host_moves(ip);
            self.hosts.remove(&ip);
            edit.remove(IpNet::from(ip), rank, key, u64::MAX);
        }
        for range in entry.ranges().filter(|range| is_its(self.ranges.get(range))).collect::<Vec<_>>() {
            self.ranges.remove(&range);
            edit.remove(range, rank, key, u64::MAX);
        }
    }

    /// A node has fallen silent.
    fn lose_node(&mut self, key: &Arc<str>, around: &dyn Surroundings, now: Instant) {
        let Some(member) = self.members.get_mut(key).filter(|member| !member.own) else { return };
        member.stale.get_or_insert((now, SystemTime::now()));
        let (name, since) = (member.name.clone(), member.stale.map(|(_, since)| since));
        let row = self.nodes.get(&name);
        if let Some(row) = row {
            self.nodes.put(name, Node { stale: since, ..row });
        }
        self.lose_owner(key, around, now);
    }

    /// Forgets a node; that there is none is fine.
    pub(super) fn drop_node(&mut self, key: &str) {
        self.unclaim(key);
        self.retire(key, |_| false);
        self.touched.node(key);
        let Some(member) = self.members.remove(key) else { return };
        self.refused.accept(&member.layer.of_state(key));
        if !member.own {
            self.nodes.delete(&member.name);
        }
        self.settle_contests();
    }

    /// What a node had may be another's now.
    fn settle_contests(&mut self) {
        let contested: Vec<(Arc<str>, Layer, Arc<NodeEntry>, bool)> = self
            .members
            .iter()
            .filter(|(_, member)| member.contested && !member.own)
            .map(|(key, member)| (Arc::clone(key), member.layer, Arc::clone(&member.entry), member.leased))
            .collect();
        for (key, layer, entry, leased) in contested {
            let stale = self.members.get(&key).and_then(|member| member.stale);
            self.put_node(key.clone(), layer, (*entry).clone(), leased);
            let Some(member) = self.members.get_mut(&key) else { continue };
            if stale.is_some() {
                member.stale = stale;
            }
            if !member.contested {
                self.refused.accept(&layer.of_state(&key));
            }
        }
    }
}
