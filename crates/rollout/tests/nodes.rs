//! Flows of nodes: whether prefixes of policies mean them says `policy-cidr-match-mode`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Cursor;

use villus_flows::hubble::FlowReader;
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{Audit, Settings, parse};
use villus_rollout::{Numbers, Objects, Observations, Outcome, Peer, Plan, Preview, preview, subjects_of};

/// What an agent with `policy-cidr-match-mode=nodes` writes of a node's flow; without it there are no prefixes.
fn flows(prefixes: bool) -> Observations {
    flows_of(
        6,
        "remote-node",
        prefixes,
        &["192.0.2.7/32", "192.0.2.200/32", "198.51.100.7/32", "2001:db8::7/128"],
    )
}

fn flows_of(identity: u32, name: &str, prefixes: bool, addresses: &[&str]) -> Observations {
    let flow = |address: &&str| {
        let own: Vec<String> = villus_labels::cidr_labels(address.parse().unwrap())
            .iter()
            .filter(|label| prefixes && label.source() == "cidr")
            .map(|label| format!(",\"{label}\""))
            .collect();
        let address = address.split('/').next().unwrap();
        let (to, ip) = match address.contains(':') {
            true => ("2001:db8:1::2", "IPv6"),
            false => ("10.0.0.2", "IPv4"),
        };
        format!(
            "{{\"flow\":{{\"verdict\":\"FORWARDED\",\"IP\":{{\"source\":\"{address}\",\"destination\":\"{to}\",\
             \"ipVersion\":\"{ip}\"}},\"l4\":{{\"TCP\":{{\"source_port\":40000,\"destination_port\":80,\
             \"flags\":{{\"SYN\":true}}}}}},\"source\":{{\"identity\":{identity},\"labels\":[\"reserved:{name}\"{}]}},\
             \"destination\":{{\"identity\":1002,\"labels\":[\"k8s:app=web\",\
             \"k8s:io.kubernetes.pod.namespace=shop\"]}},\"event_type\":{{\"type\":4}},\
             \"traffic_direction\":\"INGRESS\",\"is_reply\":false}}}}\n",
            own.concat()
        )
    };
    let lines: String = addresses.iter().map(flow).collect();
    let mut observations = Observations::default();
    let reader = FlowReader::new("test", Cursor::new(lines.into_bytes()));
    let report = reader.each(|flow| observations.add_flow(&flow, &|_| None)).unwrap();
    assert_eq!((report.malformed, observations.len()), (0, addresses.len()), "{report:?}");
    observations
}

const POLICY: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
                      spec:\n  endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromCIDRSet: \
                      [{cidr: 192.0.2.0/24, except: [192.0.2.128/25]}]\n  - fromCIDR: [\"2001:db8::/32\"]\n";

/// Labels with the prefixes that cover an address.
fn cidrs(address: &str, labels: Labels) -> Labels {
    villus_labels::cidr_labels(address.parse().unwrap())
        .iter()
        .filter(|label| label.source() == "cidr")
        .fold(labels, |all, label| all.with(label.clone()))
}

fn preview_of(observations: &Observations, numbers: Numbers) -> Preview {
    preview_over(Objects::default(), observations, numbers)
}

/// The policy is new among what was there before.
fn preview_over(before: Objects, observations: &Observations, numbers: Numbers) -> Preview {
    let mut after = before.clone();
    after.put(parse("web.yaml", POLICY).unwrap());
    let settings = Settings::new("default").unwrap();
    let plan = Plan {
        before,
        after,
        numbers,
        subjects: subjects_of(observations),
        audit: Audit::NONE,
        max_entries: settings.max_entries,
        settings,
    };
    preview(plan, observations)
}

fn denied(preview: &Preview) -> Vec<String> {
    let denied = preview.flows.iter().filter(|flow| flow.after == Outcome::Denied);
    let mut sources: Vec<String> = denied.map(|flow| flow.flow.source.to_string()).collect();
    sources.sort();
    sources
}

#[test]
fn prefixes_mean_other_nodes_only_where_the_option_says_so() {
    for told in [false, true] {
        let with = preview_of(&flows(told), Numbers::default().with_node_prefixes(true));
        let outside = ["192.0.2.200 (reserved:remote-node)", "198.51.100.7 (reserved:remote-node)"];
        assert_eq!((denied(&with), with.judged), (outside.map(str::to_owned).to_vec(), 4));
        // All nodes are alike, and none is meant.
        let without = preview_of(&flows(told), Numbers::default());
        assert_eq!((denied(&without), without.judged), (vec!["reserved:remote-node".to_owned()], 1));
        assert_eq!(without.flows[0].seen.count, 4);
    }
}

#[test]
fn the_node_itself_is_meant_by_the_prefixes_of_any_of_its_addresses_where_the_option_says_so() {
    let seen = |addresses: &[&str]| flows_of(1, "host", false, addresses);
    let nodes = || Numbers::default().with_node_prefixes(true);
    for (addresses, is_denied) in [
        (&["192.0.2.7/32", "198.51.100.7/32"][..], false),
        (&["198.51.100.7/32"], true),
        // What an `except` covers is no node that is meant, whatever its other addresses are.
        (&["192.0.2.7/32", "192.0.2.200/32"], true),
    ] {
        let preview = preview_of(&seen(addresses), nodes());
        assert_eq!(denied(&preview).is_empty(), !is_denied, "{addresses:?}: {:?}", denied(&preview));
    }
    // An agent knows all of them.
    let labels = cidrs("192.0.2.7/32", Labels::parse_list("reserved:host", "k8s").unwrap());
    let known = Objects { host: Some(labels), ..Objects::default() };
    let preview = preview_over(known, &seen(&["198.51.100.7/32"]), nodes());
    assert_eq!(denied(&preview), [""; 0]);
    let without = preview_of(&seen(&["192.0.2.7/32"]), Numbers::default());
    assert_eq!(denied(&without), ["reserved:host"]);
}

#[test]
fn a_node_that_policy_tells_apart_keeps_its_number() {
    let labels = cidrs("192.0.2.7/32", Labels::parse_list("reserved:remote-node", "k8s").unwrap());
    let number = NumericIdentity(*NumericIdentity::REMOTE_NODE_RANGE.start() + 5);
    let numbers = Numbers::new([(number, labels)], []).with_node_prefixes(true);
    let told = preview_of(&flows(true), numbers);
    let added: Vec<Option<u32>> = told.endpoints[0].added.iter().map(|entry| entry.identity).collect();
    assert!(added.contains(&Some(number.0)), "{added:?}");
}

#[test]
fn a_node_is_read_back_from_json_as_it_was() {
    let observations = flows(true);
    let text = serde_json::to_string(&observations).unwrap();
    assert_eq!(serde_json::from_str::<Observations>(&text).unwrap(), observations);
    let nodes = observations.iter().filter(|(row, _)| matches!(row.source, Peer::Node { .. }));
    assert_eq!(nodes.count(), 4, "{text}");
    assert!(!text.contains("cidr"), "{text}");
}
