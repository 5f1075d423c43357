//! `villus external`: virtual machines, bare metal and pods of other networks, said to the whole cluster through its store.

mod change;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};
use villus_external::{ExternalConfig, ExternalError, Externals};
use villus_table::Backoff;

use crate::{
    connect::Host,
    failure::{Failure, split},
    kvstore::{Shared, StoreArgs},
};

/// Requests a second that may be made of the store.
pub const QPS: u32 = 10_000;
/// How long what a command holds while it writes outlives it, if it is killed.
const LEASE: Duration = Duration::from_secs(60);
/// How long the store may take over one number: longer than a lock outlives whoever was killed with it.
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Subcommand, Debug)]
pub enum ExternalCommand {
    /// Say one resource, or say it anew.
    Add(change::AddArgs),
    /// Say all resources of files.
    Import(change::ImportArgs),
    /// Delete resources.
    Delete(change::DeleteArgs),
    /// List the resources of the cluster.
    List(show::ListArgs),
    /// Show one resource.
    Get(show::GetArgs),
}

/// Which cluster's resources, in which store.
#[derive(Args, Clone, Debug, Default)]
struct PlaceArgs {
    /// Name of the cluster, as given to its agents [default: default].
    #[arg(long, value_name = "TEXT", help_heading = "Store")]
    cluster_name: Option<String>,
    /// Id of the cluster, as given to its agents [default: 0].
    #[arg(long, value_name = "NUMBER", help_heading = "Store")]
    cluster_id: Option<String>,
    /// 255 or 511, as given to the agents [default: 255].
    #[arg(long, value_name = "NUMBER", help_heading = "Store")]
    max_connected_clusters: Option<String>,
    /// Rules of the label filter, as given to the agents as `labels`.
    #[arg(long, value_name = "RULES", help_heading = "Store")]
    filter: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(host: &Host, command: &ExternalCommand) -> Result<(), Failure> {
    match command {
        ExternalCommand::Add(args) => change::add(host, args),
        ExternalCommand::Import(args) => change::import(host, args),
        ExternalCommand::Delete(args) => change::delete(host, args),
        ExternalCommand::List(args) => show::list(host, args),
        ExternalCommand::Get(args) => show::get(host, args),
    }
}

/// The resources of the cluster that a store's options say. Must be called inside its runtime.
pub fn open(shared: &Shared, writer: &str, lease_ttl: Duration) -> Result<Externals, Failure> {
    let backoff = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(10), 0.5);
    let rules = shared.setting("labels").unwrap_or_default();
    let file = shared.setting("label-prefix-file").filter(|path| !path.is_empty());
    let label_rules = match file {
        Some(path) => {
            let file = villus_config::read_label_file(path.as_ref()).map_err(|reason| {
                Failure::usage(format!("label-prefix-file={path}: {reason}"))
                    .fix("mend the file, or leave it out")
            })?;
            format!("{file} {rules}")
        }
        None => rules.to_owned(),
    };
    let config = ExternalConfig {
        cluster: shared.setting("cluster-name").unwrap_or("default").to_owned(),
        cluster_id: shared.cluster_id().unwrap_or_default(),
        clusters: shared.clusters(),
        space_of_cluster: shared.setting("kvstore-address-space") == Some("cluster"),
        label_rules,
        writer: format!("external-writer.{}.{}", writer.replace('/', "-"), std::process::id()),
        lease_ttl,
        patience: PATIENCE,
        pace: backoff.map_err(Failure::new)?.into(),
    };
    Externals::open(shared.store.clone(), config).map_err(Failure::from)
}

impl PlaceArgs {
    fn open(&self, host: &Host) -> Result<Shared, Failure> {
        let flags = [
            ("cluster-name", &self.cluster_name),
            ("cluster-id", &self.cluster_id),
            ("max-connected-clusters", &self.max_connected_clusters),
            ("labels", &self.filter),
        ];
        let flags: Vec<(&str, &str)> =
            flags.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        self.store.open_busy(host, &flags, QPS)
    }

    /// Does something with the resources, as the author that it is told, then gives back what was held for it.
    fn with<T, F>(&self, host: &Host, act: impl FnOnce(Externals, String) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ExternalError>>,
    {
        let shared = self.open(host)?;
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        shared.run(async {
            let externals = open(&shared, &node, LEASE)?;
            let outcome = act(externals.clone(), shared.author()).await;
            externals.end().await;
            outcome.map_err(|error| match error {
                ExternalError::Store(error) => shared.failed(&error),
                other => other.into(),
            })
        })
    }
}

impl From<ExternalError> for Failure {
    fn from(error: ExternalError) -> Self {
        match error {
            ExternalError::Bad(problems) => {
                let lines: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
                Self::new(lines.join("\nvillus: ")).fix("nothing was written")
            }
            other => split(&other.to_string()),
        }
    }
}
