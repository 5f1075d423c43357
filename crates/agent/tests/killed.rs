//! Killed at any moment of making and deleting endpoints: after the next start each is there whole, or nothing of it is.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::Duration,
};

use common::TestNode;
use villus_api::model::{EndpointChangeRequest, EndpointState};
use villus_api::{Client, ClientError, EndpointRef};
use villus_datapath::{Links, Pins, policy_endpoints};
use villus_net::{NetnsRef, NodeState, Rtnl};
use villus_testbed::{alone, eventually, run, try_run};

/// How often the agent is killed.
const ROUNDS: u64 = 40;
const MAC: &str = "02:00:00:00:00:aa";

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn made(client: &Client) -> Result<u16, ClientError> {
    let request = EndpointChangeRequest {
        netns: Some("w".into()),
        labels: vec!["k8s:app=w".into()],
        ..EndpointChangeRequest::default()
    };
    client.create_endpoint(&EndpointRef::Id(0), &request).map(|endpoint| endpoint.id)
}

fn adopted(client: &Client) -> Result<u16, ClientError> {
    let request = EndpointChangeRequest {
        adopt_interface: Some("port".into()),
        mac: Some(MAC.to_owned().try_into().unwrap()),
        labels: vec!["k8s:app=port".into()],
        ..EndpointChangeRequest::default()
    };
    client.create_endpoint(&EndpointRef::Id(0), &request).map(|endpoint| endpoint.id)
}

/// Makes and deletes two endpoints for ever, until the agent does not answer.
fn work(client: &Client, ready: &mpsc::Sender<()>) {
    loop {
        // Once the first is made, programs are loaded and everything is quick.
        let round = || -> Result<(), ClientError> {
            let id = made(client)?;
            let _ = ready.send(());
            client.delete_endpoint(&EndpointRef::Id(id))?;
            let id = adopted(client)?;
            client.delete_endpoint(&EndpointRef::Id(id)).map(drop)
        };
        match round() {
            Err(error) if error.status().is_none() => return,
            result => result.unwrap(),
        }
    }
}

/// What of endpoints there is on the node, by where it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Traces {
    files: BTreeSet<String>,
    policies: BTreeSet<u16>,
    /// Host-side devices of ours, with whether they have our mark.
    devices: Vec<bool>,
    /// Our routes and neighbours on the device that is adopted.
    routes: usize,
    /// Our programs on devices that live, but for uplinks.
    programs: usize,
}

fn traces(node: &TestNode) -> Traces {
    let pins = Pins::existing(&node.root.join("bpf")).unwrap();
    let state = NodeState::read().unwrap();
    let ours = |name: &str| name.starts_with("lxc");
    let port = state.links.iter().find(|link| link.name == "port").unwrap().index;
    let mut host = Rtnl::open().unwrap();
    let routes = host.routes().unwrap().iter().filter(|r| r.is_ours() && r.uses(port)).count()
        + host.neighbours(port).unwrap().iter().filter(|n| n.ours).count();
    let indices: Vec<u32> = state.links.iter().map(|link| link.index).collect();
    let attached = Links::new(&pins).list(&indices).unwrap();
    let files = std::fs::read_dir(node.root.join("lib/endpoints")).unwrap();
    Traces {
        files: files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".copy"))
            .collect(),
        policies: policy_endpoints(&pins).unwrap().into_iter().collect(),
        devices: state.links.iter().filter(|l| ours(&l.name)).map(|l| l.alias.is_some()).collect(),
        routes,
        programs: attached.iter().filter(|a| a.alive && a.hook.is_of_endpoints()).count(),
    }
}

fn check(node: &TestNode) {
    let client = node.client();
    let mut all = Vec::new();
    eventually("all are taken over", || {
        all = client.endpoints(&[]).unwrap();
        all.iter().all(|e| e.status.state != EndpointState::Restoring)
    });
    let (ready, rest): (Vec<_>, Vec<_>) = all.iter().partition(|e| e.status.state == EndpointState::Ready);
    assert!(rest.iter().all(|e| e.status.state == EndpointState::Disconnected), "{rest:?}");
    let mut there = traces(node);
    eventually("no program is under way to its wanted place", || {
        there = traces(node);
        there.programs == 2 * ready.len()
    });
    let ids: BTreeSet<u16> = ready.iter().map(|e| e.id).collect();
    assert_eq!(there.files, ids.iter().map(|id| format!("{id}.json")).collect(), "{there:?}");
    assert_eq!(there.policies, ids, "{there:?}");
    let made = ready.iter().filter(|e| !e.status.villus.adopted).count();
    assert_eq!(there.devices, vec![true; made], "{there:?}");
    let is_adopted = made < ready.len();
    assert_eq!(there.routes > 0, is_adopted, "{there:?}");
    eventually("nothing differs", || client.verify(&Default::default()).unwrap().clean());
    // The one that lives all the time, and what was made, can speak.
    let pings = |netns: &str| {
        let netns = NetnsRef::Name(netns.to_owned()).open().unwrap();
        netns.run(|| try_run("ping", &["-c1", "-W10", "10.11.0.1"]).status.success()).unwrap()
    };
    assert!(pings("keeper"));
    if made == 2 {
        assert!(pings("w"), "{ready:?}");
    }
    // Addresses are those of endpoints, no more.
    let ipam = client.status(false).unwrap().ipam.unwrap();
    let used: BTreeMap<_, _> = ipam.allocations;
    let ours: usize = ready.iter().map(|e| e.status.networking.addressing.len()).sum();
    assert!(ours > 0 && used.len() == 2 * ready.len(), "{used:?} beside {ready:?}");
    for endpoint in
        all.iter().filter(|e| e.status.labels.security_relevant.iter().all(|l| l != "k8s:app=keeper"))
    {
        client.delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap();
    }
    assert_eq!(traces(node).policies.len(), 1);
}

#[test]
fn killed_at_any_moment_nothing_is_half_there_after_the_next_start() {
    alone!();
    run("ip", &["link", "add", "port", "type", "veth", "peer", "name", "guest"]);
    run("ip", &["link", "set", "port", "up"]);
    run("ip", &["link", "set", "guest", "up"]);
    run("ip", &["netns", "add", "w"]);
    let mut node = TestNode::started(&[]);
    let _keeper = node.workload("keeper", &["k8s:app=keeper"]);
    let mut found = BTreeSet::new();
    for round in 0..ROUNDS {
        let client = node.client();
        let (ready, is_ready) = mpsc::channel();
        let worker = std::thread::spawn(move || work(&client, &ready));
        is_ready.recv_timeout(common::PATIENCE).unwrap();
        // Spread over the time that a round of making and deleting takes.
        std::thread::sleep(Duration::from_micros(round * 7919 % 120_000));
        node.kill();
        worker.join().unwrap();
        found.insert(traces(&node));
        node.start();
        check(&node);
    }
    assert!(found.len() >= 5, "the agent was always killed at the same step: {found:#?}");
}
