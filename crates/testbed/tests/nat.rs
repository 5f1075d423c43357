//! Masquerading by our programs, on the wire: who leaves the cluster bears the node's address there and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Socket, Type};
use villus_abi::{Direction::Egress, Reason, nat::NAT_LEAST};
use villus_datapath::{AttachMode, Hook, Object, Sizes};
use villus_testbed::{
    Addresses, Blocked, EchoServer, Host, Kind, Node, NodeSpec, Ping, SctpEcho, TcpEcho, UdpEcho, Version,
    Workload, eventually, join, try_run, udp_socket,
};

const SOON: Duration = Duration::from_secs(30);
/// Where nothing is heard for so long nothing comes: only asked for where something would have come at once.
const NEVER: Duration = Duration::from_millis(300);

fn pair(spec: NodeSpec) -> (Node, Arc<Workload>, Arc<Workload>) {
    let mut node = Node::new(NodeSpec { nat: true, ..spec });
    let (one, two) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    node.allow_all(&one);
    node.allow_all(&two);
    (node, one, two)
}

fn beyond(v: Version, port: u16) -> SocketAddr {
    SocketAddr::new(Addresses::BEYOND.of(v), port)
}

fn any(v: Version, port: u16) -> SocketAddr {
    SocketAddr::new(if v == Version::V4 { [0; 4].into() } else { [0; 16].into() }, port)
}

fn udp(node: &Node, from: &Host, v: Version, source: u16, port: u16) -> UdpEcho {
    UdpEcho::open(from, Some(any(v, source)), &node.beyond, beyond(v, port), beyond(v, port))
}

fn tcp(node: &Node, from: &Host, v: Version, port: u16) -> TcpEcho {
    TcpEcho::open(from, &node.beyond, beyond(v, port), beyond(v, port), SOON).unwrap()
}

#[test]
fn tcp_udp_and_echoes_leave_with_the_nodes_address_and_answers_find_back() {
    for attach in [AttachMode::Tcx, AttachMode::Tc] {
        let (node, one, two) = pair(NodeSpec { attach, ..NodeSpec::default() });
        let before = node.tally();
        for v in Version::ALL {
            let own = Addresses::NODE.of(v);
            let seen = udp(&node, &one.host, v, 40_000, 9000).echo(b"out and back").unwrap().seen;
            assert_eq!(seen, SocketAddr::new(own, 40_000), "{v:?} {attach:?}");
            let mut tcp = tcp(&node, &one.host, v, 9001);
            tcp.echo(b"hello").unwrap();
            tcp.stream(4_000_000).unwrap();
            tcp.answer(b"good bye").unwrap();
            assert_eq!(tcp.seen.ip(), own);
            let pings = [&one, &two].map(|pod| Ping::open(&pod.host, None, Addresses::BEYOND.of(v)));
            for ping in &pings {
                ping.echo(56).unwrap();
                ping.echo(1200).unwrap();
            }
            // Other nodes know endpoints by their own addresses.
            let at = SocketAddr::new(Addresses::OUTSIDE.of(v), 9002);
            let inside = UdpEcho::open(&one.host, None, &node.outside, at, at);
            assert_eq!(inside.echo(b"as it is").unwrap().seen.ip(), one.ip(v));
        }
        let delta = node.since(&before);
        assert!(delta.drops().is_empty(), "{:?}", delta.drops());
        drop((one, two));
        node.finish();
    }
}

#[test]
fn who_uses_a_port_that_is_lent_gets_another_the_node_itself_too() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        let server =
            UdpEcho::open(&one.host, Some(any(v, 40_000)), &node.beyond, beyond(v, 9000), beyond(v, 9000));
        assert_eq!(server.echo(b"first").unwrap().seen.port(), 40_000);
        let others = [&two.host, &node.host].map(|host| {
            let socket = udp_socket(host, any(v, 40_000));
            socket.connect(beyond(v, 9000)).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket
        });
        let mut ports = BTreeSet::from([40_000]);
        for socket in &others {
            for _ in 0..3 {
                socket.send(b"mine").unwrap();
                let mut buffer = [0; 64];
                let (length, seen) = server.server.recv_from(&mut buffer).unwrap();
                assert_eq!((seen.ip(), &buffer[..length]), (Addresses::NODE.of(v), &b"mine"[..]));
                ports.insert(seen.port());
                server.server.send_to(b"yours", seen).unwrap();
                assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
            }
        }
        assert_eq!(ports.len(), 3, "{ports:?}");
        assert_eq!(server.echo(b"still").unwrap().seen.port(), 40_000);
    }
    drop((one, two));
    node.finish();
}

