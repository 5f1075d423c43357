//! Changes of the pinned policy maps under live traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{io::Read, net::SocketAddr, sync::Arc, time::Duration};

use villus_abi::{
    Direction::{Egress, Ingress},
    IpcacheKey, IpcacheValue, PolicyEntry, PolicyKey, Reason,
    endpoint::FLAG_AUDIT_INGRESS,
    ipcache::FLAG_PENDING,
};
use villus_datapath::hand_insert;
use villus_testbed::{
    Addresses, Blocked, Delta, Host, ICMP, ICMP6, Kind, Node, NodeSpec, Ping, TCP, TcpEcho, UDP, UdpEcho,
    Version, Workload, run,
};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(60);
const CLIENT: u32 = 50_101;
const SERVER: u32 = 50_102;

struct Setup {
    node: Node,
    client: Arc<Workload>,
    server: Arc<Workload>,
}

impl Setup {
    fn new(direct: bool) -> Self {
        let mut node = Node::new(NodeSpec { direct, ..NodeSpec::default() });
        let (client, server) = (node.add(101, CLIENT, Kind::Veth), node.add(102, SERVER, Kind::Veth));
        Self { node, client, server }
    }

    fn finish(self) {
        let Self { node, client, server } = self;
        drop((client, server));
        node.finish();
    }

    fn listen(&self, v: Version, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ip(v), port)
    }

    fn udp(&self, from: &Host, v: Version, port: u16) -> UdpEcho {
        UdpEcho::open(from, None, &self.server.host, self.listen(v, port), self.listen(v, port))
    }

    fn tcp(&self, from: &Host, v: Version, port: u16, patience: Duration) -> Result<TcpEcho, Blocked> {
        let at = self.listen(v, port);
        TcpEcho::open(from, &self.server.host, at, at, patience)
    }
}

#[test]
fn a_removed_entry_cuts_an_open_connection_and_the_same_entry_heals_it() {
    for direct in [false, true] {
        let s = Setup::new(direct);
        let node = &s.node;
        node.allow(&s.client, Egress, SERVER, 0, 0);
        for v in Version::ALL {
            for (name, from, identity) in
                [("workload", &s.client.host, CLIENT), ("host", &node.host, 1), ("outside", &node.outside, 6)]
            {
                let key = node.allow(&s.server, Ingress, identity, 80, TCP);
                let mut open = s.tcp(from, v, 80, LONG).unwrap();
                assert_eq!(open.echo(b"before"), Ok(()), "{name} {v:?}");

                let before = node.tally();
                node.forget(&s.server, &key);
                open.patience(SHORT);
                assert!(open.echo(b"cut").is_err(), "{name} {v:?} is not cut");
                node.expect(name, &before, |delta| {
                    let dropped = delta.metric(Reason::POLICY, Ingress);
                    if dropped > 0 { Ok(()) } else { Err("no drop is counted".to_owned()) }
                });

                node.allow(&s.server, Ingress, identity, 80, TCP);
                open.patience(LONG);
                let mut late = [0; 3];
                open.server.read_exact(&mut late).unwrap();
                assert_eq!(&late, b"cut", "{name} {v:?}");
                assert_eq!(open.echo(b"after"), Ok(()), "{name} {v:?} does not go on");
                node.forget(&s.server, &key);
            }
        }
        s.finish();
    }
}

#[test]
fn a_forgotten_connection_that_the_server_speaks_in_first_opens_nothing_for_the_client() {
    let s = Setup::new(false);
    let node = &s.node;
    for v in Version::ALL {
        node.allow_all(&s.client);
        node.allow_all(&s.server);
        let mut open = s.tcp(&s.client.host, v, 80, LONG).unwrap();
        assert_eq!(open.echo(b"before"), Ok(()), "{v:?}");
        // Until nothing is on its way any more, the last acknowledgement included.
        std::thread::sleep(Duration::from_secs(1));
        node.flush_flows();
        assert_eq!(open.answer(b"still there?"), Ok(()), "{v:?}: the server's word is lost");
        assert_eq!(open.echo(b"yes"), Ok(()), "{v:?}: the client's word is lost");

        node.forget_all(&s.client);
        node.allow(&s.client, Ingress, SERVER, 0, 0);
        open.patience(SHORT);
        assert!(open.echo(b"cut").is_err(), "{v:?}: what the client may not open passes as an answer");
        node.forget_all(&s.client);
        node.forget_all(&s.server);
    }
    s.finish();
}

