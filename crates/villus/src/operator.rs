//! `villus operator`: what one process does for a whole cluster, and how it is.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use villus_api::{
    Client, ClientError, SocketOptions,
    model::{OperatorStatus, ServiceState},
};
use villus_config::duration;
use villus_external::{Keeper, KeeperConfig};
use villus_operator::{Door, HEARTBEAT, Operator, OperatorConfig, Served, TlsFiles};
use villus_table::Backoff;

use crate::{
    connect::Host,
    external,
    failure::{self, FAILED, Failure},
    kvstore::{Shared, StoreArgs},
    out::OutputArgs,
};

const SOCKET: &str = "/var/run/villus/operator.sock";
/// How long the office outlives a leader that is gone, as locks of the store do.
const TTL: Duration = Duration::from_secs(25);
const PROBE: Duration = Duration::from_secs(5);
/// How long what it holds while it writes external resources outlives it.
const LEASE: Duration = Duration::from_secs(300);
/// How often external resources are compared with the store.
const COMPARE: Duration = Duration::from_secs(300);
/// How long deletions of external resources are gathered.
const GATHER: Duration = Duration::from_secs(2);

/// Run what one process does for a whole cluster, or show how it is.
#[derive(Args, Debug)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  villus operator --config-dir /etc/villus/config\n  villus operator --kvstore-opt \
                  etcd.config=/etc/villus/etcd.yaml --cluster-name c1 --cluster-id 7\n  villus operator status\n\n\
                  Any number may run; one leads, and when it is gone another does. Options are also read from the \
                  environment and from the agent's directory or file, under the same names."
)]
pub struct OperatorArgs {
    #[command(subcommand)]
    command: Option<OperatorCommand>,
    #[command(flatten)]
    store: StoreArgs,
    /// Name of the cluster, as given to its agents [default: default].
    #[arg(long, value_name = "TEXT")]
    cluster_name: Option<String>,
    /// Id of the cluster, as given to its agents [default: 0].
    #[arg(long, value_name = "NUMBER")]
    cluster_id: Option<String>,
    /// 255 or 511, as given to its agents [default: 255].
    #[arg(long, value_name = "NUMBER")]
    max_connected_clusters: Option<String>,
    /// Time between two passes over the identities; 0 for none [default: 15m].
    #[arg(long, value_name = "DURATION")]
    identity_gc_interval: Option<String>,
    /// An identity is deleted that all passes of so long have found unused, two at least; no less than the agents'
    /// stale-grace [default: 1h].
    #[arg(long, value_name = "DURATION")]
    identity_gc_grace: Option<String>,
    /// In this time at most --identity-gc-rate-limit identities are deleted [default: 1m].
    #[arg(long, value_name = "DURATION")]
    identity_gc_rate_interval: Option<String>,
    /// Identities that may be deleted in --identity-gc-rate-interval [default: 2500].
    #[arg(long, value_name = "NUMBER")]
    identity_gc_rate_limit: Option<String>,
    /// What tells this operator from others; the host's name if not given.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Socket of the operator.
    #[arg(
        long, global = true, value_name = "PATH", default_value = SOCKET, value_hint = clap::ValueHint::FilePath
    )]
    operator_socket: String,
    /// Address on which metrics are served for Prometheus; none if not given.
    #[arg(long, value_name = "ADDRESS:PORT")]
    operator_prometheus_serve_addr: Option<String>,
    /// Rules of the label filter, as given to the agents: by them external resources get their identities.
    #[arg(long, value_name = "RULES", help_heading = "External resources")]
    labels: Option<String>,
    /// Address on which other systems say external resources; none if not given.
    #[arg(
        long, value_name = "ADDRESS:PORT", help_heading = "External resources",
        requires_all = ["external_cert_file", "external_key_file", "external_ca_file", "external_user"]
    )]
    external_serve_addr: Option<SocketAddr>,
    /// Certificate with which they are answered, PEM.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "External resources")]
    external_cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "External resources")]
    external_key_file: Option<PathBuf>,
    /// Authority that has signed their certificates, PEM.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath, help_heading = "External resources")]
    external_ca_file: Option<PathBuf>,
    /// Common name of a certificate that may say external resources.
    #[arg(long, value_name = "NAME", help_heading = "External resources")]
    external_user: Vec<String>,
}

#[derive(Subcommand, Debug)]
enum OperatorCommand {
    /// Show how the operator of this host is.
    #[command(
        after_help = "Example:\n  villus operator status\n\nExit code 1 if the store does not answer it."
    )]
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(host: &Host, args: OperatorArgs) -> Result<(), Failure> {
    match &args.command {
        Some(OperatorCommand::Status { output }) => status(&args.operator_socket, output),
        None => operate(host, &args),
    }
}

