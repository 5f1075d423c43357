//! Packets between nodes, as one agent sets its node up for them.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::store::{LETS_IN, OUTSIDE, join_b, new, shared, status, who, with};
use common::{PATIENCE, SHORT, TestNode, connect, echoes, serves};
use villus_api::model::{IpQuery, VerifyRequest};
use villus_net::NetnsRef;
use villus_testbed::{EtcdServer, alone, eventually, run, run_ip, try_run};

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

fn receives_as_it_comes(device: &str) -> bool {
    run("ethtool", &["-k", device]).contains("generic-receive-offload: off")
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
    assert!(receives_as_it_comes("villus_vxlan"));
    assert!(run("ip", &["-d", "link", "show", "villus_vxlan"]).contains("dstport 8473"));
    let inside = run("ip", &["netns", "exec", "server", "ip", "link", "show", "eth0"]);
    assert!(inside.contains("mtu 1450"), "what an endpoint sends fits into the tunnel: {inside}");
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());

    run("ethtool", &["-K", "villus_vxlan", "gro", "on"]);
    eventually("it is put off again", || receives_as_it_comes("villus_vxlan"));
    run("ip", &["link", "del", "villus_vxlan"]);
    eventually("the device comes back", || has_tunnel() && has_programs("villus_vxlan"));
    assert!(receives_as_it_comes("villus_vxlan"));
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

/// What the path has been told.
fn told(node: &TestNode) -> villus_abi::Config {
    let pin = node.config().paths.bpf_root.join("tc/globals").join(villus_abi::names::CONFIG);
    let pin = pin.to_str().unwrap();
    let text = run("bpftool", &["-j", "map", "lookup", "pinned", pin, "key", "0", "0", "0", "0"]);
    let entry: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = entry["value"].as_array().unwrap().iter();
    let bytes: Vec<u8> =
        bytes.map(|byte| u8::from_str_radix(&byte.as_str().unwrap()[2..], 16).unwrap()).collect();
    villus_abi::from_bytes(&bytes).unwrap()
}

/// The address, and the index of its uplink, under which programs may wrap packets for the tunnel now.
fn wraps_as(node: &TestNode) -> Option<(Ipv4Addr, u32)> {
    let config = told(node);
    let source = Ipv4Addr::from(config.tunnel_source.to_ne_bytes());
    (config.tunnel_source != 0 && !villus_datapath::is_expired(config.tunnel_until, villus_datapath::now()))
        .then_some((source, config.tunnel_uplink))
}

fn index_of(device: &str) -> u32 {
    let links: serde_json::Value = serde_json::from_str(&run("ip", &["-j", "link", "show", device])).unwrap();
    u32::try_from(links[0]["ifindex"].as_u64().unwrap()).unwrap()
}

