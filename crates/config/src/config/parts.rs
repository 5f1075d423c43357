//! The parts of a configuration.

use super::reader::Reader;
use crate::{
    limit::{self, Limit},
    net::DevicePatterns,
    registry,
    share::ChangeLimit,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

/// Directories and mount points; all absolute.
#[derive(Clone, PartialEq, Debug)]
pub struct Paths {
    /// `state-dir`: what lasts until the next boot.
    pub state_dir: PathBuf,
    /// `lib-dir`: what outlives a boot.
    pub lib_dir: PathBuf,
    /// `bpf-root`: mount point of the BPF filesystem.
    pub bpf_root: PathBuf,
}

/// This node and its cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// `node-name`; `None` takes the host name.
    pub name: Option<String>,
    /// `cluster-name`.
    pub cluster_name: String,
    /// `cluster-id`, at most `max_connected_clusters`.
    pub cluster_id: u32,
    /// `max-connected-clusters`: 255 or 511.
    pub max_connected_clusters: u32,
    /// `ipv4-node`; `None` for auto.
    pub ipv4: Option<Ipv4Addr>,
    /// `ipv6-node`; `None` for auto.
    pub ipv6: Option<Ipv6Addr>,
    /// `devices`; empty for auto.
    pub devices: DevicePatterns,
    /// `mtu`, bytes; `None` takes that of the devices.
    pub mtu: Option<u32>,
}

/// One address family of endpoints. `N` is the family's prefix.
#[derive(Clone, PartialEq, Debug)]
pub struct Family<N> {
    /// `enable-ipv4`, `enable-ipv6`.
    pub enabled: bool,
    /// `ipv4-range`, `ipv6-range`; `None` for auto, see [`crate::net::auto_ipv4_pool`].
    pub range: Option<N>,
    /// `enable-ipv4-masquerade`, `enable-ipv6-masquerade`.
    pub masquerade: bool,
    /// `ipv4-native-routing-cidr`, `ipv6-native-routing-cidr`.
    pub native_routing: Option<N>,
}

/// Where and how endpoints are masqueraded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Masquerade {
    /// `enable-bpf-masquerade`: our programs do it where they can be; everywhere else nftables does.
    pub bpf: bool,
    /// `ip-masq-agent-config-path`, with `enable-ip-masq-agent`.
    pub list: Option<PathBuf>,
    /// `bpf-nat-global-max`, entries for each family; `None` takes a share of the tables of flows.
    pub nat_max: Option<u32>,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Tc,
}

/// Where DHCP and router advertisements pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowDhcp {
    /// At adopted tap devices.
    Taps,
    /// At every adopted interface.
    Adopted,
    /// Nowhere.
    Never,
}

/// Hooks and sizes of maps.
#[derive(Clone, PartialEq, Debug)]
pub struct Datapath {
    /// `attach-mode`.
    pub attach_mode: AttachMode,
    /// `bpf-map-dynamic-size-ratio`: share of memory for flows where no size is given; 0 for fixed small
    /// sizes.
    pub map_size_ratio: f64,
    /// `bpf-policy-map-max`: entries that one policy map may grow to.
    pub policy_map_max: u32,
    /// `bpf-fragments-map-max`: fragmented datagrams of each family.
    pub fragments_map_max: u32,
    /// `endpoint-max`.
    pub endpoint_max: u32,
    /// `allow-icmp-frag-needed`.
    pub allow_icmp_frag_needed: bool,
    /// `allow-dhcp`.
    pub allow_dhcp: AllowDhcp,
}

/// Lifetimes of flows, sizes of their tables, their collection.
#[derive(Clone, PartialEq, Debug)]
pub struct Conntrack {
    /// `bpf-ct-global-tcp-max`, entries for each family; `None` takes a share of memory.
    pub tcp_max: Option<u32>,
    /// `bpf-ct-global-any-max`, entries for each family; `None` takes a share of memory.
    pub any_max: Option<u32>,
    /// `bpf-ct-timeout-regular-tcp`.
    pub tcp: Duration,
    /// `bpf-ct-timeout-regular-tcp-syn`.
    pub tcp_syn: Duration,
    /// `bpf-ct-timeout-regular-tcp-fin`.
    pub tcp_fin: Duration,
    /// `bpf-ct-timeout-regular-any`.
    pub any: Duration,
    /// `conntrack-gc-interval`; `None` adapts it.
    pub gc_interval: Option<Duration>,
    /// `conntrack-gc-max-interval`; 12 hours where none is given.
    pub gc_max_interval: Duration,
}

