//! The way a packet takes: peer, device, neighbour, stack.

use std::net::IpAddr;

use villus_abi::{
    Config,
    Direction::Ingress,
    IpcacheValue, Reason,
    config::{FLAG_DIRECT_V4, FLAG_DIRECT_V6, FLAG_IPSEC},
    flow::FLOW_VIA_STACK,
    ipcache::FLAG_ROUTED,
};
use villus_path::{
    Action, MARK_ROUTED, Neighbour, Work, from_endpoint, from_network,
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
            assert_eq!(end(lab.net(&Build::tcp(outside(v6), 2, addr(v6, CLIENT), 1, SYN))), peer(CLIENT));
            lab
        };
        let packet = Build::tcp(addr(v6, CLIENT), 1, outside(v6), 2, SYN | ACK).from_mac(mac(CLIENT));
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

/// An endpoint of another node, to which the network takes packets as they are.
fn routed(v6: bool, lab: &mut Lab) -> IpAddr {
    let far = behind(v6, NODE_B);
    let value = IpcacheValue { identity: 2011, flags: FLAG_ROUTED, ..IpcacheValue::default() };
    lab.world.ipcache.insert_prefix(far, if v6 { 128 } else { 32 }, value);
    far
}

fn sent(lab: &Lab, next_hop: Option<NextHop>, packet: &Build) -> Result<(Action, u32), Reason> {
    let bytes = packet.clone().from_mac(mac(CLIENT)).frame();
    let mut frame = Frame { next_hop, ..Frame::new(bytes, ifindex(CLIENT)) };
    end(from_endpoint(&lab.world, &mut frame, &mut Work::default()))
}

const TO_NEIGHBOUR: Result<(Action, u32), Reason> = Ok((Action::Neighbour, UPLINK));

#[test]
fn between_endpoints_of_two_nodes_packets_go_past_the_stack_whoever_opens_and_though_others_are_masqueraded()
{
    for v6 in [false, true] {
        let client = addr(v6, CLIENT);
        let mut lab = Lab::default();
        let far = routed(v6, &mut lab);
        for (name, there, back) in [
            ("TCP", Build::tcp(client, 1, far, 2, SYN), Build::tcp(far, 2, client, 1, SYN | ACK)),
            ("UDP", Build::udp(client, 1, far, 2), Build::udp(far, 2, client, 1)),
            ("echo", Build::ping(client, far, 7), Build::pong(far, client, 7)),
        ] {
            assert_eq!(sent(&lab, hop(1500), &there), TO_NEIGHBOUR, "{v6} {name}");
            assert_eq!(end(lab.net(&back)), peer(CLIENT), "{v6} {name}");
        }
        assert!(lab.world.flows().values().all(|flow| flow.flags & FLOW_VIA_STACK == 0));
        // The other side opens.
        assert_eq!(end(lab.net(&Build::tcp(far, 5, client, 6, SYN))), peer(CLIENT));
        assert_eq!(sent(&lab, hop(1500), &Build::tcp(client, 6, far, 5, SYN | ACK)), TO_NEIGHBOUR);
        assert_eq!(end(lab.net(&Build::ping(far, client, 8))), peer(CLIENT));
        assert_eq!(sent(&lab, hop(1500), &Build::pong(client, far, 8)), TO_NEIGHBOUR);
        // Others take the stack.
        assert_eq!(sent(&lab, hop(1500), &Build::tcp(client, 1, outside(v6), 2, SYN)), PASS);
        assert_eq!(end(lab.net(&Build::tcp(outside(v6), 5, client, 6, SYN))), PASS);
    }
}

#[test]
fn while_ipsec_has_policies_all_between_endpoints_and_networks_is_the_stacks() {
    for v6 in [false, true] {
        let (mut lab, client) = (direct(), addr(v6, CLIENT));
        let far = routed(v6, &mut lab);
        let there = Build::udp(client, 1, far, 2);
        let (ask, answer) =
            (Build::tcp(outside(v6), 5, client, 6, SYN), Build::tcp(client, 6, outside(v6), 5, SYN | ACK));
        assert_eq!(sent(&lab, hop(1500), &there), TO_NEIGHBOUR);
        assert_eq!(end(lab.net(&ask)), peer(CLIENT));
        assert_eq!(sent(&lab, hop(1500), &answer), TO_NEIGHBOUR);
        lab.world.config.as_mut().unwrap().flags |= FLAG_IPSEC;
        // Known flows too.
        assert_eq!(sent(&lab, hop(1500), &there), PASS);
        assert_eq!(sent(&lab, hop(1500), &answer), PASS);
        assert_eq!(sent(&lab, hop(1500), &Build::udp(client, 3, far, 4)), PASS);
        assert_eq!(end(lab.net(&ask)), PASS);
        assert_eq!(end(lab.net(&Build::udp(far, 2, client, 1))), PASS);
        // On this node nothing is encrypted.
        assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 1, addr(v6, SERVER), 2))), peer(SERVER));
    }
}

