//! The start gate as a program: the hook, the entrypoint, the operator's commands, and the unit that is shipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{Said, command, said, villus};
use serde_json::Value;
use tempfile::TempDir;
use villus_testbed::Clock;

/// A node of a cluster of a thousand: a window of 20 min.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn lib(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("VILLUS_LIB_DIR", self.0.path());
        command
    }

    fn gate(&self, args: &[&str]) -> Said {
        said(&self.command(&[&["gate"], args].concat()).output().unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.gate(&[args, &["-o", "json"]].concat()).ok()).unwrap()
    }

    /// A gate that waits for its turn; returns once it says so.
    fn waiting(&self, args: &[&str]) -> Waiting {
        self.waiting_by(None, args)
    }

    /// The same, with a calendar of its own.
    fn waiting_by(&self, clock: Option<&Clock>, args: &[&str]) -> Waiting {
        let mut command = self.command(&[&["gate", "--cluster-size=1000"], args].concat());
        if let Some(clock) = clock {
            clock.give(&mut command);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("waiting"), "{line}");
        Waiting { child, _errors: errors }
    }
}

struct Waiting {
    child: Child,
    /// Open, so that complaining goes on.
    _errors: BufReader<std::process::ChildStderr>,
}

impl Waiting {
    fn output(self) -> Said {
        said(&self.child.wait_with_output().unwrap())
    }
}

#[test]
fn the_first_start_is_let_through_and_the_next_waits_for_its_turn() {
    let node = Node::new();
    let first = node.json(&["--cluster-size=5000", "--dry-run"]);
    assert_eq!(
        (&first["outcome"], &first["reason"], &first["window"]),
        (&"start".into(), &"new".into(), &3600.0.into())
    );
    assert!(!Path::new(node.lib()).join("gate.json").exists(), "a dry run notes nothing");
    assert_eq!(node.json(&["--cluster-size=5000"])["reason"], "new");
    let next = node.json(&["--cluster-size=5000", "--dry-run"]);
    assert_eq!(next["outcome"], "wait");
    // It started just now: it rests for a window and waits for its turn in the next.
    let wait = next["wait"].as_f64().unwrap();
    assert!((3000.0..=7200.0).contains(&wait), "{wait}");
    let status = node.json(&["status", "--cluster-size=5000"]);
    assert!(status["state"]["started"]["unix_ms"].as_u64().unwrap() > 0, "{status}");
    assert_eq!((&status["nodes"], &status["source"]), (&5000.into(), &"option".into()));
}

#[test]
fn a_short_window_is_really_waited_for_and_the_command_then_runs() {
    let node = Node::new();
    // Short, but longer than a busy machine takes from the one to the other.
    node.gate(&["--window=5s"]).ok();
    let said = node.gate(&["--window=5s", "--", "sh", "-c", "echo in its place: $VILLUS_LIB_DIR"]);
    assert!(said.err.contains("waiting"), "{said:?}");
    let out = said.ok();
    assert!(
        out.starts_with("villus gate: start: its turn has come")
            && out.ends_with(&format!("in its place: {}\n", node.lib())),
        "{out}"
    );
}

#[test]
fn who_waits_takes_a_grant() {
    let node = Node::new();
    node.gate(&[]).ok();
    let waiting = node.waiting(&["-o", "json"]);
    let turn = node.json(&["status", "--cluster-size=1000"])["wait"].as_f64().unwrap();
    assert!(turn > 1.0, "{turn}");
    assert!(node.gate(&["grant", "--dry-run"]).ok().contains("would be"));
    assert_eq!(node.json(&["status"])["state"]["grant"], Value::Null);
    node.gate(&["grant", "--for=10m"]).ok();
    let passed: Value = serde_json::from_str(&waiting.output().ok()).unwrap();
    assert_eq!(passed["reason"], "granted");
    assert_eq!(node.json(&["--cluster-size=1000", "--dry-run"])["outcome"], "wait");
}

#[test]
fn an_open_gate_lets_everybody_through_until_it_is_closed() {
    let node = Node::new();
    node.gate(&[]).ok();
    let waiting = node.waiting(&[]);
    node.gate(&["bypass"]).ok();
    assert!(waiting.output().ok().contains("the gate stands open"));
    assert!(node.gate(&["status"]).ok().contains("Bypass"));
    assert_eq!(node.json(&[])["reason"], "bypassed");
    node.gate(&["bypass", "--off"]).ok();
    assert_eq!(node.json(&["--dry-run"])["outcome"], "wait");
}

#[test]
fn a_waiter_that_is_stopped_keeps_its_turn() {
    let node = Node::new();
    node.gate(&[]).ok();
    let waiting = node.waiting(&[]);
    let drawn = node.json(&["status"])["state"]["ticket"].clone();
    Command::new("kill").arg(waiting.child.id().to_string()).status().unwrap();
    assert!(waiting.output().code == 1);
    let again = node.waiting(&[]);
    assert_eq!(node.json(&["status"])["state"]["ticket"], drawn);
    node.gate(&["grant"]).ok();
    again.output().ok();
}