#[test]
fn what_the_hosts_own_nat_has_lent_is_told_apart_from_what_endpoints_are() {
    let (node, one, two) = pair(NodeSpec::default());
    // A container that is no endpoint, masqueraded by rules of somebody else.
    let guest = Host::new("guest");
    join(&node.host, "guest0", &guest, "eth0", 1500);
    for (host, device, nets) in [
        (&node.host, "guest0", ["172.30.0.1/24", "fd30::1/64"]),
        (&guest, "eth0", ["172.30.0.2/24", "fd30::2/64"]),
    ] {
        nets.iter().for_each(|net| host.add_address(device, net));
    }
    for gateway in ["172.30.0.1", "fd30::1"] {
        guest.default_via(gateway.parse().unwrap());
    }
    node.host.nft(
        "add table inet others
         add chain inet others out { type nat hook postrouting priority srcnat; }
         add rule inet others out ip saddr 172.30.0.0/24 oifname \"up0\" masquerade
         add rule inet others out ip6 saddr fd30::/64 oifname \"up0\" masquerade",
    );
    for v in Version::ALL {
        for (round, order) in (0..).zip([[&guest, &one.host, &two.host], [&one.host, &guest, &two.host]]) {
            let port = 9000 + round;
            let server = udp_socket(&node.beyond, beyond(v, port));
            server.set_read_timeout(Some(SOON)).unwrap();
            let sockets = order.map(|host| {
                let socket = udp_socket(host, any(v, 40_000));
                socket.connect(beyond(v, port)).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket
            });
            let mut ports = BTreeSet::new();
            for turn in 0..3 {
                for (who, socket) in (0_u8..).zip(&sockets) {
                    socket.send(&[who]).unwrap();
                    let mut buffer = [0; 8];
                    let (length, seen) = server.recv_from(&mut buffer).unwrap();
                    assert_eq!((seen.ip(), &buffer[..length]), (Addresses::NODE.of(v), &[who][..]));
                    assert!(who != 0 || seen.port() == 40_000, "the first one keeps its port");
                    ports.insert(seen.port());
                    server.send_to(&[who], seen).unwrap();
                    assert_eq!(socket.recv(&mut buffer).unwrap(), 1, "{v:?} {turn} {who}");
                    assert_eq!(buffer[0], who);
                }
            }
            assert_eq!(ports.len(), 3, "{ports:?}");
        }
    }
    node.host.nft("delete table inet others");
    drop(guest);
    eventually("the guest's device is gone", || !node.host.ip("link show").contains("guest0"));
    drop((one, two));
    node.finish();
}

#[test]
fn a_port_of_a_socket_of_the_node_is_not_lent() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        let own = udp(&node, &node.host, v, 40_001, 9000);
        own.echo(b"the node").unwrap();
        let server = EchoServer::open(&node.beyond, beyond(v, 9001));
        let host = TcpEcho::connect(&node.host, &server, beyond(v, 9001), SOON).unwrap();
        let socket = udp_socket(&one.host, any(v, 40_001));
        socket.connect(beyond(v, 9000)).unwrap();
        socket.send(b"an endpoint").unwrap();
        let (_, seen) = own.server.recv_from(&mut [0; 64]).unwrap();
        assert!(seen.port() >= NAT_LEAST && seen.port() != 40_001, "{seen}");
        assert_eq!(own.echo(b"the node again").unwrap().seen.port(), 40_001);

        let port = host.client.local_addr().unwrap().port();
        let client = one.host.run(|| {
            let socket = Socket::new(Domain::for_address(any(v, 0)), Type::STREAM, None).unwrap();
            socket.bind(&any(v, port).into()).unwrap();
            socket.connect_timeout(&beyond(v, 9001).into(), SOON).unwrap();
            socket
        });
        let (_, seen) = server.accept(SOON).unwrap();
        assert_eq!(seen.ip(), Addresses::NODE.of(v));
        assert_ne!(seen.port(), port);
        drop(client);
    }
    drop((one, two));
    node.finish();
}

