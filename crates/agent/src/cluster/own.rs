//! This node among the nodes: what it says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use villus_identity::Rank;
use villus_kvstore::{
    AddressKind, IpIdentityPair, NamedPort, NodeAddress, NodeEntry, keys::DEFAULT_ADDRESS_SPACE,
};
use villus_labels::{Scope, source};

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
        if let Some(remote) = &mut self.remote {
            remote.set_own((*own.entry).clone());
        }
        let mut write = self.nodes.write();
        write.put_if_changed(own.name(), own);
        write.commit();
        self.wake.publish.notify_one();
    }

    /// The keys that this node should have in the store: its own, and one for each address of an endpoint whose identity
    /// others can know.
    pub fn own_keys(&self) -> BTreeMap<String, bytes::Bytes> {
        if self.config.policy.host_only {
            // To others it is the external resource that has its addresses, and no node.
            return self.policy_report().into_iter().collect();
        }
        let own = self.own_entry();
        let space = match self.config.kvstore.space_of_cluster {
            true => self.cluster.as_str(),
            false => DEFAULT_ADDRESS_SPACE,
        };
        let host = self.network.internal.first().copied();
        let mut keys = BTreeMap::from([(own.key(), own.to_json().into())]);
        keys.extend(self.policy_report());
        for endpoint in self.endpoints.values().filter(|endpoint| endpoint.is_live() && !endpoint.is_host()) {
            let identity = endpoint.identity();
            if identity.scope() != Scope::Global || identity.0 == 0 {
                continue;
            }
            for address in &endpoint.file.addresses {
                let names = &endpoint.file.names;
                let port = |port: &villus_policy::NamedPort| NamedPort {
                    name: port.name().to_owned(),
                    port: port.number(),
                    protocol: protocol_name(port.proto()).to_owned(),
                };
                let pair = IpIdentityPair {
                    metadata: format!("cilium-global:{}:{}:{}", self.cluster, self.name, endpoint.id()),
                    namespace: names.k8s_namespace.clone().unwrap_or_default(),
                    pod: names.k8s_pod_name.clone().unwrap_or_default(),
                    named_ports: endpoint.file.named_ports.iter().map(port).collect(),
                    ..IpIdentityPair::new(*address, identity.0, host)
                };
                keys.insert(pair.key(space), pair.to_json().into());
            }
        }
        keys
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        17 => "UDP",
        132 => "SCTP",
        _ => "TCP",
    }
}
