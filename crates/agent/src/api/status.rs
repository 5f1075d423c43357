//! How the agent is.

use std::collections::BTreeMap;
use std::time::Instant;

use villus_abi::endpoint::HOST_ID;
use villus_api::model::{
    Feature, IpamStatus, MonitorStatus, ServiceState, State, StatusDetails, StatusResponse, Warning,
};
use villus_datapath::AttachMode;
use villus_flows::{History, LossSource};
use villus_identity::{AddressPool, Family};
use villus_net::{ForeignDrop, HOST_PREFIX, ROUTER_DEVICE, ROUTER_PEER, foreign_drops};
use villus_print::StatusLine;

use super::limit::Seen;
use crate::host_only::Resource;
use crate::node::Node;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Share of a map from which it is called nearly full.
const PRESSURE: f64 = 0.9;

/// Rules of others that drop what endpoints send, asked of other programs.
pub(super) fn foreign() -> Vec<ForeignDrop> {
    let ours = format!("{HOST_PREFIX}*");
    foreign_drops(&[&ours, ROUTER_DEVICE, ROUTER_PEER]).unwrap_or_default()
}

impl Node {
    /// The answer for probes and tools.
    pub(super) fn status(&mut self, brief: bool, history: &History) -> StatusResponse {
        let cilium = self.own_state();
        if brief {
            return StatusResponse { cilium, ..StatusResponse::default() };
        }
        StatusResponse {
            cilium,
            kvstore: Some(self.kvstore()),
            kubernetes: Some(State::default()),
            container_runtime: None,
            ipam: Some(self.ipam()),
            cluster_mesh: self.mesh_status(),
            node_monitor: Some(self.monitor_status(history)),
            attach_mode: self.mode_name().into(),
            stale: BTreeMap::new(),
        }
    }

    fn kvstore(&self) -> State {
        let (state, msg) = self.store_state();
        State { state, msg }
    }

    fn own_state(&self) -> State {
        let problems = self.conditions.iter().count();
        let (state, msg) = if !self.open {
            (
                ServiceState::Failure,
                "not every configured source of policies was read yet; no first packet passes".into(),
            )
        } else if problems > 0 {
            let (name, condition) = self
                .conditions
                .iter()
                .next()
                .map(|(n, c)| (n.as_str(), c.message.as_str()))
                .unwrap_or_default();
            (ServiceState::Warning, format!("{problems} conditions, the first: {name}: {condition}"))
        } else {
            (ServiceState::Ok, VERSION.to_owned())
        };
        State { state, msg }
    }

