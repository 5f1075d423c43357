//! The compiler and the packet path against a second, plain reading of the policy language.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod incremental;
mod packets;
mod policies;
mod reading;
mod scene;

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::Value;
use villus_abi::{Direction, PolicyKey};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{EndpointPolicy, Policy, Repository, Settings, parse};

use incremental::{Follower, any_step};
use packets::Node;
use policies::any_policies;
use reading::{Flow, Reading};
use scene::{Peer, Scene, Workload, allocate_prefixes, any_labels, any_scene, identity_of};

// === the datapath's matching rule, by looking at every entry ===

fn covers(key: &PolicyKey, identity: u32, flow: Flow) -> bool {
    let port = match (flow.proto, flow.port) {
        (1 | 58, 0) => 256,
        (_, port) => port,
    };
    let log2 = key.block_log2();
    key.dir() == flow.direction
        && (key.identity == 0 || key.identity == identity)
        && (key.proto == 0 || key.proto == flow.proto)
        && ((key.port() == 0 && log2 == 0) || port >> log2 == key.port() >> log2)
}

fn by_entries(policy: &EndpointPolicy, identity: u32, flow: Flow) -> bool {
    let mut matching = policy.map_entries().filter(|(key, _)| covers(key, identity, flow)).peekable();
    matching.peek().is_some() && matching.all(|(_, entry)| !entry.is_deny())
}

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for direction in Direction::ALL {
        for (proto, ports) in [
            (6, vec![53, 80, 81, 443, 1023, 8080, 8999, 9000]),
            (17, vec![53, 80, 8500]),
            (132, vec![80, 443]),
            (1, vec![0, 8, 3]),
            (58, vec![0, 8, 128]),
            (47, vec![0]),
            (112, vec![0]),
        ] {
            flows.extend(ports.into_iter().map(|port| Flow { direction, proto, port }));
        }
    }
    flows
}

/// Takes each policy that can be taken; random selectors may ask for one key from two sources.
fn parse_each(policies: &[Value]) -> Vec<Policy> {
    let mut taken = Vec::new();
    for policy in policies {
        match parse("random.json", &policy.to_string()) {
            Ok(parsed) => taken.extend(parsed.policies),
            Err(refused) => {
                let clash = |message: &str| message.contains("from two sources");
                assert!(refused.problems.iter().all(|p| clash(&p.message)), "{refused}");
            }
        }
    }
    taken
}

/// The address that a peer has in the packets of a test; the node itself has its own.
fn address_of(peer: &Peer, n: usize) -> Option<IpAddr> {
    match peer {
        Peer::Outside(address) => Some(*address),
        Peer::Labelled(NumericIdentity::HOST, ..) => None,
        Peer::Labelled(..) => Some(Ipv4Addr::new(172, 16, 0, u8::try_from(n).unwrap()).into()),
    }
}

/// Asks rules, entries and path about every flow between a subject and everybody; how many those were.
fn compare(policies: &[Policy], scene: &Scene, repository: &mut Repository, subject: &Workload) -> usize {
    let prefixes = allocate_prefixes(repository);
    let compiled = repository.endpoint_policy(&subject.subject(), usize::MAX).unwrap();
    let peers = scene.peers();
    let identities: Vec<NumericIdentity> = peers.iter().map(|peer| identity_of(peer, &prefixes)).collect();
    let addresses: Vec<Option<IpAddr>> =
        peers.iter().enumerate().map(|(n, peer)| address_of(peer, n)).collect();
    let known: Vec<(IpAddr, NumericIdentity)> = addresses
        .iter()
        .zip(&identities)
        .filter_map(|(address, identity)| Some(((*address)?, *identity)))
        .collect();
    let mut node = Node::new(&compiled, &known);
    let objects: Vec<Value> = policies.iter().map(|policy| policy.object.to_json()).collect();
    let reading = Reading { policies, objects: &objects, scene, subject };
    let mut asked = 0;
    for ((peer, identity), address) in peers.iter().zip(&identities).zip(&addresses) {
        for flow in flows() {
            asked += 1;
            let expected = reading.allows(peer, flow);
            let entries = by_entries(&compiled, identity.0, flow);
            assert_eq!(entries, expected, "{:?} -> {peer:?} {flow:?}\n{compiled:#?}", subject.labels);
            let verdict = compiled.verdict(flow.direction, identity.0, flow.port, flow.proto);
            assert_eq!(verdict.is_allowed(), entries, "{flow:?} {verdict:?}");
            assert_eq!(
                node.allows(*address, *identity, flow, asked),
                entries,
                "{peer:?} {flow:?}\n{compiled:#?}"
            );
        }
    }
    usize::from(asked)
}

