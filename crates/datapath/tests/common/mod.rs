//! What the tests stand on: a world of their own, and small programs.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use villus_datapath::Pins;

/// Says that the test runs inside its own namespaces already.
const INSIDE: &str = "VILLUS_TEST_INSIDE";

/// Runs the rest of the calling test in a mount and a network namespace of its own: the test is started again
/// there, and the outer one returns with its outcome. Nothing that it mounts, pins or makes can stay behind.
#[macro_export]
macro_rules! alone {
    () => {
        if !$crate::common::inside(module_path!(), {
            fn here() {}
            std::any::type_name_of_val(&here)
        }) {
            return;
        }
    };
}

pub fn inside(_module: &str, path: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
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

/// A bpffs of the test's own, in its mount namespace.
pub fn bpffs() -> (PathBuf, Pins) {
    let root = std::env::temp_dir();
    run("mount", &["-t", "tmpfs", "villus-test", root.to_str().unwrap()]);
    let root = root.join("bpf");
    let pins = Pins::open(&root).unwrap();
    (root, pins)
}

/// Runs a command that must succeed; what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command.
pub fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// `r0 = value; exit`.
pub fn returns(value: i32) -> [u64; 2] {
    [0xb7 | u64::from(value.cast_unsigned()) << 32, 0x95]
}
