//! Every endpoint and direction judges a packet exactly once, whichever way it takes.

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
    flow::{FLOW_EGRESS_ADMITTED, FLOW_INGRESS_ADMITTED, FLOW_VIA_STACK},
};
use villus_path::{Action, memory::Build};

use crate::lab::*;

/// How often policies were asked since the last call: client's egress and ingress, server's, the far one's.
fn asked(lab: &Lab) -> [u64; 6] {
    let of = |id| [lab.judged(id, Egress), lab.judged(id, Ingress)];
    let [a, b, c] = [of(CLIENT), of(SERVER), of(FAR)];
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

fn udp(from: std::net::IpAddr, sport: u16, to: std::net::IpAddr, dport: u16) -> Build {
    Build::udp(from, sport, to, dport)
}

#[test]
fn endpoint_to_endpoint_in_one_pass() {
    for v6 in [false, true] {
        let lab = Lab::default();
        let (client, server) = (addr(v6, CLIENT), addr(v6, SERVER));
        for n in 1..4 {
            assert_eq!(end(lab.from(CLIENT, &udp(client, 1, server, 2))), peer(SERVER));
            assert_eq!(asked(&lab), [n, 0, 0, n, 0, 0]);
            assert_eq!(end(lab.from(SERVER, &udp(server, 2, client, 1))), peer(CLIENT));
            assert_eq!(asked(&lab), [n, 0, 0, n, 0, 0], "replies ask nobody");
        }
        let flow = lab.flow();
        assert_eq!(flow.flags, FLOW_EGRESS_ADMITTED | FLOW_INGRESS_ADMITTED | (flow.flags & 1));
        assert_eq!((flow.fwd_packets, flow.rev_packets), (3, 3));
        assert_eq!(
            (lab.world.counted(Reason::FORWARDED, 1), lab.world.counted(Reason::FORWARDED, 0)),
            (6, 6)
        );
    }
}

#[test]
fn endpoint_to_endpoint_through_the_stack() {
    for v6 in [false, true] {
        let lab = Lab::default();
        let (client, far) = (addr(v6, CLIENT), addr(v6, FAR));
        for n in 1..4 {
            assert_eq!(end(lab.from(CLIENT, &udp(client, 1, far, 2))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, 0, 0, n - 1]);
            assert_eq!(end(lab.to(FAR, ifindex(CLIENT), &udp(client, 1, far, 2))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, 0, 0, n]);
            // Back the same way, although the client could be handed its packets.
            assert_eq!(end(lab.from(FAR, &udp(far, 2, client, 1))), PASS);
            assert_eq!(end(lab.to(CLIENT, ifindex(FAR), &udp(far, 2, client, 1))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, 0, 0, n]);
        }
        let flow = lab.flow();
        let all = FLOW_EGRESS_ADMITTED | FLOW_INGRESS_ADMITTED | FLOW_VIA_STACK;
        assert_eq!(flow.flags & all, all);
        assert_eq!(
            (flow.fwd_packets, flow.rev_packets),
            (3, 3),
            "each packet is counted by its sender's hook"
        );
        assert_eq!(
            (lab.world.counted(Reason::FORWARDED, 1), lab.world.counted(Reason::FORWARDED, 0)),
            (6, 6)
        );
    }
}

#[test]
fn host_and_endpoint() {
    for v6 in [false, true] {
        let (client, host) = (addr(v6, CLIENT), addr(v6, HOST));
        let lab = Lab::default();
        for n in 1..4 {
            assert_eq!(end(lab.to(CLIENT, 0, &udp(host, 1, client, 2))), PASS);
            assert_eq!(end(lab.from(CLIENT, &udp(client, 2, host, 1))), PASS);
            assert_eq!(asked(&lab), [0, n, 0, 0, 0, 0], "{v6} host opens");
        }
        assert_eq!((lab.flow().fwd_packets, lab.flow().rev_packets), (3, 3));
        let lab = Lab::default();
        for n in 1..4 {
            assert_eq!(end(lab.from(CLIENT, &udp(client, 2, host, 1))), PASS);
            assert_eq!(end(lab.to(CLIENT, 0, &udp(host, 1, client, 2))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, 0, 0, 0], "{v6} endpoint opens");
        }
        assert_eq!((lab.flow().fwd_packets, lab.flow().rev_packets), (3, 3));
    }
}

#[test]
fn outside_and_endpoint() {
    for v6 in [false, true] {
        let (client, world) = (addr(v6, CLIENT), outside(v6));
        let lab = Lab::default();
        for n in 1..4 {
            assert_eq!(end(lab.net(&udp(world, 1, client, 2))), PASS);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &udp(world, 1, client, 2))), PASS);
            assert_eq!(end(lab.from(CLIENT, &udp(client, 2, world, 1))), PASS);
            assert_eq!(asked(&lab), [0, n, 0, 0, 0, 0], "{v6} outside opens");
        }
        assert_eq!((lab.flow().fwd_packets, lab.flow().rev_packets), (3, 3));
        assert_eq!((lab.flow().src_identity, lab.flow().src_endpoint), (if v6 { 10 } else { 9 }, 0));
        let lab = Lab::default();
        for n in 1..4 {
            assert_eq!(end(lab.from(CLIENT, &udp(client, 2, world, 1))), PASS);
            assert_eq!(end(lab.net(&udp(world, 1, client, 2))), PASS);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &udp(world, 1, client, 2))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, 0, 0, 0], "{v6} endpoint opens");
        }
        assert_eq!((lab.flow().fwd_packets, lab.flow().rev_packets), (3, 3));
    }
}

