//! Frames that nobody should send, and those of the protocols below IP: what ends where, and under which reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use villus_abi::{
    Direction::{self, Egress, Ingress},
    Reason,
    endpoint::FLAG_DHCP,
};
use villus_datapath::AttachMode;
use villus_net::Mac;
use villus_testbed::{
    Addresses, Arp, Capture, Delta, Frame, IGMP, Kind, L4, Node, NodeSpec, TCP, UDP, UdpEcho, Version,
    Workload, echo_request, fragment_v4, fragment_v6, icmp, ip, neighbour_solicitation, tcp, udp,
    vlan_tagged,
};

const SOON: Duration = Duration::from_secs(30);

struct Setup {
    node: Node,
    client: Arc<Workload>,
    server: Arc<Workload>,
}

impl Setup {
    /// Policies allow everything: what is dropped here is dropped for other reasons.
    fn new(attach: AttachMode, direct: bool) -> Self {
        let mut node = Node::new(NodeSpec { attach, direct, ..NodeSpec::default() });
        let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
        node.allow_all(&client);
        node.allow_all(&server);
        Self { node, client, server }
    }

    fn finish(self) {
        let Self { node, client, server } = self;
        drop((client, server));
        node.finish();
    }

    /// The client sends each frame once; it ends under the reason, and the server sees nothing.
    fn end(&self, cases: &[(&str, Vec<u8>, Reason)]) {
        let wire = Capture::open(&self.client.host, "eth0");
        let witness = Capture::open(&self.server.host, "eth0");
        for (name, frame, reason) in cases {
            let before = self.node.tally();
            wire.send(frame);
            if reason.is_drop() {
                self.node.expect_drops(name, &before, *reason, Egress, 1);
            } else {
                self.node.expect_quiet(name, &before, *reason, Egress, 1);
            }
            self.node.expect(name, &before, Delta::every_sent_packet_counted_once);
        }
        let seen = witness.drain();
        assert!(seen.is_empty(), "the server has seen {seen:?}");
    }
}

fn both_modes(test: impl Fn(&Setup)) {
    for (attach, direct) in [(AttachMode::Tcx, false), (AttachMode::Tc, true)] {
        let setup = Setup::new(attach, direct);
        test(&setup);
        setup.finish();
    }
}

#[test]
fn a_workload_cannot_speak_for_others() {
    both_modes(|s| {
        for v in Version::ALL {
            let honest = s.client.to(s.server.ip(v));
            let loopback: IpAddr =
                if v == Version::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let mut cases = Vec::new();
            for (name, src) in [
                ("another workload's address", s.server.ip(v)),
                ("the router's address", Addresses::ROUTER.of(v)),
                ("the node's address", Addresses::NODE.of(v)),
                ("an address outside", Addresses::BEYOND.of(v)),
                ("nobody's address", Addresses::workload(150).of(v)),
                ("a loopback address", loopback),
            ] {
                let spoofed = L4 { src, ..honest };
                cases.push((name, udp(&spoofed, 1000, 53, b"spoofed"), Reason::SOURCE_IP));
                cases.push((name, tcp(&spoofed, 1000, 80, 2, 1, 0, b""), Reason::SOURCE_IP));
                cases.push((name, echo_request(&spoofed, 1, b""), Reason::SOURCE_IP));
                let to_host = L4 { dst: Addresses::ROUTER.of(v), ..spoofed };
                cases.push((name, udp(&to_host, 1000, 53, b"spoofed"), Reason::SOURCE_IP));
            }
            let stolen = L4 { from: s.server.mac, ..honest };
            cases.push(("another's MAC", udp(&stolen, 1000, 53, b"spoofed"), Reason::SOURCE_MAC));
            s.end(&cases);
        }
    });
}

