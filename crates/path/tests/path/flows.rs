//! Known flows: replies, reopening, expiry, TCP states.

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason, flow,
};
use villus_path::memory::Build;

use crate::lab::*;

fn there(v6: bool, flags: u8) -> Build {
    Build::tcp(addr(v6, CLIENT), 4000, addr(v6, SERVER), 80, flags)
}

fn back(v6: bool, flags: u8) -> Build {
    Build::tcp(addr(v6, SERVER), 80, addr(v6, CLIENT), 4000, flags)
}

/// The client may open 80/TCP and 53/UDP to the server and ping it; nobody may open anything to the client.
fn guarded() -> Lab {
    let mut lab = Lab::default();
    let asks = [(identity(SERVER), 80, 6), (0, 53, 17), (0, 8, 1), (0, 128, 58)];
    let mut entries: Vec<_> =
        asks.iter().map(|(id, port, proto)| (*id, *port, *proto, Egress, true)).collect();
    lab.policy(CLIENT, &entries);
    entries.iter_mut().for_each(|entry| *entry = (0, entry.1, entry.2, Ingress, true));
    lab.policy(SERVER, &entries);
    lab
}

#[test]
fn a_reply_passes_without_a_policy_entry() {
    for v6 in [false, true] {
        let (client, server) = (addr(v6, CLIENT), addr(v6, SERVER));
        for (asks, answers) in [
            (there(v6, SYN), back(v6, SYN | ACK)),
            (Build::udp(client, 5000, server, 53), Build::udp(server, 53, client, 5000)),
            (Build::ping(client, server, 77), Build::pong(server, client, 77)),
        ] {
            let lab = guarded();
            assert_eq!(end(lab.from(SERVER, &answers)), Err(Reason::POLICY), "without a flow");
            assert_eq!(end(lab.from(CLIENT, &asks)), peer(SERVER));
            assert_eq!(end(lab.from(SERVER, &answers)), peer(CLIENT));
            assert_eq!((lab.flow().fwd_packets, lab.flow().rev_packets), (1, 1));
            assert_eq!(lab.flow().src_endpoint, CLIENT);
            assert_eq!(
                (lab.flow().src_identity, lab.flow().dst_identity),
                (identity(CLIENT), identity(SERVER))
            );
        }
    }
}

#[test]
fn only_the_very_flow_is_a_reply() {
    let lab = guarded();
    lab.from(CLIENT, &there(false, SYN));
    let (client, server) = (addr(false, CLIENT), addr(false, SERVER));
    for packet in [
        Build::tcp(server, 80, client, 4001, ACK),
        Build::tcp(server, 81, client, 4000, ACK),
        Build::udp(server, 80, client, 4000),
        Build::tcp(server, 80, addr(false, TAP), 4000, ACK),
    ] {
        assert_eq!(end(lab.from(SERVER, &packet)), Err(Reason::POLICY));
    }
}

#[test]
fn the_answering_side_may_not_ask_under_the_flow() {
    let lab = guarded();
    lab.from(CLIENT, &there(false, SYN));
    assert_eq!(end(lab.from(SERVER, &back(false, SYN))), Err(Reason::POLICY), "a SYN opens");
    assert_eq!(end(lab.from(SERVER, &back(false, SYN | RST))), peer(CLIENT), "this one does not");
    assert_eq!(end(lab.from(CLIENT, &there(false, ACK))), peer(SERVER), "the flow is as it was");
    for v6 in [false, true] {
        let lab = guarded();
        lab.from(CLIENT, &Build::ping(addr(v6, CLIENT), addr(v6, SERVER), 77));
        let asks = Build::ping(addr(v6, SERVER), addr(v6, CLIENT), 77);
        assert_eq!(end(lab.from(SERVER, &asks)), Err(Reason::POLICY));
    }
}

