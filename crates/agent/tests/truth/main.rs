//! Truth tables: who reaches whom under a policy, on real namespaces and the real kernel.
//!
//! Three namespaces with three pods each; every pod tries every other on two ports by TCP, UDP and SCTP, over IPv4 and
//! IPv6. A case is a policy and, written by hand beside it, who may.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::nonminimal_bool,
    missing_docs,
    reason = "a truth reads better as it is said than as short as it can be"
)]

#[path = "../common/mod.rs"]
mod common;

mod cilium;
mod cluster;
mod clusterwide;
mod deny;
mod kubernetes;
mod ports;
mod probe;

use villus_testbed::alone;

use crate::{cluster::Cluster, probe::Probe};

/// A policy and who may under it.
struct Case {
    name: &'static str,
    /// YAML; several documents perhaps.
    policy: &'static str,
    /// Whether a probe is answered.
    allowed: fn(&Probe) -> bool,
}

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn hold(cases: &[Case]) {
    let cluster = Cluster::start();
    cluster.check("without a policy", |_| true);
    for case in cases {
        cluster.import(case.name, case.policy);
        cluster.check(case.name, case.allowed);
        cluster.clear();
    }
    cluster.check("without a policy again", |_| true);
}

#[test]
fn network_policies_of_kubernetes() {
    alone!();
    hold(kubernetes::CASES);
}

#[test]
fn rules_about_endpoints_and_entities() {
    alone!();
    hold(cilium::CASES);
}

#[test]
fn rules_about_ports_and_protocols() {
    alone!();
    hold(ports::CASES);
}

#[test]
fn rules_that_deny() {
    alone!();
    hold(deny::CASES);
}

#[test]
fn rules_for_the_whole_cluster() {
    alone!();
    hold(clusterwide::CASES);
}

#[test]
fn there_are_at_least_sixty_policies() {
    let all = [kubernetes::CASES, cilium::CASES, ports::CASES, deny::CASES, clusterwide::CASES];
    assert!(all.iter().map(|cases| cases.len()).sum::<usize>() >= 60);
}
