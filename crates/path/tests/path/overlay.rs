//! The tunnel between nodes: what goes into it, what it may bring, and how answers find back.

use std::net::{IpAddr, Ipv4Addr};

use villus_abi::{
    Direction::{Egress, Ingress},
    IpcacheValue, Reason,
    config::FLAG_HOST_POLICY,
    endpoint::FLAG_ACTIVE,
    event::{HOOK_FROM_OVERLAY, KIND_DROP, KIND_TRACE, POINT_TO_OVERLAY},
    flow::FLOW_VIA_STACK,
};
use villus_path::{
    Action, MARK_OVERLAY, Tunnel, Work,
    memory::{Build, Frame},
    to_overlay,
};

use crate::lab::*;

const INTO_TUNNEL: Result<(Action, u32), Reason> = Ok((Action::Tunnel, OVERLAY));

fn tunnelled() -> Lab {
    let mut lab = Lab::default();
    lab.tunnel();
    lab
}

fn hello(v6: bool, from: IpAddr, to: IpAddr) -> Build {
    assert_eq!(from.is_ipv6(), v6);
    Build::tcp(from, 5000, to, 80, SYN)
}

#[test]
fn an_endpoint_reaches_one_of_another_node_through_the_tunnel() {
    for v6 in [false, true] {
        let lab = tunnelled();
        let packet = hello(v6, addr(v6, CLIENT), behind(v6, NODE_B));
        let (outcome, frame) = lab.run_from(CLIENT, packet.clone().from_mac(mac(CLIENT)).frame());
        assert_eq!(end(outcome), INTO_TUNNEL);
        assert_eq!(frame.encapsulated, Some((NODE_B, identity(CLIENT))));
        assert_eq!(frame.bytes[if v6 { 21 } else { 22 }], 63, "a router takes one from the TTL");
        assert_eq!(lab.judged(CLIENT, Egress), 1);
        let flow = lab.flow();
        assert_eq!((flow.src_endpoint, flow.dst_identity, flow.flags & FLOW_VIA_STACK), (CLIENT, 2011, 0));
        let trace = lab.events().into_iter().find(|event| event.kind == KIND_TRACE).unwrap();
        assert_eq!((trace.point, trace.ifindex, trace.dst_identity), (POINT_TO_OVERLAY, OVERLAY, 2011));
        // Its answer is judged by nobody.
        let answer = Build::tcp(behind(v6, NODE_B), 80, addr(v6, CLIENT), 5000, SYN | ACK);
        assert_eq!(end(lab.brought(NODE_B, 2011, &answer)), peer(CLIENT));
        assert_eq!((lab.judged(CLIENT, Ingress), lab.flow().rev_packets), (0, 1));
    }
}

#[test]
fn egress_policy_is_asked_before_the_tunnel() {
    let mut lab = tunnelled();
    lab.only(CLIENT, Egress, &[(2012, 80, 6)]);
    for v6 in [false, true] {
        let to = |node| hello(v6, addr(v6, CLIENT), behind(v6, node));
        assert_eq!(end(lab.from(CLIENT, &to(NODE_B))), Err(Reason::POLICY));
        assert_eq!(end(lab.from(CLIENT, &to(NODE_C))), INTO_TUNNEL);
    }
    // Of a range that belongs to a node an address is pending until it is known.
    let packet = hello(false, addr(false, CLIENT), ip("10.0.12.9"));
    assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::IDENTITY_PENDING));
}

