//! What is taken, what is refused, and what the refusal says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path};

use villus_policy::{ProblemKind, Refused, Transport, parse};

fn testdata(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
}

fn spec(body: &str) -> String {
    let body = body.replace('\n', "\n  ");
    format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  {body}\n")
}

fn refused(text: &str) -> Refused {
    parse("p.yaml", text).expect_err("should be refused")
}

#[test]
fn own_examples_are_taken() {
    let shop = parse("shop.yaml", &testdata("shop.yaml")).unwrap();
    let names: Vec<String> = shop.policies.iter().map(|p| p.key.to_string()).collect();
    assert_eq!(
        names,
        ["CiliumNetworkPolicy shop/database", "CiliumClusterwideNetworkPolicy nobody-reaches-metadata"]
    );
    let rule = &shop.policies[0].rules[0];
    assert_eq!(rule.ingress.as_ref().unwrap()[0].endpoints.as_ref().unwrap().len(), 2);
    assert_eq!(rule.position.unwrap().line, 9);
    assert_eq!(
        shop.policies[0].labels().to_string(),
        "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy,k8s:io.cilium.k8s.policy.name=database,\
         k8s:io.cilium.k8s.policy.namespace=shop,unspec:owner=storage"
    );
    let addresses = parse("addresses.yaml", &testdata("addresses.yaml")).unwrap();
    let policy = &addresses.policies[0];
    assert_eq!(policy.rules.len(), 2);
    assert_eq!(&*policy.rules[1].path, "specs[1]");
    assert_eq!(policy.object.to_json().pointer("/metadata/namespace").unwrap(), "default");
    let icmps = policy.rules[0].egress.as_ref().unwrap()[1].transport.as_ref().unwrap();
    assert_eq!(icmps[0], Transport::Icmp { v6: false, kind: 8 });
    let list = parse("list.json", &testdata("list.json")).unwrap();
    assert_eq!(list.policies.len(), 2);
    assert!(list.policies[0].object.to_json().get("status").is_none());
    assert!(list.policies[0].object.to_json().pointer("/metadata/managedFields").is_none());
}

#[test]
fn what_is_not_enforced_is_refused_by_field() {
    let refused = refused(&testdata("refused.yaml"));
    let found: Vec<(usize, &str, ProblemKind)> =
        refused.problems.iter().map(|p| (p.document, p.path.as_str(), p.kind)).collect();
    assert_eq!(
        found,
        [
            (1, "spec.ingress[0].toPorts[0].rules.http", ProblemKind::NotEnforced),
            (2, "spec.egress[0].toFQDNs", ProblemKind::NotEnforced),
            (3, "kind", ProblemKind::NotAPolicy),
        ]
    );
    let first = refused.problems[0].to_string();
    assert!(
        first.starts_with(
            "p.yaml:11:13: document 1 (CiliumNetworkPolicy default/http): \
             spec.ingress[0].toPorts[0].rules.http: HTTP rules are not enforced"
        ),
        "{first}"
    );
    assert!(!refused.holds_no_policy());
    assert!(self::refused("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n").holds_no_policy());
    assert_eq!(serde_json::to_value(&refused).unwrap()["problems"][2]["kind"], "not-a-policy");
}