#[test]
fn answers_nobody_asked_for_do_not_let_questions_in() {
    for v6 in [false, true] {
        let mut lab = Lab::default();
        let (pong, proto) = if v6 { (129, 58) } else { (256, 1) };
        lab.only(SERVER, Ingress, &[]);
        lab.only(CLIENT, Ingress, &[(0, pong, proto)]);
        // The server tells without being asked, and makes a flow of it.
        assert_eq!(end(lab.from(SERVER, &Build::pong(addr(v6, SERVER), addr(v6, CLIENT), 5))), peer(CLIENT));
        let asks = Build::ping(addr(v6, CLIENT), addr(v6, SERVER), 5);
        assert_eq!(end(lab.from(CLIENT, &asks)), Err(Reason::POLICY));
    }
}

#[test]
fn a_flow_is_cut_as_soon_as_policy_no_longer_allows_it() {
    let mut lab = guarded();
    lab.from(CLIENT, &there(false, SYN));
    lab.from(SERVER, &back(false, SYN | ACK));
    lab.only(SERVER, Ingress, &[]);
    assert_eq!(end(lab.from(SERVER, &back(false, ACK))), peer(CLIENT), "nothing was asked yet");
    assert_eq!(end(lab.from(CLIENT, &there(false, ACK))), Err(Reason::POLICY));
    assert_eq!(lab.flows(), 0, "a denied packet of its own direction ends the flow");
    lab.policy(SERVER, &[]);
    assert_eq!(
        end(lab.from(SERVER, &back(false, ACK))),
        Err(Reason::POLICY),
        "its replies are judged as new"
    );
}

#[test]
fn a_denied_reply_leaves_the_flow() {
    let mut lab = guarded();
    lab.from(CLIENT, &there(false, SYN));
    lab.policy(SERVER, &[]);
    assert_eq!(end(lab.from(SERVER, &back(false, SYN))), Err(Reason::POLICY));
    assert_eq!(lab.flows(), 1);
}

#[test]
fn mid_stream_tcp_that_policy_allows_makes_a_flow() {
    let lab = guarded();
    assert_eq!(end(lab.from(CLIENT, &there(false, ACK))), peer(SERVER));
    assert_eq!(lab.flow().flags & flow::FLOW_SEEN_NON_SYN, flow::FLOW_SEEN_NON_SYN);
    assert_eq!(end(lab.from(SERVER, &back(false, ACK))), peer(CLIENT));
}

#[test]
fn tcp_flows_live_as_long_as_their_state_says() {
    const CLIENT_SAYS: bool = true;
    const SERVER_SAYS: bool = false;
    // (name, packets, seconds)
    for (name, packets, seconds) in [
        ("a SYN", vec![(CLIENT_SAYS, SYN)], 60),
        ("SYNs of both", vec![(CLIENT_SAYS, SYN), (SERVER_SAYS, SYN | ACK)], 60),
        ("open", vec![(CLIENT_SAYS, SYN), (SERVER_SAYS, SYN | ACK), (CLIENT_SAYS, ACK)], 8000),
        ("half closed", vec![(CLIENT_SAYS, SYN), (SERVER_SAYS, SYN | ACK), (CLIENT_SAYS, FIN | ACK)], 8000),
        ("closed", vec![(CLIENT_SAYS, SYN), (CLIENT_SAYS, FIN | ACK), (SERVER_SAYS, FIN | ACK)], 10),
        (
            "closed, last word",
            vec![(CLIENT_SAYS, FIN | ACK), (SERVER_SAYS, FIN | ACK), (CLIENT_SAYS, ACK)],
            10,
        ),
        ("reset", vec![(CLIENT_SAYS, SYN), (SERVER_SAYS, RST | ACK)], 10),
        ("mid-stream", vec![(CLIENT_SAYS, ACK)], 8000),
    ] {
        let lab = guarded();
        for (client, flags) in packets {
            let outcome = if client {
                lab.from(CLIENT, &there(false, flags))
            } else {
                lab.from(SERVER, &back(false, flags))
            };
            assert!(end(outcome).is_ok(), "{name}");
        }
        // Ticks are 67 ms, and spans are rounded up.
        let now = villus_abi::time::from_ns(lab.world.clock());
        assert_eq!(lab.flow().expires - now, villus_abi::time::from_secs(seconds), "{name}");
    }
}

