//! What is reported, and how often.

use villus_abi::{
    Config,
    Direction::Ingress,
    config::{FLAG_DROP_EVENTS, FLAG_TRACE, FLAG_TRACE_ALL, FLAG_VERDICT_EVENTS},
    event::*,
    time,
};
use villus_path::memory::Build;

use crate::lab::*;

fn there(flags: u8) -> Build {
    Build::tcp(addr(false, CLIENT), 4000, addr(false, SERVER), 80, flags)
}

fn back(flags: u8) -> Build {
    Build::tcp(addr(false, SERVER), 80, addr(false, CLIENT), 4000, flags)
}

#[test]
fn a_flow_is_reported_with_its_first_packet_its_flags_and_now_and_then() {
    let lab = Lab::default();
    // (packet, seconds before it, kinds of events)
    for (name, client, flags, pause, kinds) in [
        ("SYN", true, SYN, 0, "vvt"),
        ("SYN again", true, SYN, 0, ""),
        ("SYN ACK", false, SYN | ACK, 0, "t"),
        ("ACK", true, ACK, 0, ""),
        ("data", false, ACK, 0, ""),
        ("soon", true, ACK, 4, ""),
        ("late", true, ACK, 2, "t"),
        ("late, the other way", false, ACK, 0, "t"),
        ("FIN", true, FIN | ACK, 0, "t"),
        ("FIN again", true, FIN | ACK, 0, ""),
        ("RST", false, RST, 0, "t"),
    ] {
        lab.world.pass(pause);
        let outcome = if client { lab.from(CLIENT, &there(flags)) } else { lab.from(SERVER, &back(flags)) };
        assert!(end(outcome).is_ok());
        assert_eq!(lab.kinds(), kinds, "{name}");
    }
}

#[test]
fn without_aggregation_every_packet_is_traced_at_both_ends() {
    let config = Config::default();
    let lab = Lab::with(Config { flags: config.flags | FLAG_TRACE_ALL, ..config });
    assert!(end(lab.from(CLIENT, &there(SYN))).is_ok());
    let points: Vec<_> = lab.events().iter().map(|event| (event.kind, event.point, event.state)).collect();
    assert_eq!(points[0], (KIND_TRACE, POINT_FROM_ENDPOINT, STATE_UNKNOWN));
    assert_eq!(points.last(), Some(&(KIND_TRACE, POINT_TO_ENDPOINT, STATE_NEW)));
    for _ in 0..3 {
        lab.from(CLIENT, &there(ACK));
        assert_eq!(lab.kinds(), "tt");
    }
}

#[test]
fn what_nobody_wants_is_not_reported() {
    for (unwanted, allowed, denied) in [
        (0, "vvt", "vvd"),
        (FLAG_TRACE, "vv", "vvd"),
        (FLAG_VERDICT_EVENTS, "t", "d"),
        (FLAG_DROP_EVENTS, "vvt", "vv"),
        (FLAG_TRACE | FLAG_VERDICT_EVENTS | FLAG_DROP_EVENTS, "", ""),
    ] {
        let config = Config::default();
        let mut lab = Lab::with(Config { flags: config.flags & !unwanted, ..config });
        lab.from(CLIENT, &there(SYN));
        assert_eq!(lab.kinds(), allowed);
        lab.world.forget();
        lab.only(SERVER, Ingress, &[]);
        lab.from(CLIENT, &there(SYN));
        assert_eq!(lab.kinds(), denied);
    }
}

#[test]
fn each_way_has_its_point() {
    for (dst, point, endpoint, other, interface) in [
        (addr(false, SERVER), POINT_TO_ENDPOINT, SERVER, CLIENT, ifindex(SERVER)),
        (addr(false, FAR), POINT_TO_STACK, CLIENT, FAR, 0),
        (addr(false, HOST), POINT_TO_HOST, CLIENT, 0, 0),
        (outside(false), POINT_TO_STACK, CLIENT, 0, 0),
    ] {
        let lab = Lab::default();
        lab.from(CLIENT, &Build::tcp(addr(false, CLIENT), 1, dst, 2, SYN));
        let event = lab.events().pop().unwrap();
        assert_eq!((event.kind, event.point, event.endpoint), (KIND_TRACE, point, endpoint), "{dst}");
        assert_eq!((event.peer, event.ifindex), (other, interface), "{dst}");
        assert_eq!((event.hook, event.state, event.reason), (HOOK_FROM_ENDPOINT, STATE_NEW, 0));
    }
}

#[test]
fn both_endpoints_of_a_flow_through_the_stack_report_its_first_packet() {
    let lab = Lab::default();
    let packet = Build::tcp(addr(false, CLIENT), 1, addr(false, FAR), 2, SYN);
    lab.from(CLIENT, &packet);
    assert_eq!(lab.kinds(), "vt");
    lab.to(FAR, ifindex(CLIENT), &packet);
    let events = lab.events();
    assert_eq!(events.iter().map(|event| event.kind).collect::<Vec<_>>(), [KIND_VERDICT, KIND_TRACE]);
    assert_eq!((events[0].endpoint, events[0].direction, events[0].matched), (FAR, 0, matched::ALL));
    lab.from(CLIENT, &packet);
    lab.to(FAR, ifindex(CLIENT), &packet);
    assert_eq!(lab.kinds(), "");
}

#[test]
fn an_event_says_what_the_packet_was() {
    for v6 in [false, true] {
        let lab = Lab::default();
        let packet = Build::tcp(addr(v6, CLIENT), 4000, addr(v6, SERVER), 80, SYN);
        lab.from(CLIENT, &packet);
        let event = lab.events().pop().unwrap();
        let flags = FLAG_ADDRS | FLAG_PORTS | if v6 { FLAG_V6 } else { 0 };
        assert_eq!((event.flags, event.len), (flags, packet.frame().len() as u32));
        assert_eq!((u16::from_be(event.sport), u16::from_be(event.dport)), (4000, 80));
        assert_eq!((event.proto, event.tcp_flags), (6, SYN));
        assert_eq!(u16::from_be(event.ethertype), if v6 { 0x86dd } else { 0x0800 });
        assert_eq!(time::from_ns(event.time), time::from_ns(lab.world.clock()));
        let shown = if v6 {
            villus_path::memory::address6(&event.src)
        } else {
            villus_path::memory::address4(event.src[0])
        };
        assert_eq!(shown, addr(v6, CLIENT));
    }
}

#[test]
fn every_packet_is_counted_once_in_each_direction_it_is_judged_for() {
    let mut lab = Lab::default();
    lab.only(TAP, Ingress, &[]);
    let send = |lab: &Lab, id| lab.from(CLIENT, &Build::udp(addr(false, CLIENT), 1, addr(false, id), 2));
    // (to whom, reason and direction counted)
    for (id, counted) in
        [(SERVER, vec![(0, 0), (0, 1)]), (FAR, vec![(0, 1)]), (HOST, vec![(0, 1)]), (TAP, vec![(133, 0)])]
    {
        lab.world.forget();
        let _ = send(&lab, id);
        let seen: Vec<_> = lab
            .world
            .metrics()
            .iter()
            .map(|(index, metric)| {
                assert_eq!(metric.packets, 1);
                ((index >> 1) as u8, (index & 1) as u8)
            })
            .collect();
        assert_eq!(seen, counted, "{id}");
    }
}