#[test]
fn bad_input_names_the_field_and_the_fix() {
    let long = "x".repeat(64);
    let overlong = format!("endpointSelector: {{matchLabels: {{app: {long}}}}}\ningress: [{{}}]");
    let ports = |port: &str| format!("endpointSelector: {{}}\ningress:\n- toPorts: [{{ports: [{port}]}}]");
    let element = |text: &str| format!("endpointSelector: {{}}\ningress:\n- {text}");
    let cases: &[(&str, String, &str, &str)] = &[
        (
            "a port of 70000",
            ports("{port: \"70000\"}"),
            "spec.ingress[0].toPorts[0].ports[0].port",
            "port 70000 is not a number from 0 to 65535",
        ),
        ("a negative port", ports("{port: -1}"), "ports[0].port", "port -1 is not"),
        ("a fraction", ports("{port: 80.5}"), "ports[0].port", "port 80.5 is not"),
        ("leading zeros", ports("{port: \"080\"}"), "ports[0].port", "begins with 0"),
        ("endPort below port", ports("{port: \"90\", endPort: 80}"), "ports[0].endPort", "below port 90"),
        ("a port of no name", ports("{port: a_b}"), "ports[0].port", "nor a name"),
        (
            "a range from a name",
            ports("{port: http, endPort: 90}"),
            "ports[0].endPort",
            "the number of the first port",
        ),
        ("a name without ports", ports("{port: http, protocol: ICMP}"), "ports[0].port", "has no ports"),
        ("a port of ESP", ports("{port: 50, protocol: ESP}"), "ports[0].port", "has no ports"),
        ("an unknown protocol", ports("{port: \"80\", protocol: TPC}"), "ports[0].protocol", "use TCP, UDP"),
        ("no ports", element("toPorts: [{}]"), "spec.ingress[0].toPorts[0]", "remove `toPorts`"),
        (
            "an overlong label",
            overlong,
            "spec.endpointSelector.matchLabels[app]",
            "64 characters, at most 63",
        ),
        (
            "a number as a label",
            "endpointSelector: {matchLabels: {version: 1.10}}\ningress: [{}]".into(),
            "matchLabels[version]",
            "put it in quotes",
        ),
        (
            "two sources",
            "endpointSelector: {matchLabels: {'k8s:app': a, 'container:app': a}}\ningress: [{}]".into(),
            "spec.endpointSelector",
            "from two sources",
        ),
        (
            "an unknown source",
            "endpointSelector: {matchLabels: {'k8d:app': a}}\ningress: [{}]".into(),
            "matchLabels[k8d:app]",
            "did you mean `k8s`",
        ),
        (
            "an unknown operator",
            "endpointSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}\ningress: [{}]"
                .into(),
            "matchExpressions[0]",
            "use In, NotIn",
        ),
        (
            "an operator without key",
            "endpointSelector: {matchExpressions: [{operator: Exists}]}\ningress: [{}]".into(),
            "matchExpressions[0]",
            "`key` is missing",
        ),
        ("a bad prefix", element("fromCIDR: [10.0.0.0/33]"), "spec.ingress[0].fromCIDR[0]", "from 0 to 32"),
        (
            "except outside",
            element("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]"),
            "fromCIDRSet[0].except[0]",
            "does not lie inside",
        ),
        (
            "except of the other family",
            element("fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['::/16']}]"),
            "except[0]",
            "does not lie inside",
        ),
        (
            "a group and a prefix",
            element("fromCIDRSet: [{cidrGroupRef: g, cidr: 10.0.0.0/8}]"),
            "fromCIDRSet[0]",
            "`cidr` and `cidrGroupRef` can't be combined",
        ),
        (
            "a group of no name",
            element("fromCIDRSet: [{cidrGroupRef: G}]"),
            "fromCIDRSet[0].cidrGroupRef",
            "name of Kubernetes",
        ),
        (
            "a service of no kind",
            "endpointSelector: {}\negress: [{toServices: [{}]}]".into(),
            "spec.egress[0].toServices[0]",
            "k8sServiceSelector",
        ),
        (
            "a service without name",
            "endpointSelector: {}\negress: [{toServices: [{k8sService: {namespace: a}}]}]".into(),
            "toServices[0].k8sService",
            "`serviceName` is missing",
        ),
        (
            "services in ingress",
            element("toServices: [{k8sService: {serviceName: a}}]"),
            "ingress[0].toServices",
            "in egress only",
        ),
        (
            "a set without prefix",
            element("fromCIDRSet: [{except: []}]"),
            "fromCIDRSet[0]",
            "`cidr` is missing",
        ),
        ("an unknown entity", element("fromEntities: [wrold]"), "fromEntities[0]", "did you mean `world`"),
        (
            "two kinds of peer",
            element("fromEntities: [world]\n  fromCIDR: [10.0.0.0/8]"),
            "spec.ingress[0]",
            "can't be combined",
        ),
        (
            "ports and types",
            element("toPorts: [{ports: [{port: 80}]}]\n  icmps: [{fields: [{type: 8}]}]"),
            "ingress[0].icmps",
            "can't be combined",
        ),
        (
            "an unknown type",
            element("icmps: [{fields: [{type: EchoReqest}]}]"),
            "fields[0].type",
            "did you mean `EchoRequest`",
        ),
        ("a type of 256", element("icmps: [{fields: [{type: 256}]}]"), "fields[0].type", "from 0 to 255"),
        (
            "a field of the other side",
            element("toEndpoints: [{}]"),
            "spec.ingress[0].toEndpoints",
            "`fromEndpoints`",
        ),
        (
            "an unknown field",
            element("fromEndpoint: [{}]"),
            "spec.ingress[0].fromEndpoint",
            "did you mean `fromEndpoints`",
        ),
        (
            "an unknown section",
            "endpointSelector: {}\ningres: [{}]".into(),
            "spec.ingres",
            "did you mean `ingress`",
        ),
        ("no section", "endpointSelector: {}".into(), "spec", "none of ingress"),
        ("no subject", "ingress: [{}]".into(), "spec", "endpointSelector is missing"),
        (
            "a node's subject",
            "nodeSelector: {}\ningress: [{}]".into(),
            "spec.nodeSelector",
            "CiliumClusterwideNetworkPolicy only",
        ),
        (
            "two subjects",
            "endpointSelector: {}\nnodeSelector: {}\ningress: [{}]".into(),
            "spec.nodeSelector",
            "not both",
        ),
        (
            "a key twice",
            "endpointSelector: {}\ningress: [{}]\ningress: []".into(),
            "spec.ingress",
            "there twice (first in line 6)",
        ),
        (
            "a label twice",
            "endpointSelector: {matchLabels: {a: b, a: c}}\ningress: [{}]".into(),
            "matchLabels.a",
            "there twice",
        ),
        (
            "a list as mapping",
            "endpointSelector: []\ningress: [{}]".into(),
            "spec.endpointSelector",
            "must be a mapping, but is a list",
        ),
        ("a mapping as list", "endpointSelector: {}\ningress: {}".into(), "spec.ingress", "must be a list"),
        (
            "yes for true",
            "endpointSelector: {}\nenableDefaultDeny: {ingress: no}\ningress: [{}]".into(),
            "enableDefaultDeny.ingress",
            "true or false",
        ),
        (
            "authentication",
            element("authentication: {mode: required}"),
            "ingress[0].authentication",
            "not enforced",
        ),
        (
            "server names",
            element("toPorts: [{ports: [{port: 443}], serverNames: [a.b]}]"),
            "toPorts[0].serverNames",
            "not enforced",
        ),
        (
            "a listener",
            element("toPorts: [{ports: [{port: 443}], listener: {name: a}}]"),
            "toPorts[0].listener",
            "not sent to a proxy",
        ),
        (
            "application rules that deny",
            "endpointSelector: {}\ningressDeny: [{toPorts: [{ports: [{port: 443}], rules: {http: []}}]}]"
                .into(),
            "toPorts[0].rules",
            "deny sections",
        ),
    ];
    for (name, text, path, part) in cases {
        let refused = refused(&spec(text));
        let hit = refused.problems.iter().any(|p| p.path.ends_with(path) && p.message.contains(part));
        assert!(hit, "{name}: wanted {path}: {part}, got\n{refused}");
        assert!(refused.problems.iter().all(|p| p.position.is_some()), "{name}: {refused}");
    }
}

