//! What no agent starts: an external resource, reached and reaching as policies over its labels say.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use common::resource::{MACHINE4, MACHINE6, Says, machine};
use common::{PATIENCE, SHORT, TestNode, Workload, allow, connect, echoes, echoes_in_vain};
use villus_external::What;
use villus_net::Netns;
use villus_testbed::{EtcdServer, alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// The client may reach the database, and nobody else.
const EGRESS: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: client, namespace: default}\n\
    spec:\n  endpointSelector: {matchLabels: {app: client}}\n  egress:\n  \
    - toEndpoints: [{matchLabels: {app: db}}]\n    \
    toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]\n";

fn node(etcd: &EtcdServer) -> TestNode {
    let opt = format!(r#"{{"etcd.address": "{}"}}"#, etcd.url());
    TestNode::new(&[
        ("kvstore", "etcd"),
        ("kvstore-opt", &opt),
        ("cluster-id", "238"),
        ("cluster-name", "cluster1"),
        ("node-name", "node-a"),
    ])
}

/// Who reaches whom, both ways, over both families: all of it, none of it, or something in between.
struct Scene {
    machine: Netns,
    server: Workload,
    client: Workload,
}

impl Scene {
    fn all(&self, patience: Duration) -> Vec<bool> {
        // A connection that came about in the moment before it is cut is not waited for long.
        let answers = |mut stream: TcpStream| match patience {
            SHORT => !echoes_in_vain(&mut stream),
            _ => echoes(&mut stream),
        };
        let reaches =
            |from: &Netns, to: IpAddr| connect(from, SocketAddr::new(to, 80), patience).is_ok_and(answers);
        let from_machine = |to| reaches(&self.machine, to);
        let from_client = |to: &str| reaches(&self.client.netns, to.parse().unwrap());
        vec![
            from_machine(self.server.v4()),
            from_machine(self.server.v6()),
            from_client(MACHINE4),
            from_client(MACHINE6),
        ]
    }

    fn open(&self) -> bool {
        self.all(PATIENCE) == [true; 4]
    }

    fn shut(&self) -> bool {
        self.all(SHORT) == [false; 4]
    }
}

#[test]
fn pods_and_a_resource_reach_each_other_as_policies_over_its_labels_say() {
    alone!();
    let machine = machine();
    let etcd = EtcdServer::start();
    let mut node = node(&etcd);
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    for port in [80, 81] {
        server.serves(server.v4(), port);
        server.serves(server.v6(), port);
    }
    let there = Workload { netns: machine, endpoint: client.endpoint.clone() };
    there.serves(MACHINE4.parse().unwrap(), 80);
    there.serves(MACHINE6.parse().unwrap(), 80);
    node.import(&allow("server", "server", "db", 80));
    node.import(EGRESS);
    let scene = Scene { machine: there.netns, server, client };
    assert!(scene.shut(), "nobody knows the machine");
    let says = Says::new(&etcd);
    assert_eq!(says.says("app=db"), What::Created);
    eventually("it is known both ways", || scene.open());
    let other = SocketAddr::new(scene.server.v4(), 81);
    assert!(connect(&scene.machine, other, SHORT).is_err(), "the policy is for one port");

    // Nobody has to stay for it to be so.
    drop(says);
    node.stop();
    node.start();
    eventually("an agent that starts anew knows it", || scene.open());

    let says = Says::new(&etcd);
    assert_eq!(says.says("app=other"), What::Updated);
    eventually("other labels, other rights", || scene.shut());
    assert_eq!(says.says("app=db"), What::Updated);
    eventually("and back", || scene.open());
    says.deletes();
    eventually("its deletion takes effect", || scene.shut());
}
