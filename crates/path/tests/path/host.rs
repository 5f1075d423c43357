//! The node itself as an endpoint.

use std::net::IpAddr;

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
    config::FLAG_HOST_POLICY,
    endpoint::{FLAG_ACTIVE, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS, FLAG_AUDIT_INGRESS},
    event::{HOOK_FROM_NETWORK, HOOK_TO_NETWORK, KIND_TRACE, POINT_TO_HOST, POINT_TO_NETWORK},
    flow::{FLOW_EGRESS_ADMITTED, FLOW_INGRESS_ADMITTED, FLOW_TRANSLATED},
};
use villus_path::{
    MARK_OPENED, Outcome,
    memory::{Build, Transport},
};

use crate::lab::*;

/// A bridge of containers that are no endpoints.
const BRIDGE: u32 = 55;
/// Both directions of the node are audited.
const AUDIT: u16 = FLAG_AUDIT_INGRESS | FLAG_AUDIT_EGRESS;
const DENIED: Result<(villus_path::Action, u32), Reason> = Err(Reason::POLICY);

fn selected(flags: u16) -> Lab {
    let mut lab = Lab::default();
    lab.select_node(flags);
    lab
}

/// Nothing is allowed to or from the node.
fn closed(flags: u16) -> Lab {
    let mut lab = selected(flags);
    lab.policy(HOST, &[]);
    lab
}

fn ends(v6: bool) -> (IpAddr, IpAddr) {
    (addr(v6, HOST), outside(v6))
}

fn asked(lab: &Lab) -> [u64; 2] {
    [lab.judged(HOST, Ingress), lab.judged(HOST, Egress)]
}

/// Packets counted as forwarded: ingress, egress.
fn forwarded(lab: &Lab) -> [u64; 2] {
    [0, 1].map(|direction| lab.world.counted(Reason::FORWARDED, direction))
}

#[test]
fn a_node_that_no_policy_selects_is_not_judged() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        for flags in [0, FLAG_HOST_POLICY] {
            let mut lab = closed(0);
            // Either the configuration does not say so, or the record is not in use.
            lab.world.config.as_mut().unwrap().flags &= !FLAG_HOST_POLICY | flags;
            if flags != 0 {
                lab.world.endpoints.get_mut(&0).unwrap().flags &= !FLAG_ACTIVE;
            }
            assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 22, SYN))), PASS);
            assert_eq!(end(lab.out(0, 0, &Build::tcp(host, 5000, out, 443, SYN))), PASS);
            assert_eq!((lab.flows(), forwarded(&lab), lab.kinds().as_str()), (0, [0, 0], ""));
            let client = addr(v6, CLIENT);
            assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 1, host, 53))), PASS);
            assert_eq!(end(lab.to(CLIENT, 0, &Build::udp(host, 1, client, 53))), PASS);
            assert_eq!(forwarded(&lab), [1, 1], "the endpoint's only");
        }
    }
}

#[test]
fn from_outside_to_the_node_and_back() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let mut lab = selected(0);
        lab.policy(HOST, &[(0, 22, 6, Ingress, true)]);
        for n in 1..4 {
            let flags = if n == 1 { SYN } else { ACK };
            assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 22, flags))), PASS);
            assert_eq!(end(lab.out(0, 0, &Build::tcp(host, 22, out, 5000, ACK))), PASS);
            assert_eq!((asked(&lab), forwarded(&lab)), ([n, 0], [n, n]), "replies ask nobody");
        }
        let flow = lab.flow();
        assert_eq!(flow.flags & (FLOW_EGRESS_ADMITTED | FLOW_INGRESS_ADMITTED), FLOW_INGRESS_ADMITTED);
        assert_eq!((flow.fwd_packets, flow.rev_packets, flow.dst_identity), (3, 3, 1));
        assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 23, SYN))), DENIED);
        // A policy that allows it no more cuts it, and the answers are judged as new.
        lab.policy(HOST, &[]);
        assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 22, ACK))), DENIED);
        assert_eq!(end(lab.out(0, 0, &Build::tcp(host, 22, out, 5000, ACK))), DENIED);
        assert_eq!(lab.flows(), 0);
    }
}