#[test]
fn the_size_is_that_on_disk_and_a_damaged_state_is_put_aside() {
    let node = Node::new();
    std::fs::write(node.0.path().join("cluster-size.json"), r#"{"nodes":5000}"#).unwrap();
    assert_eq!(node.json(&["--dry-run"])["window"], 3600.0);
    std::fs::write(node.0.path().join("cluster-size.json"), "{").unwrap();
    let said = node.gate(&["--dry-run"]);
    assert!(said.err.contains("cluster-size.json") && said.err.contains("1000 are assumed"), "{said:?}");
    std::fs::write(node.0.path().join("gate.json"), "{\"format\":").unwrap();
    assert!(node.gate(&["status"]).ok().contains("Damaged"));
    let said = node.gate(&["--window=50ms"]);
    assert!(said.err.contains("put aside") && said.err.contains("gate.json.damaged-"), "{said:?}");
    assert_eq!(said.code, 0);
}

#[test]
fn where_nothing_can_be_written_the_start_is_spread_all_the_same() {
    let node = Node::new();
    let file = node.0.path().join("file");
    std::fs::write(&file, "").unwrap();
    let said = node.gate(&["--window=50ms", "--lib-dir", file.to_str().unwrap()]);
    assert!(said.err.contains("the next will not know of it"), "{said:?}");
    assert!(said.ok().contains("its turn has come"));
}

#[test]
fn a_calendar_that_is_off_by_an_hour_or_a_day_and_jumps_makes_nobody_wait_longer_or_start_sooner() {
    const HOUR: i64 = 3600;
    let node = Node::new();
    let clock = Clock::new(&node.0.path().join("calendar"), -HOUR);
    let gate = |off: i64, args: &[&str]| {
        clock.set(off);
        let mut command = node.command(&[&["gate"], args].concat());
        said(&clock.give(&mut command).output().unwrap()).ok()
    };
    let asked = |off: i64, args: &[&str]| -> Value {
        serde_json::from_str(&gate(off, &[args, &["-o", "json"]].concat())).unwrap()
    };
    assert_eq!(asked(-HOUR, &["--cluster-size=1000"])["reason"], "new");
    let waiting = node.waiting_by(Some(&clock), &[]);
    let first = asked(-HOUR, &["status", "--cluster-size=1000"]);
    let mut least = first["wait"].as_f64().unwrap();
    for off in [HOUR, 24 * HOUR, -24 * HOUR, 0] {
        let status = asked(off, &["status", "--cluster-size=1000"]);
        let wait = status["wait"].as_f64().unwrap();
        assert_eq!(status["state"]["ticket"], first["state"]["ticket"], "the turn stays, {off}");
        assert!((0.1..=least).contains(&wait), "{wait} of {least} with {off}");
        least = wait;
    }
    // A grant is worth something for its time by the clock that does not jump.
    gate(24 * HOUR, &["grant", "--for=10m"]);
    clock.set(-24 * HOUR);
    assert!(waiting.output().ok().contains("granted by an operator"));
}

#[test]
fn the_directory_is_named_before_or_behind_the_command() {
    let (node, here) = (Node::new(), tempfile::tempdir().unwrap());
    let lib = ["--lib-dir", here.path().to_str().unwrap()];
    node.gate(&[&lib[..], &["bypass"]].concat()).ok();
    for args in [[&lib[..], &["status"]].concat(), [&["status"], &lib[..]].concat()] {
        assert!(node.gate(&args).ok().contains("open by"), "{args:?}");
    }
    assert!(!node.gate(&["status"]).ok().contains("open by"), "without it, that of the environment");
}

#[test]
fn wrong_lines_are_refused() {
    for (args, part) in [
        (&["gate", "--window=3m", "status"][..], "--window stands before `status`"),
        (&["gate", "--dry-run", "grant"], "villus gate grant --help"),
        (&["gate", "--cluster-size=0"], "cluster-size"),
        (&["gate", "--window=0s"], "longer than nothing"),
        (&["gate", "grant", "--for=soon"], "not a duration"),
        (&["gate", "bypass", "--off", "--for=1h"], "--for"),
    ] {
        assert!(villus(args).fails(2).contains(part), "{args:?}");
    }
    let node = Node::new();
    assert!(node.gate(&["--", "/nonexistent/program"]).fails(1).contains("/nonexistent/program"));
}

#[test]
fn systemd_takes_the_unit_that_is_shipped() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/villus-agent.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(
        text.contains("TimeoutStartSec=infinity") && text.contains("ExecStartPre=/usr/bin/villus gate\n")
    );
    // Where the program is not installed, the one of this test stands for it.
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("villus-agent.service");
    std::fs::write(&copy, text.replace("/usr/bin/villus", env!("CARGO_BIN_EXE_villus"))).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output();
    let said = said(&verified.expect("systemd-analyze (package systemd)"));
    assert!(said.code == 0 && !said.err.contains("villus-agent.service"), "{said:?}");
}
