//! What no option shows by itself: values that don't fit together.

use super::{Aggregation, Config};
use villus_labels::{LabelFilter, NumericIdentity};

use crate::{
    duration,
    finding::{Finding, Severity},
    label_file,
    source::Origin,
    suggest,
};

/// Keys of `log-opt`.
const LOG_KEYS: [&str; 8] = [
    "level",
    "format",
    "syslog.level",
    "syslog.network",
    "syslog.address",
    "syslog.severity",
    "syslog.facility",
    "syslog.tag",
];
const LOG_LEVELS: [&str; 9] =
    ["trace", "debug", "info", "notice", "warn", "warning", "error", "fatal", "panic"];
const LOG_FORMATS: [&str; 4] = ["text", "text-ts", "json", "json-ts"];

/// What only endpoints need.
const OF_ENDPOINTS: [&str; 5] =
    ["ipv4-range", "ipv6-range", "routing-mode", "enable-bpf-masquerade", "enable-ip-masq-agent"];

/// All findings about values that contradict each other.
pub(super) fn across(config: &Config) -> Vec<Finding> {
    let mut out = Checks { config, findings: Vec::new() };
    out.families();
    out.routing();
    out.host_only();
    out.cluster();
    out.fixed_identities();
    out.store();
    out.node_name();
    out.collection();
    out.restart();
    out.socket();
    out.aggregation();
    out.log();
    out.findings
}

/// Reads the file of label rules and checks these and the option's.
pub(super) fn labels(config: &mut Config) -> Vec<Finding> {
    let read = config.identity.label_prefix_file.as_deref().map(label_file::read).transpose();
    let rules = LabelFilter::parse(&config.identity.labels);
    let mut out = Checks { config, findings: Vec::new() };
    if let Err(error) = &rules {
        out.say(Severity::Error, "labels", error.to_string(), "mend the rule, or leave it out");
    }
    if let Err(reason) = &read {
        let fix = "mend the file, or leave the option out";
        out.say(Severity::Error, "label-prefix-file", reason.clone(), fix);
    }
    let findings = out.findings;
    if let Ok(Some(file)) = read {
        config.identity.label_rules = format!("{file} {}", config.identity.labels);
    }
    findings
}

struct Checks<'a> {
    config: &'a Config,
    findings: Vec<Finding>,
}

