//! Options that adjust what this version does not have yet. Values are checked, so that a directory which
//! passes today holds no surprise for the version that brings the feature.

use crate::kind::{Kind, int, secs_or_zero};
use crate::spec::{Group, OptionSpec, Support};

const B: Kind = Kind::Bool;
const N: Kind = int(0, u32::MAX as u64);
const PORT: Kind = int(0, 65_535);
const D: Kind = secs_or_zero("off");
const T: Kind = Kind::Text;
const L: Kind = Kind::List;
const F: Kind = Kind::Float;
const P: Kind = Kind::Path { empty: true };

type Row = (&'static str, Kind, &'static str);

const ETCD: &[Row] = &[("enable-k8s-event-handover", B, "false")];

const MESH: &[Row] = &[
    ("clustermesh-sync-timeout", D, "1m"),
    ("clustermesh-cache-ttl", D, "0"),
    ("clustermesh-default-global-namespace", B, "true"),
    ("clustermesh-mcs-api-install-crds", B, "true"),
];

const KUBERNETES: &[Row] = &[
    ("agent-not-ready-taint-key", T, "node.cilium.io/agent-not-ready"),
    ("annotate-k8s-node", B, "false"),
    ("cni-chaining-target", T, ""),
    ("cni-external-routing", B, "false"),
    ("cni-log-file", T, "/var/run/cilium/cilium-cni.log"),
    ("cni-uninstall", B, "false"),
    ("crd-wait-timeout", D, "5m"),
    ("disable-cnp-status-updates", B, "false"),
    ("disable-endpoint-crd", B, "false"),
    ("enable-cilium-endpoint-slice", B, "false"),
    ("enable-k8s-api-discovery", B, "false"),
    ("enable-k8s-cluster-network-policy", B, "false"),
    ("enable-route-mtu-for-cni-chaining", B, "false"),
    ("enable-stale-cilium-endpoint-cleanup", B, "true"),
    ("endpoint-status", L, ""),
    ("exclude-node-label-patterns", L, ""),
    ("k8s-client-burst", N, "20"),
    ("k8s-client-connection-keep-alive", D, "30s"),
    ("k8s-client-connection-timeout", D, "30s"),
    ("k8s-client-qps", F, "10"),
    ("k8s-heartbeat-timeout", D, "30s"),
    ("k8s-require-ipv4-pod-cidr", B, "false"),
    ("k8s-require-ipv6-pod-cidr", B, "false"),
    ("k8s-service-proxy-name", T, ""),
    ("k8s-sync-timeout", D, "3m"),
    ("k8s-watcher-endpoint-selector", T, ""),
    ("read-cni-conf", T, ""),
    ("write-cni-conf-when-ready", T, ""),
];

const SERVICES: &[Row] = &[
    ("bpf-ct-timeout-service-any", D, "60s"),
    ("bpf-ct-timeout-service-tcp", D, "2h13m20s"),
    ("bpf-ct-timeout-service-tcp-grace", D, "60s"),
    ("bpf-lb-acceleration", Kind::Choice(&["disabled", "native", "generic", "best-effort"]), "disabled"),
    ("bpf-lb-affinity-map-max", N, "0"),
    ("bpf-lb-algorithm", Kind::Choice(&["random", "maglev"]), "random"),
    ("bpf-lb-algorithm-annotation", B, "false"),
    ("bpf-lb-dev-ip-addr-inherit", T, ""),
    ("bpf-lb-dsr-dispatch", Kind::Choice(&["opt", "ipip", "geneve"]), "opt"),
    ("bpf-lb-dsr-l4-xlate", Kind::Choice(&["frontend", "backend"]), "frontend"),
    ("bpf-lb-ipip-sock-mark", B, "false"),
    ("bpf-lb-maglev-hash-seed", T, "JLfvgnHc2kaSUFaI"),
    ("bpf-lb-maglev-map-max", N, "0"),
    ("bpf-lb-maglev-table-size", N, "16381"),
    ("bpf-lb-map-max", N, "65536"),
    ("bpf-lb-mode", Kind::Choice(&["snat", "dsr", "hybrid", "annotation"]), "snat"),
    ("bpf-lb-mode-annotation", B, "false"),
    ("bpf-lb-rev-nat-map-max", N, "0"),
    ("bpf-lb-rss-ipv4-src-cidr", Kind::Ipv4Cidr, ""),
    ("bpf-lb-rss-ipv6-src-cidr", Kind::Ipv6Cidr, ""),
    ("bpf-lb-service-backend-map-max", N, "0"),
    ("bpf-lb-service-map-max", N, "0"),
    ("bpf-lb-sock-hostns-only", B, "false"),
    ("bpf-lb-source-range-all-types", B, "false"),
    ("bpf-lb-source-range-map-max", N, "0"),
    ("bpf-neigh-global-max", N, "524288"),
    ("bpf-sock-rev-map-max", N, "262144"),
    ("cgroup-root", P, ""),
    ("default-lb-service-ipam", T, "lbipam"),
    ("direct-routing-device", T, ""),
    ("disable-external-ip-mitigation", B, "false"),
    ("enable-active-connection-tracking", B, "false"),
    ("enable-bbr-hostns-only", B, "false"),
    ("enable-dynamic-source-lookup-nodeport", B, "false"),
    ("enable-health-check-loadbalancer-ip", B, "false"),
    ("enable-service-topology", B, "false"),
    ("host-reachable-services-protos", L, "tcp,udp"),
    ("ipv4-service-loopback-address", T, "169.254.42.1"),
    ("ipv4-service-range", T, "auto"),
    ("ipv6-service-range", T, "auto"),
    ("kube-proxy-replacement-healthz-bind-address", Kind::Listen, ""),
    ("lb-pressure-metrics-interval", D, "5m"),
    ("lb-reflector-wait-time", D, "0"),
    ("lb-retry-backoff-max", D, "50ms"),
    ("lb-retry-backoff-min", D, "50ms"),
    ("lb-state-file", T, ""),
    ("lb-state-file-interval", D, "1s"),
    ("lrp-address-matcher-cidrs", Kind::Cidrs, ""),
    ("nat-map-stats-entries", N, "32"),
    ("nat-map-stats-interval", D, "30s"),
    ("node-port-range", L, ""),
    ("nodeport-addresses", Kind::Cidrs, ""),
    ("service-no-backend-response", Kind::Choice(&["reject", "drop"]), "reject"),
    ("loadbalancer-l7", T, ""),
    ("loadbalancer-l7-algorithm", T, ""),
    ("loadbalancer-l7-ports", L, ""),
];

