//! Packets between nodes, as one agent sets its node up for them.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::TestNode;
use common::store::{join_b, new, shared, status, who, with};
use villus_api::model::VerifyRequest;
use villus_testbed::{EtcdServer, alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// An uplink with an address and a default route.
fn uplink() {
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "world"]);
    run("ip", &["addr", "add", "192.0.2.10/24", "dev", "up0"]);
    for device in ["up0", "world"] {
        run("ip", &["link", "set", device, "up"]);
    }
    run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
}

fn mtu_of(device: &str) -> u32 {
    let links: serde_json::Value = serde_json::from_str(&run("ip", &["-j", "link", "show", device])).unwrap();
    u32::try_from(links[0]["mtu"].as_u64().unwrap()).unwrap()
}

fn has_tunnel() -> bool {
    try_run("ip", &["link", "show", "villus_vxlan"]).status.success()
}

fn has_programs(device: &str) -> bool {
    let shown = run("bpftool", &["net", "show", "dev", device]);
    shown.contains("from_overlay") && shown.contains("to_overlay")
}

#[test]
fn a_tunnel_comes_back_when_somebody_takes_it_and_goes_with_its_option() {
    alone!();
    uplink();
    let mut node =
        TestNode::started(&[("attach-mode", "tc"), ("routing-mode", "tunnel"), ("tunnel-port", "8473")]);
    node.workload("server", &["k8s:app=server"]);
    eventually("the tunnel has its programs", || has_programs("villus_vxlan"));
    assert_eq!(mtu_of("villus_vxlan"), 1450);
    assert!(run("ip", &["-d", "link", "show", "villus_vxlan"]).contains("dstport 8473"));
    let inside = run("ip", &["netns", "exec", "server", "ip", "link", "show", "eth0"]);
    assert!(inside.contains("mtu 1450"), "what an endpoint sends fits into the tunnel: {inside}");
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());

    run("ip", &["link", "del", "villus_vxlan"]);
    eventually("the device comes back", || has_tunnel() && has_programs("villus_vxlan"));
    eventually("the path knows it", || node.client().verify(&VerifyRequest::default()).unwrap().clean());
    node.stop();
    assert!(has_tunnel(), "the datapath goes on");

    node.options.retain(|(name, _)| name != "routing-mode");
    node.start();
    assert!(!has_tunnel());
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());
}

#[test]
fn a_tunnel_that_cannot_be_is_refused_before_anything_runs() {
    alone!();
    let mut node = TestNode::new(&[("routing-mode", "tunnel")]);
    let said = node.refused();
    assert!(said.contains("routing-mode") && said.contains("no IPv4 address"), "{said}");

    uplink();
    run("ip", &["link", "add", "other0", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "up0"]);
    run("ip", &["link", "set", "other0", "up"]);
    let said = node.refused();
    assert!(said.contains("UDP port 8472") && said.contains("tunnel-port"), "{said}");
    run("ip", &["link", "del", "other0"]);
    run("ip", &["link", "del", "villus_vxlan"]);

    run("ip", &["link", "add", "villus_vxlan", "type", "veth", "peer", "name", "end"]);
    let said = node.refused();
    assert!(said.contains("villus_vxlan already exists") && said.contains("not made by Villus"), "{said}");
}

#[test]
fn nodes_behind_a_router_are_named_unless_the_network_is_said_to_route() {
    alone!();
    join_b();
    let etcd = EtcdServer::start();
    for (name, ip, range) in [("near", "10.3.9.2", "10.12.0.0"), ("far", "10.3.99.2", "10.13.0.0")] {
        let entry = format!(
            r#"{{"Name":"{name}","Cluster":"cluster1","IPAddresses":[{{"Type":"InternalIP","IP":"{ip}"}}],"IPv4AllocCIDR":{{"IP":"{range}","Mask":"////AA=="}},"ClusterID":238}}"#
        );
        etcd.etcdctl(&["put", &format!("cilium/state/nodes/v1/cluster1/{name}"), &entry]).unwrap();
    }
    let direct = [("auto-direct-node-routes", "true"), ("ipv4-native-routing-cidr", "10.0.0.0/8")];
    let skip = ("direct-routing-skip-unreachable", "true");
    let routes = || run("ip", &["route", "show", "proto", "119"]);
    let far = |node: &TestNode| {
        status(node).contains("far with 10.13.0.0/24: its address 10.3.99.2 is on no network")
    };
    let mut node = new(&with(shared(&etcd), &direct));
    node.start();
    eventually("it is named", || far(&node) && routes().contains("10.12.0.0/24 via 10.3.9.2"));
    node.stop();
    node.options.push((skip.0.to_owned(), skip.1.to_owned()));
    node.start();
    eventually("both are known", || {
        ["10.12.0.0/24", "10.13.0.0/24"].iter().all(|range| who(&node, range) == Some((2, true)))
    });
    eventually("it is left to the network", || !far(&node));
    assert!(routes().contains("10.12.0.0/24 via 10.3.9.2") && !routes().contains("10.13.0.0/24"));
}
