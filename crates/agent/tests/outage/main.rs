//! Three nodes, one etcd of three members, traffic from node to node, and everything that can happen to a store; and what a
//! wrong calendar does.
//!
//! Each time: nothing that is allowed is lost, nothing that is denied arrives, and when the store is back the nodes
//! agree again without a hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod nodes;
mod traffic;

use std::time::{Duration, Instant};

use villus_testbed::{EtcdServer, alone_as, eventually};

use crate::{
    common::{Workload, allow, store::who},
    nodes::{Nodes, Routing},
    traffic::{PORT, Traffic},
};

/// How long a store is away: retries have come to wait as long as they ever do.
const AWAY: Duration = Duration::from_secs(120);

/// The shortest that may be said: what a node owns is gone when it has not been heard of for so long.
const LEASE: &str = "25s";

const BACKUP: &str = "/tmp/backup";

/// An identity and its address that somebody writes by hand.
const LATER: [(&str, &str); 2] = [
    ("cilium/state/identities/v1/id/131000", "k8s:later=1;"),
    (
        "cilium/state/ip/v1/default/10.99.0.1",
        r#"{"IP":"10.99.0.1","Mask":null,"HostIP":"192.168.50.99","ID":131000,"Key":0,"Metadata":""}"#,
    ),
];

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: friend}}]
";

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// A server on the first node, a client on the second, an intruder on the third, and their traffic.
struct Scene {
    nodes: Nodes,
    server: Workload,
    traffic: Traffic,
    others: Vec<Workload>,
    late: usize,
}

impl Scene {
    fn start(routing: Routing, more: &[(&str, &str)]) -> Self {
        let options: Vec<(&str, &str)> =
            [("bpf-ct-global-any-max", "65536")].into_iter().chain(more.iter().copied()).collect();
        let nodes = Nodes::start(routing, &options);
        nodes.apply(POLICY);
        let server = nodes.all[0].workload("server", &["k8s:app=server"]);
        let client = nodes.all[1].workload("client", &["k8s:app=client", "k8s:role=friend"]);
        let intruder = nodes.all[2].workload("intruder", &["k8s:app=intruder"]);
        for workload in [&server, &client, &intruder] {
            eventually("every node knows the workload", || nodes.knows(workload));
        }
        for address in [server.v4(), server.v6()] {
            server.serves(address, PORT);
            eventually("the client gets through", || client.asks(address, PORT));
            eventually("the intruder does not", || intruder.asks_in_vain(address, PORT));
        }
        let traffic = Traffic::start(&client, &server, &intruder);
        Self { nodes, server, traffic, others: vec![client, intruder], late: 0 }
    }

    /// A workload with labels that nobody had before is known everywhere, and policy for its labels holds.
    fn converges(&mut self) {
        self.traffic.goes_on();
        self.late += 1;
        let run = format!("k8s:run=late{}", self.late);
        let friend = self.nodes.all[2].workload(&format!("friend{}", self.late), &["k8s:role=friend", &run]);
        let other = self.nodes.all[1].workload(&format!("other{}", self.late), &["k8s:role=other", &run]);
        for workload in [&friend, &other] {
            eventually("every node knows the late workload", || self.nodes.knows(workload));
        }
        for address in [self.server.v4(), self.server.v6()] {
            eventually("the late friend gets through", || friend.asks(address, PORT));
            assert!(other.asks_in_vain(address, PORT), "somebody else gets through");
        }
        self.others.extend([friend, other]);
        for workload in [&self.server].into_iter().chain(&self.others) {
            eventually("every node knows every workload", || self.nodes.knows(workload));
        }
        for node in &self.nodes.all {
            eventually("the store is followed again", || node.kvstore().0 == "Ok");
            eventually("somebody stands behind all that counts", || nodes::stale(node) == (0, 0));
        }
        self.traffic.goes_on();
    }

