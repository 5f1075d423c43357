//! What is put around packets for the tunnel past the stack, on the wire beside what the kernel's own device puts there: the same
//! bytes for the same packet, the same segments and sums, and the device where it must be that one. `./dev test` runs this file
//! on Debian's kernel too, which is older.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{net::SocketAddr, time::Duration};

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
};
use villus_net::TUNNEL_DEVICE;
use villus_path::memory::{Build, checksum};
use villus_testbed::{
    Between, Capture, Cluster, Frame, Member, Ping, TcpEcho, UdpEcho, UplinkKind, Version, a_jiffy_passes,
    eventually, kernel_has_link_kind,
};

const SOON: Duration = Duration::from_secs(30);
/// Bytes around a packet and its Ethernet header: IPv4, UDP and VXLAN, without the outer Ethernet header.
const INNER: usize = 14 + 20 + 8 + 8;
const PORT: u16 = 8472;

fn two() -> Cluster {
    let cluster = Cluster::new(Between::Tunnel, 2);
    prepare(&cluster);
    cluster
}

/// Pods may do everything, and send what fits into the tunnel; the nodes are neighbours that know each other.
fn prepare(cluster: &Cluster) {
    for member in &cluster.members {
        member.allow_all();
        member.pod.ip("link set eth0 mtu 1450");
    }
    let (a, b) = (cluster.node(1), cluster.node(2));
    assert_eq!(Ping::open(&a.host, None, b.address(Version::V4)).echo(8), Ok(()));
    assert_eq!(Ping::open(&a.pod, None, b.pod(Version::V4)).echo(8), Ok(()));
}

fn is_tunnels(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    bytes.len() > INNER && bytes[12..14] == [8, 0] && bytes[23] == 17 && bytes[36..38] == PORT.to_be_bytes()
}

/// Packets that the tunnel's device of a node has sent.
fn by_device(member: &Member) -> u64 {
    member.host.sent(TUNNEL_DEVICE)
}