#[test]
fn nobody_outside_can_speak_for_the_node_or_its_workloads() {
    both_modes(|s| {
        let wire = Capture::open(&s.node.outside, "far");
        let witness = Capture::open(&s.server.host, "eth0");
        let link = |src: IpAddr, dst: IpAddr| L4 {
            from: s.node.outside.mac("far"),
            to: s.node.host.mac("up0"),
            src,
            dst,
            ttl: 64,
        };
        for v in Version::ALL {
            for (name, src) in [
                ("a workload's address", s.client.ip(v)),
                ("the destination's own address", s.server.ip(v)),
                ("the router's address", Addresses::ROUTER.of(v)),
                ("the node's address", Addresses::NODE.of(v)),
            ] {
                for dst in [s.server.ip(v), Addresses::NODE.of(v), Addresses::ROUTER.of(v)] {
                    let l = link(src, dst);
                    for frame in
                        [udp(&l, 1000, 53, b"x"), tcp(&l, 1000, 80, 2, 1, 0, b""), echo_request(&l, 1, b"")]
                    {
                        let before = s.node.tally();
                        wire.send(&frame);
                        let what = format!("{name} to {dst}");
                        s.node.expect_drops(&what, &before, Reason::SOURCE_IP, Ingress, 1);
                    }
                }
            }
            // An honest one passes.
            let before = s.node.tally();
            wire.send(&udp(&link(Addresses::OUTSIDE.of(v), s.server.ip(v)), 1000, 53, b"honest"));
            s.node.expect("an honest sender", &before, |delta| {
                Delta::same("asked", delta.asked(&s.server, Ingress), 1)
            });
        }
        let seen = witness.drain();
        let spoofed = |frame: &Frame| {
            frame.addresses().is_some_and(|(src, dst, proto)| {
                proto == UDP
                    && dst != src
                    && !Addresses::OUTSIDE.all().contains(&src)
                    && frame.dport() == Some(53)
            })
        };
        assert!(!seen.iter().any(spoofed), "{seen:?}");
    });
}

#[test]
fn tagged_frames_and_foreign_protocols_of_a_workload_end() {
    both_modes(|s| {
        let honest = udp(&s.client.to(s.server.ip(Version::V4)), 1000, 53, b"tagged");
        let mut lldp = honest[..60.min(honest.len())].to_vec();
        lldp[12..14].copy_from_slice(&0x88cc_u16.to_be_bytes());
        let mut provider = vlan_tagged(&honest, 5);
        provider[12..14].copy_from_slice(&0x88a8_u16.to_be_bytes());
        s.end(&[
            ("a VLAN tag", vlan_tagged(&honest, 5), Reason::VLAN),
            ("a priority tag", vlan_tagged(&honest, 0), Reason::VLAN),
            ("a provider's tag", provider, Reason::VLAN),
            ("two tags", vlan_tagged(&vlan_tagged(&honest, 5), 6), Reason::VLAN),
            ("LLDP", lldp, Reason::UNSUPPORTED_L3),
        ]);
    });
}

#[test]
fn malformed_packets_end_by_name() {
    both_modes(|s| {
        let mut cases = Vec::new();
        for v in Version::ALL {
            let l = s.client.to(s.server.ip(v));
            let good = udp(&l, 1000, 53, b"0123456789");
            let header = if v == Version::V4 { 34 } else { 54 };
            cases.push(("cut in the IP header", good[..header - 4].to_vec(), Reason::INVALID));
            cases.push(("cut in the payload", good[..good.len() - 4].to_vec(), Reason::INVALID));
            cases.push(("a UDP header cut short", ip(&l, UDP, &[1, 2, 3, 4]), Reason::CT_INVALID));
            cases.push(("a TCP header cut short", ip(&l, TCP, &[0; 12]), Reason::CT_INVALID));
            cases.push(("an unknown transport", ip(&l, 47, &[0; 20]), Reason::CT_UNKNOWN_L4));
            let mut short = tcp(&l, 1000, 80, 2, 1, 0, b"");
            short[header + 12] = 0x40;
            cases.push(("a TCP data offset of 16", short, Reason::CT_INVALID));
            let later = match v {
                Version::V4 => fragment_v4(&l, UDP, 77, 1480, false, &[1; 64]),
                Version::V6 => fragment_v6(&l, UDP, 77, 1448, false, &[1; 64]),
            };
            cases.push(("a later fragment alone", later, Reason::FRAGMENT_NOT_FOUND));
        }
        let mut version = udp(&s.client.to(s.server.ip(Version::V4)), 1000, 53, b"");
        version[14] = 0x44;
        cases.push(("an IPv4 header of 16 bytes", version, Reason::INVALID));
        for kind in [131, 137] {
            let mut routed = udp(&s.client.to(s.server.ip(Version::V4)), 1000, 53, b"");
            routed.splice(34..34, [kind, 7, 4, 10, 0, 0, 9, 0]);
            routed[14] = 0x47;
            routed[17] += 8;
            cases.push(("a route of the sender's choice", routed, Reason::SOURCE_ROUTE));
        }
        let l = s.client.to(s.server.ip(Version::V6));
        let routed = [&[UDP, 2, 0, 1, 0, 0, 0, 0][..], &[0; 16], &[0; 8]].concat();
        cases.push(("a routing header with segments left", ip(&l, 43, &routed), Reason::EXTENSION_HEADER));
        s.end(&cases);
    });
}