#[test]
fn from_the_node_to_outside_and_back() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let mut lab = selected(0);
        let identity = if v6 { 10 } else { 9 };
        lab.policy(HOST, &[(identity, 53, 17, Egress, true)]);
        for n in 1..4 {
            assert_eq!(end(lab.out(0, 0, &Build::udp(host, 5000, out, 53))), PASS);
            assert_eq!(end(lab.net(&Build::udp(out, 53, host, 5000))), PASS);
            assert_eq!((asked(&lab), forwarded(&lab)), ([0, n], [n, n]));
        }
        let events = lab.events();
        let traces: Vec<_> = events.iter().filter(|event| event.kind == KIND_TRACE).collect();
        assert_eq!((traces[0].hook, traces[0].point), (HOOK_TO_NETWORK, POINT_TO_NETWORK));
        assert_eq!((traces[1].hook, traces[1].point), (HOOK_FROM_NETWORK, POINT_TO_HOST));
        assert_eq!((traces[1].src_identity, traces[1].dst_identity, traces[1].endpoint), (identity, 1, HOST));
        assert_eq!(end(lab.out(0, 0, &Build::udp(host, 5000, out, 54))), DENIED);
        assert_eq!(end(lab.net(&Build::udp(out, 53, host, 5001))), DENIED, "nobody asked for it");
    }
}

#[test]
fn between_the_node_and_its_endpoints_both_are_asked_once() {
    for v6 in [false, true] {
        let (host, client) = (addr(v6, HOST), addr(v6, CLIENT));
        let lab = selected(0);
        for n in 1..4 {
            assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 1, host, 53))), PASS);
            assert_eq!(end(lab.to(CLIENT, 0, &Build::udp(host, 53, client, 1))), PASS);
            assert_eq!((asked(&lab), forwarded(&lab)), ([n, 0], [2 * n, 2 * n]));
            assert_eq!((lab.judged(CLIENT, Egress), lab.judged(CLIENT, Ingress)), (n, 0));
        }
        let flow = lab.flow();
        assert_eq!((flow.fwd_packets, flow.rev_packets), (3, 3));
        let lab = selected(0);
        for n in 1..4 {
            assert_eq!(end(lab.to(CLIENT, 0, &Build::udp(host, 1, client, 80))), PASS);
            assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 80, host, 1))), PASS);
            assert_eq!((asked(&lab), forwarded(&lab)), ([0, n], [2 * n, 2 * n]));
            assert_eq!((lab.judged(CLIENT, Egress), lab.judged(CLIENT, Ingress)), (0, n));
        }
        let mut lab = closed(0);
        assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 1, host, 53))), DENIED);
        assert_eq!(end(lab.to(CLIENT, 0, &Build::udp(host, 1, client, 80))), DENIED);
        lab.policy(HOST, &[(identity(CLIENT), 0, 0, Ingress, true)]);
        assert_eq!(end(lab.from(CLIENT, &Build::udp(client, 1, host, 53))), PASS);
        assert_eq!(end(lab.from(SERVER, &Build::udp(addr(v6, SERVER), 1, host, 53))), DENIED);
    }
}

#[test]
fn in_audit_mode_nothing_of_the_nodes_is_dropped() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let late = Build::udp(out, 1, host, 2).payload(64);
        let late = Build { fragment: Some((64, 8, false)), ..late };
        let cut = Build::new(out, host, Transport::Other(6)).payload(4);
        let mut strange = vec![late, cut, Build::new(out, host, Transport::Other(50)).payload(24)];
        strange.push(Build::tcp(out, 5000, host, 22, SYN));
        for packet in &strange {
            for (flags, all) in [(AUDIT, 0), (0, villus_abi::config::FLAG_AUDIT)] {
                let mut lab = closed(flags);
                lab.world.config.as_mut().unwrap().flags |= all;
                assert_eq!(end(lab.net(packet)), PASS, "{packet:?}");
                let verdicts: Vec<_> = lab.events().into_iter().filter(|e| e.verdict != 0).collect();
                assert_eq!(verdicts.len(), 1, "{verdicts:?}");
                assert_ne!(verdicts[0].flags & villus_abi::event::FLAG_AUDITED, 0);
            }
            assert_ne!(end(closed(0).net(packet)), PASS, "enforced it drops: {packet:?}");
        }
        let mut lab = closed(AUDIT);
        lab.world.remove_policy(0);
        assert_eq!(end(lab.net(&strange[3])), PASS, "without a map");
        assert_eq!(end(lab.out(0, 0, &Build::udp(host, 1, out, 2))), PASS, "without a map");
        let lab = closed(AUDIT);
        lab.world.refuse_flows(true);
        assert_eq!(end(lab.net(&strange[3])), PASS, "with a full table");
    }
}

