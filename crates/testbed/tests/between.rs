//! Packets between three nodes, routed and in the tunnel, both families: who may, how often they are judged, and what
//! large, foreign and forged ones come to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use villus_abi::{
    Direction::{Egress, Ingress},
    Flow, Reason,
    flow::FLOW_VIA_STACK,
};
use villus_datapath::FlowKey;
use villus_path::memory::Build;
use villus_testbed::{Between, Capture, Cluster, Host, Member, Ping, TcpEcho, UdpEcho, Version, eventually};

const SOON: Duration = Duration::from_secs(30);
const TCP: u8 = 6;
const UDP: u8 = 17;

fn tcp(from: &Host, to: &Host, at: SocketAddr) -> TcpEcho {
    TcpEcho::open(from, to, at, at, SOON).unwrap()
}

/// Whether a datagram is heard that nobody answers.
fn is_heard(from: &Host, to: &Host, at: SocketAddr) -> bool {
    let echo = UdpEcho::open(from, None, to, at, at);
    echo.patience(Duration::from_millis(300));
    echo.echo(b"who is it").is_ok()
}

/// How often IPsec has forbidden a packet to leave.
fn forbidden(host: &Host) -> u64 {
    let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/xfrm_stat")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("XfrmOutPolBlock"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn what_ipsec_forbids_does_not_leave_by_a_route_past_the_stack() {
    let cluster = Cluster::new(Between::Routes, 2);
    let (a, b) = (cluster.node(1), cluster.node(2));
    a.allow_all();
    b.allow_all();
    for version in Version::ALL {
        let at = SocketAddr::new(b.pod(version), 9000);
        let echo = UdpEcho::open(&a.pod, None, &b.pod, at, at);
        eventually("it is answered", || echo.echo(b"hello").is_ok());
        let policy = format!("dir out src {} dst {}", a.pod(version), b.pod(version));
        a.host.ip(&format!("xfrm policy add {policy} action block"));
        eventually("past the stack nobody asks IPsec", || echo.echo(b"hello").is_ok());
        a.asks_ipsec(true);
        let wire = Capture::open(&cluster.lan, "p1");
        let before = forbidden(&a.host);
        eventually("IPsec is asked", || {
            echo.send(b"a secret").unwrap();
            forbidden(&a.host) > before
        });
        assert!(!wire.drain().iter().any(|frame| frame.bytes.ends_with(b"a secret")), "{version:?}");
        a.host.ip(&format!("xfrm policy delete {policy}"));
        eventually("the stack sends what nothing forbids", || echo.echo(b"hello").is_ok());
        a.asks_ipsec(false);
    }
}

#[test]
fn pods_of_all_nodes_reach_each_other_and_each_policy_is_asked_once() {
    for between in Between::ALL {
        let cluster = Cluster::new(between, 3);
        for (a, b) in [(1, 2), (2, 3), (3, 1)].map(|(a, b)| (cluster.node(a), cluster.node(b))) {
            let out = a.allow(Egress, b.identity(), 9000, UDP);
            let in_ = b.allow(Ingress, a.identity(), 9000, UDP);
            let (tcp_out, tcp_in) =
                (a.allow(Egress, b.identity(), 9001, TCP), b.allow(Ingress, a.identity(), 9001, TCP));
            for (round, version) in (1..).zip(Version::ALL) {
                let at = SocketAddr::new(b.pod(version), 9000);
                let echo = UdpEcho::open(&a.pod, None, &b.pod, at, at);
                for _ in 0..3 {
                    let seen = echo.echo(b"over there").unwrap().seen;
                    assert_eq!(seen.ip(), a.pod(version), "{between:?} {version:?}");
                }
                assert_eq!(
                    (a.decided(&out), b.decided(&in_)),
                    (3 * round, 3 * round),
                    "{between:?} {version:?}"
                );
                let mut stream = tcp(&a.pod, &b.pod, SocketAddr::new(b.pod(version), 9001));
                stream.echo(&[7; 3000]).unwrap();
                // Long trains of segments.
                stream.stream(20 << 20).unwrap();
                assert!(a.decided(&tcp_out) > 0 && b.decided(&tcp_in) > 0);
            }
        }
        for member in &cluster.members {
            assert_eq!(member.drops(), [], "{between:?} node {}", member.number);
            let flows = member.flows().list().unwrap();
            // What does not say that it opens a flow may be an answer that the stack must turn back, where no tunnel brings it.
            let past = |key: &FlowKey, flow: &Flow| {
                let sure = between == Between::Tunnel || key.proto() == TCP || flow.src_endpoint != 0;
                !sure || flow.flags & FLOW_VIA_STACK == 0
            };
            assert!(flows.iter().all(|(key, flow)| past(key, flow)), "past the stack: {between:?} {flows:?}");
        }
    }
}

