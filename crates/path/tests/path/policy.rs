//! Which keys are looked up, which decides, and what pending identities and audit make of it.

use villus_abi::{
    Config,
    Direction::{self, Egress, Ingress},
    PolicyEntry, PolicyKey, Reason, config,
    endpoint::{
        FLAG_AUDIT_DEFAULT_EGRESS, FLAG_AUDIT_DEFAULT_INGRESS, FLAG_AUDIT_EGRESS, FLAG_AUDIT_INGRESS,
        FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS, MASK_PROTO,
    },
    event::{FLAG_AUDITED, matched},
    flow::FLOW_AUDITED,
};
use villus_path::memory::{Build, Memory};

use crate::lab::*;

const A: PolicyEntry = PolicyEntry::ALLOW;
const D: PolicyEntry = PolicyEntry::DENY;
/// Denies as audit.
const U: PolicyEntry = PolicyEntry::AUDIT;
const ID: u32 = identity(CLIENT);

fn key(identity: u32, port: u16, proto: u8) -> PolicyKey {
    PolicyKey::new(identity, port, proto, Ingress)
}

fn block(identity: u32, port: u16, log2: u8) -> PolicyKey {
    PolicyKey::block(identity, port, log2, 6, Ingress)
}

/// The client sends to port 1234/TCP of the server, whose ingress policy is this.
fn ask(entries: &[(PolicyKey, PolicyEntry)], mask: u32) -> (Reason, u8, Vec<PolicyKey>) {
    let mut lab = Lab::default();
    lab.world.set_policy(u32::from(SERVER), entries.iter().copied());
    lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().mask = [mask, 0];
    let outcome = lab.from(CLIENT, &Build::tcp(addr(false, CLIENT), 9, addr(false, SERVER), 1234, SYN));
    let reason = end(outcome).err().unwrap_or_default();
    let verdict = lab.events().into_iter().rfind(|event| event.kind == 5).unwrap();
    assert_eq!(verdict.reason, reason.0);
    let entries = lab.world.policy_entries(u32::from(SERVER)).unwrap();
    let counted = entries.iter().filter(|(_, entry)| entry.packets != 0);
    (reason, verdict.matched, counted.map(|(key, _)| *key).collect())
}

#[test]
fn each_shape_matches_and_counts() {
    for (entry, shape) in [
        (key(ID, 1234, 6), matched::L3_L4),
        (key(0, 1234, 6), matched::L4),
        (block(ID, 1232, 3), matched::L3_L4),
        (block(0, 1024, 10), matched::L4),
        (block(0, 0, 15), matched::L4),
        (block(0, 1234, 1), matched::L4),
        (key(ID, 0, 6), matched::L3_PROTO),
        (key(0, 0, 6), matched::PROTO),
        (key(ID, 0, 0), matched::L3),
        (key(0, 0, 0), matched::ALL),
    ] {
        assert_eq!(ask(&[(entry, A)], 0xffff), (Reason::FORWARDED, shape, vec![entry]), "{entry:?}");
        assert_eq!(ask(&[(entry, D)], 0xffff), (Reason::POLICY_DENY, shape, vec![entry]), "{entry:?}");
        let classic = entry.mask_bit() == 0;
        let unasked = (Reason::POLICY, matched::NONE, vec![]);
        let wanted = if classic { (Reason::FORWARDED, shape, vec![entry]) } else { unasked };
        assert_eq!(
            ask(&[(entry, A)], 0),
            wanted,
            "{entry:?}: without a mask only classic shapes are looked up"
        );
        assert_eq!(
            ask(&[(entry, A)], entry.mask_bit()).0,
            Reason::FORWARDED,
            "{entry:?}: its own bit is enough"
        );
    }
    for entry in [
        key(ID + 1, 1234, 6),
        key(0, 1235, 6),
        key(0, 1234, 17),
        key(0, 0, 17),
        block(0, 1240, 3),
        key(ID + 1, 0, 0),
    ] {
        assert_eq!(ask(&[(entry, A), (entry, D)], 0xffff).0, Reason::POLICY, "{entry:?}");
    }
    assert_eq!(ask(&[(PolicyKey::new(0, 0, 0, Egress), A)], 0xffff).0, Reason::POLICY, "another direction");
}

