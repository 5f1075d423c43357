//! `villus operator` as processes on a real etcd: who leads, what it says, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
};

use common::{command, said, villus};
use rustix::process::{Pid, Signal, kill_process};
use villus_api::{Client, model::OperatorStatus};
use villus_testbed::{Clock, EtcdServer, eventually, free_port};

const HOUR: i64 = 3600;

/// An operator under way. Killed with this value.
struct Operator {
    child: Child,
    socket: String,
    clock: Clock,
}

impl Operator {
    /// One whose calendar is ahead by so many seconds, or behind.
    fn start(server: &EtcdServer, directory: &Path, name: &str, seconds: i64, more: &[&str]) -> Self {
        let clock = Clock::new(&directory.join(format!("{name}.clock")), seconds);
        let socket = directory.join(format!("{name}.sock")).display().to_string();
        let option = format!("etcd.address={}", server.url());
        let args = ["operator", "--name", name, "--operator-socket", &socket, "--kvstore-opt", &option];
        let mut command = command(&[&args[..], more].concat());
        let child = clock.give(&mut command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, socket, clock }
    }

    fn status(&self) -> OperatorStatus {
        let mut status = None;
        eventually("the operator answers", || {
            status = Client::new(&self.socket).unwrap().operator().ok();
            status.is_some()
        });
        status.unwrap()
    }

    fn until(&self, what: &str, holds: impl Fn(&OperatorStatus) -> bool) -> OperatorStatus {
        eventually(what, || holds(&self.status()));
        self.status()
    }

    fn terminate(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn two_operators_one_leads_and_collects_and_the_other_takes_over_whatever_their_clocks_say() {
    let server = EtcdServer::start();
    let directory = tempfile::tempdir().unwrap();
    let ids = "cilium/state/identities/v1/id";
    server.etcdctl(&["put", &format!("{ids}/458753"), "k8s:unused=1;"]).unwrap();
    server.etcdctl(&["put", &format!("{ids}/300"), "k8s:foreign=1;"]).unwrap();
    let options = [
        "--cluster-name",
        "c7",
        "--cluster-id",
        "7",
        "--identity-gc-interval",
        "200ms",
        "--identity-gc-grace",
        "0",
    ];
    let address = format!("127.0.0.1:{}", free_port());
    let metrics = [&options[..], &["--operator-prometheus-serve-addr", &address]].concat();
    let mut first = Operator::start(&server, directory.path(), "first", HOUR, &metrics);
    first.until("the only one leads", |status| status.leads);
    first.clock.set(24 * HOUR);
    let second = Operator::start(&server, directory.path(), "second", -24 * HOUR, &options);
    second.until("the other waits", |status| status.leader == "first");
    let status =
        first.until("the unused identity of the cluster goes", |status| status.collection.deleted_total == 1);
    let found = (status.cluster.as_str(), status.terms, status.collection.skipped);
    assert_eq!(found, ("c7", 1, 1), "{status:?}");
    assert_eq!(
        server.etcdctl(&["get", "--prefix", ids, "--keys-only"]).unwrap().trim(),
        format!("{ids}/300")
    );
    let heartbeat = || server.etcdctl(&["get", "cilium/.heartbeat", "--print-value-only"]).unwrap();
    eventually("the store has a heartbeat", || heartbeat().trim_end().ends_with('Z'));
    let text = villus(&["operator", "status", "--operator-socket", &first.socket]).ok();
    assert!(text.contains("first of cluster c7: leads since") && text.contains("1 in all"), "{text}");
    let text = villus(&["operator", "--operator-socket", &second.socket, "status"]).ok();
    assert!(text.contains("waits; first leads"), "{text}");
    let text = scraped(&address);
    for line in ["villus_operator_leads 1\n", "villus_operator_identities_deleted_total 1\n"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains("cilium_operator_identity_gc_runs{outcome=\"success\"}"), "{text}");
    first.terminate();
    second.until("the other leads", |status| status.leads);
    assert!(!Path::new(&first.socket).exists());
    let error = villus(&["operator", "status", "--operator-socket", &first.socket]).fails(1);
    assert!(error.contains("no operator answers"), "{error}");
}

fn scraped(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_is_wrong_with_the_options_is_said_before_anything_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let options = directory.path().join("options");
    std::fs::create_dir(&options).unwrap();
    std::fs::write(options.join("kvstore-opt"), r#"{"etcd.address":"http://127.0.0.1:1"}"#).unwrap();
    std::fs::write(options.join("identity-gc-rate-limit"), "none").unwrap();
    let options = options.display().to_string();
    let store = ["--kvstore-opt", "etcd.address=http://127.0.0.1:1"];
    for (args, code, says) in [
        (vec!["--config-dir", &options], 2, "identity-gc-rate-limit=none: write a number above 0"),
        (vec![], 1, "no shared store is configured"),
        ([&store[..], &["--identity-gc-interval", "soon"]].concat(), 2, "identity-gc-interval=soon"),
        ([&store[..], &["--identity-gc-grace", "long"]].concat(), 2, "identity-gc-grace=long"),
        ([&store[..], &["--cluster-id", "300"]].concat(), 1, "cluster-id"),
        ([&store[..], &["--operator-prometheus-serve-addr", "x"]].concat(), 2, "ADDRESS:PORT"),
        ([&store[..], &["--operator-socket", "/proc/x"]].concat(), 1, "cannot listen on /proc/"),
    ] {
        let args = [vec!["operator"], args].concat();
        let error = said(&command(&args).output().unwrap()).fails(code);
        assert!(error.contains(says), "{args:?}: {error}");
    }
}
