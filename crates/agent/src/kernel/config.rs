//! The element of `villus_config_v1`.

use std::time::Duration;

use villus_abi::config::{
    FLAG_ALLOW_FRAG_NEEDED, FLAG_AUDIT, FLAG_DIRECT_V4, FLAG_DIRECT_V6, FLAG_DROP_EVENTS, FLAG_HOST_POLICY,
    FLAG_IPSEC, FLAG_IPV4, FLAG_IPV6, FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6, FLAG_TRACE, FLAG_TRACE_ALL,
    FLAG_VERDICT_EVENTS,
};
use villus_abi::time::{Tick, from_ns};
use villus_config::Config;
use villus_config::config::{Aggregation, Enforcement};
use villus_policy::Audit;

use crate::between::Wrapping;
use crate::network::Network;

/// Options that can be changed while the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Runtime {
    pub audit: Audit,
    pub enforcement: Enforcement,
    pub aggregation: Aggregation,
    pub drops: bool,
    pub verdicts: bool,
    pub traces: bool,
}

impl Runtime {
    /// As the options say at the start.
    pub fn new(config: &Config) -> Self {
        Self {
            audit: config.policy.audit.into(),
            enforcement: config.policy.enforcement,
            aggregation: config.monitor.aggregation,
            drops: config.monitor.drops,
            verdicts: config.monitor.verdicts,
            traces: config.monitor.traces,
        }
    }
}

/// Whether our programs masquerade, in either family.
pub(crate) fn masquerades(config: &Config) -> bool {
    let (v4, v6) = (&config.ipv4, &config.ipv6);
    config.masquerade.bpf && (v4.enabled && v4.masquerade || v6.enabled && v6.masquerade)
}

/// What else the path is told of the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// A policy selects it.
    pub host: bool,
    /// Its programs masquerade.
    pub masquerade: bool,
    /// Its number for ports that are lent.
    pub seed: u32,
    /// How its endpoints' packets go into the tunnel.
    pub wrapping: Wrapping,
}

/// What the path is told.
pub(crate) fn config_of(
    config: &Config,
    runtime: &Runtime,
    network: &Network,
    of: &Told,
) -> villus_abi::Config {
    let direct = !config.policy.host_only;
    let flags = [
        (config.ipv4.enabled, FLAG_IPV4),
        (config.ipv6.enabled, FLAG_IPV6),
        (direct && config.ipv4.enabled && !config.ipv4.masquerade, FLAG_DIRECT_V4),
        (direct && config.ipv6.enabled && !config.ipv6.masquerade, FLAG_DIRECT_V6),
        (runtime.aggregation == Aggregation::None, FLAG_TRACE_ALL),
        (runtime.traces, FLAG_TRACE),
        (runtime.drops, FLAG_DROP_EVENTS),
        (runtime.verdicts, FLAG_VERDICT_EVENTS),
        (config.datapath.allow_icmp_frag_needed, FLAG_ALLOW_FRAG_NEEDED),
        (runtime.audit == Audit::BOTH, FLAG_AUDIT),
        (of.host, FLAG_HOST_POLICY),
        (of.wrapping.ipsec, FLAG_IPSEC),
        (of.masquerade && config.ipv4.enabled && config.ipv4.masquerade, FLAG_MASQUERADE_V4),
        (of.masquerade && config.ipv6.enabled && config.ipv6.masquerade, FLAG_MASQUERADE_V6),
    ];
    villus_abi::Config {
        flags: flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag),
        tcp: ticks(config.conntrack.tcp),
        tcp_syn: ticks(config.conntrack.tcp_syn),
        tcp_fin: ticks(config.conntrack.tcp_fin),
        any: ticks(config.conntrack.any),
        report: ticks(config.monitor.interval),
        report_flags: u32::from(config.monitor.flags.0),
        router_ifindex: network.router.index,
        overlay_ifindex: network.tunnel.unwrap_or_default(),
        overlay_mtu: network.tunnel.map_or(0, |_| network.mtu),
        tunnel_port: network.tunnel.map_or(0, |_| config.routing.tunnel_port.to_be()),
        nat_seed: if masquerades(config) { of.seed } else { 0 },
        tunnel_ttl: of.wrapping.ttl,
        pad: 0,
        tunnel_source: of.wrapping.source,
        tunnel_uplink: of.wrapping.uplink,
        tunnel_until: of.wrapping.until,
        tunnel_ports: of.wrapping.ports,
    }
}

fn ticks(span: Duration) -> Tick {
    from_ns(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)).max(1)
}
