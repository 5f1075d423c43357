//! Everybody who speaks to everybody: the cases of the hook table, and what each must do to the counters.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use villus_abi::{Direction, Reason};
use villus_testbed::{
    Addresses, Delta, Host, Kind, Node, NodeSpec, Ping, SctpAssociation, SctpEcho, Tally, TcpEcho, UdpEcho,
    Version, Workload,
};

const ROUNDS: u64 = 5;
const SHORT: Duration = Duration::from_millis(150);
const HOST: u32 = 1;
const REMOTE_NODE: u32 = 6;

/// One who speaks to another.
pub struct Case<'a> {
    name: &'a str,
    from: (&'a Host, Option<&'a Workload>),
    to: (&'a Host, Option<&'a Workload>),
    /// The address that is spoken to.
    target: IpAddr,
    /// The address that hears it.
    listen: IpAddr,
    /// The port spoken to and the one that hears it, where they differ.
    published: Option<(u16, u16)>,
    /// Whom the sender's policy is asked about, and whom the receiver's.
    identities: (u32, u32),
    /// Flows that the path sees: translated ones look different to each end.
    flows: usize,
}

fn world(version: Version) -> u32 {
    match version {
        Version::V4 => 9,
        Version::V6 => 10,
    }
}

fn fresh_port() -> u16 {
    static PORT: AtomicU16 = AtomicU16::new(2000);
    PORT.fetch_add(1, Ordering::Relaxed)
}

const VIRTUAL: u8 = 10;
const VIRTUAL_HAIRPIN: u8 = 11;
const PUBLISHED: (u16, u16) = (8080, 80);

fn cases<'a>(node: &'a Node, client: &'a Workload, server: &'a Workload, v: Version) -> Vec<Case<'a>> {
    let (c, s) = ((&client.host, Some(client)), (&server.host, Some(server)));
    let (host, outside, beyond) = ((&node.host, None), (&node.outside, None), (&node.beyond, None));
    let case = |name, from, to, target: IpAddr, identities| Case {
        name,
        from,
        to,
        target,
        listen: target,
        published: None,
        identities,
        flows: 1,
    };
    let at = |addresses: Addresses| addresses.of(v);
    let vip = at(Addresses::virtual_ip(VIRTUAL));
    let hairpin = at(Addresses::virtual_ip(VIRTUAL_HAIRPIN));
    let node_ip = at(Addresses::NODE);
    vec![
        case("endpoint to endpoint", c, s, server.ip(v), (server.identity, client.identity)),
        case("host process to endpoint", host, s, server.ip(v), (0, HOST)),
        case("endpoint to host process on the router", c, host, at(Addresses::ROUTER), (HOST, 0)),
        case("endpoint to host process on the uplink", c, host, node_ip, (HOST, 0)),
        case("other node to endpoint", outside, s, server.ip(v), (0, REMOTE_NODE)),
        case("endpoint to other node", c, outside, at(Addresses::OUTSIDE), (REMOTE_NODE, 0)),
        case("world to endpoint", beyond, s, server.ip(v), (0, world(v))),
        case("endpoint to world", c, beyond, at(Addresses::BEYOND), (world(v), 0)),
        Case {
            listen: server.ip(v),
            flows: 2,
            ..case("endpoint to translated endpoint", c, s, vip, (world(v), client.identity))
        },
        Case {
            listen: client.ip(v),
            flows: 2,
            ..case("endpoint to translated self", c, c, hairpin, (world(v), client.identity))
        },
        Case { listen: server.ip(v), ..case("host process to translated endpoint", host, s, vip, (0, HOST)) },
        Case {
            listen: server.ip(v),
            ..case("other node to translated endpoint", outside, s, vip, (0, REMOTE_NODE))
        },
        Case {
            listen: server.ip(v),
            published: Some(PUBLISHED),
            ..case("world to published port", beyond, s, node_ip, (0, world(v)))
        },
        Case {
            listen: server.ip(v),
            published: Some(PUBLISHED),
            flows: 2,
            ..case("endpoint to published port", c, s, node_ip, (HOST, client.identity))
        },
    ]
}

