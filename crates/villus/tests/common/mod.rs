//! Running the program, in a world of its own where it touches the kernel.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Command, Output, Stdio};

/// Says that the test runs inside its own namespaces already.
const INSIDE: &str = "VILLUS_TEST_INSIDE";

/// Runs the rest of the calling test in a mount and a network namespace of its own: the test is started again
/// there, and the outer one returns with its outcome. Nothing that it mounts, pins or makes can stay behind.
#[macro_export]
macro_rules! alone {
    () => {
        if !$crate::common::inside({
            fn here() {}
            std::any::type_name_of_val(&here)
        }) {
            return;
        }
    };
}

pub fn inside(path: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "villus-test", "/tmp"]).status().unwrap();
        assert!(mounted.success());
        return true;
    }
    let test = path.trim_end_matches("::here").split_once("::").unwrap().1;
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test} in its own namespaces:\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

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
    let ours = |name: &str| name.starts_with("VILLUS_") || name.starts_with("CILIUM_");
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