#[test]
fn after_a_denied_packet_answers_are_judged_as_new() {
    let s = Setup::new(false);
    let node = &s.node;
    for v in Version::ALL {
        let key = node.allow(&s.server, Ingress, CLIENT, 53, UDP);
        let out = node.allow(&s.client, Egress, SERVER, 53, UDP);
        let echo = s.udp(&s.client.host, v, 53);
        let seen = echo.echo(b"hello").unwrap().seen;

        // Silent so far: answers pass as long as the flow lives.
        node.forget(&s.server, &key);
        echo.server.send_to(b"unasked", seen).unwrap();
        assert_eq!(echo.client.recv(&mut [0; 16]).unwrap(), 7);

        let before = node.tally();
        echo.send(b"denied").unwrap();
        node.expect_drops("the client speaks", &before, Reason::POLICY, Ingress, 1);
        let before = node.tally();
        echo.server.send_to(b"too late", seen).unwrap();
        node.expect_drops("the server answers", &before, Reason::POLICY, Egress, 1);

        // What is done to silent flows that policy no longer allows.
        node.allow(&s.server, Ingress, CLIENT, 53, UDP);
        assert!(echo.echo(b"healed").is_ok());
        node.forget(&s.server, &key);
        assert_eq!(node.flows().remove_of_endpoint(101).unwrap(), 1);
        let before = node.tally();
        echo.server.send_to(b"silent", seen).unwrap();
        node.expect_drops("the flow was taken out", &before, Reason::POLICY, Egress, 1);
        node.forget(&s.client, &out);
    }
    s.finish();
}

#[test]
fn a_deny_beats_every_allow_and_is_counted_on_its_entry() {
    let s = Setup::new(false);
    let node = &s.node;
    node.allow_all(&s.client);
    node.allow_all(&s.server);
    for v in Version::ALL {
        let echo = s.udp(&s.client.host, v, 53);
        assert!(echo.echo(b"hello").is_ok());
        for (workload, direction, peer) in [(&s.server, Ingress, CLIENT), (&s.client, Egress, SERVER)] {
            for (identity, port, proto) in
                [(peer, 53, UDP), (peer, 0, UDP), (peer, 0, 0), (0, 53, UDP), (0, 0, UDP)]
            {
                let before = node.tally();
                let key = node.deny(workload, direction, identity, port, proto);
                echo.send(b"denied").unwrap();
                let what = format!("{v:?} {direction:?} {identity} {port} {proto}");
                node.expect_drops(&what, &before, Reason::POLICY_DENY, direction, 1);
                let counted = node.since(&before).policy.get(&(workload.id, key)).copied();
                assert_eq!(counted, Some(1), "{what}");
                assert!(!echo.heard());
                node.forget(workload, &key);
                assert!(echo.echo(b"again").is_ok(), "{what}: allow after deny");
            }
        }
    }
    s.finish();
}

#[test]
fn ports_blocks_of_ports_and_icmp_types_are_told_apart() {
    let s = Setup::new(false);
    let node = &s.node;
    node.allow(&s.client, Egress, 0, 0, 0);
    for v in Version::ALL {
        let exact = node.allow(&s.server, Ingress, CLIENT, 80, TCP);
        assert!(s.tcp(&s.client.host, v, 80, LONG).is_ok());
        assert!(s.tcp(&s.client.host, v, 81, SHORT).is_err());
        let block = PolicyKey::block(CLIENT, 8000, 5, TCP, Ingress);
        assert!(hand_insert(&node.pins, &node.maps, 102, &block, &PolicyEntry::ALLOW).unwrap());
        for (port, passes) in [(7999, false), (8000, true), (8031, true), (8032, false)] {
            let patience = if passes { LONG } else { SHORT };
            assert_eq!(s.tcp(&s.client.host, v, port, patience).is_ok(), passes, "{v:?} port {port}");
        }
        let (echo, proto) = if v == Version::V4 { (8, ICMP) } else { (128, ICMP6) };
        let ping = Ping::open(&s.client.host, None, s.server.ip(v));
        ping.send(8).unwrap();
        assert_eq!(ping.wait(SHORT), Err(Blocked::Back));
        let icmp = node.allow(&s.server, Ingress, CLIENT, echo, proto);
        assert_eq!(ping.echo(8), Ok(()), "{v:?}");
        for key in [exact, block, icmp] {
            node.forget(&s.server, &key);
        }
    }
    s.finish();
}

