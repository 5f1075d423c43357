//! Options that turn on what this version does not have, and those that leave no choice.

use crate::kind::{Kind, int};
use crate::spec::{Group, OptionSpec, Support};

const NO: &[&str] = &["false"];
const YES: &[&str] = &["true"];
const EITHER: &[&str] = &["true", "false"];
const EMPTY: &[&str] = &[""];

const fn later(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    off: &'static [&'static str],
    feature: &'static str,
) -> OptionSpec {
    OptionSpec::new(name, kind, default, "").group(group).support(Support::Later { feature, off })
}

/// A switch that is off by default.
const fn switch(group: Group, name: &'static str, feature: &'static str) -> OptionSpec {
    later(group, name, Kind::Bool, "false", NO, feature)
}

/// A setting that is empty by default.
const fn unset(group: Group, name: &'static str, kind: Kind, feature: &'static str) -> OptionSpec {
    later(group, name, kind, "", EMPTY, feature)
}

const fn fixed(
    group: Group,
    name: &'static str,
    kind: Kind,
    only: &'static [&'static str],
    why: &'static str,
) -> OptionSpec {
    OptionSpec::new(name, kind, only[0], "").group(group).support(Support::Fixed { only, why })
}

pub(super) const OPTIONS: &[OptionSpec] = &[
    later(
        Group::Routing,
        "tunnel-protocol",
        Kind::Choice(&["vxlan", "geneve", ""]),
        "vxlan",
        &["vxlan", ""],
        "Geneve between nodes",
    ),
    later(
        Group::Routing,
        "underlay-protocol",
        Kind::Choice(&["ipv4", "ipv6", "auto"]),
        "ipv4",
        &["ipv4", "auto"],
        "tunnels over IPv6",
    ),
    switch(Group::Routing, "enable-unreachable-routes", "unreachable routes for deleted endpoints"),
    switch(Group::Routing, "enable-srv6", "SRv6"),
    switch(Group::Routing, "enable-vtep", "tunnels to VTEP devices"),
    switch(Group::Routing, "multicast-enabled", "multicast"),
    switch(Group::Routing, "enable-egress-gateway", "the egress gateway")
        .aliases(&["enable-ipv4-egress-gateway"]),
    switch(Group::Routing, "enable-bgp-control-plane", "BGP"),
    switch(Group::Routing, "bgp-announce-lb-ip", "BGP"),
    switch(Group::Routing, "bgp-announce-pod-cidr", "BGP"),
    switch(Group::Routing, "enable-l2-announcements", "L2 announcements"),
    switch(Group::Routing, "enable-l2-pod-announcements", "L2 announcements"),
    unset(Group::Routing, "local-router-ipv4", Kind::Text, "a router address of your choice"),
    unset(Group::Routing, "local-router-ipv6", Kind::Text, "a router address of your choice"),
    later(Group::Routing, "route-metric", int(0, u32::MAX as u64), "0", &["0"], "a metric on routes"),
    unset(Group::Addresses, "egress-masquerade-interfaces", Kind::Devices, "masquerade on some devices only"),
    unset(
        Group::Addresses,
        "derive-masq-ip-addr-from-device",
        Kind::Text,
        "masquerade to another device's address",
    )
    .aliases(&["derive-masquerade-ip-addr-from-device"]),
    switch(Group::Addresses, "enable-masquerade-to-route-source", "masquerade to a route's source address"),
    unset(
        Group::Addresses,
        "exclude-local-address",
        Kind::Cidrs,
        "addresses of the node that count as outside",
    ),
    later(
        Group::Addresses,
        "ipam",
        Kind::Choice(&[
            "cluster-pool",
            "hostscope-legacy",
            "kubernetes",
            "multi-pool",
            "crd",
            "eni",
            "azure",
            "alibabacloud",
            "delegated-plugin",
        ]),
        "cluster-pool",
        &["cluster-pool", "hostscope-legacy"],
        "pools that others hand out (ipv4-range and ipv6-range say this node's)",
    ),
    switch(Group::Services, "enable-node-port", "services"),
    later(
        Group::Services,
        "kube-proxy-replacement",
        Kind::Choice(&["false", "true", "disabled", "probe", "partial", "strict"]),
        "false",
        &["false", "disabled", "probe", "partial"],
        "services in place of kube-proxy",
    ),
    switch(Group::Services, "bpf-lb-sock", "services at sockets")
        .aliases(&["enable-host-reachable-services"]),
    switch(Group::Services, "bpf-lb-external-clusterip", "services"),
    switch(Group::Services, "bpf-lb-nat46x64", "NAT between address families"),
    switch(Group::Services, "enable-nat46x64-gateway", "NAT between address families"),
    switch(Group::Services, "enable-local-redirect-policy", "local redirect policies"),
    switch(Group::Services, "enable-bandwidth-manager", "the bandwidth manager"),
    switch(Group::Services, "enable-bbr", "the bandwidth manager"),
    switch(Group::Services, "enable-ipip-termination", "services by IPIP"),
    switch(Group::Encryption, "enable-ipsec", "encryption"),
    switch(Group::Encryption, "enable-ipsec-encrypted-overlay", "encryption"),
    switch(Group::Encryption, "enable-wireguard", "encryption"),
    switch(Group::Encryption, "enable-ztunnel", "encryption"),
    switch(Group::Encryption, "encrypt-node", "encryption"),
    switch(Group::Encryption, "enable-encryption-strict-mode", "encryption"),
    switch(Group::Encryption, "enable-encryption-strict-mode-ingress", "encryption"),
    switch(Group::Encryption, "enable-encryption-strict-mode-egress", "encryption"),
    switch(Group::Encryption, "mesh-auth-mutual-enabled", "mutual authentication"),
    switch(Group::Hubble, "enable-hubble", "Hubble"),
    switch(Group::Hubble, "enable-recorder", "the packet recorder"),
    switch(Group::Kvstore, "join-cluster", "registration as an external workload"),
    switch(Group::Kvstore, "clustermesh-enable-mcs-api", "ClusterMesh"),
    switch(Group::Kvstore, "clustermesh-enable-endpoint-sync", "ClusterMesh"),
    switch(Group::Proxy, "enable-envoy-config", "the L7 proxy"),
    switch(Group::Proxy, "enable-gateway-api", "the Gateway API"),
    switch(Group::Proxy, "enable-ingress-controller", "Ingress"),
    switch(Group::Proxy, "enable-standalone-dns-proxy", "the DNS proxy"),
    later(
        Group::Policy,
        "policy-deny-response",
        Kind::Choice(&["none", "icmp"]),
        "none",
        &["none"],
        "an ICMP answer to denied packets",
    ),
    switch(Group::Policy, "enable-xdp-prefilter", "the XDP prefilter"),
    later(
        Group::Policy,
        "prefilter-device",
        Kind::Text,
        "undefined",
        &["undefined", ""],
        "the XDP prefilter",
    ),
    switch(Group::Datapath, "enable-custom-calls", "programs of others in the packet path"),
    switch(Group::Datapath, "enable-datapath-plugins", "programs of others in the packet path"),
    later(
        Group::Kubernetes,
        "cni-chaining-mode",
        Kind::Choice(&["none", "", "aws-cni", "azure", "flannel", "generic-veth", "portmap"]),
        "none",
        &["none", ""],
        "chaining with another CNI plugin",
    ),
    unset(Group::Other, "flannel-master-device", Kind::Text, "running on top of flannel"),
    later(
        Group::Api,
        "enable-cilium-api-server-access",
        Kind::List,
        "*",
        &["*", ""],
        "closing parts of the API (socket-group and socket-mode say who may use it)",
    ),
    fixed(
        Group::Datapath,
        "datapath-mode",
        Kind::Choice(&["veth", "netkit", "netkit-l2", "ipvlan", "lb-only", "auto"]),
        &["veth", "auto"],
        "endpoints are reached through veth pairs and adopted devices",
    ),
    fixed(
        Group::Datapath,
        "disable-conntrack",
        Kind::Bool,
        NO,
        "without connection tracking replies would need rules of their own",
    ),
    fixed(
        Group::Policy,
        "enable-source-ip-verification",
        Kind::Bool,
        YES,
        "identity rests on it: an endpoint sends from its own addresses only",
    ),
    fixed(
        Group::Policy,
        "enable-endpoint-lockdown-on-policy-overflow",
        Kind::Bool,
        NO,
        "a policy that would not fit is refused and the earlier one stays in force",
    ),
    fixed(
        Group::Policy,
        "enable-non-default-deny-policies",
        Kind::Bool,
        YES,
        "what a rule says in enableDefaultDeny is followed",
    ),
    fixed(
        Group::Policy,
        "enable-identity-mark",
        Kind::Bool,
        YES,
        "packets handed to the host's stack carry who sent them",
    ),
];

