//! Ways of delivery and of attaching: which way packets take, and what happens when it changes under them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
    config::{FLAG_IPV4, FLAG_IPV6},
    endpoint::{FLAG_ACTIVE, FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER},
    flow::FLOW_VIA_STACK,
};
use villus_datapath::{AttachMode, Hook, Links};
use villus_net::Mac;
use villus_testbed::{
    Addresses, Capture, Delta, Frame, Host, Kind, L4, Node, NodeSpec, Ping, UdpEcho, Version, Workload,
    a_jiffy_passes, echo_request, udp,
};

const SOON: Duration = Duration::from_secs(30);

fn pair(spec: NodeSpec) -> (Node, Arc<Workload>, Arc<Workload>) {
    let mut node = Node::new(spec);
    let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    node.allow_all(&client);
    node.allow_all(&server);
    (node, client, server)
}

/// How many packets a host's stack has forwarded.
fn forwarded(host: &Host, v: Version) -> u64 {
    let read =
        |file: &str| host.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap();
    match v {
        Version::V4 => {
            let text = read("snmp");
            let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
            let names = lines.next().unwrap().split_whitespace();
            let values = lines.next().unwrap().split_whitespace();
            let found = names.zip(values).find(|(name, _)| *name == "ForwDatagrams");
            found.unwrap().1.parse().unwrap()
        }
        Version::V6 => {
            let text = read("snmp6");
            let line = text.lines().find(|line| line.starts_with("Ip6OutForwDatagrams"));
            line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
        }
    }
}

fn echo(from: &Host, to: &Host, address: std::net::IpAddr, rounds: usize) {
    let at = SocketAddr::new(address, 9000);
    let echo = UdpEcho::open(from, None, to, at, at);
    for _ in 0..rounds {
        assert!(echo.echo(b"round").is_ok());
    }
}

#[test]
fn packets_take_the_short_way_where_they_may_and_no_other() {
    for direct in [false, true] {
        let (node, client, server) = pair(NodeSpec { direct, ..NodeSpec::default() });
        for v in Version::ALL {
            // Who has been spoken to is known to the neighbour table.
            echo(&node.host, &node.outside, Addresses::OUTSIDE.of(v), 1);
            for (name, from, to, address, expected) in [
                ("endpoint to endpoint", &client.host, &server.host, server.ip(v), 0),
                // A datagram may be an answer that the host's NAT must turn back.
                ("other node to endpoint", &node.outside, &server.host, server.ip(v), 20),
                // What an endpoint opens goes through the stack: a DNAT of the host may be meant for it.
                ("endpoint to other node", &client.host, &node.outside, Addresses::OUTSIDE.of(v), 20),
            ] {
                node.flush_flows();
                let before = forwarded(&node.host, v);
                echo(from, to, address, 10);
                assert_eq!(forwarded(&node.host, v) - before, expected, "{name} {v:?}, direct {direct}");
                let (_, flow) = node.flows().list().unwrap()[0];
                assert_eq!(flow.flags & FLOW_VIA_STACK != 0, expected != 0, "{name} {v:?}, direct {direct}");
            }
            // A question is no answer.
            node.flush_flows();
            let before = forwarded(&node.host, v);
            let ping = Ping::open(&node.outside, None, server.ip(v));
            for _ in 0..10 {
                assert!(ping.echo(8).is_ok());
            }
            assert_eq!(forwarded(&node.host, v) - before, if direct { 0 } else { 20 }, "{v:?}");
        }
        drop((client, server));
        node.finish();
    }
}

