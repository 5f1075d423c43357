//! What the agent tells the path: one element of `villus_config_v1`.

use crate::{plain, time::Tick};

/// IPv4 is on.
pub const FLAG_IPV4: u32 = 1;
/// IPv6 is on.
pub const FLAG_IPV6: u32 = 1 << 1;
/// No NAT is wanted for IPv4 that leaves the node: flows from outside may take the shortcut, their answers the
/// neighbour redirect.
pub const FLAG_DIRECT_V4: u32 = 1 << 2;
/// As [`FLAG_DIRECT_V4`] for IPv6.
pub const FLAG_DIRECT_V6: u32 = 1 << 3;
/// Every packet is traced (monitor-aggregation none); otherwise aggregated (medium).
pub const FLAG_TRACE_ALL: u32 = 1 << 4;
/// Trace events are wanted at all (somebody may listen).
pub const FLAG_TRACE: u32 = 1 << 5;
/// Drop events are wanted.
pub const FLAG_DROP_EVENTS: u32 = 1 << 6;
/// Policy-verdict events are wanted.
pub const FLAG_VERDICT_EVENTS: u32 = 1 << 7;
/// ICMP "fragmentation needed" and "packet too big" pass without a flow.
pub const FLAG_ALLOW_FRAG_NEEDED: u32 = 1 << 8;
/// Denials pass and are reported as audit, on every endpoint.
pub const FLAG_AUDIT: u32 = 1 << 9;
/// The node itself is judged as an endpoint: slot [`crate::endpoint::SLOT_HOST`] holds its record.
pub const FLAG_HOST_POLICY: u32 = 1 << 10;

/// IPv4 that leaves the node is masqueraded by our programs on the uplinks.
pub const FLAG_MASQUERADE_V4: u32 = 1 << 11;
/// As [`FLAG_MASQUERADE_V4`] for IPv6.
pub const FLAG_MASQUERADE_V6: u32 = 1 << 12;
/// The host has IPsec policies for what it sends: between endpoints and networks every packet is the stack's, which asks them.
pub const FLAG_IPSEC: u32 = 1 << 13;

/// Runtime configuration of the path. 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Config {
    /// `FLAG_*`.
    pub flags: u32,
    /// Lifetime of an established TCP flow.
    pub tcp: Tick,
    /// Lifetime of a TCP flow that has only shown SYNs.
    pub tcp_syn: Tick,
    /// Lifetime of a TCP flow that both sides have closed.
    pub tcp_fin: Tick,
    /// Lifetime of any other flow.
    pub any: Tick,
    /// Least time between two reports of one flow and direction.
    pub report: Tick,
    /// TCP flags that are always reported (`monitor-aggregation-flags`).
    pub report_flags: u32,
    /// Interface index of the node's router device.
    pub router_ifindex: u32,
    /// Interface index of the tunnel device; 0 where packets between nodes take no tunnel.
    pub overlay_ifindex: u32,
    /// Largest layer-3 packet that fits into the tunnel.
    pub overlay_mtu: u32,
    /// UDP port of the tunnel, network order.
    pub tunnel_port: u16,
    /// TTL of what our programs put around a packet.
    pub tunnel_ttl: u8,
    /// Padding, 0.
    pub pad: u8,
    /// What the search for a free port begins with: a number that this node has drawn once.
    pub nat_seed: u32,
    /// The address by which other nodes know this one as the other end of their tunnels, IPv4 in network order; 0 where the
    /// tunnel's device is to wrap every packet.
    pub tunnel_source: u32,
    /// Interface index of the uplink that has that address: our programs wrap what leaves there.
    pub tunnel_uplink: u32,
    /// When they end doing so, unless an agent has found until then that nothing on the host must see those packets.
    pub tunnel_until: Tick,
    /// The least of the UDP ports that flows in the tunnel are told apart by on the network, and how many there are.
    pub tunnel_ports: [u16; 2],
}

impl Default for Config {
    fn default() -> Self {
        use crate::time::from_secs;
        Self {
            flags: FLAG_IPV4
                | FLAG_IPV6
                | FLAG_TRACE
                | FLAG_DROP_EVENTS
                | FLAG_VERDICT_EVENTS
                | FLAG_ALLOW_FRAG_NEEDED,
            tcp: from_secs(8000),
            tcp_syn: from_secs(60),
            tcp_fin: from_secs(10),
            any: from_secs(60),
            report: from_secs(5),
            report_flags: 0x07,
            router_ifindex: 0,
            overlay_ifindex: 0,
            overlay_mtu: 0,
            tunnel_port: 0,
            tunnel_ttl: 0,
            pad: 0,
            nat_seed: 0,
            tunnel_source: 0,
            tunnel_uplink: 0,
            tunnel_until: 0,
            tunnel_ports: [0; 2],
        }
    }
}

plain!(Config = 64);
