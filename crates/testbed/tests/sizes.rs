//! Large segments, packets that are too large for the way, and packets that have been under way too long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{ErrorKind, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
};
use villus_testbed::{
    Addresses, Capture, Delta, Frame, Host, Kind, L4, Node, NodeSpec, TcpEcho, UdpEcho, Version, Workload,
    icmp, udp,
};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

struct Setup {
    node: Node,
    client: Arc<Workload>,
    server: Arc<Workload>,
}

impl Setup {
    fn new(direct: bool, server_mtu: u32, beyond_mtu: u32) -> Self {
        let mut node = Node::new(NodeSpec { direct, beyond_mtu, ..NodeSpec::default() });
        let client = node.add(101, 50_101, Kind::Veth);
        let server = node.add_with_mtu(102, 50_102, Kind::Veth, server_mtu);
        node.allow_all(&client);
        node.allow_all(&server);
        Self { node, client, server }
    }

    fn finish(self) {
        let Self { node, client, server } = self;
        drop((client, server));
        node.finish();
    }

    /// Everybody the client and the server speak with, and how.
    fn ways(&self, v: Version) -> Vec<(&'static str, &Host, &Host, SocketAddr)> {
        let at = |address: IpAddr| SocketAddr::new(address, 9000);
        let (client, server) = (&self.client.host, &self.server.host);
        vec![
            ("endpoint to endpoint", client, server, at(self.server.ip(v))),
            ("endpoint to host", client, &self.node.host, at(Addresses::ROUTER.of(v))),
            ("host to endpoint", &self.node.host, server, at(self.server.ip(v))),
            ("endpoint to other node", client, &self.node.outside, at(Addresses::OUTSIDE.of(v))),
            ("other node to endpoint", &self.node.outside, server, at(self.server.ip(v))),
            ("endpoint to world", client, &self.node.beyond, at(Addresses::BEYOND.of(v))),
            ("world to endpoint", &self.node.beyond, server, at(self.server.ip(v))),
        ]
    }
}

fn both_modes(server_mtu: u32, beyond_mtu: u32, test: impl Fn(&Setup)) {
    for direct in [false, true] {
        let setup = Setup::new(direct, server_mtu, beyond_mtu);
        test(&setup);
        setup.finish();
    }
}

#[test]
fn large_segments_pass_whole_and_are_counted_once() {
    both_modes(1500, 1500, |s| {
        for v in Version::ALL {
            for (name, from, to, at) in s.ways(v) {
                s.node.flush_flows();
                let before = s.node.tally();
                let mut open = TcpEcho::open(from, to, at, at, SOON).unwrap();
                open.patience(LONG);
                assert_eq!(open.stream(8 << 20), Ok(()), "{name} {v:?}");
                open.close(to);
                let delta = s.node.expect(&format!("{name} {v:?}"), &before, |delta| {
                    Delta::same("drops", delta.drops().len(), 0)?;
                    Delta::same("flows", delta.flows.len(), 1)?;
                    delta.every_sent_packet_counted_once()
                });
                let flow = delta.flows[0].1;
                let size = flow.fwd_bytes / flow.fwd_packets;
                assert!(size > 5000, "{name} {v:?}: {size} bytes a packet: segments were not kept together");
                assert!(flow.fwd_bytes > 8 << 20);
            }
        }
    });
}

#[test]
fn trains_of_udp_segments_arrive_segment_by_segment() {
    both_modes(1500, 1500, |s| {
        for v in Version::ALL {
            for (name, from, to, at) in s.ways(v) {
                let echo = UdpEcho::open(from, None, to, at, at);
                let before = s.node.tally();
                let payload = vec![9; 10 * 1200];
                let cmsg = [ControlMessage::UdpGsoSegments(&1200)];
                let client = echo.client.as_raw_fd();
                sendmsg::<()>(client, &[IoSlice::new(&payload)], &cmsg, MsgFlags::empty(), None).unwrap();
                for _ in 0..10 {
                    assert_eq!(echo.server.recv(&mut [0; 4000]).unwrap(), 1200, "{name} {v:?}");
                }
                s.node.expect(name, &before, |delta| {
                    Delta::same("drops", delta.drops().len(), 0)?;
                    delta.every_sent_packet_counted_once()
                });
            }
        }
    });
}

