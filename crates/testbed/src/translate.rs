//! What others translate on the node, with nftables of the host's own.

use std::net::IpAddr;

use crate::{node::Node, party::Addresses};

impl Node {
    /// Translates on the node whatever is sent to `from` so that it reaches `to`.
    pub fn translate(&self, from: IpAddr, to: IpAddr) {
        self.service_table();
        let family = if from.is_ipv4() { "ip" } else { "ip6" };
        for chain in ["prerouting", "output"] {
            self.host
                .nft(&format!("add rule inet services {chain} {family} daddr {from} dnat {family} to {to}"));
        }
    }

    /// Publishes a port of the node's own address, as container engines do.
    pub fn publish(&self, proto: &str, port: u16, to: IpAddr, to_port: u16) {
        self.service_table();
        let (family, node, target) = match to {
            IpAddr::V4(to) => ("ip", IpAddr::V4(Addresses::NODE.v4), format!("{to}:{to_port}")),
            IpAddr::V6(to) => ("ip6", IpAddr::V6(Addresses::NODE.v6), format!("[{to}]:{to_port}")),
        };
        for chain in ["prerouting", "output"] {
            self.host.nft(&format!(
                "add rule inet services {chain} {family} daddr {node} {proto} dport {port} dnat {family} to {target}"
            ));
        }
    }

    /// Gives what comes back to its own sender by translation the router's source address, as container engines do.
    pub fn hairpin(&self, workload: IpAddr) {
        self.service_table();
        let (family, router) = if workload.is_ipv4() {
            ("ip", IpAddr::V4(Addresses::ROUTER.v4))
        } else {
            ("ip6", IpAddr::V6(Addresses::ROUTER.v6))
        };
        self.host.nft(&format!(
            "add rule inet services postrouting {family} saddr {workload} {family} daddr {workload} snat {family} to {router}"
        ));
    }

    fn service_table(&self) {
        self.host.nft(
            "add table inet services; \
             add chain inet services prerouting { type nat hook prerouting priority dstnat; }; \
             add chain inet services output { type nat hook output priority -100; }; \
             add chain inet services postrouting { type nat hook postrouting priority 90; };",
        );
    }
}
