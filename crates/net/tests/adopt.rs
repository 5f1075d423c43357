//! Endpoints on devices that somebody else made.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::*;
use villus_net::*;

const WORKLOAD_4: &str = "10.9.0.10/32";
const WORKLOAD_6: &str = "fd09::10/128";

fn addresses() -> [IpAddr; 2] {
    [address("10.9.0.10"), address("fd09::10")]
}

fn adopt<'a>(device: &'a str, addresses: &'a [IpAddr]) -> AdoptSpec<'a> {
    AdoptSpec { device, owner: "vm", addresses, workload_mac: None, host_sources: &[] }
}

/// A veth as another runtime makes it: the other end in the workload, with addresses and routes.
fn foreign_veth(s: &Sandbox) -> Host {
    let w = Host::named("w");
    s.ip(&format!("link add veth7 type veth peer name eth0 netns {}", w.name()));
    s.ip("link set veth7 up");
    w.ip("link set lo up");
    w.ip("link set eth0 up");
    s.settle("veth7");
    for (net, gateway) in [(WORKLOAD_4, GATEWAY_4), (WORKLOAD_6, GATEWAY_6)] {
        w.ip(&format!("addr add {net} dev eth0{}", if net.contains(":") { " nodad" } else { "" }));
        w.ip(&format!("route add {gateway} dev eth0"));
    }
    let mac = s.ip_json("link show veth7")[0]["address"].as_str().unwrap().to_owned();
    for gateway in [GATEWAY_4, GATEWAY_6] {
        w.ip(&format!("neigh add {gateway} lladdr {mac} dev eth0 nud permanent"));
    }
    w
}

#[test]
fn a_foreign_veth_is_adopted_and_let_go() {
    let s = Sandbox::new();
    let w = foreign_veth(&s);
    let clean = s.snapshot();
    let addresses = addresses();
    let none = BTreeMap::new();
    let adopted = s.inside(|| adopt_interface(&adopt("veth7", &addresses), &none)).unwrap();
    assert_eq!(adopted.delivery, Delivery::Peer);
    assert_eq!(ip_json(&w, "link show eth0")[0]["address"], adopted.workload_mac.unwrap().to_string());
    assert_eq!(
        adopted.peer_index,
        Some(ip_json(&w, "link show eth0")[0]["ifindex"].as_u64().unwrap() as u32)
    );
    for to in addresses {
        assert!(ping(&s.node, to), "{to}");
    }
    let again = s.inside(|| adopt_interface(&adopt("veth7", &addresses), &none)).unwrap();
    assert_eq!(again, adopted);
    let text = serde_json::to_string(&adopted).unwrap();
    assert_eq!(serde_json::from_str::<AdoptedLink>(&text).unwrap(), adopted);
    s.inside(|| {
        release_interface(&adopted).unwrap();
        release_interface(&adopted).unwrap();
    });
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn what_is_behind_a_tap_is_named_or_learned_and_delivered_to_directly() {
    let s = Sandbox::new();
    s.ip("tuntap add dev tap0 mode tap");
    s.ip("link set tap0 up");
    let addresses = addresses();
    let none = BTreeMap::new();
    let unknown = s.inside(|| adopt_interface(&adopt("tap0", &addresses), &none)).unwrap();
    assert_eq!((unknown.workload_mac, unknown.learned), (None, true));
    let learned = || s.inside(|| learn_workload_mac(&unknown)).unwrap();
    assert_eq!(learned(), None);
    s.ip("neigh add 10.9.0.10 lladdr 52:54:00:00:00:08 dev tap0 nud reachable");
    assert_eq!(learned(), Some("52:54:00:00:00:08".parse().unwrap()));
    s.inside(|| forget_workload_mac(&unknown)).unwrap();
    assert_eq!(learned(), None);
    let mac = Some("52:54:00:00:00:07".parse().unwrap());
    let spec = AdoptSpec { workload_mac: mac, ..adopt("tap0", &addresses) };
    let adopted = s.inside(|| adopt_interface(&spec, &none)).unwrap();
    assert_eq!((adopted.delivery, adopted.peer_index), (Delivery::Device, None));
    assert!(s.ip("neigh show").contains("10.9.0.10 dev tap0 lladdr 52:54:00:00:00:07 PERMANENT"));
    s.ip("link del tap0");
    s.inside(|| release_interface(&adopted)).unwrap();
}

#[test]
fn a_veth_with_both_ends_on_the_node_is_delivered_to_directly() {
    let s = Sandbox::new();
    s.ip("link add left type veth peer name right");
    s.ip("link set left up");
    s.ip("link set right up");
    let addresses = addresses();
    let adopted = s.inside(|| adopt_interface(&adopt("left", &addresses), &BTreeMap::new())).unwrap();
    assert_eq!(adopted.delivery, Delivery::Device);
    assert_eq!(s.ip_json("link show right")[0]["address"], adopted.workload_mac.unwrap().to_string());
}

#[test]
fn unfit_devices_are_refused_with_the_reason_and_left_alone() {
    let s = Sandbox::new();
    let _w = foreign_veth(&s);
    s.ip("link add br0 type bridge");
    s.ip("link add port type veth peer name far");
    s.ip("link set port master br0 up");
    s.ip("link add off0 type veth peer name off1");
    s.ip("link add used type veth peer name used2");
    s.ip("link set used up");
    s.ip("addr add 192.0.2.1/24 dev used");
    s.ip("tuntap add dev tun0 mode tun");
    s.ip("link set tun0 up");
    let clean = s.snapshot();
    let index = s.ip_json("link show veth7")[0]["ifindex"].as_u64().unwrap() as u32;
    let taken = BTreeMap::from([(index, "web".to_owned())]);
    let addresses = addresses();
    for (device, reason) in [
        ("veth7", "it belongs to endpoint web"),
        ("lo", "does not speak Ethernet"),
        ("tun0", "does not speak Ethernet"),
        ("br0", "it is a bridge"),
        (
            "port",
            "it is part of bridge br0, which would take its packets; take it out with `ip link set port nomaster`",
        ),
        ("off0", "it is switched off; do `ip link set off0 up` first"),
        ("used", "the node itself uses it, with address 192.0.2.1/24"),
        ("nowhere", "there is no device nowhere"),
    ] {
        let error = s.inside(|| adopt_interface(&adopt(device, &addresses), &taken)).unwrap_err().to_string();
        assert!(error.contains(reason), "{device}: {error}");
    }
    assert_eq!(s.snapshot(), clean);
}

#[test]
fn a_failed_adoption_leaves_nothing() {
    let s = Sandbox::new();
    let _w = foreign_veth(&s);
    s.ip("route add blackhole fd09::10/128");
    let clean = s.snapshot();
    let addresses = addresses();
    let error = s.inside(|| adopt_interface(&adopt("veth7", &addresses), &BTreeMap::new())).unwrap_err();
    assert!(matches!(error, NetError::ForeignRoute { .. }), "{error}");
    assert_eq!(s.snapshot(), clean);
}
