//! `villus kvstore` on a real etcd: what is read, what is refused, what is written, and how it is taken back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod common;

use std::path::Path;

use common::{Said, command, said, villus, villus_with_input};
use serde_json::Value;
use tempfile::TempDir;
use villus_testbed::EtcdServer;

const LABELS: &str = "k8s:app=app1;k8s:io.cilium.k8s.policy.cluster=cluster1;k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns1;";
const PAIR: &str = r#"{"IP":"10.3.192.65","Mask":null,"HostIP":"10.3.9.10","ID":15614229,"Key":0,"Metadata":"cilium-global:cluster1:node1:2404","K8sNamespace":"ns1","K8sPodName":"pod1"}"#;
const ID: &str = "cilium/state/identities/v1/id/15614229";
const IP: &str = "cilium/state/ip/v1/cluster1/10.3.192.65";

/// A store and the directory of a journal.
struct Lab {
    server: EtcdServer,
    directory: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { server: EtcdServer::start(), directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, args: &[&str]) -> Said {
        let option = format!("etcd.address={}", self.server.url());
        let lib = self.path().display().to_string();
        let mut all = [&["kvstore"], args].concat();
        if args[0] != "journal" {
            all.extend(["--kvstore-opt", &option]);
        }
        if args[0] != "get" {
            all.extend(["--lib-dir", &lib]);
        }
        said(&command(&all).output().unwrap())
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        self.server.etcdctl(args).unwrap()
    }

    fn value(&self, key: &str) -> Option<String> {
        let text = self.etcdctl(&["get", key, "--print-value-only"]);
        text.strip_suffix('\n').map(str::to_owned)
    }
}

#[test]
fn keys_are_shown_as_the_field_knows_them() {
    let lab = Lab::new();
    lab.etcdctl(&["put", "cilium/a", "1"]);
    lab.etcdctl(&["put", "cilium/b", "k8s:x=y;"]);
    assert_eq!(lab.run(&["get", "cilium/a"]).ok(), "cilium/a => 1\n");
    assert_eq!(lab.run(&["get", "--recursive", "cilium/"]).ok(), "cilium/a => 1\ncilium/b => k8s:x=y;\n");
    assert_eq!(lab.run(&["get", "--recursive", "nothing"]).ok(), "");
    assert!(lab.run(&["get", "cilium/c"]).fails(1).contains("key cilium/c is not found"));
    let rows: Value =
        serde_json::from_str(&lab.run(&["get", "--recursive", "cilium/", "-o", "json"]).ok()).unwrap();
    assert_eq!((&rows[1]["key"], &rows[1]["value"]), (&"cilium/b".into(), &"k8s:x=y;".into()));
    assert!(rows[0]["revision"].as_u64() < rows[1]["revision"].as_u64());
    let template = lab.run(&["get", "cilium/a", "-o", "jsonpath={.value}"]).ok();
    assert_eq!(template.trim_end(), "1");
}

