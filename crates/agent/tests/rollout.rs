//! From observed traffic to an enforced policy, and files of flows on disk.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{TestNode, allow};
use villus_api::EndpointRef;
use villus_api::model::{
    DaemonConfigurationSpec, PolicyDelete, PolicyImport, PolicyName, PolicyText, PreviewRequest,
    WaitingChange,
};
use villus_flows::Direction;
use villus_flows::hubble::open_flows;
use villus_labels::{Labels, Selector};
use villus_rollout::{Choice, Observations, Outcome, PeerKeys, World, learn};
use villus_testbed::{alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

const EVERYTHING: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: nothing, namespace: default}\n\
                          spec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress: [{}]\n  egress: [{}]\n";

fn audit(node: &TestNode, on: bool) {
    let options = BTreeMap::from([("PolicyAuditMode".to_owned(), on.to_string())]);
    node.client()
        .patch_config(&DaemonConfigurationSpec { options, ..DaemonConfigurationSpec::default() })
        .unwrap();
}

/// The draft for an endpoint, from what the agent has observed.
fn draft_for(node: &TestNode, id: u16, observations: &Observations, name: &str) -> String {
    let identity = node.client().endpoint(&EndpointRef::Id(id)).unwrap().status.identity.unwrap();
    let labels = Labels::new(identity.labels.iter().map(|text| text.parse().unwrap())).unwrap();
    let choice = Choice {
        subject: labels.iter().fold(Selector::everything(), |all, label| all.requiring(label)),
        subject_labels: Some(labels),
        name: name.into(),
        namespace: None,
        directions: Direction::ALL.to_vec(),
        audited_only: false,
        denied_too: false,
        world: World::Addresses,
        keys: PeerKeys::All,
    };
    learn(observations, &choice).unwrap().text
}

fn preview(text: &str) -> PreviewRequest {
    let files = vec![PolicyText { file: "draft.yaml".into(), text: text.into() }];
    PreviewRequest { files, enforced: true, ..PreviewRequest::default() }
}

