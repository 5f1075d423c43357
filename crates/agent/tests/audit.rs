//! Audit at every level: what policy denies passes and is told, also after a restart and for endpoints that come later.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{TestNode, Workload, allow, echoes, echoes_in_vain};
use villus_api::EndpointRef;
use villus_api::model::{
    DaemonConfigurationSpec, EndpointConfigPatch, MonitorQuery, PolicyEnabled, SelectorAuditDelete,
    SelectorAuditRequest,
};
use villus_flows::{Action, FilterSpec, FlowEvent, Kind, Record};
use villus_testbed::{alone, eventually};

const AUDIT: &str = "PolicyAuditMode";

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// A server that admits nobody here but `friend`, and somebody else who asks it.
fn scene(options: &[(&str, &str)]) -> (TestNode, Workload, Workload) {
    let node = TestNode::started(options);
    let server = node.workload("server", &["k8s:app=server", "k8s:env=prod"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&allow("web", "server", "friend", 80));
    assert!(client.asks_in_vain(server.v4(), 80), "enforced");
    (node, server, client)
}

fn set(node: &TestNode, id: u16, value: &str) {
    let options = BTreeMap::from([(AUDIT.to_owned(), value.to_owned())]);
    node.client().configure_endpoint(&EndpointRef::Id(id), &EndpointConfigPatch { options }).unwrap();
}

fn set_agent(node: &TestNode, name: &str, value: &str) {
    let options = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    node.client().patch_config(&DaemonConfigurationSpec { options, ..Default::default() }).unwrap();
}

fn select(node: &TestNode, selector: &str, audit: &str) {
    let request =
        SelectorAuditRequest { selector: selector.into(), audit: audit.into(), ..Default::default() };
    node.client().put_audit(&request).unwrap();
}

fn state(node: &TestNode, workload: &Workload) -> (PolicyEnabled, Vec<String>) {
    let endpoint = node.client().endpoint(&EndpointRef::Id(workload.id())).unwrap();
    (endpoint.status.policy.realized.policy_enabled, endpoint.status.villus.audited)
}

/// Verdicts of audit about an endpoint since the agent's start.
fn audited(node: &TestNode, id: u16) -> Vec<FlowEvent> {
    let filter = FilterSpec { types: "policy-verdict".into(), ..FilterSpec::default() };
    let query = MonitorQuery { filter, last: 4096, follow: false };
    let client = node.client();
    let records = client.monitor(&query).unwrap();
    let events = records.filter_map(|record| match record.unwrap() {
        Record::Event(event) => Some(event),
        Record::Lost { .. } => None,
    });
    let is_audit = |event: &FlowEvent| matches!(event.kind, Kind::Verdict { action: Action::Audit, .. });
    events.filter(|event| event.endpoint == id && is_audit(event)).collect()
}

#[test]
fn an_endpoint_is_audited_in_both_directions_or_one_and_its_options_stay_with_keep_config() {
    alone!();
    let (mut node, server, client) = scene(&[("keep-config", "true")]);
    set(&node, server.id(), "true");
    assert_eq!(state(&node, &server), (PolicyEnabled::AuditIngress, vec!["ingress".to_owned()]));
    assert!(client.asks(server.v4(), 80));
    eventually("it is told", || !audited(&node, server.id()).is_empty());
    let event = audited(&node, server.id()).remove(0);
    assert_eq!(event.reason().unwrap().0, 133);
    let names = |event: &FlowEvent| {
        event.policies.iter().flat_map(|all| all.iter()).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&event), ["default/web"], "it names the policy");
    node.kill();
    assert!(client.asks(server.v4(), 80), "while the agent is gone");
    node.start();
    assert!(client.asks(server.v4(), 80), "after a restart");
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open));

    set(&node, server.id(), "egress");
    assert!(echoes_in_vain(&mut open) && client.asks_in_vain(server.v4(), 80), "ingress is enforced");
    assert_eq!(state(&node, &server).0, PolicyEnabled::Ingress);
    set(&node, server.id(), "ingress");
    assert!(client.asks(server.v4(), 80));
    set(&node, server.id(), "false");
    assert!(client.asks_in_vain(server.v4(), 80));
    assert!(node.client().verify(&Default::default()).unwrap().differences.is_empty());
    let wrong = EndpointConfigPatch { options: BTreeMap::from([(AUDIT.into(), "sometimes".into())]) };
    let error = node.client().configure_endpoint(&EndpointRef::Id(server.id()), &wrong).unwrap_err();
    assert!(error.status() == Some(400) && error.to_string().contains("sometimes"), "{error}");
}

#[test]
fn without_keep_config_a_restart_ends_the_audit_of_an_endpoint_and_changes_of_options() {
    alone!();
    let (mut node, server, client) = scene(&[]);
    set(&node, server.id(), "true");
    set_agent(&node, "TraceNotification", "false");
    assert!(client.asks(server.v4(), 80));
    node.kill();
    node.start();
    assert!(client.asks_in_vain(server.v4(), 80));
    let endpoint = node.client().endpoint(&EndpointRef::Id(server.id())).unwrap();
    assert!(endpoint.status.log.iter().any(|entry| entry.message.contains("keep-config")), "{endpoint:?}");
    assert_eq!(node.client().config().unwrap().spec.options["TraceNotification"], "Enabled");
}

