//! Names under which maps, programs and links are pinned, below `<bpffs>/tc/globals`.
//!
//! Maps that Cilium's tools know keep Cilium's names; everything else carries ours and the version of its
//! layout, so that no tool misreads it and a new layout makes a new map.

/// Directory below the bpffs.
pub const GLOBALS: &str = "tc/globals";
/// Prefix of an endpoint's policy map; five digits of the endpoint's id follow.
pub const POLICY_PREFIX: &str = "cilium_policy_";
/// The ipcache.
pub const IPCACHE: &str = "cilium_ipcache";
/// Endpoint records by slot.
pub const ENDPOINTS: &str = "villus_endpoints_v1";
/// Interface index to slot.
pub const DEVICES: &str = "villus_devices_v1";
/// IPv4 address to [`crate::Local`].
pub const ADDRS4: &str = "villus_addrs4_v1";
/// IPv6 address to [`crate::Local`].
pub const ADDRS6: &str = "villus_addrs6_v1";
/// Array of policy maps by slot.
pub const POLICIES: &str = "villus_policies_v1";
/// TCP flows over IPv4.
pub const CT4_TCP: &str = "villus_ct4_tcp_v2";
/// Other flows over IPv4.
pub const CT4_ANY: &str = "villus_ct4_any_v2";
/// TCP flows over IPv6.
pub const CT6_TCP: &str = "villus_ct6_tcp_v2";
/// Other flows over IPv6.
pub const CT6_ANY: &str = "villus_ct6_any_v2";
/// The maps of flows of earlier versions ([`crate::flow_v1`]).
pub const RETIRED: [&str; 4] =
    ["villus_ct4_tcp_v1", "villus_ct4_any_v1", "villus_ct6_tcp_v1", "villus_ct6_any_v1"];
/// Fragmented IPv4 datagrams.
pub const FRAGS4: &str = "villus_frags4_v1";
/// Fragmented IPv6 datagrams.
pub const FRAGS6: &str = "villus_frags6_v1";
/// Counters.
pub const METRICS: &str = "villus_metrics_v1";
/// Ring of events.
pub const EVENTS: &str = "villus_events_v1";
/// A number that is another after each change of whose an address is (ADDRS4, ADDRS6, IPCACHE, NODES): programs keep what they
/// have looked up there until it changes, and no longer than a jiffy.
pub const EPOCH: &str = "villus_epoch_v1";
/// Runtime configuration.
pub const CONFIG: &str = "villus_config_v1";
/// Masqueraded packets over IPv4.
pub const NAT4: &str = "villus_nat4_v1";
/// Masqueraded packets over IPv6.
pub const NAT6: &str = "villus_nat6_v1";
/// Prefixes whose packets are masqueraded, or to which none are.
pub const MASQUERADE: &str = "villus_masquerade_v1";
/// Devices through which packets leave the node: [`crate::Uplink`].
pub const UPLINKS: &str = "villus_uplinks_v1";
/// Addresses of the nodes to which a tunnel leads: [`crate::Node`].
pub const NODES: &str = "villus_nodes_v1";