#[test]
fn multicast_of_a_workload_ends_by_name_or_quietly() {
    both_modes(|s| {
        let (v4, v6) = (s.client.addresses.v4, s.client.addresses.v6);
        let local = s.client.mac.link_local();
        let many = |src: IpAddr, dst: &str, mac: [u8; 6], ttl| L4 {
            from: s.client.mac,
            to: Mac(mac),
            src,
            dst: dst.parse().unwrap(),
            ttl,
        };
        let dhcp = many(Ipv4Addr::UNSPECIFIED.into(), "255.255.255.255", [0xff; 6], 64);
        let mdns = many(v4.into(), "224.0.0.251", [1, 0, 0x5e, 0, 0, 0xfb], 255);
        let mdns6 = many(local.into(), "ff02::fb", [0x33, 0x33, 0, 0, 0, 0xfb], 255);
        let routers = many(local.into(), "ff02::2", [0x33, 0x33, 0, 0, 0, 2], 255);
        let report = many(local.into(), "ff02::16", [0x33, 0x33, 0, 0, 0, 0x16], 1);
        s.end(&[
            ("DHCP", udp(&dhcp, 68, 67, &[1; 240]), Reason::DHCP),
            (
                "DHCPv6",
                udp(&many(local.into(), "ff02::1:2", [0x33, 0x33, 0, 1, 0, 2], 1), 546, 547, b"x"),
                Reason::DHCP,
            ),
            ("mDNS", udp(&mdns, 5353, 5353, b"x"), Reason::MULTICAST),
            ("mDNS over IPv6", udp(&L4 { src: v6.into(), ..mdns6 }, 5353, 5353, b"x"), Reason::MULTICAST),
            ("broadcast", udp(&L4 { src: v4.into(), ..dhcp }, 9, 9, b"x"), Reason::MULTICAST),
            (
                "IGMP",
                ip(
                    &many(v4.into(), "224.0.0.22", [1, 0, 0x5e, 0, 0, 0x16], 1),
                    IGMP,
                    &[0x22, 0, 0xdd, 0xff, 0, 0, 0, 0],
                ),
                Reason::IGMP,
            ),
            ("MLD", icmp(&report, 143, 0, &[0; 4]), Reason::MLD),
            ("a router solicitation", icmp(&routers, 133, 0, &[0; 4]), Reason::ROUTER_SOLICITATION),
            (
                "a router advertisement",
                icmp(&L4 { dst: "ff02::1".parse().unwrap(), ..routers }, 134, 0, &[0; 12]),
                Reason::FORBIDDEN_ICMP6,
            ),
            (
                "a redirect",
                icmp(&L4 { dst: s.server.ip(Version::V6), ..routers }, 137, 0, &[0; 36]),
                Reason::FORBIDDEN_ICMP6,
            ),
        ]);
        // Who may use DHCP.
        s.node.edit_record(101, |record| record.flags |= FLAG_DHCP);
        let wire = Capture::open(&s.client.host, "eth0");
        let before = s.node.tally();
        wire.send(&udp(&dhcp, 68, 67, &[1; 240]));
        s.node.expect("DHCP is allowed", &before, |delta| {
            Delta::same("drops", delta.drops().len(), 0)?;
            Delta::same("forwarded", delta.forwarded(Egress), 1)
        });
        let before = s.node.tally();
        wire.send(&icmp(&routers, 133, 0, &[0; 4]));
        s.node.expect("routers may be asked for", &before, |delta| {
            Delta::same("drops", delta.drops().len(), 0)?;
            Delta::same("forwarded", delta.forwarded(Egress), 1)
        });
        s.node.edit_record(101, |record| record.flags &= !FLAG_DHCP);
    });
}