#[test]
fn the_most_specific_allow_counts_and_any_deny_wins() {
    let order = [
        key(ID, 1234, 6),
        key(0, 1234, 6),
        block(ID, 1234, 1),
        block(ID, 1232, 3),
        block(0, 1232, 2),
        block(0, 1024, 10),
        key(ID, 0, 6),
        key(0, 0, 6),
        key(ID, 0, 0),
        key(0, 0, 0),
    ];
    for first in 0..order.len() {
        let allows: Vec<_> = order[first..].iter().map(|key| (*key, A)).collect();
        assert_eq!(ask(&allows, 0xffff).2, [order[first]]);
        let denies: Vec<_> = order[first..].iter().map(|key| (*key, D)).collect();
        assert_eq!(ask(&denies, 0xffff).2, [order[first]]);
        for denied in 0..order.len() {
            let mixed: Vec<_> =
                order.iter().enumerate().map(|(at, key)| (*key, if at == denied { D } else { A })).collect();
            assert_eq!(
                (ask(&mixed, 0xffff).0, ask(&mixed, 0xffff).2),
                (Reason::POLICY_DENY, vec![order[denied]])
            );
        }
    }
}

#[test]
fn egress_is_asked_before_ingress_and_each_names_its_side() {
    for (client, server, judge) in
        [(false, false, (CLIENT, 1)), (false, true, (CLIENT, 1)), (true, false, (SERVER, 0))]
    {
        let mut lab = Lab::default();
        lab.policy(CLIENT, &[(0, 0, 0, Egress, client)]);
        lab.policy(SERVER, &[(0, 0, 0, Ingress, server)]);
        let packet = Build::udp(addr(true, CLIENT), 1, addr(true, SERVER), 2);
        assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::POLICY_DENY));
        let drop = lab.events().pop().unwrap();
        assert_eq!((drop.kind, drop.endpoint, drop.direction), (1, judge.0, judge.1));
        assert_eq!((drop.src_identity, drop.dst_identity), (identity(CLIENT), identity(SERVER)));
    }
}

#[test]
fn a_slot_without_a_map_drops_by_name_and_audit_does_not_help() {
    for flags in [0, FLAG_AUDIT_INGRESS | FLAG_AUDIT_EGRESS] {
        let mut lab = Lab::default();
        lab.world.remove_policy(u32::from(SERVER));
        lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().flags |= flags;
        let packet = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
        assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::NO_POLICY_MAP));
        assert_eq!(end(lab.to(SERVER, 0, &packet)), Err(Reason::NO_POLICY_MAP));
    }
}

#[test]
fn a_pending_identity_matches_keys_for_any_identity_only() {
    use Reason as R;
    let wild = key(0, 0, 0);
    // (entries, the direction denies identities, reason)
    let cases = [
        ("no policy", vec![(wild, A)], false, R::FORWARDED),
        ("a port for any", vec![(key(0, 1234, 6), A)], false, R::FORWARDED),
        ("a block for any", vec![(block(0, 1024, 10), A)], false, R::FORWARDED),
        ("the world", vec![(key(WORLD, 0, 0), A)], false, R::IDENTITY_PENDING),
        ("nothing", vec![], false, R::IDENTITY_PENDING),
        ("some identity is denied", vec![(wild, A), (key(77, 0, 0), D)], true, R::IDENTITY_PENDING),
        ("everybody is denied", vec![(wild, D)], false, R::POLICY_DENY),
        ("everybody and some", vec![(wild, D), (key(77, 0, 0), D)], true, R::POLICY_DENY),
    ];
    for (name, entries, denies, reason) in cases {
        for direction in Direction::ALL {
            let mut lab = Lab::default();
            lab.row("10.9.0.0", 16, WORLD, true);
            let turned = entries.iter().map(|(key, entry)| {
                let mut key = *key;
                key.direction |= direction as u8;
                (key, *entry)
            });
            lab.world.set_policy(u32::from(CLIENT), turned);
            let flag = [FLAG_DENY_ID_INGRESS, FLAG_DENY_ID_EGRESS][direction as usize];
            let other = [FLAG_DENY_ID_EGRESS, FLAG_DENY_ID_INGRESS][direction as usize];
            let record = lab.world.endpoints.get_mut(&u32::from(CLIENT)).unwrap();
            record.flags |= other | if denies { flag } else { 0 };
            let (own, remote) = (addr(false, CLIENT), ip("10.9.1.1"));
            let outcome = match direction {
                Egress => lab.from(CLIENT, &Build::tcp(own, 9, remote, 1234, SYN)),
                Ingress => lab.to(CLIENT, UPLINK, &Build::tcp(remote, 9, own, 1234, SYN)),
            };
            assert_eq!(
                end(outcome),
                if reason == R::FORWARDED { PASS } else { Err(reason) },
                "{name} {direction:?}"
            );
        }
    }
}

