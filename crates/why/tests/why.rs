//! What `villus why` says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::IpAddr;

use villus_abi::{
    Config, Direction, Endpoint, IpcacheValue, Local, PolicyEntry, PolicyKey, Uplink,
    config::{FLAG_DIRECT_V4, FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6},
    endpoint::{FLAG_ACTIVE, FLAG_AUDIT_INGRESS, FLAG_DELIVER_PEER, MASK_ALL},
    ipcache::{FLAG_PENDING, FLAG_ROUTED},
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO},
};
use villus_path::memory::{Memory, word4, words6};
use villus_why::{Derivation, Error, Fate, Kind, Leaving, Masquerader, Party, Question, Rule, why};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(id: u16, identity: u32, flags: u16) -> Endpoint {
    Endpoint {
        id,
        flags: FLAG_ACTIVE | flags,
        identity,
        ifindex: 100 + u32::from(id),
        mtu: 1500,
        mask: [MASK_ALL; 2],
        mac: [2, 0, 0, 0, 0, id as u8],
        node_mac: [2, 0, 0, 0, 1, id as u8],
        policy: u32::from(id),
        ..Endpoint::default()
    }
}

/// A client (endpoint 1), a server (2) that takes it on port 80, an intruder (3), a server behind the stack (4).
fn world() -> Memory {
    let mut world = Memory::new(Config::default());
    let all = |direction| (PolicyKey::new(0, 0, 0, direction), PolicyEntry::ALLOW);
    for (id, identity, flags) in [
        (1, 1001, FLAG_DELIVER_PEER),
        (2, 1002, FLAG_DELIVER_PEER),
        (3, 1003, FLAG_DELIVER_PEER),
        (4, 1004, 0),
    ] {
        let addresses = [ip(&format!("10.0.0.{id}")), ip(&format!("fd00::{id}"))];
        world.add_endpoint(endpoint(id, identity, flags), &addresses);
        world.set_policy(u32::from(id), [all(Direction::Ingress), all(Direction::Egress)]);
    }
    let port80 = (PolicyKey::new(1001, 80, 6, Direction::Ingress), PolicyEntry::ALLOW);
    let world9 = (PolicyKey::new(9, 443, 6, Direction::Ingress), PolicyEntry::ALLOW);
    world.set_policy(2, [port80, world9, all(Direction::Egress)]);
    world.addrs.insert(ip("10.0.0.254"), Local { slot: 0, flags: 1 });
    let row = |identity, flags| IpcacheValue { identity, flags, ..IpcacheValue::default() };
    world.ipcache.insert_prefix(ip("0.0.0.0"), 0, row(9, 0));
    world.ipcache.insert_prefix(ip("10.9.0.0"), 16, row(2, FLAG_PENDING));
    world
}

fn question(src: &str, dst: &str, port: u16, proto: u8) -> Question {
    Question { src: ip(src).into(), dst: ip(dst).into(), port, proto }
}

#[test]
fn each_way_ends_as_the_path_ends_it() {
    let world = world();
    // (source, destination, port, protocol, fate, reason, hooks)
    for (src, dst, port, proto, fate, reason, hooks) in [
        ("10.0.0.1", "10.0.0.2", 80, 6, Fate::HandedOver, 0, 1),
        ("fd00::1", "fd00::2", 80, 6, Fate::HandedOver, 0, 1),
        ("10.0.0.1", "10.0.0.2", 81, 6, Fate::Dropped, 133, 1),
        ("10.0.0.1", "10.0.0.2", 80, 17, Fate::Dropped, 133, 1),
        ("10.0.0.3", "10.0.0.2", 80, 6, Fate::Dropped, 133, 1),
        ("10.0.0.1", "10.0.0.4", 80, 6, Fate::DeliveredByStack, 0, 2),
        ("10.0.0.1", "10.0.0.254", 22, 6, Fate::DeliveredToHost, 0, 1),
        ("10.0.0.1", "1.1.1.1", 53, 17, Fate::LeavesByStack, 0, 1),
        ("10.0.0.254", "10.0.0.4", 80, 6, Fate::DeliveredByStack, 0, 1),
        ("10.0.0.254", "10.0.0.2", 80, 6, Fate::Dropped, 133, 1),
        ("1.1.1.1", "10.0.0.2", 443, 6, Fate::DeliveredByStack, 0, 2),
        ("1.1.1.1", "10.0.0.2", 80, 6, Fate::Dropped, 133, 2),
        ("10.9.1.1", "10.0.0.2", 80, 6, Fate::Dropped, 230, 2),
        ("10.0.0.1", "10.0.0.3", 8, 1, Fate::HandedOver, 0, 1),
        ("10.0.0.1", "10.0.0.3", 1, 47, Fate::Dropped, 137, 1),
    ] {
        let answer = why(&world, &question(src, dst, port, proto)).unwrap();
        let seen = (answer.fate, answer.reason, answer.passes.len());
        assert_eq!(seen, (fate, reason, hooks), "{src} {dst} {port} {proto}\n{answer}");
        assert_eq!(answer.allowed, reason == 0);
        assert!(world.flows().is_empty(), "{src} {dst}: flows stay as they were");
    }
}

