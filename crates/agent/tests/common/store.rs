//! Nodes that share a store.

use std::path::Path;

use villus_api::model::IpQuery;
use villus_datapath::{Maps, Pins, view_policy};
use villus_testbed::{EtcdServer, eventually, run_ip};

use super::TestNode;

/// The published lines of an outside workload: key and value.
pub const OUTSIDE: [(&str, &str); 3] = [
    (
        "cilium/state/identities/v1/id/15614229",
        "k8s:app=app1;k8s:io.cilium.k8s.policy.cluster=cluster1;k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=ns1;",
    ),
    (
        "cilium/state/identities/v1/value/k8s:app=app1;k8s:io.cilium.k8s.policy.cluster=cluster1;\
         k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns1;/10.3.9.10",
        "15614229",
    ),
    (
        "cilium/state/ip/v1/cluster1/10.3.192.65",
        r#"{"IP":"10.3.192.65","Mask":null,"HostIP":"10.3.9.10","ID":15614229,"Key":0,"Metadata":"cilium-global:cluster1:node1:2404","K8sNamespace":"ns1","K8sPodName":"pod1"}"#,
    ),
];

/// A policy that lets the outside workload in.
pub const LETS_IN: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: app1, namespace: default}\n\
    spec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  \
    - fromEndpoints: [{matchLabels: {app: app1, io.kubernetes.pod.namespace: ns1}}]\n    \
    toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n";

/// Options of the node `node-a` at 10.3.9.1 of the cluster that shares a store.
pub fn shared(etcd: &EtcdServer) -> Vec<(String, String)> {
    let opt = format!(r#"{{"etcd.address": "{}"}}"#, etcd.url());
    [
        ("kvstore", "etcd"),
        ("kvstore-opt", &opt),
        ("cluster-id", "238"),
        ("cluster-name", "cluster1"),
        ("node-name", "node-a"),
        ("ipv4-node", "10.3.9.1"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into()
}

/// The same with other options.
pub fn with(mut options: Vec<(String, String)>, others: &[(&str, &str)]) -> Vec<(String, String)> {
    options.retain(|(name, _)| !others.iter().any(|(other, _)| other == name));
    options.extend(others.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
    options
}

/// `kvstore-opt` by which a node reaches the store with the certificate `agent` of this directory.
pub fn with_certificate(etcd: &EtcdServer, directory: &Path) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    let config = format!(
        "endpoints: ['{}']\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
        etcd.url(),
        file("ca.crt"),
        file("agent.crt"),
        file("agent.key")
    );
    let path = file("etcd.yaml");
    std::fs::write(&path, config).unwrap();
    format!(r#"{{"etcd.config": "{path}"}}"#)
}

pub fn refs(options: &[(String, String)]) -> Vec<(&str, &str)> {
    options.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
}

/// A node with these options, without an agent yet.
pub fn new(options: &[(String, String)]) -> TestNode {
    TestNode::new(&refs(options))
}

/// The same with an agent that has read the store. Endpoints that are made before may have a number of this node alone at first.
pub fn started(options: &[(String, String)]) -> TestNode {
    let mut node = new(options);
    node.start();
    has_read(&node);
    node
}

/// Waits until a node has read the store.
pub fn has_read(node: &TestNode) {
    eventually("the store was read", || {
        let lines = node.client().status_details().unwrap().lines;
        lines.iter().any(|line| line.label == "KVStore" && line.state == "Ok")
    });
}

/// Connects the test's namespace, at 10.3.9.1, with another of the name `b`, at 10.3.9.2.
pub fn join_b() {
    for line in [
        "netns add b",
        "link add up0 type veth peer name up0 netns b",
        "addr add 10.3.9.1/24 dev up0",
        "link set up0 up",
        "-n b addr add 10.3.9.2/24 dev up0",
        "-n b link set up0 up",
        "-n b link set lo up",
    ] {
        run_ip(line);
    }
}

/// A node in the namespace `b`.
pub fn node_b(etcd: &EtcdServer) -> TestNode {
    let others = [
        ("node-name", "node-b"),
        ("ipv4-node", "10.3.9.2"),
        ("ipv4-range", "10.12.0.0/24"),
        ("ipv6-range", "fd12::/112"),
    ];
    TestNode::at("/tmp/node-b".into(), Some("b"), &refs(&with(shared(etcd), &others)))
}

/// Identity and pending of an address as `ip list` shows it.
pub fn who(node: &TestNode, prefix: &str) -> Option<(u32, bool)> {
    let all = node.client().ips(&IpQuery::default()).unwrap();
    all.iter().find(|row| row.cidr == prefix).map(|row| (row.identity, row.metadata.pending))
}

/// Whether the policy map of an endpoint lets an identity in.
pub fn lets_in(node: &TestNode, id: u16, identity: u32) -> bool {
    let pins = Pins::existing(&node.root.join("bpf")).unwrap();
    let view = view_policy(&pins, &Maps::existing(&pins).unwrap(), id).unwrap();
    view.entries.keys().any(|key| key.identity == identity)
}

pub fn status(node: &TestNode) -> String {
    let details = node.client().status_details().unwrap();
    format!("{:?} {:?}", details.lines, details.warnings)
}

/// A figure of the agent, over all its labels.
pub fn metric(node: &TestNode, name: &str) -> f64 {
    node.client().metrics().unwrap().iter().filter(|m| m.name == name).map(|m| m.value).sum()
}

/// What a key of the store holds; nothing if it is not there.
pub fn value(etcd: &EtcdServer, key: &str) -> String {
    etcd.etcdctl(&["get", key, "--print-value-only"]).unwrap().trim().to_owned()
}

/// Puts a version of the cluster's policy `default/shared`, written at a time that its author's clock said.
pub fn put_shared_policy(etcd: &EtcdServer, version: u64, time: &str) {
    let policy = format!(
        r#"{{"version":{version},"author":"ann@host","time":"{time}","object":{{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{{"name":"shared","namespace":"default"}},"spec":{{"endpointSelector":{{"matchLabels":{{"app":"other"}}}},"ingress":[{{}}]}}}}}}"#
    );
    let key = "villus/policies/v1/cluster1/current/CiliumNetworkPolicy/default/shared";
    etcd.etcdctl(&["put", key, &policy]).unwrap();
}