    /// A workload of node `n` that only those know who follow the store.
    fn meanwhile(&mut self, n: usize) {
        let name = format!("meanwhile{}", self.others.len());
        let workload = self.nodes.all[n].workload(&name, &["k8s:role=friend", &format!("k8s:run={name}")]);
        self.others.push(workload);
    }

    /// The agent of node `n` is killed and started again under traffic.
    fn starts_anew(&mut self, n: usize) {
        self.nodes.all[n].kill();
        self.traffic.goes_on();
        self.nodes.all[n].start();
        self.traffic.goes_on();
    }

    /// Ends the traffic, of which nothing may be lost that is allowed, and nothing arrive that is not.
    fn ends(self) {
        let Err(said) = self.traffic.stop() else { return };
        panic!(
            "{said}; dropped on each node: {:#?}",
            self.nodes.all.iter().map(nodes::drops).collect::<Vec<_>>()
        );
    }

    /// The addresses of all workloads are in the store again.
    fn is_stored(&self) {
        for workload in [&self.server].into_iter().chain(&self.others) {
            for address in [workload.v4(), workload.v6()] {
                let key = format!("cilium/state/ip/v1/default/{address}");
                eventually("the store has the address", || self.nodes.has(&key));
            }
        }
    }
}

#[test]
fn a_dead_store_is_waited_for() {
    let routing = Routing::of(&alone_as!(Routing::ALL));
    let mut scene = Scene::start(routing, &[]);
    let leader = EtcdServer::leader(&scene.nodes.etcd);
    scene.nodes.etcd[leader].kill();
    scene.converges();
    scene.nodes.etcd[leader].resume();
    scene.nodes.etcd[leader].wait();
    scene.traffic.goes_on();
    // A leader that does not die but falls silent, and leads no more when it is back.
    let leader = EtcdServer::leader(&scene.nodes.etcd);
    scene.nodes.etcd[leader].pause();
    scene.converges();
    scene.nodes.etcd[leader].go_on();
    scene.traffic.goes_on();

    // One after the other agents start anew in that time, so that each has waited for another time.
    scene.nodes.kill_etcd();
    let away = Instant::now();
    for n in 0..scene.nodes.all.len() {
        std::thread::sleep(AWAY / 4);
        scene.traffic.goes_on();
        scene.starts_anew(n);
        let (state, message) = scene.nodes.all[n].kvstore();
        assert!(state != "Ok" && message.contains("snapshot"), "{state} {message}");
    }
    std::thread::sleep(AWAY.saturating_sub(away.elapsed()));
    scene.traffic.goes_on();
    scene.nodes.resume_etcd();
    scene.converges();
    scene.ends();
}