#[test]
fn packets_are_wrapped_past_the_stack_as_long_as_an_agent_finds_that_they_may_be() {
    alone!();
    uplink();
    let own = Some((Ipv4Addr::new(192, 0, 2, 10), index_of("up0")));
    let mut node = TestNode::started(&[("routing-mode", "tunnel")]);
    eventually("the programs may", || wraps_as(&node) == own);
    let config = told(&node);
    assert_eq!(config.tunnel_ttl, 64);
    assert_eq!(config.tunnel_ports, [32_768, 60_999 - 32_768]);
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());

    // Nobody answers for this one: as soon as the kernel asks it is given up.
    run(
        "ip",
        &["neigh", "replace", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "up0", "nud", "stale"],
    );
    eventually("the kernel is told to ask", || {
        !run("ip", &["neigh", "show", "192.0.2.77", "dev", "up0"]).contains("STALE")
    });

    // IPsec, whatever it is for, in the clear too.
    for policy in [
        "src 192.0.2.10 dst 192.0.2.20 proto udp dport 8472 tmpl proto esp mode transport",
        "src 198.51.100.1 dst 198.51.100.2",
    ] {
        let change = |verb: &str, what: &str| {
            let text = format!("xfrm policy {verb} dir out {what}");
            run("ip", &text.split(' ').collect::<Vec<_>>());
        };
        change("add", policy);
        eventually("IPsec sees what is sent", || wraps_as(&node).is_none());
        let selector = policy.split(" tmpl").next().unwrap();
        change("delete", selector);
        eventually("it is gone", || wraps_as(&node) == own);
    }
    if try_run("ip", &["xfrm", "policy", "setdefault", "out", "block"]).status.success() {
        eventually("nothing is sent that IPsec does not allow", || wraps_as(&node).is_none());
        run("ip", &["xfrm", "policy", "setdefault", "out", "accept"]);
        eventually("all is", || wraps_as(&node) == own);
    }
    for (parameter, value) in [("fib_multipath_hash_policy", "1"), ("ip_local_port_range", "40000 50000")] {
        std::fs::write(format!("/proc/sys/net/ipv4/{parameter}"), value).unwrap();
    }
    eventually("several ways are the kernel's", || wraps_as(&node).is_none());
    std::fs::write("/proc/sys/net/ipv4/fib_multipath_hash_policy", "0").unwrap();
    eventually("ports are the node's", || told(&node).tunnel_ports == [40_000, 10_000]);

    // Of such an MTU the programs are not told, and what is too large would be lost behind a router that cuts nothing.
    run("ip", &["route", "add", "203.0.113.0/24", "via", "192.0.2.1", "mtu", "1400"]);
    eventually("the device cuts for a narrow way, and it is said", || {
        let said = status(&node);
        wraps_as(&node).is_none() && said.contains("203.0.113.0/24") && said.contains("MTU of 1400")
    });
    run("ip", &["route", "del", "203.0.113.0/24"]);
    eventually("there is none", || wraps_as(&node) == own && !status(&node).contains("MTU of 1400"));

    // The address by which others know the node moves.
    run("ip", &["addr", "del", "192.0.2.10/24", "dev", "up0"]);
    eventually("without an address", || wraps_as(&node).is_none());
    run("ip", &["addr", "add", "192.0.2.11/24", "dev", "up0"]);
    run("ip", &["route", "replace", "default", "via", "192.0.2.1"]);
    let moved = own.map(|(_, uplink)| (Ipv4Addr::new(192, 0, 2, 11), uplink));
    eventually("it is another one", || wraps_as(&node) == moved);

    node.stop();
    eventually("nobody says so any more", || wraps_as(&node).is_none());
    node.options.push(("tunnel-past-stack".to_owned(), "false".to_owned()));
    node.start();
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());
    assert_eq!((wraps_as(&node), told(&node).tunnel_source), (None, 0));
}

#[test]
fn what_is_routed_is_the_stacks_as_long_as_ipsec_has_policies() {
    alone!();
    uplink();
    let asks = |node: &TestNode| told(node).flags & villus_abi::config::FLAG_IPSEC != 0;
    let policy = |verb: &str| {
        run("ip", &["xfrm", "policy", verb, "dir", "out", "src", "198.51.100.1", "dst", "198.51.100.2"]);
    };
    let mut node = TestNode::started(&[]);
    assert!(!asks(&node));
    policy("add");
    eventually("the stack asks IPsec", || asks(&node));
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());
    // From the first packet on.
    node.stop();
    node.start();
    assert!(asks(&node));
    policy("delete");
    eventually("nobody is to be asked", || !asks(&node));
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());
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

/// The node behind which the ipcache has a prefix, for the tunnel.
fn tunnel_of(node: &TestNode, prefix: &str) -> String {
    let all = node.client().ips(&IpQuery::default()).unwrap();
    all.into_iter().find(|row| row.cidr == prefix).map(|row| row.host_ip).unwrap_or_default()
}

fn node_json(name: &str, addresses: &str, range: &str) -> (String, String) {
    let entry = format!(
        r#"{{"Name":"{name}","Cluster":"cluster1","IPAddresses":[{addresses}],"IPv4AllocCIDR":{{"IP":"{range}","Mask":"////AA=="}},"ClusterID":238}}"#
    );
    (format!("cilium/state/nodes/v1/cluster1/{name}"), entry)
}

