//! `villus bird-config` and `villus bgp`.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde_json::Value;
use villus_bgp::{Control, Import, Neighbour, Speaker};

use crate::{
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
};

/// Render the configuration of BIRD 2 that announces this node's pod ranges to its neighbours and imports nothing.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus bird-config --router-id 10.9.0.1 --local-as 65001 --neighbor 10.9.1.2,as=65000 \\\n    \
                  --neighbor 10.9.2.2,as=65000 > /etc/bird/bird.conf && birdc configure\n  \
                  villus bird-config --router-id 10.9.0.1 --local-as 65001 --neighbor fd09:1::2,as=65001 \\\n    \
                  --neighbor fd09:2::2,as=65001 --range fd00:1:2:3::/64 --import default\n\nA neighbour in the node's own autonomous system is spoken to as iBGP. See docs/bgp.md."
)]
pub struct BirdConfigArgs {
    /// Router id: an IPv4 address of the node.
    #[arg(long, value_name = "ADDRESS")]
    router_id: Ipv4Addr,
    /// The node's autonomous system.
    #[arg(long, value_name = "NUMBER")]
    local_as: u32,
    /// A neighbour; two or more, so that the node stays there when one dies.
    #[arg(
        long = "neighbor",
        visible_alias = "neighbour",
        required = true,
        value_name = "ADDRESS,as=NUMBER[,port=…][,multihop=…][,interface=…]",
        value_parser = neighbour
    )]
    neighbours: Vec<Neighbour>,
    /// A range to announce, such as a /24 or /25; without it those that this node's agent has chosen.
    #[arg(long = "range", value_name = "PREFIX", value_delimiter = ',')]
    ranges: Vec<IpNet>,
    /// What is taken from neighbours: nothing, or the default route alone.
    #[arg(long, value_enum, default_value_t = Imports::None)]
    import: Imports,
    /// Seconds after which a silent neighbour is dead.
    #[arg(long, value_name = "SECONDS")]
    hold_time: Option<u16>,
    /// One neighbour is enough.
    #[arg(long)]
    single: bool,
    /// Where the agent keeps what outlives a boot [env: VILLUS_LIB_DIR] [default: /var/lib/villus].
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::DirPath, env = "VILLUS_LIB_DIR", hide_env = true)]
    lib_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Imports {
    None,
    Default,
}

fn neighbour(text: &str) -> Result<Neighbour, String> {
    text.parse().map_err(|error: villus_bgp::ConfigError| error.to_string())
}

pub fn bird_config(args: &BirdConfigArgs) -> Result<(), Failure> {
    let lib_dir = args.lib_dir.clone().unwrap_or_else(|| "/var/lib/villus".into());
    let speaker = Speaker {
        router_id: args.router_id,
        local_as: args.local_as,
        neighbours: args.neighbours.clone(),
        ranges: if args.ranges.is_empty() { chosen(&lib_dir)? } else { args.ranges.clone() },
        import: match args.import {
            Imports::None => Import::None,
            Imports::Default => Import::Default,
        },
        hold: args.hold_time,
    };
    speaker.check(args.single).map_err(|error| crate::failure::split(&error.to_string()))?;
    out::print(&speaker.render())
}

/// The ranges that the agent of this node gives its endpoints addresses of, as it wrote them down.
fn chosen(lib_dir: &Path) -> Result<Vec<IpNet>, Failure> {
    let path = lib_dir.join("pools.json");
    let fix = "start the agent once, or name the ranges with --range";
    let failed = |why: String| {
        Failure::new(format!("the agent's ranges are not known: {}: {why}", path.display())).fix(fix)
    };
    let bytes = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let pools: Value = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    let ranges = ["ipv4", "ipv6"].into_iter().filter_map(|family| pools.get(family)?.as_str());
    ranges.map(|range| range.parse().map_err(|_| failed(format!("{range:?} is no prefix")))).collect()
}

#[derive(Subcommand, Debug)]
pub enum BgpCommand {
    /// Show BIRD's sessions: who is there, since when, what is announced and taken.
    #[command(
        after_help = "Example:\n  villus bgp status -o json\n\nExit code 1 if a session is not established, or there is none."
    )]
    Status {
        /// BIRD's control socket.
        #[arg(long, value_name = "PATH", default_value = "/run/bird/bird.ctl", value_hint = clap::ValueHint::FilePath)]
        socket: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub fn run(command: &BgpCommand) -> Result<(), Failure> {
    let BgpCommand::Status { socket, output } = command;
    let status = Control::connect(socket)
        .and_then(|mut control| control.status())
        .map_err(|error| crate::failure::split(&error.to_string()))?;
    output.print(&status, || status.text())?;
    if status.is_whole() { Ok(()) } else { Err(Failure::silent(FAILED)) }
}