fn too_big(frame: &Frame) -> bool {
    matches!(frame.icmp(), Some((3, 4) | (2, 0)))
}

fn too_late(frame: &Frame) -> bool {
    matches!((frame.ethertype(), frame.icmp()), (0x0800, Some((11, 0))) | (0x86dd, Some((3, 0))))
}

/// The first datagram is too large and comes back as an error; the second goes in fragments.
fn learns_the_mtu(s: &Setup, name: &str, from: &Host, device: &str, to: &Host, at: SocketAddr) {
    let wire = Capture::open(from, device);
    let echo = UdpEcho::open(from, None, to, at, at);
    let payload = vec![3; if at.is_ipv4() { 1472 } else { 1452 }];
    let before = s.node.tally();
    echo.send(&payload).unwrap();
    let error =
        wire.wait_for(SOON, too_big).unwrap_or_else(|| panic!("{name}: nobody said that it is too big"));
    s.node.expect(name, &before, |delta| {
        Delta::same("drops", delta.drops().len(), 0)?;
        delta.every_sent_packet_counted_once()
    });
    assert!(!echo.heard(), "{name}");
    echo.patience(SOON);
    // The error is also reported to the socket where it asked for that.
    let said = echo.echo(&payload).or_else(|_| echo.echo(&payload));
    assert!(said.is_ok(), "{name}: {said:?} after {error:?}");
    let mut open = TcpEcho::open(from, to, at, at, SOON).unwrap();
    open.patience(LONG);
    assert_eq!(open.echo(&vec![7; 60_000]), Ok(()), "{name}");
}

#[test]
fn a_workload_with_a_small_mtu_is_reached_by_everybody() {
    both_modes(1300, 1500, |s| {
        for v in Version::ALL {
            let at = SocketAddr::new(s.server.ip(v), 9000);
            for (name, from, device) in [
                ("from a workload", &s.client.host, "eth0"),
                ("from another node", &s.node.outside, "far"),
                ("from the world", &s.node.beyond, "in0"),
            ] {
                learns_the_mtu(s, &format!("{name} {v:?}"), from, device, &s.server.host, at);
            }
        }
    });
}

#[test]
fn a_narrow_network_beyond_is_found_out() {
    both_modes(1500, 1300, |s| {
        for v in Version::ALL {
            let at = SocketAddr::new(Addresses::BEYOND.of(v), 9000);
            learns_the_mtu(s, &format!("to the world {v:?}"), &s.client.host, "eth0", &s.node.beyond, at);
        }
    });
}

#[test]
fn packets_that_are_under_way_too_long_are_reported_to_their_sender() {
    both_modes(1500, 1500, |s| {
        for v in Version::ALL {
            let wire = Capture::open(&s.client.host, "eth0");
            for (ttl, name, dst, by) in [
                (1, "to a workload", s.server.ip(v), Addresses::ROUTER.of(v)),
                (1, "to another node", Addresses::OUTSIDE.of(v), Addresses::ROUTER.of(v)),
                (1, "to the world", Addresses::BEYOND.of(v), Addresses::ROUTER.of(v)),
                (2, "to the world, one step further", Addresses::BEYOND.of(v), Addresses::OUTSIDE.of(v)),
            ] {
                let before = s.node.tally();
                wire.send(&udp(&L4 { ttl, ..s.client.to(dst) }, 4000, 9000, b"late"));
                let error = wire.wait_for(SOON, too_late).unwrap_or_else(|| panic!("{v:?} {name}: no error"));
                assert_eq!(error.addresses().unwrap().0, by, "{v:?} {name}");
                s.node.expect(name, &before, |delta| {
                    Delta::same("drops", delta.drops().len(), 0)?;
                    Delta::same("forwarded to the sender", delta.forwarded(Ingress), 1)?;
                    delta.every_sent_packet_counted_once()
                });
            }
            // A step is counted once, whichever way.
            let witness = Capture::open(&s.server.host, "eth0");
            let is_probe = |frame: &Frame| frame.dport() == Some(9000);
            wire.send(&udp(&L4 { ttl: 2, ..s.client.to(s.server.ip(v)) }, 4001, 9000, b"just"));
            assert_eq!(witness.wait_for(SOON, is_probe).expect("from a workload").ttl(), 1);

            let far = Capture::open(&s.node.outside, "far");
            let l = L4 {
                from: s.node.outside.mac("far"),
                to: s.node.host.mac("up0"),
                src: Addresses::OUTSIDE.of(v),
                dst: s.server.ip(v),
                ttl: 2,
            };
            far.send(&udp(&l, 4002, 9000, b"just"));
            assert_eq!(witness.wait_for(SOON, is_probe).expect("from another node").ttl(), 1);
            far.send(&udp(&L4 { ttl: 1, ..l }, 4003, 9000, b"late"));
            assert!(far.wait_for(SOON, too_late).is_some(), "{v:?}: no error to the outside");
        }
    });
}