#[test]
fn an_outside_machine_whose_host_is_no_node_is_reached_without_the_tunnel() {
    alone!();
    join_b();
    // The machine of the published lines: it unwraps nothing.
    for line in ["-n b addr add 10.3.192.65/24 dev up0", "-n b route add 10.11.0.0/24 via 10.3.9.1"] {
        run_ip(line);
    }
    run_ip("route add 10.3.192.0/24 dev up0 src 10.3.9.1");
    run_ip("route add default via 10.3.9.2");
    let machine = NetnsRef::Name("b".into()).open().unwrap();
    let at = SocketAddr::new("10.3.192.65".parse().unwrap(), 80);
    serves(&machine, at);
    let mut etcd = EtcdServer::start();
    let (key, entry) = node_json("other", r#"{"Type":"InternalIP","IP":"10.3.9.20"}"#, "10.70.0.0");
    etcd.etcdctl(&["put", &key, &entry]).unwrap();
    let mut node = new(&with(shared(&etcd), &[("routing-mode", "tunnel")]));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    server.serves(server.v4(), 80);
    node.import(LETS_IN);
    let to_server = SocketAddr::new(server.v4(), 80);
    let from = || {
        machine.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(at.ip(), 0).into())?;
            socket.connect_timeout(&to_server.into(), SHORT)
        })
    };
    let reaches = || from().unwrap().is_ok();
    assert!(!reaches(), "nobody knows the machine");
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    eventually("the machine reaches the workload by its labels", reaches);
    assert!(server.asks(at.ip(), 80), "and the other way round");
    assert_eq!(tunnel_of(&node, "10.3.192.65/32"), "");

    // Its host turns out to be a node, which moves, and goes.
    let (key, entry) = node_json("hyp", r#"{"Type":"InternalIP","IP":"10.3.9.10"}"#, "10.77.0.0");
    etcd.etcdctl(&["put", &key, &entry]).unwrap();
    eventually("the way to it is the tunnel", || tunnel_of(&node, "10.3.192.65/32") == "10.3.9.10");
    assert!(!reaches(), "what comes without the tunnel is not believed");
    etcd.etcdctl(&["put", &key, &entry.replace("9.10", "9.11")]).unwrap();
    eventually("it is not", || tunnel_of(&node, "10.3.192.65/32").is_empty());
    eventually("the machine is reached", || reaches() && server.asks(at.ip(), 80));
    etcd.etcdctl(&["put", &key, &entry]).unwrap();
    eventually("it is again", || tunnel_of(&node, "10.3.192.65/32") == "10.3.9.10");
    etcd.etcdctl(&["del", &key]).unwrap();
    eventually("no more", || tunnel_of(&node, "10.3.192.65/32").is_empty() && reaches());

    // An agent that starts anew keeps to it, without the store from the first packet on.
    let mut open = connect(&server.netns, at, PATIENCE).unwrap();
    node.stop();
    node.start();
    eventually("nodes are known again", reaches);
    assert!(echoes(&mut open) && server.asks(at.ip(), 80));
    node.stop();
    etcd.kill();
    node.start();
    assert_eq!(tunnel_of(&node, "10.3.192.65/32"), "");
    assert!(echoes(&mut open) && reaches() && server.asks(at.ip(), 80));
}

#[test]
fn nodes_without_an_ipv4_address_are_named_and_nothing_is_routed_into_the_tunnel_for_them() {
    alone!();
    join_b();
    run_ip("route add default via 10.3.9.2");
    let etcd = EtcdServer::start();
    let mut node = new(&with(shared(&etcd), &[("routing-mode", "tunnel")]));
    node.start();
    for (name, addresses, range) in [
        ("six", r#"{"Type":"InternalIP","IP":"fd00::6"}"#, "10.66.0.0"),
        ("four", r#"{"Type":"InternalIP","IP":"10.3.9.4"}"#, "10.64.0.0"),
    ] {
        let (key, entry) = node_json(name, addresses, range);
        etcd.etcdctl(&["put", &key, &entry]).unwrap();
    }
    let routes = || run("ip", &["route", "show", "proto", "119"]);
    let named = || status(&node).contains("no IPv4 address is known of cluster1/six:");
    eventually("it is named", named);
    eventually("the other is reached", || routes().contains("10.64.0.0/24 dev villus_vxlan"));
    assert!(!routes().contains("10.66.0.0"), "{}", routes());
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());
    let (key, entry) = node_json("six", r#"{"Type":"InternalIP","IP":"10.3.9.6"}"#, "10.66.0.0");
    etcd.etcdctl(&["put", &key, &entry]).unwrap();
    eventually("it has one", || !named() && routes().contains("10.66.0.0/24 dev villus_vxlan"));
}