#[test]
fn a_changed_route_counts_from_the_next_jiffy_on() {
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 0x77]);
    let mut node = Node::new(NodeSpec { direct: true, ..NodeSpec::default() });
    let server = node.add(102, 50_102, Kind::Veth);
    node.allow_all(&server);
    let wire = Capture::open(&node.outside, "far");
    let (near, far) = (node.host.mac("up0"), node.outside.mac("far"));
    for v in Version::ALL {
        let outside = Addresses::OUTSIDE.of(v);
        let (gateway, length) = match outside {
            IpAddr::V4(address) => (IpAddr::from((u32::from(address) | 0x77).to_be_bytes()), 32),
            IpAddr::V6(address) => (IpAddr::from((u128::from(address) | 0x7700).to_be_bytes()), 128),
        };
        node.host.ip(&format!("neigh add {gateway} lladdr {OTHER} dev up0 nud permanent"));
        echo(&node.host, &node.outside, outside, 1);
        let ends = L4 { from: far, to: near, src: outside, dst: server.ip(v), ttl: 64 };
        let answer = (if v == Version::V4 { 0 } else { 129 }, 0);
        let mut asked = 0_u16;
        // Each question is of a flow of its own.
        let mut answered_to = || {
            asked += 1;
            wire.send(&echo_request(&ends, asked, b"where to"));
            let is_answer =
                |frame: &Frame| frame.icmp() == Some(answer) && frame.l4()[4..6] == asked.to_be_bytes();
            wire.wait_for(SOON, is_answer).expect("an answer").to()
        };
        assert_eq!(answered_to(), far);
        let before = forwarded(&node.host, v);
        for _ in 0..10 {
            for (change, to) in [("add", OTHER), ("del", far)] {
                node.host.ip(&format!("route {change} {outside}/{length} via {gateway} dev up0"));
                a_jiffy_passes();
                // The last of them has the answer of the routing table kept when that changes.
                for _ in 0..3 {
                    assert_eq!(answered_to(), to, "{v:?}, {change}");
                }
            }
        }
        assert_eq!(forwarded(&node.host, v), before, "past the stack");
        node.host.ip(&format!("neigh del {gateway} dev up0"));
    }
    drop(server);
    node.finish();
}

#[test]
fn headers_are_those_that_a_router_would_write() {
    for direct in [false, true] {
        let (node, client, server) = pair(NodeSpec { direct, ..NodeSpec::default() });
        let (at_server, at_outside) =
            (Capture::open(&server.host, "eth0"), Capture::open(&node.outside, "far"));
        let wire = Capture::open(&client.host, "eth0");
        for v in Version::ALL {
            echo(&node.host, &node.outside, Addresses::OUTSIDE.of(v), 1);
            let probe = |port: u16| move |frame: &villus_testbed::Frame| frame.dport() == Some(port);

            wire.send(&udp(&client.to(server.ip(v)), 4000, 9001, b"probe"));
            let seen = at_server.wait_for(SOON, probe(9001)).unwrap();
            assert_eq!((seen.from(), seen.to(), seen.ttl()), (server.node_mac, server.mac, 63), "{v:?}");
            assert_eq!(villus_testbed::l4_checksum(client.ip(v), server.ip(v), 17, seen.l4()), [0, 0]);
            if v == Version::V4 {
                assert_eq!(villus_testbed::checksum(&[&seen.bytes[14..34]]), [0, 0], "the header's checksum");
            }

            wire.send(&udp(&client.to(Addresses::OUTSIDE.of(v)), 4000, 9002, b"probe"));
            let seen = at_outside.wait_for(SOON, probe(9002)).unwrap();
            let (near, far) = (node.host.mac("up0"), node.outside.mac("far"));
            assert_eq!((seen.from(), seen.to(), seen.ttl()), (near, far, 63), "{v:?}");
            let source = if direct { client.ip(v) } else { Addresses::NODE.of(v) };
            assert_eq!(seen.addresses().unwrap().0, source);
            assert_eq!(villus_testbed::l4_checksum(source, Addresses::OUTSIDE.of(v), 17, seen.l4()), [0, 0]);
        }
        drop((client, server));
        node.finish();
    }
}

