//! What needs modules that not every kernel has: uplinks that are VLAN devices or bonds, for what is judged, masqueraded and
//! routed between nodes, and associations of SCTP (with
//! SCTP in the kernel, [`every_pair`] opens them; without, it only exchanges their first packets). `./dev test` runs this
//! file on Debian's kernel too, which has all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hook_table;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hook_table::every_pair;
use villus_abi::{Direction, flow::FLOW_VIA_STACK};
use villus_datapath::{AttachMode, Features};
use villus_testbed::{
    Addresses, Between, Blocked, Cluster, Host, Kind, Node, NodeSpec, Ping, SCTP, SctpAssociation, TCP,
    TcpEcho, UDP, UdpEcho, UplinkKind, Version, Workload, eventually, kernel_has_link_kind,
};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
/// Set where the modules are there: what is missing fails then.
const THERE: &str = "VILLUS_TEST_MODULES";

/// Whether a test can go on here.
fn has(what: &str, there: bool) -> bool {
    assert!(there || std::env::var_os(THERE).is_none(), "this kernel has no {what}");
    if !there {
        println!("not tested: this kernel has no {what}");
    }
    there
}

fn over_uplink(uplink: UplinkKind, kind: &str, direct: bool) {
    if has(&format!("devices of kind {kind}"), kernel_has_link_kind(kind)) {
        let attach = attach();
        every_pair(NodeSpec { uplink, direct, attach, ..NodeSpec::default() }, Kind::Veth, Kind::Veth);
    }
}

fn attach() -> AttachMode {
    if Features::probe().has_tcx() { AttachMode::Tcx } else { AttachMode::Tc }
}

#[test]
fn a_vlan_device_is_an_uplink() {
    over_uplink(UplinkKind::Vlan, "vlan", true);
}

#[test]
fn a_bond_is_an_uplink() {
    over_uplink(UplinkKind::Bond, "bond", false);
}

/// A node that masquerades over an uplink of a kind that not every kernel has.
fn masquerading(uplink: UplinkKind, kind: &str) -> Option<(Node, [Arc<Workload>; 2])> {
    if !has(&format!("devices of kind {kind}"), kernel_has_link_kind(kind)) {
        return None;
    }
    let mut node = Node::new(NodeSpec { uplink, nat: true, attach: attach(), ..NodeSpec::default() });
    let workloads = [node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth)];
    Some((node, workloads))
}

fn beyond(v: Version, port: u16) -> SocketAddr {
    SocketAddr::new(Addresses::BEYOND.of(v), port)
}

fn any(v: Version, port: u16) -> SocketAddr {
    SocketAddr::new(if v == Version::V4 { [0; 4].into() } else { [0; 16].into() }, port)
}

/// A datagram from a port, and its answer.
fn udp(from: &Host, to: &Host, v: Version, source: u16, at: SocketAddr) -> Result<SocketAddr, Blocked> {
    let echo = UdpEcho::open(from, Some(any(v, source)), to, at, at);
    echo.patience(SHORT);
    echo.echo(b"who is it").map(|exchange| exchange.seen)
}