#[test]
fn the_next_packet_of_a_pending_identity_asks_again() {
    let mut lab = Lab::default();
    lab.only(CLIENT, Egress, &[(4711, 80, 6)]);
    lab.row("10.9.0.0", 16, WORLD, true);
    let packet = Build::tcp(addr(false, CLIENT), 9, ip("10.9.1.1"), 80, SYN);
    assert_eq!(end(lab.from(CLIENT, &packet)), Err(Reason::IDENTITY_PENDING));
    lab.row("10.9.1.1", 32, 4711, false);
    assert_eq!(end(lab.from(CLIENT, &packet)), PASS);
    let flow = lab.flow();
    assert_eq!(flow.dst_identity, 4711);
}

#[test]
fn an_address_without_a_row_is_the_world() {
    for (rows, wanted) in [(false, WORLD), (true, 4711)] {
        let mut lab = Lab::default();
        lab.world.ipcache = Default::default();
        if rows {
            lab.row("0.0.0.0", 0, 3, false);
            lab.row("192.0.2.0", 24, 4711, false);
        }
        lab.from(CLIENT, &Build::udp(addr(false, CLIENT), 1, outside(false), 2));
        assert_eq!(lab.flow().dst_identity, wanted);
    }
    let mut lab = Lab::default();
    lab.row("192.0.2.0", 24, 0, false);
    lab.from(CLIENT, &Build::udp(addr(false, CLIENT), 1, outside(false), 2));
    assert_eq!(lab.flow().dst_identity, WORLD, "a row without identity");
}

/// An endpoint, or the whole node, in audit mode.
fn audited(whole_node: bool) -> Lab {
    let mut lab = Lab::default();
    if whole_node {
        lab.world.config.as_mut().unwrap().flags |= config::FLAG_AUDIT;
    } else {
        lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap().flags |= FLAG_AUDIT_INGRESS;
    }
    lab.only(SERVER, Ingress, &[]);
    lab
}

#[test]
fn audit_lets_denials_pass_and_reports_them_once_a_flow() {
    for whole_node in [false, true] {
        let lab = audited(whole_node);
        let there = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
        assert_eq!(end(lab.from(CLIENT, &there)), peer(SERVER));
        let events = lab.events();
        let told: Vec<_> = events.iter().filter(|event| event.flags & FLAG_AUDITED != 0).collect();
        assert_eq!(told.len(), 1, "{events:?}");
        assert_eq!((told[0].reason, told[0].endpoint, told[0].direction), (133, SERVER, 0));
        assert_eq!(lab.flow().flags & FLOW_AUDITED, FLOW_AUDITED);
        assert_eq!(end(lab.from(CLIENT, &there)), peer(SERVER));
        assert_eq!(lab.kinds(), "");
        assert_eq!(lab.world.counted(Reason::POLICY, 0), 0, "it is no drop");
    }
}

#[test]
fn each_direction_is_audited_alone() {
    for (flag, audited) in [
        (FLAG_AUDIT_INGRESS, Ingress),
        (FLAG_AUDIT_EGRESS, Egress),
        (FLAG_AUDIT_DEFAULT_INGRESS, Ingress),
        (FLAG_AUDIT_DEFAULT_EGRESS, Egress),
    ] {
        for direction in Direction::ALL {
            let mut lab = Lab::default();
            let id = if direction == Ingress { SERVER } else { CLIENT };
            lab.only(id, direction, &[]);
            lab.world.endpoints.get_mut(&u32::from(id)).unwrap().flags |= flag;
            let packet = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
            let wanted = if audited == direction { peer(SERVER) } else { Err(Reason::POLICY) };
            assert_eq!(end(lab.from(CLIENT, &packet)), wanted, "{direction:?}, {audited:?} is audited");
        }
    }
}

