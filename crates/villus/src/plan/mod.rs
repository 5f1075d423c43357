//! `villus plan`: what a cluster will need.

mod identities;
mod kvstore;
mod restart;

use clap::Subcommand;

use crate::failure::Failure;

#[derive(Subcommand, Debug)]
pub enum PlanCommand {
    /// Count the identities that workloads have under a label filter, and say which labels cost most.
    Identities(identities::IdentitiesArgs),
    /// Replay the load of a cluster against its store and say how large a cluster it would carry.
    Kvstore(kvstore::KvstoreArgs),
    /// Simulate agents that all come back at once, and draw what the store sees with the start gate and without it.
    Restart(restart::RestartArgs),
}

pub fn run(command: PlanCommand) -> Result<(), Failure> {
    match command {
        PlanCommand::Identities(args) => identities::run(&args),
        PlanCommand::Kvstore(args) => kvstore::run(&args),
        PlanCommand::Restart(args) => restart::run(&args),
    }
}