#[test]
fn a_denial_names_endpoint_direction_identity_and_keys() {
    let answer = why(&world(), &question("10.0.0.3", "10.0.0.2", 80, 6)).unwrap();
    let asked: Vec<_> = answer.passes[0]
        .judgements
        .iter()
        .map(|j| (j.endpoint, j.direction, j.identity, j.port, j.proto, j.allowed))
        .collect();
    assert_eq!(asked, [(3, "Egress", 1002, 80, 6, true), (2, "Ingress", 1003, 80, 6, false)]);
    let lookups = &answer.passes[0].judgements[1].lookups;
    let exact = lookups.iter().find(|lookup| lookup.hex == "eb 03 00 00 00 50 06 00").unwrap();
    assert_eq!(exact.entry, None);
    let text = answer.lines(&|identity| (identity == 1003).then(|| "app=intruder".to_owned())).join("\n");
    for wanted in [
        "10.0.0.3 -> 10.0.0.2 80/TCP",
        "from 10.0.0.3: endpoint 3, identity 1003 [app=intruder] (the endpoint's record)",
        "sent by endpoint 3, the first packet of a flow:",
        "egress policy of endpoint 3: to identity 1002, 80/TCP",
        "identity any, any port and protocol: allow  <- decides",
        "ingress policy of endpoint 2: from identity 1003 [app=intruder], 80/TCP",
        "eb 03 00 00 00 50 06 00  identity 1003, 80/TCP: -",
        "dropped: Policy denied (133), by the ingress policy of endpoint 2",
    ] {
        assert!(text.contains(wanted), "{wanted}\nin\n{text}");
    }
}

#[test]
fn the_entry_that_decides_is_the_one_that_counts() {
    let mut world = world();
    let deny = PolicyKey::block(0, 64, 4, 6, Direction::Ingress);
    let allow = PolicyKey::new(1001, 0, 6, Direction::Ingress);
    for (entries, key) in [
        (vec![(deny, PolicyEntry::DENY), (allow, PolicyEntry::ALLOW)], deny),
        (vec![(deny, PolicyEntry::ALLOW), (allow, PolicyEntry::ALLOW)], deny),
        (vec![(allow, PolicyEntry::ALLOW)], allow),
    ] {
        world.set_policy(2, entries);
        let answer = why(&world, &question("10.0.0.1", "10.0.0.2", 70, 6)).unwrap();
        let counted = world.policy_entries(2).unwrap();
        let counted: Vec<_> = counted.iter().filter(|(_, entry)| entry.packets == 1).collect();
        assert_eq!(counted.iter().map(|(key, _)| **key).collect::<Vec<_>>(), [key]);
        let decided: Vec<_> =
            answer.passes[0].judgements[1].lookups.iter().filter(|lookup| lookup.decided).collect();
        assert_eq!(decided.len(), 1);
        assert_eq!((decided[0].identity, decided[0].proto), (key.identity, key.proto));
        assert_eq!(decided[0].ports, if key.dport == 0 { 0 } else { 16 });
    }
}

#[test]
fn sides_say_where_their_identity_comes_from() {
    let world = world();
    let answer = why(&world, &question("10.9.1.1", "10.0.0.4", 80, 6)).unwrap();
    assert_eq!((answer.src.kind, answer.src.identity, answer.src.pending), (Kind::Outside, 2, true));
    assert_eq!(answer.src.derived, Derivation::Ipcache { prefix: "10.9.0.0/16".to_owned() });
    let answer = why(&world, &question("fe::1", "fd00::4", 80, 6)).unwrap();
    assert_eq!(answer.src.derived, Derivation::NoPrefix);
    assert_eq!(answer.fate, Fate::DeliveredByStack);
    assert_eq!(answer.passes[1].judgements[0].direction, "Ingress");
}

