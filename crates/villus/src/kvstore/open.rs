//! Which store: from the command line, the environment, the agent's directory or file, or the agent itself.

use std::{collections::BTreeMap, future::Future, ops::RangeInclusive, path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::Value as Json;
use tokio::runtime::Runtime;
use villus_certs::Found;
use villus_config::{Config, Report, Severity, Sources, Value};
use villus_kvstore::{Etcd, EtcdOptions, Store, StoreError, keys::CLUSTER_CONFIG};
use villus_labels::MaxConnectedClusters;

use crate::{connect::Host, failure::Failure};

/// Options that count; all others of a directory or file are not looked at.
const WANTED: [&str; 13] = [
    "kvstore",
    "kvstore-address-space",
    "kvstore-opt",
    "labels",
    "label-prefix-file",
    "cluster-id",
    "cluster-name",
    "max-connected-clusters",
    "identity-gc-interval",
    "identity-gc-grace",
    "identity-gc-rate-interval",
    "identity-gc-rate-limit",
    "operator-prometheus-serve-addr",
];

/// The name of a cluster that nobody named.
const DEFAULT_CLUSTER: &str = "default";

/// The store, as the agent is told about it. Without any of these the agent of this node is asked.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Kind of the store: etcd.
    #[arg(long, value_name = "KIND", help_heading = "Store")]
    kvstore: Option<String>,
    /// Settings of the store: etcd.address=URL,URL or etcd.config=FILE, and others.
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Store")]
    kvstore_opt: Vec<String>,
    /// Directory with one file per option, as given to the agent [env: VILLUS_CONFIG_DIR].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, help_heading = "Store")]
    config_dir: Option<String>,
    /// YAML file of options, as given to the agent [env: VILLUS_CONFIG].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "Store")]
    config: Option<String>,
}

/// The store, with what commands need to talk to it.
pub struct Shared {
    runtime: Runtime,
    pub store: Arc<dyn Store>,
    /// Its members, for the journal.
    pub endpoints: String,
    /// The certificate that is shown to it.
    certificate: Option<PathBuf>,
    settings: Settings,
}

/// Options that somebody set, as text.
type Settings = BTreeMap<String, String>;

/// What the options say.
struct Wanted {
    options: BTreeMap<String, String>,
    settings: Settings,
}

// === impl StoreArgs ===

impl StoreArgs {
    /// Whether any of them is on the command line.
    pub fn is_given(&self) -> bool {
        let named = [&self.kvstore, &self.config_dir, &self.config];
        named.iter().any(|option| option.is_some()) || !self.kvstore_opt.is_empty()
    }

    /// The store; nothing is asked yet.
    pub fn open(&self, host: &Host) -> Result<Shared, Failure> {
        self.open_with(host, &[])
    }

    /// The store, with flags of the command's own.
    pub fn open_with(&self, host: &Host, flags: &[(&str, &str)]) -> Result<Shared, Failure> {
        self.open_at(host, flags, None)
    }

    /// As [`Self::open_with`], for who writes much: so many requests a second, where nobody sets `etcd.qps`.
    pub fn open_busy(&self, host: &Host, flags: &[(&str, &str)], qps: u32) -> Result<Shared, Failure> {
        self.open_at(host, flags, Some(qps))
    }

    fn open_at(&self, host: &Host, flags: &[(&str, &str)], qps: Option<u32>) -> Result<Shared, Failure> {
        let Wanted { options, settings } = self.wanted(host, flags)?;
        let missing = "name it with --kvstore-opt etcd.address=URL or etcd.config=FILE, or give the agent's --config-dir";
        if options.is_empty() {
            return Err(Failure::new("no shared store is configured: this node keeps its own").fix(missing));
        }
        let set = options.contains_key("etcd.qps");
        let mut options = EtcdOptions::read(&options).map_err(|error| Failure::new(error).fix(missing))?;
        if let Some(qps) = qps.filter(|_| !set) {
            (options.qps, options.bootstrap_qps, options.max_inflight) = (qps, qps, qps);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
        let endpoints = options.endpoints.join(",");
        let certificate = options.tls.as_ref().and_then(|tls| tls.identity.clone()).map(|(path, _)| path);
        let store = Etcd::new(options).map_err(|error| Failure::new(error).fix(missing))?;
        Ok(Shared { runtime, store: Arc::new(store), endpoints, certificate, settings })
    }

    fn wanted(&self, host: &Host, flags: &[(&str, &str)]) -> Result<Wanted, Failure> {
        let sources = flags.iter().fold(self.sources(), |sources, (name, text)| sources.flag(name, text));
        let report = Config::check(sources);
        let at_fault = |finding: &&villus_config::Finding| {
            finding.severity == Severity::Error
                && (WANTED.contains(&finding.option.as_str()) || finding.option.starts_with("config"))
        };
        if let Some(finding) = report.findings.iter().find(at_fault) {
            return Err(Failure::new(finding));
        }
        let mut wanted = Wanted::of(&report);
        if wanted.options.is_empty() {
            wanted.ask(host);
        }
        Ok(wanted)
    }

    fn sources(&self) -> Sources {
        let joined = self.kvstore_opt.join(",");
        let flags = [
            ("kvstore", self.kvstore.as_deref()),
            ("kvstore-opt", Some(joined.as_str()).filter(|text| !text.is_empty())),
            ("config-dir", self.config_dir.as_deref()),
            ("config", self.config.as_deref()),
        ];
        flags.into_iter().fold(Sources::new().process_env(), |sources, (name, text)| match text {
            Some(text) => sources.flag(name, text),
            None => sources,
        })
    }
}

// === impl Wanted ===

impl Wanted {
    fn of(report: &Report) -> Self {
        let set = report.settings.iter().filter(|setting| WANTED.contains(&setting.name));
        let settings: Settings =
            set.clone().map(|setting| (setting.name.to_owned(), setting.value.to_string())).collect();
        // Who names members of etcd means etcd, whatever `kvstore` leaves out.
        let options =
            set.filter(|setting| setting.name == "kvstore-opt").find_map(|setting| match &setting.value {
                Value::Map(options) => Some(options.clone()),
                _ => None,
            });
        Self { options: options.unwrap_or_default(), settings }
    }