#[test]
fn a_packet_of_the_tunnel_is_judged_once_by_the_identity_that_it_shows() {
    for v6 in [false, true] {
        let mut lab = tunnelled();
        lab.only(SERVER, Ingress, &[(2011, 80, 6)]);
        let packet = hello(v6, behind(v6, NODE_B), addr(v6, SERVER));
        assert_eq!(end(lab.brought(NODE_B, 2099, &packet)), Err(Reason::POLICY));
        assert_eq!(lab.flows(), 0);
        assert_eq!(end(lab.brought(NODE_B, 2011, &packet)), peer(SERVER));
        assert_eq!(lab.judged(SERVER, Ingress), 1);
        assert_eq!((lab.flow().tunnel, lab.flow().src_identity), (NODE_B, 2011));
        // Without a number the ipcache is asked.
        let again = Build::tcp(behind(v6, NODE_B), 5000, addr(v6, SERVER), 80, ACK);
        assert_eq!(end(lab.brought(NODE_B, 0, &again)), peer(SERVER));
        assert_eq!((lab.judged(SERVER, Ingress), lab.flow().fwd_packets), (2, 2));
    }
}

#[test]
fn an_answer_returns_by_the_tunnel_before_the_ipcache_knows_the_asker() {
    for v6 in [false, true] {
        let lab = tunnelled();
        let stranger = ip(if v6 { "fd77::1" } else { "10.77.0.1" });
        assert_eq!(end(lab.brought(NODE_C, 2055, &hello(v6, stranger, addr(v6, SERVER)))), peer(SERVER));
        let answer = Build::tcp(addr(v6, SERVER), 80, stranger, 5000, SYN | ACK);
        let (outcome, frame) = lab.run_from(SERVER, answer.from_mac(mac(SERVER)).frame());
        assert_eq!(end(outcome), INTO_TUNNEL);
        assert_eq!(frame.encapsulated, Some((NODE_C, identity(SERVER))));
        // What the endpoint opens towards the same stranger is the stack's.
        let new = hello(v6, addr(v6, SERVER), stranger);
        assert_eq!(end(lab.from(SERVER, &new)), PASS);
    }
}

#[test]
fn only_nodes_send_by_the_tunnel_and_only_what_lives_there() {
    for v6 in [false, true] {
        let mut lab = tunnelled();
        let known = ip(if v6 { "2001:db8:5::5" } else { "203.0.113.5" });
        let value = IpcacheValue { identity: 4711, ..IpcacheValue::default() };
        lab.world.ipcache.insert_prefix(known, if v6 { 128 } else { 32 }, value);
        let prefix = ip(if v6 { "2001:db8:6::" } else { "203.0.114.0" });
        let value = IpcacheValue { identity: 1 << 24 | 5, ..IpcacheValue::default() };
        lab.world.ipcache.insert_prefix(prefix, if v6 { 64 } else { 24 }, value);
        let of_prefix = ip(if v6 { "2001:db8:6::7" } else { "203.0.114.7" });
        let nobody = u32::from_ne_bytes([192, 0, 2, 99]);
        let other_address = u32::from_ne_bytes([192, 0, 102, 12]);
        let stranger = ip(if v6 { "fd77::1" } else { "10.77.0.1" });
        for (from, src, wanted) in [
            (NODE_B, behind(v6, NODE_B), peer(SERVER)),
            (other_address, behind(v6, NODE_B), peer(SERVER)),
            (NODE_C, behind(v6, NODE_B), Err(Reason::UNKNOWN_SENDER)),
            (nobody, behind(v6, NODE_B), Err(Reason::UNKNOWN_SENDER)),
            (nobody, stranger, Err(Reason::UNKNOWN_SENDER)),
            (NODE_B, stranger, peer(SERVER)),
            (NODE_B, of_prefix, peer(SERVER)),
            (NODE_B, known, Err(Reason::UNKNOWN_SENDER)),
            (NODE_B, addr(v6, CLIENT), Err(Reason::SOURCE_IP)),
            (NODE_B, addr(v6, HOST), Err(Reason::SOURCE_IP)),
        ] {
            let packet = Build::udp(src, 1, addr(v6, SERVER), 2);
            assert_eq!(end(lab.brought(from, 2011, &packet)), wanted, "{src} from {from:x}");
        }
        let dropped = lab.events().into_iter().filter(|event| event.kind == KIND_DROP);
        assert!(dropped.into_iter().all(|event| event.hook == HOOK_FROM_OVERLAY));
    }
    // A node's own address, by which it is known too.
    let lab = tunnelled();
    let packet = Build::udp(ip("192.0.102.12"), 1, addr(false, SERVER), 2);
    assert_eq!(end(lab.brought(NODE_B, 6, &packet)), peer(SERVER));
    assert_eq!(end(lab.brought(NODE_C, 6, &packet)), Err(Reason::UNKNOWN_SENDER));
}

