//! Fragments find the ports of their datagram.

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
};
use villus_path::memory::Build;

use crate::lab::*;

/// A datagram of 80 bytes in two fragments.
fn parts(v6: bool, transport: fn(std::net::IpAddr, std::net::IpAddr) -> Build) -> [Build; 2] {
    let whole = transport(addr(v6, CLIENT), addr(v6, SERVER)).payload(80);
    [whole.clone().part(0, 40, true), whole.part(40, 200, false)]
}

const TRANSPORTS: [fn(std::net::IpAddr, std::net::IpAddr) -> Build; 4] = [
    |src, dst| Build::udp(src, 5000, dst, 53),
    |src, dst| Build::tcp(src, 5000, dst, 53, SYN),
    |src, dst| Build::sctp(src, 5000, dst, 53),
    |src, dst| Build::ping(src, dst, 77),
];

#[test]
fn later_fragments_are_of_the_flow_of_the_first() {
    for v6 in [false, true] {
        for transport in TRANSPORTS {
            let mut lab = Lab::default();
            let echo = if v6 { (0, 128, 58) } else { (0, 8, 1) };
            lab.only(SERVER, Ingress, &[(0, 53, 17), (0, 53, 6), (0, 53, 132), echo]);
            let [first, later] = parts(v6, transport);
            assert_eq!(end(lab.from(CLIENT, &later)), Err(Reason::FRAGMENT_NOT_FOUND), "{later:?}");
            assert_eq!(end(lab.from(CLIENT, &first)), peer(SERVER), "{first:?}");
            assert_eq!(end(lab.from(CLIENT, &later)), peer(SERVER), "{later:?}");
            assert_eq!(lab.flow().fwd_packets, 2);
            assert_eq!(lab.world.counted(Reason::FRAGMENTED, 1), 3);
            let other = Build { id: later.id + 1, ..later.clone() };
            assert_eq!(end(lab.from(CLIENT, &other)), Err(Reason::FRAGMENT_NOT_FOUND));
            lab.world.pass(31);
            assert_eq!(end(lab.from(CLIENT, &later)), Err(Reason::FRAGMENT_NOT_FOUND), "forgotten");
        }
    }
}

#[test]
fn fragments_of_what_is_denied_are_denied() {
    for v6 in [false, true] {
        let mut lab = Lab::default();
        lab.only(CLIENT, Egress, &[(0, 54, 17)]);
        for part in parts(v6, TRANSPORTS[0]) {
            assert_eq!(end(lab.from(CLIENT, &part)), Err(Reason::POLICY));
        }
        assert_eq!(lab.flows(), 0);
    }
}

#[test]
fn nobody_speaks_for_the_datagrams_of_another() {
    for v6 in [false, true] {
        let lab = Lab::default();
        let [first, later] = parts(v6, TRANSPORTS[0]);
        assert_eq!(end(lab.from(TAP, &first)), Err(Reason::SOURCE_IP));
        assert!(lab.world.fragments().is_empty(), "the spoofed fragment is not remembered");
        assert_eq!(end(lab.from(CLIENT, &later)), Err(Reason::FRAGMENT_NOT_FOUND));
        assert_eq!(end(lab.net(&first)), Err(Reason::SOURCE_IP));
        assert!(lab.world.fragments().is_empty());
    }
}

#[test]
fn a_reply_in_fragments_is_a_reply() {
    for v6 in [false, true] {
        let (client, server) = (addr(v6, CLIENT), addr(v6, SERVER));
        for (asks, answers) in [
            (Build::udp(client, 5000, server, 53), Build::udp(server, 53, client, 5000)),
            (Build::ping(client, server, 77), Build::pong(server, client, 77)),
            (Build::ping(client, server, 0), Build::pong(server, client, 0)),
        ] {
            let mut lab = Lab::default();
            lab.only(CLIENT, Ingress, &[]);
            lab.from(CLIENT, &asks);
            let answers = answers.payload(80);
            assert_eq!(
                end(lab.from(SERVER, &answers.clone().part(0, 40, true))),
                peer(CLIENT),
                "{answers:?}"
            );
            assert_eq!(end(lab.from(SERVER, &answers.part(40, 99, false))), peer(CLIENT), "{asks:?}");
            assert_eq!(lab.flow().rev_packets, 2);
        }
    }
}

#[test]
fn a_first_fragment_without_its_header_is_malformed() {
    for v6 in [false, true] {
        for (transport, len) in TRANSPORTS.into_iter().zip([0, 16, 8, 0]) {
            let whole = transport(addr(v6, CLIENT), addr(v6, SERVER)).payload(80);
            let lab = Lab::default();
            assert_eq!(end(lab.from(CLIENT, &whole.part(0, len, true))), Err(Reason::CT_INVALID));
            assert!(lab.world.fragments().is_empty());
        }
    }
}
