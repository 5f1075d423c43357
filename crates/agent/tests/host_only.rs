//! A machine without endpoints that is held to the policies of the external resource that it is, by an agent of its own.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use common::resource::{MACHINE4, MACHINE6, Says, machine};
use common::store::who;
use common::{PATIENCE, SHORT, TestNode, Workload, allow, connect, echoes};
use villus_api::EndpointRef;
use villus_api::model::{EndpointConfigPatch, PolicyEnabled};
use villus_external::What;
use villus_net::{Netns, NetnsRef};
use villus_testbed::{EtcdServer, alone, eventually, run};

const NODE: EndpointRef = EndpointRef::Id(0);

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// An agent on the machine, with these options and no word of endpoints.
fn agent(options: &[(&str, &str)]) -> TestNode {
    let mut all = vec![("host-only", "true")];
    all.extend(options);
    let mut agent = TestNode::at("/tmp/machine".into(), Some("machine"), &all);
    agent.options.retain(|(name, _)| !["ipv4-range", "ipv6-range", "endpoint-max"].contains(&name.as_str()));
    agent
}

fn enforce(agent: &TestNode) {
    let options = BTreeMap::from([("PolicyAuditMode".to_owned(), "false".to_owned())]);
    agent.client().configure_endpoint(&NODE, &EndpointConfigPatch { options }).unwrap();
}

fn enabled(agent: &TestNode) -> PolicyEnabled {
    agent.client().endpoint(&NODE).unwrap().status.policy.realized.policy_enabled
}

fn status(agent: &TestNode) -> String {
    let details = agent.client().status_details().unwrap();
    format!("{:?} {:?}", details.lines, details.warnings)
}

/// Links, addresses, routes and parameters of the machine, but for what changes by itself.
fn network() -> String {
    let show = |arguments: &str| {
        let arguments: Vec<&str> = ["-n", "machine"].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &arguments)
    };
    let links = show("-o link show");
    let parameters = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.far.rp_filter"]
        .map(|name| run("ip", &["netns", "exec", "machine", "sysctl", name]));
    [links, show("-4 -o addr show"), show("-4 route show"), show("-6 route show")].concat()
        + &parameters.concat()
}

fn asks(from: &Netns, to: &[&str; 2], port: u16) -> bool {
    to.iter().all(|to| {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        connect(from, to, PATIENCE).is_ok_and(|mut stream| echoes(&mut stream))
    })
}

fn asks_in_vain(from: &Netns, to: &[&str; 2], port: u16) -> bool {
    to.iter().all(|to| connect(from, SocketAddr::new(to.parse().unwrap(), port), SHORT).is_err())
}

const MACHINE: [&str; 2] = [MACHINE4, MACHINE6];

/// Nodes keep their words; of workloads only the client may be asked.
const EGRESS: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: default}\n\
    spec:\n  endpointSelector: {matchLabels: {app: db}}\n  egress:\n  - toEntities: [remote-node]\n  \
    - toEndpoints: [{matchLabels: {app: client}}]\n";

