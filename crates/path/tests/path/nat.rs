//! What leaves the cluster bears an address of the node, what answers it finds back, and nobody else's packets are touched.
//!
//! What a translated packet should be is built anew, checksums and all.

use std::net::{IpAddr, SocketAddr};

use villus_abi::{
    Config, Reason, Uplink,
    config::{FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6},
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO, NAT_LEAST},
};
use villus_path::{
    Action, Work, masquerade,
    memory::{Build, Frame, Transport, word4, words6},
    unmasquerade,
};

use crate::lab::*;

fn lent(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// A node on whose uplink endpoints are masqueraded.
fn lab() -> Lab {
    let config = Config::default();
    let flags = config.flags | FLAG_MASQUERADE_V4 | FLAG_MASQUERADE_V6;
    let mut lab = Lab::with(Config { flags, nat_seed: 7, ..config });
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (lent(false), lent(true)) else { unreachable!() };
    lab.world.uplinks.insert(UPLINK, Uplink { ipv4: word4(v4), ipv6: words6(v6), reserved: 0 });
    let both = MASQUERADE_FROM | MASQUERADE_NOT_TO;
    lab.world.masquerade = vec![
        (ip("10.0.0.0"), 16, both),
        (ip("fd00::"), 16, both),
        (ip("198.51.100.0"), 24, MASQUERADE_NOT_TO),
        (ip("2001:db8:1::"), 48, MASQUERADE_NOT_TO),
    ];
    lab
}

fn egress(lab: &Lab, frame: Frame) -> Result<Vec<u8>, Reason> {
    let mut frame = frame;
    let outcome = masquerade(&lab.world, &mut frame, &mut Work::default());
    if outcome.action() == Action::Pass { Ok(frame.bytes) } else { Err(outcome.reason()) }
}

/// An endpoint sends a packet, which then leaves on the uplink.
fn leave(lab: &Lab, id: u16, packet: &Build) -> Result<Vec<u8>, Reason> {
    assert_eq!(end(lab.from(id, packet)), PASS, "{packet:?}");
    egress(lab, Frame::new(packet.frame(), UPLINK).via(ifindex(id)))
}

/// A packet of the node itself leaves on the uplink.
fn own(lab: &Lab, packet: &Build) -> Result<Vec<u8>, Reason> {
    egress(lab, Frame::new(packet.frame(), UPLINK).via(0))
}

/// A packet comes in on the uplink.
fn enter(lab: &Lab, packet: &Build) -> Vec<u8> {
    let mut frame = Frame::new(packet.frame(), UPLINK);
    unmasquerade(&lab.world, &mut frame, &mut Work::default());
    frame.bytes
}

/// The source port of a frame without options.
fn port_of(bytes: &[u8], v6: bool, icmp: bool) -> u16 {
    let at = 14 + if v6 { 40 } else { 20 } + if icmp { 4 } else { 0 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The same packet from another source.
fn from(packet: &Build, src: IpAddr, port: u16) -> Build {
    let mut packet = Build { src, ..packet.clone() };
    match &mut packet.transport {
        Transport::Tcp { sport, .. } | Transport::Udp { sport, .. } => *sport = port,
        Transport::Icmp { rest, .. } => rest[..2].copy_from_slice(&port.to_be_bytes()),
        Transport::Sctp { .. } | Transport::Other(_) => {}
    }
    packet
}

/// Packets that an endpoint sends from a port, and their answers from there to an address and port.
type Pair = (fn(IpAddr, u16, IpAddr) -> Build, fn(IpAddr, IpAddr, u16) -> Build);
const PAIRS: [Pair; 3] = [
    (
        |src, port, dst| Build::tcp(src, port, dst, 443, SYN),
        |src, dst, port| Build::tcp(src, 443, dst, port, SYN | ACK),
    ),
    (|src, port, dst| Build::udp(src, port, dst, 53), |src, dst, port| Build::udp(src, 53, dst, port)),
    (|src, id, dst| Build::ping(src, dst, id), |src, dst, id| Build::pong(src, dst, id)),
];

#[test]
fn a_packet_leaves_with_the_nodes_address_and_its_answer_finds_back() {
    for v6 in [false, true] {
        for (ask, answer) in PAIRS {
            let lab = lab();
            let question = ask(addr(v6, CLIENT), 40_000, outside(v6));
            for _ in 0..2 {
                assert_eq!(
                    leave(&lab, CLIENT, &question).unwrap(),
                    from(&question, lent(v6), 40_000).frame()
                );
                let back = enter(&lab, &answer(outside(v6), lent(v6), 40_000));
                assert_eq!(back, answer(outside(v6), addr(v6, CLIENT), 40_000).frame());
            }
            assert_eq!(lab.world.mappings().len(), 2);
        }
    }
}

#[test]
fn two_who_use_one_port_are_told_apart() {
    for v6 in [false, true] {
        for (ask, answer) in PAIRS {
            let lab = lab();
            let icmp = ask(addr(v6, CLIENT), 1, outside(v6)).transport
                == Build::ping(addr(v6, CLIENT), outside(v6), 1).transport;
            let mut ports = Vec::new();
            for id in [CLIENT, SERVER, TAP] {
                let question = ask(addr(v6, id), 40_000, outside(v6));
                let frame = leave(&lab, id, &question).unwrap();
                let port = port_of(&frame, v6, icmp);
                assert_eq!(frame, from(&question, lent(v6), port).frame());
                assert!(port >= NAT_LEAST && !ports.contains(&port), "{port} {ports:?}");
                ports.push(port);
            }
            assert_eq!(ports[0], 40_000);
            for (id, port) in [CLIENT, SERVER, TAP].into_iter().zip(ports) {
                let back = enter(&lab, &answer(outside(v6), lent(v6), port));
                assert_eq!(back, answer(outside(v6), addr(v6, id), 40_000).frame());
            }
        }
    }
}

#[test]
fn a_low_port_is_not_lent() {
    for v6 in [false, true] {
        let lab = lab();
        let question = Build::udp(addr(v6, CLIENT), 123, outside(v6), 123);
        let frame = leave(&lab, CLIENT, &question).unwrap();
        let port = port_of(&frame, v6, false);
        assert!(port >= NAT_LEAST, "{port}");
        assert_eq!(frame, from(&question, lent(v6), port).frame());
        // The same again after everything was forgotten.
        let before = lab.world.mappings();
        before.keys().for_each(|key| assert!(lab.world.remove_mapping(key)));
        assert_eq!(leave(&lab, CLIENT, &question).unwrap(), frame);
    }
}

#[test]
fn what_stays_in_the_cluster_keeps_its_source() {
    // Another node, and one that policy tells from the others.
    for (v6, identity) in [(false, 6), (true, 6), (false, 2 << 24 | 7), (true, 2 << 24 | 7)] {
        let mut lab = lab();
        lab.row(if v6 { "2001:db8::77" } else { "192.0.2.77" }, if v6 { 128 } else { 32 }, identity, false);
        let inside = if v6 { "fd00:0:0:9::5" } else { "10.0.9.5" };
        let listed = if v6 { "2001:db8:1::5" } else { "198.51.100.5" };
        let node = if v6 { "2001:db8::77" } else { "192.0.2.77" };
        let group = if v6 { "ff0e::5" } else { "239.1.1.1" };
        for to in [inside, listed, node, group] {
            let packet = Build::udp(addr(v6, CLIENT), 40_000, ip(to), 53);
            let sent = Frame::new(packet.frame(), UPLINK).via(ifindex(CLIENT));
            assert_eq!(egress(&lab, sent).unwrap(), packet.frame(), "{to}");
        }
        // Behind a tunnel nobody has routes to endpoints.
        lab.tunnel();
        let packet = Build::udp(addr(v6, CLIENT), 40_000, ip(node), 53);
        let sent = Frame::new(packet.frame(), UPLINK).via(ifindex(CLIENT));
        assert_eq!(egress(&lab, sent).unwrap(), from(&packet, lent(v6), 40_000).frame());
        // Whoever forwards by this node under other addresses.
        let packet = Build::udp(ip(listed), 40_000, outside(v6), 53);
        assert_eq!(egress(&lab, Frame::new(packet.frame(), UPLINK).via(55)).unwrap(), packet.frame());
    }
}

#[test]
fn an_answer_to_who_reached_the_endpoint_itself_keeps_its_source() {
    for v6 in [false, true] {
        for (ask, answer) in PAIRS {
            let lab = lab();
            let question = ask(outside(v6), 40_000, addr(v6, SERVER));
            assert_eq!(end(lab.to(SERVER, UPLINK, &question)), PASS);
            let reply = answer(addr(v6, SERVER), outside(v6), 40_000);
            assert_eq!(leave(&lab, SERVER, &reply).unwrap(), reply.frame());
            assert!(lab.world.mappings().is_empty());
        }
    }
}

#[test]
fn an_error_finds_who_sent_what_it_quotes() {
    for v6 in [false, true] {
        for (ask, _) in PAIRS {
            for quoted in [8, 28] {
                let lab = lab();
                let question = ask(addr(v6, CLIENT), 40_000, outside(v6));
                leave(&lab, SERVER, &ask(addr(v6, SERVER), 40_000, outside(v6))).unwrap();
                let sent = leave(&lab, CLIENT, &question).unwrap();
                let icmp = matches!(question.transport, Transport::Icmp { .. });
                let sent = from(&question, lent(v6), port_of(&sent, v6, icmp));
                let router = ip(if v6 { "2001:db8::fe" } else { "192.0.2.254" });
                let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
                let error = |of: &Build, to| {
                    let mut quote = of.packet();
                    quote.truncate(if v6 { 40 } else { 20 } + quoted);
                    Build { payload: quote, ..Build::icmp(router, to, kind, code) }
                };
                let back = enter(&lab, &error(&sent, lent(v6)));
                assert_eq!(back, error(&question, addr(v6, CLIENT)).frame(), "{v6} {quoted} {question:?}");
                // About nobody's packet.
                let other = error(&from(&sent, lent(v6), 50_000), lent(v6));
                assert_eq!(enter(&lab, &other), other.frame());
            }
        }
    }
}

#[test]
fn an_endpoints_error_quotes_what_came_in() {
    for v6 in [false, true] {
        let lab = lab();
        // Another one has the port, so that it is lent a different one.
        leave(&lab, SERVER, &Build::udp(addr(v6, SERVER), 40_000, outside(v6), 53)).unwrap();
        let question = Build::udp(addr(v6, CLIENT), 40_000, outside(v6), 53);
        let port = port_of(&leave(&lab, CLIENT, &question).unwrap(), v6, false);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let answer = |to, port| Build::udp(outside(v6), 53, to, port);
        let error = answer(addr(v6, CLIENT), 40_000).error(addr(v6, CLIENT), outside(v6), kind, code);
        let sent = egress(&lab, Frame::new(error.frame(), UPLINK).via(ifindex(CLIENT))).unwrap();
        assert_eq!(sent, answer(lent(v6), port).error(lent(v6), outside(v6), kind, code).frame());
        // The node as a router says it under its own address.
        let error = answer(addr(v6, CLIENT), 40_000).error(lent(v6), outside(v6), kind, code);
        let sent = own(&lab, &error).unwrap();
        assert_eq!(sent, answer(lent(v6), port).error(lent(v6), outside(v6), kind, code).frame());
    }
}

#[test]
fn fragments_follow_the_first_one() {
    for v6 in [false, true] {
        let lab = lab();
        leave(&lab, SERVER, &Build::udp(addr(v6, SERVER), 40_000, outside(v6), 53)).unwrap();
        let whole = Build::udp(addr(v6, CLIENT), 40_000, outside(v6), 53).payload(200);
        let first = leave(&lab, CLIENT, &whole.clone().part(0, 104, true)).unwrap();
        let port = port_of(&first, v6, false);
        let port = if v6 { u16::from_be_bytes([first[14 + 48], first[14 + 49]]) } else { port };
        let sent = from(&whole, lent(v6), port);
        assert_eq!(first, sent.clone().part(0, 104, true).frame());
        let later = leave(&lab, CLIENT, &whole.clone().part(104, 104, false)).unwrap();
        assert_eq!(later, sent.part(104, 104, false).frame());
        // And back.
        let answer = |to, port| Build::udp(outside(v6), 53, to, port).payload(200);
        for (offset, more) in [(0, true), (104, false)] {
            let back = enter(&lab, &answer(lent(v6), port).part(offset, 104, more));
            assert_eq!(back, answer(addr(v6, CLIENT), 40_000).part(offset, 104, more).frame());
        }
        let stray = Build { id: 99, ..answer(lent(v6), port).part(104, 104, false) };
        assert_eq!(enter(&lab, &stray), stray.frame(), "it may be the node's own");
    }
}

#[test]
fn sctp_keeps_its_ports() {
    for v6 in [false, true] {
        let lab = lab();
        let init = |id| Build::sctp_init(addr(v6, id), 36_412, outside(v6), 36_412);
        assert_eq!(leave(&lab, CLIENT, &init(CLIENT)).unwrap(), from(&init(CLIENT), lent(v6), 0).frame());
        let answer = |to| Build::sctp(outside(v6), 36_412, to, 36_412);
        assert_eq!(enter(&lab, &answer(lent(v6))), answer(addr(v6, CLIENT)).frame());
        assert_eq!(leave(&lab, SERVER, &init(SERVER)), Err(Reason::NAT_NO_MAPPING), "the port is in use");
    }
}

#[test]
fn what_cannot_be_told_apart_drops() {
    let lab = lab();
    let message = Build::icmp(addr(false, CLIENT), outside(false), 42, 0);
    let sent = Frame::new(message.frame(), UPLINK).via(ifindex(CLIENT));
    assert_eq!(egress(&lab, sent), Err(Reason::NAT_PROTOCOL));
    let other = Build::new(addr(false, CLIENT), outside(false), Transport::Other(47)).payload(24);
    let sent = Frame::new(other.frame(), UPLINK).via(ifindex(CLIENT));
    assert_eq!(egress(&lab, sent), Err(Reason::NAT_PROTOCOL));
    assert_eq!(lab.world.counted(Reason::NAT_PROTOCOL, 1), 2);
}

#[test]
fn a_port_of_the_hosts_own_is_not_lent() {
    for v6 in [false, true] {
        for (proto, peer) in [(6, Some(443)), (17, None)] {
            let lab = lab();
            let ask = PAIRS[usize::from(proto == 17)].0;
            let question = ask(addr(v6, CLIENT), 40_000, outside(v6));
            assert_eq!(end(lab.from(CLIENT, &question)), PASS);
            let mut frame = Frame::new(question.frame(), UPLINK).via(ifindex(CLIENT));
            let peer = peer.map(|port| SocketAddr::new(outside(v6), port));
            frame.sockets = vec![(proto, SocketAddr::new(lent(v6), 40_000), peer)];
            let port = port_of(&egress(&lab, frame).unwrap(), v6, false);
            assert_ne!(port, 40_000);
        }
    }
}

#[test]
fn the_nodes_own_packets_pass_unless_their_port_is_lent() {
    for v6 in [false, true] {
        for (ask, answer) in PAIRS {
            let lab = lab();
            let question = ask(lent(v6), 40_000, outside(v6));
            assert_eq!(own(&lab, &question).unwrap(), question.frame());
            assert_eq!(
                enter(&lab, &answer(outside(v6), lent(v6), 40_000)),
                answer(outside(v6), lent(v6), 40_000).frame()
            );
            assert!(lab.world.mappings().is_empty());

            leave(&lab, CLIENT, &ask(addr(v6, CLIENT), 40_000, outside(v6))).unwrap();
            let sent = own(&lab, &question).unwrap();
            let icmp = matches!(question.transport, Transport::Icmp { .. });
            let port = port_of(&sent, v6, icmp);
            assert!(port != 40_000, "{port}");
            assert_eq!(sent, from(&question, lent(v6), port).frame());
            let back = |port| enter(&lab, &answer(outside(v6), lent(v6), port));
            assert_eq!(back(port), answer(outside(v6), lent(v6), 40_000).frame());
            assert_eq!(back(40_000), answer(outside(v6), addr(v6, CLIENT), 40_000).frame());
        }
    }
}

#[test]
fn what_the_hosts_nat_has_lent_the_address_is_told_apart_whoever_came_first() {
    let translated = |lab: &Lab, packet: &Build| egress(lab, Frame::new(packet.frame(), UPLINK).via(77));
    for v6 in [false, true] {
        for (ask, answer) in PAIRS {
            let own = ask(lent(v6), 40_000, outside(v6));
            let endpoints = ask(addr(v6, CLIENT), 40_000, outside(v6));
            let icmp = matches!(own.transport, Transport::Icmp { .. });
            let back = |lab: &Lab, port| enter(lab, &answer(outside(v6), lent(v6), port));
            // The endpoint first.
            let lab = self::lab();
            leave(&lab, CLIENT, &endpoints).unwrap();
            let sent = translated(&lab, &own).unwrap();
            let port = port_of(&sent, v6, icmp);
            assert_ne!(port, 40_000);
            assert_eq!(sent, from(&own, lent(v6), port).frame());
            assert_eq!(back(&lab, port), answer(outside(v6), lent(v6), 40_000).frame());
            assert_eq!(back(&lab, 40_000), answer(outside(v6), addr(v6, CLIENT), 40_000).frame());
            // The host's NAT first.
            let lab = self::lab();
            assert_eq!(translated(&lab, &own).unwrap(), own.frame());
            let sent = leave(&lab, CLIENT, &endpoints).unwrap();
            let port = port_of(&sent, v6, icmp);
            assert_ne!(port, 40_000);
            assert_eq!(translated(&lab, &own).unwrap(), own.frame(), "it keeps what it had");
            assert_eq!(back(&lab, 40_000), answer(outside(v6), lent(v6), 40_000).frame());
            assert_eq!(back(&lab, port), answer(outside(v6), addr(v6, CLIENT), 40_000).frame());
        }
        // Ports that nobody is lent, and destinations that see endpoints as they are, need no entry.
        let lab = lab();
        let low = Build::udp(lent(v6), 5353, outside(v6), 53);
        let near = Build::udp(lent(v6), 40_000, ip(if v6 { "2001:db8:1::9" } else { "198.51.100.9" }), 53);
        for packet in [low, near] {
            assert_eq!(translated(&lab, &packet).unwrap(), packet.frame());
        }
        assert!(lab.world.mappings().is_empty());
    }
}

#[test]
fn a_mapping_ends_with_its_flow_and_its_port_goes_to_the_next() {
    for v6 in [false, true] {
        let lab = lab();
        let question = |id| Build::udp(addr(v6, id), 40_000, outside(v6), 53);
        let answer = |to| Build::udp(outside(v6), 53, to, 40_000);
        leave(&lab, CLIENT, &question(CLIENT)).unwrap();
        lab.world.pass(50);
        assert_eq!(enter(&lab, &answer(lent(v6))), answer(addr(v6, CLIENT)).frame());
        lab.world.pass(50);
        assert_eq!(enter(&lab, &answer(lent(v6))), answer(addr(v6, CLIENT)).frame(), "the answer kept it");
        lab.world.pass(61);
        assert_eq!(enter(&lab, &answer(lent(v6))), answer(lent(v6)).frame());
        assert_eq!(
            leave(&lab, SERVER, &question(SERVER)).unwrap(),
            from(&question(SERVER), lent(v6), 40_000).frame()
        );
        assert_eq!(enter(&lab, &answer(lent(v6))), answer(addr(v6, SERVER)).frame());
    }
}

#[test]
fn either_half_of_a_mapping_brings_back_the_other() {
    for v6 in [false, true] {
        for forgotten in [0, 1] {
            let lab = lab();
            leave(&lab, SERVER, &Build::tcp(addr(v6, SERVER), 40_000, outside(v6), 443, SYN)).unwrap();
            let taken = lab.world.mappings();
            let question = Build::tcp(addr(v6, CLIENT), 40_000, outside(v6), 443, SYN);
            let sent = leave(&lab, CLIENT, &question).unwrap();
            let port = port_of(&sent, v6, false);
            let mine = lab.world.mappings();
            let half = mine
                .iter()
                .find(|(key, nat)| !taken.contains_key(key) && (nat.expires == 0) == (forgotten == 0));
            assert!(lab.world.remove_mapping(half.unwrap().0));
            let answer = |to, port| Build::tcp(outside(v6), 443, to, port, ACK);
            if forgotten == 0 {
                assert_eq!(leave(&lab, CLIENT, &question).unwrap(), sent);
            } else {
                assert_eq!(enter(&lab, &answer(lent(v6), port)), answer(addr(v6, CLIENT), 40_000).frame());
            }
            assert_eq!(lab.world.mappings().len(), 4);
            assert_eq!(leave(&lab, CLIENT, &question).unwrap(), sent);
            assert_eq!(enter(&lab, &answer(lent(v6), port)), answer(addr(v6, CLIENT), 40_000).frame());
        }
    }
}

#[test]
fn a_table_that_refuses_and_an_uplink_without_an_address_drop() {
    for v6 in [false, true] {
        let mut lab = lab();
        let question = Build::udp(addr(v6, CLIENT), 40_000, outside(v6), 53);
        lab.world.refuse_mappings(true);
        assert_eq!(leave(&lab, CLIENT, &question), Err(Reason::NAT_NO_MAPPING));
        lab.world.refuse_mappings(false);
        lab.world.uplinks.insert(UPLINK, Uplink::default());
        assert_eq!(leave(&lab, CLIENT, &question), Err(Reason::NAT_NO_MAPPING));
        assert_eq!(lab.world.counted(Reason::NAT_NO_MAPPING, 1), 2);
        assert!(lab.world.mappings().is_empty());
    }
}

#[test]
fn a_checksum_that_the_device_completes_stays_one_of_the_pseudo_header() {
    for v6 in [false, true] {
        let lab = lab();
        leave(&lab, SERVER, &Build::tcp(addr(v6, SERVER), 40_000, outside(v6), 443, SYN)).unwrap();
        let question = Build::tcp(addr(v6, CLIENT), 40_000, outside(v6), 443, SYN);
        assert_eq!(end(lab.from(CLIENT, &question)), PASS);
        let at = 14 + if v6 { 40 } else { 20 } + 16;
        let partial = |packet: &Build| {
            let mut bytes = packet.frame();
            bytes[at..at + 2].copy_from_slice(&pseudo(&packet.packet(), v6).to_be_bytes());
            bytes
        };
        let mut frame = Frame::new(partial(&question), UPLINK).via(ifindex(CLIENT));
        frame.partial = true;
        let sent = egress(&lab, frame).unwrap();
        assert_eq!(sent, partial(&from(&question, lent(v6), port_of(&sent, v6, false))));
    }
}

/// The sum of a TCP packet's pseudo header.
fn pseudo(packet: &[u8], v6: bool) -> u16 {
    let (addresses, header) = if v6 { (&packet[8..40], 40) } else { (&packet[12..20], 20) };
    let halves = addresses.chunks(2).map(|half| u32::from(u16::from_be_bytes([half[0], half[1]])));
    let mut sum = halves.sum::<u32>() + 6 + u32::try_from(packet.len() - header).unwrap();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

#[test]
fn a_vlan_tag_and_another_family_are_left_alone() {
    let mut lab = lab();
    lab.world.config.as_mut().unwrap().flags &= !FLAG_MASQUERADE_V6;
    let packet = Build::udp(addr(true, CLIENT), 40_000, outside(true), 53);
    let sent = Frame::new(packet.frame(), UPLINK).via(ifindex(CLIENT));
    assert_eq!(egress(&lab, sent).unwrap(), packet.frame());
    let packet = Build::udp(addr(false, CLIENT), 40_000, outside(false), 53);
    let mut sent = Frame::new(packet.frame(), UPLINK).via(ifindex(CLIENT));
    sent.vlan = true;
    assert_eq!(egress(&lab, sent).unwrap(), packet.frame());
}
