//! Random policies, as the JSON that their authors would write.

use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use villus_policy::Entity;

fn any_selector() -> impl Strategy<Value = Value> {
    let keys = vec![
        ("app", vec!["a", "b", "c"]),
        ("k8s:app", vec!["a", "b"]),
        ("env", vec!["x", "y"]),
        ("container:env", vec!["x"]),
        ("io.kubernetes.pod.namespace", vec!["n1", "n2"]),
        ("k8s:io.kubernetes.pod.namespace", vec!["n1", "n2"]),
        ("io.cilium.k8s.namespace.labels.team", vec!["t1"]),
        ("io.cilium.k8s.policy.cluster", vec!["c1", "c2"]),
        ("reserved:init", vec![""]),
        ("reserved:host", vec![""]),
        ("reserved:world", vec![""]),
    ];
    let expression = (select(keys), select(vec!["In", "In", "NotIn", "Exists", "DoesNotExist"]), 0..3usize);
    let expression = expression.prop_map(|((key, values), operator, count)| match operator {
        "In" | "NotIn" => {
            let values: Vec<&str> = values.into_iter().take(count.max(1)).collect();
            json!({"key": key, "operator": operator, "values": values})
        }
        _ => json!({"key": key, "operator": operator}),
    });
    prop_oneof![
        2 => Just(json!({})),
        3 => select(vec!["a", "b", "c"]).prop_map(|app| json!({"matchLabels": {"app": app}})),
        4 => proptest::collection::vec(expression, 1..3).prop_map(|e| json!({"matchExpressions": e})),
    ]
}

pub const PREFIXES: [&str; 9] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.0.2.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
];

fn any_prefix_set() -> impl Strategy<Value = Value> {
    let except = proptest::collection::vec(select(PREFIXES.to_vec()), 0..3);
    (select(PREFIXES.to_vec()), except).prop_map(|(cidr, except)| {
        let outer: IpNet = cidr.parse().unwrap();
        let except: Vec<&str> =
            except.into_iter().filter(|e| outer.contains(&e.parse::<IpNet>().unwrap())).collect();
        json!({"cidr": cidr, "except": except})
    })
}

fn any_group_ref() -> impl Strategy<Value = Value> {
    let name = select(vec!["g1", "g2", "g3"]).prop_map(|name| json!({"cidrGroupRef": name}));
    let kinds = prop_oneof![
        select(vec!["good", "bad"]).prop_map(|kind| json!({"matchLabels": {"kind": kind}})),
        Just(json!({})),
        Just(json!({"matchExpressions": [{"key": "kind", "operator": "NotIn", "values": ["bad"]}]})),
    ];
    let base = prop_oneof![name, kinds.prop_map(|selector| json!({"cidrGroupSelector": selector}))];
    (base, proptest::collection::vec(select(PREFIXES.to_vec()), 0..3)).prop_map(|(mut base, except)| {
        base["except"] = json!(except);
        base
    })
}

fn any_service_ref() -> impl Strategy<Value = Value> {
    let namespace = select(vec![Some("n1"), Some("n2"), None]);
    let which = select(vec![
        ("k8sService", "serviceName", json!("s1")),
        ("k8sService", "serviceName", json!("s2")),
        ("k8sServiceSelector", "selector", json!({"matchLabels": {"tier": "front"}})),
        ("k8sServiceSelector", "selector", json!({"matchLabels": {"tier": "back"}})),
        ("k8sServiceSelector", "selector", json!({})),
    ]);
    (namespace, which).prop_map(|(namespace, (kind, field, what))| {
        let mut inner = json!({field: what});
        if let Some(namespace) = namespace {
            inner["namespace"] = json!(namespace);
        }
        json!({kind: inner})
    })
}

fn any_node_selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        select(vec!["edge", "core"]).prop_map(|tier| json!({"matchLabels": {"tier": tier}})),
        Just(json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]})),
    ]
}