#[test]
fn an_address_that_the_stack_translates_to_an_endpoint() {
    for v6 in [false, true] {
        let (client, server, vip) = (addr(v6, CLIENT), addr(v6, SERVER), outside(v6));
        let mut lab = Lab::default();
        lab.only(CLIENT, Ingress, &[]);
        lab.only(SERVER, Egress, &[]);
        for n in 1..4 {
            // The client speaks to the address, the stack translates, the server sees the client.
            assert_eq!(end(lab.from(CLIENT, &udp(client, 1, vip, 80))), PASS);
            assert_eq!(end(lab.to(SERVER, ifindex(CLIENT), &udp(client, 1, server, 8080))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, n, 0, 0]);
            // The server answers the client, whom it must not reach directly: the stack has to translate back.
            assert_eq!(end(lab.from(SERVER, &udp(server, 8080, client, 1))), PASS);
            assert_eq!(end(lab.to(CLIENT, ifindex(SERVER), &udp(vip, 80, client, 1))), PASS);
            assert_eq!(asked(&lab), [n, 0, 0, n, 0, 0]);
        }
        let flows = lab.world.flows();
        assert_eq!(flows.len(), 2);
        assert!(flows.values().all(|flow| (flow.fwd_packets, flow.rev_packets) == (3, 3)), "{flows:?}");
        let server_side = flows.values().find(|flow| flow.dst_endpoint == SERVER).unwrap();
        assert_eq!(
            server_side.src_identity,
            identity(CLIENT),
            "the server judges the client, not the address"
        );
    }
}

#[test]
fn a_published_port_of_the_node() {
    for v6 in [false, true] {
        let (server, world) = (addr(v6, SERVER), outside(v6));
        let mut lab = Lab::with(direct());
        lab.only(SERVER, Egress, &[]);
        for n in 1..4 {
            assert_eq!(end(lab.net(&udp(world, 1, addr(v6, HOST), 80))), PASS);
            assert_eq!(end(lab.to(SERVER, UPLINK, &udp(world, 1, server, 8080))), PASS);
            assert_eq!(end(lab.from(SERVER, &udp(server, 8080, world, 1))), PASS, "never past the stack");
            assert_eq!(asked(&lab), [0, 0, 0, n, 0, 0]);
        }
    }
}

fn direct() -> villus_abi::Config {
    use villus_abi::config::{FLAG_DIRECT_V4, FLAG_DIRECT_V6};
    let config = villus_abi::Config::default();
    villus_abi::Config { flags: config.flags | FLAG_DIRECT_V4 | FLAG_DIRECT_V6, ..config }
}

#[test]
fn outside_and_endpoint_past_the_stack() {
    for v6 in [false, true] {
        let (client, world) = (addr(v6, CLIENT), outside(v6));
        let lab = Lab::with(direct());
        let tcp = |to, flags| Build::tcp(world, 1, to, 2, flags);
        for n in 1..4 {
            assert_eq!(end(lab.net(&tcp(client, if n == 1 { SYN } else { ACK }))), peer(CLIENT));
            assert_eq!(asked(&lab), [0, n, 0, 0, 0, 0]);
        }
        assert_eq!(lab.flow().fwd_packets, 3);
        assert_eq!(end(lab.net(&tcp(addr(v6, FAR), SYN))), PASS, "whom only the stack can reach");
    }
}

#[test]
fn a_judged_packet_is_not_judged_again() {
    let lab = Lab::default();
    let packet = udp(addr(false, CLIENT), 1, addr(false, TAP), 2).from_mac(mac(CLIENT));
    let (outcome, mut frame) = lab.run_from(CLIENT, packet.frame());
    assert_eq!(end(outcome), device(TAP));
    (frame.mark, frame.ifindex) = (villus_path::MARK_JUDGED, ifindex(TAP));
    let mut work = villus_path::Work::default();
    assert_eq!(villus_path::to_endpoint(&lab.world, &mut frame, &mut work).action(), Action::Pass);
    assert_eq!((lab.judged(TAP, Ingress), lab.world.counted(Reason::FORWARDED, 0)), (1, 1));
    frame.mark = 0x0700;
    villus_path::to_endpoint(&lab.world, &mut frame, &mut work);
    assert_eq!(lab.judged(TAP, Ingress), 2, "other marks do not count");
}

#[test]
fn a_reply_skips_only_the_policy_that_has_admitted_the_flow() {
    // The flow was opened by the client's side alone: the server has never been asked.
    let mut lab = Lab::default();
    lab.only(SERVER, Egress, &[]);
    let (client, far, server) = (addr(false, CLIENT), addr(false, FAR), addr(false, SERVER));
    lab.from(CLIENT, &udp(client, 1, server, 2).ttl(1));
    assert_eq!(asked(&lab), [1, 0, 0, 0, 0, 0]);
    assert_eq!(end(lab.from(SERVER, &udp(server, 2, client, 1))), Err(Reason::POLICY));
    // Where its policy allows the answer, it passes; the client's policy is not asked.
    lab.only(CLIENT, Ingress, &[]);
    lab.from(CLIENT, &udp(client, 1, far, 2));
    assert_eq!(end(lab.from(FAR, &udp(far, 2, client, 1))), PASS);
    assert_eq!(lab.judged(FAR, Egress), 1);
    assert_eq!(end(lab.to(CLIENT, ifindex(FAR), &udp(far, 2, client, 1))), PASS);
}
