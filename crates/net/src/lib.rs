//! The node's network as the kernel holds it: links, addresses, routes, neighbours, sysctls and the NAT table.
//!
//! This crate makes and removes the devices of endpoints, sets up the node, finds its uplinks and follows their
//! changes. It knows nothing of identities, policies or eBPF, and keeps no state but what it hands to the caller.
//! Everything is synchronous and can be done again without harm.

#![forbid(unsafe_code)]

mod adopt;
mod command;
mod conntrack;
mod delivery;
mod endpoint;
mod error;
mod ethtool;
mod foreign;
mod generation;
mod host_side;
mod ipsec;
mod journal;
mod left_over;
mod mac;
mod monitor;
mod nat;
mod netlink;
mod netns;
mod node;
mod node_routes;
mod rtnl;
mod sysctl;
mod tunnel;
mod uplink;

pub use adopt::{
    AdoptSpec, AdoptedLink, adopt_interface, check_adoptable, forget_workload_mac, learn_workload_mac,
    release_interface,
};
pub use conntrack::forget_untranslated;
pub use delivery::{Delivery, delivery_of};
pub use endpoint::{
    CONTAINER_DEVICE, EndpointLink, EndpointLinkSpec, HOST_PREFIX, create_endpoint_link, endpoint_devices,
    host_device_name, remove_endpoint_link,
};
pub use error::{Errors, NetError};
pub use foreign::{ForeignDrop, foreign_drops, iptables_drops, nft_drops};
pub use generation::{astray_packets, nft_generation};
pub use host_side::restore_host_side;
pub use ipsec::{IpsecChanges, has_ipsec_output};
pub use journal::{Change, Journal, Recorder, Restored};
pub use left_over::remove_left_over;
pub use mac::{InvalidMac, Mac};
pub use monitor::{Monitor, MonitorStop, NetEvent};
pub use nat::{
    LeavesWith, Mark, Masquerade, NAT_TABLE, NatCounters, masquerade_counters, masquerade_rules, nft_version,
    remove_masquerade,
};
pub use netns::{NAMED, Netns, NetnsId, NetnsRef, NetnsState, run_in};
pub use node::{
    NodeNetwork, ROUTER_DEVICE, ROUTER_PEER, RouterDevice, SystemPaths, heed_advertisements,
    remove_all_marked,
};
pub use node_routes::{
    NarrowRoute, NodeHop, device_on_link, device_towards, narrow_routes, node_routes, remove_node_route,
    set_node_route,
};
pub use rtnl::{
    Address, Link, LinkChange, NODE_PROTOCOL, Neighbour, NextHop, PROTOCOL, Route, RouteKind, Rtnl, VethPair,
};
pub use sysctl::{Family, Sysctl};
pub use tunnel::{TUNNEL_DEVICE, TUNNEL_OVERHEAD, Tunnel, remove_tunnel};
pub use uplink::{DeviceChoice, NodeAddress, NodeState, Uplink, Uplinks};
