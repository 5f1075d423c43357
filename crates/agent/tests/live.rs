//! What changes on the node while the agent runs: uplinks, addresses, devices of endpoints, who denies.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::IpAddr;

use common::{TestNode, Workload, allow};
use villus_abi::endpoint::{FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER};
use villus_api::EndpointRef;
use villus_api::model::{EndpointChangeRequest, EndpointState, MonitorQuery, PolicyDelete, VerifyRequest};
use villus_datapath::{Hook, Links, Maps, Pins};
use villus_flows::{FilterSpec, Record};
use villus_testbed::{alone, eventually, run, run_ip as ip};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn maps() -> Maps {
    Maps::existing(&Pins::existing("/tmp/node/bpf".as_ref()).unwrap()).unwrap()
}

/// Whether the path knows an address as the node's or an endpoint's.
fn is_local(address: &str) -> bool {
    match address.parse().unwrap() {
        IpAddr::V4(v4) => maps().addrs4.get(&u32::from_ne_bytes(v4.octets())).unwrap().is_some(),
        IpAddr::V6(v6) => maps().addrs6.get(&v6.octets()).unwrap().is_some(),
    }
}

fn is_attached(device: &str) -> bool {
    let shown: serde_json::Value = serde_json::from_str(&ip(&format!("-j link show {device}"))).unwrap();
    let index = u32::try_from(shown[0]["ifindex"].as_u64().unwrap()).unwrap();
    let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
    let attached = Links::new(&pins).list(&[index]).unwrap();
    attached.iter().any(|a| a.ifindex == index && a.hook == Hook::FromNetwork && a.alive)
}

fn delivery(id: u16) -> u16 {
    let record = maps().endpoints.get(&id.into()).unwrap().unwrap();
    record.flags & (FLAG_DELIVER_PEER | FLAG_DELIVER_DEVICE)
}

fn status(node: &TestNode) -> String {
    format!("{:?}", node.client().status_details().unwrap().lines)
}

#[test]
fn uplinks_and_addresses_are_followed() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    assert!(status(&node).contains("no uplink"));

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
    let outside: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    eventually("its program is there", || is_attached("up0"));
    eventually("its addresses are known", || is_local("192.0.2.2") && is_local("2001:db8::2"));
    assert!(status(&node).contains("uplinks up0"));
    let accept_ra = std::fs::read_to_string("/proc/sys/net/ipv6/conf/up0/accept_ra").unwrap();
    assert_eq!(accept_ra.trim(), "2", "advertisements are heeded though the node forwards");
    for to in outside {
        eventually("the client is masqueraded", || !client.pings_in_vain(to));
    }

    let repaired = || {
        let metrics = node.client().metrics().unwrap();
        metrics.iter().find(|m| m.name == "villus_reconcile_repaired_total").unwrap().value
    };
    let before = repaired();
    eventually("what somebody flushed is made again", || {
        // Again, if the agent was about to write the table for a reason of its own, which is no repair.
        run("nft", &["flush", "ruleset"]);
        std::thread::sleep(std::time::Duration::from_secs(1));
        repaired() > before
    });
    for to in outside {
        eventually("masqueraded again", || !client.pings_in_vain(to));
    }
    eventually("until then a comparison names it", || {
        // Whether or not it is there just now.
        run("nft", &["flush", "ruleset"]);
        let report =
            node.client().verify(&VerifyRequest { repair: true, ..VerifyRequest::default() }).unwrap();
        let named = report.differences.iter().any(|d| d.map == "nftables inet villus" && d.repaired);
        named && node.client().verify(&VerifyRequest::default()).unwrap().clean()
    });
    run("nft", &["add chain inet villus theirs { type filter hook postrouting priority 0; policy drop; }"]);
    for to in outside {
        eventually("a rule of others is out of it again", || !client.pings_in_vain(to));
    }

    ip("addr add 198.51.100.7/32 dev up0");
    ip("addr add 2001:db8::7/128 dev up0 nodad");
    eventually("more addresses", || is_local("198.51.100.7") && is_local("2001:db8::7"));
    assert!(client.pings("198.51.100.7".parse().unwrap()) && client.pings("2001:db8::7".parse().unwrap()));
    ip("addr del 198.51.100.7/32 dev up0");
    ip("addr del 2001:db8::7/128 dev up0");
    eventually("fewer addresses", || !is_local("198.51.100.7") && !is_local("2001:db8::7"));
    assert!(is_local("192.0.2.2") && is_local("2001:db8::2"));

    ip("link set up0 down");
    eventually("the kernel has taken its IPv6 address", || !is_local("2001:db8::2"));
    assert!(is_attached("up0"), "what is switched off may be switched on again");
    ip("link set up0 name wan7");
    ip("link set wan7 up");
    ip("addr replace 2001:db8::2/64 dev wan7 nodad");
    ip("route replace default via 192.0.2.1");
    ip("-6 route replace default via 2001:db8::1");
    eventually("the new name", || status(&node).contains("uplinks wan7"));
    eventually("its program is there again", || is_attached("wan7"));
    for to in outside {
        eventually("masqueraded under the new name", || !client.pings_in_vain(to));
    }

    ip("link del wan7");
    eventually("no uplink is left", || status(&node).contains("no uplink"));
    eventually("nor its addresses", || !is_local("192.0.2.2") && !is_local("2001:db8::2"));
    assert!(client.pings("10.11.0.1".parse().unwrap()), "the router stays");
}

