//! Masquerading by our programs: which prefixes, with which addresses, and the list of exceptions.

mod list;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use villus_abi::nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO};
use villus_abi::{IpcacheKey, Uplink};
use villus_kvstore::NodeEntry;

use crate::endpoint::word_of;
use crate::kernel::{Wanted, make_equal};
use crate::network::Network;
use crate::node::Node;

pub(crate) use list::{List, read};

/// Why nothing is masqueraded to a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Endpoints of this node have its addresses.
    Node,
    /// Endpoints of another node, by its name, have them, and the network takes packets there as they are.
    OtherNode(String),
    /// It is the value of this option.
    Native(&'static str),
    /// It is in the operator's list.
    List,
}

impl Origin {
    /// As the API names it.
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Node => "node-prefix",
            Self::OtherNode(_) => "other-nodes-prefix",
            Self::Native(_) => "native-routing-cidr",
            Self::List => "ip-masq-agent",
        }
    }
}

/// What the agent knows about masquerading beside its options.
#[derive(Debug, Default)]
pub(crate) struct Nat {
    /// Prefixes of the operator's list.
    list: Vec<IpNet>,
    /// Indices of uplinks whose programs masquerade; on every other device the table of nftables does.
    pub lending: BTreeSet<u32>,
}

impl Nat {
    /// As it is at the start; what is wrong with the list is the second part.
    pub fn at_start(list: Option<&Path>, lending: BTreeSet<u32>) -> (Self, Option<String>) {
        let mut nat = Self { list: Vec::new(), lending };
        let Some(path) = list else { return (nat, None) };
        let parsed = read(path).and_then(|text| parse(path, text.as_deref()));
        let (list, problem) = match parsed {
            Ok(list) => (list, None),
            Err(problem) => (List::without_file(), Some(problem)),
        };
        nat.list = list.prefixes;
        (nat, problem)
    }
}

/// A file's list, or what counts without one.
pub(crate) fn parse(path: &Path, text: Option<&str>) -> Result<List, String> {
    let Some(text) = text else { return Ok(List::without_file()) };
    List::parse(text).map_err(|reason| format!("{}: {reason}", path.display()))
}

impl Node {
    /// Prefixes to which nothing is masqueraded, each with why; one may be there for more than one reason.
    pub fn kept_prefixes(&self) -> Vec<(IpNet, Origin)> {
        let (v4, v6) = (&self.config.ipv4, &self.config.ipv6);
        let own = self.network.prefixes.all().into_iter().map(|net| (net, Origin::Node));
        let native = [
            (v4.native_routing.map(IpNet::from), "ipv4-native-routing-cidr"),
            (v6.native_routing.map(IpNet::from), "ipv6-native-routing-cidr"),
        ];
        let native = native.into_iter().filter_map(|(net, option)| Some((net?, Origin::Native(option))));
        let list = self.nat.list.iter().map(|net| (*net, Origin::List));
        own.chain(native).chain(list).chain(self.routed_ranges()).collect()
    }

    /// What `villus_masquerade_v1` should hold. A prefix bears the flags of those around it: the longest alone answers.
    pub fn wanted_prefixes(&self) -> Wanted<IpcacheKey, u32> {
        if self.kernel.maps.nat.is_none() {
            return Wanted::new();
        }
        let own = self.network.prefixes.all();
        let is_own = |net: &IpNet| own.iter().any(|around| around.contains(net));
        let flags = |net| MASQUERADE_NOT_TO | if is_own(net) { MASQUERADE_FROM } else { 0 };
        self.kept_prefixes().iter().map(|(net, _)| (key_of(net), flags(net))).collect()
    }

    /// Endpoints' prefixes of other nodes, where the network takes packets to them as they are.
    fn routed_ranges(&self) -> Vec<(IpNet, Origin)> {
        if self.network.tunnel.is_some() {
            return Vec::new();
        }
        let of = |entry: &NodeEntry| {
            let of_node = |net| (net, Origin::OtherNode(entry.name.clone()));
            entry.ranges().map(of_node).collect::<Vec<_>>()
        };
        self.other_nodes().iter().flat_map(|entry| of(entry)).collect()
    }

    /// What `villus_uplinks_v1` should hold.
    pub fn wanted_uplinks(&self) -> Wanted<u32, Uplink> {
        if self.kernel.maps.nat.is_none() {
            return Wanted::new();
        }
        let used = &self.network.uplinks.used;
        used.iter().map(|uplink| (uplink.index, lent_on(&self.network, &uplink.name))).collect()
    }

    /// Makes both maps what they should be; says how many entries were not so.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn write_masquerade(&self) -> villus_datapath::Result<usize> {
        let Some(maps) = &self.kernel.maps.nat else { return Ok(0) };
        let uplinks = make_equal(&maps.uplinks, &self.wanted_uplinks())?.total();
        if uplinks != 0 {
            // What the node had lent of an address that is gone would come back to nobody.
            let own: Vec<IpAddr> = self.network.host_ips().collect();
            self.kernel.mappings.end_lent(|ip| own.contains(&ip))?;
        }
        let mut prefixes = self.wanted_prefixes();
        crate::between::keep(self.knows_all_nodes(), &mut prefixes, || maps.prefixes.entries())?;
        Ok(uplinks + make_equal(&maps.prefixes, &prefixes)?.total())
    }

    /// As [`Self::write_masquerade`]; what goes wrong is a condition.
    pub fn follow_masquerade(&mut self) {
        let result = self.write_masquerade();
        self.conditions.note("maps of masquerading", result.err().map(|error| error.to_string()));
        self.follow_kept();
    }

    /// Another list of prefixes counts from now on.
    pub fn set_list(&mut self, list: &List) {
        if self.nat.list != list.prefixes {
            tracing::info!(prefixes = list.prefixes.len(), "another list of prefixes without masquerade");
            self.nat.list.clone_from(&list.prefixes);
            self.follow_masquerade();
        }
    }
}

/// The addresses that are lent on a device: its own, or where it has none the node's.
fn lent_on(network: &Network, device: &str) -> Uplink {
    let own = network.addresses.iter().filter(|address| address.external && address.device == device);
    let candidates: Vec<IpAddr> =
        own.map(|address| address.ip).chain(network.internal.iter().copied()).collect();
    let mut uplink = Uplink::default();
    for ip in candidates {
        match ip {
            IpAddr::V4(v4) if uplink.ipv4 == 0 => uplink.ipv4 = word_of(v4),
            IpAddr::V6(v6) if uplink.ipv6 == [0; 4] => {
                let bytes = v6.octets();
                uplink.ipv6 = std::array::from_fn(|i| {
                    u32::from_ne_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]])
                });
            }
            _ => {}
        }
    }
    uplink
}

fn key_of(net: &IpNet) -> IpcacheKey {
    match net {
        IpNet::V4(net) => IpcacheKey::v4(net.trunc().addr().octets(), net.prefix_len()),
        IpNet::V6(net) => IpcacheKey::v6(net.trunc().addr().octets(), net.prefix_len()),
    }
}