/// Switches of features that this version does not have, and that Cilium turns on by itself: whichever way
/// they are set, nothing is asked for that anyone would miss silently.
const SILENT: &[(Group, &str, &[&str])] = &[
    (
        Group::Services,
        "services",
        &[
            "enable-external-ips",
            "enable-host-port",
            "enable-health-check-nodeport",
            "enable-session-affinity",
            "enable-svc-source-range-check",
            "enable-auto-protect-node-port-range",
            "enable-internal-traffic-policy",
            "enable-k8s-terminating-endpoint",
            "enable-lb-ipam",
            "enable-no-service-endpoints-routable",
            "bpf-lb-proto-diff",
            "bpf-lb-sock-terminate-pod-connections",
            "node-port-bind-protection",
            "trace-sock",
        ],
    ),
    (
        Group::Health,
        "health checks between nodes",
        &["enable-health-checking", "enable-endpoint-health-checking"],
    ),
    (
        Group::Proxy,
        "the L7 proxy",
        &[
            "enable-l7-proxy",
            "external-envoy-proxy",
            "http-normalize-path",
            "dnsproxy-enable-transparent-mode",
            "tofqdns-enable-dns-compression",
            "tofqdns-preallocate-identities",
            "proxy-use-original-source-address",
            "envoy-access-log-enabled",
        ],
    ),
    (Group::Encryption, "mutual authentication", &["mesh-auth-enabled"]),
    (Group::Encryption, "encryption", &["enable-ipsec-key-watcher"]),
    (
        Group::Kubernetes,
        "Kubernetes",
        &[
            "enable-k8s",
            "enable-k8s-endpoint-slice",
            "enable-k8s-networkpolicy",
            "enable-cilium-network-policy",
            "enable-cilium-clusterwide-network-policy",
            "auto-create-cilium-node-resource",
            "synchronize-k8s-nodes",
            "enable-policy-secrets-sync",
            "policy-secrets-only-from-secrets-namespace",
            "cni-exclusive",
        ],
    ),
    (
        Group::Hubble,
        "Hubble",
        &[
            "hubble-disable-tls",
            "hubble-skip-unknown-cgroup-ids",
            "hubble-network-policy-correlation-enabled",
            "enable-hubble-recorder-api",
            "hubble-redact-http-userinfo",
        ],
    ),
];

pub(super) fn without_effect() -> impl Iterator<Item = OptionSpec> {
    SILENT.iter().flat_map(|&(group, feature, names)| {
        names.iter().map(move |name| later(group, name, Kind::Bool, "true", EITHER, feature))
    })
}