#[test]
fn metadata_and_kinds_are_checked() {
    for (text, part) in [
        (
            "apiVersion: cilium.io/v1\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {}, ingress: [{}]}",
            "must be `cilium.io/v2`",
        ),
        (
            "kind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {}, ingress: [{}]}",
            "apiVersion is missing",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nspec: {endpointSelector: {}, ingress: [{}]}",
            "metadata is missing",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {}\nspec: {endpointSelector: {}, ingress: [{}]}",
            "has no name",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: A_B}\nspec: {endpointSelector: {}, ingress: [{}]}",
            "name of Kubernetes",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}",
            "neither `spec` nor `specs`",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a, namespace: b}\nspec: {endpointSelector: {}, ingress: [{}]}",
            "in no namespace",
        ),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: a}\nspec: {nodeSelector: {}}",
            "none of ingress",
        ),
        ("apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: a}", "spec is missing"),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: a}\nspec: {externalCIDRs: [x]}",
            "not an IP",
        ),
        ("apiVersion: cilium.io/v2\nkind: CiliumEgressGatewayPolicy\nmetadata: {name: a}", "is not enforced"),
        (
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}",
            "is not enforced",
        ),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}", "there is no `spec`"),
        (
            "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}",
            "must be `networking.k8s.io/v1`",
        ),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}", "is not a policy"),
        ("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}", "is not a policy"),
        ("endpointSelector: {}\ningress: [{}]", "bare rule"),
        ("just text", "must be an object"),
        ("a: [b", "not valid YAML"),
        ("{\"a\": [}", "not valid JSON"),
        ("a:\n\t- b", "not valid YAML"),
    ] {
        let refused = refused(text);
        assert!(refused.to_string().contains(part), "{text}\n{refused}");
        assert!(refused.to_string().starts_with("p.yaml"), "{refused}");
    }
}

