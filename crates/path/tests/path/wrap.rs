//! What is put around a packet for the tunnel past the stack, and when that is left to the tunnel's device.

use std::net::Ipv4Addr;

use villus_abi::{
    Direction::Egress,
    Reason,
    event::{KIND_TRACE, POINT_TO_OVERLAY},
    metrics,
};
use villus_path::{
    Action, Neighbour, Outcome, Work,
    memory::{Build, Frame, NextHop, checksum},
};

use crate::lab::*;

const NEXT: Neighbour = Neighbour { ifindex: UPLINK, mac: [2, 7, 7, 7, 7, 7], own_mac: [2, 6, 6, 6, 6, 6] };
const HOP: NextHop = NextHop { neighbour: NEXT, mtu: 1500 };
const WRAPPED: Result<(Action, u32), Reason> = Ok((Action::Neighbour, UPLINK));
const BY_DEVICE: Result<(Action, u32), Reason> = Ok((Action::Tunnel, OVERLAY));
/// Headers around the packet inside, and up to it.
const AROUND: usize = 50;

fn wrapping() -> Lab {
    let mut lab = Lab::default();
    lab.tunnel();
    wraps(&mut lab.world);
    lab
}

fn hello(v6: bool) -> Build {
    Build::tcp(addr(v6, CLIENT), 5000, behind(v6, NODE_B), 80, SYN).from_mac(mac(CLIENT))
}

fn frame(packet: &Build) -> Frame {
    let mut frame = Frame::new(packet.frame(), ifindex(CLIENT));
    frame.node_hops = vec![(NODE_B, Some(HOP))];
    frame
}

fn run(lab: &Lab, frame: &mut Frame) -> Outcome {
    villus_path::from_endpoint(&lab.world, frame, &mut Work::default())
}

#[test]
fn a_packet_is_wrapped_as_the_tunnels_device_does_it() {
    for v6 in [false, true] {
        let lab = wrapping();
        let packet = hello(v6);
        let mut frame = Frame { hash: 0x8765_4321, ..frame(&packet) };
        assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
        assert_eq!(frame.encapsulated, None);
        let bytes = &frame.bytes;
        assert_eq!(
            (&bytes[..6], &bytes[6..12], &bytes[12..14]),
            (&NEXT.mac[..], &NEXT.own_mac[..], &[8, 0][..])
        );
        let ip = &bytes[14..34];
        let length = u16::try_from(packet.frame().len() + AROUND - 14).unwrap();
        assert_eq!((ip[0], ip[1], &ip[2..4]), (0x45, 0, &length.to_be_bytes()[..]));
        assert_eq!(
            (&ip[4..8], &ip[8..10]),
            (&[0, 1, 0, 0][..], &[61, 17][..]),
            "not the last of its number, may be cut"
        );
        assert_eq!(checksum(ip), 0);
        assert_eq!((&ip[12..16], &ip[16..20]), (&NODE_A.to_ne_bytes()[..], &NODE_B.to_ne_bytes()[..]));
        let udp = &bytes[34..42];
        assert_eq!((&udp[..2], &udp[2..4]), (&FLOW_PORT.to_be_bytes()[..], &8472_u16.to_be_bytes()[..]));
        assert_eq!((&udp[4..6], &udp[6..8]), (&(length - 20).to_be_bytes()[..], &[0, 0][..]), "no checksum");
        let [a, b, c, d] = (identity(CLIENT) << 8).to_be_bytes();
        assert_eq!(bytes[42..50], [8, 0, 0, 0, a, b, c, d]);
        // Inside lies what the device would have got.
        let mut plain = Frame::new(packet.frame(), ifindex(CLIENT));
        assert_eq!(end(run(&lab, &mut plain)), BY_DEVICE);
        assert_eq!(bytes[50..], plain.bytes);
    }
}

#[test]
fn what_congestion_does_to_a_packet_is_shown_outside_and_its_class_is_not() {
    for v6 in [false, true] {
        for ecn in 0..4 {
            let lab = wrapping();
            let mut frame = frame(&hello(v6));
            let class = 0b1011_1000 | ecn;
            if v6 {
                frame.bytes[14] |= class >> 4;
                frame.bytes[15] |= class << 4;
            } else {
                frame.bytes[15] = class;
            }
            assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
            assert_eq!(frame.bytes[15], ecn);
        }
    }
}

#[test]
fn ports_of_flows_are_drawn_from_the_nodes_range_by_their_hash() {
    let mut lab = wrapping();
    lab.world.config.as_mut().unwrap().tunnel_ports = [32_768, 28_231];
    for hash in [0, 1, 0x1234_5678, 0x8000_0000, u32::MAX] {
        let mut frame = Frame { hash, ..frame(&hello(false)) };
        assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
        // As `udp_flow_src_port` of linux/udp.h.
        let mixed = u64::from(hash ^ (hash << 16));
        let port = 32_768 + u16::try_from((mixed * 28_231) >> 32).unwrap();
        assert_eq!(frame.bytes[34..36], port.to_be_bytes(), "{hash:x}");
    }
}