/// Whether endpoints are restricted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Once a rule selects them.
    Default,
    /// From the start.
    Always,
    /// Not at all.
    Never,
}

/// Whether processes of the node reach its endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowLocalhost {
    /// Always in a Kubernetes cluster, else as policy says.
    Auto,
    /// Always.
    Always,
    /// As policy says.
    Policy,
}

/// Enforcement and sources of policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// `enable-policy`.
    pub enforcement: Enforcement,
    /// `policy-audit-mode`.
    pub audit: bool,
    /// `enable-host-firewall`, or `host-only`.
    pub host_firewall: bool,
    /// `host-only`.
    pub host_only: bool,
    /// `node-labels`.
    pub node_labels: Vec<String>,
    /// `allow-localhost`.
    pub allow_localhost: AllowLocalhost,
    /// `policy-default-local-cluster`.
    pub default_local_cluster: bool,
    /// `policy-cidr-match-mode` is `nodes`.
    pub cidr_matches_nodes: bool,
    /// `enable-node-selector-labels`.
    pub node_selector_labels: bool,
    /// `static-cnp-path`.
    pub static_cnp_path: Option<PathBuf>,
    /// `bpf-policy-map-full-reconciliation-interval`.
    pub reconcile_interval: Duration,
    /// `policy-change-limit`.
    pub change_limit: ChangeLimit,
}

/// From labels to identities.
#[derive(Clone, PartialEq, Debug)]
pub struct Identity {
    /// `labels`: the text of the filter, rules separated by spaces; empty for the usual ones.
    pub labels: String,
    /// `label-prefix-file`.
    pub label_prefix_file: Option<PathBuf>,
    /// All rules of the filter: those of the file, then those of `labels`, separated by spaces.
    pub label_rules: String,
    /// `enable-well-known-identities`.
    pub well_known: bool,
    /// `k8s-namespace`, where Cilium's operator is.
    pub operator_namespace: String,
    /// `fixed-identity-mapping`: numbers and names, as they were given.
    pub fixed: BTreeMap<String, String>,
    /// `identity-change-grace-period`; `None` where it is not given, see [`Self::CHANGE_GRACE`].
    pub change_grace: Option<Duration>,
    /// `identity-restore-grace-period`.
    pub restore_grace: Duration,
}

/// Taking over endpoints.
#[derive(Clone, PartialEq, Debug)]
pub struct Endpoints {
    /// `restore`.
    pub restore: bool,
    /// `keep-config`.
    pub keep_config: bool,
    /// `endpoint-restore-grace-period`: how long after a reboot an endpoint waits to be created again.
    pub restore_grace: Duration,
}

/// Which forwarded packets are reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Every packet.
    None,
    /// Flows as they begin, on flags, and once an interval.
    Medium,
}

/// TCP flags by their bits in the header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128,
/// NS 256.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpFlags(pub u16);

/// Events.
#[derive(Clone, PartialEq, Debug)]
pub struct Monitor {
    /// `monitor-aggregation`.
    pub aggregation: Aggregation,
    /// `monitor-aggregation-interval`.
    pub interval: Duration,
    /// `monitor-aggregation-flags`.
    pub flags: TcpFlags,
    /// `bpf-events-drop-enabled`.
    pub drops: bool,
    /// `bpf-events-policy-verdict-enabled`.
    pub verdicts: bool,
    /// `bpf-events-trace-enabled`.
    pub traces: bool,
}

/// The file of flows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// `hubble-export-file-path`; the path `stdout` is the standard output.
    pub path: Option<PathBuf>,
    /// `hubble-export-file-max-size-mb`, as bytes.
    pub file_size: u64,
    /// `hubble-export-file-max-backups`.
    pub backups: u32,
    /// `hubble-export-file-compress`.
    pub compress: bool,
    /// `hubble-event-queue-size`; none leaves it to the number of CPUs.
    pub queue: Option<u32>,
}

