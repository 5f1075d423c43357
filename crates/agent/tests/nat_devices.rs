//! Masquerading by the agent's programs on uplinks, beside devices that have none of them: a link without Ethernet headers, a bridge
//! without a default route. Whatever comes, goes or is renamed, nothing leaves with an endpoint's own address.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/refusal.rs"]
mod refusal;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{PATIENCE, TestNode, Workload, echoes};
use refusal::Refusal;
use villus_api::model::{Leaving, VerifyRequest, WhyRequest};
use villus_net::NetnsRef;
use villus_testbed::{Host, TunWire, alone, eventually, run, run_ip as ip};

/// A way out: a device of the node, its addresses, and who is at its other end.
struct Way {
    device: &'static str,
    own: [&'static str; 2],
    far: [&'static str; 2],
}

const UPLINK: Way =
    Way { device: "up0", own: ["192.0.2.2", "2001:db8::2"], far: ["192.0.2.1", "2001:db8::1"] };
const TUN: Way =
    Way { device: "tun0", own: ["203.0.113.2", "2001:db8:7::2"], far: ["203.0.113.1", "2001:db8:7::1"] };
const BRIDGE: Way =
    Way { device: "br0", own: ["198.51.100.2", "2001:db8:b::2"], far: ["198.51.100.1", "2001:db8:b::1"] };
/// Addresses of the host outside that are reached by default routes, wherever these lead.
const BEYOND: [&str; 2] = ["198.18.0.1", "2001:db8:ff::1"];

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// A host to which all three ways lead. It has no way back to endpoints' own addresses.
struct Outside {
    host: Host,
    _tun: TunWire,
}

impl Outside {
    fn new() -> Self {
        let host = Host::named("outside");
        let node = Host::here("node");
        ip(&format!("link add up0 type veth peer name far0 netns {}", host.name()));
        ip(&format!("link add port0 type veth peer name side0 netns {}", host.name()));
        ip("link add br0 type bridge mcast_snooping 0");
        ip("link set port0 master br0");
        for device in ["up0", "port0", "br0"] {
            ip(&format!("link set {device} up"));
        }
        let tun = TunWire::open((&node, "tun0"), (&host, "wire0"));
        for (way, other) in [(UPLINK, "far0"), (TUN, "wire0"), (BRIDGE, "side0")] {
            host.ip(&format!("link set {other} up"));
            number(way.device, &way);
            for (far, length) in way.far.iter().zip([24, 64]) {
                host.ip(&format!("addr add {far}/{length} dev {other} {}", nodad(far)));
            }
        }
        for (to, length) in BEYOND.iter().zip([32, 128]) {
            host.ip(&format!("addr add {to}/{length} dev lo {}", nodad(to)));
        }
        default_by(&UPLINK);
        Self { host, _tun: tun }
    }

    /// Who the host outside takes a workload for that sends it a datagram. What the neighbour table delays is sent again.
    fn sees(&self, client: &Workload, to: &str) -> IpAddr {
        let to: IpAddr = to.parse().unwrap();
        let server = self.host.run(|| UdpSocket::bind(SocketAddr::new(to, 0))).unwrap();
        server.set_nonblocking(true).unwrap();
        let socket = client.udp(own(client, to), 0);
        let (mut from, mut buffer) = (None, [0; 8]);
        eventually("a datagram is heard outside", || {
            socket.send_to(b"hello", server.local_addr().unwrap()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            from = server.recv_from(&mut buffer).ok().map(|(_, from)| from.ip());
            from.is_some()
        });
        from.unwrap()
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

fn own(client: &Workload, to: IpAddr) -> IpAddr {
    if to.is_ipv4() { client.v4() } else { client.v6() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Gives a device of the node the addresses of a way.
fn number(device: &str, way: &Way) {
    for (own, length) in way.own.iter().zip([24, 64]) {
        ip(&format!("addr add {own}/{length} dev {device} {}", nodad(own)));
    }
}

/// Default routes of both families by a way, and by no other.
fn default_by(way: &Way) {
    for (family, far) in ["-4", "-6"].into_iter().zip(way.far) {
        ip(&format!("{family} route replace default via {far}"));
    }
}

fn leaving(node: &TestNode, client: &Workload, to: &str) -> Leaving {
    let src = client.id().to_string();
    let request = WhyRequest { src, dst: to.into(), port: "53/udp".into(), source_port: None };
    let mut leaving = None;
    eventually("the kernel does as is wanted", || {
        let reply = node.client().why(&request).unwrap();
        let (kernel, wanted) = (reply.kernel.leaving.unwrap(), reply.wanted.leaving.unwrap());
        leaving = (kernel == wanted).then_some(kernel);
        leaving.is_some()
    });
    leaving.unwrap()
}

fn masqueraded(by: &str, addresses: &[&str]) -> Leaving {
    Leaving {
        by: by.into(),
        rule: "masquerade".into(),
        prefix: None,
        addresses: addresses.iter().map(|&text| text.to_owned()).collect(),
    }
}

fn status(node: &TestNode) -> String {
    format!("{:?}", node.client().status_details().unwrap().lines)
}

/// The devices that the table leaves alone, as `nft` names them.
fn left_alone() -> BTreeSet<String> {
    let text = run("nft", &["-j", "list", "set", "inet", "villus", "uplinks"]);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sets = answer["nftables"].as_array().unwrap();
    let elements = sets.iter().find_map(|object| object["set"]["elem"].as_array());
    let name = |element: &serde_json::Value| element.as_str().map_or(element.to_string(), str::to_owned);
    elements.into_iter().flatten().map(name).collect()
}

fn only(device: &str) -> BTreeSet<String> {
    BTreeSet::from([device.to_owned()])
}

fn is_clean(node: &TestNode) -> bool {
    node.client().verify(&VerifyRequest::default()).unwrap().clean()
}

#[test]
fn what_leaves_by_any_device_bears_its_address() {
    alone!();
    let outside = Outside::new();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    eventually("the table leaves the uplink alone", || left_alone() == only("up0"));
    for way in [UPLINK, TUN, BRIDGE] {
        for (own, far) in way.own.into_iter().zip(way.far) {
            assert_eq!(outside.sees(&client, far), address(own), "by {}", way.device);
            assert!(client.pings(address(far)), "by {}", way.device);
            let wanted = match way.device {
                "up0" => masqueraded("bpf", &[own]),
                _ => masqueraded("nftables", &[]),
            };
            assert_eq!(leaving(&node, &client, far), wanted, "by {}", way.device);
        }
    }
    let said = status(&node);
    assert!(said.contains("IPv4: BPF, IPv6: BPF"), "{said}");
    assert!(said.contains("nftables on devices without our programs"), "{said}");
    eventually("nothing differs", || is_clean(&node));

    // Somebody takes our programs off the uplink, or the table away.
    run("nft", &["delete", "table", "inet", "villus"]);
    eventually("the table comes back", || run("nft", &["list", "tables"]).contains("villus"));
    eventually("with the same devices", || left_alone() == only("up0"));
    for (own, far) in TUN.own.into_iter().zip(TUN.far) {
        eventually("masqueraded again", || outside.sees(&client, far) == address(own));
    }
}

/// Datagrams from one port of a workload to one address outside, all the time, and who was seen to send them.
struct Traffic {
    stop: Arc<AtomicBool>,
    ends: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
    own: IpAddr,
}

#[derive(Default)]
struct Seen {
    ever: BTreeSet<IpAddr>,
    last: Option<IpAddr>,
}

impl Traffic {
    fn new(outside: &Outside, client: &Workload, to: &str) -> Self {
        let to = address(to);
        let server = outside.host.run(|| UdpSocket::bind(SocketAddr::new(to, 7000))).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let own = own(client, to);
        let socket = client.udp(own, 45_000);
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let stopped = stop.clone();
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // While there is no way the kernel says so.
                let _ = socket.send_to(b"on and on", SocketAddr::new(to, 7000));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let (stopped, heard) = (stop.clone(), seen.clone());
        let receiver = std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((_, from)) = server.recv_from(&mut buffer) else { continue };
                let mut heard = heard.lock().unwrap();
                heard.ever.insert(from.ip());
                heard.last = Some(from.ip());
            }
        });
        Self { stop, ends: vec![sender, receiver], seen, own }
    }

    /// Waits until datagrams come from an address; none may have come from the workload's own.
    fn comes_from(&self, address: IpAddr) {
        self.seen.lock().unwrap().last = None;
        eventually(&format!("datagrams from {address}"), || self.seen.lock().unwrap().last == Some(address));
        let ever = self.seen.lock().unwrap().ever.clone();
        assert!(!ever.contains(&self.own), "an endpoint's own address got out: {ever:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for end in self.ends.drain(..) {
            let _ = end.join();
        }
    }
}

#[test]
fn devices_that_come_go_and_change_their_names_let_no_endpoints_address_out() {
    alone!();
    let outside = Outside::new();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    eventually("the table leaves the uplink alone", || left_alone() == only("up0"));
    let traffic = BEYOND.map(|to| Traffic::new(&outside, &client, to));
    let come_from = |way: &Way| {
        for (traffic, own) in traffic.iter().zip(way.own) {
            traffic.comes_from(address(own));
        }
    };
    come_from(&UPLINK);

    // The way out changes to a device without our programs, and back.
    for _ in 0..2 {
        default_by(&TUN);
        come_from(&TUN);
        eventually("no uplink is left alone", || left_alone().is_empty());
        default_by(&UPLINK);
        come_from(&UPLINK);
        eventually("the uplink is left alone again", || left_alone() == only("up0"));
        come_from(&UPLINK);
    }

    // A bridge becomes an uplink beside the other, and is none any more.
    for (family, far) in ["-4", "-6"].into_iter().zip(BRIDGE.far) {
        ip(&format!("{family} route add default via {far} metric 5000"));
    }
    let both = BTreeSet::from(["br0".to_owned(), "up0".to_owned()]);
    eventually("both are left alone", || left_alone() == both);
    for (own, far) in BRIDGE.own.into_iter().zip(BRIDGE.far) {
        assert_eq!(outside.sees(&client, far), address(own));
        eventually("by our programs", || leaving(&node, &client, far).by == "bpf");
    }
    for family in ["-4", "-6"] {
        ip(&format!("{family} route del default dev br0"));
    }
    eventually("one is left alone", || left_alone() == only("up0"));
    for (own, far) in BRIDGE.own.into_iter().zip(BRIDGE.far) {
        eventually("by its own address", || outside.sees(&client, far) == address(own));
        eventually("by the table", || leaving(&node, &client, far).by == "nftables");
    }
    come_from(&UPLINK);

    // Another name, for which the kernel wants the device switched off, and with it go its routes.
    ip("link set up0 down");
    ip("link set up0 name wan0");
    ip("link set wan0 up");
    ip("-4 addr flush dev wan0");
    number("wan0", &UPLINK);
    default_by(&UPLINK);
    come_from(&UPLINK);
    eventually("under its new name", || left_alone() == only("wan0"));
    come_from(&UPLINK);
    eventually("nothing differs", || is_clean(&node));

    // Another device in its place, of the same name.
    ip("link del wan0");
    ip(&format!("link add wan0 type veth peer name far0 netns {}", outside.host.name()));
    outside.host.ip("link set far0 up");
    for (far, length) in UPLINK.far.iter().zip([24, 64]) {
        outside.host.ip(&format!("addr add {far}/{length} dev far0 {}", nodad(far)));
    }
    ip("link set wan0 up");
    number("wan0", &UPLINK);
    default_by(&UPLINK);
    come_from(&UPLINK);
    eventually("the new one is left alone", || left_alone() == only("wan0"));
    come_from(&UPLINK);
    eventually("nothing differs", || is_clean(&node));
    assert!(!status(&node).contains("connections by another device"), "{}", status(&node));
}

#[test]
fn connections_go_on_when_the_table_does_it_all() {
    alone!();
    let outside = Outside::new();
    let mut node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    eventually("the table leaves the uplink alone", || left_alone() == only("up0"));
    outside_serves(&outside);
    let mut streams = UPLINK.far.map(|far| {
        let stream = client.connects(address(far), 9000).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    });
    assert!(streams.iter_mut().all(echoes));
    node.stop();
    node.options.push(("enable-bpf-masquerade".into(), "false".into()));
    node.start();
    eventually("no device is left alone", || left_alone().is_empty());
    for (stream, (own, far)) in streams.iter_mut().zip(UPLINK.own.into_iter().zip(UPLINK.far)) {
        // What our programs had masqueraded keeps its port, so it is the same to the other end.
        assert!(echoes(stream), "{stream:?}");
        assert_eq!(outside.sees(&client, far), address(own));
        assert_eq!(leaving(&node, &client, far), masqueraded("nftables", &[]));
    }
    assert!(status(&node).contains("IPv4: nftables, IPv6: nftables"));
    eventually("nothing differs", || is_clean(&node));
}

#[test]
fn an_uplink_that_does_not_take_our_programs_is_the_tables() {
    alone!();
    let outside = Outside::new();
    // Somebody's queue stands where a program of what leaves would.
    run("tc", &["qdisc", "add", "dev", "up0", "ingress"]);
    let node = TestNode::started(&[("attach-mode", "tc")]);
    let client = node.workload("client", &["k8s:app=client"]);
    eventually("status says so", || status(&node).contains("the table of nftables masquerades there"));
    for (own, far) in UPLINK.own.into_iter().zip(UPLINK.far) {
        assert_eq!(outside.sees(&client, far), address(own));
        assert_eq!(leaving(&node, &client, far), masqueraded("nftables", &[]));
    }
    assert!(left_alone().is_empty());
    assert!(status(&node).contains("nftables on devices without our programs (up0 too)"));
}

#[test]
fn programs_that_the_kernel_does_not_take_leave_masquerading_to_the_table() {
    alone!();
    let outside = Outside::new();
    outside_serves(&outside);
    let refusal = Refusal::of(|name| name.contains("network_na"));
    let mut node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    eventually("status says so", || {
        status(&node)
            .contains("the kernel does not take our programs for it, and nftables does it everywhere")
    });
    eventually("by the table", || status(&node).contains("IPv4: nftables, IPv6: nftables"));
    for (own, far) in UPLINK.own.into_iter().zip(UPLINK.far) {
        assert_eq!(outside.sees(&client, far), address(own));
        assert_eq!(leaving(&node, &client, far), masqueraded("nftables", &[]));
    }
    assert!(left_alone().is_empty());
    eventually("nothing differs", || is_clean(&node));
    let mut streams = UPLINK.far.map(|far| client.connects(address(far), 9000).unwrap());
    assert!(streams.iter_mut().all(echoes));

    // Another kernel takes them.
    node.stop();
    refusal.end();
    node.start();
    eventually("the uplink is left alone", || left_alone() == only("up0"));
    assert!(streams.iter_mut().all(echoes));
    for (own, far) in UPLINK.own.into_iter().zip(UPLINK.far) {
        assert_eq!(outside.sees(&client, far), address(own));
        assert_eq!(leaving(&node, &client, far), masqueraded("bpf", &[own]));
    }
}

/// Listens on the far end of the uplink and echoes, for ever.
fn outside_serves(outside: &Outside) {
    let netns = NetnsRef::Name(outside.host.name().to_owned()).open().unwrap();
    for far in UPLINK.far {
        common::serves(&netns, SocketAddr::new(address(far), 9000));
    }
}