#[test]
fn numbers_follow_each_other() {
    let lab = wrapping();
    let mut numbers = Vec::new();
    let mut before = 0xfffe;
    for _ in 0..3 {
        let mut frame = Frame { number: before, ..frame(&hello(false)) };
        assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
        assert_eq!(checksum(&frame.bytes[14..34]), 0);
        numbers.push(u16::from_be_bytes([frame.bytes[18], frame.bytes[19]]));
        before = frame.number;
    }
    assert_eq!(numbers, [0xffff, 0, 1]);
}

#[test]
fn what_is_not_plain_is_left_to_the_device() {
    type Change = fn(&mut Lab, &mut Frame);
    let cases: [(&str, Change); 9] = [
        ("no agent says that it may", |lab, _| lab.world.config.as_mut().unwrap().tunnel_source = 0),
        ("the last word is old", |lab, _| lab.world.config.as_mut().unwrap().tunnel_until = 1),
        ("no neighbour", |_, frame| frame.node_hops.clear()),
        ("another node", |_, frame| frame.node_hops = vec![(NODE_C, Some(HOP))]),
        ("a way that is not by the uplink", |_, frame| {
            let neighbour = Neighbour { ifindex: UPLINK + 1, ..NEXT };
            frame.node_hops = vec![(NODE_B, Some(NextHop { neighbour, ..HOP }))];
        }),
        ("a way that is too narrow", |_, frame| {
            let mtu = u32::try_from(frame.bytes.len() - 14 + AROUND - 1).unwrap();
            frame.node_hops = vec![(NODE_B, Some(NextHop { mtu, ..HOP }))];
        }),
        ("a way for shorter segments", |_, frame| {
            frame.gso_size = 1380;
            frame.node_hops = vec![(NODE_B, Some(NextHop { mtu: 1400, ..HOP }))];
        }),
        ("the kernel does not", |_, frame| frame.unwrappable = true),
        ("bytes behind the packet", |_, frame| frame.bytes.extend([0; 6])),
    ];
    for v6 in [false, true] {
        for (name, change) in cases {
            let (mut lab, mut frame) = (wrapping(), frame(&hello(v6)));
            lab.world.set_clock(1 << 40);
            change(&mut lab, &mut frame);
            let length = frame.bytes.len();
            assert_eq!(end(run(&lab, &mut frame)), BY_DEVICE, "{name}");
            assert_eq!(frame.encapsulated, Some((NODE_B, identity(CLIENT))), "{name}");
            assert_eq!(frame.bytes[if v6 { 21 } else { 22 }], 63, "{name}");
            assert_eq!(frame.bytes.len(), length, "{name}");
        }
        let lab = wrapping();
        let whole = Build::udp(addr(v6, CLIENT), 5000, behind(v6, NODE_B), 80).from_mac(mac(CLIENT));
        let first = Build { fragment: Some((0, 16, true)), payload: vec![7; 100], ..whole };
        assert_eq!(end(run(&lab, &mut frame(&first))), BY_DEVICE, "a fragment");
    }
}

#[test]
fn a_packet_whose_headers_could_not_be_written_goes_nowhere() {
    for v6 in [false, true] {
        let lab = wrapping();
        let mut frame = Frame { failing_write: 1, ..frame(&hello(v6)) };
        assert_eq!(end(run(&lab, &mut frame)), Err(Reason::WRAP));
        assert_eq!(lab.world.counted(Reason::WRAP, Egress as u8), 1);
    }
}

#[test]
fn what_an_endpoint_sent_is_counted_and_told_without_what_is_around_it() {
    for v6 in [false, true] {
        let lab = wrapping();
        let packet = hello(v6);
        let length = u32::try_from(packet.frame().len()).unwrap();
        assert_eq!(end(run(&lab, &mut frame(&packet))), WRAPPED);
        let trace = lab.events().into_iter().find(|event| event.kind == KIND_TRACE).unwrap();
        assert_eq!((trace.point, trace.ifindex, trace.len), (POINT_TO_OVERLAY, OVERLAY, length));
        let counted = lab.world.metrics()[&metrics::index(Reason::FORWARDED.0, Egress as u8)];
        assert_eq!((counted.packets, counted.bytes), (1, u64::from(length)));
        let flow = lab.flow();
        assert_eq!((flow.fwd_packets, flow.fwd_bytes), (1, u64::from(length)));
    }
}

#[test]
fn an_identity_of_this_node_only_is_not_shown() {
    let mut lab = wrapping();
    for local in [1 << 24 | 7, 2 << 24 | 7] {
        lab.world.endpoints.get_mut(&u32::from(CLIENT)).unwrap().identity = local;
        let mut frame = frame(&hello(false));
        assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
        assert_eq!(frame.bytes[46..50], [0; 4]);
    }
}

#[test]
fn the_address_inside_does_not_decide_where_the_packet_goes() {
    let lab = wrapping();
    let mut frame = frame(&hello(false));
    assert_eq!(end(run(&lab, &mut frame)), WRAPPED);
    assert_eq!(
        Ipv4Addr::from(<[u8; 4]>::try_from(&frame.bytes[30..34]).unwrap()),
        Ipv4Addr::from(NODE_B.to_ne_bytes())
    );
    assert_eq!(frame.asked_len.get() as usize, frame.bytes.len() - 14);
}
