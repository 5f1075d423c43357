//! Which store: from the command line, the environment, the agent's directory or file, or the agent itself.

use std::{collections::BTreeMap, future::Future, path::PathBuf, sync::Arc};

use clap::Args;
use tokio::runtime::Runtime;
use villus_config::{Config, Report, Severity, Sources, Value};
use villus_kvstore::{Etcd, EtcdOptions, Store, StoreError};
use villus_labels::MaxConnectedClusters;

use crate::{connect::Host, failure::Failure};

/// Options of the store; all others of a directory or file are not looked at.
const WANTED: [&str; 4] = ["kvstore", "kvstore-opt", "cluster-id", "max-connected-clusters"];

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
    /// The id of this node's cluster, where it is known.
    pub cluster_id: Option<u32>,
    /// How many clusters share the numbers of identities.
    pub clusters: MaxConnectedClusters,
}

/// What the options say.
struct Wanted {
    kind: String,
    options: BTreeMap<String, String>,
    cluster_id: Option<u32>,
    clusters: MaxConnectedClusters,
}

// === impl StoreArgs ===

impl StoreArgs {
    /// The store; nothing is asked yet.
    pub fn open(&self, host: &Host) -> Result<Shared, Failure> {
        let wanted = self.wanted(host)?;
        let missing = "name it with --kvstore-opt etcd.address=URL or etcd.config=FILE, or give the agent's --config-dir";
        if wanted.options.is_empty() {
            return Err(Failure::new("no shared store is configured: this node keeps its own").fix(missing));
        }
        if wanted.kind != "etcd" {
            return Err(
                Failure::usage(format!("kvstore={} is no shared store", wanted.kind)).fix("write etcd")
            );
        }
        let options = EtcdOptions::read(&wanted.options).map_err(|error| Failure::new(error).fix(missing))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("no runtime: {error}")))?;
        let endpoints = options.endpoints.join(",");
        let store = Etcd::new(options).map_err(|error| Failure::new(error).fix(missing))?;
        let (cluster_id, clusters) = (wanted.cluster_id, wanted.clusters);
        Ok(Shared { runtime, store: Arc::new(store), endpoints, cluster_id, clusters })
    }

    fn wanted(&self, host: &Host) -> Result<Wanted, Failure> {
        let report = Config::check(self.sources());
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
        let value =
            |name: &str| report.settings.iter().find(|setting| setting.name == name).map(|s| &s.value);
        let text = |name: &str| value(name).map(ToString::to_string);
        let options = match value("kvstore-opt") {
            Some(Value::Map(options)) => options.clone(),
            _ => BTreeMap::new(),
        };
        Self {
            // Who names members of etcd means etcd.
            kind: text("kvstore").filter(|kind| !kind.is_empty()).unwrap_or_else(|| "etcd".to_owned()),
            options,
            cluster_id: text("cluster-id").and_then(|text| text.parse().ok()),
            clusters: clusters(text("max-connected-clusters").as_deref()),
        }
    }

    /// Takes what the agent of this node was told, if it answers.
    fn ask(&mut self, host: &Host) {
        let Some(config) = host.brief_client().and_then(|client| client.config().ok()) else { return };
        let options = config.status.options;
        if let Some(found) = options.get("kvstore-opt").and_then(|value| value.as_object()) {
            let pair =
                |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
            self.options = found.iter().filter_map(pair).collect();
        }
        let id = options.get("cluster-id").and_then(serde_json::Value::as_u64);
        self.cluster_id = id.and_then(|id| u32::try_from(id).ok());
        self.clusters = clusters(options.get("max-connected-clusters").and_then(serde_json::Value::as_str));
    }
}

fn clusters(text: Option<&str>) -> MaxConnectedClusters {
    if text == Some("511") { MaxConnectedClusters::C511 } else { MaxConnectedClusters::C255 }
}

// === impl Shared ===

impl Shared {
    /// Waits for something of the store.
    pub fn wait<T>(&self, what: impl Future<Output = Result<T, StoreError>>) -> Result<T, Failure> {
        self.runtime.block_on(what).map_err(|error| self.failed(&error))
    }

    /// Waits for something that has failures of its own.
    pub fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    pub fn failed(&self, error: &StoreError) -> Failure {
        match error {
            StoreError::Unavailable { what, reason } => {
                Failure::new(format!("the store on {} does not answer `{what}`: {reason}", self.endpoints))
                    .fix(
                        "see whether its members are there, and whether certificates and addresses are right",
                    )
            }
            other => Failure::new(other),
        }
    }
}

/// Who acts and where, for journals and for what others read.
pub fn author() -> String {
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