#[test]
fn what_holds_while_only_some_policies_are_audited() {
    let (wild, wide) = (key(0, 0, 0), block(0, 1024, 10));
    let denied = Err(Reason::POLICY_DENY);
    // (entries, the sender's identity is known, verdict where only the default is audited)
    let cases = [
        ("nothing is there", vec![], true, PASS),
        ("an audited denial", vec![(wild, A), (key(ID, 0, 0), U)], true, PASS),
        ("one that holds", vec![(wild, A), (key(ID, 0, 0), D)], true, denied),
        ("a wider one that holds", vec![(key(ID, 1234, 6), U), (wild, D)], true, denied),
        ("a narrower one that holds", vec![(key(ID, 1234, 6), D), (wild, U)], true, denied),
        ("a wider block that holds", vec![(block(0, 1234, 1), U), (wide, D)], true, denied),
        ("a narrower block that holds", vec![(block(0, 1234, 1), D), (wide, U)], true, denied),
        ("for somebody else", vec![(key(77, 0, 0), D)], true, PASS),
        ("perhaps for the sender", vec![(key(77, 0, 0), D)], false, Err(Reason::IDENTITY_PENDING)),
        ("perhaps for the sender, as audit", vec![(key(77, 0, 0), U)], false, PASS),
    ];
    for (name, entries, known, wanted) in cases {
        for whole_direction in [false, true] {
            let mut lab = Lab::default();
            lab.row("10.9.1.1", 32, ID, !known);
            lab.world.set_policy(u32::from(SERVER), entries.iter().copied());
            let denies = entries.iter().any(|(key, entry)| key.identity != 0 && entry.flags == D.flags);
            let record = lab.world.endpoints.get_mut(&u32::from(SERVER)).unwrap();
            record.flags |= if denies { FLAG_DENY_ID_INGRESS } else { 0 };
            record.flags |= if whole_direction { FLAG_AUDIT_INGRESS } else { FLAG_AUDIT_DEFAULT_INGRESS };
            let packet = Build::tcp(ip("10.9.1.1"), 9, addr(false, SERVER), 1234, SYN);
            let wanted = if whole_direction { PASS } else { wanted };
            assert_eq!(end(lab.to(SERVER, UPLINK, &packet)), wanted, "{name}, all: {whole_direction}");
            let told = lab.events().iter().filter(|event| event.flags & FLAG_AUDITED != 0).count();
            assert_eq!(told, usize::from(wanted.is_ok()), "{name}: a pass by audit is reported");
        }
    }
}

#[test]
fn audit_reports_a_flow_that_policy_once_allowed() {
    let mut lab = audited(false);
    lab.policy(SERVER, &[(0, 0, 0, Ingress, true)]);
    let there = Build::udp(addr(false, CLIENT), 1, addr(false, SERVER), 2);
    lab.from(CLIENT, &there);
    lab.events();
    lab.policy(SERVER, &[(0, 0, 0, Ingress, false)]);
    assert_eq!(end(lab.from(CLIENT, &there)), peer(SERVER));
    assert_eq!(lab.kinds(), "vt");
    assert_eq!(end(lab.from(CLIENT, &there)), peer(SERVER));
    assert_eq!(lab.kinds(), "");
}

#[test]
fn audit_reports_the_second_endpoint_of_a_flow_through_the_stack() {
    let mut lab = audited(true);
    lab.only(CLIENT, Egress, &[]);
    lab.only(FAR, Ingress, &[]);
    let there = Build::udp(addr(false, CLIENT), 1, addr(false, FAR), 2);
    assert_eq!(end(lab.from(CLIENT, &there)), PASS);
    assert_eq!(
        lab.events().iter().filter(|e| e.flags & FLAG_AUDITED != 0 && e.endpoint == CLIENT).count(),
        1
    );
    assert_eq!(end(lab.to(FAR, ifindex(CLIENT), &there)), PASS);
    assert_eq!(lab.events().iter().filter(|e| e.flags & FLAG_AUDITED != 0 && e.endpoint == FAR).count(), 1);
    assert_eq!(end(lab.from(CLIENT, &there)), PASS);
    assert_eq!(end(lab.to(FAR, ifindex(CLIENT), &there)), PASS);
    assert_eq!(lab.kinds(), "");
}

#[test]
fn counters_are_added_to_what_is_there() {
    let mut world = Memory::new(Config::default());
    world.add_endpoint(record(SERVER, 0), &[addr(false, SERVER)]);
    let entry = PolicyEntry { packets: 100, bytes: 7, ..A };
    world.set_policy(u32::from(SERVER), [(key(0, 0, 0), entry)]);
    let lab = Lab { world };
    let packet = Build::udp(outside(false), 1, addr(false, SERVER), 2);
    lab.to(SERVER, UPLINK, &packet);
    let after = lab.world.policy_entries(u32::from(SERVER)).unwrap()[&key(0, 0, 0)];
    assert_eq!((after.packets, after.bytes), (101, 7 + packet.frame().len() as u64));
}

#[test]
fn a_mask_for_protocols_costs_nothing_else() {
    // Bit 0 alone asks for no blocks.
    assert_eq!(ask(&[(block(0, 1024, 10), A)], MASK_PROTO).0, Reason::POLICY);
    assert_eq!(ask(&[(key(0, 0, 6), A)], 0xfffe).0, Reason::POLICY);
}