#[test]
fn an_expired_flow_is_none() {
    for (packets, seconds) in [(vec![SYN], 61), (vec![SYN, ACK], 8001), (vec![SYN, RST], 11)] {
        let lab = guarded();
        for flags in packets {
            lab.from(CLIENT, &there(true, flags));
        }
        lab.world.pass(seconds);
        assert_eq!(end(lab.from(SERVER, &back(true, ACK))), Err(Reason::POLICY), "{seconds}");
    }
    let lab = guarded();
    let (client, server) = (addr(false, CLIENT), addr(false, SERVER));
    lab.from(CLIENT, &Build::udp(client, 5000, server, 53));
    lab.world.pass(59);
    assert_eq!(end(lab.from(SERVER, &Build::udp(server, 53, client, 5000))), peer(CLIENT), "and lives on");
    lab.world.pass(59);
    assert_eq!(end(lab.from(SERVER, &Build::udp(server, 53, client, 5000))), peer(CLIENT));
    lab.world.pass(61);
    assert_eq!(end(lab.from(SERVER, &Build::udp(server, 53, client, 5000))), Err(Reason::POLICY));
}

#[test]
fn a_syn_reopens_what_was_closing() {
    let lab = guarded();
    for flags in [SYN, ACK, FIN | ACK] {
        lab.from(CLIENT, &there(false, flags));
    }
    lab.from(SERVER, &back(false, FIN | ACK));
    assert_eq!(end(lab.from(CLIENT, &there(false, SYN))), peer(SERVER));
    let flow = lab.flow();
    assert_eq!(flow.flags & (flow::FLOW_FWD_CLOSING | flow::FLOW_REV_CLOSING | flow::FLOW_SEEN_NON_SYN), 0);
    assert_eq!((flow.fwd_packets, flow.rev_packets, flow.fwd_tcp_flags), (1, 0, SYN));
}

#[test]
fn the_other_side_may_reopen_if_policy_lets_it() {
    let lab = Lab::default();
    lab.from(CLIENT, &there(false, SYN));
    let opener = lab.flow().flags & flow::FLOW_HI_OPENED;
    assert_eq!(end(lab.from(SERVER, &back(false, SYN))), peer(CLIENT));
    assert_ne!(lab.flow().flags & flow::FLOW_HI_OPENED, opener);
    assert_eq!((lab.flow().src_endpoint, lab.flow().dst_endpoint), (SERVER, CLIENT));
}

#[test]
fn an_association_that_the_other_side_opens_is_judged_as_new() {
    for v6 in [false, true] {
        let (client, server) = (addr(v6, CLIENT), addr(v6, SERVER));
        let mut lab = guarded();
        for (endpoint, direction) in [(CLIENT, Egress), (SERVER, Ingress)] {
            lab.policy(endpoint, &[(0, 80, 132, direction, true)]);
        }
        let back = Build::sctp_init(server, 80, client, 4000);
        assert_eq!(end(lab.from(CLIENT, &Build::sctp_init(client, 4000, server, 80))), peer(SERVER));
        assert_eq!(end(lab.from(SERVER, &Build::sctp(server, 80, client, 4000))), peer(CLIENT), "an answer");
        assert_eq!(end(lab.from(SERVER, &back)), Err(Reason::POLICY), "it may not open one");
        assert_eq!(end(lab.from(CLIENT, &Build::sctp(client, 4000, server, 80))), peer(SERVER));

        let lab = Lab::default();
        lab.from(CLIENT, &Build::sctp_init(client, 4000, server, 80));
        let opener = lab.flow().flags & flow::FLOW_HI_OPENED;
        assert_eq!(end(lab.from(SERVER, &back)), peer(CLIENT));
        assert_ne!(lab.flow().flags & flow::FLOW_HI_OPENED, opener, "where it may, the flow is its own");
    }
}

#[test]
fn a_table_that_refuses_drops_by_name() {
    let lab = guarded();
    lab.world.refuse_flows(true);
    assert_eq!(end(lab.from(CLIENT, &there(false, SYN))), Err(Reason::CT_INSERT));
    lab.world.refuse_flows(false);
    assert_eq!(end(lab.from(CLIENT, &there(false, SYN))), peer(SERVER));
}