#[test]
fn audit_lets_denials_pass_and_says_so() {
    let s = Setup::new(false);
    let node = &s.node;
    node.allow(&s.client, Egress, 0, 0, 0);
    node.edit_record(102, |record| record.flags |= FLAG_AUDIT_INGRESS);
    for v in Version::ALL {
        let _ = node.events();
        let echo = s.udp(&s.client.host, v, 53);
        assert!(echo.echo(b"hello").is_ok(), "{v:?}");
        let events = node.events();
        assert!(events.iter().any(|e| e.starts_with("verdict") && e.contains("reason 133")), "{events:#?}");
        assert!(!events.iter().any(|e| e.starts_with("drop")), "{events:#?}");
    }
    node.edit_record(102, |record| record.flags &= !FLAG_AUDIT_INGRESS);
    for v in Version::ALL {
        let before = node.tally();
        s.udp(&s.client.host, v, 53).send(b"no more").unwrap();
        node.expect_drops("audit is over", &before, Reason::POLICY, Ingress, 1);
    }
    s.finish();
}

#[test]
fn an_identity_that_has_not_arrived_is_never_quietly_the_world() {
    let s = Setup::new(false);
    let node = &s.node;
    let pending = IpcacheValue { identity: 2, flags: FLAG_PENDING, ..IpcacheValue::default() };
    node.maps.ipcache.insert(&IpcacheKey::v4([198, 51, 100, 0], 24), &pending).unwrap();
    let v6 = Addresses::BEYOND.v6.octets();
    let prefix: Vec<u8> = v6.iter().enumerate().map(|(at, byte)| if at < 8 { *byte } else { 0 }).collect();
    node.maps.ipcache.insert(&IpcacheKey::v6(prefix.try_into().unwrap(), 64), &pending).unwrap();
    for v in Version::ALL {
        let echo = s.udp(&node.beyond, v, 53);
        let world = node.allow(&s.server, Ingress, 2, 0, 0);
        let before = node.tally();
        echo.send(b"who am I").unwrap();
        node.expect_drops("world is allowed", &before, Reason::IDENTITY_PENDING, Ingress, 1);
        let any = node.allow(&s.server, Ingress, 0, 53, UDP);
        assert!(echo.echo(b"anybody may").is_ok());
        let deny = node.deny(&s.server, Ingress, 77, 0, 0);
        let before = node.tally();
        echo.send(b"77 may not").unwrap();
        node.expect_drops("an identity is denied", &before, Reason::IDENTITY_PENDING, Ingress, 1);
        node.forget(&s.server, &deny);
        node.edit_record(102, |record| record.flags &= !villus_abi::endpoint::FLAG_DENY_ID_INGRESS);
        // It arrives.
        node.forget(&s.server, &any);
        node.set_identity(Addresses::BEYOND.of(v), if v == Version::V4 { 32 } else { 128 }, 77);
        let known = node.allow(&s.server, Ingress, 77, 53, UDP);
        assert!(echo.echo(b"77 it is").is_ok());
        for key in [world, known] {
            node.forget(&s.server, &key);
        }
    }
    s.finish();
}

#[test]
fn what_bpftool_writes_counts_at_the_next_packet() {
    let s = Setup::new(false);
    let node = &s.node;
    node.allow(&s.client, Egress, 0, 0, 0);
    let pin = node.pin_for_commands("cilium_policy_00102");
    let hex = |key: PolicyKey| villus_abi::bytes_of(&key).map_hex();
    for v in Version::ALL {
        let before = node.tally();
        let echo = s.udp(&s.client.host, v, 53);
        echo.send(b"closed").unwrap();
        node.expect_drops("closed", &before, Reason::POLICY, Ingress, 1);
        let key = hex(PolicyKey::new(0, 0, 0, Ingress));
        let value = vec!["00"; 24];
        let mut arguments = vec!["map", "update", "pinned", &pin, "key", "hex"];
        arguments.extend(key.iter().map(String::as_str));
        arguments.extend(["value", "hex"]);
        arguments.extend(value);
        arguments.push("noexist");
        run("bpftool", &arguments);
        let before = node.tally();
        assert!(echo.echo(b"opened").is_ok(), "{v:?}");
        node.expect("opened", &before, |delta| Delta::same("asked", delta.asked(&s.server, Ingress), 1));
        let mut arguments = vec!["map", "delete", "pinned", &pin, "key", "hex"];
        arguments.extend(key.iter().map(String::as_str));
        run("bpftool", &arguments);
    }
    s.finish();
}

trait Hex {
    fn map_hex(&self) -> Vec<String>;
}

impl Hex for [u8] {
    fn map_hex(&self) -> Vec<String> {
        self.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
