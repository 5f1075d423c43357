//! The node itself under policy: off until one selects it, audited first, enforced when an operator says so, and the way
//! back in for who locked himself out.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use common::{PATIENCE, SHORT, TestNode, connect, echo_to_all, echoes, echoes_in_vain};
use villus_api::EndpointRef;
use villus_api::model::{
    Endpoint, EndpointConfigPatch, EndpointPatch, PolicyDelete, PolicyEnabled, VerifyRequest, WhyRequest,
};
use villus_net::{Netns, NetnsRef};
use villus_testbed::{alone, eventually, run};

const OPTIONS: &[(&str, &str)] = &[("enable-host-firewall", "true"), ("node-labels", "role=gateway")];
const GLOBALS: &str = "/tmp/node/bpf/tc/globals";
const NODE: EndpointRef = EndpointRef::Id(0);

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Somebody on the node's network.
struct Outside(Netns);

impl Outside {
    const NODE4: &str = "192.0.2.1";
    const NODE6: &str = "2001:db8::1";

    fn new() -> Self {
        run("ip", &["netns", "add", "outside"]);
        run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "far", "netns", "outside"]);
        let there = |arguments: &[&str]| run("ip", &[&["-n", "outside"], arguments].concat());
        for (address, other) in [("192.0.2.1/24", "192.0.2.9/24"), ("2001:db8::1/64", "2001:db8::9/64")] {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            run("ip", &[&["addr", "add", address, "dev", "up0"], nodad].concat());
            there(&[&["addr", "add", other, "dev", "far"], nodad].concat());
        }
        run("ip", &["link", "set", "up0", "up"]);
        run("ip", &["link", "set", "lo", "up"]);
        there(&["link", "set", "far", "up"]);
        for (family, node, other) in [("-4", Self::NODE4, "192.0.2.9"), ("-6", Self::NODE6, "2001:db8::9")] {
            there(&[family, "route", "add", "default", "via", node]);
            run("ip", &[family, "route", "add", "default", "via", other, "dev", "up0"]);
        }
        Self(NetnsRef::Name("outside".into()).open().unwrap())
    }

    fn connects(&self, to: &str, port: u16) -> std::io::Result<TcpStream> {
        connect(&self.0, SocketAddr::new(to.parse().unwrap(), port), PATIENCE)
    }

    /// Whether it gets an answer over both families.
    fn asks(&self, port: u16) -> bool {
        [Self::NODE4, Self::NODE6]
            .iter()
            .all(|to| self.connects(to, port).is_ok_and(|mut stream| echoes(&mut stream)))
    }

    /// Whether it comes through over neither family.
    fn asks_in_vain(&self, port: u16) -> bool {
        let to = |to: &str| SocketAddr::new(to.parse().unwrap(), port);
        [Self::NODE4, Self::NODE6].iter().all(|at| connect(&self.0, to(at), SHORT).is_err())
    }
}

/// Echoes on a port of the namespace of the calling thread, both families.
fn serve(port: u16) {
    let any: IpAddr = "::".parse().unwrap();
    echo_to_all(TcpListener::bind(SocketAddr::new(any, port)).unwrap());
}

