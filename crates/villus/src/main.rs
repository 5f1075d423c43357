//! `villus`: the agent of a node, and every command to look at it and to act on it.
//!
//! Each module is a command. Commands ask the agent over its socket; `bpf`, `map`, `emergency` and `cleanup`
//! work on the kernel's pinned maps and need no agent; `kvstore` and `external` work on the store that nodes share. What a command finds is printed by `villus-print`; why
//! it failed is one line, what to do about it another ([`failure`]).
#![forbid(unsafe_code)]

mod agent;
mod bgp;
mod bpf;
mod certs;
mod cleanup;
mod cli;
mod config;
mod connect;
mod emergency;
mod endpoint;
mod external;
mod failure;
mod gate;
mod identity;
mod identity_names;
mod ip;
mod kernel;
mod kvstore;
mod kvstoremesh;
mod map;
mod metrics;
mod monitor;
mod node;
mod operator;
mod out;
mod plan;
mod policy;
mod ports;
mod shell;
mod status;
mod troubleshoot;
mod version;
mod why;

use std::process::ExitCode;

use clap::FromArgMatches;

use crate::{
    cli::{Cli, Command},
    connect::Host,
    failure::Failure,
};

fn main() -> ExitCode {
    let matches = match cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // A closed output is no reason to complain.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let outcome = cli::options_stand_where_they_count(&cli::command(), &matches)
        .and_then(|()| Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string())))
        .and_then(|cli| run(cli, &matches));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> Result<(), Failure> {
    let host = Host::new(cli.host);
    match cli.command {
        Command::Agent(_) => agent::run(matches.subcommand_matches("agent")),
        Command::Operator(args) => operator::run(&host, args),
        Command::Kvstoremesh(args) => kvstoremesh::run(args),
        Command::Status(args) => status::run(&host, &args),
        Command::Config(args) => config::run(&host, args),
        Command::Endpoint(command) => endpoint::run(&host, command),
        Command::Identity(command) => identity::run(&host, command),
        Command::Ip(command) => ip::run(&host, command),
        Command::Policy(command) => policy::run(&host, command),
        Command::Node(command) => node::run(&host, command),
        Command::Freeze(args) => node::freeze(&host, args),
        Command::Thaw(args) => node::thaw(&host, args),
        Command::External(command) => external::run(&host, &command),
        Command::Kvstore(command) => kvstore::run(&host, command),
        Command::Bpf(command) => bpf::run(&host, command),
        Command::Map(command) => map::run(&host, command),
        Command::Metrics(command) => metrics::run(&host, command),
        Command::Monitor(args) => monitor::run(&host, &args),
        Command::Troubleshoot(command) => troubleshoot::run(&command),
        Command::Why(args) => why::run(&host, &args),
        Command::Emergency(command) => emergency::run(&host, command),
        Command::Gate(args) => gate::run(&args),
        Command::Plan(command) => plan::run(command),
        Command::Certs(command) => certs::run(command),
        Command::BirdConfig(args) => bgp::bird_config(&args),
        Command::Bgp(command) => bgp::run(&command),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Version(args) => version::run(&host, &args),
        Command::Completion(args) => shell::completion(&args),
        Command::Man(args) => shell::man(&args),
    }
}
