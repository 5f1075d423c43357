//! The node itself judged by a policy of its own, on the wire: published ports, errors of ICMP, fragments and path MTU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, io::ErrorKind, net::SocketAddr, time::Duration};

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
};
use villus_testbed::{
    Addresses, Blocked, Delta, Host, Kind, Node, NodeSpec, Ping, TcpEcho, UDP, UdpEcho, Version, eventually,
};

const SOON: Duration = Duration::from_secs(30);
/// How long it is waited for what must not come.
const SHORT: Duration = Duration::from_millis(150);
const REMOTE_NODE: u32 = 6;

/// A node whose policy lets nothing pass yet.
fn judged(beyond_mtu: u32) -> Node {
    let node = Node::new(NodeSpec { beyond_mtu, ..NodeSpec::default() });
    node.judge_host();
    node
}

const fn world(v: Version) -> u32 {
    match v {
        Version::V4 => 9,
        Version::V6 => 10,
    }
}

/// Asks over UDP, once, and does not wait long where nothing may pass.
fn asks(from: &Host, to: &Host, listen: SocketAddr, target: SocketAddr, passes: bool) -> bool {
    let echo = UdpEcho::open(from, None, to, listen, target);
    echo.patience(if passes { SOON } else { SHORT });
    echo.echo(b"question").is_ok()
}

#[test]
fn a_published_port_is_asked_for_as_the_nodes_own() {
    let mut node = judged(1500);
    let server = node.add(101, 50_101, Kind::Veth);
    node.allow_all(&server);
    for v in Version::ALL {
        let published = SocketAddr::new(Addresses::NODE.of(v), 8080);
        let own = SocketAddr::new(server.ip(v), 80);
        node.publish("udp", 8080, own.ip(), 80);
        let before = node.tally();
        assert!(!asks(&node.beyond, &server.host, own, published, false), "{v:?}: nothing is open");
        node.expect_drops("a published port", &before, Reason::POLICY, Ingress, 1);
        let behind = node.host_allow(Ingress, world(v), 80, UDP);
        assert!(
            !asks(&node.beyond, &server.host, own, published, false),
            "{v:?}: the port behind it is not the node's"
        );
        node.host_forget(&behind);
        let open = node.host_allow(Ingress, world(v), 8080, UDP);
        let before = node.tally();
        assert!(asks(&node.beyond, &server.host, own, published, true), "{v:?}");
        // The question is asked about twice, as the node's and as the workload's; the answer belongs to it.
        node.expect("an answer", &before, |delta| {
            Delta::same("drops", delta.drops(), BTreeMap::new())?;
            Delta::same("asked of the node", delta.asked_of_host(Ingress), 1)?;
            Delta::same("asked of the node's egress", delta.asked_of_host(Egress), 0)?;
            Delta::same("asked of the workload", delta.asked(&server, Ingress), 1)
        });
        node.host_forget(&open);
        assert!(!asks(&node.beyond, &server.host, own, published, false), "{v:?}: shut again");
    }
    drop(server);
    node.finish();
}

#[test]
fn errors_about_the_nodes_flows_come_back_and_nothing_else_does() {
    let node = judged(1500);
    for v in Version::ALL {
        let nobody = SocketAddr::new(Addresses::BEYOND.of(v), 9);
        node.host_allow(Egress, world(v), 9, UDP);
        let before = node.tally();
        let ping = Ping::open(&node.outside, None, Addresses::NODE.of(v));
        assert_eq!(ping.echo_within(SHORT), Err(Blocked::Back), "{v:?}: no message of ICMP may come in");
        node.expect_drops("a ping", &before, Reason::POLICY, Ingress, 1);

        let before = node.tally();
        let any = SocketAddr::new(if v == Version::V4 { [0; 4].into() } else { [0; 16].into() }, 0);
        let socket = node.host.run(|| std::net::UdpSocket::bind(any)).unwrap();
        socket.connect(nobody).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.send(b"anybody?").unwrap();
        let said = socket.recv(&mut [0; 64]).unwrap_err().kind();
        assert_eq!(said, ErrorKind::ConnectionRefused, "{v:?}: its own error reaches it");
        node.expect("an error", &before, |delta| {
            Delta::same("drops", delta.drops(), BTreeMap::new())?;
            Delta::same("asked of its egress", delta.asked_of_host(Egress), 1)?;
            Delta::same("asked of its ingress", delta.asked_of_host(Ingress), 0)
        });
    }
    node.finish();
}

#[test]
fn fragments_are_judged_by_the_ports_of_their_first() {
    let node = judged(1500);
    for v in Version::ALL {
        let at = SocketAddr::new(Addresses::NODE.of(v), 9000);
        let datagram = vec![7; 5000];
        let echo = UdpEcho::open(&node.outside, None, &node.host, at, at);
        let before = node.tally();
        echo.send(&datagram).unwrap();
        node.expect("all of its fragments", &before, |delta| {
            let packets: u64 = delta.drops().values().sum();
            Delta::same("drops", packets, 4)
        });
        assert!(!echo.heard(), "{v:?}");
        let open = node.host_allow(Ingress, REMOTE_NODE, 9000, UDP);
        echo.patience(SOON);
        let before = node.tally();
        assert!(echo.echo(&datagram).is_ok(), "{v:?}");
        node.expect("whole to and fro", &before, |delta| {
            Delta::same("drops", delta.drops(), BTreeMap::new())
        });
        // The other family's packets come from the same identity.
        node.host_forget(&open);
    }
    node.finish();
}

#[test]
fn the_node_learns_the_mtu_of_its_path() {
    let node = judged(1300);
    for v in Version::ALL {
        let at = SocketAddr::new(Addresses::BEYOND.of(v), 9000);
        node.host_allow(Egress, world(v), 9000, UDP);
        let payload = vec![3; if v == Version::V4 { 1472 } else { 1452 }];
        let echo = UdpEcho::open(&node.host, None, &node.beyond, at, at);
        let before = node.tally();
        echo.send(&payload).unwrap();
        let route = format!("route get {}", at.ip());
        eventually("the node has learned it", || node.host.ip(&route).contains("mtu 1300"));
        node.expect("a router's error", &before, |delta| {
            Delta::same("drops", delta.drops(), BTreeMap::new())
        });
        assert!(!echo.heard(), "{v:?}");
        echo.patience(SOON);
        // The error is also reported to the socket where it asked for that.
        let said = echo.echo(&payload).or_else(|_| echo.echo(&payload));
        assert!(said.is_ok(), "{v:?}: {said:?}");
    }
    node.finish();
}

#[test]
fn connections_of_the_node_hold_while_policy_holds() {
    let node = judged(1500);
    for v in Version::ALL {
        let at = SocketAddr::new(Addresses::BEYOND.of(v), 9001);
        let open = node.host_allow(Egress, world(v), 9001, villus_testbed::TCP);
        let mut connection = TcpEcho::open(&node.host, &node.beyond, at, at, SOON).unwrap();
        connection.patience(SOON);
        assert_eq!(connection.echo(&vec![1; 60_000]), Ok(()), "{v:?}");
        node.host_forget(&open);
        connection.patience(SHORT);
        assert!(connection.echo(b"more").is_err(), "{v:?}: cut at its next packet");
    }
    node.finish();
}