#[test]
fn one_bad_object_refuses_the_file_and_all_problems_are_listed() {
    let good = spec("endpointSelector: {}\ningress: [{}]");
    let bad = spec("endpointSelector: {}\ningress:\n- fromCIDR: [x, y]\n- fromEntities: [z]")
        .replace("name: p", "name: q");
    let refused = refused(&format!("{good}---\n{bad}"));
    assert_eq!(refused.problems.len(), 3);
    assert!(refused.problems.iter().all(|p| p.document == 2));
    assert!(refused.problems[0].object.as_deref() == Some("CiliumNetworkPolicy default/q"));
    let twice = self::refused(&format!("{good}---\n{good}"));
    assert!(twice.to_string().contains("also in document 1"), "{twice}");
    assert!(parse("empty.yaml", "# nothing\n---\n").unwrap().policies.is_empty());
}

#[test]
fn an_empty_section_is_taken_with_a_warning() {
    let parsed = parse("p.yaml", &spec("endpointSelector: {}\ningress: []")).unwrap();
    assert_eq!(parsed.warnings.len(), 1);
    assert_eq!(parsed.warnings[0].path, "spec.ingress");
    let forgotten =
        spec("endpointSelector: {}\ningress:\n- fromEndpoints:\n  toPorts: [{ports: [{port: 80}]}]");
    let parsed = parse("p.yaml", &forgotten).unwrap();
    assert_eq!(parsed.warnings.len(), 1);
    assert_eq!(parsed.warnings[0].path, "spec.ingress[0].fromEndpoints");
    assert!(parsed.warnings[0].message.contains("write `[]`"));
}