/// Who leaves by the uplink bears the node's address, who may not does not leave; what comes in and what the node itself sends
/// is judged there.
fn leaves_and_is_judged(node: &Node, client: &Workload, server: &Workload) {
    node.allow_all(client);
    for v in Version::ALL {
        let (own, far) = (Addresses::NODE.of(v), beyond(v, 9000));
        // The neighbours are asked for first.
        Ping::open(&client.host, None, far.ip()).echo_within(LONG).unwrap();
        eventually("a datagram is answered", || {
            udp(&client.host, &node.beyond, v, 40_000, far) == Ok(SocketAddr::new(own, 40_000))
        });
        assert_eq!(udp(&server.host, &node.beyond, v, 40_000, far), Err(Blocked::Forward), "{v:?}");
        let key = node.allow(server, Direction::Egress, 0, 9000, UDP);
        let mut other = None;
        eventually("it may now", || {
            other = udp(&server.host, &node.beyond, v, 40_000, far).ok();
            other.is_some()
        });
        let other = other.unwrap();
        assert!(other.ip() == own && other.port() != 40_000, "{other}");
        node.forget(server, &key);

        let at = beyond(v, 9001);
        let mut tcp = TcpEcho::open(&client.host, &node.beyond, at, at, LONG).unwrap();
        tcp.stream(1_000_000).unwrap();
        tcp.answer(b"good bye").unwrap();
        assert_eq!(tcp.seen.ip(), own);

        // In by its own address, where policy allows it.
        let at = SocketAddr::new(server.ip(v), 9002);
        assert_eq!(udp(&node.beyond, &server.host, v, 0, at).map(|seen| seen.ip()), Err(Blocked::Forward));
        let key = node.allow(server, Direction::Ingress, 0, 9002, UDP);
        eventually("it is let in", || {
            udp(&node.beyond, &server.host, v, 0, at).map(|seen| seen.ip()) == Ok(far.ip())
        });
        node.forget(server, &key);
    }
    node.judge_host();
    for v in Version::ALL {
        let (out, into) = (beyond(v, 9003), SocketAddr::new(Addresses::NODE.of(v), 9004));
        assert_eq!(udp(&node.host, &node.beyond, v, 0, out), Err(Blocked::Forward), "{v:?}");
        assert_eq!(udp(&node.beyond, &node.host, v, 0, into), Err(Blocked::Forward), "{v:?}");
        let keys = [(Direction::Egress, 9003), (Direction::Ingress, 9004)]
            .map(|(direction, port)| node.host_allow(direction, 0, port, UDP));
        eventually("the node's own leaves", || udp(&node.host, &node.beyond, v, 0, out).is_ok());
        eventually("and is let in", || udp(&node.beyond, &node.host, v, 0, into).is_ok());
        keys.iter().for_each(|key| node.host_forget(key));
    }
}

#[test]
fn what_leaves_by_a_vlan_device_is_judged_and_masqueraded() {
    let Some((node, [client, server])) = masquerading(UplinkKind::Vlan, "vlan") else { return };
    leaves_and_is_judged(&node, &client, &server);
    drop((client, server));
    node.finish();
}

/// The member that a bond uses.
fn active(host: &Host) -> String {
    let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/bonding/bond0")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Currently Active Slave: "));
    line.unwrap_or_default().to_owned()
}

/// Connections go on when the member dies that carries them, and new ones come about.
fn survives_its_members(node: &Node, client: &Workload) {
    let mut open: Vec<TcpEcho> = Version::ALL
        .map(|v| TcpEcho::open(&client.host, &node.beyond, beyond(v, 9001), beyond(v, 9001), LONG).unwrap())
        .into();
    for dying in ["far0", "far1"] {
        let member = dying.replace("far", "up");
        eventually("the member carries everything", || active(&node.host) == member);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let traffic = |stream: &mut TcpEcho| {
                while !stop.load(Ordering::Relaxed) {
                    stream.echo(&[7; 4000]).unwrap();
                }
                stream.stream(1_000_000).unwrap();
                stream.echo(b"after it").unwrap();
            };
            for stream in &mut open {
                scope.spawn(move || traffic(stream));
            }
            node.outside.ip(&format!("link set {dying} down"));
            eventually("the other one takes over", || active(&node.host) != member);
            stop.store(true, Ordering::Relaxed);
        });
        for v in Version::ALL {
            let own = Addresses::NODE.of(v);
            eventually("new flows leave", || {
                let seen = udp(&client.host, &node.beyond, v, 40_000, beyond(v, 9000));
                seen.is_ok_and(|seen| seen == SocketAddr::new(own, 40_000))
            });
        }
        node.outside.ip(&format!("link set {dying} up"));
        eventually("it is a member again", || {
            node.host.ip(&format!("link show {member}")).contains("state UP")
        });
    }
}