#[test]
fn errors_about_what_was_sent_come_to_who_sent_it() {
    let (node, one, two) = pair(NodeSpec { beyond_mtu: 1300, ..NodeSpec::default() });
    for v in Version::ALL {
        // Somebody else has the port, so that the error speaks of another one.
        udp(&node, &two.host, v, 40_000, 9000).echo(b"first").unwrap();
        let nobody = udp_socket(&one.host, any(v, 40_000));
        nobody.connect(beyond(v, 9)).unwrap();
        nobody.set_read_timeout(Some(SOON)).unwrap();
        nobody.send(b"is anybody there").unwrap();
        let refused = nobody.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{v:?}");

        // The way beyond takes less than the endpoint's device.
        let mut tcp = tcp(&node, &one.host, v, 9001);
        tcp.stream(1_000_000).unwrap();

        let target = Addresses::BEYOND.of(v).to_string();
        let output = one.host.run(|| try_run("ping", &["-n", "-c", "1", "-W", "20", "-t", "2", &target]));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&Addresses::OUTSIDE.of(v).to_string()), "{v:?} {text}");
    }
    drop((one, two));
    node.finish();
}

#[test]
fn errors_that_an_endpoint_sends_speak_of_what_came_in() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        udp(&node, &two.host, v, 40_000, 9000).echo(b"first").unwrap();
        let echo = udp(&node, &one.host, v, 40_000, 9000);
        let seen = echo.echo(b"hello").unwrap().seen;
        assert_ne!(seen.port(), 40_000);
        drop(echo.client);
        echo.server.connect(seen).unwrap();
        echo.server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // A process that another test starts just then has a copy of the client's socket for a moment, which hears it.
        eventually("the error", || {
            let said = echo.server.send(b"are you there").and_then(|_| echo.server.recv(&mut [0; 8]));
            said.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
    drop((one, two));
    node.finish();
}

#[test]
fn fragments_leave_and_come_back() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        udp(&node, &two.host, v, 40_000, 9000).echo(b"first").unwrap();
        let echo = udp(&node, &one.host, v, 40_000, 9000);
        for size in [4000, 9000] {
            let seen = echo.echo(&vec![0x5a; size]).unwrap().seen;
            assert_eq!(seen.ip(), Addresses::NODE.of(v));
            assert_ne!(seen.port(), 40_000);
        }
        Ping::open(&one.host, None, Addresses::BEYOND.of(v)).echo(4000).unwrap();
    }
    drop((one, two));
    node.finish();
}

#[test]
fn sctp_is_masqueraded_by_address_only() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        let open =
            |host: &Host| SctpEcho::open(host, &node.beyond, beyond(v, 36_412), beyond(v, 36_412), 36_412);
        assert_eq!(open(&one.host).echo(SOON), Ok(Addresses::NODE.of(v)));
        let before = node.tally();
        assert_eq!(open(&two.host).echo(NEVER), Err(Blocked::Forward), "the port is in use");
        eventually("it is dropped for that", || {
            node.since(&before).drops().contains_key(&(Reason::NAT_NO_MAPPING.0, Egress as u8))
        });
    }
    drop((one, two));
    node.finish();
}

#[test]
fn who_reached_an_endpoint_by_its_own_address_is_answered_from_there() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        let at = SocketAddr::new(one.ip(v), 9000);
        let asked = UdpEcho::open(&node.beyond, None, &one.host, at, at);
        assert_eq!(asked.echo(b"hello").unwrap().seen.ip(), Addresses::BEYOND.of(v));
        let mut tcp = TcpEcho::open(&node.beyond, &one.host, at, at, SOON).unwrap();
        tcp.echo(b"hello").unwrap();
        Ping::open(&node.beyond, None, one.ip(v)).echo(56).unwrap();
    }
    assert!(node.mappings().list().unwrap().is_empty());
    drop((one, two));
    node.finish();
}

#[test]
fn a_destination_that_the_host_translates_is_masqueraded_under_its_real_address() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        let service = Addresses::virtual_ip(7).of(v);
        node.translate(service, Addresses::BEYOND.of(v));
        let at = SocketAddr::new(service, 9000);
        let echo = UdpEcho::open(&one.host, None, &node.beyond, beyond(v, 9000), at);
        for _ in 0..3 {
            assert_eq!(echo.echo(b"by its name").unwrap().seen.ip(), Addresses::NODE.of(v));
        }
        // And a published port is answered from the node's address.
        let family = if v == Version::V4 { "udp" } else { "tcp" };
        if v == Version::V4 {
            node.publish(family, 8053, one.ip(v), 53);
            let listen = SocketAddr::new(one.ip(v), 53);
            let target = SocketAddr::new(Addresses::NODE.of(v), 8053);
            let asked = UdpEcho::open(&node.beyond, None, &one.host, listen, target);
            assert_eq!(asked.echo(b"hello").unwrap().seen.ip(), Addresses::BEYOND.of(v));
        }
    }
    drop((one, two));
    node.finish();
}

