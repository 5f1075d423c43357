//! `villus bpf`: the kernel's maps of the packet path, without any agent.

mod ct;
mod endpoint;
mod ipcache;
mod metrics;
mod nat;
mod policy;
mod ranges;

use clap::Subcommand;

use crate::{connect::Host, failure::Failure};

#[derive(Subcommand, Debug)]
pub enum BpfCommand {
    /// The policy maps of endpoints.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Which identity an address has.
    #[command(subcommand)]
    Ipcache(ipcache::IpcacheCommand),
    /// Local addresses and the endpoints they belong to.
    #[command(subcommand)]
    Endpoint(endpoint::EndpointCommand),
    /// The connection table.
    #[command(subcommand)]
    Ct(ct::CtCommand),
    /// Masqueraded packets, where eBPF does it.
    #[command(subcommand)]
    Nat(nat::NatCommand),
    /// Counters of drops and of what passed.
    #[command(subcommand)]
    Metrics(metrics::MetricsCommand),
}

pub fn run(host: &Host, command: BpfCommand) -> Result<(), Failure> {
    match command {
        BpfCommand::Policy(command) => policy::run(host, command),
        BpfCommand::Ipcache(command) => ipcache::run(command),
        BpfCommand::Endpoint(command) => endpoint::run(command),
        BpfCommand::Ct(command) => ct::run(host, command),
        BpfCommand::Nat(command) => nat::run(command),
        BpfCommand::Metrics(command) => metrics::run(command),
    }
}