    fn mode_name(&self) -> &'static str {
        match self.kernel.mode {
            AttachMode::Tcx => "tcx",
            AttachMode::Tc => "tc",
        }
    }

    fn monitor_status(&self, history: &History) -> MonitorStatus {
        let pagesize = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        MonitorStatus {
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            npages: self.kernel.maps.events.info().entries / pagesize.max(1),
            pagesize,
            lost: history.lost(LossSource::KernelRing),
            unknown: 0,
        }
    }

    fn ipam(&self) -> IpamStatus {
        let of = |v4: bool| -> Vec<String> {
            self.pool.in_use().filter(|(ip, _)| ip.is_ipv4() == v4).map(|(ip, _)| ip.to_string()).collect()
        };
        IpamStatus {
            allocations: self.pool.in_use().map(|(ip, owner)| (ip.to_string(), owner.to_owned())).collect(),
            ipv4: of(true),
            ipv6: of(false),
            status: pool_text(&self.pool),
        }
    }

    /// All that `villus status --verbose` prints.
    pub(super) fn status_details(
        &mut self,
        history: &History,
        foreign: Vec<ForeignDrop>,
        limits: &[Seen],
    ) -> StatusDetails {
        self.read_journal();
        StatusDetails {
            version: VERSION.to_owned(),
            uptime: self.started.elapsed().as_secs(),
            lines: self.lines(history, limits),
            warnings: self.status_warnings(foreign),
            features: self.features(),
        }
    }

    fn lines(&self, history: &History, limits: &[Seen]) -> Vec<StatusLine> {
        let own = self.own_state();
        let word = |state| match state {
            ServiceState::Ok => "Ok",
            ServiceState::Warning => "Warning",
            ServiceState::Failure => "Failure",
            ServiceState::Disabled => "Disabled",
        };
        let (state, store) = (word(own.state), self.kvstore());
        let monitor = self.monitor_status(history);
        let live = self.endpoints.values().filter(|e| e.is_live()).count();
        let waiting = self.endpoints.values().filter(|e| e.pending_until.is_some()).count();
        let failing = self.conditions.iter().count();
        let controllers = CONTROLLERS + self.endpoints.len();
        let line = |label: &str, state: String, message: String| StatusLine::new(label, state, message);
        let mesh = self.mesh_lines().map(|(head, lines)| line("ClusterMesh", head, lines));
        let mut all = vec![
            line("KVStore", word(store.state).into(), store.msg),
            line("Kubernetes", "Disabled".into(), String::new()),
            line("Cilium", state.into(), own.msg),
            line(
                "NodeMonitor",
                format!(
                    "Listening for events on {} CPUs with {}x{} of shared memory",
                    monitor.cpus, monitor.npages, monitor.pagesize
                ),
                if monitor.lost > 0 { format!("{} events lost", monitor.lost) } else { String::new() },
            ),
            line(
                "IPAM",
                if self.config.policy.host_only { "Disabled".into() } else { pool_text(&self.pool) },
                String::new(),
            ),
            line(
                "Endpoints",
                format!("{live} ready"),
                if waiting > 0 { format!("{waiting} wait to be created again") } else { String::new() },
            ),
            line(
                "Policies",
                format!("revision {}", self.repository.revision()),
                format!("{} objects", self.repository.policies().count()),
            ),
            line("Routing", "Network: Native".into(), format!("Host: {}", self.uplinks_text())),
            line("Attach Mode", self.mode_name().to_uppercase(), String::new()),
            line("Masquerading", self.masquerading(), self.masqueraded()),
            limits_line(limits),
            line(
                "Controller Status",
                format!("{}/{controllers} healthy", controllers.saturating_sub(failing)),
                self.condition_lines(),
            ),
            line(
                "Reconciliation",
                format!("{} entries repaired", self.counts.repaired),
                format!(
                    "{} comparisons, {} flows cut after changes of policy",
                    self.counts.compared, self.counts.cut_flows
                ),
            ),
            line(
                "BPF Maps",
                format!(
                    "dynamic sizing: {}",
                    if self.config.datapath.map_size_ratio > 0.0 { "on" } else { "off" }
                ),
                self.pressure_lines(),
            ),
        ];
        all.splice(1..1, mesh);
        all.splice(0..0, self.resource_text().map(|(head, labels)| line("Host Only", head, labels)));
        all
    }

    /// Who this machine is, where it is host-only.
    fn resource_text(&self) -> Option<(String, String)> {
        let host = self.endpoints.get(&HOST_ID).filter(|_| self.config.policy.host_only)?;
        let head = match self.resource() {
            Resource::Is(identity, _) => format!("external resource, identity {identity}"),
            Resource::Awaited => "the store is waited for".to_owned(),
            Resource::Nobody => "no external resource".to_owned(),
        };
        Some((head, host.labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
    }

    fn uplinks_text(&self) -> String {
        let names: Vec<&str> = self.network.uplinks.used.iter().map(|uplink| uplink.name.as_str()).collect();
        if names.is_empty() { "no uplink".into() } else { format!("uplinks {}", names.join(", ")) }
    }

    fn masquerading(&self) -> String {
        let family = |on: bool, enabled: bool| match (enabled, on) {
            (false, _) => "Disabled",
            (true, true) if self.kernel.masquerades() => "BPF",
            (true, true) => "nftables",
            (true, false) => "off",
        };
        let (v4, v6) = (&self.config.ipv4, &self.config.ipv6);
        format!("IPv4: {}, IPv6: {}", family(v4.masquerade, v4.enabled), family(v6.masquerade, v6.enabled))
    }

    /// What our programs masquerade with, and how much of it there is.
    fn masqueraded(&self) -> String {
        let list = match self.config.masquerade.list.as_ref().filter(|_| self.network.masquerading.is_some())
        {
            None => String::new(),
            Some(path) => format!(", exceptions of {}", path.display()),
        };
        if !self.kernel.masquerades() {
            return list.trim_start_matches(", ").to_owned();
        }
        let entries = self.kernel.mappings.list().map_or(0, |entries| entries.len());
        let used = &self.network.uplinks.used;
        let others: Vec<&str> = used
            .iter()
            .filter(|uplink| !self.nat.lending.contains(&uplink.index))
            .map(|uplink| uplink.name.as_str())
            .collect();
        let others = if others.is_empty() { String::new() } else { format!(" ({} too)", others.join(", ")) };
        format!(
            "{}, {entries} entries{list}; nftables on devices without our programs{others}",
            self.uplinks_text()
        )
    }

    fn condition_lines(&self) -> String {
        let lines: Vec<String> = self
            .conditions
            .iter()
            .map(|(name, c)| format!("{name}: {} (since {}, seen {} times)", c.message, c.since, c.failures))
            .collect();
        lines.join("\n")
    }

    /// Endpoints' policy maps that are nearly full.
    fn pressure_lines(&self) -> String {
        let full = self.endpoints.values().filter(|e| {
            let most = f64::from(self.config.datapath.policy_map_max);
            f64::from(e.size.0) >= most * PRESSURE
        });
        let lines: Vec<String> = full
            .map(|e| {
                format!(
                    "policy of endpoint {}: {} of at most {} entries",
                    e.id(),
                    e.size.0,
                    self.config.datapath.policy_map_max
                )
            })
            .collect();
        lines.join("\n")
    }

    fn status_warnings(&self, foreign: Vec<ForeignDrop>) -> Vec<Warning> {
        let plain = |message: String| Warning { message, mend: String::new() };
        let mut warnings: Vec<Warning> =
            self.conditions.iter().map(|(name, c)| plain(format!("{name}: {}", c.message))).collect();
        warnings.extend(foreign.into_iter().map(|drop| Warning {
            message: format!("{} drops what endpoints send: {}", drop.place, drop.what),
            mend: drop.mend.join("\n  "),
        }));
        let kept_aside = self.state.damaged().into_iter().map(|path| path.display().to_string());
        // Since this start a condition says what was wrong with it.
        let earlier =
            kept_aside.filter(|path| !self.conditions.iter().any(|(_, c)| c.message.contains(path)));
        warnings.extend(
            earlier
                .map(|path| plain(format!("a file of state could not be read and was kept aside: {path}"))),
        );
        warnings.extend(self.config.warnings.iter().map(|finding| plain(finding.to_string())));
        for (path, file) in &self.sources.files {
            warnings.extend(file.warnings.iter().map(|w| plain(format!("{}: {w}", path.display()))));
        }
        for (device, reason) in
            self.network.uplinks.unmatched.iter().map(|name| (name, "no usable device has this name"))
        {
            warnings.push(plain(format!("devices: {device}: {reason}")));
        }
        warnings
    }

    fn features(&self) -> Vec<Feature> {
        let tc = self.kernel.mode == AttachMode::Tc;
        let list = self.kernel.features.list.iter();
        list.map(|feature| {
            let unwanted = (feature.name == "tcx" && tc).then(|| "attach-mode is tc".to_owned());
            let missing = feature.missing.clone().or(unwanted);
            Feature {
                name: feature.name.to_owned(),
                used: missing.is_none(),
                reason: missing.unwrap_or_else(|| feature.purpose.to_owned()),
            }
        })
        .collect()
    }
}

/// The limits of calls that an option sets or that have refused one; the others are the usual ones.
fn limits_line(limits: &[Seen]) -> StatusLine {
    let telling = limits.iter().filter(|seen| seen.limit.is_set || seen.refused() > 0);
    let lines: Vec<String> = telling
        .map(|seen| {
            let rate = seen.rate.map_or("any rate".to_owned(), |rate| {
                format!("{rate:.3}/s after a burst of {:.0}", seen.burst.max(1.0))
            });
            let parallel = seen
                .parallel
                .map_or("any number at once".to_owned(), |parallel| format!("{parallel} at once"));
            let (call, refused) = (seen.limit.call, seen.refused());
            format!("{call}: {rate}, {parallel}, {} under way, {refused} refused", seen.in_flight)
        })
        .collect();
    if lines.is_empty() {
        return StatusLine::new("API Limits", "usual", "");
    }
    StatusLine::new("API Limits", "", lines.join("\n"))
}

/// Tasks that the agent has beside one for each endpoint.
const CONTROLLERS: usize = 8;

fn pool_text(pool: &AddressPool) -> String {
    let texts: Vec<String> = pool
        .families()
        .filter_map(|family: Family| {
            let of = pool.family(family).ok()?;
            let usage = of.usage(Instant::now());
            Some(format!(
                "{}: {}/{} allocated from {}",
                family.name(),
                usage.in_use,
                usage.total,
                of.prefix()
            ))
        })
        .collect();
    texts.join(", ")
}
