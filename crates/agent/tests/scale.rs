//! How long things take and how much memory they need; what is promised is measured by the benchmarks.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::cell::Cell;
use std::time::{Duration, Instant};

use common::store::{metric, refs, shared, with};
use common::{TestNode, allow};
use villus_api::EndpointRef;
use villus_api::model::{Endpoint, EndpointPatch, EndpointState};
use villus_net::NetnsRef;
use villus_testbed::{EtcdServer, alone, eventually, run, try_run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_hundred_endpoints_are_taken_over_at_once() {
    alone!();
    let mut node = TestNode::started(&[]);
    node.import(&allow("web", "w7", "w8", 80));
    let mut took = Vec::new();
    for n in 0..100 {
        let name = format!("w{n}");
        run("ip", &["netns", "add", &name]);
        let begin = Instant::now();
        node.endpoint(&name, &[&format!("k8s:app=w{}", n % 40)]).unwrap();
        took.push(begin.elapsed());
        if n == 2 {
            println!("resident with 3 endpoints: {} kB", resident(node.pid()));
        }
    }
    took.sort();
    println!("creating an endpoint: median {:?}, worst {:?}", took[50], took[99]);
    println!("resident with 100 endpoints: {} kB", resident(node.pid()));
    node.kill();
    let begin = Instant::now();
    let start = node.start();
    println!("start to serving with 100 endpoints: {start:?}");
    eventually("all are taken over", || {
        let all = node.client().endpoints(&[]).unwrap();
        all.len() == 100 && all.iter().all(|e| e.status.state == EndpointState::Ready)
    });
    println!("to new programs on every device: {:?}", begin.elapsed());
    let all = node.client().endpoints(&[]).unwrap();
    let begin = Instant::now();
    assert!(node.client().verify(&Default::default()).unwrap().differences.is_empty());
    println!("comparing everything: {:?}", begin.elapsed());
    let begin = Instant::now();
    for endpoint in all.iter().take(20) {
        node.client().delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap();
    }
    println!("deleting an endpoint: {:?}", begin.elapsed() / 20);
}

/// Makes namespaces and their endpoints, all at the same time, and says how long the slowest took.
fn make_at_once(node: &TestNode, count: usize) -> Duration {
    let lines: String = (0..count).map(|n| format!("netns add w{n}\n")).collect();
    std::fs::write("/tmp/namespaces", lines).unwrap();
    run("ip", &["-batch", "/tmp/namespaces"]);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..count {
            scope.spawn(move || {
                let labels = [format!("k8s:app=w{n}"), "k8s:tier=all".to_owned()];
                node.endpoint(&format!("w{n}"), &labels.each_ref().map(String::as_str)).unwrap();
            });
        }
    });
    begin.elapsed()
}

#[test]
fn two_hundred_and_fifty_endpoints_come_at_once_and_know_a_thousand_identities() {
    const COUNT: usize = 250;
    alone!();
    let mut node = TestNode::started(&[("ipv4-range", "10.11.0.0/22")]);
    node.import(&allow("web", "w7", "w8", 80));
    let took = make_at_once(&node, COUNT);
    println!("{COUNT} endpoints at once: {took:?}");
    let client = node.client();
    let all = client.endpoints(&[]).unwrap();
    assert_eq!(all.len(), COUNT);
    assert!(all.iter().all(|e| e.status.state == EndpointState::Ready));
    let addresses: std::collections::BTreeSet<_> =
        all.iter().map(|e| e.status.networking.addressing[0].ipv4.unwrap()).collect();
    assert_eq!(addresses.len(), COUNT, "each has its own");
    // Each change of labels is another identity; those of before stay known for a while.
    for round in 0..3 {
        for endpoint in &all {
            let label = format!("k8s:round={round}");
            let patch = EndpointPatch { add_labels: vec![label], ..EndpointPatch::default() };
            client.patch_endpoint(&EndpointRef::Id(endpoint.id), &patch).unwrap();
        }
    }
    assert!(client.identities(&[]).unwrap().len() >= 4 * COUNT);
    println!("resident with {COUNT} endpoints and 1000 identities: {} kB", resident(node.pid()));
    assert!(client.verify(&Default::default()).unwrap().clean());
    let of = |n: usize| NetnsRef::Name(format!("w{n}")).open().unwrap();
    let pings = |from: usize, to: &Endpoint| {
        let to = to.status.networking.addressing[0].ipv4.unwrap().to_string();
        of(from).run(|| try_run("ping", &["-c1", "-W10", &to]).status.success()).unwrap()
    };
    let find = |app: &str| {
        let has =
            |e: &&Endpoint| e.status.labels.security_relevant.iter().any(|l| l == &format!("k8s:app={app}"));
        all.iter().find(has).unwrap()
    };
    assert!(pings(0, find("w249")) && pings(249, find("w0")));
    assert!(!pings(0, find("w7")), "the policy selects it");
    node.kill();
    assert!(pings(0, find("w249")));
    let start = node.start();
    println!("start to serving with {COUNT} endpoints and 1000 identities: {start:?}");
    eventually("all are taken over", || {
        let all = client.endpoints(&[]).unwrap();
        all.len() == COUNT && all.iter().all(|e| e.status.state == EndpointState::Ready)
    });
    assert!(pings(0, find("w249")) && !pings(0, find("w7")));
    // All at once they go again, and nothing of them is left.
    std::thread::scope(|scope| {
        for endpoint in &all {
            let client = node.client();
            scope.spawn(move || client.delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap());
        }
    });
    assert!(client.endpoints(&[]).unwrap().is_empty());
    assert!(!run("ip", &["-o", "link"]).contains("lxc"));
}

/// With the default options a node has twenty requests a second: what each endpoint would ask for by itself would keep
/// the others, and their addresses, waiting. Where the machine is slow they come one by one and share little: then each
/// needs one request for its identity and one for its addresses.
#[test]
fn two_hundred_and_fifty_endpoints_of_new_labels_share_their_requests_to_the_store() {
    const COUNT: usize = 250;
    alone!();
    let etcd = EtcdServer::start();
    let node = TestNode::started(&refs(&with(shared(&etcd), &[("ipv4-range", "10.11.0.0/22")])));
    let asked = Cell::new(0);
    let below = |prefix: &str| {
        asked.set(asked.get() + 1);
        let keys = etcd.etcdctl(&["get", "--prefix", prefix, "--keys-only"]).unwrap();
        keys.lines().filter(|line| !line.is_empty()).count()
    };
    eventually("the node is there", || below("cilium/state/nodes/v1/") == 1);
    let (before, own) = (etcd.requests().unwrap(), asked.replace(0));
    assert!(own > 0);
    make_at_once(&node, COUNT);
    let all = node.client().endpoints(&[]).unwrap();
    assert!(all.len() == COUNT && all.iter().all(|e| e.status.state == EndpointState::Ready));
    let addressing = all.iter().flat_map(|e| &e.status.networking.addressing);
    let addresses: usize =
        addressing.map(|pair| usize::from(pair.ipv4.is_some()) + usize::from(pair.ipv6.is_some())).sum();
    assert!(addresses >= COUNT);
    eventually("all addresses are there", || below("cilium/state/ip/v1/default/") == addresses);
    let made = etcd.requests().unwrap() - before - asked.get();
    println!("{COUNT} endpoints and {addresses} addresses: {made} requests");
    assert!(made < 3 * COUNT as u64, "{made} requests");
    let interim = || metric(&node, "villus_endpoints_with_interim_identity");
    eventually("all have numbers of the cluster", || interim() == 0.0);
    assert_eq!(below("cilium/state/identities/v1/id/"), COUNT);
}