#[test]
fn the_gateway_is_answered_for_and_nobody_else() {
    both_modes(|s| {
        let (mac, v4, router) = (s.client.mac, s.client.addresses.v4, Addresses::ROUTER.v4);
        let nobody = Mac([0; 6]);
        let wire = Capture::open(&s.client.host, "eth0");
        let ask = |sender: Ipv4Addr, target: Ipv4Addr| {
            Arp { operation: 1, sender: (mac, sender), target: (nobody, target) }.frame()
        };
        wire.send(&ask(v4, router));
        let answer = wire
            .wait_for(SOON, |frame| frame.ethertype() == 0x0806 && frame.from() != mac)
            .expect("no answer");
        let wanted = Arp { operation: 2, sender: (s.client.node_mac, router), target: (mac, v4) }.frame();
        assert_eq!(answer.bytes[..wanted.len()], wanted);

        let tell = |sender: Ipv4Addr| {
            Arp { operation: 2, sender: (mac, sender), target: (s.client.node_mac, router) }.frame()
        };
        let other = s.server.addresses.v4;
        s.end(&[
            ("the gateway", ask(v4, router), Reason::ANSWERED),
            ("another workload", ask(v4, other), Reason::UNKNOWN_TARGET),
            ("somebody outside", ask(v4, Addresses::OUTSIDE.v4), Reason::UNKNOWN_TARGET),
            ("an announcement", ask(v4, v4), Reason::ANNOUNCED),
            ("a probe for its own address", ask(Ipv4Addr::UNSPECIFIED, v4), Reason::ANNOUNCED),
            ("a probe for the gateway", ask(Ipv4Addr::UNSPECIFIED, router), Reason::ARP_SPOOF),
            ("with another's address", ask(other, router), Reason::ARP_SPOOF),
            ("another's announcement", ask(other, other), Reason::ARP_SPOOF),
            ("a claim of another's address", tell(other), Reason::ARP_SPOOF),
            ("a claim of the gateway's address", tell(router), Reason::ARP_SPOOF),
        ]);

        let (v6, router) = (s.client.addresses.v6, Addresses::ROUTER.v6);
        wire.send(&neighbour_solicitation(mac, v6, router));
        let answer =
            wire.wait_for(SOON, |f| f.icmp() == Some((136, 0)) && f.from() != mac).expect("no answer");
        assert_eq!((answer.from(), answer.to()), (s.client.node_mac, mac));
        assert_eq!(answer.addresses(), Some((router.into(), v6.into(), 58)));
        assert_eq!(answer.ttl(), 255);
        assert_eq!(answer.l4()[8..24], router.octets());
        assert_eq!(answer.l4()[24..32], [&[2, 1][..], &s.client.node_mac.0].concat());
        let sum = villus_testbed::l4_checksum(router.into(), v6.into(), 58, answer.l4());
        assert_eq!(sum, [0, 0], "the answer's checksum is wrong");

        let (other, nobody) = (s.server.addresses.v6, Ipv6Addr::UNSPECIFIED);
        let l = |src: Ipv6Addr| L4 {
            from: mac,
            to: s.client.node_mac,
            src: src.into(),
            dst: router.into(),
            ttl: 255,
        };
        let claim = |of: Ipv6Addr| [&[0x60, 0, 0, 0][..], &of.octets(), &[2, 1], &mac.0].concat();
        s.end(&[
            ("the gateway", neighbour_solicitation(mac, v6, router), Reason::ANSWERED),
            (
                "the gateway, from a link-local address",
                neighbour_solicitation(mac, mac.link_local(), router),
                Reason::ANSWERED,
            ),
            ("another workload", neighbour_solicitation(mac, v6, other), Reason::UNKNOWN_TARGET),
            ("duplicate address detection", neighbour_solicitation(mac, nobody, v6), Reason::ANNOUNCED),
            ("detection of another's", neighbour_solicitation(mac, nobody, other), Reason::ARP_SPOOF),
            ("detection of the gateway's", neighbour_solicitation(mac, nobody, router), Reason::ARP_SPOOF),
            ("with another's address", neighbour_solicitation(mac, other, router), Reason::SOURCE_IP),
            ("a claim of another's address", icmp(&l(v6), 136, 0, &claim(other)), Reason::ARP_SPOOF),
            ("a claim of the gateway's", icmp(&l(v6), 136, 0, &claim(router)), Reason::ARP_SPOOF),
        ]);
    });
}