const ROUTING: &[Row] = &[
    ("bgp-config-path", T, "/var/lib/cilium/bgp/config.yaml"),
    ("bgp-router-id-allocation-ip-pool", T, ""),
    ("bgp-router-id-allocation-mode", T, "default"),
    ("bgp-secrets-namespace", T, ""),
    ("egress-gateway-policy-map-max", N, "16384"),
    ("egress-gateway-reconciliation-trigger-interval", D, "1s"),
    ("enable-bgp-control-plane-status-report", B, "true"),
    ("enable-bgp-legacy-origin-attribute", B, "false"),
    ("install-egress-gateway-routes", B, "false"),
    ("l2-announcements-lease-duration", D, "15s"),
    ("l2-announcements-renew-deadline", D, "5s"),
    ("l2-announcements-retry-period", D, "2s"),
    ("l2-pod-announcements-interface", T, ""),
    ("l2-pod-announcements-interface-pattern", T, ""),
    ("srv6-encap-mode", T, "reduced"),
    ("trace-payloadlen-overlay", N, "192"),
    ("tunnel-source-port-range", T, "0-0"),
    ("vtep-cidr", L, ""),
    ("vtep-endpoint", L, ""),
    ("vtep-mac", L, ""),
    ("vtep-mask", T, ""),
    ("vtep-sync-interval", D, "1m"),
];

const ENCRYPTION: &[Row] = &[
    ("enable-ipsec-xfrm-state-caching", B, "true"),
    ("enable-wireguard-userspace-fallback", B, "false"),
    ("encrypt-interface", L, ""),
    ("encryption-strict-mode-allow-remote-node-identities", B, "false"),
    ("encryption-strict-mode-cidr", T, ""),
    ("encryption-strict-egress-allow-remote-node-identities", B, "false"),
    ("encryption-strict-egress-cidr", T, ""),
    ("ipsec-key-file", T, ""),
    ("ipsec-key-rotation-duration", D, "5m"),
    ("ipv4-pod-subnets", Kind::Cidrs, ""),
    ("ipv6-pod-subnets", Kind::Cidrs, ""),
    ("mesh-auth-gc-interval", D, "5m"),
    ("mesh-auth-mutual-connect-timeout", D, "5s"),
    ("mesh-auth-mutual-listener-port", PORT, "0"),
    ("mesh-auth-queue-size", N, "1024"),
    ("mesh-auth-rotated-identities-queue-size", N, "1024"),
    ("mesh-auth-signal-backoff-duration", D, "1s"),
    ("mesh-auth-spiffe-trust-domain", T, "spiffe.cilium"),
    ("mesh-auth-spire-admin-socket", T, ""),
    ("node-encryption-opt-out-labels", T, "node-role.kubernetes.io/control-plane"),
    ("bpf-auth-map-max", N, "524288"),
    ("use-cilium-internal-ip-for-ipsec", B, "false"),
    ("wireguard-persistent-keepalive", D, "0"),
    ("wireguard-track-all-ips-fallback", B, "false"),
    ("ztunnel-ca-type", T, ""),
];