#[test]
fn a_node_that_is_told_from_others_is_judged_by_its_own_identity() {
    const NODE: u32 = 2 << 24 | 7;
    let its_own = ip("192.0.102.12");
    let mut lab = tunnelled();
    lab.world.ipcache.insert_prefix(its_own, 32, IpcacheValue { identity: NODE, ..IpcacheValue::default() });
    lab.only(SERVER, Ingress, &[(NODE, 80, 6)]);
    // A packet before leaves nothing behind.
    assert_eq!(
        end(lab.brought(NODE_B, 2011, &hello(false, behind(false, NODE_B), addr(false, SERVER)))),
        Err(Reason::POLICY)
    );
    let packet = hello(false, its_own, addr(false, SERVER));
    assert_eq!(
        end(lab.brought(NODE_C, 6, &packet)),
        Err(Reason::UNKNOWN_SENDER),
        "it has no other's address"
    );
    assert_eq!(end(lab.brought(NODE_B, 6, &packet)), peer(SERVER));
    assert_eq!(lab.flow().src_identity, NODE);
    // Who shows another identity is not the node itself, nor is who has an address that nobody is known by.
    assert_eq!(
        end(lab.brought(NODE_B, 2011, &Build::tcp(its_own, 5001, addr(false, SERVER), 80, SYN))),
        Err(Reason::POLICY)
    );
    assert_eq!(
        end(lab.brought(NODE_B, 6, &hello(false, ip("10.77.0.1"), addr(false, SERVER)))),
        Err(Reason::POLICY)
    );
}

#[test]
fn what_the_tunnel_may_not_bring_ends_by_its_own_reason() {
    let lab = tunnelled();
    let packet = |dst| Build::udp(behind(false, NODE_B), 1, dst, 2);
    let to_server = packet(addr(false, SERVER));
    // No device of a tunnel, somebody who claims to be this node, an address that nobody here has.
    assert_eq!(end(lab.run_brought(None, &to_server).0), Err(Reason::TUNNEL_KEY));
    assert_eq!(end(lab.brought(NODE_B, 1, &to_server)), Err(Reason::IDENTITY));
    for nowhere in ["10.0.0.99", "224.0.0.1", "198.51.100.7"] {
        assert_eq!(end(lab.brought(NODE_B, 2011, &packet(ip(nowhere)))), Err(Reason::UNKNOWN_TARGET));
    }
    for kind in [133, 134, 135, 136, 137, 143] {
        let discovery = Build::icmp(behind(true, NODE_B), addr(true, SERVER), kind, 0).ttl(255);
        assert_eq!(end(lab.brought(NODE_B, 2011, &discovery)), Err(Reason::FORBIDDEN_ICMP6));
    }
    let tunnel = Some(Tunnel { from: NODE_B, identity: 2011 });
    let mut arp = to_server.clone().frame();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut frame = Frame { tunnel, ..Frame::new(arp, OVERLAY) };
    let outcome = villus_path::from_overlay(&lab.world, &mut frame, &mut Work::default());
    assert_eq!(end(outcome), Err(Reason::UNSUPPORTED_L3));

    let mut lab = tunnelled();
    lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().flags &= !FLAG_ACTIVE;
    assert_eq!(end(lab.brought(NODE_B, 2011, &to_server)), Err(Reason::STALE));
    // A node without a tunnel takes nothing from one.
    let mut lab = tunnelled();
    lab.world.config.as_mut().unwrap().overlay_ifindex = 0;
    assert_eq!(end(lab.brought(NODE_B, 2011, &to_server)), Err(Reason::NOT_READY));
    assert_eq!(end(lab.from(CLIENT, &Build::udp(addr(false, CLIENT), 1, behind(false, NODE_B), 2))), PASS);
}

