//! The command line as a whole.

use clap::{Arg, ArgMatches, Args, CommandFactory, Parser, Subcommand, parser::ValueSource};

use crate::{
    bgp::BgpCommand,
    bgp::BirdConfigArgs,
    bpf::BpfCommand,
    certs::CertsCommand,
    cleanup::CleanupArgs,
    config::ConfigArgs,
    emergency::EmergencyCommand,
    endpoint::EndpointCommand,
    external::ExternalCommand,
    failure::Failure,
    gate::GateArgs,
    identity::IdentityCommand,
    ip::IpCommand,
    kvstore::KvstoreCommand,
    kvstoremesh::KvstoremeshArgs,
    map::MapCommand,
    metrics::MetricsCommand,
    monitor::MonitorArgs,
    node::{FreezeArgs, NodeCommand, ThawArgs},
    operator::OperatorArgs,
    plan::PlanCommand,
    policy::PolicyCommand,
    shell::CompletionArgs,
    shell::ManArgs,
    status::StatusArgs,
    troubleshoot::TroubleshootCommand,
    version::VersionArgs,
    why::WhyArgs,
};

/// Identity-based networking with eBPF: the agent of a node, and everything to look at it with.
#[derive(Parser, Debug)]
#[command(name = "villus", version, disable_help_subcommand = true, subcommand_required = true)]
pub struct Cli {
    /// Socket of the agent [env: VILLUS_SOCK] [default: /var/run/villus/villus.sock].
    #[arg(
        short = 'H', long = "host", value_name = "PATH", global = true, display_order = 998,
        value_hint = clap::ValueHint::FilePath
    )]
    pub host: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; [`GROUPS`] says how the help sorts them.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent of this node.
    #[command(
        after_help = "Example:\n  sudo villus agent --config-dir /etc/villus/config --enable-ipv6=false"
    )]
    Agent(AgentArgs),
    /// Run what one process does for a whole cluster, or show how it is.
    Operator(OperatorArgs),
    /// Copy nodes, addresses, identities and services of other clusters into this cluster's store.
    Kvstoremesh(KvstoremeshArgs),
    /// Show how the agent is.
    Status(StatusArgs),
    /// Show and change the agent's configuration, check a directory of options.
    Config(ConfigArgs),
    /// Create, show, change and delete endpoints.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Show identities.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Show which prefixes have which identity.
    #[command(subcommand)]
    Ip(IpCommand),
    /// Import, show, check and verify policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say which virtual machines, bare metal and foreign pods there are; needs no agent.
    #[command(subcommand)]
    External(ExternalCommand),
    /// Show and change what lies in the store that nodes share; needs no agent.
    #[command(subcommand)]
    Kvstore(KvstoreCommand),
    /// List the nodes of the cluster, and end those that do not come back.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Apply nothing that others say until `villus thaw`.
    #[command(after_help = "Example:\n  villus freeze 'the store is being restored'")]
    Freeze(FreezeArgs),
    /// Apply again what others say, and make up for what was missed.
    #[command(after_help = "Example:\n  villus thaw")]
    Thaw(ThawArgs),
    /// Look into the kernel's maps of the packet path and write into them; needs no agent.
    #[command(subcommand)]
    Bpf(BpfCommand),
    /// List any of the kernel's maps.
    #[command(subcommand)]
    Map(MapCommand),
    /// Show what the agent counts.
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Watch packets being dropped, judged and passed on.
    Monitor(MonitorArgs),
    /// Look at connections to other clusters step by step.
    #[command(subcommand)]
    Troubleshoot(TroubleshootCommand),
    /// Explain why a packet passes or does not.
    Why(WhyArgs),
    /// Open endpoints by hand and take that back; needs no agent.
    #[command(subcommand)]
    Emergency(EmergencyCommand),
    /// Wait until this node's agent may start, so that a cluster's agents do not start together.
    Gate(GateArgs),
    /// Say what a cluster will need before it is built or changed; needs no agent.
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Make a certificate for every agent, and say what it may do.
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Render the configuration of BIRD 2 that announces this node's pod ranges.
    BirdConfig(BirdConfigArgs),
    /// Show how BIRD's sessions are.
    #[command(subcommand)]
    Bgp(BgpCommand),
    /// Remove everything of Villus from this node, and nothing else.
    Cleanup(CleanupArgs),
    /// Show the versions of this program and of the agent.
    Version(VersionArgs),
    /// Write a completion script for a shell.
    Completion(CompletionArgs),
    /// Write manual pages.
    Man(ManArgs),
}

