//! Behind which hosts addresses live: a tunnel leads to nodes alone. A machine that is no node unwraps nothing.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use super::{AddressRecord, Layer, Remote, addresses::as_v4};

/// What is known of hosts beside whose they are.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Whether all nodes of each layer are known. Until then each host may be one.
    listed: [bool; Layer::ALL.len()],
    /// Hosts of which it was known before a restart that they are no nodes.
    outside: HashSet<IpAddr>,
    /// Hosts that are nodes' addresses now or not any more, and whether they were before.
    moved: BTreeMap<IpAddr, bool>,
}

// === impl Remote ===

impl Remote {
    /// The end of the tunnel that leads to an address of a layer with this host.
    pub(super) fn tunnel_to(&self, layer: Layer, host: Option<IpAddr>) -> Option<Ipv4Addr> {
        let host = host.filter(|_| self.config.tunnels)?;
        let behind = &self.behind;
        let may_be = || !behind.listed[layer as usize] && !behind.outside.contains(&host);
        as_v4(host).filter(|_| self.hosts.contains_key(&host) || may_be())
    }

    /// All nodes of a layer are known now.
    pub(super) fn list_hosts(&mut self, layer: Layer) {
        if !std::mem::replace(&mut self.behind.listed[layer as usize], true) && self.config.tunnels {
            let is_unknown = |host| !self.hosts.contains_key(&host);
            self.claim_again(|key, address| address.host.is_some_and(is_unknown) && Layer::of(key) == layer);
        }
    }

    /// What was known before a restart is all there is to know for now. Where no other node of a layer was known it is not
    /// known whether its nodes were ever heard of.
    pub(super) fn restore_hosts(&mut self, addresses: &BTreeMap<Arc<str>, AddressRecord>) {
        self.behind.moved.clear();
        if !self.config.tunnels {
            return;
        }
        let others = self.members.values().filter(|member| !member.own);
        let layers: HashSet<Layer> = others.map(|member| member.layer).collect();
        let known = addresses.iter().filter(|(key, _)| layers.contains(&Layer::of(key)));
        let hosts = known.filter_map(|(_, address)| address.host);
        self.behind.outside = hosts.filter(|host| !self.hosts.contains_key(host)).collect();
    }

    /// A host becomes the address of another node, or of none.
    pub(super) fn host_moves(&mut self, host: IpAddr) {
        if self.config.tunnels {
            let was = self.hosts.contains_key(&host);
            self.behind.moved.entry(host).or_insert(was);
        }
    }

    /// Claims addresses again whose hosts became nodes or are none any more.
    pub(super) fn follow_hosts(&mut self) {
        let mut moved = std::mem::take(&mut self.behind.moved);
        moved.retain(|host, was| self.hosts.contains_key(host) != *was);
        if !moved.is_empty() {
            self.claim_again(|_, address| address.host.is_some_and(|host| moved.contains_key(&host)));
        }
    }

    fn claim_again(&self, which: impl Fn(&str, &AddressRecord) -> bool) {
        let mut edit = self.ipcache.edit();
        for (key, address) in self.addresses.iter().filter(|(key, address)| which(key, address)) {
            self.claim(&mut edit, key, address, self.is_unresolved(key, address));
        }
    }
}