impl Checks<'_> {
    fn say(&mut self, severity: Severity, option: &str, reason: impl Into<String>, fix: impl Into<String>) {
        let Some(setting) = self.config.setting(option) else { return };
        self.findings.push(Finding {
            severity,
            option: setting.spelled.clone().unwrap_or_else(|| option.to_string()),
            value: Some(setting.value.to_string()),
            origin: setting.origin.clone(),
            reason: reason.into(),
            fix: fix.into(),
        });
    }

    fn families(&mut self) {
        if !self.config.ipv4.enabled && !self.config.ipv6.enabled {
            let reason = "enable-ipv6 is false too: endpoints would have no addresses";
            self.say(Severity::Error, "enable-ipv4", reason, "enable one of them");
        }
    }

    fn routing(&mut self) {
        let routing = &self.config.routing;
        if routing.tunnel && routing.direct_routes {
            let reason = "packets to other nodes take the tunnel (routing-mode)";
            self.say(Severity::Error, "auto-direct-node-routes", reason, "set one of them only");
        } else if routing.skip_unreachable && !routing.direct_routes {
            let reason = "has no effect without auto-direct-node-routes";
            self.say(Severity::Warning, "direct-routing-skip-unreachable", reason, "set both or none");
        }
        let (masquerade, v4, v6) = (&self.config.masquerade, &self.config.ipv4, &self.config.ipv6);
        if v4.masquerade || v6.masquerade {
            return;
        }
        let without_effect = [
            ("enable-bpf-masquerade", masquerade.bpf && self.is_set("enable-bpf-masquerade")),
            ("enable-ip-masq-agent", masquerade.list.is_some()),
        ];
        for (option, _) in without_effect.into_iter().filter(|(_, is_so)| *is_so) {
            let reason = "has no effect where neither family is masqueraded";
            let fix = "set enable-ipv4-masquerade or enable-ipv6-masquerade";
            self.say(Severity::Warning, option, reason, fix);
        }
    }

    fn is_set(&self, option: &str) -> bool {
        self.config.setting(option).is_some_and(|setting| setting.origin != Origin::Default)
    }

    fn host_only(&mut self) {
        if !self.config.policy.host_only {
            return;
        }
        for option in OF_ENDPOINTS {
            if self.is_set(option) {
                let reason = "has no effect with host-only: there are no endpoints";
                self.say(Severity::Warning, option, reason, "leave one of them out");
            }
        }
    }

    fn cluster(&mut self) {
        let node = &self.config.node;
        let (id, max) = (node.cluster_id, node.max_connected_clusters);
        if id > max {
            let fix =
                format!("choose an id from 1 to {max}, or set max-connected-clusters to 511 everywhere");
            self.say(Severity::Error, "cluster-id", format!("above max-connected-clusters, {max}"), fix);
        }
        if id != 0 && node.cluster_name == "default" {
            let reason = "a cluster with an id should have a name of its own; it is called default";
            self.say(Severity::Warning, "cluster-id", reason, "set cluster-name");
        }
    }

    fn fixed_identities(&mut self) {
        let range = NumericIdentity::USER_RESERVED_MIN.0..NumericIdentity::ALLOCATED_MIN.0;
        let is_good = |number: &String| number.parse().is_ok_and(|number| range.contains(&number));
        let bad: Vec<&String> = self.config.identity.fixed.keys().filter(|number| !is_good(number)).collect();
        if let Some(number) = bad.first() {
            let reason = format!("{number} is no number from {} to {}", range.start, range.end - 1);
            self.say(Severity::Error, "fixed-identity-mapping", reason, "write NUMBER=NAME: 128=kv-store");
        }
    }

    fn store(&mut self) {
        let kvstore = &self.config.kvstore;
        let named = ["etcd.address", "etcd.config"].iter().any(|key| kvstore.options.contains_key(*key));
        if kvstore.etcd && !named {
            let fix = r#"set kvstore-opt to {"etcd.config": "/etc/villus/etcd.yaml"}, or to an etcd.address"#;
            self.say(Severity::Error, "kvstore", "kvstore-opt does not say where etcd is", fix);
        }
        if !kvstore.etcd && kvstore.mesh.is_some() {
            let reason = "has no effect: a node with a store of its own connects to no other cluster";
            self.say(Severity::Warning, "clustermesh-config", reason, "set kvstore to etcd, or leave it out");
        }
        if kvstore.etcd && kvstore.mesh.is_some() && self.config.node.cluster_id == 0 {
            let reason = "other clusters refuse one without an id, whose identities could be any cluster's";
            self.say(
                Severity::Warning,
                "cluster-id",
                reason,
                "give each cluster of the mesh an id of its own",
            );
        }
        if !kvstore.etcd && !kvstore.options.is_empty() {
            let reason = "has no effect: this node has a store of its own";
            self.say(Severity::Warning, "kvstore-opt", reason, "set kvstore to etcd, or leave it out");
        }
    }

    fn node_name(&mut self) {
        let Some(name) = &self.config.node.name else { return };
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.len() > 253 || name.contains(odd) {
            let reason = "a node's name has at most 253 characters, no space and no slash";
            self.say(Severity::Error, "node-name", reason, "choose such a name, or leave it out");
        }
    }

    fn collection(&mut self) {
        let ct = &self.config.conntrack;
        let max = ct.gc_max_interval;
        if ct.gc_interval.is_some_and(|interval| interval > max) {
            let reason = format!(
                "longer than conntrack-gc-max-interval, {}: it has the last word",
                duration::format(max)
            );
            self.say(Severity::Warning, "conntrack-gc-interval", reason, "lower it, or raise the other");
        }
    }

    fn restart(&mut self) {
        if self.config.endpoints.keep_config && !self.config.endpoints.restore {
            let reason = "has no effect with restore=false: no endpoint is taken over";
            self.say(Severity::Warning, "keep-config", reason, "leave one of them out");
        }
    }

    fn socket(&mut self) {
        if self.config.api.socket.as_os_str().len() > 107 {
            let reason = "too long for a socket in it: the kernel takes at most 107 bytes";
            self.say(Severity::Error, "state-dir", reason, "shorten it, or set socket-path");
        }
    }

    fn aggregation(&mut self) {
        let Some(text) = self.config.setting("monitor-aggregation").map(|s| s.value.to_string()) else {
            return;
        };
        if matches!(text.as_str(), "lowest" | "low" | "max" | "maximum") {
            let (word, effect) = match self.config.monitor.aggregation {
                Aggregation::None => ("none", "more events, none is lost"),
                Aggregation::Medium => ("medium", "the nearest level that Villus has"),
            };
            self.say(
                Severity::Note,
                "monitor-aggregation",
                format!("read as {word}: {effect}"),
                format!("write {word}"),
            );
        }
    }

    fn log(&mut self) {
        let log = &self.config.log;
        for (key, value) in &log.options {
            let allowed: &[&str] = match key.as_str() {
                "level" | "syslog.level" => &LOG_LEVELS,
                "format" => &LOG_FORMATS,
                key if LOG_KEYS.contains(&key) => continue,
                key => {
                    let fix = suggest::nearest(key, LOG_KEYS).map_or_else(
                        || format!("known are {}", LOG_KEYS.join(", ")),
                        |n| format!("did you mean {n}?"),
                    );
                    self.say(Severity::Error, "log-opt", format!("'{key}' is no setting of the log"), fix);
                    continue;
                }
            };
            if !allowed.contains(&value.to_ascii_lowercase().as_str()) {
                let reason = format!("'{value}' is no {key}");
                self.say(Severity::Error, "log-opt", reason, format!("write one of {}", allowed.join(", ")));
            }
        }
        if !log.syslog && log.options.keys().any(|k| k.starts_with("syslog.")) {
            let reason = "settings of syslog have no effect without log-driver=syslog";
            self.say(Severity::Warning, "log-opt", reason, "set log-driver to syslog");
        }
    }
}