impl Case<'_> {
    /// With an entry on each side, every protocol passes.
    fn passes(&self, node: &Node) {
        self.forbid(node);
        self.allow(node);
        self.udp(node);
        self.tcp(node);
        self.udp_fragments(node);
        if self.published.is_none() {
            self.icmp(node);
            self.sctp(node);
        }
    }

    /// Without the entry on one side, nothing does.
    fn is_blocked(&self, node: &Node) {
        if self.from.1.is_some() {
            self.forbid(node);
            self.allow_in(node);
            self.blocked(node, Direction::Egress);
        }
        if self.to.1.is_some() {
            self.forbid(node);
            if let Some(from) = self.from.1 {
                node.allow(from, Direction::Egress, self.identities.0, 0, 0);
            }
            self.blocked(node, Direction::Ingress);
        }
        self.forbid(node);
    }

    fn ports(&self) -> (u16, u16) {
        self.published.unwrap_or_else(|| {
            let port = fresh_port();
            (port, port)
        })
    }

    fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.target, port)
    }

    fn allow(&self, node: &Node) {
        if let Some(from) = self.from.1 {
            node.allow(from, Direction::Egress, self.identities.0, 0, 0);
        }
        self.allow_in(node);
    }

    fn allow_in(&self, node: &Node) {
        if let Some(to) = self.to.1 {
            node.allow(to, Direction::Ingress, self.identities.1, 0, 0);
        }
    }

    fn forbid(&self, node: &Node) {
        node.flush_flows();
        for workload in [self.from.1, self.to.1].into_iter().flatten() {
            node.forget_all(workload);
        }
    }

    /// What so many packets there and so many back must have done to all counters; `None` where the flow says.
    fn counted(&self, delta: &Delta, packets: Option<(u64, u64)>) -> Result<(), String> {
        Delta::same("drops", delta.drops(), BTreeMap::new())?;
        Delta::same("flows", delta.flows.len(), self.flows)?;
        let (there, back) = packets.unwrap_or((delta.flows[0].1.fwd_packets, delta.flows[0].1.rev_packets));
        for (_, flow) in &delta.flows {
            Delta::same("packets of the flow", (flow.fwd_packets, flow.rev_packets), (there, back))?;
        }
        for (workload, direction) in [(self.from.1, Direction::Egress), (self.to.1, Direction::Ingress)] {
            if let Some(workload) = workload {
                Delta::same("packets policy was asked for", delta.asked(workload, direction), there)?;
            }
        }
        let of = |side: Option<&Workload>, packets: u64| if side.is_some() { packets } else { 0 };
        let (from, to) = (self.from.1, self.to.1);
        let out = of(from, there) + of(to, back);
        Delta::same("forwarded out of endpoints", delta.forwarded(Direction::Egress), out)?;
        let into = of(to, there) + of(from, back);
        Delta::same("forwarded to endpoints", delta.forwarded(Direction::Ingress), into)?;
        let asked: u64 = delta.policy.values().sum();
        Delta::same("packets all policies were asked for", asked, of(from, there) + of(to, there))?;
        delta.every_sent_packet_counted_once()
    }

    fn expect(&self, node: &Node, what: &str, before: &Tally, packets: Option<(u64, u64)>) {
        node.expect(&format!("{}, {what}", self.name), before, |delta| self.counted(delta, packets));
    }

    fn udp(&self, node: &Node) {
        let (port, hears) = self.ports();
        let listen = SocketAddr::new(self.listen, hears);
        let before = node.tally();
        let echo = UdpEcho::open(self.from.0, None, self.to.0, listen, self.target(port));
        for round in 0..ROUNDS {
            let said = echo.echo(format!("round {round}").as_bytes());
            assert!(said.is_ok(), "{}: UDP {said:?}", self.name);
        }
        self.expect(node, "UDP", &before, Some((ROUNDS, ROUNDS)));
    }

    fn udp_fragments(&self, node: &Node) {
        let (port, hears) = self.ports();
        let listen = SocketAddr::new(self.listen, hears);
        let before = node.tally();
        let echo = UdpEcho::open(self.from.0, None, self.to.0, listen, self.target(port));
        let said = echo.echo(&vec![0xf5; 4000]);
        assert!(said.is_ok(), "{}: fragments {said:?}", self.name);
        self.expect(node, "fragments", &before, Some((3, 3)));
    }

    fn tcp(&self, node: &Node) {
        let (port, hears) = self.ports();
        let listen = SocketAddr::new(self.listen, hears);
        let before = node.tally();
        let opened =
            TcpEcho::open(self.from.0, self.to.0, listen, self.target(port), Duration::from_secs(30));
        let mut echo = opened.unwrap_or_else(|e| panic!("{}: TCP {e:?}", self.name));
        for size in [1, 100, 20_000] {
            assert_eq!(echo.echo(&vec![7; size]), Ok(()), "{}: TCP of {size} bytes", self.name);
        }
        echo.close(self.to.0);
        self.expect(node, "TCP", &before, None);
    }

    fn icmp(&self, node: &Node) {
        let before = node.tally();
        let ping = Ping::open(self.from.0, None, self.target);
        for _ in 0..ROUNDS {
            assert_eq!(ping.echo(56), Ok(()), "{}: echo", self.name);
        }
        self.expect(node, "ICMP", &before, Some((ROUNDS, ROUNDS)));
    }

    fn sctp(&self, node: &Node) {
        if SctpAssociation::kernel_has_it() {
            self.association(node);
        } else {
            self.first_packets_of_sctp(node);
        }
    }

    fn association(&self, node: &Node) {
        let port = fresh_port();
        let before = node.tally();
        let listen = SocketAddr::new(self.listen, port);
        let opened =
            SctpAssociation::open(self.from.0, self.to.0, listen, self.target(port), Duration::from_secs(60));
        let mut association = opened.unwrap_or_else(|e| panic!("{}: SCTP {e:?}", self.name));
        for size in [1, 100, 5_000] {
            assert_eq!(association.echo(&vec![7; size]), Ok(()), "{}: SCTP of {size} bytes", self.name);
        }
        association.close();
        self.expect(node, "SCTP", &before, None);
    }

    fn first_packets_of_sctp(&self, node: &Node) {
        let (port, source) = (fresh_port(), fresh_port());
        let before = node.tally();
        let echo = SctpEcho::open(
            self.from.0,
            self.to.0,
            SocketAddr::new(self.listen, port),
            self.target(port),
            source,
        );
        let said = echo.echo(Duration::from_secs(30));
        assert!(said.is_ok(), "{}: SCTP {said:?}", self.name);
        self.expect(node, "SCTP", &before, Some((1, 1)));
    }

    /// Nothing reaches the other side, and one packet is counted as dropped there.
    fn blocked(&self, node: &Node, direction: Direction) {
        let what = |kind: &str| format!("{}, {kind} blocked at {}", self.name, direction.name());
        let (port, hears) = self.ports();
        let listen = SocketAddr::new(self.listen, hears);

        let before = node.tally();
        let echo = UdpEcho::open(self.from.0, None, self.to.0, listen, self.target(port));
        echo.send(b"no").unwrap();
        node.expect_drops(&what("UDP"), &before, Reason::POLICY, direction, 1);
        assert!(!echo.heard(), "{}", what("UDP"));
        drop(echo);

        // On a busy machine the kernel may have said it again before it was given up.
        let dropped = |what: &str, before: &Tally| {
            let key = (Reason::POLICY.0, direction as u8);
            node.expect(what, before, |delta| {
                let drops = delta.drops();
                let said = match self.from.1 {
                    Some(from) => delta.sent.get(&from.id).copied().unwrap_or(0),
                    None => drops.get(&key).copied().unwrap_or(0),
                };
                Delta::same("drops", drops, BTreeMap::from([(key, said.max(1))]))
            });
        };
        let before = node.tally();
        let opened = TcpEcho::open(self.from.0, self.to.0, listen, self.target(port), SHORT);
        assert!(opened.is_err(), "{}", what("TCP"));
        dropped(&what("TCP"), &before);

        if self.published.is_none() && SctpAssociation::kernel_has_it() {
            let before = node.tally();
            let opened = SctpAssociation::open(self.from.0, self.to.0, listen, self.target(port), SHORT);
            assert!(opened.is_err(), "{}", what("SCTP"));
            dropped(&what("SCTP"), &before);
        }

        if self.published.is_none() {
            let before = node.tally();
            let ping = Ping::open(self.from.0, None, self.target);
            // A process of the node is told at once that its packet was dropped, where the kernel does that.
            let _ = ping.send(56);
            node.expect_drops(&what("ICMP"), &before, Reason::POLICY, direction, 1);
        }
        let left = node.flows().list().unwrap();
        let admitted = |flags: u32| flags & villus_abi::flow::FLOW_INGRESS_ADMITTED != 0;
        assert!(left.iter().all(|(_, flow)| !admitted(flow.flags)), "{}: {left:?}", what("a flow is left"));
    }
}

/// Builds a node with two workloads and runs all cases.
pub fn every_pair(spec: NodeSpec, client: Kind, server: Kind) {
    let mut node = Node::new(spec);
    let (client, server) = (node.add(101, 50_101, client), node.add(102, 50_102, server));
    run(&node, &client, &server);
    drop((client, server));
    node.finish();
}

/// Runs all cases between two workloads of a node and everybody else, in both families. Both have empty policies.
fn run(node: &Node, client: &Workload, server: &Workload) {
    for v in Version::ALL {
        node.translate(Addresses::virtual_ip(VIRTUAL).of(v), server.ip(v));
        node.translate(Addresses::virtual_ip(VIRTUAL_HAIRPIN).of(v), client.ip(v));
        node.hairpin(client.ip(v));
        // The next router is known, so that the short way to it is open.
        assert_eq!(Ping::open(&node.host, None, Addresses::OUTSIDE.of(v)).echo(8), Ok(()));
        for proto in ["tcp", "udp"] {
            node.publish(proto, PUBLISHED.0, server.ip(v), PUBLISHED.1);
        }
    }
    for v in Version::ALL {
        for case in cases(node, client, server, v) {
            case.passes(node);
            case.is_blocked(node);
        }
    }
}
