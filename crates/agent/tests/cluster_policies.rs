//! Policies for all nodes: agents apply what the shared store holds beside their own files, keep it without the store,
//! and say how far they are.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::store::{join_b, new, node_b, shared, status, with};
use common::{TestNode, allow, echoes, echoes_in_vain};
use villus_api::model::{FreezeRequest, PolicyQuery, WaitingChange};
use villus_cluster_policy::{Policies, Realised, Standing};
use villus_kvstore::{Etcd, EtcdOptions, Store};
use villus_policy::parse;
use villus_testbed::{EtcdServer, alone, eventually};

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

#[test]
fn a_policy_of_the_cluster_is_in_force_on_its_nodes_and_stays_without_the_store() {
    alone!();
    let mut etcd = EtcdServer::start();
    let writer = Writer::new(&etcd);
    let mut node = new(&shared(&etcd));
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
    eventually("nothing is wrong any more", || !status(&node).contains("the last good versions"));
    writer.delete("web");
    eventually("its deletion too", || writer.realised("web").nodes == ["node-a"]);
    assert!(client.asks(server.v4(), 80) && other.asks(server.v4(), 80));
}

#[test]
fn nodes_that_lag_are_named_until_they_are_there() {
    alone!();
    join_b();
    let etcd = EtcdServer::cluster_at("10.3.9.1", 1, &[]).pop().unwrap();
    let writer = Writer::new(&etcd);
    let mut a = new(&shared(&etcd));
    let mut b = node_b(&etcd);
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

#[test]
fn a_frozen_node_says_so_to_all_and_why_until_it_is_thawed() {
    alone!();
    let etcd = EtcdServer::start();
    let writer = Writer::new(&etcd);
    let mut node = new(&shared(&etcd));
    node.start();
    writer.apply(&allow("web", "server", "client", 80));
    eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
    node.client().freeze(&FreezeRequest { reason: "etcd is restored".into() }).unwrap();
    let frozen = || writer.realised("web").frozen.get("node-a").cloned();
    eventually("it says so at once", || frozen().as_deref() == Some("etcd is restored"));
    assert_eq!(writer.realised("web").nodes, ["node-a"], "what it has it has");
    writer.apply(&allow("web", "server", "other", 80));
    let reason = writer.realised("web").missing.remove("node-a").unwrap();
    assert!(reason.contains("frozen (etcd is restored) until `villus thaw` there"), "{reason}");
    node.client().thaw().unwrap();
    eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
    assert_eq!(frozen(), None);
    // Also where nothing has come meanwhile, and no reason is given.
    node.client().freeze(&FreezeRequest { reason: String::new() }).unwrap();
    eventually("it says so again", || frozen().as_deref() == Some(""));
    node.client().thaw().unwrap();
    eventually("it says so no more", || frozen().is_none());
}

fn waiting(node: &TestNode) -> Vec<WaitingChange> {
    node.client().policy(&PolicyQuery::default()).unwrap().waiting
}

#[test]
fn a_change_from_the_store_that_would_cut_too_much_waits_at_the_node_until_it_is_confirmed() {
    alone!();
    let etcd = EtcdServer::start();
    let writer = Writer::new(&etcd);
    let mut node = new(&with(shared(&etcd), &[("policy-change-limit", "flows=10%")]));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    let mut open: Vec<_> = (0..4).map(|_| client.connects(server.v4(), 80).unwrap()).collect();
    let held = |node: &TestNode, names: usize| {
        waiting(node).first().is_some_and(|change| change.policies.len() == names)
    };
    writer.apply(&allow("web", "server", "nobody", 80));
    eventually("it waits", || held(&node, 1));
    let told = waiting(&node).remove(0);
    assert_eq!(told.source, "the cluster's store");
    assert!(told.impact.flows.touched >= 4, "{told:?}");
    assert!(open.iter_mut().all(echoes));
    eventually("the store is told", || {
        let missing = writer.realised("web").missing;
        missing.get("node-a").is_some_and(|reason| reason.contains("villus policy confirm"))
    });

    // What comes after it joins it: policies come into force in the store's order.
    writer.apply(&allow("other", "nobody", "client", 80));
    eventually("the next waits with it", || held(&node, 2));
    assert_eq!(waiting(&node).len(), 1);
    writer.delete("other");
    eventually("what is gone waits no more", || held(&node, 1));
    let told = waiting(&node).remove(0);
    node.kill();
    node.start();
    assert_eq!(waiting(&node), std::slice::from_ref(&told), "over a restart");
    eventually("the store was read", || status(&node).contains("villus policy confirm"));
    assert_eq!(waiting(&node), std::slice::from_ref(&told));
    assert!(open.iter_mut().all(echoes) && client.asks(server.v4(), 80));

    // A rejected version stays out of force; another version is another change.
    node.client().reject_policy(told.id).unwrap();
    node.kill();
    node.start();
    eventually("the store was read", || status(&node).contains("rejected"));
    assert_eq!(waiting(&node), []);
    assert!(open.iter_mut().all(echoes) && client.asks(server.v4(), 80));
    writer.apply(&allow("web", "server", "nobody", 81));
    eventually("the new version waits", || waiting(&node).len() == 1);
    node.client().confirm_policy(waiting(&node)[0].id).unwrap();
    assert!(client.asks_in_vain(server.v4(), 80));
    eventually("open connections are cut", || open.iter_mut().all(echoes_in_vain));
    eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
    assert_eq!(waiting(&node), []);
}
