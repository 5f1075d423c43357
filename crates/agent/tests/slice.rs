//! From an agent's start to packets that pass and packets that do not.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{TestNode, allow};
use villus_api::EndpointRef;
use villus_api::model::EndpointState;
use villus_testbed::{alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

#[test]
fn a_policy_lets_one_client_reach_one_port_and_nobody_else() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let intruder = node.workload("intruder", &["k8s:app=intruder"]);
    assert_eq!(server.endpoint.status.state, EndpointState::Ready);
    assert_eq!((server.id(), client.id(), intruder.id()), (1, 2, 3));
    for address in [server.v4(), server.v6()] {
        server.serves(address, 80);
        server.serves(address, 81);
        assert!(client.pings(address), "no policy: {address}");
        assert!(intruder.asks(address, 81), "no policy: {address}");
    }

    let revision = node.import(&allow("web", "server", "client", 80));
    assert!(revision > 1);
    for address in [server.v4(), server.v6()] {
        assert!(client.asks(address, 80), "{address}");
        assert!(client.asks_in_vain(address, 81), "{address}");
        assert!(client.pings_in_vain(address), "{address}");
        assert!(intruder.asks_in_vain(address, 80), "{address}");
    }

    node.policy_file("more.yaml", &allow("more", "server", "intruder", 81));
    eventually("the file is in force", || !intruder.asks_in_vain(server.v4(), 81));
    assert!(intruder.asks_in_vain(server.v4(), 80));

    let deleted = node.client().delete_endpoint(&EndpointRef::Id(client.id())).unwrap();
    assert_eq!((deleted.deleted, deleted.errors), (vec![2], vec![]));
    assert_eq!(node.client().endpoints(&[]).unwrap().len(), 2);
}