/// The REST API's socket.
#[derive(Clone, PartialEq, Debug)]
pub struct Api {
    /// `socket-path`, at most 107 bytes.
    pub socket: PathBuf,
    /// `socket-group`, by name or number.
    pub socket_group: Option<String>,
    /// `socket-mode`.
    pub socket_mode: u32,
    /// `api-rate-limit`: the limits of every call, those that it does not name included.
    pub limits: Vec<Limit>,
    /// `prometheus-serve-addr`: kept, not served by this version.
    pub metrics: Option<String>,
}

/// The log.
#[derive(Clone, PartialEq, Debug)]
pub struct Log {
    /// `debug`.
    pub debug: bool,
    /// `log-driver` names syslog.
    pub syslog: bool,
    /// `log-opt`, of known keys.
    pub options: BTreeMap<String, String>,
}

// === reading ===

impl Paths {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self { state_dir: r.path("state-dir"), lib_dir: r.path("lib-dir"), bpf_root: r.path("bpf-root") }
    }
}

impl Node {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            name: r.text_unless_empty("node-name"),
            cluster_name: r.text("cluster-name"),
            cluster_id: r.u32("cluster-id"),
            max_connected_clusters: if r.text("max-connected-clusters") == "511" { 511 } else { 255 },
            ipv4: r.net("ipv4-node"),
            ipv6: r.net("ipv6-node"),
            devices: DevicePatterns(r.list("devices")),
            mtu: r.u32_unless_zero("mtu"),
        }
    }
}

impl Family<Ipv4Net> {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            enabled: r.bool("enable-ipv4"),
            range: r.net("ipv4-range"),
            masquerade: r.bool("enable-ipv4-masquerade"),
            native_routing: r.net("ipv4-native-routing-cidr"),
        }
    }
}

impl Family<Ipv6Net> {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            enabled: r.bool("enable-ipv6"),
            range: r.net("ipv6-range"),
            masquerade: r.bool("enable-ipv6-masquerade"),
            native_routing: r.net("ipv6-native-routing-cidr"),
        }
    }
}

impl Masquerade {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let list = r.path("ip-masq-agent-config-path");
        Self {
            bpf: r.bool("enable-bpf-masquerade"),
            list: r.bool("enable-ip-masq-agent").then_some(list),
            nat_max: r.u32_unless_zero("bpf-nat-global-max"),
        }
    }
}

impl Datapath {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            attach_mode: match r.text("attach-mode").as_str() {
                "tcx" => AttachMode::Tcx,
                "tc" => AttachMode::Tc,
                _ => AttachMode::Auto,
            },
            map_size_ratio: r.f64("bpf-map-dynamic-size-ratio"),
            policy_map_max: r.u32("bpf-policy-map-max"),
            fragments_map_max: r.u32("bpf-fragments-map-max"),
            endpoint_max: r.u32("endpoint-max"),
            allow_icmp_frag_needed: r.bool("allow-icmp-frag-needed"),
            allow_dhcp: match r.text("allow-dhcp").as_str() {
                "true" => AllowDhcp::Adopted,
                "false" => AllowDhcp::Never,
                _ => AllowDhcp::Taps,
            },
        }
    }
}

impl Conntrack {
    /// Longest interval between two collections where none is given.
    pub const GC_MAX_INTERVAL: Duration = Duration::from_secs(12 * 3600);

    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            tcp_max: r.u32_unless_zero("bpf-ct-global-tcp-max"),
            any_max: r.u32_unless_zero("bpf-ct-global-any-max"),
            tcp: r.duration("bpf-ct-timeout-regular-tcp"),
            tcp_syn: r.duration("bpf-ct-timeout-regular-tcp-syn"),
            tcp_fin: r.duration("bpf-ct-timeout-regular-tcp-fin"),
            any: r.duration("bpf-ct-timeout-regular-any"),
            gc_interval: r.duration_unless_zero("conntrack-gc-interval"),
            gc_max_interval: r
                .duration_unless_zero("conntrack-gc-max-interval")
                .unwrap_or(Self::GC_MAX_INTERVAL),
        }
    }
}

