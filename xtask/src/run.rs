//! Running other programs: every failure names the command line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// One short line about what happens next.
pub fn say(what: impl std::fmt::Display) {
    println!("dev: {what}");
}

/// Runs to the end with our own stdout and stderr; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| line(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Like [`run`], and returns what it wrote to stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| line(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", line(command)))
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A command that runs as root: through sudo, keeping the environment, unless we are root.
pub fn as_root(program: impl AsRef<Path>) -> Command {
    if is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("sudo");
    command.arg("-E").arg(program.as_ref());
    command
}

/// Whether this process may do what the tests of the kernel part need.
pub fn is_root() -> bool {
    effective_uid() == Some(0)
}

fn effective_uid() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether this is continuous integration.
pub fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The cargo that runs us, on the workspace; in CI it may not change Cargo.lock.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand);
    if is_ci() && subcommand != "fmt" {
        command.arg("--locked");
    }
    command
}