/// A workload may learn the gateway's address by itself, as a virtual machine does.
#[test]
fn a_workload_that_resolves_its_gateway_reaches_others() {
    both_modes(|s| {
        for gateway in Addresses::ROUTER.all() {
            s.client.host.ip(&format!("neigh del {gateway} dev eth0"));
        }
        for v in Version::ALL {
            let at = std::net::SocketAddr::new(s.server.ip(v), 53);
            let echo = UdpEcho::open(&s.client.host, None, &s.server.host, at, at);
            assert!(echo.echo(b"resolved").is_ok(), "{v:?}");
            let learnt = s.client.host.ip("neigh show dev eth0");
            let line = format!("{} lladdr {}", Addresses::ROUTER.of(v), s.client.node_mac);
            assert!(learnt.contains(&line), "{line} is not in {learnt}");
        }
    });
}

/// What is the host's own business goes on: the path judges only what is a workload's.
#[test]
fn multicast_and_dhcp_of_the_node_reach_only_who_may_have_them() {
    both_modes(|s| {
        let wire = Capture::open(&s.node.host, &s.server.node_device);
        let from = s.server.node_mac;
        let l = |src: IpAddr, dst: &str, to: [u8; 6]| L4 {
            from,
            to: Mac(to),
            src,
            dst: dst.parse().unwrap(),
            ttl: 255,
        };
        let mdns =
            udp(&l(Addresses::ROUTER.v4.into(), "224.0.0.251", [1, 0, 0x5e, 0, 0, 0xfb]), 5353, 5353, b"x");
        let offer = udp(&l(Addresses::ROUTER.v4.into(), "255.255.255.255", [0xff; 6]), 67, 68, &[2; 240]);
        let advert =
            icmp(&l(from.link_local().into(), "ff02::1", [0x33, 0x33, 0, 0, 0, 1]), 134, 0, &[0; 12]);
        let ends = |name: &str, frame: &[u8], reason: Reason, direction: Direction| {
            let before = s.node.tally();
            // The kernel says that the packet was dropped where it is sent.
            wire.try_send(frame);
            s.node.expect_drops(name, &before, reason, direction, 1);
        };
        ends("mDNS", &mdns, Reason::MULTICAST, Ingress);
        ends("DHCP", &offer, Reason::DHCP, Ingress);
        ends("a router advertisement", &advert, Reason::FORBIDDEN_ICMP6, Ingress);
        s.node.edit_record(102, |record| record.flags |= FLAG_DHCP);
        let witness = Capture::open(&s.server.host, "eth0");
        for frame in [&offer, &advert] {
            wire.send(frame);
            assert!(witness.wait_for(SOON, |seen| seen.bytes == *frame).is_some(), "not delivered");
        }
        s.node.edit_record(102, |record| record.flags &= !FLAG_DHCP);
    });
}
