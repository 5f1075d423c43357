//! What is wanted beside what is there: verify, repair, why, and what operators do by hand.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{TestNode, allow};
use villus_abi::{Direction, PolicyEntry, PolicyKey};
use villus_api::EndpointRef;
use villus_api::model::{DifferenceKind, EndpointConfigPatch, HoldRequest, VerifyRequest, WhyRequest};
use villus_datapath::{Maps, Pins, hand_insert, hand_remove};
use villus_testbed::{alone, eventually, run};

const GLOBALS: &str = "/tmp/node/bpf/tc/globals";

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// The emergency line of the handbook, letter by letter.
fn open_by_hand(id: u16) {
    let pin = format!("{GLOBALS}/cilium_policy_{id:05}");
    let zeros = |n: usize| vec!["00"; n];
    let mut line = vec!["map", "update", "pinned", &pin, "key", "hex"];
    line.extend(zeros(8));
    line.extend(["value", "hex"]);
    line.extend(zeros(24));
    line.push("noexist");
    run("bpftool", &line);
}

#[test]
fn an_entry_by_hand_counts_at_once_is_kept_and_shown_until_undone() {
    alone!();
    let mut node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let intruder = node.workload("intruder", &["k8s:app=intruder"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "client", 80));
    assert!(intruder.asks_in_vain(server.v4(), 80));
    open_by_hand(server.id());
    assert!(intruder.asks(server.v4(), 80), "with the agent alive");
    let list = node.client().emergencies().unwrap();
    assert_eq!(list.entries.len(), 1, "{list:?}");
    assert_eq!((list.entries[0].endpoint, list.entries[0].origin.as_str()), (server.id(), "by hand"));
    let report = node.client().verify(&VerifyRequest { repair: true, ..VerifyRequest::default() }).unwrap();
    assert!(report.clean());
    assert_eq!(report.differences[0].kind, DifferenceKind::HandMade);

    node.kill();
    node.start();
    assert!(intruder.asks(server.v4(), 80), "a new agent keeps it");
    node.import(&allow("more", "server", "nobody", 81));
    assert!(intruder.asks(server.v4(), 80), "a change of policy keeps it");
    eventually("it is shown", || {
        let warnings = node.client().status_details().unwrap().warnings;
        let metrics = node.client().metrics().unwrap();
        warnings.iter().any(|w| w.message.contains("by hand"))
            && metrics.iter().any(|m| m.name == "villus_policy_hand_made_entries" && m.value == 1.0)
    });
    let left = node.client().undo_emergency(&list.entries[0].id).unwrap();
    assert!(left.entries.is_empty());
    assert!(intruder.asks_in_vain(server.v4(), 80));
}

#[test]
fn a_range_by_hand_is_looked_up_as_long_as_it_is_there() {
    alone!();
    let node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let intruder = node.workload("intruder", &["k8s:app=intruder"]);
    server.serves(server.v4(), 4097);
    node.import(&allow("web", "server", "client", 80));
    let pins = Pins::existing(&node.root.join("bpf")).unwrap();
    let maps = Maps::existing(&pins).unwrap();
    let range = PolicyKey::block(0, 4096, 4, 6, Direction::Ingress);
    assert!(intruder.asks_in_vain(server.v4(), 4097));
    assert!(hand_insert(&pins, &maps, server.id(), &range, &PolicyEntry::ALLOW).unwrap());
    assert!(intruder.asks(server.v4(), 4097));
    // A comparison of everything, another of its records, a record that is written for another reason.
    let report = node.client().verify(&VerifyRequest { repair: true, ..VerifyRequest::default() }).unwrap();
    assert!(report.clean(), "{report:?}");
    eventually("the entry is seen", || {
        let metrics = node.client().metrics().unwrap();
        metrics.iter().any(|m| m.name == "villus_policy_hand_made_entries" && m.value == 1.0)
    });
    let audit = |on: &str| {
        let options = [("PolicyAuditMode".to_owned(), on.to_owned())].into();
        let patch = EndpointConfigPatch { options };
        node.client().configure_endpoint(&EndpointRef::Id(server.id()), &patch).unwrap();
    };
    audit("true");
    audit("false");
    let record = maps.endpoints.get(&server.id().into()).unwrap().unwrap();
    assert_eq!(record.mask[0], 1 << 4);
    assert!(intruder.asks(server.v4(), 4097));
    node.import(&allow("more", "server", "nobody", 81));
    assert!(intruder.asks(server.v4(), 4097));
    assert!(hand_remove(&pins, &maps, server.id(), &range).unwrap());
    assert!(intruder.asks_in_vain(server.v4(), 4097));
}