const HUBBLE: &[Row] = &[
    ("enable-hubble-open-metrics", B, "false"),
    ("hubble-drop-events", B, "false"),
    ("hubble-drop-events-interval", D, "2m"),
    ("hubble-drop-events-reasons", L, ""),
    ("hubble-dynamic-metrics-config-path", T, ""),
    ("hubble-event-buffer-capacity", N, "4095"),
    ("hubble-export-aggregation-interval", D, "0"),
    ("hubble-export-allowlist", T, ""),
    ("hubble-export-denylist", T, ""),
    ("hubble-export-fieldaggregate", L, ""),
    ("hubble-export-fieldmask", L, ""),
    ("hubble-flowlogs-config-path", T, ""),
    ("hubble-listen-address", Kind::Listen, ""),
    ("hubble-lost-event-send-interval", D, "1s"),
    ("hubble-metrics", T, ""),
    ("hubble-metrics-server", Kind::Listen, ""),
    ("hubble-metrics-server-enable-tls", B, "false"),
    ("hubble-metrics-server-tls-cert-file", T, ""),
    ("hubble-metrics-server-tls-client-ca-files", L, ""),
    ("hubble-metrics-server-tls-key-file", T, ""),
    ("hubble-monitor-events", L, ""),
    ("hubble-prefer-ipv6", B, "false"),
    ("hubble-recorder-sink-queue-size", N, "1024"),
    ("hubble-recorder-storage-path", T, "/var/run/cilium/pcaps"),
    ("hubble-redact-enabled", B, "false"),
    ("hubble-redact-http-headers-allow", L, ""),
    ("hubble-redact-http-headers-deny", L, ""),
    ("hubble-redact-http-urlquery", B, "false"),
    ("hubble-redact-kafka-apikey", B, "false"),
    ("hubble-socket-path", T, "/var/run/cilium/hubble.sock"),
    ("hubble-tls-cert-file", T, ""),
    ("hubble-tls-client-ca-files", L, ""),
    ("hubble-tls-key-file", T, ""),
];

const PROXY: &[Row] = &[
    ("certificates-directory", T, "/var/run/cilium/certs"),
    ("container-ip-local-reserved-ports", T, "auto"),
    ("disable-envoy-version-check", B, "false"),
    ("dns-max-ips-per-restored-rule", N, "1000"),
    ("dns-policy-unload-on-shutdown", B, "false"),
    ("dnsproxy-concurrency-limit", N, "0"),
    ("dnsproxy-concurrency-processing-grace-period", D, "0"),
    ("dnsproxy-insecure-skip-transparent-mode-check", B, "false"),
    ("dnsproxy-lock-count", N, "131"),
    ("dnsproxy-lock-timeout", D, "500ms"),
    ("dnsproxy-socket-linger-timeout", N, "10"),
    ("envoy-access-log-buffer-size", N, "4096"),
    ("envoy-base-id", N, "0"),
    ("envoy-config-retry-interval", D, "15s"),
    ("envoy-config-timeout", D, "2m"),
    ("envoy-default-log-level", T, ""),
    ("envoy-http-upstream-linger-timeout", T, "-1"),
    ("envoy-keep-cap-netbindservice", B, "false"),
    ("envoy-log", T, ""),
    ("envoy-node-locality-enabled", B, "false"),
    ("envoy-policy-restore-timeout", D, "3m"),
    ("envoy-secrets-namespace", T, ""),
    ("envoy-xds-mode", T, ""),
    ("fqdn-regex-compile-lru-size", N, "1024"),
    ("gateway-api-secrets-namespace", T, ""),
    ("http-idle-timeout", N, "0"),
    ("http-max-grpc-timeout", N, "0"),
    ("http-request-timeout", N, "3600"),
    ("http-retry-count", N, "3"),
    ("http-retry-timeout", N, "0"),
    ("http-stream-idle-timeout", N, "300"),
    ("ingress-secrets-namespace", T, ""),
    ("policy-secrets-namespace", T, "cilium-secrets"),
    ("proxy-admin-port", PORT, "0"),
    ("proxy-cluster-max-connections", N, "1024"),
    ("proxy-cluster-max-pending-requests", N, "1024"),
    ("proxy-cluster-max-requests", N, "1024"),
    ("proxy-connect-timeout", N, "2"),
    ("proxy-gid", N, "1337"),
    ("proxy-idle-timeout-seconds", N, "60"),
    ("proxy-initial-fetch-timeout", N, "30"),
    ("proxy-max-active-downstream-connections", N, "50000"),
    ("proxy-max-concurrent-retries", N, "128"),
    ("proxy-max-connection-duration-seconds", N, "0"),
    ("proxy-max-requests-per-connection", N, "0"),
    ("proxy-portrange-max", PORT, "20000"),
    ("proxy-portrange-min", PORT, "10000"),
    ("proxy-prometheus-port", PORT, "0"),
    ("proxy-xff-num-trusted-hops-egress", N, "0"),
    ("proxy-xff-num-trusted-hops-ingress", N, "0"),
    ("restored-proxy-ports-age-limit", N, "15"),
    ("standalone-dns-proxy-server-port", PORT, "40045"),
    ("tofqdns-dns-reject-response-code", Kind::Choice(&["refused", "nameerror"]), "refused"),
    ("tofqdns-endpoint-max-ip-per-hostname", N, "1000"),
    ("tofqdns-idle-connection-grace-period", D, "0"),
    ("tofqdns-max-deferred-connection-deletes", N, "10000"),
    ("tofqdns-min-ttl", N, "0"),
    ("tofqdns-pre-cache", T, ""),
    ("tofqdns-proxy-port", PORT, "0"),
    ("tofqdns-proxy-response-max-delay", D, "100ms"),
    ("use-full-tls-context", B, "false"),
];

