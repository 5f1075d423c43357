//! `villus emergency`: open endpoints by hand, with the agent alive or dead, and take it back.

mod allow;
mod list;
mod timer;
mod undo;

use clap::Subcommand;

use crate::{connect::Host, failure::Failure};

#[derive(Subcommand, Debug)]
pub enum EmergencyCommand {
    /// Let everything pass to and from endpoints, from the next packet on.
    Allow(allow::AllowArgs),
    /// List what was done by hand and not yet undone.
    List(list::ListArgs),
    /// Take back what was done by hand.
    Undo(undo::UndoArgs),
    /// Wait until a deed's time is up, then undo it.
    #[command(hide = true)]
    Timer(timer::TimerArgs),
}

pub fn run(host: &Host, command: EmergencyCommand) -> Result<(), Failure> {
    match command {
        EmergencyCommand::Allow(args) => allow::run(host, &args),
        EmergencyCommand::List(args) => list::run(&args),
        EmergencyCommand::Undo(args) => undo::run(&args),
        EmergencyCommand::Timer(args) => timer::run(&args),
    }
}

/// Fails where only root gets further.
pub fn check_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("only root may write into the kernel's maps").fix("run it with sudo"))
}

/// Who acts, for the journal.
pub fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(user) if !user.is_empty() => format!("{user} (sudo)"),
        _ if uid == 0 => "root".to_owned(),
        _ => format!("uid {uid}"),
    }
}