#[test]
fn endpoints_can_be_named_by_their_id() {
    let mut world = world();
    let ask = |world: &Memory, src, dst| why(world, &Question { src, dst, port: 80, proto: 6 });
    let answer = ask(&world, Party::Endpoint(1), Party::Endpoint(2)).unwrap();
    assert_eq!((answer.src.address, answer.dst.address), (ip("10.0.0.1"), ip("10.0.0.2")));
    let answer = ask(&world, ip("fd00::1").into(), Party::Endpoint(2)).unwrap();
    assert_eq!(answer.dst.address, ip("fd00::2"));
    world.add_endpoint(endpoint(5, 1005, 0), &[ip("fd00::5")]);
    let answer = ask(&world, Party::Endpoint(1), Party::Endpoint(5)).unwrap();
    assert_eq!((answer.src.address, answer.dst.address), (ip("fd00::1"), ip("fd00::5")));
    assert_eq!(ask(&world, ip("1.1.1.1").into(), Party::Endpoint(5)), Err(Error::NoAddress(5)));
    assert_eq!(ask(&world, Party::Endpoint(9), ip("1.1.1.1").into()), Err(Error::NoEndpoint(9)));
    let strangers = Error::NotOurs { src: ip("1.1.1.1"), dst: ip("2.2.2.2") };
    assert_eq!(ask(&world, ip("1.1.1.1").into(), ip("2.2.2.2").into()), Err(strangers));
    let mixed = Error::Families { src: ip("1.1.1.1"), dst: ip("fd00::1") };
    assert_eq!(ask(&world, ip("1.1.1.1").into(), ip("fd00::1").into()), Err(mixed));
}

/// The same node, with two uplinks of which one has no IPv6 address, and masquerading as `flags` say.
fn masquerading(flags: u32) -> Memory {
    let mut world = world();
    world.config.as_mut().unwrap().flags |= flags;
    let v4 = |last| word4([192, 0, 2, last].into());
    let lent = Uplink { ipv4: v4(1), ipv6: words6("2001:db8::1".parse().unwrap()), reserved: 0 };
    world.uplinks.insert(7, lent);
    world.uplinks.insert(8, Uplink { ipv4: v4(2), ..lent });
    let both = MASQUERADE_FROM | MASQUERADE_NOT_TO;
    world.masquerade = vec![
        (ip("10.0.0.0"), 24, both),
        (ip("fd00::"), 64, both),
        (ip("198.51.100.0"), 24, MASQUERADE_NOT_TO),
    ];
    let node = IpcacheValue { identity: 6, ..IpcacheValue::default() };
    world.ipcache.insert_prefix(ip("203.0.113.5"), 32, node);
    let routed = IpcacheValue { identity: 1005, flags: FLAG_ROUTED, ..IpcacheValue::default() };
    world.ipcache.insert_prefix(ip("203.0.113.77"), 32, routed);
    world.add_endpoint(endpoint(5, 1005, 0), &[ip("10.7.0.5")]);
    let all = |direction| (PolicyKey::new(0, 0, 0, direction), PolicyEntry::ALLOW);
    world.set_policy(5, [all(Direction::Ingress), all(Direction::Egress)]);
    world
}

#[test]
fn what_leaves_says_with_whose_address() {
    use Masquerader::{Bpf, Nftables, Nobody};
    let world = masquerading(FLAG_MASQUERADE_V4 | FLAG_MASQUERADE_V6);
    let both = vec![ip("192.0.2.1"), ip("192.0.2.2")];
    for (src, dst, rule, prefix, lent) in [
        ("10.0.0.1", "1.1.1.1", Rule::Masquerade, None, both),
        ("fd00::1", "2001:db8:9::1", Rule::Masquerade, None, vec![ip("2001:db8::1")]),
        ("10.0.0.1", "198.51.100.9", Rule::Prefix, Some("198.51.100.0/24"), vec![]),
        ("10.0.0.1", "10.0.0.99", Rule::Prefix, Some("10.0.0.0/24"), vec![]),
        ("10.0.0.1", "203.0.113.5", Rule::RemoteNode, None, vec![]),
        ("10.0.0.1", "203.0.113.77", Rule::OwnAddress, None, vec![]),
        ("10.7.0.5", "1.1.1.1", Rule::OwnAddress, None, vec![]),
    ] {
        let answer = why(&world, &question(src, dst, 443, 6)).unwrap();
        let leaving = answer.leaving.clone().unwrap_or_else(|| panic!("{answer}"));
        let wanted = Leaving { by: Bpf, rule, prefix: prefix.map(str::to_owned), lent };
        assert_eq!(leaving, wanted, "{src} {dst}\n{answer}");
        assert!(world.mappings().is_empty() && world.flows().is_empty(), "all is as it was");
        let told = answer.reply(&|_| None).leaving.unwrap();
        assert_eq!((told.by.as_str(), told.rule.as_str()), ("bpf", rule.name()));
    }
    let answer = why(&world, &question("10.0.0.1", "1.1.1.1", 443, 6)).unwrap();
    let line = "leaves the node with the node's address 192.0.2.1 or 192.0.2.2, by eBPF";
    assert!(answer.to_string().contains(line), "{answer}");
    // Who stays, comes in, or is the node itself leaves with nothing.
    for (src, dst) in [("10.0.0.1", "10.0.0.4"), ("10.0.0.1", "10.0.0.254"), ("1.1.1.1", "10.0.0.4")] {
        assert_eq!(why(&world, &question(src, dst, 80, 6)).unwrap().leaving, None, "{src} {dst}");
    }
    for (flags, by, rule) in [
        (0, Nftables, Rule::NotKnown),
        (FLAG_DIRECT_V4, Nobody, Rule::OwnAddress),
        (FLAG_MASQUERADE_V6, Nftables, Rule::NotKnown),
    ] {
        let answer = why(&masquerading(flags), &question("10.0.0.1", "1.1.1.1", 53, 17)).unwrap();
        let leaving = answer.leaving.unwrap();
        assert_eq!((leaving.by, leaving.rule), (by, rule), "{flags}");
    }
}