#[test]
fn what_was_seen_under_audit_passes_when_it_is_enforced_and_nothing_else_does() {
    alone!();
    let node = TestNode::started(&[("policy-audit-mode", "true")]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let intruder = node.workload("intruder", &["k8s:app=intruder"]);
    for address in [server.v4(), server.v6()] {
        server.serves(address, 80);
        server.serves(address, 81);
    }
    client.serves(client.v4(), 5432);
    node.import(EVERYTHING);
    for address in [server.v4(), server.v6()] {
        assert!(client.asks(address, 80) && client.pings(address), "audit lets everything pass");
    }
    assert!(server.asks(client.v4(), 5432));
    let observed = || node.client().observed_flows().unwrap().observations;
    let audited = |observations: &Observations| {
        observations.iter().filter(|(_, seen)| seen.audited.iter().any(|count| count.count > 0)).count()
    };
    // By labels both families are one: TCP, two kinds of ping, and what the server opens.
    eventually("all of it was observed", || audited(&observed()) >= 4);

    let draft = draft_for(&node, server.id(), &observed(), "server");
    assert_eq!(draft_for(&node, server.id(), &observed(), "server"), draft, "stable from run to run");
    for part in ["k8s:app: \"client\"", "port: \"80\"", "family: IPv4", "family: IPv6", "port: \"5432\""] {
        assert!(draft.contains(part), "{part}:\n{draft}");
    }
    let revision = node.client().policy(&Default::default()).unwrap().revision;
    let clean = node.client().preview_policy(&preview(&draft)).unwrap();
    assert_eq!((clean.newly_denied(), clean.newly_audited(), clean.overflows()), (0, 0, 0), "{clean:#?}");
    assert!(clean.flows.iter().filter(|flow| flow.after == Outcome::Allowed).count() >= 4, "{clean:#?}");
    assert_eq!(clean.endpoints.len(), 1, "only the server's map: {clean:#?}");
    let wrong = node.client().preview_policy(&preview(&allow("server", "server", "intruder", 80))).unwrap();
    assert!(
        wrong.newly_denied() == 0,
        "they are denied already, and audit is what lets them pass: {wrong:#?}"
    );
    assert_eq!(node.client().policy(&Default::default()).unwrap().revision, revision, "nothing was changed");

    node.import(&draft);
    audit(&node, false);
    for address in [server.v4(), server.v6()] {
        assert!(client.asks(address, 80) && client.pings(address), "{address}");
        assert!(
            client.asks_in_vain(address, 81)
                && intruder.asks_in_vain(address, 80)
                && intruder.pings_in_vain(address),
            "{address}"
        );
    }
    assert!(server.asks(client.v4(), 5432));

    // Enforced, the removal of what lets the client in is seen to deny it.
    let delete = vec![PolicyName { name: "server".into(), ..PolicyName::default() }];
    let gone = node.client().preview_policy(&PreviewRequest { delete, ..PreviewRequest::default() }).unwrap();
    assert!(gone.newly_denied() >= 4, "{gone:#?}");
    let unknown = vec![PolicyName { name: "other".into(), ..PolicyName::default() }];
    let request = PreviewRequest { delete: unknown, ..PreviewRequest::default() };
    assert!(node.client().preview_policy(&request).is_err());
}

#[test]
fn flows_are_written_to_disk_and_read_from_there() {
    alone!();
    let mut node = TestNode::started(&[
        ("hubble-export-file-path", "/tmp/node/export/flows.log"),
        ("hubble-export-file-max-size-mb", "1"),
        ("hubble-export-file-max-backups", "2"),
    ]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    assert!(client.asks(server.v4(), 80));
    let path = node.root.join("export/flows.log");
    let read = || {
        let mut flows = Vec::new();
        let report = open_flows(&path).and_then(|reader| reader.each(|flow| flows.push(flow)));
        (flows, report)
    };
    eventually("the flow is on disk", || {
        read().0.iter().any(|flow| {
            flow.transport() == Some((6, 80))
                && flow.source.labels.get("app").is_some_and(|label| label.value() == "client")
                && flow.destination.pod_name == "server"
                && flow.destination.namespace == "default"
        })
    });
    assert_eq!(read().1.unwrap().malformed, 0);
    let age = jiff::Timestamp::now().duration_since(read().0[0].time.unwrap());
    assert!(age < jiff::SignedDuration::from_secs(600) && !age.is_negative(), "the time of the day: {age}");

    // The file outlives the agent's memory.
    node.kill();
    node.start();
    let observed = node.client().observed_flows().unwrap();
    assert_eq!(observed.source, path.display().to_string());
    assert!(observed.observations.iter().any(|(row, _)| row.port == 80), "{observed:?}");
    let metric = |name: &str| {
        let metrics = node.client().metrics().unwrap();
        metrics.iter().filter(|metric| metric.name == name).map(|metric| metric.value).sum::<f64>()
    };
    client.asks(server.v4(), 80);
    eventually("what is written is counted", || metric("villus_export_events_total") > 0.0);
    assert_eq!(metric("villus_export_lost_total"), 0.0);

    // A place that cannot be written is said, and nothing else suffers.
    std::fs::remove_dir_all(node.root.join("export")).unwrap();
    std::fs::write(node.root.join("export"), "in the way").unwrap();
    eventually("it is said", || {
        assert!(client.asks(server.v4(), 80));
        metric("villus_export_lost_total") > 0.0
            && node
                .client()
                .status_details()
                .unwrap()
                .warnings
                .iter()
                .any(|w| w.message.contains("flows.log"))
    });
}

/// Open connections from a client to a server, and policies that touch them.
fn connected(node: &TestNode) -> (common::Workload, common::Workload, Vec<std::net::TcpStream>) {
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    let open = (0..4).map(|_| client.connects(server.v4(), 80).unwrap()).collect();
    (server, client, open)
}

fn waiting(node: &TestNode) -> Vec<WaitingChange> {
    node.client().policy(&Default::default()).unwrap().waiting
}

#[test]
fn a_change_that_would_cut_too_much_waits_over_a_restart_until_it_is_confirmed() {
    alone!();
    let mut node = TestNode::started(&[("policy-change-limit", "flows=10%")]);
    let (server, client, mut open) = connected(&node);
    let nobody = allow("web", "server", "nobody", 80);
    let import = PolicyImport { file: "web.yaml".into(), text: nobody, ..PolicyImport::default() };
    let answer = node.client().import_policy(&import).unwrap();
    let told = answer.waiting.unwrap();
    assert_eq!((told.id, told.policies.as_slice()), (1, &["default/web".to_owned()][..]));
    assert!(told.impact.flows.touched >= 4 && told.impact.endpoints == [server.id()], "{told:?}");
    assert!(told.impact.cut.iter().any(|flow| flow.ends_with(":80/tcp")), "{told:?}");
    assert!(answer.added.is_empty(), "nothing was done");
    assert!(open.iter_mut().all(common::echoes) && client.asks(server.v4(), 80));
    let said = || node.client().status_details().unwrap().warnings;
    assert!(said().iter().any(|w| w.message.contains("policy change 1") && w.message.contains("confirm 1")));

    // What touches no flow is not held up.
    node.import(&allow("other", "nobody", "client", 80));

    node.kill();
    node.start();
    assert_eq!(waiting(&node), std::slice::from_ref(&told));
    assert!(open.iter_mut().all(common::echoes), "it still waits");
    assert!(node.client().confirm_policy(7).is_err());
    node.client().confirm_policy(1).unwrap();
    assert_eq!(waiting(&node), []);
    assert!(client.asks_in_vain(server.v4(), 80));
    eventually("open connections are cut", || open.iter_mut().all(common::echoes_in_vain));

    // A deletion that would cut is held as well, one that opens is not: here none is left to cut.
    let delete = PolicyDelete { name: "web".into(), ..PolicyDelete::default() };
    assert_eq!(node.client().delete_policy(&delete).unwrap().waiting, None);
    assert!(client.asks(server.v4(), 80));
}

#[test]
fn a_file_that_would_cut_too_much_waits_and_can_be_rejected() {
    alone!();
    let mut node = TestNode::started(&[("policy-change-limit", "10%")]);
    let (server, client, mut open) = connected(&node);
    let deny = allow("web", "server", "nobody", 80);
    node.policy_file("web.yaml", &deny);
    eventually("the file waits", || waiting(&node).len() == 1);
    let told = waiting(&node).remove(0);
    assert!(told.source.ends_with("policies/web.yaml") && told.impact.entries.touched > 0, "{told:?}");
    assert!(open.iter_mut().all(common::echoes));

    node.kill();
    node.start();
    assert_eq!(waiting(&node), std::slice::from_ref(&told), "over a restart");
    assert!(client.asks(server.v4(), 80));

    node.client().reject_policy(told.id).unwrap();
    node.kill();
    node.start();
    assert_eq!(waiting(&node), [], "rejected over a restart");
    assert!(client.asks(server.v4(), 80) && open.iter_mut().all(common::echoes));

    // Another version is another change.
    node.policy_file("web.yaml", &format!("{deny}# again\n"));
    eventually("the new version waits", || waiting(&node).len() == 1);
    node.client().confirm_policy(waiting(&node)[0].id).unwrap();
    assert!(client.asks_in_vain(server.v4(), 80));
    node.kill();
    node.start();
    assert!(client.asks_in_vain(server.v4(), 80), "confirmed over a restart");
    assert_eq!(waiting(&node), []);
}
