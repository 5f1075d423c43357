//! ARP and neighbour discovery.

use std::net::{IpAddr, Ipv6Addr};

use villus_abi::Reason;
use villus_path::memory::{Build, Frame, Transport, arp, checksum};

use crate::lab::*;

fn v4(id: u16) -> [u8; 4] {
    match addr(false, id) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!(),
    }
}

fn v6(id: u16) -> Ipv6Addr {
    match addr(true, id) {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!(),
    }
}

#[test]
fn arp_for_the_gateway_is_answered() {
    let lab = Lab::default();
    let asked = arp(1, (mac(CLIENT), v4(CLIENT)), ([0; 6], v4(HOST)));
    // Padded to the least length of Ethernet or not.
    for pad in [0, 18] {
        let (outcome, frame) = lab.run_from(CLIENT, [&asked[..], &vec![0; pad]].concat());
        assert_eq!(end(outcome), device(CLIENT));
        let answer = arp(2, (node_mac(CLIENT), v4(HOST)), (mac(CLIENT), v4(CLIENT)));
        assert_eq!(frame.bytes[..42], answer);
    }
    assert_eq!(lab.world.counted(Reason::ANSWERED, 1), 2);
    assert_eq!(lab.kinds(), "");
}

#[test]
fn other_arp_is_judged_by_whose_addresses_it_speaks_of() {
    let link_local = [169, 254, 3, 4];
    let me = (mac(CLIENT), v4(CLIENT));
    for (name, operation, sender, target, wanted) in [
        ("answer", 2, me, v4(HOST), PASS),
        ("foreign answer", 2, (mac(CLIENT), v4(SERVER)), v4(HOST), Err(Reason::ARP_SPOOF)),
        ("foreign question", 1, (mac(CLIENT), v4(SERVER)), v4(HOST), Err(Reason::ARP_SPOOF)),
        ("the gateway's own address", 1, (mac(CLIENT), v4(HOST)), v4(HOST), Err(Reason::ARP_SPOOF)),
        ("probe for its own", 1, (mac(CLIENT), [0; 4]), v4(CLIENT), Err(Reason::ANNOUNCED)),
        ("announcement", 1, me, v4(CLIENT), Err(Reason::ANNOUNCED)),
        ("probe for a link-local one", 1, (mac(CLIENT), [0; 4]), link_local, Err(Reason::ANNOUNCED)),
        ("probe for the gateway's", 1, (mac(CLIENT), [0; 4]), v4(HOST), Err(Reason::ARP_SPOOF)),
        ("for another endpoint", 1, me, v4(SERVER), Err(Reason::UNKNOWN_TARGET)),
        ("for anybody", 1, me, [192, 0, 2, 1], Err(Reason::UNKNOWN_TARGET)),
        ("from a link-local one", 1, (mac(CLIENT), link_local), v4(HOST), device(CLIENT)),
        ("reverse ARP", 3, me, v4(HOST), Err(Reason::INVALID)),
    ] {
        let frame = arp(operation, sender, ([0; 6], target));
        let (outcome, _) = Lab::default().run_from(CLIENT, frame);
        assert_eq!(end(outcome), wanted, "{name}");
    }
    let whole = arp(1, me, ([0; 6], v4(HOST)));
    for len in 14..whole.len() {
        assert_eq!(end(Lab::default().run_from(CLIENT, whole[..len].to_vec()).0), Err(Reason::INVALID));
    }
    for at in 14..21 {
        let mut odd = whole.clone();
        odd[at] ^= 0x80;
        assert_eq!(end(Lab::default().run_from(CLIENT, odd).0), Err(Reason::INVALID), "byte {at}");
    }
}

#[test]
fn arp_of_the_host_passes_to_the_endpoint() {
    let lab = Lab::default();
    let asked = arp(1, (node_mac(CLIENT), v4(HOST)), ([0; 6], v4(CLIENT)));
    let mut frame = Frame::new(asked, ifindex(CLIENT)).via(0);
    let outcome = villus_path::to_endpoint(&lab.world, &mut frame, &mut villus_path::Work::default());
    assert_eq!((end(outcome), lab.world.counted(Reason::FORWARDED, 0)), (PASS, 1));
}

/// The checksum over the pseudo-header and the message of an ICMPv6 packet without extension headers.
fn icmp6_sum(frame: &[u8]) -> u16 {
    let len = u32::try_from(frame.len() - 54).unwrap();
    let pseudo = [&frame[22..54], &len.to_be_bytes(), &[0, 0, 0, 58]].concat();
    checksum(&[&pseudo, &frame[54..]].concat())
}