#[test]
fn a_node_that_is_judged_still_masquerades_and_judges_only_its_own() {
    let (node, one, two) = pair(NodeSpec::default());
    node.judge_host();
    for v in Version::ALL {
        let mut echo = tcp(&node, &one.host, v, 9001);
        echo.echo(b"not the node's").unwrap();
        assert_eq!(udp(&node, &one.host, v, 40_000, 9000).echo(b"nor this").unwrap().seen.port(), 40_000);
        let own = udp(&node, &node.host, v, 0, 9002);
        own.patience(NEVER);
        assert_eq!(own.echo(b"the node's").unwrap_err(), Blocked::Forward);
    }
    drop((one, two));
    node.finish();
}

#[test]
fn connections_go_on_when_programs_are_replaced_and_end_with_their_endpoint() {
    let (node, one, two) = pair(NodeSpec::default());
    for v in Version::ALL {
        udp(&node, &two.host, v, 40_000, 9000).echo(b"first").unwrap();
        let mut tcp = tcp(&node, &one.host, v, 9001);
        tcp.echo(b"before").unwrap();
        let echo = udp(&node, &one.host, v, 40_000, 9000);
        let seen = echo.echo(b"before").unwrap().seen;
        // What an agent does that starts again.
        let object = Object::load(&node.pins, &node.maps, &Hook::WITHOUT_TUNNEL).unwrap();
        node.attach_uplinks(&object);
        tcp.echo(b"after").unwrap();
        assert_eq!(echo.echo(b"after").unwrap().seen, seen);
        node.attach_uplinks(&node.object);
        assert_eq!(echo.echo(b"and again").unwrap().seen, seen);

        // Its address goes to somebody else.
        let purged = node.mappings().purge(&[one.ip(v)]).unwrap();
        assert_eq!(purged, 4, "two connections");
        let left = node.mappings().list().unwrap();
        assert!(
            left.iter().all(|(key, nat)| key.src().ip() != one.ip(v) && key.becomes(nat).ip() != one.ip(v))
        );
    }
    drop((one, two));
    node.finish();
}

#[test]
fn a_full_table_forgets_the_oldest_and_goes_on() {
    let sizes = Sizes { nat: 1024, ..NodeSpec::default().sizes };
    let (node, one, two) = pair(NodeSpec { sizes, ..NodeSpec::default() });
    let v = Version::V4;
    let server = udp_socket(&node.beyond, beyond(v, 9000));
    server.set_read_timeout(Some(SOON)).unwrap();
    let mut first = tcp(&node, &two.host, v, 9001);
    for round in 0..1500_u16 {
        let socket = udp_socket(&one.host, any(v, 0));
        socket.connect(beyond(v, 9000)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.send(&round.to_be_bytes()).unwrap();
        let mut buffer = [0; 8];
        let (length, seen) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..length], seen).unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 2, "flow {round}");
        // Who speaks is remembered.
        first.echo(b"still here").unwrap();
    }
    let entries = node.mappings().list().unwrap().len();
    assert!((512..=1024).contains(&entries), "{entries}");
    drop((first, one, two));
    node.finish();
}

#[test]
fn what_has_expired_is_cleared_whole() {
    let (node, one, two) = pair(NodeSpec::default());
    node.edit_config(|config| config.any = 15);
    for v in Version::ALL {
        udp(&node, &one.host, v, 40_000, 9000).echo(b"soon over").unwrap();
    }
    let tcp = tcp(&node, &two.host, Version::V4, 9001);
    let mappings = node.mappings();
    assert_eq!(mappings.list().unwrap().len(), 6);
    eventually("expired mappings are gone", || {
        mappings.clear_expired(villus_datapath::now()).unwrap();
        mappings.list().unwrap().len() == 2
    });
    drop((mappings, tcp, one, two));
    node.finish();
}
