//! `villus kvstoremesh`: copies what other clusters' stores say into this cluster's, and shows how that is.

mod run;
mod status;

use clap::{Args, Subcommand};

pub use status::{DEFAULT_FILE, read as read_status};

use crate::failure::Failure;

/// Copy nodes, addresses, identities and services of other clusters into this cluster's store.
#[derive(Args, Debug)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  villus kvstoremesh --cluster-name c1 --cluster-id 1 \\\n    --kvstore-opt etcd.config=/etc/villus/etcd.yaml \
                  --clustermesh-config /var/lib/cilium/clustermesh\n  \
                  villus kvstoremesh … --dry-run     # what would be copied\n  \
                  villus kvstoremesh status\n\n\
                  The directory holds one file per remote cluster, named as the cluster: endpoints, trusted-ca-file, cert-file, key-file.\n\
                  CLUSTER.mesh beside it may hold: cluster-id, cache-ttl, labels, namespaces, cidrs, identities-in-use. See docs/mesh.md."
)]
pub struct KvstoremeshArgs {
    #[command(subcommand)]
    command: Option<KvstoremeshCommand>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Subcommand, Debug)]
enum KvstoremeshCommand {
    /// Show how each remote is.
    #[command(
        after_help = "Example:\n  villus kvstoremesh status\n  villus kvstoremesh status -o jsonpath='{.remotes[*].name}'\n\n\
                      Exit code 1 if no mesh runs, or a remote is not ready."
    )]
    Status(status::StatusArgs),
}

pub fn run(args: KvstoremeshArgs) -> Result<(), Failure> {
    match args.command {
        Some(KvstoremeshCommand::Status(status)) => status::run(&status, &args.run.status_file),
        None => run::run(&args.run),
    }
}