impl Policy {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            enforcement: match r.text("enable-policy").as_str() {
                "always" => Enforcement::Always,
                "never" => Enforcement::Never,
                _ => Enforcement::Default,
            },
            audit: r.bool("policy-audit-mode"),
            host_firewall: r.bool("enable-host-firewall") | r.bool("host-only"),
            host_only: r.bool("host-only"),
            node_labels: r.list("node-labels"),
            allow_localhost: match r.text("allow-localhost").as_str() {
                "always" => AllowLocalhost::Always,
                "policy" => AllowLocalhost::Policy,
                _ => AllowLocalhost::Auto,
            },
            default_local_cluster: r.bool("policy-default-local-cluster"),
            cidr_matches_nodes: r.text("policy-cidr-match-mode") == "nodes",
            node_selector_labels: r.bool("enable-node-selector-labels"),
            static_cnp_path: r.path_unless_empty("static-cnp-path"),
            reconcile_interval: r.duration("bpf-policy-map-full-reconciliation-interval"),
            // Its syntax was checked.
            change_limit: crate::share::parse(&r.text("policy-change-limit")).unwrap_or_default(),
        }
    }
}

impl Identity {
    /// The grace of a change of identity where none is given and other nodes share the store.
    pub const CHANGE_GRACE: Duration = Duration::from_secs(5);
    /// Where Cilium's operator is unless it is said.
    const OPERATOR_NAMESPACE: &str = "kube-system";

    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let labels = r.text("labels");
        let grace = r.duration("identity-change-grace-period");
        Self {
            label_rules: labels.clone(),
            labels,
            label_prefix_file: r.path_unless_empty("label-prefix-file"),
            well_known: r.bool("enable-well-known-identities"),
            operator_namespace: r
                .text_unless_empty("k8s-namespace")
                .unwrap_or_else(|| Self::OPERATOR_NAMESPACE.to_owned()),
            fixed: r.map("fixed-identity-mapping"),
            change_grace: r.is_set("identity-change-grace-period").then_some(grace),
            restore_grace: r.duration("identity-restore-grace-period"),
        }
    }
}

impl Endpoints {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            restore: r.bool("restore"),
            keep_config: r.bool("keep-config"),
            restore_grace: r.duration("endpoint-restore-grace-period"),
        }
    }
}

impl TcpFlags {
    fn of(words: &[String]) -> Self {
        let bit = |word: &String| registry::tcp_flags().iter().position(|f| f == word).map_or(0, |i| 1 << i);
        Self(words.iter().map(bit).fold(0, |all, bit| all | bit))
    }
}

impl Monitor {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            aggregation: match r.text("monitor-aggregation").as_str() {
                "medium" | "max" | "maximum" => Aggregation::Medium,
                _ => Aggregation::None,
            },
            interval: r.duration("monitor-aggregation-interval"),
            flags: TcpFlags::of(&r.list("monitor-aggregation-flags")),
            drops: r.bool("bpf-events-drop-enabled"),
            verdicts: r.bool("bpf-events-policy-verdict-enabled"),
            traces: r.bool("bpf-events-trace-enabled"),
        }
    }
}

impl Export {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            path: r.path_unless_empty("hubble-export-file-path"),
            file_size: u64::from(r.u32("hubble-export-file-max-size-mb")) << 20,
            backups: r.u32("hubble-export-file-max-backups"),
            compress: r.bool("hubble-export-file-compress"),
            queue: r.u32_unless_zero("hubble-event-queue-size"),
        }
    }
}

impl Api {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let follows = r.is_set("state-dir") && !r.is_set("socket-path");
        Self {
            socket: if follows { r.path("state-dir").join("villus.sock") } else { r.path("socket-path") },
            socket_group: r.text_unless_empty("socket-group"),
            socket_mode: r.u32("socket-mode"),
            // Its syntax was checked; a wrong one was refused.
            limits: limit::limits(&r.text("api-rate-limit")).unwrap_or_default(),
            metrics: r.text_unless_empty("prometheus-serve-addr"),
        }
    }
}

impl Log {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            debug: r.bool("debug"),
            syslog: r.list("log-driver").iter().any(|d| d == "syslog"),
            options: r.map("log-opt"),
        }
    }
}
