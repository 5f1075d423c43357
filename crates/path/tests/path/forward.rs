//! The way a packet takes: peer, device, neighbour, stack.

use villus_abi::{
    Config, Reason,
    config::{FLAG_DIRECT_V4, FLAG_DIRECT_V6},
};
use villus_path::{
    Action, Neighbour, Work, from_endpoint, from_network,
    memory::{Build, Frame, NextHop},
};

use crate::lab::*;

fn direct() -> Lab {
    let config = Config::default();
    Lab::with(Config { flags: config.flags | FLAG_DIRECT_V4 | FLAG_DIRECT_V6, ..config })
}

fn hop(mtu: u32) -> Option<NextHop> {
    let neighbour = Neighbour { ifindex: UPLINK, mac: [2, 9, 9, 9, 9, 9], own_mac: [2, 8, 8, 8, 8, 8] };
    Some(NextHop { neighbour, mtu })
}

#[test]
fn endpoints_are_handed_over_as_their_device_allows() {
    for v6 in [false, true] {
        for (id, wanted) in [(SERVER, peer(SERVER)), (TAP, device(TAP)), (FAR, PASS)] {
            let lab = Lab::default();
            assert_eq!(end(lab.from(CLIENT, &Build::udp(addr(v6, CLIENT), 1, addr(v6, id), 2))), wanted);
        }
    }
}

#[test]
fn what_cannot_be_handed_over_as_it_is_goes_to_the_stack() {
    for v6 in [false, true] {
        let header = if v6 { 48 } else { 28 };
        let udp = |ttl, payload| {
            Build::udp(addr(v6, CLIENT), 1, addr(v6, SERVER), 2)
                .ttl(ttl)
                .payload(payload)
                .from_mac(mac(CLIENT))
        };
        for (ttl, payload, wanted) in [
            (2, 10, peer(SERVER)),
            (1, 10, PASS),
            (0, 10, PASS),
            (64, 1500 - header, peer(SERVER)),
            (64, 1501 - header, PASS),
        ] {
            let lab = Lab::default();
            let (outcome, frame) = lab.run_from(CLIENT, udp(ttl, payload).frame());
            assert_eq!(end(outcome), wanted, "{v6} {ttl} {payload}");
            if wanted == PASS {
                assert_eq!(frame.bytes, udp(ttl, payload).frame(), "as it was");
                // The answer does not depend on the stack.
                assert_eq!(
                    end(lab.from(SERVER, &Build::udp(addr(v6, SERVER), 2, addr(v6, CLIENT), 1))),
                    peer(CLIENT)
                );
            }
        }
        let mut lab = Lab::default();
        lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().mtu = 0;
        assert_eq!(
            end(lab.run_from(CLIENT, udp(64, 9000).frame()).0),
            peer(SERVER),
            "an MTU that is not known"
        );
    }
}

#[test]
fn a_train_is_measured_by_its_segments() {
    for v6 in [false, true] {
        let headers = if v6 { 60 } else { 40 };
        for options in [0, 12] {
            for (segment, fits) in [(1500 - headers - options, true), (1501 - headers - options, false)] {
                let lab = direct();
                let transport = villus_path::memory::Transport::Tcp {
                    sport: 1,
                    dport: 2,
                    flags: ACK,
                    options: vec![1; options as usize],
                };
                let packet = |dst| {
                    let packet = Build::new(addr(v6, CLIENT), dst, transport.clone()).payload(6000);
                    let frame = Frame::new(packet.from_mac(mac(CLIENT)).frame(), ifindex(CLIENT));
                    Frame { gso_size: segment, next_hop: hop(1500), ..frame }
                };
                let outcome = from_endpoint(&lab.world, &mut packet(addr(v6, SERVER)), &mut Work::default());
                assert_eq!(end(outcome), if fits { peer(SERVER) } else { PASS }, "{v6} {options}");
                // An answer to somebody outside, who came past the stack.
                let syn =
                    villus_path::memory::Transport::Tcp { sport: 2, dport: 1, flags: 2, options: vec![] };
                assert_eq!(end(lab.net(&Build::new(outside(v6), addr(v6, CLIENT), syn))), peer(CLIENT));
                let outcome = from_endpoint(&lab.world, &mut packet(outside(v6)), &mut Work::default());
                let neighbour = Ok((Action::Neighbour, UPLINK));
                assert_eq!(end(outcome), if fits { neighbour } else { PASS }, "{v6} {options} to outside");
            }
        }
    }
}