#[test]
fn the_store_is_found_where_the_agent_finds_it() {
    let lab = Lab::new();
    lab.etcdctl(&["put", "x", "1"]);
    let etcd = lab.path().join("etcd.yaml");
    std::fs::write(&etcd, format!("endpoints: [\"{}\"]\n", lab.server.url())).unwrap();
    let options = lab.path().join("options");
    std::fs::create_dir(&options).unwrap();
    std::fs::write(options.join("kvstore"), "etcd").unwrap();
    std::fs::write(options.join("kvstore-opt"), format!(r#"{{"etcd.config": "{}"}}"#, etcd.display()))
        .unwrap();
    // What is wrong elsewhere in the directory is the agent's concern.
    std::fs::write(options.join("mtu"), "large").unwrap();
    let directory = options.display().to_string();
    assert_eq!(villus(&["kvstore", "get", "x", "--config-dir", &directory]).ok(), "x => 1\n");
    let by_env = command(&["kvstore", "get", "x"])
        .env("VILLUS_KVSTORE_OPT", format!("etcd.address={}", lab.server.url()))
        .output()
        .unwrap();
    assert_eq!(said(&by_env).ok(), "x => 1\n");
    // As --help says it: several members, and a list among other settings.
    let several = format!("etcd.qps=50,etcd.address={0},{0},etcd.limit=10", lab.server.url());
    assert_eq!(villus(&["kvstore", "get", "x", "--kvstore-opt", &several]).ok(), "x => 1\n");
    for (args, says) in [
        (vec!["get", "x", "--kvstore-opt", "http://a,etcd.address=http://b"], "'http://a' is not key=value"),
        (vec!["get", "x"], "no shared store is configured"),
        (vec!["get", "x", "--kvstore-opt", "etcd.adress=http://a"], "etcd.adress"),
        (vec!["get", "x", "--kvstore", "consul", "--kvstore-opt", "etcd.address=http://a"], "consul"),
        (vec!["get", "x", "--kvstore-opt", "etcd.config=/nowhere/etcd.yaml"], "/nowhere/etcd.yaml"),
        (vec!["get", "x", "--kvstore-opt", "etcd.address=http://127.0.0.1:1"], "does not answer"),
    ] {
        let error = villus(&[vec!["kvstore"], args].concat()).fails(1);
        let has_remedy = error.lines().count() > 1 || error.contains("(correct the value");
        assert!(error.contains(says) && has_remedy || error.contains("consul"), "{error}");
    }
}

#[test]
fn the_published_lines_are_written_and_what_agents_could_not_read_is_refused() {
    let lab = Lab::new();
    let slave = format!("cilium/state/identities/v1/value/{LABELS}/10.3.9.10");
    let said = lab.run(&["set", "--key", IP, "--value", PAIR, "--dry-run"]).ok();
    assert!(said.contains("would be created") && said.contains("pending"), "{said}");
    assert_eq!(lab.value(IP), None);
    for (key, value) in [(ID, LABELS), (slave.as_str(), "15614229"), (IP, PAIR)] {
        lab.run(&["set", key, value]).ok();
        assert_eq!(lab.value(key).as_deref(), Some(value));
    }
    assert_eq!(lab.run(&["set", ID, LABELS]).ok(), "nothing changes\n");
    for (key, value, says) in [
        (ID, "k8s:a=b", "the value"),
        (IP, &PAIR.replace("192.65", "192.66"), "IP: "),
        (&slave.replace(";/", "/"), "15614229", "the labels in the key"),
        ("cilium/state/nodes/v1/c/n", r#"{"Name":"x","Cluster":"c"}"#, "Name: "),
        ("villus/policies/v1/x", "x", "versions"),
        ("cilium/x", &"x".repeat(1_200_000)[..1_100_000], "bytes"),
    ] {
        if value.len() > 100_000 {
            // More than a command line takes.
            let error = villus_with_input(
                &[
                    "kvstore",
                    "set",
                    "--key",
                    key,
                    "--value",
                    "-",
                    "--kvstore-opt",
                    &format!("etcd.address={}", lab.server.url()),
                ],
                value,
            );
            assert!(error.fails(1).contains(says));
            continue;
        }
        let error = lab.run(&["set", key, value]).fails(1);
        assert!(error.contains(says) && error.contains("--force"), "{error}");
    }
    assert!(lab.run(&["set", &format!("{ID}={LABELS}")]).fails(2).contains("--value"));
    lab.run(&["set", "foo=bar=2"]).ok();
    assert_eq!(lab.value("foo").as_deref(), Some("bar=2"));
    let said = lab.run(&["set", ID, "k8s:a=b", "--force"]).ok();
    assert!(said.contains("Note: ") && lab.value(ID).as_deref() == Some("k8s:a=b"), "{said}");
}

#[test]
fn what_is_deleted_comes_back_and_what_others_changed_stays() {
    let lab = Lab::new();
    // More than one transaction holds.
    let all: String = (0..250).map(|n| format!("put tree/{n:03} v{n}\n")).collect();
    for chunk in all.lines().collect::<Vec<_>>().chunks(100) {
        txn(&lab, chunk);
    }
    let said = lab.run(&["delete", "--recursive", "tree/", "--dry-run"]).ok();
    assert!(said.contains("tree/249 would be deleted\n  - v249\n"), "{said}");
    let said = lab.run(&["delete", "--recursive", "tree/"]).ok();
    assert!(said.ends_with("Deed 1: `villus kvstore undo 1` takes it back\n"), "{said}");
    assert_eq!(lab.run(&["get", "--recursive", "tree/"]).ok(), "");
    lab.etcdctl(&["put", "tree/007", "somebody's"]);
    let said = lab.run(&["undo", "1", "-o", "json"]).ok();
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["changes"].as_array().map(Vec::len), Some(249));
    assert!(report["notes"][0].as_str().unwrap().contains("tree/007"), "{report}");
    assert_eq!(lab.value("tree/007").as_deref(), Some("somebody's"));
    assert_eq!(lab.value("tree/249").as_deref(), Some("v249"));
    let journal = lab.run(&["journal"]).ok();
    assert!(journal.contains("delete (undone)") && journal.contains("undo 1"), "{journal}");
    assert!(journal.contains("250"), "{journal}");
    // An undo is a deed like any other.
    lab.run(&["undo", "2"]).ok();
    assert_eq!(lab.run(&["get", "--recursive", "tree/"]).ok(), "tree/007 => somebody's\n");
    assert!(lab.run(&["undo", "9"]).fails(1).contains("no deed 9"));
}

fn txn(lab: &Lab, lines: &[&str]) {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &lab.server.url(), "--command-timeout=60s", "--dial-timeout=60s", "txn"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let text = format!("\n{}\n\n\n", lines.join("\n"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_nodes_live_on_is_not_deleted_by_a_slip() {
    let lab = Lab::new();
    let slave = format!("cilium/state/identities/v1/value/{LABELS}/10.3.9.10");
    lab.etcdctl(&["put", ID, LABELS]);
    lab.etcdctl(&["put", &slave, "15614229"]);
    for prefix in ["", "cilium", "cilium/state/", "cilium/state/identities/v1/id"] {
        assert!(lab.run(&["delete", "--recursive", prefix]).fails(1).contains("--force"), "{prefix}");
    }
    assert!(lab.run(&["delete", ID]).fails(1).contains("in use on 1 nodes"));
    assert!(lab.run(&["delete", "cilium/nothing"]).fails(1).contains("not found"));
    lab.run(&["delete", &slave]).ok();
    lab.run(&["delete", ID]).ok();
    assert_eq!(lab.value(ID), None);
}

#[test]
fn a_key_keeps_its_lease_and_one_whose_lease_is_gone_is_left_to_its_owner() {
    let lab = Lab::new();
    let lease = lab.etcdctl(&["lease", "grant", "600"]);
    let lease = lease.split_whitespace().nth(1).unwrap();
    lab.etcdctl(&["put", "mine", "1", &format!("--lease={lease}")]);
    let said = lab.run(&["set", "mine=2"]).ok();
    assert!(said.contains(&format!("[lease {lease}]")) && said.contains("owner"), "{said}");
    let entry: Value = serde_json::from_str(&lab.run(&["get", "mine", "-o", "json"]).ok()).unwrap();
    assert_eq!(entry["lease"], *lease);
    lab.etcdctl(&["put", "nobody's", "1"]);
    lab.etcdctl(&["put", "mine/2", "1", &format!("--lease={lease}")]);
    let notes = |key: &str| -> Value {
        let said = lab.run(&["delete", "--recursive", key, "--dry-run", "-o", "json"]).ok();
        serde_json::from_str::<Value>(&said).unwrap()["notes"].clone()
    };
    assert_eq!(notes("nobody's"), Value::Null);
    assert!(notes("mine").to_string().contains("2 keys lie under their owners' leases"), "{}", notes("mine"));
    let said = lab.run(&["delete", "mine"]).ok();
    assert!(
        said.contains("Note: mine lies under its owner's lease") && said.contains("writes it again"),
        "{said}"
    );
    lab.etcdctl(&["lease", "revoke", lease]);
    assert!(lab.run(&["undo", "2"]).fails(1).contains(&format!("lease {lease} is gone")));
    assert_eq!(lab.value("mine"), None);
    assert!(lab.run(&["journal"]).ok().contains("undo 2 (stopped after 0)"));
}

#[test]
fn a_journal_that_cannot_be_written_stops_the_deed() {
    let lab = Lab::new();
    lab.etcdctl(&["put", "x", "1"]);
    std::fs::create_dir(lab.path().join("kvstore.jsonl")).unwrap();
    let error = lab.run(&["delete", "x"]).fails(1);
    assert!(error.contains("kvstore.jsonl"), "{error}");
    assert_eq!(lab.value("x").as_deref(), Some("1"));
    std::fs::remove_dir(lab.path().join("kvstore.jsonl")).unwrap();
    std::fs::write(lab.path().join("kvstore.jsonl"), "{\"event\":\"deed\",\"id\":1,\n").unwrap();
    lab.run(&["delete", "x"]).ok();
    let said = lab.run(&["journal"]);
    assert!(said.err.contains("lines 1 cannot be read"), "{said:?}");
    assert!(said.out.contains("delete"), "{said:?}");
}