#[test]
fn options_of_the_agent_changed_while_it_runs_win_at_the_next_start() {
    alone!();
    let (mut node, server, client) = scene(&[("keep-config", "true")]);
    set_agent(&node, AUDIT, "true");
    set_agent(&node, "TraceNotification", "false");
    assert!(client.asks(server.v4(), 80), "every endpoint is audited");
    node.kill();
    node.start();
    let options = node.client().config().unwrap().spec.options;
    assert_eq!((options[AUDIT].as_str(), options["TraceNotification"].as_str()), ("Enabled", "Disabled"));
    assert_eq!(options["DropNotification"], "Enabled", "what was not changed is as configured");
    assert!(client.asks(server.v4(), 80));
    set_agent(&node, AUDIT, "egress");
    assert!(client.asks_in_vain(server.v4(), 80), "only what endpoints send is audited");
    set_agent(&node, AUDIT, "ingress");
    assert!(client.asks(server.v4(), 80));
    for (name, value) in [(AUDIT, "perhaps"), ("NoSuchOption", "true")] {
        let options =
            BTreeMap::from([("DropNotification".into(), "false".into()), (name.into(), value.into())]);
        let spec = DaemonConfigurationSpec { options, ..Default::default() };
        let error = node.client().patch_config(&spec).unwrap_err();
        assert!(error.status() == Some(400) && error.to_string().contains(name), "{error}");
    }
    assert_eq!(node.client().config().unwrap().spec.options["DropNotification"], "Enabled", "all or none");
    // A damaged file is named, and the configuration counts.
    node.kill();
    std::fs::write(node.root.join("lib/options.json"), "{").unwrap();
    node.start();
    assert!(client.asks_in_vain(server.v4(), 80));
    let warnings = node.client().status_details().unwrap().warnings;
    let told = |w: &[villus_api::model::Warning]| {
        w.iter().filter(|warning| warning.message.contains("options.json")).count()
    };
    assert_eq!(told(&warnings), 1, "{warnings:?}");
    node.kill();
    node.start();
    let warnings = node.client().status_details().unwrap().warnings;
    assert_eq!(told(&warnings), 1, "what was kept aside is named until it is removed: {warnings:?}");
}

#[test]
fn a_selector_audits_the_endpoints_of_today_and_of_tomorrow() {
    alone!();
    let (mut node, server, client) = scene(&[]);
    select(&node, "env=prod", "");
    assert!(client.asks(server.v4(), 80));
    assert_eq!(node.client().audits().unwrap()[0].endpoints, [server.id()]);
    node.kill();
    node.start();
    assert!(client.asks(server.v4(), 80), "it stays without keep-config: it is an object, not an option");

    node.import(&allow("more", "second", "friend", 80));
    let second = node.workload("second", &["k8s:app=second", "k8s:env=prod"]);
    let third = node.workload("third", &["k8s:app=second"]);
    for workload in [&second, &third] {
        workload.serves(workload.v4(), 80);
    }
    assert!(client.asks(second.v4(), 80), "it came later");
    assert!(client.asks_in_vain(third.v4(), 80), "it is not selected");
    eventually("it is told", || !audited(&node, second.id()).is_empty());
    assert!(audited(&node, third.id()).is_empty());
    let patch =
        villus_api::model::EndpointPatch { add_labels: vec!["k8s:env=prod".into()], ..Default::default() };
    node.client().patch_endpoint(&EndpointRef::Id(third.id()), &patch).unwrap();
    assert!(client.asks(third.v4(), 80), "a label decides");

    let delete = SelectorAuditDelete { selector: "env=prod".into(), ..Default::default() };
    assert!(node.client().delete_audit(&delete).unwrap().is_empty());
    assert!(client.asks_in_vain(server.v4(), 80) && client.asks_in_vain(second.v4(), 80));
    assert_eq!(node.client().delete_audit(&delete).unwrap_err().status(), Some(404));
    for selector in ["", "app in ("] {
        let request = SelectorAuditRequest { selector: selector.into(), ..Default::default() };
        assert_eq!(node.client().put_audit(&request).unwrap_err().status(), Some(400), "{selector:?}");
    }
}

#[test]
fn a_policy_is_audited_by_its_annotation_and_enforced_ones_have_the_say() {
    alone!();
    let audited_policy = |name: &str, peer: &str| {
        let annotation = "annotations: {policy.villus.io/audit: \"true\"}, namespace: default";
        allow(name, "server", peer, 80).replace("namespace: default", annotation)
    };
    let mut node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(&audited_policy("trial", "friend"));
    assert!(client.asks(server.v4(), 80), "only audited policies select the server");
    eventually("it is told", || !audited(&node, server.id()).is_empty());
    assert_eq!(state(&node, &server).0, PolicyEnabled::AuditIngress);
    node.kill();
    node.start();
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open), "after a restart");

    node.import(&allow("strict", "server", "friend", 80));
    assert!(echoes_in_vain(&mut open) && client.asks_in_vain(server.v4(), 80), "an enforced one denies");
    assert_eq!(state(&node, &server).0, PolicyEnabled::Ingress);
    let delete = villus_api::model::PolicyDelete { name: "strict".into(), ..Default::default() };
    node.client().delete_policy(&delete).unwrap();
    assert!(client.asks(server.v4(), 80));
    node.import(&allow("trial", "server", "friend", 80));
    assert!(client.asks_in_vain(server.v4(), 80), "without its annotation it is enforced");
    assert!(node.client().verify(&Default::default()).unwrap().differences.is_empty());
}
