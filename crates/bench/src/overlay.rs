//! Real traffic between pods of two nodes: our native routing beside plain routes, our tunnel beside the kernel's own VXLAN
//! device with fixed neighbours.
//!
//! All four pairs of nodes are joined by the same links to a bridge of their own, and none translates addresses. Ours judge every
//! packet on both sides, by policies that allow the benchmark's ports. `VILLUS_BENCH_OBJECT` names another kernel object to run.

use std::time::Duration;

use anyhow::Result;
use villus_testbed::{Between, Cluster, Host, Version, join};

use crate::{
    load::{Place, Servers},
    report::Row,
    wire::{Beside, Goal, Pair, average, connections, p99, stream, streams},
};

/// MTU of the nodes' network; pods behind a tunnel have what is left in it.
const MTU: u32 = 1500;
const INSIDE_MTU: u32 = 1450;
/// Many short rounds, so that what else the machine does meets both sides alike, and all cases end within two minutes.
const ROUNDS: (usize, Duration) = (39, Duration::from_millis(50));

/// On one CPU nobody has to be woken on another, which is most of a round trip between two and little of what nodes do.
const CASES: [&str; 6] = [
    "TCP stream",
    "eight TCP streams",
    "round trip on one CPU",
    "round trip on one CPU, p99",
    "round trip on two CPUs",
    "connect/request/close",
];

/// Two nodes with a pod each, and no program anywhere.
struct PlainNodes {
    _lan: Host,
    nodes: Vec<Host>,
    pods: Vec<Host>,
}

impl PlainNodes {
    fn new(between: Between) -> Self {
        let lan = Host::new("plain network");
        lan.ip("link add br0 type bridge mcast_snooping 0");
        lan.ip("link set br0 up");
        let (nodes, pods) = (1..=2).map(|number| Self::node(&lan, number)).unzip();
        let plain = Self { _lan: lan, nodes, pods };
        for (number, other) in [(1, 2), (2, 1)] {
            plain.know(between, number, other);
        }
        plain
    }

    fn node(lan: &Host, number: u8) -> (Host, Host) {
        let (node, pod) = (Host::new(&format!("plain {number}")), Host::new(&format!("plain pod {number}")));
        let port = format!("p{number}");
        join(&node, "up0", lan, &port, MTU);
        lan.ip(&format!("link set {port} master br0"));
        node.forward();
        node.add_address("up0", &format!("192.0.2.{}/24", 10 + number));
        node.add_address("up0", &format!("2001:db8::{number}/64"));
        node.add_address("lo", &format!("10.9.{number}.1/32"));
        node.add_address("lo", &format!("fd09:{number}::1/128"));
        join(&node, "near", &pod, "eth0", MTU);
        let (near, mac) = (node.mac("near"), pod.mac("eth0"));
        for (v, address, gateway) in [
            ("-4", format!("10.9.{number}.101"), format!("10.9.{number}.1")),
            ("-6", format!("fd09:{number}::65"), format!("fd09:{number}::1")),
        ] {
            let nodad = if v == "-6" { " nodad" } else { "" };
            pod.ip(&format!("{v} addr add {address} dev eth0{nodad}"));
            pod.ip(&format!("{v} neigh add {gateway} lladdr {near} dev eth0 nud permanent"));
            pod.ip(&format!("{v} route add {gateway} dev eth0 src {address}"));
            pod.ip(&format!("{v} route add default via {gateway} dev eth0 src {address}"));
            node.ip(&format!("{v} neigh add {address} lladdr {mac} dev near nud permanent"));
            node.ip(&format!("{v} route add {address} dev near src {gateway}"));
        }
        (node, pod)
    }

    /// Tells one node the way to the other's pod.
    fn know(&self, between: Between, number: u8, other: u8) {
        let node = &self.nodes[usize::from(number) - 1];
        if between == Between::Routes {
            node.ip(&format!("route add 10.9.{other}.0/24 via 192.0.2.{}", 10 + other));
            node.ip(&format!("-6 route add fd09:{other}::/64 via 2001:db8::{other}"));
            return;
        }
        let mac = |number| format!("02:00:00:00:0a:{number:02x}");
        node.ip(&format!(
            "link add vx0 address {} mtu {INSIDE_MTU} type vxlan id 1 dstport 8472 dev up0 local 192.0.2.{} nolearning",
            mac(number),
            10 + number
        ));
        node.ip("link set vx0 up");
        let peer = format!("fdb append {} dev vx0 dst 192.0.2.{}", mac(other), 10 + other);
        node.command("bridge", &peer.split(' ').collect::<Vec<_>>());
        for (v, gateway, net) in [
            ("-4", format!("10.9.{other}.1"), format!("10.9.{other}.0/24")),
            ("-6", format!("fd09:{other}::1"), format!("fd09:{other}::/64")),
        ] {
            node.ip(&format!("{v} neigh add {gateway} lladdr {} dev vx0 nud permanent", mac(other)));
            node.ip(&format!("{v} route add {net} via {gateway} dev vx0 onlink"));
        }
    }
}

/// Runs the benchmark.
pub fn run(only: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (between, way, name) in [
        (Between::Routes, "native", "plain routing, no policy"),
        (Between::Tunnel, "VXLAN", "the kernel's VXLAN, no policy"),
    ] {
        let case = |version: Version, what: &str| format!("{way}, {version:?}, {what}");
        if Version::ALL.iter().all(|version| CASES.iter().all(|what| !case(*version, what).contains(only))) {
            continue;
        }
        let (ours, plain) = (Cluster::new(between, 2), PlainNodes::new(between));
        for member in &ours.members {
            member.allow_all();
        }
        if between == Between::Tunnel {
            for pod in ours.members.iter().map(|member| &member.pod).chain(&plain.pods) {
                pod.ip(&format!("link set eth0 mtu {INSIDE_MTU}"));
            }
        }
        for version in Version::ALL {
            let to = ours.node(2).pod(version);
            let _servers =
                [Servers::start(ours.node(2).pod.netns(), to)?, Servers::start(plain.pods[1].netns(), to)?];
            let beside = Beside {
                ours: &Pair { from: ours.node(1).pod.netns(), to },
                baseline: &Pair { from: plain.pods[0].netns(), to },
                name,
                only,
                rounds: ROUNDS,
            };
            let [long, many, near, tail, far, short] = CASES.map(|what| case(version, what));
            beside.compare(&mut rows, (&long, "Gbit/s", Goal::AtLeast(1.0)), stream)?;
            beside.compare(&mut rows, (&many, "Gbit/s", Goal::AtLeast(1.0)), streams)?;
            beside.compare(&mut rows, (&near, "us", Goal::AtMost(1.0)), average(Place::Together))?;
            beside.compare(&mut rows, (&tail, "us", Goal::AtMost(1.0)), p99(Place::Together))?;
            beside.compare(&mut rows, (&far, "us", Goal::AtMost(1.0)), average(Place::of_two()?))?;
            beside.compare(&mut rows, (&short, "1/s", Goal::AtLeast(1.0)), connections)?;
        }
    }
    Ok(rows)
}
