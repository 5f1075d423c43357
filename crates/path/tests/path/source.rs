//! Whose packets they are: source checks, multicast, DHCP.

use villus_abi::{Reason, endpoint::FLAG_ACTIVE};
use villus_path::memory::{Build, Transport};

use crate::lab::*;

#[test]
fn an_endpoint_sends_from_its_own_addresses_only() {
    let mut lab = Lab::default();
    lab.world.addrs.insert(ip("10.0.9.9"), villus_abi::Local { slot: u32::from(CLIENT), flags: 0 });
    for (src, dst, wanted) in [
        ("10.0.0.101", "10.0.0.102", peer(SERVER)),
        ("10.0.9.9", "10.0.0.102", peer(SERVER)),
        ("10.0.0.103", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("10.0.0.100", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("192.0.2.9", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("0.0.0.0", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("169.254.1.1", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("127.0.0.1", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("224.0.0.1", "10.0.0.102", Err(Reason::SOURCE_IP)),
        ("fd00::101", "fd00::102", peer(SERVER)),
        ("fd00::103", "fd00::102", Err(Reason::SOURCE_IP)),
        ("::", "fd00::102", Err(Reason::SOURCE_IP)),
        ("fe80::1", "fd00::102", Err(Reason::SOURCE_IP)),
        ("::1", "fd00::102", Err(Reason::SOURCE_IP)),
    ] {
        for packet in [
            Build::tcp(ip(src), 1, ip(dst), 2, SYN),
            Build::udp(ip(src), 1, ip(dst), 2),
            Build::ping(ip(src), ip(dst), 3),
        ] {
            assert_eq!(end(lab.from(CLIENT, &packet)), wanted, "{src} -> {dst}");
        }
    }
}

#[test]
fn a_foreign_mac_is_refused_where_macs_are_checked() {
    let mut lab = Lab::default();
    let packet = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
    let foreign = packet.from_mac(mac(SERVER)).frame();
    assert_eq!(end(lab.run_from(CLIENT, foreign.clone()).0), Err(Reason::SOURCE_MAC));
    lab.world.endpoints.get_mut(&u32::from(CLIENT)).unwrap().flags &= !villus_abi::endpoint::FLAG_CHECK_MAC;
    assert_eq!(end(lab.run_from(CLIENT, foreign).0), peer(SERVER));
}

#[test]
fn nobody_outside_has_an_address_of_this_node() {
    let lab = Lab::default();
    for v6 in [false, true] {
        for id in [HOST, CLIENT, SERVER, FAR] {
            let packet = Build::udp(addr(v6, id), 1, addr(v6, SERVER), 2);
            assert_eq!(end(lab.net(&packet)), Err(Reason::SOURCE_IP), "{v6} {id}");
        }
        assert_eq!(end(lab.net(&Build::udp(outside(v6), 1, addr(v6, SERVER), 2))), PASS);
    }
    // On the way to an endpoint, by an interface that is no endpoint's and no checked uplink.
    for v6 in [false, true] {
        for id in [CLIENT, SERVER, FAR] {
            let packet = Build::udp(addr(v6, id), 1, addr(v6, SERVER), 2);
            assert_eq!(end(lab.to(SERVER, 55, &packet)), Err(Reason::SOURCE_IP), "{v6} {id}");
        }
    }
}

#[test]
fn what_the_host_has_masqueraded_is_the_world_and_not_the_host() {
    use villus_abi::Direction::Ingress;
    for v6 in [false, true] {
        let packet = Build::udp(addr(v6, HOST), 1, addr(v6, SERVER), 2);
        for (identity, made_here, forwarded) in
            [(1, PASS, Err(Reason::POLICY)), (WORLD, Err(Reason::POLICY), PASS)]
        {
            let mut lab = Lab::default();
            lab.only(SERVER, Ingress, &[(identity, 0, 0)]);
            assert_eq!(end(lab.to(SERVER, 0, &packet)), made_here, "{v6} {identity}");
            assert_eq!(end(lab.to(SERVER, 55, &packet)), forwarded, "{v6} {identity}");
        }
    }
}

#[test]
fn link_local_protocols_end_quietly_and_other_multicast_drops() {
    let mld = |src: &str, kind| {
        let packet = Build::icmp(ip(src), ip("ff02::16"), kind, 0).ttl(1);
        packet.extension(0, &[0, 0, 5, 2, 0, 0, 1, 0])
    };
    let igmp = |src: &str| Build {
        options: vec![0x94, 4, 0, 0],
        ..Build::new(ip(src), ip("224.0.0.22"), Transport::Other(2)).ttl(1)
    };
    let udp = |src: &str, dst: &str| Build::udp(ip(src), 5353, ip(dst), 5353);
    let icmp = |src: &str, dst: &str, kind| Build::icmp(ip(src), ip(dst), kind, 0).ttl(255);
    for (name, packet, reason) in [
        ("MLD report", mld("fe80::1", 143), Reason::MLD),
        ("MLD report from nowhere", mld("::", 143), Reason::MLD),
        ("MLD query", mld("fd00::101", 130), Reason::MLD),
        ("foreign MLD", mld("fd00::102", 143), Reason::SOURCE_IP),
        ("IGMP", igmp("10.0.0.101"), Reason::IGMP),
        ("IGMP from nowhere", igmp("0.0.0.0"), Reason::IGMP),
        ("foreign IGMP", igmp("10.0.0.102"), Reason::SOURCE_IP),
        ("router solicitation", icmp("fe80::1", "ff02::2", 133), Reason::ROUTER_SOLICITATION),
        ("router advertisement", icmp("fe80::1", "ff02::1", 134), Reason::FORBIDDEN_ICMP6),
        ("redirect", icmp("fd00::101", "fd00::102", 137), Reason::FORBIDDEN_ICMP6),
        ("mDNS", udp("10.0.0.101", "224.0.0.251"), Reason::MULTICAST),
        ("mDNS v6", udp("fd00::101", "ff02::fb"), Reason::MULTICAST),
        ("mDNS link-local", udp("fe80::1", "ff02::fb"), Reason::SOURCE_IP),
        ("broadcast", udp("10.0.0.101", "255.255.255.255"), Reason::MULTICAST),
    ] {
        let lab = Lab::default();
        assert_eq!(end(lab.from(CLIENT, &packet)), Err(reason), "{name}");
        assert_eq!(lab.world.counted(reason, 1), 1, "{name}: counted once under its own name");
        assert_eq!(lab.kinds(), if reason.is_drop() { "d" } else { "" }, "{name}");
        assert_eq!(lab.flows(), 0, "{name}");
    }
}

#[test]
fn dhcp_is_for_those_who_may() {
    let cases = [
        ("0.0.0.0", "255.255.255.255", 68, 67),
        ("10.0.0.101", "255.255.255.255", 68, 67),
        ("fe80::1", "ff02::1:2", 546, 547),
    ];
    for (src, dst, client, server) in cases {
        let lab = Lab::default();
        let src = if src.starts_with("10.") { addr(false, TAP) } else { ip(src) };
        assert_eq!(end(lab.from(TAP, &Build::udp(src, client, ip(dst), server))), PASS);
        let own = if src == addr(false, TAP) { addr(false, CLIENT) } else { src };
        assert_eq!(end(lab.from(CLIENT, &Build::udp(own, client, ip(dst), server))), Err(Reason::DHCP));
        assert_eq!(lab.flows(), 0);
    }
    let solicitation = Build::icmp(ip("fe80::1"), ip("ff02::2"), 133, 0).ttl(255);
    let lab = Lab::default();
    assert_eq!(end(lab.from(TAP, &solicitation)), PASS, "who may hear routers may ask for them");
    assert_eq!(end(lab.from(CLIENT, &solicitation)), Err(Reason::ROUTER_SOLICITATION));
    // To everybody only: otherwise policy could be walked round with two port numbers.
    let lab = Lab::default();
    for (src, dst, client, server) in [
        ("169.254.1.1", "10.0.0.102", 68, 67),
        ("0.0.0.0", "192.0.2.9", 68, 67),
        ("fe80::1", "fd00::102", 546, 547),
    ] {
        let packet = Build::udp(ip(src), client, ip(dst), server);
        assert_eq!(end(lab.from(TAP, &packet)), Err(Reason::SOURCE_IP), "{src} {dst}");
    }
    let answers = [
        Build::udp(addr(false, HOST), 67, ip("255.255.255.255"), 68),
        Build::udp(ip("fe80::9"), 547, ip("fe80::1"), 546),
    ];
    for answer in answers {
        assert_eq!(end(lab.to(TAP, 0, &answer)), PASS);
        assert_eq!(end(lab.to(CLIENT, 0, &answer)), Err(Reason::DHCP));
    }
}

#[test]
fn the_host_may_do_neighbour_discovery_and_little_else_that_is_multicast() {
    let icmp = |kind| Build::icmp(ip("fe80::9"), ip("ff02::1"), kind, 0).ttl(255);
    for (kind, client, tap) in [
        (135, PASS, PASS),
        (136, PASS, PASS),
        (137, PASS, PASS),
        (134, Err(Reason::FORBIDDEN_ICMP6), PASS),
        (133, Err(Reason::ROUTER_SOLICITATION), Err(Reason::ROUTER_SOLICITATION)),
        (130, Err(Reason::MLD), Err(Reason::MLD)),
        (143, Err(Reason::MLD), Err(Reason::MLD)),
        (128, Err(Reason::MULTICAST), Err(Reason::MULTICAST)),
    ] {
        let lab = Lab::default();
        assert_eq!(end(lab.to(CLIENT, 0, &icmp(kind))), client, "{kind}");
        assert_eq!(end(lab.to(TAP, 0, &icmp(kind))), tap, "{kind}");
    }
    let lab = Lab::default();
    let igmp = Build::new(addr(false, HOST), ip("224.0.0.1"), Transport::Other(2));
    assert_eq!(end(lab.to(CLIENT, 0, &igmp)), Err(Reason::IGMP));
    let broadcast = Build::udp(addr(false, HOST), 9, ip("255.255.255.255"), 9);
    assert_eq!(end(lab.to(CLIENT, 0, &broadcast)), Err(Reason::MULTICAST));
}

#[test]
fn interfaces_and_endpoints_that_are_not_there() {
    let mut lab = Lab::default();
    let packet = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
    assert_eq!(end(lab.run_from(77, packet.frame()).0), Err(Reason::NO_ENDPOINT));
    assert_eq!(end(lab.to(77, 0, &packet)), Err(Reason::NO_ENDPOINT));
    lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().flags &= !FLAG_ACTIVE;
    assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::STALE));
    assert_eq!(end(lab.to(SERVER, 0, &packet)), Err(Reason::NO_ENDPOINT));
    assert_eq!(end(lab.from(SERVER, &packet)), Err(Reason::NO_ENDPOINT));
    assert_eq!(lab.flows(), 0);
}

#[test]
fn before_an_agent_has_configured_it_nothing_passes_an_endpoint() {
    let mut lab = Lab::default();
    lab.world.config.as_mut().unwrap().flags = 0;
    let packet = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
    assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::NOT_READY));
    assert_eq!(end(lab.to(SERVER, 0, &packet)), Err(Reason::NOT_READY));
    assert_eq!(end(lab.net(&packet)), PASS, "the node's own traffic is not ours");
    lab.world.config = None;
    assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::NOT_READY));
    assert_eq!(end(lab.to(SERVER, 0, &packet)), Err(Reason::NOT_READY));
}
