//! Plans, certificates and BGP as commands: what they print, and what they say of wrong input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::process::Command;

use common::{villus, villus_with_input};
use serde_json::Value;

const PODS: &str = r#"{"kind": "List", "items": [
  {"kind": "Pod", "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "own": "1"}}},
  {"kind": "Pod", "metadata": {"name": "b", "namespace": "n", "labels": {"app": "web", "own": "2"}}},
  {"kind": "Pod", "metadata": {"name": "c", "namespace": "n", "labels": {"app": "web", "own": "3"}}}]}"#;

#[test]
fn identities_are_counted_from_a_pipe() {
    let text = villus_with_input(&["plan", "identities", "-"], PODS).ok();
    assert!(text.starts_with("3 workloads, 3 identities") && text.contains("k8s:!own$"), "{text}");
    let json =
        villus_with_input(&["plan", "identities", "-", "--labels", "k8s:app", "-o", "json"], PODS).ok();
    let count: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&count["identities"], &count["whitelist"]), (&1.into(), &true.into()));
    let error = villus_with_input(&["plan", "identities", "-"], "NAME  READY\n").fails(1);
    assert!(error.contains("standard input") && error.contains("-o json"), "{error}");
    assert!(
        villus_with_input(&["plan", "identities", "-", "--labels", "k8s:("], PODS).fails(2).contains("k8s:(")
    );
}

#[test]
fn a_restart_is_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("restart.svg");
    let text = villus(&["plan", "restart", "--nodes=200", "--svg", picture.to_str().unwrap()]).ok();
    assert!(text.contains("without the gate") && text.contains("with the gate"), "{text}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("<polyline"));
    let json: Value =
        serde_json::from_str(&villus(&["plan", "restart", "--nodes=50", "-o", "json"]).ok()).unwrap();
    assert!(
        json["without"]["all-ready"].is_u64() && json["with"]["all-ready"].is_u64(),
        "{}",
        json["scenario"]
    );
    assert!(villus(&["plan", "restart", "--nodes=0"]).fails(2).contains("nodes"));
    assert!(villus(&["plan", "restart", "--nodes=5", "--outage=100h"]).fails(1).contains("the outage"));
}

#[test]
fn a_store_that_is_not_there_is_named() {
    let args = ["plan", "kvstore", "--nodes=10", "--pods=30", "--etcd", "http://127.0.0.1:1"];
    assert!(villus(&[&args[..], &["--dry-run"]].concat()).ok().contains("would grant 10 leases"));
    assert!(villus(&args).fails(1).contains("127.0.0.1:1"), "{:?}", villus(&args));
    assert!(villus(&["plan", "kvstore", "--nodes=10", "--pods=30"]).fails(2).contains("--etcd"));
}

#[test]
fn certificates_are_made_listed_and_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let certs = |args: &[&str]| villus(&[&["certs"], args, &["--dir", dir]].concat());
    assert!(certs(&["agent", "node1"]).fails(1).contains("villus certs init"));
    certs(&["init"]).ok();
    assert!(certs(&["init"]).fails(1).contains("ca.crt"));
    let made = certs(&["agent", "node1", "node2", "--days=10"]).ok();
    assert!(made.contains("villus:agent:node1") && made.contains("villus:agents"), "{made}");
    assert!(certs(&["renew", "--dry-run"]).ok().contains("would be renewed"));
    assert!(certs(&["renew"]).ok().contains("node2.crt"));
    assert!(certs(&["renew"]).ok().contains("none ends within 30 days"));
    let list: Value = serde_json::from_str(&certs(&["list", "-o", "json"]).ok()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 3);
    std::fs::write(directory.path().join("agents/node1.crt"), "x").unwrap();
    assert!(certs(&["list"]).fails(1).contains("node1.crt"));
}

#[test]
fn access_is_printed_for_a_shell_and_for_programs() {
    let args = [
        "certs",
        "etcd",
        "--cluster=c1",
        "--node=n1=10.0.1.0/24,fd00:1:2:3::/64",
        "--node=n2",
        "--policy-writer=ann",
        "--operator=op",
    ];
    let script = villus(&args).ok();
    for part in [
        "etcdctl role grant-permission villus:agent:n1 readwrite cilium/state/nodes/v1/c1/n1\n",
        "etcdctl role grant-permission --prefix=true villus:agent:n1 readwrite cilium/state/ip/v1/default/10.0.1.\n",
        "etcdctl role grant-permission --prefix=true villus:agent:n1 readwrite cilium/state/ip/v1/default/fd00:1:2:3:\n",
        "etcdctl user grant-role ann villus:policy-writers\n",
    ] {
        assert!(script.contains(part), "{part}:\n{script}");
    }
    assert!(!script.contains("auth enable"));
    assert!(villus(&[&args[..], &["--enable"]].concat()).ok().ends_with("etcdctl auth enable\n"));
    let json: Value = serde_json::from_str(&villus(&[&args[..], &["-o", "json"]].concat()).ok()).unwrap();
    assert_eq!(json["users"].as_array().unwrap().len(), 4);
    assert!(villus(&["certs", "etcd", "--cluster=c1", "--node=n1=10.0.1.0/25"]).fails(2).contains("/25"));
    assert!(villus(&["certs", "etcd", "--cluster=C 1", "--node=n1"]).fails(2).contains("lower-case letters"));
    let objects = villus(&["certs", "kubernetes"]).ok();
    assert!(objects.contains("kind: FlowSchema") && objects.contains("kind: List"), "{objects}");
}

#[test]
fn birds_configuration_is_one_that_bird_takes() {
    let directory = tempfile::tempdir().unwrap();
    let lib = directory.path().to_str().unwrap();
    let base = [
        "bird-config",
        "--router-id=10.9.0.1",
        "--local-as=65001",
        "--neighbor=10.9.1.2,as=65000",
        "--lib-dir",
        lib,
    ];
    let two = [&base[..], &["--neighbor=10.9.2.2,as=65001"]].concat();
    assert!(villus(&two).fails(1).contains("pools.json"));
    std::fs::write(directory.path().join("pools.json"), r#"{"ipv4":"10.0.1.0/25","ipv6":null}"#).unwrap();
    let text = villus(&two).ok();
    assert!(text.contains("route 10.0.1.0/25 unreachable;") && text.contains("import none"), "{text}");
    let file = directory.path().join("bird.conf");
    std::fs::write(&file, villus(&[&two[..], &["--import=default", "--hold-time=30"]].concat()).ok())
        .unwrap();
    assert!(
        Command::new("bird").args(["-p", "-c"]).arg(&file).status().expect("bird (package bird2)").success()
    );
    assert!(villus(&base).fails(1).contains("--single"));
    assert!(villus(&[&base[..], &["--single"]].concat()).ok().contains("10.9.1.2"));
    assert!(
        villus(&["bgp", "status", "--socket", "/nonexistent/bird.ctl"])
            .fails(1)
            .contains("/nonexistent/bird.ctl")
    );
}