/// The node itself, as an endpoint.
fn node_itself() -> Workload {
    let labels = Labels::parse_list("reserved:host,k8s:tier=edge,k8s:app=a", "k8s").unwrap();
    Workload { identity: NumericIdentity::HOST, labels, ports: Vec::new() }
}

/// How many flows the rules, the entries and the path are asked about, at the default number of cases.
const LEAST: usize = 300_000;

#[test]
fn entries_and_packets_say_what_the_rules_say() {
    let default = ProptestConfig::default();
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(default.cases * 110 / 256)
    };
    let asked = Cell::new(0);
    let result = TestRunner::new(config).run(&(any_policies(), any_scene()), |(policies, scene)| {
        let policies = parse_each(&policies);
        let mut repository = Repository::new(scene.settings.clone());
        // Whatever comes first, rules or what they speak about.
        let (early, late) = policies.split_at(policies.len() / 2);
        repository.replace_origin("random.json", early.to_vec());
        scene.know_objects(&mut repository);
        scene.know_workloads(&mut repository);
        for policy in late {
            repository.upsert(policy.clone());
        }
        for subject in scene.workloads.iter().chain([&node_itself()]) {
            asked.set(asked.get() + compare(&policies, &scene, &mut repository, subject));
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(default.cases < 256 || asked.get() >= LEAST, "only {} flows", asked.get());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 160 / 256))]

    #[test]
    fn what_is_kept_compiled_is_what_is_compiled_anew(
        policies in any_policies(),
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let policies: Vec<Policy> = parse_each(&policies);
        prop_assume!(!policies.is_empty());
        let repository = Repository::new(Settings::new("c1").unwrap());
        let mut follower = Follower { repository, endpoints: Default::default(), maps: BTreeMap::new() };
        for step in &steps {
            follower.step(step, &policies);
            if matches!(step, incremental::Step::Sync) {
                follower.check()?;
            }
        }
        follower.sync();
        follower.check()?;
    }

    #[test]
    fn the_order_of_changes_leaves_no_trace(
        policies in any_policies(),
        workloads in proptest::collection::vec(any_labels(), 1..5),
        order in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>()), 0..12),
    ) {
        let policies = parse_each(&policies);
        prop_assume!(!policies.is_empty());
        let settings = Settings::new("c1").unwrap();
        let mut worn = Repository::new(settings.clone());
        for (add, which) in order {
            let policy = which.get(&policies);
            let i = which.index(workloads.len());
            if add {
                worn.upsert(policy.clone());
                worn.upsert_identity(NumericIdentity(300 + i as u32), &workloads[0]);
            } else {
                worn.delete([policy.key.clone()]);
                worn.remove_identity(NumericIdentity(300 + i as u32));
            }
        }
        let mut fresh = Repository::new(settings);
        fresh.replace_origin("random.json", policies.clone());
        for (i, labels) in workloads.iter().enumerate() {
            worn.upsert_identity(NumericIdentity(300 + i as u32), labels);
            fresh.upsert_identity(NumericIdentity(300 + i as u32), labels);
        }
        worn.replace_origin("random.json", policies);
        prop_assert_eq!(worn.selectors().rows(), fresh.selectors().rows());
        prop_assert!(worn.prefixes_in_use().eq(fresh.prefixes_in_use()));
        for subject in &workloads {
            let (worn, fresh) = (worn.endpoint_policy(subject, usize::MAX), fresh.endpoint_policy(subject, usize::MAX));
            prop_assert_eq!(worn.unwrap(), fresh.unwrap());
        }
    }
}
