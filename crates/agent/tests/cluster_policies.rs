//! Policies for all nodes: agents apply what the shared store holds beside their own files, keep it without the store,
//! and say how far they are.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::store::{join_b, metric, new, node_b, shared, status, value, with};
use common::{TestNode, Workload, allow, echoes, echoes_in_vain};
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

    /// After a restart of the store the first request finds the old connection.
    fn is_connected(&self) {
        eventually("the store answers", || self.runtime.block_on(self.store.header()).is_ok());
    }

    fn apply(&self, text: &str) {
        self.is_connected();
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

#[test]
fn what_was_rejected_is_asked_about_anew_when_the_store_was_wiped_and_its_versions_begin_again() {
    alone!();
    let mut etcd = EtcdServer::start();
    let writer = Writer::new(&etcd);
    let mut node = new(&with(shared(&etcd), &[("policy-change-limit", "flows=10%")]));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    let mut open: Vec<_> = (0..4).map(|_| client.connects(server.v4(), 80).unwrap()).collect();
    let waits = |node: &TestNode| eventually("it waits", || waiting(node).len() == 1);
    writer.apply(&allow("web", "server", "nobody", 80));
    waits(&node);
    node.client().reject_policy(waiting(&node)[0].id).unwrap();
    etcd.kill();
    etcd.wipe();
    etcd.resume();
    etcd.wait();
    writer.apply(&allow("web", "server", "nobody", 81));
    assert_eq!(writer.standing("web").version.version, 1);
    waits(&node);
    assert!(open.iter_mut().all(echoes));
}

/// A server that `client` alone may reach by the cluster's policy `web`, in its version 2, and the stores that may come after.
struct Enforced {
    etcd: EtcdServer,
    writer: Writer,
    node: TestNode,
    server: Workload,
    client: Workload,
    other: Workload,
    /// As it was when `other` might, by version 1.
    backup: PathBuf,
}

impl Enforced {
    fn new() -> Self {
        let etcd = EtcdServer::start();
        let writer = Writer::new(&etcd);
        let mut node = new(&shared(&etcd));
        node.start();
        let workload = |name: &str| node.workload(name, &[&format!("k8s:app={name}")]);
        let (server, client, other) = (workload("server"), workload("client"), workload("other"));
        server.serves(server.v4(), 80);
        writer.apply(&allow("web", "server", "other", 80));
        eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
        let backup = PathBuf::from("/tmp/policies.backup");
        etcd.save(&backup);
        writer.apply(&allow("web", "server", "client", 80));
        eventually("it is realised", || writer.realised("web").nodes == ["node-a"]);
        let all = Self { etcd, writer, node, server, client, other, backup };
        all.lets_in_the_client_alone();
        all
    }

    fn lets_in_the_client_alone(&self) {
        assert!(self.client.asks(self.server.v4(), 80) && self.other.asks_in_vain(self.server.v4(), 80));
    }

    /// The store is wiped, or restored from the backup.
    fn replaced(&mut self, restore: bool) {
        self.etcd.kill();
        match restore {
            true => self.etcd.restore(&self.backup),
            false => self.etcd.wipe(),
        }
        self.etcd.resume();
        self.etcd.wait();
        self.writer.is_connected();
    }

    fn restarted(&mut self) {
        self.node.kill();
        self.node.start();
    }

    fn is_stale(&self) {
        eventually("it is said", || status(&self.node).contains("stay in force (stale)"));
        let stale = self.node.client().policy(&PolicyQuery::default()).unwrap().stale;
        assert_eq!(stale.iter().map(|stale| stale.version).collect::<Vec<_>>(), [2], "{stale:?}");
        assert_eq!(metric(&self.node, "villus_cluster_policies_stale"), 1.0);
        // Its report is written with what else this node says of itself.
        let told = || value(&self.etcd, "villus/realised/v1/cluster1/node-a").contains("stale");
        eventually("the store is told", told);
        self.lets_in_the_client_alone();
    }

    fn is_whole(&self) {
        eventually("nothing is stale any more", || !status(&self.node).contains("(stale)"));
        assert_eq!(metric(&self.node, "villus_cluster_policies_stale"), 0.0);
    }
}

#[test]
fn a_wiped_store_takes_no_policy_away_and_a_deletion_or_a_new_version_ends_it() {
    alone!();
    let mut all = Enforced::new();
    all.replaced(false);
    all.is_stale();
    // A restart afterwards knows it; and one that begins with the store as it was before finds it.
    all.restarted();
    all.is_stale();
    all.node.kill();
    all.replaced(false);
    all.node.start();
    all.is_stale();

    all.writer.apply(&allow("web", "server", "other", 80));
    eventually("the new version is realised", || all.writer.realised("web").nodes == ["node-a"]);
    assert_eq!(all.writer.standing("web").version.version, 3, "it counts on from what the node has");
    assert!(all.other.asks(all.server.v4(), 80) && all.client.asks_in_vain(all.server.v4(), 80));
    all.is_whole();
    all.restarted();
    assert!(all.other.asks(all.server.v4(), 80) && all.client.asks_in_vain(all.server.v4(), 80));

    all.writer.apply(&allow("web", "server", "client", 80));
    eventually("it is realised", || all.writer.realised("web").nodes == ["node-a"]);
    all.replaced(false);
    eventually("it is told", || value(&all.etcd, "villus/realised/v1/cluster1/node-a").contains("stale"));
    all.lets_in_the_client_alone();
    all.writer.delete("web");
    eventually("it is gone", || all.other.asks(all.server.v4(), 80));
    assert!(all.client.asks(all.server.v4(), 80));
    all.is_whole();
    all.restarted();
    all.is_whole();
    assert!(all.client.asks(all.server.v4(), 80) && all.other.asks(all.server.v4(), 80));
}

#[test]
fn an_old_backup_brings_no_old_version_back_until_somebody_says_so() {
    alone!();
    let mut all = Enforced::new();
    all.replaced(true);
    all.is_stale();
    assert!(status(&all.node).contains("the store has 1"), "{}", status(&all.node));
    let missing = || all.writer.realised("web").missing;
    eventually("it is named", || {
        missing().get("node-a").is_some_and(|reason| reason.contains("goes on with version 2"))
    });
    all.restarted();
    all.is_stale();
    // The old version is meant after all: it is applied, although the store has it.
    all.writer.apply(&allow("web", "server", "other", 80));
    eventually("it is realised", || all.writer.realised("web").nodes == ["node-a"]);
    assert!(all.other.asks(all.server.v4(), 80) && all.client.asks_in_vain(all.server.v4(), 80));
    all.is_whole();
}

#[test]
fn what_is_applied_after_a_wipe_before_an_agent_sees_it_counts_though_its_number_is_lower() {
    alone!();
    let mut all = Enforced::new();
    all.node.kill();
    // Times have whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    all.replaced(false);
    all.writer.apply(&allow("web", "server", "other", 80));
    assert_eq!(all.writer.standing("web").version.version, 1);
    all.node.start();
    eventually("it is realised", || all.writer.realised("web").nodes == ["node-a"]);
    assert!(all.other.asks(all.server.v4(), 80) && all.client.asks_in_vain(all.server.v4(), 80));
    all.is_whole();
}

#[test]
fn a_kept_copy_that_cannot_be_read_is_said_until_the_store_has_something_in_its_place() {
    alone!();
    let mut all = Enforced::new();
    let file = all.node.root.join("lib/cluster-policies/CiliumNetworkPolicy_default_web.json");
    let damaged = |all: &mut Enforced| {
        all.node.kill();
        std::fs::write(&file, "{").unwrap();
        all.node.start();
    };
    let said =
        |all: &Enforced| status(&all.node).contains(&format!("has is in their place: {}", file.display()));
    // The store has it: nothing is missing.
    damaged(&mut all);
    eventually("it is kept again", || std::fs::read_to_string(&file).unwrap().len() > 1);
    assert!(!status(&all.node).contains("cluster-policies/"), "{}", status(&all.node));
    eventually("it is in force", || all.other.asks_in_vain(all.server.v4(), 80));
    all.lets_in_the_client_alone();

    all.replaced(false);
    all.is_stale();
    damaged(&mut all);
    eventually("it is said", || said(&all));
    eventually("it is not in force", || all.other.asks(all.server.v4(), 80));
    // What says nothing of it changes nothing.
    all.writer.apply(&allow("another", "nobody", "client", 80));
    eventually("it is realised", || all.writer.realised("another").nodes == ["node-a"]);
    assert!(said(&all));
    all.writer.apply(&allow("web", "server", "client", 80));
    eventually("it is said no more", || !said(&all));
    eventually("it is realised", || all.writer.realised("web").nodes == ["node-a"]);
    all.lets_in_the_client_alone();
    all.etcd.kill();
    all.restarted();
    all.lets_in_the_client_alone();
}

#[test]
fn a_node_that_moves_to_another_cluster_takes_no_policy_with_it() {
    alone!();
    let mut all = Enforced::new();
    all.node.kill();
    all.replaced(false);
    all.node.options.retain(|(name, _)| name != "cluster-name");
    all.node.options.push(("cluster-name".to_owned(), "cluster2".to_owned()));
    all.node.start();
    let kept = all.node.root.join("lib/cluster-policies");
    eventually("nothing is kept", || std::fs::read_dir(&kept).unwrap().next().is_none());
    let seen = all.node.root.join("lib/cluster-policies.json");
    eventually("of another", || std::fs::read_to_string(&seen).unwrap().contains("cluster2"));
    all.is_whole();
    all.restarted();
    assert!(all.client.asks(all.server.v4(), 80) && all.other.asks(all.server.v4(), 80));
    assert!(!status(&all.node).contains("(stale)"), "{}", status(&all.node));
}

#[test]
fn a_policy_that_cannot_be_kept_is_said_and_kept_as_soon_as_it_can_be() {
    alone!();
    let mut all = Enforced::new();
    let kept = all.node.root.join("lib/cluster-policies");
    std::fs::remove_dir_all(&kept).unwrap();
    std::fs::write(&kept, "no directory").unwrap();
    all.writer.apply(&allow("web", "server", "other", 80));
    eventually("it is realised", || all.writer.realised("web").nodes == ["node-a"]);
    let said = |node: &TestNode| status(node).contains("what is in force cannot be written");
    eventually("it is said", || said(&all.node));
    assert!(status(&all.node).contains("default/web"), "{}", status(&all.node));
    std::fs::remove_file(&kept).unwrap();
    eventually("it is written", || !said(&all.node));
    all.etcd.kill();
    all.restarted();
    assert!(all.other.asks(all.server.v4(), 80) && all.client.asks_in_vain(all.server.v4(), 80));
}