fn any_transport() -> impl Strategy<Value = Option<(&'static str, Value)>> {
    let protocol = || select(vec!["TCP", "UDP", "SCTP", "ANY"]);
    let port = prop_oneof![
        4 => (select(vec![53u16, 80, 443, 8080]), protocol()).prop_map(|(port, protocol)| json!({"port": port.to_string(), "protocol": protocol})),
        1 => protocol().prop_map(|protocol| json!({"protocol": protocol})),
        1 => select(vec!["ICMP", "ICMPv6", "VRRP"]).prop_map(|protocol| json!({"protocol": protocol})),
        2 => (select(vec!["http", "HTTP", "dns", "nobody"]), protocol()).prop_map(|(port, protocol)| json!({"port": port, "protocol": protocol})),
        2 => (select(vec![(50u16, 60u16), (80, 81), (8000, 8999), (1024, 65535), (1, 65535), (1, 1023)]), select(vec!["TCP", "UDP", "ANY"]))
            .prop_map(|((port, end), protocol)| json!({"port": port.to_string(), "endPort": end, "protocol": protocol})),
    ];
    let types =
        (select(vec!["IPv4", "IPv6"]), select(vec![json!(0), json!(8), json!(128), json!("EchoRequest")]))
            .prop_map(|(family, kind)| json!({"family": family, "type": kind}));
    prop_oneof![
        2 => Just(None),
        4 => proptest::collection::vec(port, 1..3).prop_map(|ports| Some(("toPorts", json!([{"ports": ports}])))),
        1 => proptest::collection::vec(types, 1..3).prop_map(|fields| Some(("icmps", json!([{"fields": fields}])))),
    ]
}