#[test]
fn the_way_of_attaching_changes_without_losing_a_packet() {
    let (node, client, server) = pair(NodeSpec { direct: true, ..NodeSpec::default() });
    let links = Links::new(&node.pins);
    let uplink = node.host.index("up0");
    // A clsact that comes or goes stops its device for a moment, and the kernel drops what is sent just then. Here one
    // is kept by somebody else's filter.
    node.pins.put("theirs", node.object.program(Hook::FromNetwork).unwrap().as_fd()).unwrap();
    let theirs = node.pin_for_commands("theirs");
    for device in [client.node_device.as_str(), server.node_device.as_str(), "up0"] {
        node.host.tc(&format!("qdisc add dev {device} clsact"));
        for side in ["ingress", "egress"] {
            let frames = "protocol 802_3";
            node.host
                .tc(&format!("filter add dev {device} {side} pref 99 {frames} bpf object-pinned {theirs}"));
        }
    }
    node.pins.remove("theirs").unwrap();
    let before = node.tally();
    let rounds = Cell::new(0);
    let ways: Vec<UdpEcho> = Version::ALL
        .into_iter()
        .flat_map(|v| {
            let at = SocketAddr::new(server.ip(v), 9000);
            let out = SocketAddr::new(server.ip(v), 9001);
            [
                UdpEcho::open(&client.host, None, &server.host, at, at),
                UdpEcho::open(&node.outside, None, &server.host, out, out),
            ]
        })
        .collect();
    // Six turns, and as many as it takes until enough was under way in them.
    for turn in (0..600).take_while(|turn| *turn < 6 || rounds.get() <= 20) {
        let mode = if turn % 2 == 0 { AttachMode::Tc } else { AttachMode::Tcx };
        std::thread::scope(|scope| {
            let switching = scope.spawn(|| {
                for (hook, ifindex) in [
                    (Hook::FromEndpoint, client.ifindex),
                    (Hook::ToEndpoint, client.ifindex),
                    (Hook::FromEndpoint, server.ifindex),
                    (Hook::ToEndpoint, server.ifindex),
                    (Hook::FromNetwork, uplink),
                ] {
                    node.host
                        .run(|| links.attach(node.object.program(hook).unwrap(), hook, ifindex, mode))
                        .unwrap();
                }
            });
            while !switching.is_finished() {
                for (way, echo) in ways.iter().enumerate() {
                    let said = echo.echo(b"under way");
                    assert!(said.is_ok(), "{said:?} on way {way} in round {rounds:?}, changing to {mode:?}");
                }
                rounds.set(rounds.get() + 1);
            }
        });
    }
    let rounds = rounds.get();
    assert!(rounds > 20, "only {rounds} rounds");
    node.expect("all of it", &before, |delta| {
        Delta::same("drops", delta.drops(), BTreeMap::new())?;
        Delta::same("asked of the server", delta.asked(&server, Ingress), 4 * rounds)?;
        Delta::same("asked of the client", delta.asked(&client, Egress), 2 * rounds)?;
        delta.every_sent_packet_counted_once()
    });
    for device in [client.node_device.as_str(), server.node_device.as_str(), "up0"] {
        node.host.tc(&format!("qdisc del dev {device} clsact"));
    }
    drop((client, server));
    node.finish();
}