/// Each published example: how many policies it holds, or the field for which it is refused.
const EXAMPLES: &[(&str, Result<usize, &str>)] = &[
    ("auth/auth.yaml", Err("spec.egress[0].auth")),
    ("getting-started/cilium_dkr_demo_l3-l4-policy-170817.yaml", Ok(1)),
    ("getting-started/cilium_dkr_demo_l7-policy-230817.yaml", Err("spec.ingress[0].toPorts[0].rules.http")),
    ("getting-started/kafka.yaml", Err("spec.ingress[0].toPorts[0].rules.kafka")),
    ("getting-started/l3-l4-policy.yaml", Ok(1)),
    ("getting-started/l7-policy.yaml", Err("spec.ingress[0].toPorts[0].rules.http")),
    ("host/allow-extended-protocols.yaml", Ok(1)),
    ("host/lock-down-dev-vms-remote-node.yaml", Ok(1)),
    ("host/lock-down-gke.yaml", Ok(1)),
    ("host/lock-down-ingress.yaml", Ok(1)),
    ("kubernetes/clustermesh/cross-cluster-policy.yaml", Ok(1)),
    ("kubernetes/clusterwide/clusterscope-policy.yaml", Ok(1)),
    ("kubernetes/clusterwide/health.yaml", Ok(1)),
    ("kubernetes/namespace/demo-pods.yaml", Err("kind")),
    ("kubernetes/namespace/kubedns-policy.yaml", Ok(1)),
    ("kubernetes/namespace/namespace-labels-policy.yaml", Ok(1)),
    ("kubernetes/namespace/namespace-policy.yaml", Ok(1)),
    ("kubernetes/serviceaccount/demo-pods.yaml", Err("kind")),
    ("kubernetes/serviceaccount/serviceaccount-policy.yaml", Err("spec.ingress[0].toPorts[0].rules.http")),
    ("l3/cidr/cidr.yaml", Ok(1)),
    ("l3/egress-allow-all/egress-allow-all.yaml", Ok(1)),
    ("l3/egress-default-deny/egress-default-deny.yaml", Ok(1)),
    ("l3/egress-deny/egress-deny.yaml", Ok(1)),
    ("l3/entities/apiserver.yaml", Ok(1)),
    ("l3/entities/customnodes.yaml", Ok(1)),
    ("l3/entities/host.yaml", Ok(1)),
    ("l3/entities/nodes.yaml", Ok(1)),
    ("l3/entities/world.yaml", Ok(1)),
    ("l3/fqdn/fqdn.yaml", Err("spec.egress[1].toFQDNs")),
    ("l3/ingress-allow-all/ingress-allow-all.yaml", Ok(1)),
    ("l3/service/service.yaml", Ok(1)),
    ("l3/simple/l3.yaml", Ok(1)),
    ("l3/simple/l3_egress.yaml", Ok(1)),
    ("l4/cidr_l4_combined.yaml", Ok(1)),
    ("l4/from_init.yaml", Ok(1)),
    ("l4/init.yaml", Ok(1)),
    ("l4/l3_l4_combined.yaml", Ok(1)),
    ("l4/l4.yaml", Ok(1)),
    ("l4/l4_sni.yaml", Err("spec.egress[0].toPorts[0].serverNames")),
    ("l4/multi_rule.yaml", Ok(1)),
    ("l7/dns/dns-upgrade.yaml", Err("spec.egress[1].toFQDNs")),
    ("l7/dns/dns-visibility.yaml", Err("spec.egress[1].toFQDNs")),
    ("l7/dns/dns.yaml", Err("spec.egress[0].toPorts[0].rules.dns")),
    ("l7/http/http.yaml", Err("spec.ingress[0].toPorts[0].rules.http")),
    ("l7/http/l7_multi.yaml", Err("specs[0].ingress[0].toPorts[0].rules.http")),
    ("l7/http/simple/l7.yaml", Err("spec.ingress[0].toPorts[0].rules.http")),
    ("l7/kafka/kafka-role.yaml", Err("spec.ingress[0].toPorts[0].rules.kafka")),
    ("l7/kafka/kafka.yaml", Err("spec.ingress[0].toPorts[0].rules.kafka")),
];

#[test]
fn published_examples_are_taken_or_refused_by_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/policies/examples");
    if !root.is_dir() {
        return;
    }
    let mut found = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, EXAMPLES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, expected) in EXAMPLES {
        match (parse(name, &fs::read_to_string(root.join(name)).unwrap()), expected) {
            (Ok(parsed), Ok(count)) => assert_eq!(parsed.policies.len(), *count, "{name}"),
            (Err(refused), Err(field)) => {
                let hit =
                    |p: &villus_policy::Problem| p.path == *field && p.kind != ProblemKind::UnknownField;
                assert!(refused.problems.iter().any(hit), "{name}: {field}\n{refused}");
            }
            (Ok(_), Err(field)) => panic!("{name} is taken, but {field} is not enforced"),
            (Err(refused), Ok(_)) => panic!("{name} is refused\n{refused}"),
        }
    }
}