fn any_element(side: &'static str) -> impl Strategy<Value = Value> {
    let named = move |what: &str, value: Value| Some((format!("{side}{what}"), value));
    let peers = prop_oneof![
        2 => Just(None),
        6 => proptest::collection::vec(any_selector(), 0..3).prop_map(move |s| named("Endpoints", json!(s))),
        3 => proptest::collection::vec(select(Entity::NAMES.to_vec()), 0..3).prop_map(move |e| named("Entities", json!(e))),
        2 => proptest::collection::vec(select(PREFIXES.to_vec()), 0..3).prop_map(move |p| named("CIDR", json!(p))),
        3 => proptest::collection::vec(prop_oneof![any_prefix_set(), any_group_ref()], 1..3).prop_map(move |p| named("CIDRSet", json!(p))),
        1 => proptest::collection::vec(any_node_selector(), 0..3).prop_map(move |n| named("Nodes", json!(n))),
        if side == "to" { 2 } else { 0 } => proptest::collection::vec(any_service_ref(), 0..3).prop_map(move |s| named("Services", json!(s))),
    ];
    let requires = proptest::option::weighted(0.1, proptest::collection::vec(any_selector(), 0..3));
    (peers, requires, any_transport()).prop_map(move |(peers, requires, transport)| {
        let mut element = serde_json::Map::new();
        element.extend(peers);
        element.extend(requires.map(|selectors| (format!("{side}Requires"), json!(selectors))));
        element.extend(transport.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(element)
    })
}

fn any_rule() -> impl Strategy<Value = Value> {
    let section = |side| proptest::option::weighted(0.5, proptest::collection::vec(any_element(side), 0..3));
    let default_deny = proptest::option::weighted(0.3, (any::<Option<bool>>(), any::<Option<bool>>()));
    (any_selector(), section("from"), section("to"), section("from"), section("to"), default_deny).prop_map(
        |(subject, ingress, egress, ingress_deny, egress_deny, default_deny)| {
            let mut rule = json!({"endpointSelector": subject});
            for (name, section) in [
                ("ingress", ingress.or_else(|| egress.is_none().then(Vec::new))),
                ("egress", egress),
                ("ingressDeny", ingress_deny.filter(|d| d.len() < 2)),
                ("egressDeny", egress_deny.filter(|d| d.len() < 2)),
            ] {
                if let Some(section) = section {
                    rule[name] = json!(section);
                }
            }
            if let Some((ingress, egress)) = default_deny {
                rule["enableDefaultDeny"] = json!({"ingress": ingress, "egress": egress});
            }
            rule
        },
    )
}

// === NetworkPolicy ===

fn any_pod_selector() -> impl Strategy<Value = Value> {
    any_plain_selector(vec![("app", vec!["a", "b", "c"]), ("env", vec!["x", "y"])])
}

fn any_namespace_selector() -> impl Strategy<Value = Value> {
    any_plain_selector(vec![("team", vec!["t1"]), ("kubernetes.io/metadata.name", vec!["n1", "n2"])])
}

fn any_plain_selector(keys: Vec<(&'static str, Vec<&'static str>)>) -> impl Strategy<Value = Value> {
    let expression = (select(keys), select(vec!["In", "NotIn", "Exists", "DoesNotExist", "Equal"]));
    let selector = expression.prop_map(|((key, values), operator)| match operator {
        "Equal" => json!({"matchLabels": {key: values[0]}}),
        "In" | "NotIn" => {
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": values[..1]}]})
        }
        _ => json!({"matchExpressions": [{"key": key, "operator": operator}]}),
    });
    prop_oneof![1 => Just(json!({})), 2 => selector]
}

fn any_network_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_pod_selector().prop_map(|pods| json!({"podSelector": pods})),
        any_namespace_selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (any_pod_selector(), any_namespace_selector())
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        any_prefix_set().prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn any_network_port() -> impl Strategy<Value = Value> {
    let port = select(vec![
        json!({}),
        json!({"port": 53}),
        json!({"port": 80}),
        json!({"port": "http"}),
        json!({"port": "dns"}),
        json!({"port": 80, "endPort": 443}),
        json!({"port": 1024, "endPort": 65535}),
    ]);
    (port, select(vec![None, Some("TCP"), Some("UDP"), Some("SCTP")])).prop_map(|(mut port, protocol)| {
        if let Some(protocol) = protocol {
            port["protocol"] = json!(protocol);
        }
        port
    })
}

fn any_network_section(side: &'static str) -> impl Strategy<Value = Option<Value>> {
    let peers = proptest::option::of(proptest::collection::vec(any_network_peer(), 0..3));
    let ports = proptest::option::of(proptest::collection::vec(any_network_port(), 0..3));
    let rule = (peers, ports).prop_map(move |(peers, ports)| {
        let mut rule = json!({});
        if let Some(peers) = peers {
            rule[side] = json!(peers);
        }
        if let Some(ports) = ports {
            rule["ports"] = json!(ports);
        }
        rule
    });
    proptest::option::of(proptest::collection::vec(rule, 0..3).prop_map(|rules| json!(rules)))
}

fn any_network_policy() -> impl Strategy<Value = Value> {
    let types =
        select(vec![None, Some(vec!["Ingress"]), Some(vec!["Egress"]), Some(vec!["Ingress", "Egress"])]);
    (any_pod_selector(), types, any_network_section("from"), any_network_section("to")).prop_map(
        |(pods, types, ingress, egress)| {
            let mut spec = json!({"podSelector": pods});
            for (name, value) in
                [("policyTypes", types.map(|types| json!(types))), ("ingress", ingress), ("egress", egress)]
            {
                if let Some(value) = value {
                    spec[name] = value;
                }
            }
            spec
        },
    )
}

// === policies ===

/// A policy without its name.
fn any_policy() -> impl Strategy<Value = Value> {
    let rules = || proptest::collection::vec(any_rule(), 1..3);
    let object = |kind: &str, namespace: Option<&str>, specs: Vec<Value>| {
        let mut metadata = json!({});
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "specs": specs})
    };
    let namespace = || select(vec!["n1", "n2"]);
    let for_nodes = (rules(), any_node_selector()).prop_map(move |(mut rules, nodes)| {
        let rule = rules[0].as_object_mut().unwrap();
        rule.remove("endpointSelector");
        rule.insert("nodeSelector".to_owned(), nodes);
        object("CiliumClusterwideNetworkPolicy", None, rules)
    });
    prop_oneof![
        6 => (namespace(), rules()).prop_map(move |(ns, rules)| object("CiliumNetworkPolicy", Some(ns), rules)),
        2 => rules().prop_map(move |rules| object("CiliumClusterwideNetworkPolicy", None, rules)),
        1 => for_nodes,
        3 => (namespace(), any_network_policy()).prop_map(|(ns, spec)| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": ns}, "spec": spec})
        }),
    ]
}

pub fn any_policies() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(any_policy(), 1..5).prop_map(|mut policies| {
        for (i, policy) in policies.iter_mut().enumerate() {
            policy["metadata"]["name"] = json!(format!("p{i}"));
        }
        policies
    })
}