#[test]
fn what_lives_behind_a_tunnel_does_not_come_by_the_uplink() {
    for v6 in [false, true] {
        let mut lab = tunnelled();
        let packet = Build::udp(behind(v6, NODE_B), 1, addr(v6, SERVER), 2);
        assert_eq!(end(lab.net(&packet)), Err(Reason::UNKNOWN_SENDER));
        let packet = Build::udp(outside(v6), 1, addr(v6, SERVER), 2);
        assert_eq!(end(lab.net(&packet)), PASS);
        lab.world.config.as_mut().unwrap().overlay_ifindex = 0;
        let packet = Build::udp(behind(v6, NODE_B), 1, addr(v6, SERVER), 2);
        assert_eq!(end(lab.net(&packet)), PASS, "without a tunnel the network routes endpoints' addresses");
    }
}

#[test]
fn what_the_tunnel_brings_is_asked_about_when_it_is_unwrapped() {
    let at = Ipv4Addr::from(NODE_A.to_ne_bytes());
    let ours = addr(false, CLIENT);
    let wrapped = Build::udp(ours, FLOW_PORT, at.into(), 8472).payload(100);
    let mut lab = tunnelled();
    assert_eq!(end(lab.net(&wrapped)), Err(Reason::SOURCE_IP));
    wraps(&mut lab.world);
    // Who sends it is the tunnel's hook to ask, which knows nodes only.
    assert_eq!(end(lab.net(&wrapped)), PASS);
    let inside = Build::udp(behind(false, NODE_B), 1, addr(false, SERVER), 2);
    assert_eq!(
        end(lab.brought(u32::from_ne_bytes([10, 0, 0, 101]), 2011, &inside)),
        Err(Reason::UNKNOWN_SENDER)
    );
    for other in [
        Build::udp(ours, FLOW_PORT, at.into(), 8473),
        Build::tcp(ours, FLOW_PORT, at.into(), 8472, SYN),
        Build::udp(ours, FLOW_PORT, addr(false, SERVER), 8472),
        wrapped.clone().part(0, 48, true),
        Build::udp(addr(true, CLIENT), FLOW_PORT, addr(true, SERVER), 8472),
    ] {
        assert_eq!(end(lab.net(&other)), Err(Reason::SOURCE_IP), "{other:?}");
    }
    // Where policy selects the node it has a say in what the tunnel is.
    lab.world.config.as_mut().unwrap().flags |= FLAG_HOST_POLICY;
    assert_eq!(end(lab.net(&wrapped)), Err(Reason::SOURCE_IP));
}

#[test]
fn too_large_and_expiring_packets_are_the_stacks_and_keep_their_identity() {
    for v6 in [false, true] {
        let lab = tunnelled();
        let to = behind(v6, NODE_B);
        let large = Build::udp(addr(v6, CLIENT), 1, to, 2).payload(1430);
        assert_eq!(end(lab.from(CLIENT, &large)), PASS);
        assert_eq!(lab.flow().flags & FLOW_VIA_STACK, 0, "its answers come by the tunnel as others do");
        assert_eq!(end(lab.from(CLIENT, &Build::udp(addr(v6, CLIENT), 1, to, 2).ttl(1))), PASS);
        // The stack sends it on in fragments.
        let part = Build { fragment: Some((0, 600, true)), ..large };
        let (outcome, frame) = lab.sent(ifindex(CLIENT), &part);
        assert_eq!((end(outcome), frame.encapsulated), (PASS, Some((NODE_B, identity(CLIENT)))));
        assert_eq!((lab.flows(), lab.judged(CLIENT, Egress)), (1, 2));
    }
    // Segments that fit are no large packet.
    let lab = tunnelled();
    let train = Build::tcp(addr(false, CLIENT), 1, behind(false, NODE_B), 2, ACK).payload(6000);
    let mut frame = Frame::new(train.from_mac(mac(CLIENT)).frame(), ifindex(CLIENT));
    frame.gso_size = 1400;
    let outcome = villus_path::from_endpoint(&lab.world, &mut frame, &mut Work::default());
    assert_eq!(end(outcome), INTO_TUNNEL);
}