#[test]
fn solicitations_for_the_gateway_are_answered_whatever_they_look_like() {
    let lab = Lab::default();
    let own = v6(CLIENT);
    let link_local: Ipv6Addr = "fe80::77".parse().unwrap();
    let usual = Build::solicitation(own, v6(HOST), mac(CLIENT));
    let bare = Build { payload: v6(HOST).octets().to_vec(), ..usual.clone() };
    let nonce = Build { payload: [&usual.payload[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat(), ..usual.clone() };
    let unicast = Build { dst: addr(true, HOST), ..bare.clone() };
    let extended = usual.clone().extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]);
    for (name, packet, asker) in [
        ("with its sender's MAC", usual.clone(), own),
        ("from a link-local address", Build::solicitation(link_local, v6(HOST), mac(CLIENT)), link_local),
        ("without options", bare, own),
        ("with a nonce", nonce, own),
        ("to the gateway alone", unicast, own),
        ("behind an extension header", extended, own),
    ] {
        let (outcome, frame) = lab.run_from(CLIENT, packet.from_mac(mac(CLIENT)).frame());
        assert_eq!(end(outcome), device(CLIENT), "{name}");
        let mut answer = Build::advertisement(v6(HOST), asker, v6(HOST), node_mac(CLIENT));
        answer.transport = Transport::Icmp { kind: 136, code: 0, rest: [0xe0, 0, 0, 0] };
        (answer.smac, answer.dmac) = (node_mac(CLIENT), mac(CLIENT));
        assert_eq!(frame.bytes, answer.frame(), "{name}");
        assert_eq!(icmp6_sum(&frame.bytes), 0, "{name}");
    }
    assert_eq!(lab.flows(), 0);
}

#[test]
fn the_advertisements_checksum_is_right_for_all_addresses() {
    let mut lab = Lab::default();
    for seed in 0_u32..2000 {
        let mixed = |salt: u32| {
            let word = |n: u32| (seed.wrapping_mul(2_654_435_761) ^ salt).wrapping_mul(n).to_be_bytes();
            Ipv6Addr::from(
                [&word(3)[..], &word(5), &word(7), &word(11)].concat().as_array::<16>().copied().unwrap(),
            )
        };
        let (own, gateway) = (mixed(seed), mixed(0xffff));
        if own == gateway || own.is_multicast() || own.is_unspecified() {
            continue;
        }
        lab.world.addrs.insert(own.into(), villus_abi::Local { slot: u32::from(CLIENT), flags: 0 });
        lab.world.addrs.insert(gateway.into(), villus_abi::Local { slot: 0, flags: 1 });
        let packet = Build::solicitation(own, gateway, mac(CLIENT)).from_mac(mac(CLIENT));
        let (outcome, frame) = lab.run_from(CLIENT, packet.frame());
        assert_eq!(end(outcome), device(CLIENT), "{own} {gateway}");
        assert_eq!(icmp6_sum(&frame.bytes), 0, "{own} {gateway}");
    }
}

#[test]
fn other_discovery_is_judged_by_whose_addresses_it_speaks_of() {
    let ll: Ipv6Addr = "fe80::77".parse().unwrap();
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let none = Ipv6Addr::UNSPECIFIED;
    let (own, other) = (v6(CLIENT), v6(SERVER));
    let ask = |src, target| Build::solicitation(src, target, mac(CLIENT));
    let tell = |src, dst, target| Build::advertisement(src, dst, target, mac(CLIENT));
    for (name, packet, wanted) in [
        ("duplicate check of its own", ask(none, own), Err(Reason::ANNOUNCED)),
        ("duplicate check of a link-local one", ask(none, ll), Err(Reason::ANNOUNCED)),
        ("duplicate check of another's", ask(none, other), Err(Reason::ARP_SPOOF)),
        ("duplicate check of the gateway's", ask(none, v6(HOST)), Err(Reason::ARP_SPOOF)),
        ("its own", ask(own, own), Err(Reason::ANNOUNCED)),
        ("from another's address", ask(other, v6(HOST)), Err(Reason::SOURCE_IP)),
        ("for another endpoint", ask(own, other), Err(Reason::UNKNOWN_TARGET)),
        ("for the router's link-local one", ask(ll, router), PASS),
        ("an answer to the host", tell(own, v6(HOST), own), PASS),
        ("an answer to the host's link-local one", tell(ll, router, ll), PASS),
        ("an announcement", tell(own, all, own), Err(Reason::ANNOUNCED)),
        ("another's address", tell(own, v6(HOST), other), Err(Reason::ARP_SPOOF)),
        ("the gateway's address", tell(own, all, v6(HOST)), Err(Reason::ARP_SPOOF)),
        ("from beyond the link", ask(own, v6(HOST)).ttl(254), Err(Reason::INVALID)),
        // Policy has no say in these, so they stay on the link.
        ("an answer to another endpoint", tell(own, other, own), Err(Reason::UNKNOWN_TARGET)),
        (
            "an answer to the world",
            tell(own, "2001:db8::9".parse().unwrap(), own),
            Err(Reason::UNKNOWN_TARGET),
        ),
        (
            "a question to the world",
            Build { dst: outside(true), ..ask(own, router) },
            Err(Reason::UNKNOWN_TARGET),
        ),
    ] {
        assert_eq!(end(Lab::default().from(CLIENT, &packet)), wanted, "{name}");
    }
    let short = Build { payload: vec![0; 12], ..ask(own, v6(HOST)) };
    assert_eq!(end(Lab::default().from(CLIENT, &short)), Err(Reason::CT_INVALID));
    let coded =
        Build { transport: Transport::Icmp { kind: 135, code: 1, rest: [0; 4] }, ..ask(own, v6(HOST)) };
    assert_eq!(end(Lab::default().from(CLIENT, &coded)), Err(Reason::INVALID));
}