/// The agent's options are those of `villus_config::args`.
#[derive(Args, Debug)]
pub struct AgentArgs {}

/// Headings of the help and the commands below them.
pub const GROUPS: [(&str, &[&str]); 6] = [
    ("Run", &["agent", "operator", "kvstoremesh", "gate", "status", "config", "version"]),
    ("Workloads and policies", &["endpoint", "external", "identity", "ip", "policy"]),
    ("See", &["monitor", "why", "metrics", "troubleshoot", "bpf", "map"]),
    ("Many nodes", &["node", "certs", "plan", "bird-config", "bgp", "freeze", "thaw"]),
    ("By hand", &["kvstore", "emergency", "cleanup"]),
    ("Shell", &["completion", "man"]),
];

/// Refuses options of a command that also runs by itself before one of its subcommands, which does not ask for them.
pub fn options_stand_where_they_count(command: &clap::Command, matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, inner)) = matches.subcommand() else { return Ok(()) };
    let given = |arg: &&Arg| {
        !arg.is_global_set() && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    if let Some(arg) = command.get_arguments().find(given) {
        let what = arg.get_long().map_or_else(|| arg.get_id().to_string(), |long| format!("--{long}"));
        return Err(Failure::usage(format!(
            "{what} stands before `{name}`, which does not ask for it there"
        ))
        .fix(format!("`villus {} {name} --help` shows what it takes", command.get_name())));
    }
    match command.find_subcommand(name) {
        Some(command) => options_stand_where_they_count(command, inner),
        None => Ok(()),
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; standard error says what, and what to do about it
  2  the command line is wrong
  3  what was compared differs (policy verify, status, who-can and can-reach, why)
  4  policy preview: flows that pass now would be denied; 5: would pass by audit mode only; 6: a map would be too small
  7  policy import and delete: the change waits for villus policy confirm";

/// Commands that ask no agent, those below them included.
const ALONE: [&[&str]; 20] = [
    &["kvstoremesh"],
    &["operator", "status"],
    &["config", "check"],
    &["policy", "validate"],
    &["bpf", "ipcache"],
    &["bpf", "endpoint"],
    &["bpf", "nat"],
    &["bpf", "metrics"],
    &["troubleshoot"],
    &["emergency", "list"],
    &["emergency", "undo"],
    &["emergency", "timer"],
    &["gate"],
    &["plan"],
    &["certs"],
    &["bird-config"],
    &["bgp"],
    &["cleanup"],
    &["completion"],
    &["man"],
];

/// The whole command line, the agent's options included.
pub fn command() -> clap::Command {
    let command = Cli::command().mut_subcommand("agent", |agent| {
        // The agent makes the socket (--socket-path); it does not look for one.
        let agent = agent.arg(unused_host().num_args(1)).args(villus_config::args::all());
        agent.next_line_help(true).term_width(110)
    });
    let command = ALONE.iter().fold(command, |command, path| without_host(command, path));
    let list = groups(&command);
    command
        .help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}Options:\n{{options}}\n\n{EXIT_CODES}\n\n\
             See `villus COMMAND --help` for a command.\n"
        ))
        .max_term_width(110)
}

/// `--host` where it is taken and means nothing.
fn unused_host() -> Arg {
    Arg::new("host").short('H').long("host").hide(true)
}

/// Leaves `--host` out of the help of a command and of those below it.
fn without_host(command: clap::Command, path: &[&str]) -> clap::Command {
    match path {
        [] => command.arg(unused_host().global(true)),
        [name, rest @ ..] => command.mut_subcommand(*name, |command| without_host(command, rest)),
    }
}

fn groups(command: &clap::Command) -> String {
    let mut list = String::new();
    for (title, names) in GROUPS {
        list.push_str(title);
        list.push_str(":\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            list.push_str(&format!("  {name:12} {about}\n"));
        }
        list.push('\n');
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_one_group() {
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = command();
        let all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(grouped.len(), all.len());
        assert!(all.iter().all(|name| grouped.contains(name)), "{all:?} {grouped:?}");
    }

    #[test]
    fn every_command_has_an_example_that_fits_a_terminal() {
        const WIDTH: usize = 100;
        fn check(command: &clap::Command) {
            let leaf = command.get_subcommands().next().is_none();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if leaf && !command.is_hide_set() {
                assert!(help.contains("Example"), "{} has no example", command.get_name());
            }
            // A command that is broken without a backslash cannot be copied.
            let long = help.lines().find(|line| line.starts_with("  ") && line.len() > WIDTH);
            assert_eq!(long, None, "an example of {}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }
}
