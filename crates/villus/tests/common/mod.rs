//! Running the program.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod secured;

use std::process::{Command, Output, Stdio};

/// What the program printed and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

pub fn said(output: &Output) -> Said {
    Said {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    }
}

impl Said {
    /// What it printed, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.out
    }

    /// Its complaint, if it ended with this code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self.err
    }
}

/// The program, without what the environment of the test says.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_villus"));
    let ours = |name: &str| ["VILLUS_", "CILIUM_", "KUBERNETES_"].iter().any(|start| name.starts_with(start));
    for name in std::env::vars().map(|(name, _)| name).filter(|name| ours(name)) {
        command.env_remove(name);
    }
    command.args(args).env("VILLUS_SOCK", "/nonexistent/villus.sock").stdin(Stdio::null());
    command
}

/// Runs the program.
pub fn villus(args: &[&str]) -> Said {
    said(&command(args).output().unwrap())
}

/// Runs the program with text on its standard input.
pub fn villus_with_input(args: &[&str], input: &str) -> Said {
    use std::io::Write;
    let mut command = command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not want it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    said(&child.wait_with_output().unwrap())
}

/// The program in a sandbox of its own, where its places are below /tmp.
pub fn command_in_sandbox(args: &[&str]) -> Command {
    let mut command = command(args);
    for (option, place) in [("BPF_ROOT", "/tmp/bpf"), ("LIB_DIR", "/tmp/lib"), ("STATE_DIR", "/tmp/state")] {
        command.env(format!("VILLUS_{option}"), place);
    }
    command.env("VILLUS_SOCK", "/tmp/villus.sock");
    command
}
