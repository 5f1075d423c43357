//! ICMP errors and the flows they are about.

use villus_abi::{
    Config,
    Direction::{Egress, Ingress},
    Reason,
    config::FLAG_ALLOW_FRAG_NEEDED,
};
use villus_path::memory::Build;

use crate::lab::*;

/// Port unreachable, packet too big.
const fn kinds(v6: bool) -> [(u8, u8); 2] {
    if v6 { [(1, 4), (2, 0)] } else { [(3, 3), (3, 4)] }
}

fn question(v6: bool) -> Build {
    Build::udp(addr(v6, CLIENT), 5000, addr(v6, SERVER), 53)
}

/// Nobody may send anything that is not 53/UDP from client to server.
fn guarded() -> Lab {
    let config = Config::default();
    let mut lab = Lab::with(Config { flags: config.flags & !FLAG_ALLOW_FRAG_NEEDED, ..config });
    lab.policy(CLIENT, &[(0, 53, 17, Egress, true)]);
    lab.policy(SERVER, &[(0, 53, 17, Ingress, true)]);
    lab.policy(FAR, &[]);
    lab
}

#[test]
fn an_error_reaches_the_sender_of_the_packet_it_quotes() {
    for v6 in [false, true] {
        let (client, server) = (addr(v6, CLIENT), addr(v6, SERVER));
        for (kind, code) in kinds(v6) {
            let lab = guarded();
            let error = question(v6).error(server, client, kind, code);
            assert_eq!(end(lab.from(SERVER, &error)), Err(Reason::POLICY), "there is no flow");
            lab.from(CLIENT, &question(v6));
            assert_eq!(end(lab.from(SERVER, &error)), peer(CLIENT), "{v6} {kind}");
            let router = question(v6).error(outside(v6), client, kind, code);
            assert_eq!(end(lab.to(CLIENT, UPLINK, &router)), PASS, "from a router outside");
            let host = question(v6).error(addr(v6, HOST), client, kind, code);
            assert_eq!(end(lab.to(CLIENT, 0, &host)), PASS, "from this node");
            assert_eq!(
                (lab.flow().fwd_packets, lab.flow().rev_packets),
                (1, 0),
                "it is no packet of the flow"
            );
            // About a packet of the answering direction, to the one who answered.
            let reply = Build::udp(server, 53, client, 5000);
            assert_eq!(end(lab.from(CLIENT, &reply.error(client, server, kind, code))), peer(SERVER));
        }
    }
}

#[test]
fn an_error_goes_nowhere_else() {
    for v6 in [false, true] {
        let (client, server, far) = (addr(v6, CLIENT), addr(v6, SERVER), addr(v6, FAR));
        let (kind, code) = kinds(v6)[0];
        let lab = guarded();
        lab.from(CLIENT, &question(v6));
        let elsewhere = question(v6).error(server, far, kind, code);
        assert_eq!(end(lab.from(SERVER, &elsewhere)), Err(Reason::POLICY), "to a third one");
        let forward = question(v6).error(client, server, kind, code);
        assert_eq!(
            end(lab.from(CLIENT, &forward)),
            Err(Reason::POLICY),
            "in the quoted packet's own direction"
        );
        let other = Build::udp(client, 5001, server, 53).error(server, client, kind, code);
        assert_eq!(end(lab.from(SERVER, &other)), Err(Reason::POLICY), "about another flow");
        let mut cut = question(v6).error(server, client, kind, code);
        cut.payload.pop();
        assert_eq!(end(lab.from(SERVER, &cut)), Err(Reason::POLICY), "the ports are not all quoted");
        // What stands behind the packet's end is not quoted.
        let frame = [cut.from_mac(mac(SERVER)).frame(), vec![0; 8]].concat();
        assert_eq!(end(lab.run_from(SERVER, frame).0), Err(Reason::POLICY), "padding is no quotation");
    }
}

#[test]
fn a_stranger_needs_its_own_policy_to_send_errors() {
    for v6 in [false, true] {
        let client = addr(v6, CLIENT);
        let (kind, code) = kinds(v6)[0];
        let mut lab = guarded();
        lab.from(CLIENT, &question(v6));
        let forged = question(v6).error(addr(v6, FAR), client, kind, code);
        assert_eq!(
            end(lab.from(FAR, &forged)),
            Err(Reason::POLICY),
            "an end's admission is not the stranger's"
        );
        lab.policy(FAR, &allow_all().map(|(key, _)| (0, 0, 0, key.dir(), true)));
        assert_eq!(end(lab.from(FAR, &forged)), peer(CLIENT), "as any router could");
    }
}

#[test]
fn packet_too_big_passes_where_that_is_allowed() {
    for v6 in [false, true] {
        for (kind, code) in kinds(v6) {
            let mut lab = Lab::default();
            lab.policy(CLIENT, &[]);
            lab.policy(SERVER, &[]);
            let error = question(v6).error(addr(v6, SERVER), addr(v6, CLIENT), kind, code);
            let too_big = (kind, code) == kinds(v6)[1];
            let wanted = if too_big { peer(CLIENT) } else { Err(Reason::POLICY) };
            assert_eq!(end(lab.from(SERVER, &error)), wanted, "{v6} {kind} {code}");
            assert_eq!(lab.flows(), 0);
        }
    }
}

#[test]
fn other_messages_are_judged_by_their_type_and_make_no_flow() {
    for (v6, proto, kind) in [(false, 1, 5), (false, 1, 42), (true, 58, 200)] {
        let mut lab = Lab::default();
        lab.only(SERVER, Ingress, &[(0, u16::from(kind), proto)]);
        let packet = Build::icmp(addr(v6, CLIENT), addr(v6, SERVER), kind, 0);
        assert_eq!(end(lab.from(CLIENT, &packet)), peer(SERVER));
        assert_eq!(
            end(lab.from(SERVER, &Build::icmp(addr(v6, SERVER), addr(v6, CLIENT), kind, 0))),
            peer(CLIENT)
        );
        lab.only(SERVER, Ingress, &[(0, 8, proto)]);
        assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::POLICY));
        assert_eq!(lab.flows(), 0);
    }
}

#[test]
fn echo_reply_has_a_port_of_its_own() {
    // Type 0 is looked up as 256; port 0 means all types.
    for (port, wanted) in [(0, peer(CLIENT)), (256, peer(CLIENT)), (8, Err(Reason::POLICY))] {
        let mut lab = Lab::default();
        lab.only(CLIENT, Ingress, &[(0, port, 1)]);
        let pong = Build::pong(addr(false, SERVER), addr(false, CLIENT), 3);
        assert_eq!(end(lab.from(SERVER, &pong)), wanted, "{port}");
    }
}
