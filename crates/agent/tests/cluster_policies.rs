//! Policies for all nodes: agents apply what the shared store holds beside their own files, keep it without the store,
//! and say how far they are.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::{TestNode, allow};
use villus_api::model::PolicyQuery;
use villus_cluster_policy::{Policies, Realised, Standing};
use villus_kvstore::{Etcd, EtcdOptions, Store};
use villus_policy::parse;
use villus_testbed::{EtcdServer, alone, eventually, run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Who applies policies: an operator with `villus policy apply`.
struct Writer {
    runtime: tokio::runtime::Runtime,
    store: Arc<dyn Store>,
    policies: Policies,
}

impl Writer {
    fn new(etcd: &EtcdServer) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store: Arc<dyn Store> = Arc::new(Etcd::new(EtcdOptions::new(vec![etcd.url()])).unwrap());
        let policies = Policies::new(Arc::clone(&store), "cluster1");
        Self { runtime, store, policies }
    }

    fn apply(&self, text: &str) {
        // After a restart of the store the first request finds the old connection.
        eventually("the store answers", || self.runtime.block_on(self.store.header()).is_ok());
        let files = [parse("test.yaml", text).unwrap()];
        let changes = self.runtime.block_on(self.policies.plan(&files, "alice")).unwrap();
        self.runtime.block_on(self.policies.write(&changes)).unwrap();
    }

    fn delete(&self, name: &str) {
        let name = self.runtime.block_on(self.policies.find(name)).unwrap();
        let change = self.runtime.block_on(self.policies.plan_delete(&name, "alice")).unwrap().unwrap();
        self.runtime.block_on(self.policies.write(&[change])).unwrap();
    }

    fn standing(&self, name: &str) -> Standing {
        let name = self.runtime.block_on(self.policies.find(name)).unwrap();
        self.runtime.block_on(self.policies.history(&name)).unwrap().pop().unwrap()
    }

    fn realised(&self, name: &str) -> Realised {
        let standing = self.standing(name);
        self.runtime.block_on(Realised::of(&self.store, "cluster1", &standing)).unwrap()
    }
}

fn options(etcd: &EtcdServer, name: &str, address: &str) -> Vec<(String, String)> {
    let opt = format!(r#"{{"etcd.address": "{}"}}"#, etcd.url());
    [
        ("kvstore", "etcd"),
        ("kvstore-opt", &opt),
        ("cluster-id", "238"),
        ("cluster-name", "cluster1"),
        ("node-name", name),
        ("ipv4-node", address),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into()
}

fn refs(options: &[(String, String)]) -> Vec<(&str, &str)> {
    options.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect()
}

fn status(node: &TestNode) -> String {
    let details = node.client().status_details().unwrap();
    format!("{:?} {:?}", details.lines, details.warnings)
}

#[test]
fn a_policy_of_the_cluster_is_in_force_on_its_nodes_and_stays_without_the_store() {
    alone!();
    let mut etcd = EtcdServer::start();
    let writer = Writer::new(&etcd);
    let mut node = TestNode::new(&refs(&options(&etcd, "node-a", "10.3.9.1")));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let other = node.workload("other", &["k8s:app=other"]);
    server.serves(server.v4(), 80);
    assert!(other.asks(server.v4(), 80));
    writer.apply(&allow("web", "server", "client", 80));
    eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
    assert!(client.asks(server.v4(), 80) && other.asks_in_vain(server.v4(), 80));
    let origin = node.client().policy(&PolicyQuery::default()).unwrap().origins.remove(0);
    assert_eq!((origin.origin.as_str(), origin.version), ("cluster", 1), "{origin:?}");

    // A broken object changes nothing and is said, here and in the store.
    let key = "villus/policies/v1/cluster1/current/CiliumNetworkPolicy/default/web";
    etcd.etcdctl(&["put", key, "{"]).unwrap();
    eventually("it is said", || status(&node).contains("the last good versions stay in force"));
    eventually("and told", || writer.realised("web").missing.contains_key("node-a"));
    assert!(client.asks(server.v4(), 80) && other.asks_in_vain(server.v4(), 80));

    // A restart without the store: what was in force still is.
    etcd.kill();
    node.kill();
    node.start();
    assert!(client.asks(server.v4(), 80) && other.asks_in_vain(server.v4(), 80));
    etcd.resume();
    etcd.wait();
    writer.apply(&allow("web", "server", "other", 80));
    eventually("the new version is realised", || writer.realised("web").nodes == ["node-a"]);
    assert!(other.asks(server.v4(), 80) && client.asks_in_vain(server.v4(), 80));
    assert!(!status(&node).contains("the last good versions"));
    writer.delete("web");
    eventually("its deletion too", || writer.realised("web").nodes == ["node-a"]);
    assert!(client.asks(server.v4(), 80) && other.asks(server.v4(), 80));
}

#[test]
fn nodes_that_lag_are_named_until_they_are_there() {
    alone!();
    run("ip", &["netns", "add", "b"]);
    for line in [
        "link add up0 type veth peer name up0 netns b",
        "addr add 10.3.9.1/24 dev up0",
        "link set up0 up",
        "-n b addr add 10.3.9.2/24 dev up0",
        "-n b link set up0 up",
        "-n b link set lo up",
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>());
    }
    let etcd = EtcdServer::cluster_at("10.3.9.1", 1, &[]).pop().unwrap();
    let writer = Writer::new(&etcd);
    let mut a = TestNode::new(&refs(&options(&etcd, "node-a", "10.3.9.1")));
    let mut of_b = options(&etcd, "node-b", "10.3.9.2");
    for (name, text) in [("ipv4-range", "10.12.0.0/24"), ("ipv6-range", "fd12::/112")] {
        of_b.push((name.to_owned(), text.to_owned()));
    }
    let mut b = TestNode::at("/tmp/node-b".into(), Some("b"), &refs(&of_b));
    a.start();
    b.start();
    writer.apply(&allow("web", "server", "client", 80));
    eventually("both have it", || writer.realised("web").nodes == ["node-a", "node-b"]);
    b.kill();
    writer.apply(&allow("web", "server", "other", 80));
    eventually("one has the next", || writer.realised("web").nodes == ["node-a"]);
    assert!(writer.realised("web").missing.contains_key("node-b"));
    b.start();
    eventually("both have it", || writer.realised("web").nodes == ["node-a", "node-b"]);
}
