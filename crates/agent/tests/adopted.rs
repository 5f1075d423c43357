//! A virtual machine that has nothing of us in it: its tap is adopted, and what it sends and is sent is judged there.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use common::{PATIENCE, TestNode, Workload, allow, echoes};
use villus_abi::endpoint::{FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER};
use villus_api::EndpointRef;
use villus_api::model::{Endpoint, EndpointChangeRequest, EndpointState};
use villus_datapath::{Links, Maps, Pins};
use villus_net::{Mac, NetnsRef};
use villus_testbed::{Capture, Host, L4, TapGuest, alone, eventually, run, run_ip as ip, udp};

const TAP: &str = "tap7";
const GUEST4: &str = "10.77.0.7";
const GUEST6: &str = "fd77::7";

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// A virtual machine that runs.
struct Machine {
    host: Host,
    /// Its tap; none where others made it.
    _tap: Option<TapGuest>,
}

impl Machine {
    /// Started: its tap appears on the node.
    fn boots() -> Self {
        let host = Host::named("guest");
        let tap = TapGuest::open(&Host::here("node"), TAP, &host);
        for (address, length, gateway) in [(GUEST4, 32, "10.11.0.1"), (GUEST6, 128, "fd11::1")] {
            host.add_address("eth0", &format!("{address}/{length}"));
            host.ip(&format!("route add {gateway} dev eth0 src {address}"));
            host.ip(&format!("route add default via {gateway} src {address}"));
        }
        Self { host, _tap: Some(tap) }
    }

    fn mac(&self) -> Mac {
        self.host.mac("eth0")
    }

    fn workload(&self, endpoint: &Endpoint) -> Workload {
        let netns = NetnsRef::Name(self.host.name().to_owned()).open().unwrap();
        let workload = Workload { netns, endpoint: endpoint.clone() };
        for address in [GUEST4, GUEST6] {
            workload.serves(address.parse().unwrap(), 80);
        }
        workload
    }
}

fn request(device: &str) -> EndpointChangeRequest {
    EndpointChangeRequest {
        adopt_interface: Some(device.to_owned()),
        addresses: vec![GUEST4.parse().unwrap(), GUEST6.parse().unwrap()],
        labels: vec!["app=vm".to_owned()],
        owner: Some("vm-7".to_owned()),
        ..EndpointChangeRequest::default()
    }
}

fn adopt(node: &TestNode) -> Endpoint {
    node.client().create_endpoint(&EndpointRef::Id(0), &request(TAP)).unwrap()
}

fn now(node: &TestNode) -> Endpoint {
    node.client().endpoint(&EndpointRef::Owner("vm-7".to_owned())).unwrap()
}

fn pins() -> Pins {
    Pins::existing("/tmp/node/bpf".as_ref()).unwrap()
}

/// How the path delivers to an endpoint, and to which Ethernet address.
fn delivered(id: u16) -> (u16, Mac) {
    let record = Maps::existing(&pins()).unwrap().endpoints.get(&id.into()).unwrap().unwrap();
    (record.flags & (FLAG_DELIVER_PEER | FLAG_DELIVER_DEVICE), Mac(record.mac))
}

/// What the node has on a device: its state, routes, permanent neighbours, attached programs.
fn what_is_on(device: &str) -> String {
    let mut text = run("ip", &["-d", "link", "show", device]).replace(",LOWER_UP", "");
    for family in ["-4", "-6"] {
        text += &run("ip", &[family, "route", "show", "dev", device]);
        text += &run("ip", &[family, "neigh", "show", "dev", device, "nud", "permanent"]);
    }
    let index = Host::here("node").index(device);
    let pins = Pins::existing("/tmp/node/bpf".as_ref());
    let attached = pins.map_or_else(|_| Vec::new(), |pins| Links::new(&pins).list(&[index]).unwrap());
    text + &format!("{} programs", attached.iter().filter(|a| a.ifindex == index).count())
}

fn guest() -> [IpAddr; 2] {
    [GUEST4.parse().unwrap(), GUEST6.parse().unwrap()]
}

fn all_ask(who: &Workload, to: [IpAddr; 2], port: u16) -> bool {
    to.into_iter().all(|to| who.asks(to, port))
}

fn none_asks(who: &Workload, to: [IpAddr; 2], port: u16) -> bool {
    to.into_iter().all(|to| who.asks_in_vain(to, port))
}

