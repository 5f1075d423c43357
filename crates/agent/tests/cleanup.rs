//! What is left of everything: nothing, but what was there before.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::TestNode;
use villus_api::EndpointRef;
use villus_api::model::EndpointChangeRequest;
use villus_testbed::{alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn node_state() -> String {
    let stable = |text: String| {
        let drop = ["STALE", "FAILED", "REACHABLE", "DELAY", "PROBE"];
        let lines = text.lines().filter(|line| !drop.iter().any(|state| line.contains(state)));
        lines
            .map(|line| line.split(" valid_lft").next().unwrap().trim().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let sysctls = "cd /proc/sys/net; grep -r . ipv4/ip_forward ipv?/conf/*/forwarding ipv4/conf/*/rp_filter \
                   ipv6/conf/*/accept_ra ipv4/conf/*/accept_redirects";
    [
        stable(run("ip", &["-o", "link", "show"])),
        stable(run("ip", &["-o", "addr", "show"])),
        stable(run("ip", &["route", "show", "table", "all"])),
        stable(run("ip", &["-6", "route", "show", "table", "all"])),
        stable(run("ip", &["neigh", "show"])),
        run("sh", &["-c", sysctls]),
        run("nft", &["list", "ruleset"]),
    ]
    .join("\n--\n")
}

#[test]
fn cleanup_leaves_the_node_as_it_was_found() {
    alone!();
    // An uplink with a default route, and a veth with both ends on the node for somebody's machine.
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "world"]);
    // Without IPv6, whose addresses come and settle by themselves.
    for device in ["up0", "world"] {
        let file = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        std::fs::write(file, "1").unwrap();
    }
    run("ip", &["addr", "add", "192.0.2.10/24", "dev", "up0"]);
    run("ip", &["link", "set", "up0", "up"]);
    run("ip", &["link", "set", "world", "up"]);
    run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    run("ip", &["tuntap", "add", "tap0", "mode", "tap"]);
    run("ip", &["link", "set", "tap0", "up"]);
    eventually("the kernel has noticed that they are joined", || {
        run("ip", &["-o", "link", "show"]).matches("state UP").count() == 2
    });
    let before = node_state();

    let mut node = TestNode::started(&[("attach-mode", "tc"), ("routing-mode", "tunnel")]);
    node.workload("server", &["k8s:app=server"]);
    let adopt = EndpointChangeRequest {
        adopt_interface: Some("tap0".into()),
        mac: Some("02:00:00:00:00:aa".to_owned().try_into().unwrap()),
        owner: Some("machine".into()),
        ..EndpointChangeRequest::default()
    };
    let machine = node.client().create_endpoint(&EndpointRef::Id(0), &adopt).unwrap();
    assert!(machine.status.villus.adopted);
    assert_ne!(node_state(), before);
    let attached = run("bpftool", &["net", "show"]);
    assert!(attached.contains("up0"), "the uplink has its program: {attached}");
    let config = node.config();
    assert!(villus_agent::cleanup(&config, false).is_err(), "an agent is running");
    node.kill();

    let would = villus_agent::cleanup(&config, true).unwrap();
    assert!(would.errors.is_empty(), "{:?}", would.errors);
    assert!(would.removed.iter().any(|what| what.contains("villus_host")), "{:?}", would.removed);
    let report = villus_agent::cleanup(&config, false).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(node_state(), before);
    assert!(!node.root.join("lib").exists() && !node.root.join("run").exists());
    let pins = try_run("find", &["/tmp/node/bpf", "-type", "f", "-not", "-name", "*.debug"]);
    assert_eq!(String::from_utf8_lossy(&pins.stdout), "");
    let attached = run("bpftool", &["net", "show"]);
    assert!(!attached.contains("up0") && !attached.contains("tap0"), "{attached}");
    assert!(villus_agent::cleanup(&config, false).unwrap().errors.is_empty(), "again is fine");
}
