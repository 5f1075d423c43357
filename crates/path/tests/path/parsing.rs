//! Malformed packets, and the odd ones that are not.

use villus_abi::Reason;
use villus_path::memory::{Build, Transport, checksum};

use crate::lab::*;

fn tcp(v6: bool) -> Build {
    Build::tcp(addr(v6, CLIENT), 4000, addr(v6, SERVER), 80, SYN)
}

/// Sends a frame from the client after changing it.
fn sent(packet: &Build, change: impl Fn(&mut Vec<u8>)) -> Result<(villus_path::Action, u32), Reason> {
    let mut bytes = packet.clone().from_mac(mac(CLIENT)).frame();
    change(&mut bytes);
    end(Lab::default().run_from(CLIENT, bytes).0)
}

#[test]
fn every_byte_that_is_missing_has_its_reason() {
    for v6 in [false, true] {
        let whole = tcp(v6).from_mac(mac(CLIENT)).frame();
        for len in 0..whole.len() {
            let reason = end(Lab::default().run_from(CLIENT, whole[..len].to_vec()).0).unwrap_err();
            assert_eq!(reason, Reason::INVALID, "{v6} {len}: its length says more than there is");
        }
    }
}

#[test]
fn transports_that_are_cut_short_are_invalid() {
    for v6 in [false, true] {
        let (src, dst) = (addr(v6, CLIENT), addr(v6, SERVER));
        let proto = if v6 { 58 } else { 1 };
        for (proto, least) in [(6, 20), (17, 8), (132, 12), (proto, 8)] {
            for len in 0..=least {
                let mut body = vec![0_u8; len];
                if let Some(offset) = body.get_mut(12) {
                    *offset = 5 << 4;
                }
                if len > 0 && proto == if v6 { 58 } else { 1 } {
                    body[0] = if v6 { 128 } else { 8 };
                }
                let mut packet = Build::new(src, dst, Transport::Other(proto));
                packet.payload = body;
                let wanted = if len < least { Err(Reason::CT_INVALID) } else { peer(SERVER) };
                assert_eq!(sent(&packet, |_| ()), wanted, "{v6} {proto} {len}");
                // What the frame holds beyond the packet does not help.
                assert_eq!(
                    sent(&packet, |bytes| bytes.extend([0x50; 40])),
                    wanted,
                    "{v6} {proto} {len} padded"
                );
            }
        }
    }
}

#[test]
fn headers_that_lie_are_invalid() {
    // (offset in the frame, byte, reason)
    for (offset, byte, reason) in [
        (14, 0x44, Reason::INVALID),         // header of 16 bytes
        (14, 0x65, Reason::INVALID),         // version 6
        (14, 0x4f, Reason::INVALID),         // options beyond the packet
        (14, 0x4c, Reason::INVALID),         // options that are none
        (16, 0xff, Reason::INVALID),         // longer than the frame
        (17, 19, Reason::INVALID),           // shorter than its header
        (14 + 32, 0x40, Reason::CT_INVALID), // TCP header of 16 bytes
        (14 + 32, 0xf0, Reason::CT_INVALID), // TCP header beyond the packet
    ] {
        assert_eq!(sent(&tcp(false), |bytes| bytes[offset] = byte), Err(reason), "{offset} {byte}");
    }
    for (offset, byte, reason) in [
        (14, 0x40, Reason::INVALID),
        (18, 0xff, Reason::INVALID),
        (20, 59, Reason::CT_UNKNOWN_L4),
        (20, 47, Reason::CT_UNKNOWN_L4),
        (14 + 52, 0x40, Reason::CT_INVALID),
    ] {
        assert_eq!(sent(&tcp(true), |bytes| bytes[offset] = byte), Err(reason), "v6 {offset} {byte}");
    }
}

#[test]
fn options_and_extension_headers_are_followed() {
    for len in (0..=40).step_by(4) {
        let packet = Build { options: vec![1; len], ..tcp(false) };
        assert_eq!(sent(&packet, |_| ()), peer(SERVER), "{len} bytes of options");
        let Transport::Tcp { sport, dport, flags, .. } = packet.transport else { unreachable!() };
        let transport = Transport::Tcp { sport, dport, flags, options: vec![1; len] };
        assert_eq!(sent(&Build { transport, ..packet }, |_| ()), peer(SERVER));
    }
    let pad = [0, 0, 1, 4, 0, 0, 0, 0];
    let long: Vec<u8> = [&[0, 2][..], &[0; 22]].concat();
    let auth: Vec<u8> = [&[0, 4][..], &[0; 22]].concat();
    for (name, headers, wanted) in [
        ("hop-by-hop", vec![(0, &pad[..])], peer(SERVER)),
        ("hop-by-hop, destination", vec![(0, &pad[..]), (60, &long)], peer(SERVER)),
        ("authentication", vec![(51, &auth)], peer(SERVER)),
        ("routing without segments left", vec![(43, &pad[..])], Err(Reason::EXTENSION_HEADER)),
        ("routing, used up", vec![(43, &[0, 0, 0, 0, 0, 0, 0, 0])], peer(SERVER)),
        ("a fragment that is whole", vec![(44, &[0, 0, 0, 0, 1, 2, 3, 4])], peer(SERVER)),
        ("six", vec![(60, &pad[..]); 6], peer(SERVER)),
        ("seven", vec![(60, &pad[..]); 7], Err(Reason::EXTENSION_HEADER)),
        ("beyond its end", vec![(60, &[0, 200, 1, 4, 0, 0, 0, 0])], Err(Reason::EXTENSION_HEADER)),
    ] {
        let packet =
            headers.iter().fold(tcp(true), |packet, (number, bytes)| packet.extension(*number, bytes));
        assert_eq!(sent(&packet, |_| ()), wanted, "{name}");
    }
}