#[test]
fn each_direction_of_the_node_is_audited_alone_and_what_holds_holds() {
    let (host, out) = ends(false);
    let comes = Build::udp(out, 9, host, 22);
    let goes = Build::udp(host, 9, out, 22);
    for (flags, ingress, egress) in [
        (FLAG_AUDIT_INGRESS, PASS, DENIED),
        (FLAG_AUDIT_EGRESS, DENIED, PASS),
        (FLAG_AUDIT_DEFAULT_INGRESS, PASS, DENIED),
    ] {
        let lab = closed(flags);
        assert_eq!((end(lab.net(&comes)), end(lab.out(0, 0, &goes))), (ingress, egress), "{flags:#x}");
    }
    for (flags, wanted) in
        [(FLAG_AUDIT_DEFAULT_INGRESS, Err(Reason::POLICY_DENY)), (FLAG_AUDIT_INGRESS, PASS)]
    {
        let mut lab = closed(flags);
        lab.policy(HOST, &[(0, 22, 17, Ingress, false)]);
        assert_eq!(end(lab.net(&comes)), wanted);
    }
}

#[test]
fn what_a_node_needs_to_be_on_its_network_always_passes() {
    let lab = closed(0);
    let discovery = [133, 134, 135, 136, 137];
    for kind in discovery {
        let packet = Build::icmp(ip("fe80::9"), addr(true, HOST), kind, 0).ttl(255);
        assert_eq!(end(lab.net(&packet)), PASS, "type {kind}");
        assert_eq!(end(lab.net(&packet.clone().ttl(64))), DENIED, "type {kind} from beyond the link");
        let packet = Build::icmp(addr(true, HOST), ip("ff02::1"), kind, 0).ttl(255);
        assert_eq!(end(lab.out(0, 0, &packet)), PASS, "type {kind}");
    }
    for kind in [130, 131, 132, 143] {
        assert_eq!(end(lab.net(&group(Build::icmp(ip("fe80::9"), ip("ff02::1"), kind, 0)))), PASS);
        assert_eq!(end(lab.out(0, 0, &Build::icmp(ip("fe80::1"), ip("ff02::16"), kind, 0))), PASS);
    }
    let igmp = |src, dst| Build::new(src, dst, Transport::Other(2));
    assert_eq!(end(lab.net(&group(igmp(outside(false), ip("224.0.0.1"))))), PASS);
    assert_eq!(end(lab.out(0, 0, &igmp(addr(false, HOST), ip("224.0.0.22")))), PASS);
    // The node's own DHCP client; a server on the node is judged like any other.
    let (host, server) = (addr(false, HOST), outside(false));
    assert_eq!(end(lab.out(0, 0, &Build::udp(ip("0.0.0.0"), 68, ip("255.255.255.255"), 67))), PASS);
    assert_eq!(end(lab.out(0, 0, &Build::udp(host, 68, server, 67))), PASS);
    assert_eq!(end(lab.net(&Build::udp(server, 67, host, 68))), PASS);
    assert_eq!(end(lab.net(&Build::udp(server, 68, host, 67))), DENIED);
    assert_eq!(end(lab.out(0, 0, &Build::udp(ip("fe80::1"), 546, ip("ff02::1:2"), 547))), PASS);
    assert_eq!(end(lab.net(&Build::udp(ip("fe80::9"), 547, ip("fe80::1"), 546))), PASS);
    assert_eq!((lab.flows(), asked(&lab)), (0, [0, 0]));
}

fn group(packet: Build) -> Build {
    Build { dmac: [1, 0, 0x5e, 0, 0, 1], ..packet }
}

#[test]
fn what_is_for_everybody_is_for_the_node() {
    let mut lab = closed(0);
    let own_broadcast = Build::udp(outside(false), 1, ip("192.0.2.255"), 137);
    let cases = [
        group(Build::udp(outside(false), 5353, ip("224.0.0.251"), 5353)),
        Build { dmac: [0xff; 6], ..own_broadcast.clone() },
        group(Build::udp(ip("fe80::9"), 5353, ip("ff02::fb"), 5353)),
        Build::tcp(ip("fe80::9"), 1, ip("fe80::1"), 22, SYN),
    ];
    for packet in &cases {
        assert_eq!(end(lab.net(packet)), DENIED, "{packet:?}");
    }
    // To somebody else's MAC or address it is not for the node, nor what an endpoint is sent.
    assert_eq!(end(lab.net(&own_broadcast)), PASS);
    assert_eq!(end(lab.net(&group(Build::udp(outside(false), 1, addr(false, CLIENT), 2)))), PASS);
    lab.policy(HOST, &[(0, 5353, 17, Ingress, true)]);
    assert_eq!(end(lab.net(&cases[0])), PASS);
}