#[test]
fn neighbours_are_used_only_for_what_came_past_the_stack_where_no_nat_is_wanted() {
    for v6 in [false, true] {
        let answered = || {
            let lab = direct();
            assert_eq!(end(lab.net(&Build::udp(outside(v6), 2, addr(v6, CLIENT), 1))), peer(CLIENT));
            lab
        };
        let packet = Build::udp(addr(v6, CLIENT), 1, outside(v6), 2).from_mac(mac(CLIENT));
        let sent = |lab: &Lab, next_hop, ttl| {
            let mut frame =
                Frame { next_hop, ..Frame::new(packet.clone().ttl(ttl).frame(), ifindex(CLIENT)) };
            (end(from_endpoint(&lab.world, &mut frame, &mut Work::default())), frame)
        };
        assert_eq!(sent(&Lab::default(), hop(1500), 64).0, PASS, "masquerading");
        assert_eq!(sent(&direct(), hop(1500), 64).0, PASS, "the stack may translate what an endpoint opens");
        assert_eq!(sent(&answered(), None, 64).0, PASS, "no neighbour");
        assert_eq!(sent(&answered(), hop(20), 64).0, PASS, "too big");
        assert_eq!(sent(&answered(), hop(1500), 1).0, PASS, "at its end");
        let lab = answered();
        let (outcome, frame) = sent(&lab, hop(1500), 64);
        assert_eq!(outcome, Ok((Action::Neighbour, UPLINK)));
        assert_eq!(
            (&frame.bytes[..6], &frame.bytes[6..12]),
            (&[2, 9, 9, 9, 9, 9][..], &[2, 8, 8, 8, 8, 8][..])
        );
        // A flow of the stack stays with the stack.
        let lab = direct();
        assert_eq!(sent(&lab, None, 64).0, PASS);
        assert_eq!(sent(&lab, hop(1500), 64).0, PASS);
    }
}

#[test]
fn the_shortcut_from_the_network_leaves_what_is_the_stacks() {
    for v6 in [false, true] {
        let udp = |dst| Build::udp(outside(v6), 1, dst, 2);
        let client = addr(v6, CLIENT);
        for (name, packet, wanted) in [
            ("an endpoint", udp(client), peer(CLIENT)),
            ("a tap", udp(addr(v6, TAP)), device(TAP)),
            ("whom only the stack reaches", udp(addr(v6, FAR)), PASS),
            ("this node", udp(addr(v6, HOST)), PASS),
            ("somebody else", udp(if v6 { ip("fd00::9") } else { ip("10.9.9.9") }), PASS),
            ("at its end", udp(client).ttl(1), PASS),
            ("too big", udp(client).payload(1600), PASS),
        ] {
            assert_eq!(end(direct().net(&packet)), wanted, "{v6} {name}");
            assert_eq!(end(Lab::default().net(&packet)), PASS, "{v6} {name}: where NAT is wanted");
        }
        // What the stack has delivered once, or what an endpoint opened through it, stays with it.
        let lab = direct();
        assert_eq!(end(lab.to(CLIENT, UPLINK, &udp(client))), PASS);
        assert_eq!(end(lab.net(&udp(client))), PASS);
        let malformed = udp(client).frame()[..40].to_vec();
        let mut frame = Frame::new(malformed, UPLINK);
        assert_eq!(end(from_network(&lab.world, &mut frame, &mut Work::default())), Err(Reason::INVALID));
    }
}

#[test]
fn a_packet_that_cannot_be_written_drops_and_counts_as_that() {
    for v6 in [false, true] {
        for failing_write in 1..=if v6 { 2 } else { 1 } {
            let lab = Lab::default();
            let packet = Build::udp(addr(v6, CLIENT), 1, addr(v6, SERVER), 2).from_mac(mac(CLIENT));
            let mut frame = Frame { failing_write, ..Frame::new(packet.frame(), ifindex(CLIENT)) };
            let outcome = from_endpoint(&lab.world, &mut frame, &mut Work::default());
            assert_eq!(end(outcome), Err(Reason::WRITE));
            let metrics = lab.world.metrics();
            assert_eq!(metrics.values().map(|metric| metric.packets).sum::<u64>(), 1, "{metrics:?}");
        }
    }
}