#[test]
fn where_the_neighbour_is_not_known_yet_the_stack_takes_the_packet_but_not_the_flow() {
    for v6 in [false, true] {
        let mut lab = Lab::default();
        let far = routed(v6, &mut lab);
        let there = |flags| Build::tcp(addr(v6, CLIENT), 1, far, 2, flags);
        assert_eq!(sent(&lab, None, &there(SYN)), PASS);
        assert_eq!(end(lab.net(&Build::tcp(far, 2, addr(v6, CLIENT), 1, SYN | ACK))), peer(CLIENT));
        assert_eq!(sent(&lab, hop(1500), &there(ACK)), TO_NEIGHBOUR);
        assert_eq!(sent(&lab, hop(1500), &there(ACK).ttl(1)), PASS, "at its end");
        assert_eq!(lab.flow().flags & FLOW_VIA_STACK, 0);
    }
}

#[test]
fn what_may_be_for_the_hosts_nat_to_turn_back_is_the_stacks() {
    for v6 in [false, true] {
        for config in [direct(), Lab::default()] {
            let mut lab = config;
            let (client, far) = (addr(v6, CLIENT), routed(v6, &mut lab));
            lab.only(CLIENT, Ingress, &[]);
            // A service that the host turns to an endpoint of another node: its answers have that one's address.
            let service = ip(if v6 { "fd96::1" } else { "10.96.0.1" });
            assert_eq!(sent(&lab, hop(1500), &Build::udp(client, 1, service, 53)), PASS);
            assert_eq!(end(lab.net(&Build::udp(far, 53, client, 1))), PASS);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &Build::udp(service, 53, client, 1))), PASS);
            assert_eq!(sent(&lab, hop(1500), &Build::tcp(client, 1, service, 80, SYN)), PASS);
            assert_eq!(end(lab.net(&Build::tcp(far, 80, client, 1, SYN | ACK))), PASS);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &Build::tcp(service, 80, client, 1, SYN | ACK))), PASS);
            // A published port of the node, which somebody of another node uses, its flow forgotten.
            assert_eq!(sent(&lab, hop(1500), &Build::tcp(client, 80, far, 9, SYN | ACK)), PASS);
            assert!(lab.world.flows().values().all(|flow| flow.flags & FLOW_VIA_STACK != 0));
        }
    }
}

#[test]
fn what_goes_past_the_stack_is_nobodys_on_the_uplink() {
    for v6 in [false, true] {
        let mut lab = Lab::default();
        lab.select_node(0);
        lab.policy(HOST, &[]);
        let packet = Build::udp(addr(v6, HOST), 1, outside(v6), 2);
        assert_eq!(end(lab.out(ifindex(CLIENT), MARK_ROUTED, &packet)), PASS);
        assert_eq!(lab.flows(), 0, "no flow is written down for it");
        assert_eq!(end(lab.out(0, MARK_ROUTED, &packet)), Err(Reason::POLICY), "the node's own is judged");
    }
}

#[test]
fn the_shortcut_from_the_network_leaves_what_is_the_stacks() {
    for v6 in [false, true] {
        let syn = |dst| Build::tcp(outside(v6), 1, dst, 2, SYN);
        let client = addr(v6, CLIENT);
        for (name, packet, wanted) in [
            ("an endpoint", syn(client), peer(CLIENT)),
            ("a tap", syn(addr(v6, TAP)), device(TAP)),
            ("whom only the stack reaches", syn(addr(v6, FAR)), PASS),
            ("this node", syn(addr(v6, HOST)), PASS),
            ("somebody else", syn(if v6 { ip("fd00::9") } else { ip("10.9.9.9") }), PASS),
            ("at its end", syn(client).ttl(1), PASS),
            ("too big", syn(client).payload(1600), PASS),
            ("what opens nothing", Build::udp(outside(v6), 1, client, 2), PASS),
            ("a segment of nothing known", Build::tcp(outside(v6), 1, client, 2, ACK), PASS),
        ] {
            assert_eq!(end(direct().net(&packet)), wanted, "{v6} {name}");
            assert_eq!(end(Lab::default().net(&packet)), PASS, "{v6} {name}: where NAT is wanted");
        }
        // What the stack has delivered once, or what an endpoint opened through it, stays with it.
        let lab = direct();
        assert_eq!(end(lab.to(CLIENT, UPLINK, &syn(client))), PASS);
        assert_eq!(end(lab.net(&syn(client))), PASS);
        let malformed = syn(client).frame()[..40].to_vec();
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
