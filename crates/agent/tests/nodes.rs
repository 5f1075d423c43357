//! Three nodes, each an agent of its own, and one store: packets between their workloads, routed and in the tunnel.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::{TestNode, Workload, allow, echoes};
use villus_api::model::VerifyRequest;
use villus_net::NetnsRef;
use villus_testbed::{EtcdServer, alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Three namespaces on one network, which the test's own namespace is.
fn network() {
    run("ip", &["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
    run("ip", &["addr", "add", "192.0.2.1/24", "dev", "br0"]);
    run("ip", &["addr", "add", "2001:db8::1/64", "dev", "br0", "nodad"]);
    run("ip", &["link", "set", "br0", "up"]);
    for n in 1..=3 {
        let (node, port) = (format!("n{n}"), format!("p{n}"));
        run("ip", &["netns", "add", &node]);
        run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "up0", "netns", &node]);
        run("ip", &["link", "set", &port, "master", "br0", "up"]);
        let inside = |arguments: &str| {
            run("ip", &["-n", &node].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>())
        };
        inside("link set lo up");
        inside("link set up0 up");
        inside(&format!("addr add 192.0.2.1{n}/24 dev up0"));
        inside(&format!("addr add 2001:db8::1{n}/64 dev up0 nodad"));
        inside("route add default via 192.0.2.1");
        inside("-6 route add default via 2001:db8::1");
    }
}

fn node(n: u8, etcd: &EtcdServer, mode: &[(&str, &str)]) -> TestNode {
    let opt = format!(r#"{{"etcd.address": "{}"}}"#, etcd.url());
    let (name, v4, v6) = (format!("n{n}"), format!("10.1{n}.0.0/24"), format!("fd1{n}::/112"));
    let mut options = vec![
        ("kvstore", "etcd"),
        ("kvstore-opt", &opt),
        ("cluster-id", "7"),
        ("cluster-name", "seven"),
        ("node-name", &name),
        ("ipv4-range", &v4),
        ("ipv6-range", &v6),
    ];
    options.extend(mode);
    let mut node = TestNode::at(format!("/tmp/{name}").into(), Some(&name), &options);
    node.start();
    node
}

fn is_clean(node: &TestNode) -> bool {
    node.client().verify(&VerifyRequest::default()).unwrap().clean()
}

/// Our routes to other nodes' prefixes.
fn routes(node: &str, family: &str) -> Vec<String> {
    let shown = run("ip", &["-n", node, family, "route", "show", "proto", "119"]);
    shown.lines().map(str::to_owned).collect()
}

/// One workload asks another over both families.
fn asks(from: &Workload, to: &Workload) -> bool {
    from.asks(to.v4(), 80) && from.asks(to.v6(), 80)
}

/// From where somebody hears a datagram that a workload sends. What the neighbour table delays is sent again.
fn heard(workload: &Workload, v6: bool, server: &UdpSocket) -> IpAddr {
    server.set_nonblocking(true).unwrap();
    let socket = workload.udp(if v6 { workload.v6() } else { workload.v4() }, 0);
    let (mut from, mut buffer) = (None, [0; 8]);
    eventually("a datagram is heard", || {
        socket.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        from = server.recv_from(&mut buffer).ok().map(|(_, from)| from.ip());
        from.is_some()
    });
    from.unwrap()
}

/// What stays in the cluster keeps its addresses, what leaves it bears the node's.
fn leaves_masqueraded(client: &Workload, other: &Workload) {
    let bind = |ip: IpAddr| UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
    for (v6, stranger, own, node) in [
        (false, "192.0.2.1", "192.0.2.11", "192.0.2.13"),
        (true, "2001:db8::1", "2001:db8::11", "2001:db8::13"),
    ] {
        let (at_home, there) = if v6 { (client.v6(), other.v6()) } else { (client.v4(), other.v4()) };
        assert_eq!(heard(client, v6, &bind(stranger.parse().unwrap())), own.parse::<IpAddr>().unwrap());
        assert_eq!(heard(client, v6, &other.udp(there, 7000)), at_home, "a pod of another node");
        let there = NetnsRef::Name("n3".into()).open().unwrap();
        let there = there.run(|| bind(node.parse().unwrap())).unwrap();
        assert_eq!(heard(client, v6, &there), at_home, "another node");
    }
}

fn between(mode: &[(&str, &str)]) {
    let masquerades = mode.iter().any(|(option, _)| *option == "enable-bpf-masquerade");
    network();
    let etcd = EtcdServer::cluster_at("192.0.2.1", 1, &[]);
    let mut nodes = [1, 2, 3].map(|n| node(n, &etcd[0], mode));
    let [client, server, other] = [("client", 0), ("server", 1), ("other", 2)].map(|(name, at)| {
        let workload: Workload = nodes[at].workload(name, &[&format!("k8s:app={name}")]);
        workload
    });
    nodes[1].import(&allow("web", "server", "client", 80));
    server.serves(server.v4(), 80);
    server.serves(server.v6(), 80);
    eventually("every node knows the ways to the others", || {
        ["n1", "n2", "n3"].iter().all(|n| routes(n, "-4").len() == 2 && routes(n, "-6").len() == 2)
    });
    eventually("the one that may is let in", || asks(&client, &server));
    assert!(other.asks_in_vain(server.v4(), 80) && other.asks_in_vain(server.v6(), 80));
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open));
    if masquerades {
        if mode.contains(&("enable-bpf-masquerade", "false")) {
            // The table is written seldom where it is large, and after the routes.
            eventually("the table knows the other nodes' ranges", || {
                let table = run("ip", &["netns", "exec", "n1", "nft", "list", "table", "inet", "villus"]);
                ["10.12.0.0/24", "10.13.0.0/24", "fd12::/112", "fd13::/112"]
                    .iter()
                    .all(|range| table.contains(range))
            });
        }
        leaves_masqueraded(&client, &other);
    }

    // A route that somebody takes comes back; one of somebody else's stays.
    run("ip", &["-n", "n1", "route", "add", "10.99.0.0/24", "via", "192.0.2.12"]);
    run("ip", &["-n", "n1", "route", "del", "10.12.0.0/24"]);
    eventually("the route comes back", || routes("n1", "-4").len() == 2);
    assert!(run("ip", &["-n", "n1", "route", "show"]).contains("10.99.0.0/24"));
    assert!(echoes(&mut open));

    // Agents that start again find everything at work and leave it so.
    for at in 0..2 {
        nodes[at].kill();
        assert!(echoes(&mut open));
        nodes[at].start();
        assert_eq!(routes(["n1", "n2"][at], "-4").len(), 2);
        assert!(echoes(&mut open));
    }
    eventually("all is as it should be", || nodes.iter().all(is_clean));
    assert!(asks(&client, &server) && other.asks_in_vain(server.v4(), 80));
    if masquerades {
        leaves_masqueraded(&client, &other);
    }
}

