//! Routes to the prefixes of other nodes: through the tunnel, or by the nodes' own addresses.

use std::convert::Infallible;
use std::net::IpAddr;

use ipnet::IpNet;
use villus_net::{NodeHop, device_on_link, node_routes, remove_node_route, set_node_route};

use super::{keep, tunnel_end};
use crate::kernel::{Drift, Wanted};
use crate::node::Node;

impl Node {
    /// The routes to other nodes' prefixes that this node should have, and which of them cannot be.
    pub fn wanted_routes(&self) -> (Wanted<IpNet, NodeHop>, Vec<String>) {
        let (mut wanted, mut problems) = (Wanted::new(), Vec::new());
        let routing = &self.config.routing;
        if self.network.tunnel.is_none() && !routing.direct_routes {
            return (wanted, problems);
        }
        let own = self.network.prefixes.all();
        for entry in self.other_nodes() {
            if self.network.tunnel.is_some() && tunnel_end(&entry).is_none() {
                continue;
            }
            for prefix in entry.ranges() {
                let ipv4 = prefix.addr().is_ipv4();
                if !(if ipv4 { self.config.ipv4.enabled } else { self.config.ipv6.enabled }) {
                    continue;
                }
                if own.iter().any(|own| own.contains(&prefix) || prefix.contains(own)) {
                    problems.push(format!("{} says that it has {prefix}, which is this node's", entry.name));
                    continue;
                }
                let source = self.network.router_ips().find(|ip| ip.is_ipv4() == ipv4);
                if let Some(device) = self.network.tunnel {
                    wanted.insert(prefix, NodeHop { device, gateway: None, source, mtu: None });
                    continue;
                }
                match self.direct_hop(entry.address(ipv4), ipv4) {
                    Ok(hop) => {
                        wanted.insert(prefix, NodeHop { source, ..hop });
                    }
                    Err(_) if routing.skip_unreachable => {}
                    Err(reason) => problems.push(format!("{} with {prefix}: {reason}", entry.name)),
                }
            }
        }
        (wanted, problems)
    }

    /// Which node says that it has this prefix, for people.
    fn whose(&self, net: &IpNet) -> String {
        let nodes = self.other_nodes();
        let owner = nodes.iter().find(|entry| entry.ranges().any(|range| range == *net));
        owner.map_or_else(|| format!("{net}, of no node"), |entry| format!("{net}, of {}", entry.name))
    }

    fn direct_hop(&self, address: Option<IpAddr>, ipv4: bool) -> Result<NodeHop, String> {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let gateway = address.ok_or_else(|| format!("it has no {family} address"))?;
        match device_on_link(gateway) {
            Ok(Some(device)) => Ok(NodeHop { device, gateway: Some(gateway), source: None, mtu: None }),
            Ok(None) => Err(format!(
                "its address {gateway} is on no network of this node; let the network route its prefixes and set \
                 direct-routing-skip-unreachable"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Makes the routes so; says how many were not. Routes of others are never touched.
    pub fn follow_routes(&mut self) -> usize {
        let (mut wanted, mut problems) = self.wanted_routes();
        let mended = match node_routes() {
            Ok(there) => {
                let kept = keep(self.knows_all_nodes(), &mut wanted, || Ok::<_, Infallible>(there.clone()));
                let Ok(()) = kept;
                let drift = Drift::between(&wanted, &there);
                let altered = drift.altered.iter().map(|(net, hop, _)| (net, hop));
                let made = drift.missing.iter().map(|(net, hop)| (net, hop)).chain(altered);
                let made = made.map(|(net, hop)| (net, set_node_route(*net, hop)));
                let removed = drift.extra.iter().map(|(net, hop)| (net, remove_node_route(*net, hop)));
                let mut mended = 0;
                for (net, outcome) in made.chain(removed) {
                    match outcome {
                        Ok(()) => mended += 1,
                        Err(error) => problems.push(format!("{}: {error}", self.whose(net))),
                    }
                }
                mended
            }
            Err(error) => {
                problems.push(error.to_string());
                0
            }
        };
        self.conditions.set_if("routes to nodes", !problems.is_empty(), || problems.join("; "));
        mended
    }
}