#[test]
fn a_machine_behind_a_tap_is_policed_both_ways_without_anything_inside_it() {
    alone!();
    let mut node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let other = node.workload("other", &["k8s:app=other"]);
    for server in [&client, &other] {
        server.serves(server.v4(), 80);
        server.serves(server.v6(), 80);
    }
    let machine = Machine::boots();
    let found = what_is_on(TAP);
    let endpoint = adopt(&node);
    assert!(endpoint.status.villus.adopted && endpoint.status.state == EndpointState::Ready);
    assert_eq!(endpoint.status.networking.mac, None, "nobody has said it");
    let vm = machine.workload(&endpoint);
    assert!(all_ask(&client, guest(), 80), "before its Ethernet address is known");
    eventually("it is learned, and packets go to the device", || {
        delivered(endpoint.id) == (FLAG_DELIVER_DEVICE, machine.mac())
    });
    assert!(all_ask(&client, guest(), 80) && all_ask(&other, guest(), 80));
    assert!(all_ask(&vm, [client.v4(), client.v6()], 80) && all_ask(&vm, [other.v4(), other.v6()], 80));

    node.import(&allow("vm", "vm", "client", 80));
    assert!(all_ask(&client, guest(), 80) && none_asks(&other, guest(), 80), "who may reach it");
    node.import(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: default}\nspec:\n  \
         endpointSelector: {matchLabels: {app: vm}}\n  egress:\n  \
         - toEndpoints: [{matchLabels: {app: client}}]\n",
    );
    assert!(all_ask(&vm, [client.v4(), client.v6()], 80), "whom it may reach");
    assert!(none_asks(&vm, [other.v4(), other.v6()], 80));

    // It asks for an address as a machine does that has none yet.
    let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let everybody = L4 {
        from: machine.mac(),
        to: Mac([0xff; 6]),
        src: Ipv4Addr::UNSPECIFIED.into(),
        dst: Ipv4Addr::BROADCAST.into(),
        ttl: 64,
    };
    Capture::open(&machine.host, "eth0").send(&udp(&everybody, 68, 67, b"discover"));
    let mut got = [0; 64];
    let (length, from) = server.recv_from(&mut got).unwrap();
    assert_eq!((&got[..length], from.port()), (&b"discover"[..], 68));

    let mut open = client.connects(guest()[0], 80).unwrap();
    assert!(echoes(&mut open));
    node.kill();
    assert!(echoes(&mut open) && none_asks(&other, guest(), 80), "without an agent");
    node.start();
    assert!(echoes(&mut open) && all_ask(&client, guest(), 80) && none_asks(&other, guest(), 80));
    assert_eq!(delivered(endpoint.id), (FLAG_DELIVER_DEVICE, machine.mac()));

    node.client().delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap();
    assert_eq!(what_is_on(TAP), found, "the device is as it was found");
    adopt(&node);
    node.stop();
    let report = villus_agent::cleanup(&node.config(), false).unwrap();
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(what_is_on(TAP), found, "and after everything of ours is gone");
}

#[test]
fn a_device_that_goes_is_waited_for_and_taken_up_again_when_its_machine_is_back() {
    alone!();
    let mut node = TestNode::started(&[]);
    let client = node.workload("client", &["k8s:app=client"]);
    let other = node.workload("other", &["k8s:app=other"]);
    node.import(&allow("vm", "vm", "client", 80));
    let mut machine = Machine::boots();
    let endpoint = adopt(&node);
    let held = |machine: &Machine| {
        machine.workload(&endpoint);
        all_ask(&client, guest(), 80) && none_asks(&other, guest(), 80)
    };
    assert!(held(&machine));
    let missing = || {
        let is = now(&node);
        let lines = node.client().status_details().unwrap();
        is.status.state == EndpointState::DeviceMissing
            && format!("{lines:?}").contains("device missing: tap7 was adopted")
            && is.status.networking.interface_name == TAP
    };
    drop(machine);
    eventually("its device is missed", missing);
    machine = Machine::boots();
    eventually("it is taken up again", || now(&node).status.state == EndpointState::Ready);
    let same = |is: Endpoint| {
        (is.id, is.status.identity, is.status.networking.addressing)
            == (endpoint.id, endpoint.status.identity.clone(), endpoint.status.networking.addressing.clone())
    };
    assert!(same(now(&node)) && held(&machine));
    eventually("it is not missed any more", || {
        !format!("{:?}", node.client().status_details().unwrap()).contains("device missing")
    });

    // Another device of that name while no agent is there, and none at all.
    node.kill();
    drop(machine);
    machine = Machine::boots();
    node.start();
    eventually("the new one is found", || now(&node).status.state == EndpointState::Ready);
    assert!(same(now(&node)) && held(&machine));
    node.kill();
    drop(machine);
    node.start();
    assert_eq!(now(&node).status.state, EndpointState::DeviceMissing);
    machine = Machine::boots();
    eventually("and comes later", || now(&node).status.state == EndpointState::Ready);
    assert!(same(now(&node)) && held(&machine));

    drop(machine);
    eventually("its device is missed", || now(&node).status.state == EndpointState::DeviceMissing);
    node.client().delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap();
    assert!(node.client().endpoint(&EndpointRef::Id(endpoint.id)).is_err());
}

#[test]
fn a_device_that_is_no_workloads_is_refused_with_what_to_do() {
    alone!();
    ip("link add up0 type veth peer name far");
    ip("link set up0 up");
    ip("link set far up");
    ip("addr add 192.0.2.2/24 dev up0");
    ip("route add default via 192.0.2.1");
    ip("link add br0 type bridge");
    ip("tuntap add dev port mode tap");
    ip("link set port master br0 up");
    ip("tuntap add dev tun0 mode tun");
    ip("link set tun0 up");
    let node = TestNode::started(&[]);
    let _machine = Machine::boots();
    adopt(&node);
    for (device, said) in [
        ("up0", "connects the node to the world"),
        (TAP, "has this adopt-interface already"),
        ("nowhere", "there is no device nowhere"),
        ("lo", "does not speak Ethernet; a tap or veth is needed"),
        ("tun0", "does not speak Ethernet; a tap or veth is needed"),
        (
            "port",
            "part of bridge br0, which would take its packets; take it out with `ip link set port nomaster`",
        ),
    ] {
        let request = EndpointChangeRequest { addresses: Vec::new(), owner: None, ..request(device) };
        for dry_run in [true, false] {
            let request = EndpointChangeRequest { dry_run, ..request.clone() };
            let error = node.client().create_endpoint(&EndpointRef::Id(0), &request).unwrap_err().to_string();
            assert!(error.contains(said), "{device}: {error}");
        }
    }
    assert_eq!(node.client().endpoints(&[]).unwrap().len(), 1, "nothing is left of what was refused");
    let says = |text: &str| format!("{:?}", node.client().status_details().unwrap()).contains(text);
    ip(&format!("link set {TAP} master br0"));
    eventually("a bridge that takes it is named", || says("tap7 is part of a bridge now"));
    ip(&format!("link set {TAP} nomaster"));
    eventually("and not any more", || !says("is part of a bridge now"));
}