#[test]
fn what_either_policy_does_not_allow_is_dropped_at_its_own_node() {
    for between in Between::ALL {
        let cluster = Cluster::new(between, 2);
        let (a, b) = (cluster.node(1), cluster.node(2));
        for version in Version::ALL {
            let at = SocketAddr::new(b.pod(version), 9000);
            let before = |member: &Member, direction| member.counted(Reason::POLICY, direction);
            let (sent, received) = (before(a, Egress), before(b, Ingress));
            let dropped = |more: (u64, u64)| {
                eventually("each packet is dropped once", || {
                    (before(a, Egress), before(b, Ingress)) == (sent + more.0, received + more.1)
                });
            };
            assert!(!is_heard(&a.pod, &b.pod, at));
            dropped((1, 0));
            let key = a.allow(Egress, b.identity(), 9000, UDP);
            // The receiver lets the other node in, but not its pod.
            let node = b.allow(Ingress, 6, 9000, UDP);
            assert!(!is_heard(&a.pod, &b.pod, at));
            dropped((1, 1));
            a.forget(&key);
            b.forget(&node);
        }
    }
}

#[test]
fn nodes_are_remote_nodes_to_pods_of_others_and_reach_them() {
    for between in Between::ALL {
        let cluster = Cluster::new(between, 2);
        let (a, b) = (cluster.node(1), cluster.node(2));
        let asked = b.allow(Ingress, 6, 9000, UDP);
        let asks = b.allow(Egress, 6, 9001, UDP);
        for (round, version) in (1..).zip(Version::ALL) {
            let at = SocketAddr::new(b.pod(version), 9000);
            let seen = UdpEcho::open(&a.host, None, &b.pod, at, at).echo(b"node").unwrap().seen;
            assert_eq!(seen.ip(), a.router(version), "{between:?}");
            let at = SocketAddr::new(a.router(version), 9001);
            let seen = UdpEcho::open(&b.pod, None, &a.host, at, at).echo(b"pod").unwrap().seen;
            assert_eq!(seen.ip(), b.pod(version), "{between:?}");
            assert_eq!((b.decided(&asked), b.decided(&asks)), (round, round), "{between:?} {version:?}");
        }
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]), "{between:?}");
    }
}

