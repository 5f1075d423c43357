//! Options that this version serves.

use crate::kind::{Kind, SECONDS, int, int_or_zero, secs, secs_or_zero};
use crate::spec::{Group, OptionSpec, Support};

use Kind::{
    Bool, ChangeLimit, Choice, ClusterName, Devices, Ipv4Cidr, Ipv4OrAuto, Ipv4Pool, Ipv6Cidr, Ipv6OrAuto,
    Ipv6Pool, List, Listen, Map, Mode, Output, Path, RateLimits, Ratio, Socket, Text, Words,
};

const fn opt(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec::new(name, kind, default, help).group(group)
}

const DIR: Kind = Path { empty: false };
const OPTIONAL_PATH: Kind = Path { empty: true };
/// A day, seconds.
const DAY: u64 = 86_400;
/// Legal sizes of conntrack tables [bpf-maps 2.1].
const CT_SIZE: Kind = int_or_zero(1 << 10, 1 << 24, "a share of memory");
/// TCP flags by their bits in the header, lowest first.
pub(crate) const TCP_FLAGS: &[&str] = &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"];

const NO_KUBERNETES: &str = "Kubernetes is not supported by this version: policies come from static-cnp-path and \
                             the API, endpoints from the API";

pub(super) const OPTIONS: &[OptionSpec] = &[
    opt(
        Group::Sources,
        "config-dir",
        OPTIONAL_PATH,
        "",
        "Directory with one file per option: the file's name is the option, its content the value.",
    )
    .support(Support::Command),
    opt(Group::Sources, "config", OPTIONAL_PATH, "", "YAML file with one entry per option.")
        .support(Support::Command),
    // Paths
    opt(
        Group::Paths,
        "state-dir",
        DIR,
        "/var/run/villus",
        "Directory of what lasts until the next boot: sockets and the process id.",
    ),
    opt(
        Group::Paths,
        "lib-dir",
        DIR,
        "/var/lib/villus",
        "Directory of what outlives a boot: endpoints, identities, policies, the journal.",
    ),
    opt(Group::Paths, "bpf-root", DIR, "/sys/fs/bpf", "Mount point of the BPF filesystem."),
    // Node and cluster
    opt(
        Group::Node,
        "node-name",
        Text,
        "",
        "Name of this node; empty takes the host name. The environment variable K8S_NODE_NAME is read too.",
    ),
    opt(
        Group::Node,
        "cluster-name",
        ClusterName,
        "default",
        "Name of the cluster, written on every identity as io.cilium.k8s.policy.cluster.",
    ),
    opt(
        Group::Node,
        "cluster-id",
        int(0, 511),
        "0",
        "Number of the cluster among those that share identities; 0 for a cluster alone. At most \
         max-connected-clusters. It decides the range of numeric identities.",
    ),
    opt(
        Group::Node,
        "max-connected-clusters",
        Choice(&["255", "511"]),
        "255",
        "Greatest cluster id: 255 leaves 65,536 identities to a cluster, 511 leaves 32,768. Must be the same in \
         all clusters.",
    ),
    opt(
        Group::Node,
        "devices",
        Devices,
        "",
        "Devices that face the network. Empty: those with a default route or a global address. eth+ means every \
         name that begins so, !eth3 excludes.",
    ),
    opt(
        Group::Node,
        "mtu",
        int_or_zero(1280, 65_535, "that of the devices"),
        "0",
        "Largest packet that the network carries.",
    )
    .unit("bytes"),
    // Addresses
    opt(Group::Addresses, "enable-ipv4", Bool, "true", "Give endpoints IPv4 addresses and carry their traffic."),
    opt(Group::Addresses, "enable-ipv6", Bool, "true", "Give endpoints IPv6 addresses and carry their traffic."),
    opt(
        Group::Addresses,
        "ipv4-range",
        Ipv4Pool,
        "auto",
        "Prefix from which this node's endpoints get IPv4 addresses. auto: 10.N.0.0/16 with N the last byte of the \
         node's address, or the next that overlaps no network of the node; chosen once and kept in lib-dir.",
    ),
    opt(
        Group::Addresses,
        "ipv6-range",
        Ipv6Pool,
        "auto",
        "Prefix from which this node's endpoints get IPv6 addresses. auto: the /96 below fd76:696c:6c75::/64 that \
         carries the node's IPv4 address.",
    ),
    opt(
        Group::Addresses,
        "ipv4-node",
        Ipv4OrAuto,
        "auto",
        "The node's IPv4 address. auto: the preferred source address of the default route.",
    ),
    opt(
        Group::Addresses,
        "ipv6-node",
        Ipv6OrAuto,
        "auto",
        "The node's IPv6 address. auto: the preferred source address of the default route.",
    ),
    opt(
        Group::Addresses,
        "enable-ipv4-masquerade",
        Bool,
        "true",
        "Give IPv4 packets of endpoints that leave the node the node's address, outside of ipv4-native-routing-cidr.",
    )
    .aliases(&["masquerade"]),
    opt(
        Group::Addresses,
        "enable-ipv6-masquerade",
        Bool,
        "true",
        "Give IPv6 packets of endpoints that leave the node the node's address, outside of ipv6-native-routing-cidr.",
    ),
    opt(
        Group::Addresses,
        "ipv4-native-routing-cidr",
        Ipv4Cidr,
        "",
        "Prefix within which the network itself routes endpoints' IPv4 addresses: nothing is masqueraded there.",
    )
    .aliases(&["native-routing-cidr"]),
    opt(
        Group::Addresses,
        "enable-bpf-masquerade",
        Bool,
        "true",
        "Masquerade in eBPF on the uplinks, with a table of mappings of its own; what leaves by other devices is masqueraded by \
         an nftables table, as everything is without this option.",
    ),
    opt(
        Group::Addresses,
        "enable-ip-masq-agent",
        Bool,
        "false",
        "Leave the source of packets to the prefixes of ip-masq-agent-config-path.",
    ),
    opt(
        Group::Addresses,
        "ip-masq-agent-config-path",
        Path { empty: false },
        "/etc/config/ip-masq-agent",
        "File (JSON or YAML) with nonMasqueradeCIDRs, masqLinkLocal, masqLinkLocalIPv6 and resyncInterval. It is read \
         again when it changes; without it private and reserved prefixes are not masqueraded.",
    ),
    opt(
        Group::Addresses,
        "ipv6-native-routing-cidr",
        Ipv6Cidr,
        "",
        "Prefix within which the network itself routes endpoints' IPv6 addresses: nothing is masqueraded there.",
    ),
    // Datapath
    opt(
        Group::Datapath,
        "attach-mode",
        Choice(&["auto", "tcx", "tc"]),
        "auto",
        "How programs are attached: tcx (kernel 6.6 and later), tc (a clsact filter), or auto, the first that works.",
    ),
    opt(
        Group::Datapath,
        "bpf-map-dynamic-size-ratio",
        Ratio,
        "0.0025",
        "Share of the node's memory for connection tracking where no size is given, at 272 bytes a flow; 0 takes fixed small sizes.",
    ),
    opt(
        Group::Datapath,
        "bpf-policy-map-max",
        int(256, 65_536),
        "16384",
        "Greatest size of one endpoint's policy map. Maps begin small and grow as policies need.",
    )
    .unit("entries"),
    opt(
        Group::Datapath,
        "bpf-fragments-map-max",
        int(64, 1 << 20),
        "8192",
        "Datagrams whose fragments are followed at one time, for each family.",
    )
    .unit("entries"),
    opt(
        Group::Datapath,
        "endpoint-max",
        int(1, 4096),
        "4096",
        "Endpoints that this node can have at one time.",
    )
    .unit("endpoints"),
    opt(
        Group::Datapath,
        "allow-icmp-frag-needed",
        Bool,
        "true",
        "Let ICMP \"fragmentation needed\" and ICMPv6 \"packet too big\" pass whatever policy says.",
    ),
    opt(
        Group::Datapath,
        "allow-dhcp",
        Choice(&["auto", "true", "false"]),
        "auto",
        "Let DHCP, router solicitations and advertisements pass at adopted interfaces. auto: at tap devices only.",
    ),
    // Conntrack
    opt(
        Group::Conntrack,
        "bpf-ct-global-tcp-max",
        CT_SIZE,
        "0",
        "Size of the table of TCP flows, for each family. 0 takes it from bpf-map-dynamic-size-ratio.",
    )
    .aliases(&["ct-global-max-entries-tcp"])
    .unit("entries"),
    opt(
        Group::Conntrack,
        "bpf-ct-global-any-max",
        CT_SIZE,
        "0",
        "Size of the table of all other flows, for each family. 0 takes it from bpf-map-dynamic-size-ratio.",
    )
    .aliases(&["ct-global-max-entries-other"])
    .unit("entries"),
    opt(
        Group::Conntrack,
        "bpf-nat-global-max",
        CT_SIZE,
        "0",
        "Size of the table of masqueraded packets, for each family; a flow takes two entries. 0 takes two thirds of both \
         tables of flows. Used with enable-bpf-masquerade.",
    )
    .unit("entries"),
    opt(
        Group::Conntrack,
        "bpf-ct-timeout-regular-tcp",
        secs(1, 30 * DAY),
        "2h13m20s",
        "Life of an established TCP flow without packets.",
    ),
    opt(
        Group::Conntrack,
        "bpf-ct-timeout-regular-tcp-syn",
        secs(1, DAY),
        "60s",
        "Life of a TCP flow that has shown nothing but SYN.",
    ),
    opt(
        Group::Conntrack,
        "bpf-ct-timeout-regular-tcp-fin",
        secs(1, DAY),
        "10s",
        "Life of a TCP flow that both sides have closed.",
    ),
    opt(
        Group::Conntrack,
        "bpf-ct-timeout-regular-any",
        secs(1, DAY),
        "60s",
        "Life of every other flow without packets.",
    ),
    opt(
        Group::Conntrack,
        "conntrack-gc-interval",
        secs_or_zero("adapted to how much is found"),
        "0s",
        "Time between two collections of expired flows.",
    ),
    opt(
        Group::Conntrack,
        "conntrack-gc-max-interval",
        secs_or_zero("12h"),
        "0s",
        "Longest time between two collections when it is adapted.",
    ),
    // Policy
    opt(
        Group::Policy,
        "enable-policy",
        Choice(&["default", "always", "never"]),
        "default",
        "default: an endpoint is restricted once a rule selects it; always: from the start; never: not at all.",
    ),
    opt(
        Group::Policy,
        "policy-audit-mode",
        Bool,
        "false",
        "Let packets that policy denies pass, and report them as audited.",
    ),
    opt(
        Group::Policy,
        "enable-host-firewall",
        Bool,
        "false",
        "Hold the node itself to policies with a nodeSelector. Off until one selects it, audited until \
         `villus endpoint config 0 PolicyAuditMode=false`.",
    ),
    opt(
        Group::Policy,
        "host-only",
        Bool,
        "false",
        "Hold this machine alone to policies, on its uplinks: no endpoints, no ranges for them, no tunnel, no masquerade. Its \
         labels are those of the external resource that has one of its addresses, and node-labels.",
    ),
    opt(
        Group::Policy,
        "node-labels",
        List,
        "",
        "Labels of this node, by which a nodeSelector finds it, and fromNodes and toNodes on other nodes: key=value, the source k8s where none is given.",
    ),
    opt(
        Group::Policy,
        "allow-localhost",
        Choice(&["auto", "always", "policy"]),
        "auto",
        "Whether processes of this node reach its endpoints: always, as policy says, or auto (always in a \
         pod of Kubernetes, whose nodes probe it, else as policy says).",
    ),
    opt(
        Group::Policy,
        "policy-default-local-cluster",
        Bool,
        "false",
        "Selectors that name no cluster mean endpoints of the local cluster; else of any.",
    ),
    opt(
        Group::Policy,
        "policy-cidr-match-mode",
        Choice(&["", "nodes"]),
        "",
        "nodes: prefixes in policies also mean nodes, by their addresses; else only what is outside.",
    ),
    opt(
        Group::Policy,
        "enable-node-selector-labels",
        Bool,
        "false",
        "fromNodes and toNodes select other nodes by the labels that these have in the shared store; else all are alike.",
    ),
    opt(
        Group::Policy,
        "static-cnp-path",
        OPTIONAL_PATH,
        "",
        "Directory whose files of policies, CIDR groups and services are applied and followed as they change.",
    ),
    opt(
        Group::Policy,
        "bpf-policy-map-full-reconciliation-interval",
        secs(1, DAY),
        "1m",
        "How often the kernel's maps are compared with what policy asks for, and mended.",
    ),
    opt(
        Group::Policy,
        "policy-change-limit",
        ChangeLimit,
        "",
        "Share of this node's open flows and of its policy entries that one change of policies may touch; what touches \
         more waits for villus policy confirm. 10% for both, or flows=5%,entries=20%. Empty: no limit.",
    ),
    // Identity
    opt(
        Group::Identity,
        "labels",
        Text,
        "",
        "Which labels make an identity: rules [source:][!]regex separated by spaces. Empty takes the usual ones.",
    ),
    opt(
        Group::Identity,
        "label-prefix-file",
        OPTIONAL_PATH,
        "",
        "JSON file with rules as those of labels, before which they stand: \
         {\"version\": 1, \"valid-prefixes\": [{\"source\": \"k8s\", \"prefix\": \"app\", \"invert\": false}]}.",
    ),
    opt(
        Group::Identity,
        "enable-well-known-identities",
        Bool,
        "true",
        "The labels of kube-dns, CoreDNS and Cilium's operator have the numbers 102 to 106 and 110 to 114, which no store \
         gives. The same on all nodes: agents of a version that has no such numbers wait for labels that nobody tells, so \
         set it to false until all agents are newer.",
    ),
    opt(
        Group::Identity,
        "k8s-namespace",
        Text,
        "",
        "Namespace of Cilium's operator, by which it is well known. Empty: kube-system.",
    ),
    opt(
        Group::Identity,
        "fixed-identity-mapping",
        Map,
        "",
        "Numbers from 128 to 255 of identities of your own, 128=kv-store: a workload with the label \
         io.cilium.fixed-identity=kv-store has that number and the label reserved:kv-store. The same on all nodes of the \
         cluster; other clusters' are refused.",
    ),
    opt(
        Group::Identity,
        "identity-change-grace-period",
        secs_or_zero("at once"),
        "5s",
        "Time that other nodes get to learn an endpoint's new identity before it is used. Unless it is set, none with the \
         embedded store, which no other node reads.",
    ),
    opt(
        Group::Identity,
        "identity-restore-grace-period",
        SECONDS,
        "10m",
        "Time after a restart for which numbers of prefixes' identities are kept for their earlier owners.",
    ),
    // Endpoints
    opt(
        Group::Endpoints,
        "restore",
        Bool,
        "true",
        "Take over the endpoints of the agent that ran before.",
    ),
    opt(
        Group::Endpoints,
        "keep-config",
        Bool,
        "false",
        "At a restart, let options win that were changed while an agent ran, its own and those of endpoints.",
    ),
    opt(
        Group::Endpoints,
        "endpoint-restore-grace-period",
        SECONDS,
        "10m",
        "Time after a reboot for which an endpoint waits to be created again with its id, identity and addresses.",
    ),
    // Monitor
    opt(
        Group::Monitor,
        "monitor-aggregation",
        Choice(&["none", "disabled", "lowest", "low", "medium", "max", "maximum"]),
        "medium",
        "none: every packet is an event; medium: a flow is reported when it begins, on the flags of \
         monitor-aggregation-flags and once an interval. Cilium's lowest and low mean none here, maximum means \
         medium.",
    )
    .aliases(&["monitor-aggregation-level"]),
    opt(
        Group::Monitor,
        "monitor-aggregation-interval",
        secs(1, 3600),
        "5s",
        "Least time between two reports of one flow and direction.",
    ),
    opt(
        Group::Monitor,
        "monitor-aggregation-flags",
        Words(TCP_FLAGS),
        "syn,fin,rst",
        "TCP flags whose first appearance in a flow is reported whatever the interval.",
    ),
    opt(Group::Monitor, "bpf-events-drop-enabled", Bool, "true", "Report dropped packets."),
    opt(Group::Monitor, "bpf-events-policy-verdict-enabled", Bool, "true", "Report verdicts of policy."),
    opt(Group::Monitor, "bpf-events-trace-enabled", Bool, "true", "Report forwarded packets."),
    // Export of flows
    opt(
        Group::Hubble,
        "hubble-export-file-path",
        Output,
        "",
        "File to which flows are written as JSON lines, as Hubble's exporter does; stdout for the standard output, \
         empty for none.",
    ),
    opt(
        Group::Hubble,
        "hubble-export-file-max-size-mb",
        int(1, 1 << 20),
        "10",
        "Size at which the file of flows is renamed and a new one begun.",
    )
    .unit("MiB"),
    opt(
        Group::Hubble,
        "hubble-export-file-max-backups",
        int(0, 10_000),
        "5",
        "How many full files of flows are kept beside the one that is written; 0 keeps none.",
    )
    .unit("files"),
    opt(Group::Hubble, "hubble-export-file-compress", Bool, "false", "Compress full files of flows with gzip."),
    opt(
        Group::Hubble,
        "hubble-event-queue-size",
        int_or_zero(64, 1 << 16, "1024 for each CPU, at most 16384"),
        "0",
        "How many events may wait to be exported; further ones are counted as lost.",
    )
    .unit("events"),
    // API
    opt(
        Group::Api,
        "socket-path",
        Socket,
        "/var/run/villus/villus.sock",
        "Unix socket of the API. Where only state-dir is set, villus.sock in that directory.",
    ),
    opt(Group::Api, "socket-group", Text, "", "Group that owns the socket; empty leaves it to the agent's own."),
    opt(Group::Api, "socket-mode", Mode, "0660", "Permission bits of the socket."),
    opt(
        Group::Api,
        "api-rate-limit",
        RateLimits,
        "",
        "Limits of API calls, as call=key:value,key:value, calls separated by spaces, or as a JSON object from call to \
         key:value,key:value. Calls are endpoint-create, -delete, -get, -patch, -list. Keys: rate-limit (10/m), rate-burst, \
         parallel-requests, min-wait-duration, max-wait-duration (0: for ever; who would wait longer gets 429), \
         skip-initial, log; and with auto-adjust:true, which lets limits follow how long calls take, \
         estimated-processing-duration, mean-over, delayed-adjustment-factor, max-adjustment-factor, \
         min-parallel-requests, max-parallel-requests. Where nothing is said, 1000 endpoints may come at once and 100 a \
         second after that.",
    ),
    opt(
        Group::Api,
        "prometheus-serve-addr",
        Listen,
        "",
        "Address on which metrics are served; empty for none.",
    )
    .support(Support::Kept("this version serves no metrics over HTTP: nothing listens there")),
    // Logging
    opt(Group::Logging, "debug", Bool, "false", "Log what is needed to follow the agent's work.").short('D'),
    opt(
        Group::Logging,
        "log-driver",
        Words(&["syslog"]),
        "",
        "Where the log goes besides standard error: syslog.",
    ),
    opt(
        Group::Logging,
        "log-opt",
        Map,
        "",
        "Settings of the log: level, format, syslog.level, syslog.network, syslog.address, syslog.severity, \
         syslog.facility, syslog.tag.",
    ),
    // Kept for later versions
    opt(
        Group::Kubernetes,
        "k8s-kubeconfig-path",
        OPTIONAL_PATH,
        "",
        "Credentials for the Kubernetes API server.",
    )
    .support(Support::Kept(NO_KUBERNETES)),
    opt(Group::Kubernetes, "k8s-api-server", Text, "", "URL of the Kubernetes API server.")
        .support(Support::Kept(NO_KUBERNETES)),
    opt(Group::Kubernetes, "k8s-api-server-urls", List, "", "URLs of the Kubernetes API servers.")
        .support(Support::Kept(NO_KUBERNETES)),
];
