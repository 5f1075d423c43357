//! Packets between nodes: which nodes the tunnel knows, and the ways to their endpoints.

mod routes;
mod wrapping;

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use villus_identity::{Claim, Mapping, Rank};
use villus_kvstore::NodeEntry;
use villus_labels::NumericIdentity;

use crate::endpoint::word_of;
use crate::kernel::{Wanted, make_equal};
use crate::node::Node;

pub(crate) use wrapping::{Host, Wrapping};

/// Who claims the routers of other nodes in the ipcache.
const OWNER: &str = "nodes";
/// Nodes that are named at once.
const NAMED: usize = 5;

impl Node {
    /// Brings what packets between nodes need up to date with the table of nodes.
    pub fn follow_nodes(&mut self) {
        self.claim_routers();
        let result = self.write_nodes();
        self.conditions.note("nodes of the tunnel", result.err().map(|error| error.to_string()));
        self.note_beyond_tunnel();
        self.follow_routes();
        self.follow_masquerade();
    }

    /// Makes `villus_nodes_v1` what it should be; says how many entries were not so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn write_nodes(&self) -> villus_datapath::Result<usize> {
        let map = &self.kernel.maps.nodes;
        let mut wanted = self.wanted_nodes();
        keep(self.knows_all_nodes(), &mut wanted, || map.entries())?;
        Ok(make_equal(map, &wanted)?.total())
    }

    /// Until every source has told of its nodes, those of before the start count on.
    pub fn knows_all_nodes(&self) -> bool {
        self.ipcache.winners().is_complete()
    }

    /// Other nodes.
    pub fn other_nodes(&self) -> Vec<std::sync::Arc<NodeEntry>> {
        let nodes = self.nodes.snapshot();
        nodes.iter().filter(|(_, node)| !node.is_local()).map(|(_, node)| node.entry.clone()).collect()
    }

    /// Says which nodes the tunnel, which runs over IPv4, cannot lead to.
    fn note_beyond_tunnel(&mut self) {
        let mut beyond: Vec<String> = Vec::new();
        if self.network.tunnel.is_some() {
            let others = self.other_nodes().into_iter();
            let without = others.filter(|entry| tunnel_end(entry).is_none());
            beyond.extend(without.map(|entry| format!("{}/{}", entry.cluster, entry.name)));
        }
        self.conditions.set_if("nodes beyond the tunnel", !beyond.is_empty(), || {
            let more = match beyond.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            beyond.truncate(NAMED);
            format!(
                "no IPv4 address is known of {}{more}: the tunnel runs over IPv4 and leads to none of their endpoints, and nothing is \
                 routed into it for them; give them one, or set `routing-mode` to `native`",
                beyond.join(", ")
            )
        });
    }

    /// What `villus_nodes_v1` should hold: each address of each node that the tunnel can lead to.
    pub fn wanted_nodes(&self) -> Wanted<[u8; 16], villus_abi::Node> {
        if self.network.tunnel.is_none() {
            return Wanted::new();
        }
        let own: Vec<IpAddr> = self.network.host_ips().collect();
        let mut wanted = Wanted::new();
        for entry in self.other_nodes() {
            let Some(tunnel) = tunnel_end(&entry) else { continue };
            let node = villus_abi::Node { tunnel: word_of(tunnel), reserved: 0 };
            let others = entry.addresses.iter().map(|address| address.ip).filter(|ip| !own.contains(ip));
            wanted.extend(others.map(|ip| (key_of(ip), node)));
        }
        wanted
    }

    /// Routers of other nodes have addresses of their endpoints' prefixes, and are reached as those are.
    pub fn claim_routers(&mut self) {
        let mut wanted = Vec::new();
        if self.network.tunnel.is_some() {
            for entry in self.other_nodes() {
                let Some(tunnel) = tunnel_end(&entry) else { continue };
                let routers = [true, false].into_iter().filter_map(|ipv4| entry.router(ipv4));
                let who = |ip| self.remote.as_ref().map(|remote| remote.node_identity(ip));
                wanted.extend(routers.map(|ip| {
                    let identity = who(ip).unwrap_or(NumericIdentity::REMOTE_NODE);
                    (IpNet::from(ip), Mapping { tunnel: Some(tunnel), ..Mapping::plain(identity) })
                }));
            }
        }
        let mut edit = self.ipcache.edit();
        edit.retain_owned(OWNER, |prefix| wanted.iter().any(|(net, _)| *net == prefix));
        for (prefix, mapping) in wanted {
            edit.upsert(prefix, Claim { rank: Rank::Local, owner: OWNER.into(), revision: 0, mapping });
        }
        drop(edit);
        self.step_ipcache();
    }
}

/// While not everything is known, wants what is there already too.
pub(crate) fn keep<K: Copy + Eq + Hash, V, E>(
    complete: bool,
    wanted: &mut Wanted<K, V>,
    there: impl FnOnce() -> Result<Vec<(K, V)>, E>,
) -> Result<(), E> {
    if !complete {
        for (key, value) in there()? {
            wanted.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// The address of a node to which the tunnel leads.
fn tunnel_end(entry: &NodeEntry) -> Option<Ipv4Addr> {
    match entry.address(true)? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

/// The key of an address in `villus_nodes_v1`.
fn key_of(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
