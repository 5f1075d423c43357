//! This node among the nodes: what it says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use villus_identity::Rank;
use villus_kvstore::{AddressKind, NodeAddress, NodeEntry};
use villus_labels::source;

use crate::host;
use crate::node::Node;

impl Node {
    /// This node as others should know it now.
    pub fn own_entry(&self) -> NodeEntry {
        let of = |kind: AddressKind| move |ip: IpAddr| NodeAddress { kind: kind.clone(), ip };
        let internal = self.network.internal.iter().copied().map(of(AddressKind::Internal));
        let addresses = internal.chain(self.network.router_ips().map(of(AddressKind::Router))).collect();
        NodeEntry {
            addresses,
            ipv4: self.network.prefixes.ipv4,
            ipv6: self.network.prefixes.ipv6,
            cluster_id: self.config.node.cluster_id,
            source: Rank::Local.name().to_owned(),
            labels: self.own_labels(),
            boot_id: self.boot.clone(),
            ..NodeEntry::new(&self.cluster, &self.name)
        }
    }

    fn own_labels(&self) -> BTreeMap<String, String> {
        // They were read at the start; wrong ones ended it.
        let labels = host::labels(&self.config).unwrap_or_default();
        let own = labels.iter().filter(|label| label.source() != source::RESERVED);
        own.map(|label| (label.key().to_owned(), label.value().to_owned())).collect()
    }

    /// Brings this node's own row of the table of nodes up to date.
    pub fn tell_own_node(&mut self) {
        let own = villus_identity::Node::new(self.own_entry(), Rank::Local);
        let mut write = self.nodes.write();
        write.put_if_changed(own.name(), own);
        write.commit();
    }
}
