//! The node changes while the agent runs: uplinks and addresses come and go, devices of endpoints become others.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{TestNode, allow};
use villus_abi::endpoint::{FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER};
use villus_api::EndpointRef;
use villus_api::model::EndpointChangeRequest;
use villus_datapath::{AttachMode, Hook, Links, Maps, Pins};
use villus_net::NodeState;
use villus_testbed::{alone, eventually, run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn pins() -> Pins {
    Pins::existing("/tmp/node/bpf".as_ref()).unwrap()
}

#[test]
fn uplinks_and_addresses_of_the_node_are_followed() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let guarded = |device: &str| {
        let links = NodeState::read().unwrap().links;
        let Some(link) = links.iter().find(|link| link.name == device) else { return false };
        let attached = Links::new(&pins()).list(&[link.index]).unwrap();
        attached.iter().any(|a| a.alive && a.hook == Hook::FromNetwork && a.ifindex == link.index)
    };
    let knows = |prefix: &str| {
        let all = node.client().ips(&Default::default()).unwrap();
        all.iter().any(|entry| entry.cidr == prefix && entry.identity == 1)
    };
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "world"]);
    for device in ["up0", "world"] {
        run("ip", &["link", "set", device, "up"]);
    }
    assert!(!guarded("up0"), "nothing says that it is an uplink");
    run("ip", &["addr", "add", "192.0.2.10/24", "dev", "up0"]);
    run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    eventually("the uplink has its program", || guarded("up0"));
    eventually("its address is the node's", || knows("192.0.2.10/32"));
    run("ip", &["addr", "add", "192.0.2.11/24", "dev", "up0"]);
    run("ip", &["addr", "add", "2001:db8::11/64", "dev", "up0", "nodad"]);
    eventually("so are those that come later", || knows("192.0.2.11/32") && knows("2001:db8::11/128"));
    assert!(server.pings("192.0.2.11".parse().unwrap()));
    run("ip", &["addr", "del", "192.0.2.11/24", "dev", "up0"]);
    eventually("one that goes is forgotten", || !knows("192.0.2.11/32"));
    assert!(knows("192.0.2.10/32"));
    run("ip", &["link", "del", "up0"]);
    eventually("all of it goes with the device", || !knows("192.0.2.10/32") && !knows("2001:db8::11/128"));
    eventually("no pin of a gone link stays", || {
        let links = Links::new(&pins()).list(&[]).unwrap();
        links.iter().all(|link| link.alive)
    });
    eventually("nothing differs", || node.client().verify(&Default::default()).unwrap().clean());
}

#[test]
fn how_an_endpoint_is_delivered_to_follows_its_device() {
    alone!();
    let node = TestNode::started(&[]);
    run("ip", &["link", "add", "port", "type", "veth", "peer", "name", "guest"]);
    run("ip", &["link", "set", "port", "up"]);
    run("ip", &["link", "set", "guest", "up"]);
    let adopt = EndpointChangeRequest {
        adopt_interface: Some("port".into()),
        addresses: vec!["10.11.0.50".parse().unwrap()],
        ..EndpointChangeRequest::default()
    };
    let endpoint = node.client().create_endpoint(&EndpointRef::Id(0), &adopt).unwrap();
    let delivery = || {
        let maps = Maps::existing(&pins()).unwrap();
        let record = maps.endpoints.get(&u32::from(endpoint.id)).unwrap().unwrap();
        record.flags & (FLAG_DELIVER_DEVICE | FLAG_DELIVER_PEER)
    };
    assert_eq!(delivery(), FLAG_DELIVER_DEVICE, "a peer on the node itself is given nothing past the device");
    run("ip", &["netns", "add", "box"]);
    run("ip", &["link", "set", "guest", "netns", "box"]);
    run("ip", &["-n", "box", "link", "set", "guest", "up"]);
    eventually("it is handed to the peer", || delivery() == FLAG_DELIVER_PEER);
    for args in [
        vec!["-n", "box", "addr", "add", "10.11.0.50/32", "dev", "guest"],
        vec!["-n", "box", "route", "add", "10.11.0.1", "dev", "guest"],
        vec!["-n", "box", "route", "add", "default", "via", "10.11.0.1"],
    ] {
        run("ip", &args);
    }
    let other = node.workload("other", &["k8s:app=other"]);
    assert!(other.pings("10.11.0.50".parse().unwrap()));
    let here = std::process::id().to_string();
    run("ip", &["-n", "box", "link", "set", "guest", "netns", &here]);
    run("ip", &["link", "set", "guest", "up"]);
    eventually("and to the device again", || delivery() == FLAG_DELIVER_DEVICE);
}

#[test]
fn programs_that_somebody_took_off_come_back() {
    alone!();
    for mode in ["tcx", "tc"] {
        let interval = ("bpf-policy-map-full-reconciliation-interval", "1s");
        let mut node = TestNode::started(&[("attach-mode", mode), interval]);
        let server = node.workload("server", &["k8s:app=server"]);
        let client = node.workload("client", &["k8s:app=client"]);
        node.import(&allow("web", "server", "client", 80));
        let device = &server.endpoint.status.networking.interface_name;
        let index = server.endpoint.status.networking.interface_index;
        let attached = || {
            let all = Links::new(&pins()).list(&[index]).unwrap();
            let mine = all.iter().filter(|a| a.ifindex == index && a.alive);
            mine.map(|a| a.mode).collect::<Vec<_>>()
        };
        let wanted = if mode == "tc" { AttachMode::Tc } else { AttachMode::Tcx };
        eventually("programs are where they are to be", || attached() == [wanted; 2]);
        assert!(client.pings_in_vain(server.v4()), "policy holds");
        if mode == "tc" {
            run("tc", &["filter", "del", "dev", device, "egress"]);
        } else {
            let pin = pins().path(&format!("villus_link_{index}_to_endpoint"));
            run("bpftool", &["link", "detach", "pinned", pin.to_str().unwrap()]);
        }
        eventually("they are back", || attached().len() == 2);
        assert!(client.pings_in_vain(server.v4()), "policy holds again");
        eventually("in the wanted way", || attached() == [wanted; 2]);
        node.kill();
        villus_agent::cleanup(&node.config(), false).unwrap();
        for name in ["server", "client"] {
            run("ip", &["netns", "del", name]);
        }
    }
}