#[test]
fn what_cannot_be_lent_an_address_is_said_to_drop() {
    let mut world = masquerading(FLAG_MASQUERADE_V4);
    world.uplinks.values_mut().for_each(|uplink| uplink.ipv4 = 0);
    let answer = why(&world, &question("10.0.0.1", "1.1.1.1", 53, 17)).unwrap();
    assert_eq!((answer.fate, answer.reason, &answer.leaving), (Fate::Dropped, 167, &None), "{answer}");
    assert!(
        answer.to_string().contains("cannot be masqueraded: No mapping for NAT masquerade (167)"),
        "{answer}"
    );
}

#[test]
fn audit_says_that_a_denial_passed() {
    let mut world = world();
    world.endpoints.get_mut(&2).unwrap().flags |= FLAG_AUDIT_INGRESS;
    let answer = why(&world, &question("10.0.0.3", "10.0.0.2", 80, 6)).unwrap();
    assert!(answer.allowed && answer.passes[0].audited, "{answer}");
    assert!(answer.to_string().contains("audit mode lets it pass"));
}

#[test]
fn the_node_is_a_side_like_others_while_a_policy_selects_it() {
    let mut world = world();
    let node = "10.0.0.254";
    let ssh = question("1.1.1.1", node, 22, 6);
    assert!(matches!(why(&world, &ssh), Err(Error::NotOurs { .. })));
    world.config.as_mut().unwrap().flags |= villus_abi::config::FLAG_HOST_POLICY;
    let host = Endpoint { flags: FLAG_ACTIVE, identity: 1, mask: [MASK_ALL; 2], ..Endpoint::default() };
    world.endpoints.insert(0, host);
    world.set_policy(
        0,
        [
            (PolicyKey::new(0, 22, 6, Direction::Ingress), PolicyEntry::ALLOW),
            (PolicyKey::new(0, 53, 17, Direction::Egress), PolicyEntry::ALLOW),
        ],
    );
    for (src, dst, port, proto, fate, reason) in [
        ("1.1.1.1", node, 22, 6, Fate::DeliveredToHost, 0),
        ("1.1.1.1", node, 23, 6, Fate::Dropped, 133),
        (node, "1.1.1.1", 53, 17, Fate::LeavesByStack, 0),
        (node, "1.1.1.1", 80, 6, Fate::Dropped, 133),
        ("10.0.0.1", node, 22, 6, Fate::DeliveredToHost, 0),
        ("10.0.0.1", node, 23, 6, Fate::Dropped, 133),
        (node, "10.0.0.1", 80, 6, Fate::Dropped, 133),
    ] {
        let answer = why(&world, &question(src, dst, port, proto)).unwrap();
        assert_eq!((answer.fate, answer.reason), (fate, reason), "{src} {dst} {port}\n{answer}");
    }
    let text = why(&world, &question("1.1.1.1", node, 23, 6)).unwrap().to_string();
    assert!(text.ends_with("by the ingress policy of this node"), "{text}");
    assert!(matches!(why(&world, &question(node, node, 22, 6)), Err(Error::NotOurs { .. })));
    let from_the_node = Question { src: Party::Endpoint(0), ..question(node, "1.1.1.1", 53, 17) };
    assert!(why(&world, &from_the_node).unwrap().allowed);
}