fn operate(host: &Host, args: &OperatorArgs) -> Result<(), Failure> {
    let options = args.options(host)?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let Options { shared, config, served } = options;
    shared.run(async {
        let externals = external::open(&shared, &format!("operator.{}", config.name), LEASE)?;
        let pace = config.backoff.into();
        let keeper = Keeper::new(externals, KeeperConfig { compare: COMPARE, gather: GATHER, pace });
        let operator = Operator::start_with(shared.store.clone(), config, Some(keeper));
        let ended = villus_operator::serve(operator, &served, villus_agent::signals());
        ended.await.map_err(Failure::new)
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What the options come to.
struct Options {
    shared: Shared,
    config: OperatorConfig,
    served: Served,
}

impl OperatorArgs {
    fn options(&self, host: &Host) -> Result<Options, Failure> {
        let flags = [
            ("cluster-name", &self.cluster_name),
            ("cluster-id", &self.cluster_id),
            ("max-connected-clusters", &self.max_connected_clusters),
            ("identity-gc-interval", &self.identity_gc_interval),
            ("identity-gc-grace", &self.identity_gc_grace),
            ("identity-gc-rate-interval", &self.identity_gc_rate_interval),
            ("identity-gc-rate-limit", &self.identity_gc_rate_limit),
            ("operator-prometheus-serve-addr", &self.operator_prometheus_serve_addr),
            ("labels", &self.labels),
        ];
        let flags: Vec<(&str, &str)> =
            flags.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        let shared = self.store.open_busy(host, &flags, external::QPS)?;
        let metrics = match shared.setting("operator-prometheus-serve-addr").unwrap_or_default() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| wrong("operator-prometheus-serve-addr", text, "write ADDRESS:PORT"))?,
            ),
        };
        let config = config(&shared, self.name.clone())?;
        let path = self.operator_socket.clone().into();
        let socket = SocketOptions { path, ..SocketOptions::default() };
        Ok(Options { shared, config, served: Served { socket, metrics, door: self.door()? } })
    }

    fn door(&self) -> Result<Option<Door>, Failure> {
        let Some(address) = self.external_serve_addr else { return Ok(None) };
        let file = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
        let files = TlsFiles {
            certificate: file(&self.external_cert_file),
            key: file(&self.external_key_file),
            authority: file(&self.external_ca_file),
        };
        // What can't be read is said before anything is done.
        files.load().map_err(|error| failure::split(&error.to_string()))?;
        Ok(Some(Door { address, files, users: self.external_user.iter().cloned().collect() }))
    }
}

fn config(shared: &Shared, name: Option<String>) -> Result<OperatorConfig, Failure> {
    let time = |option: &str, default: &str| {
        let text = shared.setting(option).unwrap_or(default);
        duration::parse(text).map_err(|why| wrong(option, text, &why))
    };
    let interval = time("identity-gc-interval", "15m")?;
    let grace = time("identity-gc-grace", "1h")?;
    let every = time("identity-gc-rate-interval", "1m")?;
    let text = shared.setting("identity-gc-rate-limit").unwrap_or("2500");
    let limit = text.parse().ok().filter(|limit| *limit > 0);
    let limit = limit.ok_or_else(|| wrong("identity-gc-rate-limit", text, "write a number above 0"))?;
    let backoff = Backoff::try_new(Duration::from_secs(1), Duration::from_secs(60), 0.5);
    Ok(OperatorConfig {
        name: name.unwrap_or_else(host_name),
        cluster: shared.setting("cluster-name").unwrap_or("default").to_owned(),
        range: shared.range()?,
        ttl: TTL,
        gc_interval: Some(interval).filter(|interval| !interval.is_zero()),
        gc_grace: grace,
        gc_rate: (limit, every),
        heartbeat: HEARTBEAT,
        probe: PROBE,
        backoff: backoff.map_err(Failure::new)?,
    })
}

fn wrong(option: &str, text: &str, why: &str) -> Failure {
    Failure::usage(format!("{option}={text}: {why}"))
}

fn status(socket: &str, output: &OutputArgs) -> Result<(), Failure> {
    let status = match Client::new(socket)?.operator() {
        Ok(status) => status,
        Err(ClientError::NotRunning { path, problem }) => {
            let what = format!("no operator answers on {}: {problem}", path.display());
            return Err(Failure::new(what)
                .fix("start it with `villus operator`, or name its socket with --operator-socket"));
        }
        Err(error) => return Err(error.into()),
    };
    output.print(&status, || shown(&status))?;
    if status.store.state == ServiceState::Failure { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

fn shown(status: &OperatorStatus) -> String {
    let role = match (status.leads, status.leader.as_str()) {
        (true, _) => format!("leads since {}", status.since),
        (false, "") => "waits; nobody is known to lead".to_owned(),
        (false, leader) => format!("waits; {leader} leads"),
    };
    let store = match status.store.state {
        ServiceState::Ok => "Ok",
        _ => "Failure",
    };
    let mut text = format!("Operator:     {} of cluster {}: {role}\n", status.name, status.cluster);
    text.push_str(&format!("KVStore:      {store}   {}\n", status.store.msg));
    if status.leads {
        text.push_str(&format!("Heartbeat:    {}\n", status.heartbeat));
        let collection = &status.collection;
        text.push_str(&format!(
            "Identities:   {} in use, {} unused since the last pass, {} for longer and in their grace, {} deleted ({} in all), {} left to \
             delete, {} of others\n",
            collection.used,
            collection.marked,
            collection.waiting,
            collection.deleted,
            collection.deleted_total,
            collection.deferred,
            collection.skipped
        ));
        let last = if collection.time.is_empty() { "none yet" } else { &collection.time };
        text.push_str(&format!(
            "Last pass:    {last}; {} ended, {} failed\n",
            collection.passes, collection.failures
        ));
        let external = &status.external;
        text.push_str(&format!(
            "External:     {} resources; {} expired, {} mended, {} restored, {} orphans deleted\n",
            external.resources, external.expired, external.mended, external.restored, external.orphans
        ));
        for (name, reason) in &external.broken {
            text.push_str(&format!("Broken:       {name}: {reason}\n"));
        }
        if !external.problem.is_empty() {
            text.push_str(&format!("Problem:      {}\n", external.problem));
        }
        if !collection.problem.is_empty() {
            text.push_str(&format!("Problem:      {}\n", collection.problem));
        }
    }
    text
}