#[test]
fn the_node_is_a_remote_node_to_others_and_what_it_forwards_is_the_world() {
    for v6 in [false, true] {
        let lab = tunnelled();
        for (ingress, src, wanted) in [
            (0, addr(v6, HOST), Ok(6)),
            (UPLINK, addr(v6, HOST), Ok(WORLD)),
            (UPLINK, outside(v6), Ok(WORLD)),
            (ifindex(CLIENT), addr(v6, CLIENT), Ok(identity(CLIENT))),
            (ifindex(SERVER), addr(v6, CLIENT), Err(Reason::SOURCE_IP)),
            (UPLINK, addr(v6, CLIENT), Err(Reason::SOURCE_IP)),
        ] {
            let (outcome, frame) = lab.sent(ingress, &Build::udp(src, 1, behind(v6, NODE_B), 2));
            match wanted {
                Ok(identity) => {
                    assert_eq!((end(outcome), frame.encapsulated), (PASS, Some((NODE_B, identity))), "{src}")
                }
                Err(reason) => assert_eq!((end(outcome), frame.encapsulated), (Err(reason), None), "{src}"),
            }
        }
        let (outcome, _) = lab.sent(0, &Build::udp(addr(v6, HOST), 1, outside(v6), 2));
        assert_eq!(end(outcome), Err(Reason::NO_TUNNEL));
        // An endpoint's packet that was told where to go is not asked again.
        let packet = Build::udp(addr(v6, CLIENT), 1, outside(v6), 2);
        let mut frame = Frame { mark: MARK_OVERLAY, ..Frame::new(packet.frame(), OVERLAY) };
        assert_eq!(end(to_overlay(&lab.world, &mut frame, &mut Work::default())), PASS);
        assert_eq!(frame.encapsulated, None);
    }
    let lab = tunnelled();
    let report = Build::icmp(addr(true, HOST), ip("ff02::16"), 143, 0);
    assert_eq!(end(lab.sent(0, &report).0), Err(Reason::MLD));
}

#[test]
fn the_nodes_own_policy_is_asked_at_the_tunnel_too() {
    for v6 in [false, true] {
        let mut lab = tunnelled();
        lab.select_node(0);
        lab.policy(HOST, &[(2011, 80, 6, Ingress, true), (2012, 80, 6, Egress, true)]);
        let to_node = |identity| {
            let packet = hello(v6, behind(v6, NODE_B), addr(v6, HOST));
            end(lab.brought(NODE_B, identity, &packet))
        };
        assert_eq!(to_node(2099), Err(Reason::POLICY));
        assert_eq!(to_node(2011), PASS);
        for (node, wanted) in [(NODE_B, Err(Reason::POLICY)), (NODE_C, PASS)] {
            let (outcome, frame) = lab.sent(0, &Build::tcp(addr(v6, HOST), 6000, behind(v6, node), 80, SYN));
            assert_eq!(end(outcome), wanted);
            assert_eq!(frame.encapsulated.is_some(), wanted == PASS);
        }
        assert_eq!((lab.judged(HOST, Ingress), lab.judged(HOST, Egress)), (1, 1));
        // Answers pass both ways.
        let answer = Build::tcp(behind(v6, NODE_C), 80, addr(v6, HOST), 6000, SYN | ACK);
        assert_eq!(end(lab.brought(NODE_C, 2012, &answer)), PASS);
        let answer = Build::tcp(addr(v6, HOST), 80, behind(v6, NODE_B), 5000, SYN | ACK);
        assert_eq!(end(lab.sent(0, &answer).0), PASS);
        assert_eq!((lab.judged(HOST, Ingress), lab.judged(HOST, Egress)), (1, 1));
    }
}

