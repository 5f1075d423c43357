//! `villus troubleshoot`: connections looked at step by step.

mod mesh;

use clap::Subcommand;

use crate::failure::Failure;

/// Look at connections to other clusters step by step.
#[derive(Subcommand, Debug)]
pub enum TroubleshootCommand {
    /// Look at each remote cluster: file, resolve, dial, TLS, etcd, configuration, canaries, lag; needs no running mesh.
    #[command(
        after_help = "Example:\n  villus troubleshoot mesh --cluster-name c1 --cluster-id 1 \\\n    --clustermesh-config /var/lib/cilium/clustermesh c2\n\n\
                      Exit code 1 if a step of any remote did not go well."
    )]
    Mesh(mesh::MeshArgs),
}

pub fn run(command: &TroubleshootCommand) -> Result<(), Failure> {
    match command {
        TroubleshootCommand::Mesh(args) => mesh::run(args),
    }
}