#[test]
fn nodes_that_are_cut_off_catch_up_over_a_compaction_and_write_again_what_ran_out_with_their_leases() {
    let routing = Routing::of(&alone_as!(Routing::ALL));
    let mut scene = Scene::start(routing, &[("kvstore-lease-ttl", LEASE)]);
    let collector = scene.nodes.collector();
    let own = scene.nodes.all[2].workload("own", &["k8s:app=own"]);
    scene.nodes.all[2].policy_file("own.yaml", &allow("own", "own", "client", PORT));
    for address in [own.v4(), own.v6()] {
        own.serves(address, PORT);
        eventually("the third node lets the client in", || scene.others[0].asks(address, PORT));
        eventually("and nobody else", || scene.server.asks_in_vain(address, PORT));
    }

    // The others go on, and what happened is forgotten by the store before the node is back.
    scene.nodes.refuse(2);
    scene.traffic.goes_on();
    scene.meanwhile(0);
    scene.nodes.compact();
    scene.traffic.goes_on();
    scene.nodes.allow(2);
    scene.converges();

    // One node's agent stands still, another's is cut off, both beyond what their leases last.
    scene.nodes.all[0].pause();
    scene.nodes.cut(1);
    scene.meanwhile(2);
    // It even starts anew in that time.
    scene.starts_anew(1);
    for key in [scene.nodes.key(0), scene.nodes.key(1)] {
        eventually("the leases run out", || !scene.nodes.has(&key));
    }
    for workload in [&scene.server, &scene.others[0]] {
        let key = format!("cilium/state/ip/v1/default/{}", workload.v4());
        eventually("what was under them is gone from the store", || !scene.nodes.has(&key));
    }
    scene.traffic.goes_on();
    scene.nodes.compact();
    let third = &scene.nodes.all[2];
    let theirs = [&scene.server, &scene.others[0]].map(|workload| workload.v4().to_string());
    eventually("both are silent", || nodes::stale(third).0 == 2);
    for address in &theirs {
        assert!(third.identity_of(address).is_some_and(|identity| identity >= 256), "{address} still counts");
    }
    // Nobody says any more that the client's identity is used, and the third node sees that it is deleted.
    let identity = scene.others[0].endpoint.status.identity.as_ref().unwrap().id;
    eventually("the identity of a silent node is collected", || {
        !scene.nodes.has(&format!("cilium/state/identities/v1/id/{identity}"))
    });
    eventually("by the operator", || collector.has_deleted());
    for (key, value) in LATER {
        scene.nodes.etcdctl(&["put", key, value]).unwrap();
    }
    let third = &scene.nodes.all[2];
    eventually("what came later is known", || who(third, "10.99.0.1/32") == Some((131_000, false)));
    assert_eq!(who(third, &format!("{}/32", scene.others[0].v4())), Some((identity, false)));
    for address in [own.v4(), own.v6()] {
        assert!(scene.others[0].asks(address, PORT) && scene.server.asks_in_vain(address, PORT));
    }
    for (key, _) in LATER {
        scene.nodes.etcdctl(&["del", key]).unwrap();
    }
    scene.traffic.goes_on();
    scene.nodes.all[0].go_on();
    scene.nodes.mend(1);
    scene.is_stored();
    scene.converges();

    // All at once, of agents that live.
    let leases = scene.nodes.etcdctl(&["lease", "list"]).unwrap();
    let leases: Vec<&str> = leases.lines().skip(1).map(str::trim).collect();
    assert!(leases.len() >= 3, "each node has leases: {leases:?}");
    for lease in leases {
        let _ = scene.nodes.etcdctl(&["lease", "revoke", lease]);
    }
    scene.traffic.goes_on();
    scene.is_stored();
    scene.converges();
    scene.is_stored();
    scene.ends();
}

#[test]
fn a_store_without_space_is_waited_for_and_one_that_was_wiped_or_is_an_old_backup_brought_up_to_date() {
    let routing = Routing::of(&alone_as!(Routing::ALL));
    let mut scene = Scene::start(routing, &[]);
    scene.nodes.etcd[0].save(BACKUP.as_ref());
    // As long as one argument of a command may be.
    let junk = "x".repeat(120 << 10);
    let mut n = 0;
    while scene.nodes.etcdctl(&["put", &format!("junk/{n}"), &junk]).is_some() {
        n += 1;
        assert!(n < 1000, "the quota holds");
    }
    scene.traffic.goes_on();
    for n in 0..scene.nodes.all.len() {
        scene.starts_anew(n);
    }
    scene.nodes.etcdctl(&["del", "--prefix", "junk/"]).unwrap();
    scene.nodes.compact();
    for member in &scene.nodes.etcd {
        member.etcdctl(&["defrag"]).unwrap();
    }
    scene.nodes.etcdctl(&["alarm", "disarm"]).unwrap();
    scene.converges();

    scene.nodes.kill_etcd();
    scene.nodes.etcd.iter().for_each(|member| member.wipe());
    scene.starts_anew(0);
    scene.nodes.resume_etcd();
    scene.nodes.secure();
    scene.is_stored();
    scene.converges();
    scene.is_stored();

    scene.nodes.kill_etcd();
    scene.nodes.etcd.iter().for_each(|member| member.restore(BACKUP.as_ref()));
    scene.nodes.resume_etcd();
    scene.starts_anew(1);
    scene.is_stored();
    scene.converges();
    scene.is_stored();
    scene.ends();
}