#[test]
fn what_leaves_by_a_bond_is_judged_and_masqueraded_also_when_a_member_dies() {
    let Some((node, [client, server])) = masquerading(UplinkKind::Bond, "bond") else { return };
    node.allow_all(&client);
    survives_its_members(&node, &client);
    leaves_and_is_judged(&node, &client, &server);
    drop((client, server));
    node.finish();
}

#[test]
fn pods_of_two_nodes_meet_over_vlan_devices_on_bonds_past_the_stack_also_when_a_member_dies() {
    if !has("devices of kind bond and vlan", ["bond", "vlan"].into_iter().all(kernel_has_link_kind)) {
        return;
    }
    let cluster = Cluster::over(UplinkKind::BondVlan, Between::Routes, 2);
    let (a, b) = (cluster.node(1), cluster.node(2));
    let both = |v| {
        let at = SocketAddr::new(b.pod(v), 9000);
        udp(&a.pod, &b.pod, v, 0, at).map(|seen| seen.ip())
    };
    for v in Version::ALL {
        assert_eq!(both(v), Err(Blocked::Forward), "{v:?}");
    }
    let keys =
        [a.allow(Direction::Egress, b.identity(), 0, 0), b.allow(Direction::Ingress, a.identity(), 0, 0)];
    for v in Version::ALL {
        eventually("the pod is reached", || both(v) == Ok(a.pod(v)));
        let at = SocketAddr::new(b.pod(v), 9001);
        let mut tcp = TcpEcho::open(&a.pod, &b.pod, at, at, LONG).unwrap();
        tcp.stream(1_000_000).unwrap();
        let member = active(&a.host);
        let port = if member == "up0" { "p1" } else { "q1" };
        cluster.lan.ip(&format!("link set {port} down"));
        tcp.echo(b"over the other one").unwrap();
        assert_ne!(active(&a.host), member);
        cluster.lan.ip(&format!("link set {port} up"));
        eventually("it is a member again", || a.host.ip(&format!("link show {member}")).contains("state UP"));
        tcp.stream(1_000_000).unwrap();
    }
    let flows = b.flows().list().unwrap();
    let past = flows.iter().filter(|(key, _)| key.proto() == TCP);
    assert!(
        past.clone().count() > 0 && past.clone().all(|(_, flow)| flow.flags & FLOW_VIA_STACK == 0),
        "{flows:?}"
    );
    b.forget(&keys[1]);
    for v in Version::ALL {
        assert_eq!(both(v), Err(Blocked::Forward), "{v:?}");
    }
}

#[test]
fn an_association_is_cut_when_its_entry_goes_and_heals_when_it_comes_back() {
    if !has("SCTP", SctpAssociation::kernel_has_it()) {
        return;
    }
    let mut node = Node::new(NodeSpec { attach: attach(), ..NodeSpec::default() });
    let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    node.allow_all(&client);
    for v in Version::ALL {
        let at = SocketAddr::new(server.ip(v), 9000);
        node.allow(&server, Direction::Ingress, client.identity, 9000, TCP);
        let opened = SctpAssociation::open(&client.host, &server.host, at, at, SHORT);
        assert!(opened.is_err(), "{v:?}: the port is open to another protocol only");
        let key = node.allow(&server, Direction::Ingress, client.identity, 9000, SCTP);
        let mut open = SctpAssociation::open(&client.host, &server.host, at, at, LONG).unwrap();
        assert_eq!(open.echo(b"hello"), Ok(()), "{v:?}");
        node.forget(&server, &key);
        open.patience(SHORT);
        assert_eq!(open.echo(b"hello"), Err(Blocked::Forward), "{v:?}");
        node.allow(&server, Direction::Ingress, client.identity, 9000, SCTP);
        open.patience(LONG);
        // What was sent in between is sent again.
        assert_eq!(open.answer_of(b"hello"), Ok(()), "{v:?}");
        open.close();
        node.forget_all(&server);
    }
    drop((client, server));
    node.finish();
}
