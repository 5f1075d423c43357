//! `villus plan kvstore`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use serde::Serialize;
use villus_kvstore::{Etcd, EtcdOptions};
use villus_plan::kvstore::{Estimate, Load, Outcome, PREFIX, ReplayError, Shape, estimate, replay, text};

use crate::{
    failure::Failure,
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus plan kvstore --nodes 5000 --pods 150000 \\\n    --etcd https://10.0.0.1:2379 --etcd-config etcd.yaml\n  \
                  villus plan kvstore --nodes 100 --pods 3000 --etcd http://10.0.0.1:2379 --dry-run\n\n\
                  Writes below villus/plan/ only, and takes it away again. It is a load: run it before the store serves a cluster."
)]
pub struct KvstoreArgs {
    /// Nodes of the cluster: each has a lease.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: u32,
    /// Pods of the cluster: each has an address, and fifteen an identity.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pods: u32,
    /// Members of etcd, separated by commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', required_unless_present = "etcd_config")]
    etcd: Vec<String>,
    /// File of etcd's clients, with endpoints and certificates, as in `etcd.config`.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    etcd_config: Option<PathBuf>,
    /// Clients that list at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    listers: u32,
    /// Watches that are open at the same time; by default as many as nodes, at most 1,000.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: Option<u32>,
    /// Entries that change in a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    churn: u32,
    /// How often a pod changes, for the estimate: once in this time.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = villus_config::duration::parse)]
    pod_life: Duration,
    /// How long leases last (`kvstore-lease-ttl`), for the estimate.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = villus_config::duration::parse)]
    lease_ttl: Duration,
    /// How long lists, identities and writes are each replayed.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = villus_config::duration::parse)]
    time: Duration,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    outcome: Outcome,
    largest: Estimate,
}

impl KvstoreArgs {
    fn options(&self) -> Result<EtcdOptions, Failure> {
        let mut options = match &self.etcd_config {
            Some(file) => EtcdOptions::read_file(file).map_err(Failure::new)?,
            None => EtcdOptions::new(Vec::new()),
        };
        if !self.etcd.is_empty() {
            options.endpoints.clone_from(&self.etcd);
        }
        // The store is to be measured, not our own limits.
        (options.qps, options.bootstrap_qps, options.max_inflight) = (10_000_000, 10_000_000, 10_000);
        Ok(options)
    }
}

pub fn run(args: &KvstoreArgs) -> Result<(), Failure> {
    if args.pod_life.is_zero() || args.time.is_zero() {
        return Err(Failure::usage("--pod-life and --time must be longer than nothing"));
    }
    let load = Load {
        nodes: args.nodes,
        pods: args.pods,
        listers: args.listers,
        watchers: args.watchers.unwrap_or(args.nodes.min(1000)),
        churn: args.churn,
        time: args.time,
    };
    let options = args.options()?;
    let endpoints = options.endpoints.join(",");
    let store = Etcd::new(options).map_err(Failure::new)?;
    if args.dry_run {
        return out::line(&format!(
            "would grant {} leases, write the entries of {} pods below {PREFIX} on {endpoints}, list them with {} clients, allocate \
             identities, write {} a second under {} watches, and take everything away again",
            load.nodes, load.pods, load.listers, load.churn, load.watchers
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::new)?;
    let say = |what: &str| out::complain(&format!("villus plan: {what}"));
    let outcome =
        runtime.block_on(replay(Arc::new(store), &load, say)).map_err(|error| failed(&error, &endpoints))?;
    let pods_per_node = f64::from(load.pods) / f64::from(load.nodes);
    let changes_per_pod = 1.0 / args.pod_life.as_secs_f64();
    let shape = Shape { pods_per_node, changes_per_pod, lease_ttl: args.lease_ttl.as_secs_f64() };
    let largest = estimate(&outcome.measured(), &shape);
    let answer = Answer { outcome, largest };
    args.output.print(&answer, || text(&answer.outcome, &answer.largest))
}

fn failed(error: &ReplayError, endpoints: &str) -> Failure {
    match error {
        ReplayError::Store { doing, source } => {
            crate::kvstore::failed(source, endpoints, |_| format!("failed while it was {doing}"))
        }
        other => crate::failure::split(&other.to_string()),
    }
}
