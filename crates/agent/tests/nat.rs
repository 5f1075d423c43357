//! Masquerading by the agent's programs: what endpoints send out of the cluster, the list of exceptions, and the change from and to
//! a table of nftables.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;

use common::{PATIENCE, TestNode, Workload, echoes};
use villus_api::model::{Leaving, VerifyRequest, WhyReply, WhyRequest};
use villus_datapath::{Mappings, Maps, Pins};
use villus_net::{Netns, NetnsRef};
use villus_testbed::{alone, eventually, run, run_ip as ip};

const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const LIST: &str = "/tmp/ip-masq-agent";

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// A host beyond an uplink; it has no way back to endpoints' own addresses.
fn outside() -> Netns {
    ip("netns add outside");
    ip("link add up0 type veth peer name far netns outside");
    ip("link set up0 up");
    ip("-n outside link set far up");
    for (near, far) in [("192.0.2.2/24", "192.0.2.1/24"), ("2001:db8::2/64", "2001:db8::1/64")] {
        let nodad = if near.contains(':') { " nodad" } else { "" };
        ip(&format!("addr add {near} dev up0{nodad}"));
        ip(&format!("-n outside addr add {far} dev far{nodad}"));
    }
    ip("route add default via 192.0.2.1");
    ip("-6 route add default via 2001:db8::1");
    NetnsRef::Name("outside".into()).open().unwrap()
}