#[test]
fn nobody_chooses_the_route_of_an_ipv4_packet() {
    // Option, length, pointer, one hop.
    let hop = |kind: u8| [kind, 7, 4, 10, 0, 0, 9];
    let used_up = [131, 7, 8, 10, 0, 0, 9];
    for (name, options, wanted) in [
        ("loose", [&hop(131)[..], &[0]].concat(), Err(Reason::SOURCE_ROUTE)),
        ("strict", [&hop(137)[..], &[0]].concat(), Err(Reason::SOURCE_ROUTE)),
        ("used up", [&used_up[..], &[0]].concat(), Err(Reason::SOURCE_ROUTE)),
        (
            "after others",
            [&[1, 1, 1, 148, 4, 0, 0][..], &hop(131), &[0, 0]].concat(),
            Err(Reason::SOURCE_ROUTE),
        ),
        ("with nothing but its number", vec![1, 1, 1, 131], Err(Reason::SOURCE_ROUTE)),
        ("record route", [&hop(7)[..], &[0]].concat(), peer(SERVER)),
        ("router alert", vec![148, 4, 0, 0], peer(SERVER)),
        ("behind the end of the list", [&[0][..], &hop(131)].concat(), peer(SERVER)),
        ("no length", vec![148, 0, 0, 0], Err(Reason::INVALID)),
        ("beyond the header", vec![148, 5, 0, 0], Err(Reason::INVALID)),
    ] {
        assert_eq!(sent(&Build { options, ..tcp(false) }, |_| ()), wanted, "{name}");
    }
}

#[test]
fn a_train_of_segments_needs_no_length() {
    for (v6, at) in [(false, 16), (true, 18)] {
        let mut bytes = tcp(v6).payload(3000).from_mac(mac(CLIENT)).frame();
        bytes[at..at + 2].copy_from_slice(&[0, 0]);
        let lab = Lab::default();
        let mut frame = villus_path::memory::Frame::new(bytes, ifindex(CLIENT));
        let mut work = villus_path::Work::default();
        assert!(end(villus_path::from_endpoint(&lab.world, &mut frame.clone(), &mut work)).is_err());
        frame.gso_size = 1400;
        assert_eq!(end(villus_path::from_endpoint(&lab.world, &mut frame, &mut work)), peer(SERVER));
    }
}

#[test]
fn frames_of_other_kinds_are_refused() {
    let lab = Lab::default();
    let inner = tcp(false).packet();
    for (kind, reason) in [
        (0x8100, Reason::VLAN),
        (0x88a8, Reason::VLAN),
        (0x8847, Reason::UNSUPPORTED_L3),
        (0x05dc, Reason::UNSUPPORTED_L3),
    ] {
        let frame = villus_path::memory::ethernet(node_mac(CLIENT), mac(CLIENT), kind, &inner);
        assert_eq!(end(lab.run_from(CLIENT, frame).0), Err(reason), "{kind:#x}");
        let event = lab.events().pop().unwrap();
        assert_eq!((event.ethertype, event.flags), (u16::to_be(kind), 0), "{kind:#x}");
    }
    let mut tagged =
        villus_path::memory::Frame::new(tcp(false).from_mac(mac(CLIENT)).frame(), ifindex(CLIENT));
    tagged.vlan = true;
    let mut work = villus_path::Work::default();
    assert_eq!(
        end(villus_path::from_endpoint(&lab.world, &mut tagged.clone(), &mut work)),
        Err(Reason::VLAN)
    );
    // On an uplink it is for the VLAN device, which is an uplink of its own.
    assert_eq!(end(villus_path::from_network(&lab.world, &mut tagged, &mut work)), PASS);
}

#[test]
fn a_family_that_is_off_is_unsupported() {
    use villus_abi::{Config, config};
    for (flag, v6) in [(config::FLAG_IPV4, false), (config::FLAG_IPV6, true)] {
        let config = Config::default();
        let lab = Lab::with(Config { flags: config.flags & !flag, ..config });
        assert_eq!(end(lab.from(CLIENT, &tcp(v6))), Err(Reason::UNSUPPORTED_L3));
        assert_eq!(end(lab.to(SERVER, 0, &tcp(v6))), Err(Reason::UNSUPPORTED_L3));
        assert_eq!(end(lab.from(CLIENT, &tcp(!v6))), peer(SERVER));
    }
}

#[test]
fn redirecting_routes_the_packet_and_keeps_its_checksum_right() {
    let lab = Lab::default();
    for ttl in [2, 63, 64, 128, 255] {
        for id in 0..300 {
            let packet = Build { id: id * 217, ..tcp(false) }.ttl(ttl).from_mac(mac(CLIENT));
            let (outcome, frame) = lab.run_from(CLIENT, packet.frame());
            assert_eq!(end(outcome), peer(SERVER));
            assert_eq!((&frame.bytes[..6], &frame.bytes[6..12]), (&mac(SERVER)[..], &node_mac(SERVER)[..]));
            assert_eq!(frame.bytes[22], ttl - 1);
            assert_eq!(checksum(&frame.bytes[14..34]), 0, "ttl {ttl} id {id}");
            let mut rest = packet.frame();
            rest[..12].copy_from_slice(&frame.bytes[..12]);
            rest[22..26].copy_from_slice(&frame.bytes[22..26]);
            assert_eq!(rest, frame.bytes, "nothing else is changed");
        }
    }
    let (outcome, frame) = lab.run_from(CLIENT, tcp(true).ttl(9).from_mac(mac(CLIENT)).frame());
    assert_eq!((end(outcome), frame.bytes[21]), (peer(SERVER), 8));
}
