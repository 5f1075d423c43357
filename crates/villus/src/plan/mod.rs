//! `villus plan`: what a cluster will need.

mod identities;

use clap::Subcommand;

use crate::failure::Failure;

#[derive(Subcommand, Debug)]
pub enum PlanCommand {
    /// Count the identities that workloads have under a label filter, and say which labels cost most.
    Identities(identities::IdentitiesArgs),
}

pub fn run(command: PlanCommand) -> Result<(), Failure> {
    match command {
        PlanCommand::Identities(args) => identities::run(&args),
    }
}