/// Who the host outside takes a workload for that sends it a datagram. What the neighbour table delays is sent again.
fn seen(outside: &Netns, client: &Workload, to: &str) -> IpAddr {
    let to: IpAddr = to.parse().unwrap();
    let server = outside.run(|| UdpSocket::bind(SocketAddr::new(to, 0))).unwrap().unwrap();
    server.set_nonblocking(true).unwrap();
    let own = if to.is_ipv4() { client.v4() } else { client.v6() };
    let socket = client.udp(own, 0);
    let (mut from, mut buffer) = (None, [0; 8]);
    eventually("a datagram is heard outside", || {
        socket.send_to(b"hello", server.local_addr().unwrap()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        from = server.recv_from(&mut buffer).ok().map(|(_, from)| from.ip());
        from.is_some()
    });
    from.unwrap()
}

/// Puts another list in the place of the one that is there; the agent would take the beginning of one for the whole.
fn write_list(text: &str) {
    let next = format!("{LIST}.next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, LIST).unwrap();
}

fn own(to: &str) -> IpAddr {
    if to.contains(':') { "2001:db8::2".parse().unwrap() } else { "192.0.2.2".parse().unwrap() }
}

fn ask_why(node: &TestNode, client: &Workload, to: &str) -> WhyReply {
    let src = client.id().to_string();
    let request = WhyRequest { src, dst: to.into(), port: "53/udp".into(), source_port: None };
    node.client().why(&request).unwrap()
}

/// With what a workload's packets leave the node, by the kernel's maps and as is wanted.
fn leaves(node: &TestNode, client: &Workload, to: &str) -> (Leaving, Leaving) {
    let mut leaving = None;
    eventually("the kernel does as is wanted", || {
        let reply = ask_why(node, client, to);
        leaving = reply.agree.then(|| (reply.kernel.leaving.unwrap(), reply.wanted.leaving.unwrap()));
        leaving.is_some()
    });
    leaving.unwrap()
}

fn leaving(by: &str, rule: &str, prefix: Option<&str>, lent: &[IpAddr]) -> Leaving {
    Leaving {
        by: by.into(),
        rule: rule.into(),
        prefix: prefix.map(str::to_owned),
        addresses: lent.iter().map(ToString::to_string).collect(),
    }
}

fn status(node: &TestNode) -> String {
    format!("{:?}", node.client().status_details().unwrap().lines)
}

fn tables() -> String {
    run("nft", &["list", "tables"])
}

#[test]
fn endpoints_leave_with_the_nodes_address_but_for_the_list() {
    alone!();
    let outside = outside();
    let masq = ["enable-bpf-masquerade", "enable-ip-masq-agent"].map(|name| (name, "true"));
    write_list("nonMasqueradeCIDRs: []\n");
    let mut node = TestNode::started(&[masq[0], masq[1], ("ip-masq-agent-config-path", LIST)]);
    let client = node.workload("client", &["k8s:app=client"]);
    let at_home = |to: &str| if to.contains(':') { client.v6() } else { client.v4() };
    for to in OUTSIDE {
        eventually("masqueraded", || seen(&outside, &client, to) == own(to));
        assert!(client.pings(to.parse().unwrap()));
    }
    assert!(tables().contains("villus"), "for devices without our programs: {}", tables());
    assert!(status(&node).contains("IPv4: BPF, IPv6: BPF"), "{}", status(&node));
    for to in OUTSIDE {
        let wanted = leaving("bpf", "masquerade", None, &[own(to)]);
        assert_eq!(leaves(&node, &client, to), (wanted.clone(), wanted));
    }
    let verify = || node.client().verify(&VerifyRequest::default()).unwrap();
    eventually("nothing differs", || verify().clean());

    write_list(r#"{"nonMasqueradeCIDRs": ["192.0.2.0/24", "2001:db8::/64"]}"#);
    for to in OUTSIDE {
        eventually("the list counts", || seen(&outside, &client, to) == at_home(to));
        let prefix = if to.contains(':') { "2001:db8::/64" } else { "192.0.2.0/24" };
        let wanted = leaving("bpf", "ip-masq-agent", Some(prefix), &[]);
        assert_eq!(leaves(&node, &client, to), (wanted.clone(), wanted));
        let because = format!("{prefix} is in the list of ip-masq-agent ({LIST})");
        assert!(format!("{:?}", ask_why(&node, &client, to)).contains(&because));
    }
    write_list("nonMasqueradeCIDRs: [10.0.0.0/8, 192.0.2]\n");
    eventually("what is wrong is named", || {
        let text = status(&node);
        text.contains("nonMasqueradeCIDRs[1]") && text.contains(LIST)
    });
    for to in OUTSIDE {
        assert_eq!(seen(&outside, &client, to), at_home(to), "the list of before stays");
    }
    write_list("masqLinkLocal: true\n");
    for to in OUTSIDE {
        eventually("an empty list counts", || seen(&outside, &client, to) == own(to));
    }
    eventually("nothing is wrong any more", || !status(&node).contains("nonMasqueradeCIDRs"));
    std::fs::remove_file(LIST).unwrap();
    eventually("without a file reserved prefixes are left alone", || {
        seen(&outside, &client, OUTSIDE[0]) == at_home(OUTSIDE[0])
    });
    assert_eq!(seen(&outside, &client, OUTSIDE[1]), own(OUTSIDE[1]));

    // Somebody takes away what masquerading goes by.
    let maps = || Maps::existing(&Pins::existing("/tmp/node/bpf".as_ref()).unwrap()).unwrap();
    let nat = maps().nat.unwrap();
    // The agent may look just then, and mend it by itself.
    eventually("a comparison names it and mends it", || {
        nat.prefixes.remove_if(|_, _| true).unwrap();
        nat.uplinks.remove_if(|_, _| true).unwrap();
        let named = !verify().clean();
        let repair = VerifyRequest { repair: true, ..VerifyRequest::default() };
        let report = node.client().verify(&repair).unwrap();
        assert!(report.differences.iter().all(|difference| difference.repaired), "{report:?}");
        named && !report.differences.is_empty()
    });
    eventually("nothing differs again", || verify().clean());

    // An address of the node goes, and another comes.
    ip("addr add 192.0.2.7/24 dev up0");
    ip("addr del 192.0.2.2/24 dev up0");
    ip("addr replace 192.0.2.7/24 dev up0");
    ip("route replace default via 192.0.2.1");
    write_list("masqLinkLocal: true\n");
    let other: IpAddr = "192.0.2.7".parse().unwrap();
    eventually("masqueraded with the other address", || seen(&outside, &client, OUTSIDE[0]) == other);
    let before: IpAddr = "192.0.2.2".parse().unwrap();
    let all = || Mappings::new(maps().into()).list().unwrap();
    eventually("what was lent of the old one is gone", || {
        all().iter().all(|(key, _)| key.dst().ip() != before)
    });

    // A mapping goes with its endpoint.
    let address = client.v6();
    let mappings = Mappings::new(maps().into());
    let lives = || {
        let all = mappings.list().unwrap();
        all.iter().any(|(key, nat)| key.src().ip() == address || key.becomes(nat).ip() == address)
    };
    assert!(lives());
    node.client().delete_endpoint(&villus_api::EndpointRef::Id(client.id())).unwrap();
    eventually("its mappings are gone", || !lives());
    drop(mappings);
    node.stop();
    assert!(Path::new("/tmp/node/bpf").exists());
}

#[test]
fn open_connections_go_on_when_the_way_of_masquerading_changes() {
    alone!();
    let outside = outside();
    let native = ("ipv4-native-routing-cidr", "198.51.100.0/24");
    let mut node = TestNode::started(&[("enable-bpf-masquerade", "false"), native]);
    let client = node.workload("client", &["k8s:app=client"]);
    for to in OUTSIDE {
        assert_eq!(leaves(&node, &client, to).0, leaving("nftables", "masquerade", None, &[]));
    }
    let native = leaving("nftables", "native-routing-cidr", Some(native.1), &[]);
    assert_eq!(leaves(&node, &client, "198.51.100.9").0, native);
    let mut streams = Vec::new();
    for to in OUTSIDE {
        let to: IpAddr = to.parse().unwrap();
        common::serves(&outside, SocketAddr::new(to, 9000));
        eventually("masqueraded by nftables", || !client.pings_in_vain(to));
        let stream = client.connects(to, 9000).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        streams.push(stream);
    }
    assert!(streams.iter_mut().all(echoes));
    for way in ["true", "false", "true"] {
        node.stop();
        node.options.retain(|(name, _)| name != "enable-bpf-masquerade");
        node.options.push(("enable-bpf-masquerade".into(), way.into()));
        node.start();
        eventually("the one way or the other", || {
            let left_alone = run("nft", &["list", "set", "inet", "villus", "uplinks"]).contains("up0");
            let maps = Path::new("/tmp/node/bpf/tc/globals/villus_nat4_v1").exists();
            (left_alone, maps) == (way == "true", way == "true")
        });
        for stream in &mut streams {
            assert!(echoes(stream), "{way} {stream:?}");
        }
        for to in OUTSIDE {
            eventually("and new ones come about", || seen(&outside, &client, to) == own(to));
            // Which are to go on as well.
            let stream = client.connects(to.parse().unwrap(), 9000).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            streams.push(stream);
        }
        assert!(streams.iter_mut().all(echoes));
    }
    // And through a restart that changes nothing.
    node.kill();
    assert!(streams.iter_mut().all(echoes));
    node.start();
    assert!(streams.iter_mut().all(echoes));
    node.stop();
}

/// The table as agents made it that knew no programs beside it.
const EARLIER: &str = "table inet villus {
    counter masqueraded_ipv4 {}
    counter masqueraded_ipv6 {}
    counter skipped {}
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"lxc*\" return
        ip saddr { 10.11.0.0/24 } ip daddr != { 10.11.0.0/24 } counter name masqueraded_ipv4 masquerade
        ip6 saddr { fd11::/112 } ip6 daddr != { fd11::/112 } counter name masqueraded_ipv6 masquerade
    }
}";

#[test]
fn connections_of_an_earlier_versions_table_go_on_when_programs_take_over() {
    alone!();
    let outside = outside();
    let mut node = TestNode::started(&[("enable-bpf-masquerade", "false")]);
    let client = node.workload("client", &["k8s:app=client"]);
    node.stop();
    run("nft", &["delete", "table", "inet", "villus"]);
    run("nft", &[EARLIER]);
    let mut connections: Vec<_> = OUTSIDE.map(|to| Both::open(&outside, &client, to)).into();
    assert!(connections.iter_mut().all(Both::goes_on));
    node.options.retain(|(name, _)| name != "enable-bpf-masquerade");
    node.options.push(("enable-bpf-masquerade".into(), "true".into()));
    node.start();
    assert!(connections.iter_mut().all(Both::goes_on), "from the first moment");
    eventually("our programs masquerade", || {
        run("nft", &["list", "set", "inet", "villus", "uplinks"]).contains("up0")
    });
    assert!(connections.iter_mut().all(Both::goes_on));
    let counter = run("nft", &["list", "counter", "inet", "villus", "astray"]);
    assert!(counter.contains("packets 0 "), "{counter}");
    for to in OUTSIDE {
        assert_eq!(leaves(&node, &client, to).0, leaving("bpf", "masquerade", None, &[own(to)]));
        assert_eq!(seen(&outside, &client, to), own(to));
    }
    // Nor does a look after the table, or another start, end them.
    node.stop();
    node.start();
    eventually("nothing differs", || node.client().verify(&VerifyRequest::default()).unwrap().clean());
    assert!(connections.iter_mut().all(Both::goes_on));
}

/// A connection by TCP, and questions and answers by UDP from one port.
struct Both {
    stream: TcpStream,
    socket: UdpSocket,
    server: UdpSocket,
    /// Whom the server takes for the one who asks.
    from: Option<SocketAddr>,
}

impl Both {
    fn open(outside: &Netns, client: &Workload, to: &str) -> Self {
        let to: IpAddr = to.parse().unwrap();
        common::serves(outside, SocketAddr::new(to, 9000));
        let server = outside.run(|| UdpSocket::bind(SocketAddr::new(to, 9001))).unwrap().unwrap();
        let socket = client.udp(if to.is_ipv4() { client.v4() } else { client.v6() }, 45_000);
        for socket in [&server, &socket] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        socket.connect((to, 9001)).unwrap();
        let stream = client.connects(to, 9000).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, socket, server, from: None }
    }

    fn goes_on(&mut self) -> bool {
        let mut buffer = [0; 8];
        self.socket.send(b"who").unwrap();
        let (length, from) = self.server.recv_from(&mut buffer).unwrap();
        self.server.send_to(&buffer[..length], from).unwrap();
        self.socket.recv(&mut buffer).unwrap();
        echoes(&mut self.stream) && *self.from.get_or_insert(from) == from
    }
}