#[test]
fn an_address_may_speak_to_itself() {
    for v6 in [false, true] {
        let own = addr(v6, CLIENT);
        for (sport, dport) in [(1, 2), (2, 1), (2, 2)] {
            let lab = Lab::default();
            assert_eq!(end(lab.from(CLIENT, &Build::udp(own, sport, own, dport))), peer(CLIENT));
            assert_eq!(end(lab.from(CLIENT, &Build::udp(own, dport, own, sport))), peer(CLIENT));
            assert_eq!(lab.flow().rev_packets, u64::from(sport != dport));
        }
    }
}

/// Client and server may each open anything to the other, or only the client may.
fn rules(lab: &mut Lab, server_may: bool) {
    let (client, server) = (identity(CLIENT), identity(SERVER));
    let mut of_client = vec![(server, 80, 6, Egress, true)];
    let mut of_server = vec![(client, 80, 6, Ingress, true)];
    if server_may {
        of_client.push((0, 0, 0, Ingress, true));
        of_server.push((0, 0, 0, Egress, true));
    }
    lab.policy(CLIENT, &of_client);
    lab.policy(SERVER, &of_server);
}

#[test]
fn a_forgotten_connection_that_the_server_speaks_in_is_asked_about_with_every_packet() {
    for v6 in [false, true] {
        for answer in [back(v6, ACK), back(v6, SYN | ACK)] {
            let mut lab = Lab::default();
            rules(&mut lab, true);
            assert_eq!(end(lab.from(SERVER, &answer)), peer(CLIENT));
            assert_ne!(lab.flow().flags & flow::FLOW_EITHER, 0);
            assert_eq!(end(lab.from(CLIENT, &there(v6, ACK))), peer(SERVER));

            // What the client may no longer open is cut, though the server's packet made the flow.
            lab.policy(CLIENT, &[(0, 0, 0, Ingress, true)]);
            assert_eq!(end(lab.from(CLIENT, &there(v6, ACK))), Err(Reason::POLICY));

            // What the server may not open is cut, and comes back as the client's.
            rules(&mut lab, false);
            assert_eq!(end(lab.from(SERVER, &back(v6, ACK))), Err(Reason::POLICY));
            assert_eq!(end(lab.from(CLIENT, &there(v6, ACK))), peer(SERVER));
            assert_eq!(lab.flow().flags & flow::FLOW_EITHER, 0);
            assert_eq!(end(lab.from(SERVER, &back(v6, ACK))), peer(CLIENT));
        }
    }
}

#[test]
fn a_segment_that_only_its_sender_may_open_opens_the_flow_for_it() {
    let mut lab = Lab::default();
    rules(&mut lab, false);
    assert_eq!(end(lab.from(CLIENT, &there(false, ACK))), peer(SERVER));
    assert_eq!(lab.flow().flags & flow::FLOW_EITHER, 0);
    assert_eq!(end(lab.from(SERVER, &back(false, ACK))), peer(CLIENT), "a reply");
}

#[test]
fn asking_who_could_have_opened_a_flow_counts_nothing() {
    let mut lab = Lab::default();
    rules(&mut lab, true);
    lab.from(SERVER, &back(false, ACK));
    let counted = |id: u16| -> u64 {
        lab.world.policy_entries(u32::from(id)).unwrap().values().map(|entry| entry.packets).sum()
    };
    assert_eq!((counted(CLIENT), counted(SERVER)), (1, 1));
}

#[test]
fn a_syn_settles_who_opens() {
    let mut lab = Lab::default();
    rules(&mut lab, true);
    lab.from(SERVER, &back(false, ACK));
    assert_eq!(end(lab.from(CLIENT, &there(false, SYN))), peer(SERVER));
    assert_eq!((lab.flow().src_endpoint, lab.flow().flags & flow::FLOW_EITHER), (CLIENT, 0));
    lab.policy(SERVER, &[(identity(CLIENT), 80, 6, Ingress, true)]);
    assert_eq!(end(lab.from(SERVER, &back(false, SYN | ACK))), peer(CLIENT), "a reply");
}