#[test]
fn a_packet_too_large_for_the_tunnel_is_answered_with_the_size_that_fits() {
    let cluster = Cluster::new(Between::Tunnel, 2);
    let (a, b) = (cluster.node(1), cluster.node(2));
    a.allow_all();
    b.allow_all();
    for version in Version::ALL {
        let to = b.pod(version).to_string();
        let ping = |size: &str, fragment: &str, tries: &str| {
            let arguments = ["-n", "-c", tries, "-W", "10", "-M", fragment, "-s", size, &to];
            let output = a.pod.run(|| villus_testbed::try_run("ping", &arguments));
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let header = if version == Version::V4 { 28 } else { 48 };
        let (fits, over) = ((1450 - header).to_string(), (1451 - header).to_string());
        assert!(ping(&fits, "do", "1").0, "{version:?}");
        let (passed, said) = ping(&over, "do", "1");
        assert!(!passed && said.contains("1450"), "{version:?}: {said}");
        // Who cuts its datagrams gets through, in pieces as large as fit. Of IPv6 the first answer teaches the answering pod
        // what fits.
        assert!(ping("4000", "dont", "3").0, "{version:?}");
    }
    // Of that answer the end fits, and finds its beginning missing.
    let headless = |(reason, _): &(Reason, u64)| *reason == Reason::FRAGMENT_NOT_FOUND;
    assert!(a.drops().iter().chain(&b.drops()).all(headless), "{:?} {:?}", a.drops(), b.drops());
}

#[test]
fn an_answer_finds_back_before_the_store_has_told_who_asks() {
    let cluster = Cluster::new(Between::Tunnel, 2);
    let (a, b) = (cluster.node(1), cluster.node(2));
    a.allow_all();
    b.allow(Ingress, a.identity(), 0, 0);
    for version in Version::ALL {
        b.forget_identity(a.pod(version));
        let mut stream = tcp(&a.pod, &b.pod, SocketAddr::new(b.pod(version), 9000));
        stream.echo(b"known by the number in the packet").unwrap();
        assert_eq!(Ping::open(&a.pod, None, b.pod(version)).echo(56), Ok(()));
    }
    assert_eq!(b.drops(), []);
}

/// Sends a packet as a node's tunnel would.
fn forge(from: &Host, source: IpAddr, to: IpAddr, identity: u32, inner: &Build) {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((identity << 8).to_be_bytes());
    bytes.extend(inner.frame());
    let socket = from.run(|| UdpSocket::bind(SocketAddr::new(source, 0))).unwrap();
    socket.send_to(&bytes, SocketAddr::new(to, 8472)).unwrap();
}

#[test]
fn a_forged_packet_in_the_tunnel_ends_where_it_comes_in() {
    let cluster = Cluster::new(Between::Tunnel, 3);
    let (a, b, c) = (cluster.node(1), cluster.node(2), cluster.node(3));
    b.allow_all();
    let stranger = Cluster::stranger(Version::V4);
    for version in Version::ALL {
        let packet = |source| Build::udp(source, 5000, b.pod(version), 9000);
        for (from, outer, source, identity, reason) in [
            // Nobody who is a node sends it.
            (&cluster.lan, stranger, a.pod(version), a.identity(), Reason::UNKNOWN_SENDER),
            // A node sends what lives behind another, or on the receiver, or claims to be the receiver.
            (&c.host, c.address(Version::V4), a.pod(version), a.identity(), Reason::UNKNOWN_SENDER),
            (&c.host, c.address(Version::V4), b.router(version), 6, Reason::SOURCE_IP),
            (&c.host, c.address(Version::V4), c.pod(version), 1, Reason::IDENTITY),
        ] {
            let before = b.counted(reason, Ingress);
            forge(from, outer, b.address(Version::V4), identity, &packet(source));
            eventually("the forged packet is counted", || b.counted(reason, Ingress) == before + 1);
        }
        // The same from where it should come passes.
        let server = b.pod.run(|| UdpSocket::bind(SocketAddr::new(b.pod(version), 9000))).unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        forge(&a.host, a.address(Version::V4), b.address(Version::V4), a.identity(), &packet(a.pod(version)));
        let (_, seen) = server.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(seen, SocketAddr::new(a.pod(version), 5000));
        // Without the tunnel around it it does not.
        let before = b.counted(Reason::UNKNOWN_SENDER, Ingress);
        let device = if version == Version::V4 { "-4" } else { "-6" };
        c.host.ip(&format!("{device} route replace {} via {}", b.pod(version), b.address(version)));
        c.host.ip(&format!("addr add {} dev lo", a.pod(version)));
        let plain = c.host.run(|| UdpSocket::bind(SocketAddr::new(a.pod(version), 0))).unwrap();
        plain.send_to(b"x", SocketAddr::new(b.pod(version), 9000)).unwrap();
        eventually("it is counted", || b.counted(Reason::UNKNOWN_SENDER, Ingress) > before);
    }
}

#[test]
fn a_service_of_the_hosts_nat_reaches_a_pod_of_another_node() {
    for between in Between::ALL {
        let cluster = Cluster::new(between, 2);
        let (a, b) = (cluster.node(1), cluster.node(2));
        for proto in [TCP, UDP] {
            a.allow(Egress, 0, 9000, proto);
            b.allow(Ingress, a.identity(), 9000, proto);
        }
        a.host.nft("add table inet services");
        a.host.nft("add chain inet services prerouting { type nat hook prerouting priority dstnat; }");
        for (version, service) in [(Version::V4, "10.96.0.1"), (Version::V6, "fd96::1")] {
            let (family, to) = (if version == Version::V4 { "ip" } else { "ip6" }, b.pod(version));
            a.host.nft(&format!(
                "add rule inet services prerouting {family} daddr {service} dnat {family} to {to}"
            ));
            let (listen, target) =
                (SocketAddr::new(to, 9000), SocketAddr::new(service.parse().unwrap(), 9000));
            let echo = UdpEcho::open(&a.pod, None, &b.pod, listen, target);
            for _ in 0..3 {
                assert_eq!(
                    echo.echo(b"service").unwrap().seen.ip(),
                    a.pod(version),
                    "{between:?} {version:?}"
                );
            }
            let mut stream = TcpEcho::open(&a.pod, &b.pod, listen, target, SOON).unwrap();
            stream.echo(&[7; 3000]).unwrap();
            drop(echo);
            let echo = UdpEcho::open(&a.pod, None, &b.pod, listen, listen);
            assert_eq!(echo.echo(b"by its own address").unwrap().seen.ip(), a.pod(version), "{between:?}");
        }
    }
}
