//! The small process that undoes a deed when its time is up. It needs no agent and no terminal.

use std::{
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use villus_config::config::Paths;
use villus_emergency::Event;

use super::undo;
use crate::{failure::Failure, kernel::PlaceArgs, out};

/// Longest sleep: then the clock is looked at again.
const NAP: Duration = Duration::from_secs(30);
/// How often it tries again when the maps or the journal cannot be written.
const RETRY: Duration = Duration::from_secs(10);
/// What the process says once it no longer depends on who started it.
const READY: &str = "ready";

#[derive(Args, Debug)]
pub struct TimerArgs {
    /// The deed.
    id: u64,
    /// After how many milliseconds.
    millis: u64,
    #[command(flatten)]
    places: PlaceArgs,
}

/// Starts the process and waits until it stands on its own; says which it is.
pub fn start(paths: &Paths, id: u64, after: Duration) -> io::Result<u32> {
    let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let mut child = Command::new(std::env::current_exe()?)
        .arg0("villus-emergency")
        .args(["emergency", "timer", &id.to_string(), &millis.to_string()])
        .arg("--bpf-root")
        .arg(&paths.bpf_root)
        .arg("--lib-dir")
        .arg(&paths.lib_dir)
        .arg("--state-dir")
        .arg(&paths.state_dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.trim() == READY { Ok(child.id()) } else { Err(io::Error::other("it ended at once")) }
}

/// The process itself.
pub fn run(args: &TimerArgs) -> Result<(), Failure> {
    let after = Duration::from_millis(args.millis);
    // Suspended time counts: the deed is meant to last that long for whoever waits for its end.
    let deadline = boot_time().saturating_add(after);
    // A session of its own: the end of the shell or of the connection is not its end.
    let _ = rustix::process::setsid();
    args.places.journal()?.append(Event::Timer { id: args.id, pid: std::process::id() })?;
    out::line(READY)?;
    while let Some(left) = deadline.checked_sub(boot_time()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left.min(NAP));
    }
    loop {
        match undo::undo_deed(&args.places, args.id, "timer") {
            Ok(_) => return Ok(()),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // The clock of the time since boot is never negative.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}