const HEALTH: &[Row] = &[
    ("agent-health-port", PORT, "9879"),
    ("agent-health-require-k8s-connectivity", B, "true"),
    ("cluster-health-port", PORT, "4240"),
    ("connectivity-probe-frequency-ratio", Kind::Ratio, "0.5"),
    ("enable-cilium-health-api-server-access", L, "*"),
    ("health-check-icmp-failure-threshold", N, "3"),
];

const METRICS: &[Row] = &[
    ("bpf-policy-map-pressure-metrics-threshold", Kind::Ratio, "0.1"),
    ("controller-group-metrics", L, ""),
    ("enable-metrics", B, "true"),
    ("metrics", L, ""),
    ("metrics-sampling-interval", D, "5m"),
];

const ACCELERATION: &[Row] = &[
    ("enable-ipv4-big-tcp", B, "false"),
    ("enable-ipv6-big-tcp", B, "false"),
    ("sockops-enable", B, "false"),
];

const MULTI_POOL: &[Row] = &[
    ("ipam-cilium-node-update-rate", D, "15s"),
    ("ipam-default-ip-pool", T, "default"),
    ("ipam-multi-pool-pre-allocation", T, ""),
];

const EVENT_LIMITS: &[Row] = &[
    ("bpf-events-default-burst-limit", N, "0"),
    ("bpf-events-default-rate-limit", N, "0"),
    ("bpf-map-event-buffers", T, ""),
    ("trace-payloadlen", N, "128"),
    ("ip-tracing-option-type", N, "0"),
];

/// Older names of these options.
const ALIASES: &[(&str, &[&str])] = &[
    ("bpf-lb-acceleration", &["node-port-acceleration"]),
    ("bpf-lb-algorithm", &["node-port-algorithm"]),
    ("bpf-lb-mode", &["node-port-mode"]),
    ("clustermesh-sync-timeout", &["clustermesh-ip-identities-sync-timeout"]),
    ("hubble-event-buffer-capacity", &["hubble-flow-buffer-size"]),
];

const TABLES: &[(Group, &str, &[Row])] = &[
    (Group::Kvstore, "events of Kubernetes through the store", ETCD),
    (Group::Kvstore, "ClusterMesh", MESH),
    (Group::Kubernetes, "Kubernetes", KUBERNETES),
    (Group::Services, "services", SERVICES),
    (Group::Routing, "BGP and gateways", ROUTING),
    (Group::Encryption, "encryption", ENCRYPTION),
    (Group::Hubble, "Hubble", HUBBLE),
    (Group::Proxy, "the L7 and DNS proxies", PROXY),
    (Group::Health, "health checks between nodes", HEALTH),
    (Group::Api, "metrics over HTTP", METRICS),
    (Group::Datapath, "acceleration of sockets and big segments", ACCELERATION),
    (Group::Addresses, "pools that others hand out", MULTI_POOL),
    (Group::Monitor, "limits on events", EVENT_LIMITS),
];

pub(super) fn options() -> impl Iterator<Item = OptionSpec> {
    TABLES.iter().flat_map(|&(group, feature, rows)| {
        rows.iter().map(move |&(name, kind, default)| {
            let aliases = ALIASES.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, aliases)| aliases);
            OptionSpec::new(name, kind, default, "")
                .group(group)
                .aliases(aliases)
                .support(Support::Tuning(feature))
        })
    })
}