#[test]
fn the_tunnel_of_nodes_is_free_where_policy_selects_the_node() {
    let mut lab = tunnelled();
    lab.select_node(0);
    lab.policy(HOST, &[]);
    let own = ip("10.0.0.100");
    for (node, port, wanted) in [
        ("192.0.2.12", 8472, PASS),
        ("192.0.102.13", 8472, PASS),
        ("192.0.2.12", 8473, Err(Reason::POLICY)),
        ("192.0.2.99", 8472, Err(Reason::POLICY)),
    ] {
        assert_eq!(end(lab.net(&Build::udp(ip(node), 40000, own, port))), wanted, "{node}:{port}");
        assert_eq!(end(lab.out(0, 0, &Build::udp(own, 40001, ip(node), port))), wanted, "{node}:{port}");
    }
    assert_eq!(lab.flows(), 0);
    lab.world.config.as_mut().unwrap().flags &= !FLAG_HOST_POLICY;
    assert_eq!(end(lab.net(&Build::udp(ip("192.0.2.99"), 40000, own, 8472))), PASS);
}

#[test]
fn what_the_hosts_nat_turned_to_another_node_finds_back_through_the_stack() {
    for v6 in [false, true] {
        let lab = tunnelled();
        let service = ip(if v6 { "fd96::1" } else { "10.96.0.1" });
        assert_eq!(end(lab.from(CLIENT, &hello(v6, addr(v6, CLIENT), service))), PASS);
        let translated = hello(v6, addr(v6, CLIENT), behind(v6, NODE_B));
        let (outcome, frame) = lab.sent(ifindex(CLIENT), &translated);
        assert_eq!((end(outcome), frame.encapsulated), (PASS, Some((NODE_B, identity(CLIENT)))));
        assert_eq!((lab.flows(), lab.judged(CLIENT, Egress)), (2, 1));
        // The answer goes up, where it gets back the address that the client knows.
        let answer = Build::tcp(behind(v6, NODE_B), 80, addr(v6, CLIENT), 5000, SYN | ACK);
        assert_eq!(end(lab.brought(NODE_B, 2011, &answer)), PASS);
        let turned = Build::tcp(service, 80, addr(v6, CLIENT), 5000, SYN | ACK);
        assert_eq!(end(lab.to(CLIENT, OVERLAY, &turned)), PASS);
        assert_eq!(lab.judged(CLIENT, Ingress), 0);
        // One that the stack did not turn back is judged.
        let mut lab = lab;
        lab.only(CLIENT, Ingress, &[]);
        assert_eq!(end(lab.to(CLIENT, OVERLAY, &answer)), Err(Reason::POLICY));
    }
}

#[test]
fn nothing_fails_open_when_a_packet_cannot_be_written() {
    for (write, reason) in [(1, Reason::WRITE), (2, Reason::TUNNEL_KEY)] {
        let lab = tunnelled();
        let packet = hello(false, addr(false, CLIENT), behind(false, NODE_B));
        let mut frame = Frame::new(packet.from_mac(mac(CLIENT)).frame(), ifindex(CLIENT));
        frame.failing_write = write;
        let outcome = villus_path::from_endpoint(&lab.world, &mut frame, &mut Work::default());
        assert_eq!(end(outcome), Err(reason));
    }
    let lab = tunnelled();
    let packet = Build::udp(addr(false, HOST), 1, behind(false, NODE_B), 2);
    let mut frame = Frame { failing_write: 1, ..Frame::new(packet.frame(), OVERLAY).via(0) };
    let outcome = to_overlay(&lab.world, &mut frame, &mut Work::default());
    assert_eq!(end(outcome), Err(Reason::TUNNEL_KEY));
}