#[test]
fn workloads_of_three_nodes_meet_in_the_tunnel() {
    alone!();
    between(&[("routing-mode", "tunnel")]);
}

#[test]
fn workloads_of_three_nodes_meet_by_direct_routes() {
    alone!();
    between(&[
        ("auto-direct-node-routes", "true"),
        ("enable-ipv4-masquerade", "false"),
        ("enable-ipv6-masquerade", "false"),
    ]);
}

#[test]
fn workloads_of_three_nodes_meet_by_direct_routes_and_are_masqueraded_to_others() {
    alone!();
    between(&[("auto-direct-node-routes", "true"), ("enable-bpf-masquerade", "true")]);
}

#[test]
fn workloads_of_three_nodes_meet_by_direct_routes_and_are_masqueraded_to_others_by_nftables() {
    alone!();
    between(&[("auto-direct-node-routes", "true"), ("enable-bpf-masquerade", "false")]);
}

#[test]
fn nodes_are_let_in_by_their_labels_through_the_tunnel_and_beside_it() {
    alone!();
    network();
    let etcd = EtcdServer::cluster_at("192.0.2.1", 1, &[]);
    let node = |n, zone| {
        let labels = format!("zone={zone}");
        let mode = [
            ("routing-mode", "tunnel"),
            ("enable-node-selector-labels", "true"),
            ("node-labels", labels.as_str()),
        ];
        self::node(n, &etcd[0], &mode)
    };
    let nodes = [node(1, "east"), node(2, "east"), node(3, "west")];
    let server = nodes[1].workload("server", &["k8s:app=server"]);
    let client = nodes[1].workload("client", &["k8s:app=client"]);
    let policy = |subject: &str, rule: &str| {
        nodes[1].import(&format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {subject}, namespace: default}}\n\
             spec: {{endpointSelector: {{matchLabels: {{app: {subject}}}}}, {rule}}}\n"
        ))
    };
    policy("server", "ingress: [{fromNodes: [{matchLabels: {zone: east}}]}]");
    policy("client", "egress: [{toNodes: [{matchLabels: {zone: west}}]}]");
    let asks = |n: &str, patience: &str| {
        let to = server.v4().to_string();
        try_run("ip", &["netns", "exec", n, "ping", "-c1", "-W", patience, &to]).status.success()
    };
    // What a node itself sends comes through the tunnel and says that some node sent it.
    eventually("the node of the zone is let in", || asks("n1", "1"));
    eventually("its router is known by its zone", || {
        let ways = ["n1", "n2", "n3"].iter().all(|n| routes(n, "-4").len() == 2);
        ways && nodes.iter().all(is_clean)
    });
    assert!(!asks("n3", "1"));
    assert!(client.pings("192.0.2.13".parse().unwrap()));
    assert!(client.pings_in_vain("192.0.2.11".parse().unwrap()));
    policy("server", "ingress: [{fromNodes: [{matchLabels: {zone: west}}]}]");
    assert!(asks("n3", "10") && !asks("n1", "1"));
}
