//! The agent's configuration: every option as the type that the agent works with.

mod checks;
mod kvstore;
mod parts;
mod reader;
mod routing;

pub use kvstore::Kvstore;
pub use parts::{
    Aggregation, AllowDhcp, AllowLocalhost, Api, AttachMode, Conntrack, Datapath, Endpoints, Enforcement,
    Export, Family, Identity, Log, Masquerade, Monitor, Node, Paths, Policy, TcpFlags,
};
pub use routing::Routing;

use crate::{
    finding::{Error, Finding, Report, Severity},
    resolve::{self, Setting},
    source::{Origin, Sources},
};
use ipnet::{Ipv4Net, Ipv6Net};
use std::{collections::BTreeMap, path::Path};

/// What the agent was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directories and mount points.
    pub paths: Paths,
    /// This node and its cluster.
    pub node: Node,
    /// IPv4 of endpoints.
    pub ipv4: Family<Ipv4Net>,
    /// IPv6 of endpoints.
    pub ipv6: Family<Ipv6Net>,
    /// Where and how endpoints are masqueraded.
    pub masquerade: Masquerade,
    /// How packets reach endpoints of other nodes.
    pub routing: Routing,
    /// Hooks and sizes of maps.
    pub datapath: Datapath,
    /// Lifetimes of flows, sizes of their tables, their collection.
    pub conntrack: Conntrack,
    /// Enforcement and sources of policy.
    pub policy: Policy,
    /// From labels to identities.
    pub identity: Identity,
    /// The store that nodes share.
    pub kvstore: Kvstore,
    /// Taking over endpoints.
    pub endpoints: Endpoints,
    /// Events.
    pub monitor: Monitor,
    /// The file of flows.
    pub export: Export,
    /// The REST API's socket.
    pub api: Api,
    /// The log.
    pub log: Log,
    /// What the operator should know although the agent starts: shown in the log and in `villus status`.
    pub warnings: Vec<Finding>,
    settings: BTreeMap<&'static str, Setting>,
}

// === impl Config ===

impl Config {
    /// Reads all sources and resolves them.
    ///
    /// # Errors
    /// [`Error::Rejected`] with every setting that is wrong, each with source, value, reason and fix.
    pub fn load(sources: Sources) -> Result<Self, Error> {
        let (config, report) = build(sources, None);
        if report.is_ok() { Ok(config) } else { Err(Error::Rejected(Box::new(report))) }
    }

    /// Everything that is to be said about a set of sources, without refusing it.
    #[must_use]
    pub fn check(sources: Sources) -> Report {
        build(sources, None).1
    }

    /// Everything that is to be said about a directory with one file per option, as `villus config check`
    /// does: neither flags nor environment have a part in it.
    #[must_use]
    pub fn check_dir(path: &Path) -> Report {
        build(Sources::new().dir(path), Some(path.display().to_string())).1
    }

    /// Everything that is to be said about a YAML file.
    #[must_use]
    pub fn check_file(path: &Path) -> Report {
        build(Sources::new().file(path), Some(path.display().to_string())).1
    }

    /// A machine without endpoints has nothing to masquerade, and no tunnel leads to it.
    fn be_host_only(&mut self) {
        self.routing.tunnel = false;
        self.masquerade = Masquerade { bpf: false, list: None, ..self.masquerade.clone() };
        (self.ipv4.masquerade, self.ipv6.masquerade) = (false, false);
        (self.ipv4.range, self.ipv6.range) = (None, None);
    }

    /// All options with their values and origins, by name; defaults included.
    pub fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.settings.values()
    }

    /// The value and origin of one option, by its current name.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    /// A table of options with values and origins: those that some source sets, or with `all` also the
    /// defaults of options that work.
    #[must_use]
    pub fn table(&self, all: bool) -> String {
        let wanted = |s: &&Setting| {
            s.origin != Origin::Default || (all && matches!(s.support, "served" | "kept" | "command"))
        };
        let rows: Vec<[String; 3]> = std::iter::once(["OPTION", "VALUE", "SOURCE"].map(Into::into))
            .chain(
                self.settings()
                    .filter(wanted)
                    .map(|s| [s.name.to_string(), s.value.to_string(), s.origin.to_string()]),
            )
            .collect();
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0).max(5) + 3;
        let (first, second) = (width(0), width(1));
        rows.iter().map(|[name, value, from]| format!("{name:first$}{value:second$}{from}\n")).collect()
    }
}

impl Default for Config {
    /// The configuration without any source.
    fn default() -> Self {
        build(Sources::new(), None).0
    }
}

/// A configuration and what is to be said about it. Where a value is wrong its default stands in, and the
/// report has an error.
fn build(sources: Sources, subject: Option<String>) -> (Config, Report) {
    let (raws, findings) = sources.read();
    let resolved = resolve::resolve(raws, findings);
    let mut findings = resolved.findings;
    let mut reader = reader::Reader::new(&resolved.settings);
    let mut config = Config {
        paths: Paths::read(&mut reader),
        node: Node::read(&mut reader),
        ipv4: Family::<Ipv4Net>::read(&mut reader),
        ipv6: Family::<Ipv6Net>::read(&mut reader),
        masquerade: Masquerade::read(&mut reader),
        routing: Routing::read(&mut reader),
        datapath: Datapath::read(&mut reader),
        conntrack: Conntrack::read(&mut reader),
        policy: Policy::read(&mut reader),
        identity: Identity::read(&mut reader),
        kvstore: Kvstore::read(&mut reader),
        endpoints: Endpoints::read(&mut reader),
        monitor: Monitor::read(&mut reader),
        export: Export::read(&mut reader),
        api: Api::read(&mut reader),
        log: Log::read(&mut reader),
        warnings: Vec::new(),
        settings: BTreeMap::new(),
    };
    findings.extend(reader.into_findings());
    config.settings = resolved.settings;
    findings.extend(checks::labels(&mut config));
    findings.extend(checks::across(&config));
    if config.policy.host_only {
        config.be_host_only();
    }
    findings.sort_by(|a, b| (a.severity, &a.option, &a.reason).cmp(&(b.severity, &b.option, &b.reason)));
    config.warnings = findings.iter().filter(|f| f.severity != Severity::Error).cloned().collect();
    let settings = config.settings().filter(|s| s.origin != Origin::Default).cloned().collect();
    (config, Report { subject, findings, settings })
}