/// A packet from one pod to the other's.
fn packet(cluster: &Cluster, version: Version, transport: &str, class: u8) -> Vec<u8> {
    let (a, b) = (cluster.node(1), cluster.node(2));
    let (from, to) = (a.pod(version), b.pod(version));
    let build = match transport {
        "TCP" => Build::tcp(from, 5000, to, 9000, 2),
        "UDP" => Build::udp(from, 5000, to, 9000),
        _ => Build::ping(from, to, 77),
    };
    let near = a.pod.mac("eth0");
    let mut bytes = Build { smac: near.0, dmac: a.gateway_mac().0, ..build }.frame();
    if version == Version::V6 {
        bytes[14] |= class >> 4;
        bytes[15] |= class << 4;
    } else {
        bytes[15] = class;
        bytes[24..26].fill(0);
        let sum = checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// What is on the wire when the pod of node 1 sends a frame.
fn on_the_wire(cluster: &Cluster, frame: &[u8]) -> Vec<u8> {
    let wire = Capture::open(&cluster.lan, "p1");
    let pod = Capture::open(&cluster.node(1).pod, "eth0");
    pod.send(frame);
    let inside = &frame[frame.len() - 20..];
    let ours = |frame: &Frame| is_tunnels(frame) && frame.bytes.ends_with(inside);
    wire.wait_for(SOON, ours).expect("it leaves the node").bytes
}

#[test]
fn around_a_packet_is_what_the_kernels_device_puts_there() {
    let cluster = two();
    let a = cluster.node(1);
    for version in Version::ALL {
        for transport in ["TCP", "UDP", "ICMP"] {
            for ecn in 0..4_u8 {
                let frame = packet(&cluster, version, transport, 0b0010_1000 | ecn);
                let what = format!("{version:?} {transport} {ecn}");
                a.wraps(true);
                let before = by_device(a);
                let mut ours = on_the_wire(&cluster, &frame);
                assert_eq!(by_device(a), before, "{what}: not the device's");
                a.wraps(false);
                let mut kernels = on_the_wire(&cluster, &frame);
                assert!(by_device(a) > before, "{what}: the device's");
                for outer in [&mut ours, &mut kernels] {
                    assert_eq!(checksum(&outer[14..34]), 0, "{what}");
                    // What is a number of the node's own, and the sum of it.
                    outer[18..20].fill(0);
                    outer[24..26].fill(0);
                }
                // The kernel's shows less of congestion than RFC 6040 asks for.
                assert_eq!((ours[15], kernels[15]), (ecn, if ecn == 3 { 2 } else { ecn }), "{what}");
                kernels[15] = ecn;
                assert_eq!(ours, kernels, "{what}");
            }
        }
    }
    assert_eq!((a.drops(), cluster.node(2).drops()), (vec![], vec![]));
}

/// Sends a lot from pod to pod by TCP. Mean size of a packet as the receiver's hook has seen it.
fn stream(cluster: &Cluster, version: Version) -> u64 {
    let (a, b) = (cluster.node(1), cluster.node(2));
    b.flows().flush().unwrap();
    let at = SocketAddr::new(b.pod(version), 9000);
    let mut open = TcpEcho::open(&a.pod, &b.pod, at, at, SOON).unwrap();
    open.patience(Duration::from_secs(60));
    open.stream(8 << 20).unwrap();
    let flows = b.flows().list().unwrap();
    let (_, flow) = flows.into_iter().max_by_key(|(_, flow)| flow.fwd_bytes).expect("a flow");
    flow.fwd_bytes / flow.fwd_packets
}

#[test]
fn trains_of_segments_stay_together_or_are_cut_right() {
    for version in Version::ALL {
        let cluster = two();
        let (a, b) = (cluster.node(1), cluster.node(2));
        let features = b.host.command("ethtool", &["-k", TUNNEL_DEVICE]);
        assert!(features.contains("generic-receive-offload: off"), "{features}");
        let before = by_device(a);
        let whole = stream(&cluster, version);
        assert!(whole > 5000, "{version:?}: {whole} bytes a packet: segments were not kept together");
        // A device that neither cuts nor sums has it done before.
        for (member, feature) in [(a, "tx-udp_tnl-segmentation"), (a, "gso"), (a, "tso"), (a, "tx")] {
            member.host.command("ethtool", &["-K", "up0", feature, "off"]);
            let wire = Capture::open(&cluster.lan, "p1");
            stream(&cluster, version);
            let large = |frame: &Frame| is_tunnels(frame) && frame.bytes.len() > 1000;
            let frames: Vec<Frame> = wire.drain().into_iter().filter(large).collect();
            assert!(!frames.is_empty(), "{version:?} {feature}");
            for frame in &frames {
                let (bytes, length) = (&frame.bytes, frame.bytes.len() - 14);
                assert_eq!(checksum(&bytes[14..34]), 0, "{version:?} {feature}");
                assert_eq!(usize::from(u16::from_be_bytes([bytes[16], bytes[17]])), length);
                assert_eq!(usize::from(u16::from_be_bytes([bytes[38], bytes[39]])), length - 20);
                assert_eq!(bytes[40..42], [0, 0], "no sum over what has one");
            }
        }
        assert_eq!(by_device(a), before, "{version:?}: none of it by the device");
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
    }
}

/// Whether a datagram arrives, and whether the tunnel's device of the sender had it.
fn datagram(cluster: &Cluster, version: Version, payload: usize) -> bool {
    let (a, b) = (cluster.node(1), cluster.node(2));
    let at = SocketAddr::new(b.pod(version), 9000);
    let echo = UdpEcho::open(&a.pod, None, &b.pod, at, at);
    let before = by_device(a);
    assert_eq!(echo.echo(&vec![7; payload]).unwrap().seen.ip(), a.pod(version));
    by_device(a) > before
}

#[test]
fn the_device_does_what_is_not_plain_and_nothing_is_lost() {
    let cluster = two();
    let (a, b) = (cluster.node(1), cluster.node(2));
    let other = b.address(Version::V4);
    for version in Version::ALL {
        assert!(!datagram(&cluster, version, 100));
        // The kernel asks who the neighbour is, and from then on it is known.
        eventually("without a neighbour the device sends", || {
            // The other node may have asked in between, and then it is known; and what is known counts for a jiffy.
            a.host.ip(&format!("neigh flush to {other} dev up0"));
            a_jiffy_passes();
            datagram(&cluster, version, 100)
        });
        eventually("with a neighbour the programs do", || !datagram(&cluster, version, 100));
        // Fragments are whole datagrams to the one who hears them.
        assert!(datagram(&cluster, version, 4000), "{version:?}: fragments");
        a.wraps(false);
        assert!(datagram(&cluster, version, 100), "{version:?}: without an agent's word");
        a.wraps(true);
        assert!(!datagram(&cluster, version, 100));
    }
    // A narrow way on which the kernel may cut what is around: what fits is wrapped, what does not is the device's.
    a.host.ip(&format!("route add {other}/32 dev up0 mtu lock 1300"));
    for version in Version::ALL {
        eventually("what fits is wrapped", || !datagram(&cluster, version, 1000));
        // What the routes said counts for a jiffy.
        eventually("what does not is the device's", || datagram(&cluster, version, 1350));
    }
    a.host.ip(&format!("route del {other}/32"));
    assert_eq!((a.counted(Reason::WRAP, Egress), b.counted(Reason::WRAP, Ingress)), (0, 0));
}

#[test]
fn nothing_passes_a_route_that_is_not_by_the_uplink() {
    let cluster = two();
    let (a, b) = (cluster.node(1), cluster.node(2));
    // As to a tunnel that encrypts, at whose end nobody is.
    let other = b.address(Version::V4);
    a.host.ip("link add crypt type veth peer name nowhere");
    a.host.ip("link set crypt up");
    a.host.ip("link set nowhere up");
    a.host.ip(&format!("neigh add {other} lladdr 02:00:00:00:00:99 dev crypt nud permanent"));
    a.host.ip(&format!("route add {other}/32 dev crypt"));
    // What the routes said before counts for a jiffy.
    a_jiffy_passes();
    let wire = Capture::open(&cluster.lan, "p1");
    for version in Version::ALL {
        let at = SocketAddr::new(b.pod(version), 9000);
        let before = a.host.sent("crypt");
        let echo = UdpEcho::open(&a.pod, None, &b.pod, at, at);
        eventually("it goes where the route says", || {
            echo.send(b"secret").unwrap();
            a.host.sent("crypt") > before
        });
    }
    assert!(!wire.drain().iter().any(is_tunnels));
}

#[test]
fn uplinks_of_all_kinds_take_what_is_wrapped() {
    if !["bond", "vlan"].into_iter().all(kernel_has_link_kind) {
        eprintln!("skipped: this kernel has no devices of kind bond and vlan");
        return;
    }
    for kind in [UplinkKind::Vlan, UplinkKind::Bond, UplinkKind::BondVlan] {
        let cluster = Cluster::over(kind, Between::Tunnel, 2);
        prepare(&cluster);
        for version in Version::ALL {
            let before = by_device(cluster.node(1));
            stream(&cluster, version);
            assert_eq!(by_device(cluster.node(1)), before, "{kind:?} {version:?}");
        }
    }
}