#[test]
fn protocols_without_ports_are_judged_without_flows() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let mut lab = closed(0);
        let esp = |src, dst| Build::new(src, dst, Transport::Other(50)).payload(24);
        assert_eq!(end(lab.net(&esp(out, host))), DENIED);
        assert_eq!(end(lab.out(0, 0, &esp(host, out))), DENIED);
        lab.policy(HOST, &[(0, 0, 50, Ingress, true), (0, 0, 0, Egress, true)]);
        assert_eq!(end(lab.net(&esp(out, host))), PASS);
        assert_eq!(end(lab.out(0, 0, &esp(host, out))), PASS);
        assert_eq!((asked(&lab), lab.flows()), ([1, 1], 0));
    }
}

fn is_opened(outcome: Outcome) -> bool {
    end(outcome) == PASS && outcome.is_opened()
}

#[test]
fn what_endpoints_send_under_the_nodes_address_is_not_the_nodes() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let client = addr(v6, CLIENT);
        let lab = closed(0);
        for n in 1..4 {
            let flags = if n == 1 { SYN } else { ACK };
            // The endpoint's own packet, then as the host's SNAT has it; the answer before and after.
            assert!(is_opened(lab.from(CLIENT, &Build::tcp(client, 5000, out, 443, flags))));
            let masqueraded = Build::tcp(host, 6000, out, 443, flags);
            assert_eq!(end(lab.out(ifindex(CLIENT), MARK_OPENED, &masqueraded)), PASS);
            assert_eq!(end(lab.net(&Build::tcp(out, 443, host, 6000, ACK))), PASS);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &Build::tcp(out, 443, client, 5000, ACK))), PASS);
            assert_eq!(forwarded(&lab), [n, n], "once for the endpoint, not for the node");
        }
        let flows = lab.world.flows();
        let lent: Vec<_> = flows.values().filter(|flow| flow.flags & FLOW_TRANSLATED != 0).collect();
        assert_eq!((flows.len(), lent.len()), (2, 1));
        assert_eq!((lent[0].fwd_packets, lent[0].rev_packets), (3, 3));
        // Errors about it find their way; the node itself cannot use what was lent.
        let sent = Build::tcp(host, 6000, out, 443, ACK);
        assert_eq!(
            end(lab.net(&sent.error(ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }), host, 3, 0))),
            PASS
        );
        assert_eq!(end(lab.net(&Build::tcp(out, 443, host, 6000, SYN))), DENIED, "not an answer");
        assert_eq!(end(lab.out(0, 0, &Build::tcp(host, 6000, out, 443, SYN))), DENIED);
        assert_eq!(asked(&lab), [0, 0]);
    }
}

#[test]
fn a_port_that_nat_has_given_back_is_the_nodes_own_again() {
    let (host, out) = ends(false);
    let lab = selected(0);
    assert_eq!(end(lab.out(ifindex(CLIENT), MARK_OPENED, &Build::udp(host, 6000, out, 53))), PASS);
    assert_ne!(lab.flow().flags & FLOW_TRANSLATED, 0);
    assert_eq!(end(lab.out(0, 0, &Build::udp(host, 6000, out, 53))), PASS);
    assert_eq!(lab.flow().flags & (FLOW_TRANSLATED | FLOW_EGRESS_ADMITTED), FLOW_EGRESS_ADMITTED);
    assert_eq!(end(lab.out(ifindex(CLIENT), MARK_OPENED, &Build::udp(host, 6000, out, 53))), PASS);
    assert_ne!(lab.flow().flags & FLOW_TRANSLATED, 0, "and may be lent again");
}

