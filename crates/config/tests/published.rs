//! The directory of options that Trip.com published for agents run by docker-compose starts unchanged.

use std::path::{Path, PathBuf};
use villus_config::{Config, Severity, Sources, config::Aggregation};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/compose")
}

#[test]
fn it_starts_and_means_what_it_says() {
    let config = Config::load(Sources::new().dir(dir())).unwrap();
    assert!(config.ipv4.enabled);
    assert!(!config.ipv6.enabled);
    assert!(!config.ipv4.masquerade);
    assert_eq!(config.conntrack.tcp_max, Some(524_288));
    assert_eq!(config.conntrack.any_max, Some(262_144));
    assert_eq!(config.monitor.aggregation, Aggregation::None);
    assert_eq!(config.node.cluster_name, "default");
    assert_eq!(config.api.metrics.as_deref(), Some("10.3.9.10:9090"));
    assert_eq!(config.setting("routing-mode").unwrap().value.to_string(), "native");
    assert!(config.kvstore.etcd && config.kvstore.options.contains_key("etcd.config"));
    assert_eq!(config.kvstore.lease_ttl.as_secs(), 86_400);
}

#[test]
fn all_that_it_warns_of() {
    let report = Config::check_dir(&dir());
    assert!(report.is_ok(), "{report}");
    let said: Vec<String> =
        report.findings.iter().map(|f| format!("{} {}: {}", f.severity, f.option, f.reason)).collect();
    let want = [
        "warning clean-cilium-bpf-state: changes nothing: the agent never deletes its own state; `villus cleanup` does",
        "warning clean-cilium-state: changes nothing: the agent never deletes its own state; `villus cleanup` does",
        "warning custom-cni-conf: changes nothing: read by Cilium's installation scripts, not by an agent",
        "warning enable-legacy-services: changes nothing: retired in Cilium",
        "warning flannel-manage-existing-containers: changes nothing: Villus does not run on top of flannel",
        "warning flannel-uninstall-on-exit: changes nothing: Villus does not run on top of flannel",
        "warning k8s-kubeconfig-path: Kubernetes is not supported by this version: policies come from \
         static-cnp-path and the API, endpoints from the API",
        "warning preallocate-bpf-maps: changes nothing: Villus never allocates map entries beforehand, except \
         where a lookup must not fail",
        "warning prometheus-serve-addr: this version serves no metrics over HTTP: nothing listens there",
        "warning sidecar-istio-proxy-image: changes nothing: Villus has no sidecar proxies",
        "warning tofqdns-enable-poller: changes nothing: retired in Cilium 1.9: names are to be learnt by a DNS \
         proxy, not by polling",
        "warning wait-bpf-mount: changes nothing: read by Cilium's installation scripts, not by an agent",
        "note masquerade: older name of enable-ipv4-masquerade",
        "note tunnel: older option, read as routing-mode=native",
    ];
    assert_eq!(said, want);
    for finding in &report.findings {
        assert!(!finding.fix.is_empty());
        assert!(finding.origin.to_string().ends_with(&finding.option), "{finding}");
    }
}

#[test]
fn the_placeholder_that_a_script_replaces_starts_too() {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(copy.path().join("prometheus-serve-addr"), "CHANGE_ME_NODE_IP:9090\n").unwrap();
    let report = Config::check_dir(copy.path());
    assert!(report.is_ok(), "{report}");
    std::fs::write(copy.path().join("identity-allocation-mode"), "crd\n").unwrap();
    let report = Config::check_dir(copy.path());
    assert_eq!(report.errors().next().unwrap().option, "identity-allocation-mode", "{report}");
}

#[test]
fn the_options_of_the_talk_start() {
    let flags = [
        ("allocator-list-timeout", "3h"),
        ("kvstore-lease-ttl", "86400s"),
        ("k8s-sync-timeout", "600s"),
        ("k8s-heartbeat-timeout", "60s"),
        ("kvstore-max-consecutive-quorum-errors", "5"),
        ("keep-config", "true"),
        ("cluster-id", "238"),
        ("cluster-name", "cluster1"),
        ("identity-allocation-mode", "kvstore"),
        ("api-rate-limit", "endpoint-create=rate-limit:10/m,rate-burst:2"),
        ("sockops-enable", "true"),
        ("bpf-lb-sock-hostns-only", "true"),
        ("disable-cnp-status-updates", "true"),
        ("log-driver", "syslog"),
        ("log-opt", r#"{"syslog.level":"info","syslog.facility":"local5","syslog.tag":"cilium-agent"}"#),
        ("policy-audit-mode", "true"),
        (
            "labels",
            "reserved:.* k8s:!io.cilium.k8s.namespace.labels.* k8s:io.cilium.k8s.policy k8s:com.trip/appid \
             k8s:com.trip/redis-cluster-name",
        ),
    ];
    let sources = flags.iter().fold(Sources::new(), |s, (name, text)| s.flag(name, text));
    let config = Config::load(sources).unwrap();
    assert_eq!(config.node.cluster_id, 238);
    assert!(config.log.syslog && config.policy.audit && config.endpoints.keep_config);
    assert!(config.identity.labels.ends_with("redis-cluster-name"));
    assert_eq!(config.setting("kvstore-lease-ttl").unwrap().value.to_string(), "24h0m0s");
    assert!(config.warnings.iter().all(|w| w.severity == Severity::Warning));
}

#[test]
fn hubble_is_refused_until_it_is_there() {
    let report = Config::check(Sources::new().flag("enable-hubble", "true"));
    let error = report.errors().next().unwrap();
    assert_eq!(
        error.to_string(),
        "--enable-hubble: enable-hubble=true: not supported yet: Hubble (remove the flag --enable-hubble, or set \
         it to false)"
    );
}
