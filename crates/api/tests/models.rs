//! The models' JSON, and the tables made of them.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use villus_api::model::*;
use villus_print::{EndpointRow, IdentityRow, MapEntryRow, MapRow, endpoint_list};

fn endpoint() -> Endpoint {
    let mut endpoint = Endpoint { id: 794, ..Endpoint::default() };
    let status = &mut endpoint.status;
    let labels = vec!["k8s:app=web".to_owned()];
    status.identity =
        Some(Identity { id: 298_951, labels, labels_sha256: "ab".into(), ..Identity::default() });
    status.external_identifiers.pod_name = Some("ns1/web-0".into());
    status.health.overall_health = "OK".into();
    status.networking = EndpointNetworking {
        addressing: EndpointNetworking::pairs(["10.2.6.113".parse().unwrap(), "fd00::a".parse().unwrap()]),
        host_mac: Some(Mac([10, 0, 0, 0, 0, 1])),
        interface_index: 12,
        interface_name: "lxc794".into(),
        ..EndpointNetworking::default()
    };
    status.policy.realized.policy_enabled = PolicyEnabled::new([true, false], [false, false]);
    status.policy.realized.allowed_ingress_identities = vec![1];
    status.state = EndpointState::WaitingForIdentity;
    endpoint
}

#[test]
fn an_endpoint_has_the_names_of_the_field() {
    let value = serde_json::to_value(endpoint()).unwrap();
    for (pointer, expected) in [
        ("/id", json!(794)),
        ("/status/external-identifiers/pod-name", json!("ns1/web-0")),
        ("/status/health/overallHealth", json!("OK")),
        ("/status/identity/labelsSHA256", json!("ab")),
        ("/status/labels", Value::Null),
        ("/status/networking/addressing/0", json!({"ipv4": "10.2.6.113", "ipv6": "fd00::a"})),
        ("/status/networking/host-mac", json!("0a:00:00:00:00:01")),
        ("/status/networking/interface-index", json!(12)),
        ("/status/policy/realized/allowed-ingress-identities", json!([1])),
        ("/status/policy/realized/policy-enabled", json!("ingress")),
        ("/status/state", json!("waiting-for-identity")),
    ] {
        assert_eq!(value.pointer(pointer).cloned().unwrap_or(Value::Null), expected, "{pointer} in {value}");
    }
    assert_eq!(serde_json::from_value::<Endpoint>(value).unwrap(), endpoint());
}

#[test]
fn answers_of_newer_agents_are_understood() {
    let newer = json!({"id": 5, "status": {"state": "ready", "shiny": 1}, "more": []});
    assert_eq!(serde_json::from_value::<Endpoint>(newer).unwrap().id, 5);
}

#[test]
fn names_of_other_models() {
    let ip =
        IpListEntry { cidr: "10.0.0.1/32".into(), host_ip: "192.168.0.1".into(), ..IpListEntry::default() };
    let value = serde_json::to_value(ip).unwrap();
    assert_eq!((&value["hostIP"], &value["identity"]), (&json!("192.168.0.1"), &json!(0)));
    let config = serde_json::to_value(DaemonConfiguration::default()).unwrap();
    assert!(config["status"]["daemonConfigurationMap"].is_object());
    let counted = IdentityEndpoints { ref_count: 2, ..IdentityEndpoints::default() };
    assert_eq!(serde_json::to_value(&counted).unwrap()["refCount"], 2);
    assert_eq!(IdentityRow::from(&counted).refcount, Some(2));
    let audit = serde_json::to_value(PolicyEnabled::new([true; 2], [true; 2])).unwrap();
    assert_eq!(audit, "audit-both");
}

#[test]
fn a_table_of_endpoints() {
    let table = endpoint_list(&[EndpointRow::from(&endpoint())]);
    let row: Vec<_> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(
        row,
        [
            "794",
            "Enabled",
            "Disabled",
            "298951",
            "k8s:app=web",
            "fd00::a",
            "10.2.6.113",
            "waiting-for-identity"
        ]
    );
}

#[test]
fn tables_of_maps() {
    let entry = BpfMapEntry { desired_action: "insert".into(), ..BpfMapEntry::default() };
    assert_eq!(MapEntryRow::from(&entry).state, "to-be-inserted");
    let map = BpfMap { path: "tc/globals/cilium_ipcache".into(), entries: 3, ..BpfMap::default() };
    assert_eq!(MapRow::from(&map).name, "cilium_ipcache");
}

#[test]
fn a_report_is_clean_when_what_differs_was_meant_or_mended() {
    let difference = |kind, repaired| Difference {
        map: "cilium_policy_00794".into(),
        endpoint: Some(794),
        kind,
        key: "ANY ANY ingress".into(),
        want: String::new(),
        have: "allow".into(),
        repaired,
        note: String::new(),
    };
    let report = |differences| VerifyReport { differences, ..VerifyReport::default() };
    assert!(report(vec![]).clean());
    assert!(report(vec![difference(DifferenceKind::HandMade, false)]).clean());
    assert!(report(vec![difference(DifferenceKind::Missing, true)]).clean());
    assert!(!report(vec![difference(DifferenceKind::Extra, false)]).clean());
}