#[test]
fn a_published_port_is_judged_as_the_nodes_and_its_answers_open_nothing() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let server = addr(v6, SERVER);
        let mut lab = selected(0);
        lab.policy(HOST, &[(0, 8080, 6, Ingress, true)]);
        for flags in [SYN, ACK] {
            assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 8080, flags))), PASS);
            assert_eq!(end(lab.to(SERVER, UPLINK, &Build::tcp(out, 5000, server, 80, flags))), PASS);
            let answer = lab.from(SERVER, &Build::tcp(server, 80, out, 5000, ACK));
            assert!(end(answer) == PASS && !answer.is_opened());
            assert_eq!(end(lab.out(ifindex(SERVER), 0, &Build::tcp(host, 8080, out, 5000, ACK))), PASS);
        }
        assert_eq!(asked(&lab), [2, 0]);
        lab.policy(HOST, &[]);
        assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 8080, ACK))), DENIED);
        // The server sends again what nobody has acknowledged.
        let again = lab.from(SERVER, &Build::tcp(server, 80, out, 5000, ACK));
        let mark = if again.is_opened() { MARK_OPENED } else { 0 };
        assert_eq!(end(lab.out(ifindex(SERVER), mark, &Build::tcp(host, 8080, out, 5000, ACK))), PASS);
        assert_eq!(end(lab.net(&Build::tcp(out, 5000, host, 8080, ACK))), DENIED, "still");
    }
}

#[test]
fn what_others_behind_the_node_open_gets_its_answers() {
    let (host, out) = ends(false);
    let cases = [
        (Build::tcp(host, 6000, out, 443, SYN), Build::tcp(out, 443, host, 6000, ACK), true),
        (Build::tcp(host, 6000, out, 443, ACK), Build::tcp(out, 443, host, 6000, ACK), false),
        (Build::udp(host, 6000, out, 53), Build::udp(out, 53, host, 6000), true),
        (Build::ping(host, out, 7), Build::pong(out, host, 7), true),
    ];
    for (sent, answer, passes) in &cases {
        let lab = closed(0);
        assert_eq!(end(lab.out(BRIDGE, 0, sent)), PASS);
        assert_eq!(end(lab.net(answer)), if *passes { PASS } else { DENIED }, "{sent:?}");
        // What was open before the node was selected is learned while it is audited.
        let mut lab = closed(AUDIT);
        assert_eq!(end(lab.out(BRIDGE, 0, sent)), PASS);
        lab.world.endpoints.get_mut(&0).unwrap().flags &= !AUDIT;
        assert_eq!(end(lab.net(answer)), PASS, "{sent:?}");
    }
    let lab = closed(0);
    assert_eq!(
        end(lab.out(BRIDGE, 0, &Build::udp(ip("172.17.0.2"), 1, out, 2))),
        PASS,
        "not the node's address"
    );
    assert_eq!(lab.flows(), 0);
}

#[test]
fn errors_pass_where_their_flow_does() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let router = ip(if v6 { "2001:db8::77" } else { "192.0.2.77" });
        let unreachable = if v6 { (1, 4) } else { (3, 3) };
        let mut lab = selected(0);
        lab.policy(HOST, &[(0, 53, 17, Egress, true), (0, 54, 17, Ingress, true)]);
        let sent = Build::udp(host, 5000, out, 53);
        let error = sent.error(router, host, unreachable.0, unreachable.1);
        assert_eq!(end(lab.net(&error)), DENIED, "about nothing");
        assert_eq!(end(lab.out(0, 0, &sent)), PASS);
        assert_eq!(end(lab.net(&error)), PASS);
        let came = Build::udp(out, 5000, host, 54);
        assert_eq!(end(lab.net(&came)), PASS);
        assert_eq!(end(lab.out(0, 0, &came.error(host, out, unreachable.0, unreachable.1))), PASS);
        // As a router the node may say what became of an endpoint's packets.
        let client = addr(v6, CLIENT);
        let sent = Build::udp(client, 1, out, 2);
        assert_eq!(end(lab.from(CLIENT, &sent)), PASS);
        let error = sent.error(host, client, if v6 { 3 } else { 11 }, 0);
        assert_eq!(end(lab.to(CLIENT, 0, &error)), PASS);
    }
}

#[test]
fn fragments_of_the_nodes_are_of_the_flow_of_the_first() {
    for v6 in [false, true] {
        let (host, out) = ends(v6);
        let mut lab = selected(0);
        lab.policy(HOST, &[(0, 514, 17, Ingress, true)]);
        let whole = |port| Build::udp(out, 5000, host, port).payload(64);
        let part = |port, fragment| Build { fragment: Some(fragment), ..whole(port) };
        assert_eq!(end(lab.net(&part(514, (0, 40, true)))), PASS);
        assert_eq!(end(lab.net(&part(514, (40, 32, false)))), PASS);
        let other = Build { id: 9, ..part(515, (0, 40, true)) };
        assert_eq!(end(lab.net(&other)), DENIED);
    }
}
