//! How long things take and how much memory they need; what is promised is measured by the benchmarks.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{TestNode, allow};
use villus_api::EndpointRef;
use villus_api::model::EndpointState;
use villus_testbed::{alone, eventually, run};

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
    assert!(start < Duration::from_secs(5), "{start:?}");
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