    /// Takes what the agent of this node was told, if it answers.
    fn ask(&mut self, host: &Host) {
        let Some(config) = host.brief_client().and_then(|client| client.config().ok()) else { return };
        let told = config.status.options.into_iter().filter_map(|(name, value)| match value {
            Json::String(text) if WANTED.contains(&name.as_str()) && !text.is_empty() => Some((name, text)),
            _ => None,
        });
        let sources = told.fold(Sources::new(), |sources, (name, text)| sources.flag(&name, &text));
        let theirs = Self::of(&Config::check(sources));
        self.options = theirs.options;
        for (name, text) in theirs.settings {
            self.settings.entry(name).or_insert(text);
        }
    }
}

// === impl Shared ===

impl Shared {
    /// The text of an option that somebody set.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// The id of this node's cluster, where somebody said it.
    pub fn cluster_id(&self) -> Option<u32> {
        self.setting("cluster-id").and_then(|text| text.parse().ok())
    }

    /// How many clusters share the numbers of identities.
    pub fn clusters(&self) -> MaxConnectedClusters {
        match self.setting("max-connected-clusters") {
            Some("511") => MaxConnectedClusters::C511,
            _ => MaxConnectedClusters::C255,
        }
    }

    /// The numbers that the cluster allocates.
    pub fn range(&self) -> Result<RangeInclusive<u32>, Failure> {
        self.clusters().range(self.cluster_id().unwrap_or_default()).map_err(Failure::usage)
    }

    /// Waits for something of the store.
    pub fn wait<T>(&self, what: impl Future<Output = Result<T, StoreError>>) -> Result<T, Failure> {
        self.runtime.block_on(what).map_err(|error| self.failed(&error))
    }

    /// Waits for something that has failures of its own.
    pub fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    pub fn failed(&self, error: &StoreError) -> Failure {
        failed(error, &self.endpoints, |what| format!("does not answer `{what}`"))
    }

    /// Who writes: the user of the certificate, by which the store tells users apart, with [`author`] behind it; without a
    /// certificate the latter alone. The store does not check what is said of it.
    pub fn author(&self) -> String {
        let found = self.certificate.as_ref().and_then(|path| std::fs::read(path).ok());
        let found = found.and_then(|pem| Found::parse(&pem).ok()).map(|found| found.common_name);
        match found.filter(|name| !name.is_empty()) {
            Some(name) => format!("{name} ({})", author()),
            None => author(),
        }
    }

    /// The name of the cluster that is meant.
    ///
    /// # Errors
    /// Nobody said it, and the store is not that of the cluster which has the name that is taken then.
    pub fn cluster(&self) -> Result<String, Failure> {
        if let Some(name) = self.setting("cluster-name") {
            return Ok(name.to_owned());
        }
        let found = self.wait(self.store.list_prefix(CLUSTER_CONFIG))?.entries;
        let names: Vec<&str> = found
            .iter()
            .filter_map(|entry| entry.key.strip_prefix(CLUSTER_CONFIG)?.strip_prefix('/'))
            .collect();
        if names.is_empty() || names.contains(&DEFAULT_CLUSTER) {
            return Ok(DEFAULT_CLUSTER.to_owned());
        }
        let said =
            format!("the store has cluster {}, and nobody says which is meant", names.join(" and cluster "));
        Err(Failure::usage(said).fix("name it with --cluster-name, or give the agent's --config-dir"))
    }
}

/// What failed in a store; `silence` says what it did not do where it does not answer.
pub fn failed(error: &StoreError, endpoints: &str, silence: impl FnOnce(&str) -> String) -> Failure {
    match error {
        StoreError::Unavailable { what, reason } => {
            Failure::new(format!("the store on {endpoints} {}: {reason}", silence(what)))
                .fix("see whether its members are there, and whether certificates and addresses are right")
        }
        StoreError::Denied { what, reason } => {
            Failure::new(format!("the store on {endpoints} does not permit `{what}`: {reason}"))
                .fix("take the certificate of a user who may; `villus certs etcd` prints who may do what")
        }
        StoreError::Full { what, reason } => {
            Failure::new(format!("the store on {endpoints} has no space for `{what}`: {reason}"))
                .fix("compact and defragment it, then `etcdctl alarm disarm`")
        }
        other => Failure::new(other),
    }
}

/// Who acts and where, for journals and for what others read.
fn author() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}@{host}", crate::emergency::who())
}

/// Where the journal lies.
pub fn lib_dir(given: Option<&str>) -> Result<PathBuf, Failure> {
    let sources = Sources::new();
    let sources = match given {
        Some(path) => sources.flag("lib-dir", path),
        None => sources.env(
            std::env::vars_os().filter(|(name, _)| name == "VILLUS_LIB_DIR" || name == "CILIUM_LIB_DIR"),
        ),
    };
    Ok(Config::load(sources).map_err(Failure::new)?.paths.lib_dir)
}