#[test]
fn a_machine_is_held_to_the_policies_of_the_resource_that_has_its_addresses() {
    alone!();
    let netns = machine();
    let mut etcd = EtcdServer::cluster_at("192.0.2.1", 1, &[]).remove(0);
    let opt = format!(r#"{{"etcd.address": "{}"}}"#, etcd.url());
    let shared: [(&str, &str); 4] =
        [("kvstore", "etcd"), ("kvstore-opt", &opt), ("cluster-id", "238"), ("cluster-name", "cluster1")];
    // Who asks for the machine keeps his address.
    let of_node =
        [("node-name", "node-a"), ("enable-ipv4-masquerade", "false"), ("enable-ipv6-masquerade", "false")];
    let node = TestNode::started(&[&shared[..], &of_node].concat());
    let client = node.workload("client", &["k8s:app=client"]);
    let other = node.workload("other", &["k8s:app=other"]);
    for workload in [&client, &other] {
        workload.serves(workload.v4(), 80);
        workload.serves(workload.v6(), 80);
    }
    let there = Workload { netns, endpoint: client.endpoint.clone() };
    there.serves(MACHINE4.parse().unwrap(), 80);
    there.serves(MACHINE6.parse().unwrap(), 80);
    let netns = there.netns;

    let before = network();
    let mut agent = agent(&[&shared[..], &[("node-name", "machine-a")]].concat());
    agent.start();
    eventually("nobody has said who it is", || {
        status(&agent).contains("no external resource has one of its addresses")
    });
    let says = Says::new(&etcd);
    assert_eq!(says.says("app=db"), What::Created);
    eventually("it knows who it is", || status(&agent).contains("k8s:app=db"));
    assert!(!status(&agent).contains("no external resource"), "{}", status(&agent));
    assert_eq!(network(), before, "nothing of the machine is changed");
    // The node hears of it by itself.
    let known = || who(&node, &format!("{MACHINE4}/32"));
    eventually("the node knows it too", || known().is_some());
    let (number, _) = known().unwrap();
    assert!(status(&agent).contains(&format!("external resource, identity {number}")), "{}", status(&agent));
    let nodes = etcd.etcdctl(&["get", "--prefix", "--keys-only", "cilium/state/nodes/"]).unwrap();
    assert!(nodes.contains("node-a") && !nodes.contains("machine-a"), "it is no node: {nodes}");
    let refused = agent.endpoint("machine", &["k8s:app=web"]).unwrap_err().to_string();
    assert!(refused.contains("this agent is host-only"), "{refused}");

    let texts = |workload: &Workload| [workload.v4().to_string(), workload.v6().to_string()];
    let (of_client, of_other) = (texts(&client), texts(&other));
    let [of_client, of_other] = [&of_client, &of_other].map(|of| [of[0].as_str(), of[1].as_str()]);
    agent.import(&allow("db", "db", "client", 80));
    agent.import(EGRESS);
    assert_eq!(enabled(&agent), PolicyEnabled::AuditBoth);
    assert!(
        asks(&client.netns, &MACHINE, 80) && asks(&other.netns, &MACHINE, 80),
        "audited: everything passes"
    );
    enforce(&agent);
    let held = || {
        asks(&client.netns, &MACHINE, 80)
            && asks_in_vain(&other.netns, &MACHINE, 80)
            && asks(&netns, &of_client, 80)
            && asks_in_vain(&netns, &of_other, 80)
    };
    assert!(held(), "both ways, both families");

    let kept = agent.root.join("lib/cluster.json");
    eventually("what is known is written down", || {
        std::fs::read_to_string(&kept)
            .is_ok_and(|text| text.contains(of_client[0]) && text.contains("k8s:app=client"))
    });
    agent.kill();
    assert!(held(), "without an agent");
    agent.start();
    assert!(held(), "a new agent goes on");
    agent.kill();
    etcd.kill();
    agent.start();
    assert!(held(), "also without the store");
    etcd.resume();
    etcd.wait();

    assert_eq!(says.says("app=web"), What::Updated);
    eventually("other labels, and no policy selects it", || enabled(&agent) == PolicyEnabled::None);
    assert!(asks(&other.netns, &MACHINE, 80) && asks(&netns, &of_other, 80));
    assert_eq!(says.says("app=db"), What::Updated);
    eventually("and back", || enabled(&agent) == PolicyEnabled::Both);
    assert!(held());
}

#[test]
fn without_a_store_a_machine_is_who_the_options_say_and_files_hold_its_policies() {
    alone!();
    let netns = machine();
    let there = Workload { netns, endpoint: Default::default() };
    for port in [80, 81, 82, 83] {
        there.serves(MACHINE4.parse().unwrap(), port);
        there.serves(MACHINE6.parse().unwrap(), port);
    }
    let mut agent = agent(&[("node-labels", "app=db")]);
    agent.policy_file(
        "workload.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: workload, namespace: default}\n\
         spec:\n  endpointSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromEntities: [world]\n    \
         toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n",
    );
    agent.policy_file(
        "node.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: node}\n\
         spec:\n  nodeSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromEntities: [world]\n    \
         toPorts: [{ports: [{port: \"81\", protocol: TCP}]}]\n",
    );
    agent.policy_file(
        "everywhere.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: everywhere}\n\
         spec:\n  endpointSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromEntities: [world]\n    \
         toPorts: [{ports: [{port: \"83\", protocol: TCP}]}]\n",
    );
    agent.policy_file(
        "others.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: others, namespace: shop}\n\
         spec:\n  endpointSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromEntities: [world]\n",
    );
    agent.start();
    let here = NetnsRef::Path("/proc/self/ns/net".into()).open().unwrap();
    assert!(asks(&here, &MACHINE, 82), "audited");
    enforce(&agent);
    assert!(asks(&here, &MACHINE, 80), "a policy of workloads");
    assert!(asks(&here, &MACHINE, 83), "one for all namespaces");
    assert!(asks(&here, &MACHINE, 81), "a policy of nodes");
    assert!(asks_in_vain(&here, &MACHINE, 82), "and none of another namespace");
    agent.kill();
    agent.start();
    assert!(asks(&here, &MACHINE, 80) && asks_in_vain(&here, &MACHINE, 82), "a new agent goes on");
}

#[test]
fn a_node_with_endpoints_is_cleaned_up_before_it_is_host_only() {
    alone!();
    let mut node = TestNode::started(&[]);
    node.stop();
    node.options.push(("host-only".into(), "true".into()));
    let said = node.refused();
    assert!(said.contains("host-only") && said.contains("villus cleanup"), "{said}");
    villus_agent::cleanup(&node.config(), false).unwrap();
    node.start();
    assert!(
        status(&node).contains("Host Only") && status(&node).contains("set node-labels"),
        "{}",
        status(&node)
    );
    assert!(status(&node).contains("ipv4-range"), "what has no effect is said: {}", status(&node));
}
