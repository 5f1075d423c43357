//! What goes past the host's stack, as far as the host leaves that to be found out.
//!
//! Who wraps packets for the tunnel: the programs on endpoints' devices, or the tunnel's device. What the programs wrap goes past
//! the stack. Where the node encrypts what it sends, or balances it over several ways by its ports, that would be wrong; so they
//! may only while the agent has found just now that it is not. The word holds for seconds: a node whose agent is gone leaves the
//! packets to the device, where the stack sees them.
//!
//! What is routed without a tunnel is the stack's too while the node encrypts.

use std::net::IpAddr;

use villus_abi::time::{Tick, from_secs};
use villus_datapath::now;
use villus_net::{NarrowRoute, NetError, Sysctl, TUNNEL_OVERHEAD, has_ipsec_output, narrow_routes};

use crate::network::Network;
use crate::node::Node;

/// How long the programs may wrap without being told again.
const GOOD_FOR: Tick = from_secs(5);

/// What the kernel's tunnels do where nobody has changed it.
const TTL: u8 = 64;
const PORTS: [u16; 2] = [32_768, 61_000 - 32_768];

/// What is written of that into the path's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wrapping {
    /// IPsec has policies for what the node sends.
    pub ipsec: bool,
    /// The node's address in the tunnel, network order; 0 where the device wraps.
    pub source: u32,
    /// Index of the uplink that has it.
    pub uplink: u32,
    /// Until when they may.
    pub until: Tick,
    /// The least port and how many there are.
    pub ports: [u16; 2],
    /// TTL of what they send.
    pub ttl: u8,
}

/// What of the host itself the programs must heed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// Why they may not wrap.
    pub refusal: Option<String>,
    /// IPv4 routes with an MTU, of which the programs are not told.
    pub narrow: Vec<NarrowRoute>,
    ipsec: bool,
    ports: [u16; 2],
    ttl: u8,
}

// === impl Host ===

impl Host {
    /// Looks at the calling thread's namespace; at its routes only where none are given. Who cannot be asked about IPsec counts as
    /// having policies.
    pub fn look(routes: Option<Vec<NarrowRoute>>) -> Self {
        let ipsec = has_ipsec_output();
        let routes = routes.map_or_else(narrow_routes, Ok);
        let refusal = match (&ipsec, &reads("net/ipv4/fib_multipath_hash_policy"), &routes) {
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => Some(error.to_string()),
            (Ok(true), _, _) => Some("IPsec has policies for what this node sends".to_owned()),
            (_, Ok(Some(policy)), _) if policy != "0" => {
                Some("the node spreads flows over several ways by their ports".to_owned())
            }
            _ => None,
        };
        let ttl = reads("net/ipv4/ip_default_ttl").ok().flatten().and_then(|ttl| ttl.parse().ok());
        let ports = reads("net/ipv4/ip_local_port_range").ok().flatten().and_then(|range| ports_of(&range));
        Self {
            refusal,
            narrow: routes.unwrap_or_default(),
            ipsec: ipsec.unwrap_or(true),
            ports: ports.unwrap_or(PORTS),
            ttl: ttl.unwrap_or(TTL),
        }
    }

    /// Why packets that fit into the tunnel's device may not fit into a way to another node by this uplink.
    fn too_narrow(&self, network: &Network, uplink: u32) -> Option<String> {
        let outer = network.mtu + TUNNEL_OVERHEAD;
        let route = self.narrow.iter().find(|route| route.device == uplink && route.mtu < outer)?;
        Some(format!(
            "the route to {} has an MTU of {}, less than the {outer} that packets between nodes may have: they take the tunnel's \
             device, which cuts them; set `mtu` to {} or less",
            route.destination, route.mtu, route.mtu
        ))
    }
}

fn reads(parameter: &str) -> Result<Option<String>, NetError> {
    Sysctl::at(parameter).read_if_present()
}

/// The least of a range of ports and how many the kernel draws from: never the last one.
fn ports_of(range: &str) -> Option<[u16; 2]> {
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(least)), Some(Ok(most)), None) = (ends.next(), ends.next(), ends.next()) else {
        return None;
    };
    Some([least, most.checked_sub(least)?])
}

// === impl Wrapping ===

impl Wrapping {
    /// Before anything has been told; nothing is wrapped yet.
    pub fn at_start() -> Self {
        Self::none(&Host::look(None))
    }

    fn none(host: &Host) -> Self {
        Self { ipsec: host.ipsec, ..Self::default() }
    }

    /// On a node whose network and host are so, and why it is not so with a way that is there but too narrow.
    fn of(network: &Network, host: &Host, past_stack: bool) -> (Self, Option<String>) {
        let none = Self::none(host);
        if !past_stack || network.tunnel.is_none() || host.refusal.is_some() {
            return (none, None);
        }
        // As other nodes know it; the tunnel runs over IPv4.
        let Some(IpAddr::V4(source)) = network.internal.iter().find(|ip| ip.is_ipv4()) else {
            return (none, None);
        };
        let has_it = |addresses: &[IpAddr]| addresses.contains(&IpAddr::V4(*source));
        let Some(uplink) = network.uplinks.used.iter().find(|uplink| has_it(&uplink.addresses)) else {
            return (none, None);
        };
        if let Some(reason) = host.too_narrow(network, uplink.index) {
            return (none, Some(reason));
        }
        let wrapping = Self {
            source: u32::from_ne_bytes(source.octets()),
            uplink: uplink.index,
            until: now().wrapping_add(GOOD_FOR),
            ports: host.ports,
            ttl: host.ttl,
            ..none
        };
        (wrapping, None)
    }
}

impl Node {
    /// Tells the path what may go past the stack; of the tunnel, for the next seconds.
    pub fn keep_wrapping(&mut self, host: &Host) {
        let (wrapping, narrow) = Wrapping::of(&self.network, host, self.config.routing.past_stack);
        if (wrapping.source == 0) != (self.wrapping.source == 0) {
            let reason = host.refusal.as_ref().or(narrow.as_ref()).map_or("", String::as_str);
            tracing::info!(past_stack = wrapping.source != 0, reason, "packets into the tunnel");
        }
        if wrapping.ipsec != self.wrapping.ipsec {
            tracing::info!(
                past_stack = !wrapping.ipsec,
                "packets between endpoints and networks, which IPsec may have a say in"
            );
        }
        self.conditions.note("size of packets between nodes", narrow);
        let changed = wrapping != self.wrapping;
        self.wrapping = wrapping;
        // Before the path is open its configuration is not there.
        if changed && self.open {
            let written = self.kernel.maps.config.insert(&0, &self.wanted_config());
            self.conditions.note("way into the tunnel", written.err().map(|error| error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_are_those_that_the_kernel_draws_from() {
        assert_eq!(ports_of("32768\t60999"), Some([32_768, 28_231]));
        for wrong in ["", "1", "2 1", "1 2 3", "a b", "1 65536"] {
            assert_eq!(ports_of(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_range_is_read_or_refused(text in ".{0,40}") {
            let _ = ports_of(&text);
        }
    }
}