/// A policy for gateways: from outside only this port.
fn only(port: u16) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: node}}\nspec:\n  \
         nodeSelector: {{matchLabels: {{role: gateway}}}}\n  ingress:\n  - fromEntities: [world]\n    \
         toPorts: [{{ports: [{{port: \"{port}\", protocol: TCP}}]}}]\n"
    )
}

fn set_audit(node: &TestNode, on: bool) -> Endpoint {
    let options = BTreeMap::from([("PolicyAuditMode".to_owned(), on.to_string())]);
    node.client().configure_endpoint(&NODE, &EndpointConfigPatch { options }).unwrap()
}

fn enabled(node: &TestNode) -> PolicyEnabled {
    node.client().endpoint(&NODE).unwrap().status.policy.realized.policy_enabled
}

fn delete_all(node: &TestNode) {
    let delete = PolicyDelete { all: true, ..PolicyDelete::default() };
    node.client().delete_policy(&delete).unwrap();
}

fn warns(node: &TestNode, text: &str) -> bool {
    node.client().status_details().unwrap().warnings.iter().any(|warning| warning.message.contains(text))
}

/// Options with which the program of the uplinks' egress is there to judge the node only, not to masquerade.
fn only_to_judge() -> Vec<(&'static str, &'static str)> {
    [OPTIONS, &[("enable-bpf-masquerade", "false")]].concat()
}

/// Whether the program of the uplinks' egress is attached.
fn judges_egress() -> bool {
    let pins = std::fs::read_dir(GLOBALS).unwrap();
    let names: Vec<String> = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap()).collect();
    let filters = villus_testbed::try_run("tc", &["filter", "show", "dev", "up0", "egress"]);
    names.iter().any(|name| name.ends_with("_to_network"))
        || String::from_utf8_lossy(&filters.stdout).contains("to_network")
}

#[test]
fn the_node_is_off_then_audited_then_enforced_and_stays_so_until_no_policy_selects_it() {
    alone!();
    let outside = Outside::new();
    let mut node = TestNode::started(&only_to_judge());
    serve(22);
    serve(80);

    let host = node.client().endpoint(&NODE).unwrap();
    let identity = host.status.identity.unwrap();
    assert_eq!((identity.id, identity.labels), (1, vec!["k8s:role=gateway".into(), "reserved:host".into()]));
    assert_eq!(node.client().endpoints(&[]).unwrap().len(), 1);
    assert_eq!(enabled(&node), PolicyEnabled::None);
    assert!(outside.asks(22) && outside.asks(80) && !judges_egress());

    node.import(&only(22));
    assert_eq!(enabled(&node), PolicyEnabled::AuditIngress);
    assert!(warns(&node, "audited only") && judges_egress());
    assert!(outside.asks(22) && outside.asks(80), "audited: everything passes");
    let mut open = outside.connects(Outside::NODE4, 80).unwrap();
    assert!(echoes(&mut open));

    set_audit(&node, false);
    assert_eq!(enabled(&node), PolicyEnabled::Ingress);
    assert!(outside.asks(22) && outside.asks_in_vain(80), "enforced");
    assert!(echoes_in_vain(&mut open), "what audit let pass is cut");
    assert!(!warns(&node, "audited only"));
    let why = WhyRequest {
        src: "192.0.2.9".into(),
        dst: Outside::NODE4.into(),
        port: "80/tcp".into(),
        ..WhyRequest::default()
    };
    let reply = node.client().why(&why).unwrap();
    assert!(reply.agree && reply.kernel.reason == Some(133), "{reply:?}");
    assert!(node.client().verify(&VerifyRequest::default()).unwrap().clean());

    for again in 0..2 {
        node.kill();
        if again == 0 {
            assert!(outside.asks_in_vain(80), "without an agent");
        }
        node.start();
        assert!(outside.asks(22) && outside.asks_in_vain(80), "a new agent goes on");
        assert_eq!(enabled(&node), PolicyEnabled::Ingress);
    }

    delete_all(&node);
    assert!(outside.asks(80) && !judges_egress());
    assert_eq!(enabled(&node), PolicyEnabled::None);
    assert!(!std::path::Path::new(GLOBALS).join("cilium_policy_00000").exists());
    node.import(&only(80));
    assert!(outside.asks(80) && outside.asks_in_vain(22), "what the operator chose holds");
    assert!(node.client().delete_endpoint(&NODE).is_err());
    assert!(node.client().patch_endpoint(&NODE, &EndpointPatch::default()).is_err());
}

#[test]
fn the_node_and_its_endpoints_judge_each_other_and_what_endpoints_send_is_theirs() {
    alone!();
    let outside = Outside::new();
    let node = TestNode::started(OPTIONS);
    let client = node.workload("client", &["k8s:app=client"]);
    serve(53);
    outside.0.run(|| serve(443)).unwrap();
    let out: IpAddr = "192.0.2.9".parse().unwrap();
    assert!(client.asks(out, 443) && client.asks(Outside::NODE4.parse().unwrap(), 53));
    let mut before = client.connects(out, 443).unwrap();
    node.import(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: shut}\nspec:\n  \
         nodeSelector: {}\n  ingress: [{}]\n  egress: [{}]\n",
    );
    set_audit(&node, false);
    assert!(client.asks(out, 443), "masqueraded, it is the client's all the same");
    assert!(echoes(&mut before), "also what was open before");
    assert!(client.asks_in_vain(Outside::NODE4.parse().unwrap(), 53));
    assert!(TcpStream::connect_timeout(&SocketAddr::new(out, 443), SHORT).is_err());
    assert!(client.pings_in_vain(Outside::NODE4.parse().unwrap()));
    node.import(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: dns}\nspec:\n  \
         nodeSelector: {}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    \
         toPorts: [{ports: [{port: \"53\", protocol: TCP}]}]\n",
    );
    assert!(client.asks(Outside::NODE4.parse().unwrap(), 53));
}

#[test]
fn who_locked_himself_out_gets_back_in() {
    alone!();
    let outside = Outside::new();
    let mut node = TestNode::started(&only_to_judge());
    serve(22);
    node.import(&only(2222));
    set_audit(&node, false);
    assert!(outside.asks_in_vain(22));

    // With bpftool alone.
    let pin = format!("{GLOBALS}/cilium_policy_00000");
    let zeros = |n: usize| vec!["00"; n];
    let mut line = vec!["map", "update", "pinned", &pin, "key", "hex"];
    line.extend(zeros(8));
    line.extend(["value", "hex"]);
    line.extend(zeros(24));
    node.kill();
    run("bpftool", &line);
    assert!(outside.asks(22), "without an agent");
    node.start();
    assert!(outside.asks(22), "a new agent keeps it");
    let list = node.client().emergencies().unwrap();
    assert_eq!((list.entries.len(), list.entries[0].endpoint), (1, 0), "{list:?}");
    node.client().undo_emergency(&list.entries[0].id).unwrap();
    eventually("it is taken back", || outside.asks_in_vain(22));

    // Audit mode again, and the option.
    set_audit(&node, true);
    assert!(outside.asks(22));
    set_audit(&node, false);
    assert!(outside.asks_in_vain(22));
    node.kill();
    node.options.retain(|(name, _)| name != "enable-host-firewall");
    node.start();
    assert!(outside.asks(22) && !judges_egress(), "with enable-host-firewall off nothing is left of it");
    assert!(warns(&node, "enable-host-firewall is off"));
    assert!(node.client().endpoints(&[]).unwrap().is_empty());
}

#[test]
fn labels_of_the_node_that_are_none_are_refused_before_anything_is_touched() {
    alone!();
    let mut node = TestNode::new(&[("enable-host-firewall", "true"), ("node-labels", "reserved:host")]);
    let said = node.refused();
    assert!(said.contains("node-labels") && said.contains("reserved"), "{said}");
}