#[test]
fn a_flow_stays_on_its_way_when_the_way_of_delivery_changes() {
    let (node, client, server) = pair(NodeSpec::default());
    for v in Version::ALL {
        let at = SocketAddr::new(server.ip(v), 9000);
        let old = UdpEcho::open(&client.host, None, &server.host, at, at);
        for id in [101, 102] {
            node.edit_record(id, |record| record.flags &= !(FLAG_DELIVER_PEER | FLAG_DELIVER_DEVICE));
        }
        let counted = |delta: &Delta| {
            Delta::same("drops", delta.drops(), BTreeMap::new())?;
            Delta::same("of the flow", delta.flow_packets(), (1, 1))?;
            Delta::same("asked of the client", delta.asked(&client, Egress), 1)?;
            Delta::same("asked of the server", delta.asked(&server, Ingress), 1)?;
            Delta::same("out", delta.forwarded(Egress), 2)?;
            Delta::same("in", delta.forwarded(Ingress), 2)?;
            delta.every_sent_packet_counted_once()
        };
        let before = node.tally();
        assert!(old.echo(b"up the stack").is_ok());
        node.expect("up the stack", &before, counted);
        for delivery in [FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER] {
            for id in [101, 102] {
                node.edit_record(id, |record| {
                    record.flags = record.flags & !(FLAG_DELIVER_PEER | FLAG_DELIVER_DEVICE) | delivery;
                });
            }
            let before = node.tally();
            let stack = forwarded(&node.host, v);
            assert!(old.echo(b"still up the stack").is_ok());
            node.expect("still up the stack", &before, counted);
            assert_eq!(forwarded(&node.host, v) - stack, 2);

            let other = SocketAddr::new(server.ip(v), 9001);
            let new = UdpEcho::open(&client.host, None, &server.host, other, other);
            let before = node.tally();
            assert!(new.echo(b"the short way").is_ok());
            node.expect("the short way", &before, counted);
            assert_eq!(forwarded(&node.host, v) - stack, 2);
        }
    }
    drop((client, server));
    node.finish();
}

#[test]
fn what_is_not_ready_passes_nothing() {
    let (node, client, server) = pair(NodeSpec::default());
    let config = node.maps.config.get(&0).unwrap().unwrap();
    let record = node.maps.endpoints.get(&102).unwrap().unwrap();
    for v in Version::ALL {
        let at = SocketAddr::new(server.ip(v), 9000);
        let (inside, outside) = (
            UdpEcho::open(&client.host, None, &server.host, at, at),
            UdpEcho::open(
                &node.outside,
                None,
                &server.host,
                SocketAddr::new(at.ip(), 9001),
                SocketAddr::new(at.ip(), 9001),
            ),
        );
        let ends = |what: &str, from_inside: Reason, from_outside: Reason| {
            let direction = if from_inside == Reason::POLICY_DENY { Ingress } else { Egress };
            let before = node.tally();
            inside.send(b"?").unwrap();
            node.expect_drops(what, &before, from_inside, direction, 1);
            let before = node.tally();
            outside.send(b"?").unwrap();
            node.expect_drops(what, &before, from_outside, Ingress, 1);
            assert!(!inside.heard() && !outside.heard(), "{what}");
        };
        node.edit_config(|config| config.flags = 0);
        ends("no configuration", Reason::NOT_READY, Reason::NOT_READY);
        node.maps.config.insert(&0, &config).unwrap();

        node.edit_config(|config| config.flags &= !if v == Version::V4 { FLAG_IPV4 } else { FLAG_IPV6 });
        ends("the family is off", Reason::UNSUPPORTED_L3, Reason::UNSUPPORTED_L3);
        node.maps.config.insert(&0, &config).unwrap();

        node.edit_record(102, |record| record.flags &= !FLAG_ACTIVE);
        ends("the endpoint is going away", Reason::STALE, Reason::NO_ENDPOINT);
        node.maps.endpoints.insert(&102, &record).unwrap();

        assert!(inside.echo(b"ready").is_ok() && outside.echo(b"ready").is_ok());
        node.flush_flows();
    }
    // Last, for a slot without its map cannot be mended here.
    node.maps.policies.remove(&102).unwrap();
    for v in Version::ALL {
        let at = SocketAddr::new(server.ip(v), 9000);
        let outside = UdpEcho::open(&node.outside, None, &server.host, at, at);
        let before = node.tally();
        outside.send(b"?").unwrap();
        node.expect_drops("no policy map", &before, Reason::NO_POLICY_MAP, Ingress, 1);
    }
    drop((client, server));
    node.finish();
}