#[test]
fn errors_about_a_flow_reach_its_sender_without_an_entry() {
    both_modes(1500, 1500, |s| {
        // Nothing is allowed towards the client.
        s.node.forget_all(&s.client);
        s.node.allow(&s.client, Egress, 0, 0, 0);
        for v in Version::ALL {
            for (name, dst) in [
                ("a workload", s.server.ip(v)),
                ("the host", Addresses::ROUTER.of(v)),
                ("another node", Addresses::OUTSIDE.of(v)),
                ("the world", Addresses::BEYOND.of(v)),
            ] {
                let client = s.client.host.run(|| {
                    let any: SocketAddr =
                        if v == Version::V4 { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
                    std::net::UdpSocket::bind(any).unwrap()
                });
                client.connect(SocketAddr::new(dst, 9)).unwrap();
                client.set_read_timeout(Some(SOON)).unwrap();
                client.send(b"is anybody there").unwrap();
                let said = client.recv(&mut [0; 16]).unwrap_err().kind();
                assert_eq!(said, ErrorKind::ConnectionRefused, "{v:?} {name}");
                // Nobody listens: a reset.
                let at = SocketAddr::new(dst, 9);
                let refused = s.client.host.run(|| std::net::TcpStream::connect_timeout(&at, SOON));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{v:?} {name}");
            }
        }
    });
}

#[test]
fn errors_about_no_flow_are_judged_like_any_message() {
    both_modes(1500, 1500, |s| {
        s.node.forget_all(&s.server);
        let far = Capture::open(&s.node.outside, "far");
        let witness = Capture::open(&s.server.host, "eth0");
        for v in Version::ALL {
            let l = L4 {
                from: s.node.outside.mac("far"),
                to: s.node.host.mac("up0"),
                src: Addresses::OUTSIDE.of(v),
                dst: s.server.ip(v),
                ttl: 64,
            };
            let quoted =
                udp(&L4 { src: s.server.ip(v), dst: Addresses::BEYOND.of(v), ..l }, 5555, 53, b"never sent");
            let rest = |word: [u8; 4]| [&word[..], &quoted[14..]].concat();
            let (unreachable, big) = if v == Version::V4 { ((3, 3), (3, 4)) } else { ((1, 4), (2, 0)) };
            let before = s.node.tally();
            far.send(&icmp(&l, unreachable.0, unreachable.1, &rest([0; 4])));
            s.node.expect_drops("port unreachable", &before, Reason::POLICY, Ingress, 1);
            assert!(witness.drain().is_empty());
            // Those that would break connections silently always pass.
            let before = s.node.tally();
            far.send(&icmp(&l, big.0, big.1, &rest([0, 0, 5, 0x14])));
            s.node.expect("too big", &before, |delta| {
                Delta::same("drops", delta.drops().len(), 0)?;
                Delta::same("forwarded", delta.forwarded(Ingress), 1)
            });
            assert!(witness.drain().iter().any(too_big), "{v:?}");
        }
    });
}
