//! Running the few commands that this crate needs.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::NetError;

/// Daemons often have no `sbin` in their search path.
const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The full path of a command, if it is installed.
pub(crate) fn find(command: &str) -> Option<String> {
    let installed = |directory: &&&str| Path::new(directory).join(command).exists();
    DIRECTORIES.iter().find(installed).map(|directory| format!("{directory}/{command}"))
}

/// Runs a command in the calling thread's namespace and gives it `input` to read.
pub(crate) fn run(
    path: &str,
    arguments: &[&str],
    input: &str,
    fix: &'static str,
) -> Result<String, NetError> {
    let failed = |status: String, stderr: String| NetError::Command {
        command: format!("{path} {}", arguments.join(" ")).trim_end().to_owned(),
        status,
        stderr,
        fix,
    };
    let output = feed(path, arguments, input).map_err(|error| failed("not run".into(), error.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Err(failed(output.status.to_string(), stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(path: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(path)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Our scripts are far smaller than what a pipe holds, and the commands read all before they write.
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        if written.is_err() {
            tracing::debug!(path, "did not read all its input");
        }
    }
    child.wait_with_output()
}