#[test]
fn differences_are_named_and_mended_but_not_where_the_agent_is_to_keep_off() {
    alone!();
    let node = TestNode::started(&[]);
    let client_of = node.client();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "client", 80));
    let identity = client.endpoint.status.identity.as_ref().unwrap().id.to_ne_bytes();
    let key: Vec<String> = identity.iter().chain(&[0, 80, 6, 0]).map(|byte| format!("{byte:02x}")).collect();
    let pin = format!("{GLOBALS}/cilium_policy_{:05}", server.id());
    let delete = || {
        let mut line = vec!["map", "delete", "pinned", &pin, "key", "hex"];
        line.extend(key.iter().map(String::as_str));
        run("bpftool", &line);
    };
    // The agent mends by itself, perhaps before anybody asks; while the map is held it does not.
    let id = EndpointRef::Id(server.id());
    client_of.hold(&id, &HoldRequest { reason: "a test".into(), dry_run: false }).unwrap();
    delete();
    let report = client_of.verify(&VerifyRequest::default()).unwrap();
    assert_eq!(report.differences.len(), 1, "{report:?}");
    assert_eq!(report.differences[0].kind, DifferenceKind::Missing);
    let report = client_of.verify(&VerifyRequest { repair: true, ..VerifyRequest::default() }).unwrap();
    assert!(!report.clean(), "held");
    assert!(client.asks_in_vain(server.v4(), 80));
    client_of.release(&id).unwrap();
    assert!(client.asks(server.v4(), 80));
    delete();
    let report = client_of.verify(&VerifyRequest { repair: true, ..VerifyRequest::default() }).unwrap();
    assert!(report.clean(), "{report:?}");
    assert!(client.asks(server.v4(), 80));
}

#[test]
fn why_says_who_decided_and_where_kernel_and_wish_differ() {
    alone!();
    let node = TestNode::started(&[]);
    let client_of = node.client();
    let server = node.workload("server", &["k8s:app=server"]);
    let _client = node.workload("client", &["k8s:app=client"]);
    let _intruder = node.workload("intruder", &["k8s:app=intruder"]);
    node.import(&allow("web", "server", "client", 80));
    let ask = |src: &str, port: &str| {
        let request = WhyRequest {
            src: src.into(),
            dst: server.v4().to_string(),
            port: port.into(),
            source_port: None,
        };
        client_of.why(&request).unwrap()
    };
    let allowed = ask("client", "80/TCP");
    assert!(allowed.agree);
    assert_eq!(allowed.kernel.verdict, "forwarded", "{allowed:?}");
    let denied = ask("intruder", "80");
    assert_eq!((denied.kernel.verdict.as_str(), denied.kernel.reason), ("dropped", Some(133)), "{denied:?}");
    let step = denied.kernel.steps.iter().find(|step| step.decided).unwrap();
    assert_eq!((step.stage.as_str(), step.endpoint), ("ingress policy", Some(server.id())));
    assert!(!step.keys.is_empty());
    open_by_hand(server.id());
    let opened = ask("intruder", "80");
    assert!(!opened.agree);
    assert_eq!((opened.kernel.verdict.as_str(), opened.wanted.verdict.as_str()), ("forwarded", "dropped"));
}