/// What the kernel has dropped on a device because its other end took nothing.
fn dropped(device: &str) -> u64 {
    let text: serde_json::Value = serde_json::from_str(&ip(&format!("-j -s link show {device}"))).unwrap();
    text[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
}

fn device_of(workload: &Workload) -> String {
    workload.endpoint.status.networking.interface_name.clone()
}

#[test]
fn a_device_whose_other_end_goes_comes_or_moves_is_delivered_to_so_that_nothing_vanishes() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let server = node.workload("server", &["k8s:app=server"]);
    let (device, id) = (device_of(&server), server.id());
    eventually("to the peer", || delivery(id) == FLAG_DELIVER_PEER);
    assert!(client.pings(server.v4()) && client.pings(server.v6()));

    ip("-n server link set eth0 down");
    eventually("to the device", || delivery(id) == FLAG_DELIVER_DEVICE);
    let before = dropped(&device);
    let socket = client.udp(client.v4(), 4000);
    for _ in 0..10 {
        socket.send_to(b"?", (server.v4(), 9)).unwrap();
    }
    eventually("all have got there", || dropped(&device) - before >= 10);
    assert_eq!(dropped(&device) - before, 10, "each is counted where it ends");
    let inside = |netns: &str| {
        for (address, gateway) in [(server.v4(), "10.11.0.1"), (server.v6(), "fd11::1")] {
            let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
            ip(&format!("-n {netns} addr replace {address}/{length} dev eth0{nodad}"));
            ip(&format!("-n {netns} route replace {gateway} dev eth0"));
            ip(&format!("-n {netns} route replace default via {gateway} dev eth0"));
        }
    };
    ip("-n server link set eth0 up");
    inside("server");
    eventually("to the peer again", || delivery(id) == FLAG_DELIVER_PEER);
    assert!(client.pings(server.v4()) && client.pings(server.v6()));

    ip("netns add other");
    ip("-n server link set eth0 netns other");
    eventually("on its way", || delivery(id) == FLAG_DELIVER_DEVICE);
    ip("-n other link set eth0 up");
    inside("other");
    eventually("to the peer elsewhere", || delivery(id) == FLAG_DELIVER_PEER);
    assert!(client.pings(server.v4()) && client.pings(server.v6()));

    // On this side the kernel forgets routes and neighbours with it.
    ip(&format!("link set {device} down"));
    eventually("switched off", || delivery(id) == FLAG_DELIVER_DEVICE);
    ip(&format!("link set {device} up"));
    eventually("switched on", || delivery(id) == FLAG_DELIVER_PEER);
    for address in [server.v4(), server.v6()] {
        eventually("a route to it", || ip(&format!("route get {address}")).contains(&device));
    }
    assert!(client.pings(server.v4()) && client.pings(server.v6()));
}

#[test]
fn adopted_devices_are_followed_by_index() {
    alone!();
    let node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let adopt = |name: &str| {
        let request = EndpointChangeRequest {
            adopt_interface: Some(name.to_owned()),
            mac: Some("02:00:00:00:00:aa".to_owned().try_into().unwrap()),
            owner: Some(name.to_owned()),
            ..EndpointChangeRequest::default()
        };
        node.client().create_endpoint(&EndpointRef::Id(0), &request).unwrap()
    };
    ip("tuntap add dev tap0 mode tap");
    ip("link set tap0 up");
    let tap = adopt("tap0");
    assert_eq!(delivery(tap.id), FLAG_DELIVER_DEVICE);
    let shown = |id| node.client().endpoint(&EndpointRef::Id(id)).unwrap().status;
    ip("link set tap0 name tap9");
    eventually("its new name", || shown(tap.id).networking.interface_name == "tap9");
    ip("link del tap9");
    eventually("it is waited for", || shown(tap.id).state == EndpointState::DeviceMissing);
    node.client().delete_endpoint(&EndpointRef::Id(tap.id)).unwrap();

    // Both ends on the node, then one in a namespace.
    ip("link add near type veth peer name eth0 address 02:00:00:00:00:aa");
    ip("link set eth0 up");
    ip("link set near up");
    let near = adopt("near");
    assert_eq!(delivery(near.id), FLAG_DELIVER_DEVICE);
    ip("netns add inner");
    ip("link set eth0 netns inner");
    ip("-n inner link set eth0 up");
    let address = near.status.networking.addressing[0].ipv4.unwrap();
    ip(&format!("-n inner addr add {address}/32 dev eth0"));
    ip("-n inner route add 10.11.0.1 dev eth0");
    ip("-n inner route add default via 10.11.0.1");
    eventually("to the peer", || delivery(near.id) == FLAG_DELIVER_PEER);
    assert!(client.pings(address.into()));
}

/// The policies behind the last packet to an endpoint that was dropped.
fn last_drop(node: &TestNode, endpoint: u16) -> Vec<String> {
    let filter = FilterSpec { types: "drop".into(), ..FilterSpec::default() };
    let query = MonitorQuery { filter, last: 4096, follow: false };
    let client = node.client();
    let records = client.monitor(&query).unwrap().filter_map(|record| match record.unwrap() {
        Record::Event(event) if event.endpoint == endpoint => Some(event),
        _ => None,
    });
    let last = records.last();
    last.iter()
        .flat_map(|event| event.policies.iter())
        .flat_map(|all| all.iter())
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_policies_that_a_drop_names_change_when_policies_do() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let named = |names: &[&str]| {
        eventually(&format!("drops name {names:?}"), || {
            client.asks_in_vain(server.v4(), 80) && last_drop(&node, server.id()) == names
        });
    };
    node.import(&allow("first", "server", "friend", 80));
    named(&["default/first"]);
    named(&["default/first"]);
    // The same entries, for other reasons.
    node.import(&allow("second", "server", "friend", 80));
    named(&["default/first", "default/second"]);
    let gone = PolicyDelete { name: "first".into(), ..PolicyDelete::default() };
    node.client().delete_policy(&gone).unwrap();
    named(&["default/second"]);
}
