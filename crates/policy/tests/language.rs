//! What the parts of the language mean: NetworkPolicy, groups, services, named ports, nodes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use villus_abi::Direction;
use villus_labels::{Labels, NumericIdentity, cidr_labels};
use villus_policy::{Repository, Settings, parse, unresolved, with_named_ports};

const INGRESS: Direction = Direction::Ingress;
const EGRESS: Direction = Direction::Egress;

fn labels(text: &str) -> Labels {
    Labels::parse_list(text, "k8s").unwrap()
}

/// Everybody that is asked about: a server of namespace a, pods of a and b, the node, another node, the world.
const PEERS: [(&str, u32, &str); 6] = [
    ("own", 300, "app=client,io.kubernetes.pod.namespace=a,io.cilium.k8s.namespace.labels.team=blue"),
    ("sibling", 301, "app=other,io.kubernetes.pod.namespace=a,io.cilium.k8s.namespace.labels.team=blue"),
    ("foreign", 302, "app=client,io.kubernetes.pod.namespace=b,io.cilium.k8s.namespace.labels.team=red"),
    ("host", 1, "reserved:host"),
    ("node", 6, "reserved:remote-node"),
    ("world", 2, "reserved:world"),
];

fn server() -> Labels {
    labels("app=server,io.kubernetes.pod.namespace=a")
}

/// A repository that holds these texts, each a file of its own, and knows everybody.
fn repository(texts: &[&str]) -> Repository {
    let mut repository = Repository::new(Settings::new("default").unwrap());
    for (_, identity, labels_text) in PEERS.iter().filter(|(_, identity, _)| *identity >= 300) {
        repository.upsert_identity(NumericIdentity(*identity), &labels(labels_text));
    }
    for (i, text) in texts.iter().enumerate() {
        put(&mut repository, &format!("{i}.yaml"), text);
    }
    repository
}

fn put(repository: &mut Repository, file: &str, text: &str) {
    let parsed = parse(file, text).unwrap_or_else(|refused| panic!("{text}\n{refused}"));
    repository.replace_referents(file, parsed.referents);
    repository.replace_origin(file, parsed.policies);
    for (i, prefix) in repository.prefixes_in_use().collect::<Vec<_>>().into_iter().enumerate() {
        let local = NumericIdentity(NumericIdentity::SCOPE_LOCAL + 1 + u32::try_from(i).unwrap());
        repository.upsert_identity(NumericIdentity::of_prefix(prefix).unwrap_or(local), &cidr_labels(prefix));
    }
}

/// Who passes in a direction on a port.
fn passing(repository: &Repository, subject: &Labels, direction: Direction, port: u16, proto: u8) -> String {
    let policy = repository.endpoint_policy(subject, usize::MAX).unwrap();
    let passes = |identity| policy.verdict(direction, identity, port, proto).is_allowed();
    let names: Vec<&str> =
        PEERS.iter().filter(|(_, identity, _)| passes(*identity)).map(|(name, ..)| *name).collect();
    names.join(" ")
}

/// Whether an address is let through, given that it has the identity of the longest prefix in use.
fn address_passes(repository: &Repository, direction: Direction, address: &str, port: u16) -> bool {
    let address: std::net::IpAddr = address.parse().unwrap();
    let prefixes = repository.prefixes_in_use().filter(|prefix| prefix.contains(&address));
    let labels = prefixes.max_by_key(|prefix| prefix.prefix_len()).map(cidr_labels);
    let known = repository.selectors().identities().find(|(_, known)| Some(*known) == labels.as_ref());
    let identity = known.map_or(NumericIdentity::WORLD, |(identity, _)| identity);
    let policy = repository.endpoint_policy(&server(), usize::MAX).unwrap();
    policy.verdict(direction, identity.0, port, 6).is_allowed()
}

fn network_policy(spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n  {spec}\n"
    )
}

#[test]
fn a_network_policy_means_what_kubernetes_says() {
    const ALL: &str = "own sibling foreign host node world";
    // The spec; who may come in on 80/TCP; who may be reached on 80/TCP.
    for (spec, ingress, egress) in [
        ("podSelector: {}", "", ALL),
        ("podSelector: {}\npolicyTypes: [Ingress]", "", ALL),
        ("podSelector: {}\npolicyTypes: [Egress]", ALL, ""),
        ("podSelector: {}\npolicyTypes: [Ingress, Egress]", "", ""),
        ("podSelector: {}\ningress: []", "", ALL),
        ("podSelector: {}\negress: []", "", ALL),
        ("podSelector: {}\negress: [{}]", "", ALL),
        ("podSelector: {}\negress: [{}]\npolicyTypes: [Egress]", ALL, ALL),
        ("podSelector: {}\ningress: [{}]", ALL, ALL),
        ("podSelector: {}\ningress: [{from: []}]", ALL, ALL),
        ("podSelector: {}\ningress: [{from: null}]", ALL, ALL),
        ("podSelector: {}\ningress: [{ports: []}]", ALL, ALL),
        ("podSelector: {}\ningress: [{ports: [{port: 80}]}]", ALL, ALL),
        ("podSelector: {}\ningress: [{ports: [{port: 81}]}]", "", ALL),
        ("podSelector: {}\ningress: [{ports: [{port: 80, protocol: UDP}]}]", "", ALL),
        ("podSelector: {}\ningress: [{ports: [{}]}]", ALL, ALL),
        ("podSelector: {}\ningress: [{ports: [{port: 70, endPort: 90}]}]", ALL, ALL),
        ("podSelector: {}\ningress: [{from: [{podSelector: {}}]}]", "own sibling", ALL),
        ("podSelector: {}\ningress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]", "own", ALL),
        ("podSelector: {}\ningress: [{from: [{namespaceSelector: {}}]}]", "own sibling foreign", ALL),
        (
            "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]",
            "foreign",
            ALL,
        ),
        (
            "podSelector: {}\ningress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}]}]",
            "foreign",
            ALL,
        ),
        (
            "podSelector: {}\ningress:\n- from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]",
            "own foreign",
            ALL,
        ),
        (
            "podSelector: {}\ningress:\n- from: [{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {}}]",
            "own sibling foreign",
            ALL,
        ),
        (
            "podSelector: {}\ningress:\n- from:\n  - namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}",
            "own sibling",
            ALL,
        ),
        ("podSelector: {}\negress: [{to: [{podSelector: {}}]}]\npolicyTypes: [Egress]", ALL, "own sibling"),
        ("podSelector: {}\negress: [{to: [{podSelector: {}}]}]", "", "own sibling"),
        ("podSelector: {matchLabels: {app: server}}", "", ALL),
        ("podSelector: {matchLabels: {app: client}}", ALL, ALL),
        (
            "podSelector: {matchExpressions: [{key: app, operator: Exists}]}\ningress: [{from: [{podSelector: {}}]}, {}]",
            ALL,
            ALL,
        ),
    ] {
        let repository = repository(&[&network_policy(spec)]);
        assert_eq!(passing(&repository, &server(), INGRESS, 80, 6), ingress, "{spec}");
        assert_eq!(passing(&repository, &server(), EGRESS, 80, 6), egress, "{spec}");
        let elsewhere = labels("app=server,io.kubernetes.pod.namespace=b");
        assert_eq!(passing(&repository, &elsewhere, INGRESS, 80, 6), ALL, "{spec}");
    }
    let block = repository(&[&network_policy(
        "podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]",
    )]);
    assert_eq!(passing(&block, &server(), INGRESS, 80, 6), "");
    for (address, expected) in
        [("10.2.0.1", true), ("10.1.0.1", false), ("11.0.0.1", false), ("fd00::1", false)]
    {
        assert_eq!(address_passes(&block, INGRESS, address, 80), expected, "{address}");
    }
}

#[test]
fn a_bad_network_policy_is_refused_by_field() {
    for (spec, path, part) in [
        ("ingress: []", "spec", "podSelector is missing"),
        ("podSelector: {}\nendpointSelector: {}", "spec.endpointSelector", "`podSelector`"),
        ("podSelector: {}\ningressDeny: [{}]", "spec.ingressDeny", "CiliumNetworkPolicy"),
        ("podSelector: {}\npolicyTypes: [ingress]", "spec.policyTypes[0]", "use Ingress or Egress"),
        ("podSelector: {}\ningress: [{to: []}]", "spec.ingress[0].to", "`from`"),
        ("podSelector: {}\ningress: [{from: [{}]}]", "spec.ingress[0].from[0]", "says nothing"),
        (
            "podSelector: {}\ningress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
            "from[0].ipBlock",
            "can't be combined",
        ),
        ("podSelector: {}\ningress: [{from: [{ipBlock: {}}]}]", "from[0].ipBlock", "`cidr` is missing"),
        (
            "podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]",
            "ipBlock.except[0]",
            "does not lie inside",
        ),
        ("podSelector: {matchLabels: {'k8s:app': a}}", "spec.podSelector.matchLabels[k8s:app]", "no source"),
        (
            "podSelector: {}\ningress: [{ports: [{port: 80, protocol: ICMP}]}]",
            "ports[0].protocol",
            "TCP, UDP and SCTP",
        ),
        ("podSelector: {}\ningress: [{ports: [{endPort: 80}]}]", "ports[0].endPort", "needs a port"),
        (
            "podSelector: {}\ningress: [{ports: [{port: 90, endPort: 80}]}]",
            "ports[0].endPort",
            "below port 90",
        ),
        (
            "podSelector: {}\ningress: [{ports: [{port: http, endPort: 80}]}]",
            "ports[0].endPort",
            "not its name",
        ),
        ("podSelector: {}\ningress: [{ports: [{port: 70000}]}]", "ports[0].port", "70000"),
    ] {
        let refused = parse("p.yaml", &network_policy(spec)).expect_err(spec);
        let hit = refused.problems.iter().any(|p| p.path.ends_with(path) && p.message.contains(part));
        assert!(hit, "{spec}: wanted {path}: {part}, got\n{refused}");
    }
    let odd = network_policy("podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]");
    assert!(parse("p.yaml", &odd).unwrap().warnings[0].to_string().contains("name Ingress too"));
}

fn cilium(sections: &str) -> String {
    let sections = sections.replace('\n', "\n  ");
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: a}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  {sections}\n"
    )
}

fn group(name: &str, labels: &str, cidrs: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {{name: {name}, labels: {labels}}}\n\
         spec: {{externalCIDRs: [{cidrs}]}}\n"
    )
}

#[test]
fn a_group_takes_effect_when_it_appears_changes_and_goes() {
    let text = cilium("ingress: [{fromCIDRSet: [{cidrGroupRef: vpn, except: [10.0.0.0/24]}]}]");
    let mut repository = repository(&[&text]);
    let addresses = ["10.0.0.1", "10.0.1.1", "10.9.0.1", "fd00::1"];
    let passing =
        |repository: &Repository| addresses.map(|address| address_passes(repository, INGRESS, address, 80));
    assert_eq!(passing(&repository), [false; 4]);
    assert_eq!(repository.prefixes_in_use().count(), 0);
    put(&mut repository, "groups.yaml", &group("vpn", "{}", "10.0.0.0/16, 'fd00::/8', 10.0.0.7/32"));
    assert_eq!(passing(&repository), [false, true, false, true]);
    assert_eq!(repository.prefixes_in_use().count(), 3, "10.0.0.7 is excepted whole");
    put(&mut repository, "groups.yaml", &group("vpn", "{}", "10.9.0.0/16"));
    assert_eq!(passing(&repository), [false, false, true, false]);
    let revision = repository.revision();
    put(&mut repository, "groups.yaml", &group("other", "{}", "10.0.0.0/8"));
    assert_eq!(passing(&repository), [false; 4]);
    assert!(repository.revision() > revision);
}

#[test]
fn groups_are_selected_by_their_labels() {
    let text = cilium(
        "egressDeny:\n- toCIDRSet:\n  - cidrGroupSelector: {matchLabels: {kind: bad}}\negress: [{toEntities: [all]}]",
    );
    let bad = group("one", "{kind: bad}", "10.1.0.0/16");
    let worse = group("two", "{kind: bad, x: y}", "10.2.0.0/16");
    let good = group("three", "{kind: good}", "10.3.0.0/16");
    let repository = repository(&[&text, &bad, &worse, &good]);
    let passes = ["10.1.0.1", "10.2.0.1", "10.3.0.1"].map(|ip| address_passes(&repository, EGRESS, ip, 80));
    assert_eq!(passes, [false, false, true]);
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: b, labels: {tier: front}}
spec: {selector: {app: client}, clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: b, labels: {tier: back}}
spec: {ports: [{port: 443, targetPort: https}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside, namespace: b}
subsets:
- addresses: [{ip: 192.0.2.1}, {ip: 192.0.2.2}]
  notReadyAddresses: [{ip: 192.0.2.3}]
  ports: [{port: 443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-x7, namespace: b, labels: {kubernetes.io/service-name: outside}}
addressType: IPv6
endpoints:
- {addresses: ['2001:db8::1'], conditions: {ready: true}}
- {addresses: ['2001:db8::2'], conditions: {ready: false}}
- {addresses: ['2001:db8::3']}
";

#[test]
fn services_are_reached_by_their_backends() {
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "2001:db8::3"];
    let backends = [true, true, false, true, false, true];
    for (wanted, pods, expected) in [
        ("k8sService: {serviceName: pods, namespace: b}", "foreign", [false; 6]),
        ("k8sService: {serviceName: pods, namespace: a}", "", [false; 6]),
        ("k8sService: {serviceName: pods}", "foreign", [false; 6]),
        ("k8sService: {serviceName: outside, namespace: b}", "", backends),
        ("k8sService: {serviceName: unknown, namespace: b}", "", [false; 6]),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: front}}}", "foreign", [false; 6]),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: back}}, namespace: b}", "", backends),
        ("k8sServiceSelector: {selector: {matchLabels: {tier: back}}, namespace: a}", "", [false; 6]),
        ("k8sServiceSelector: {selector: {}}", "foreign", backends),
    ] {
        let text = cilium(&format!(
            "egress:\n- toServices: [{{{wanted}}}]\n  toPorts: [{{ports: [{{port: 80, protocol: TCP}}]}}]"
        ));
        let mut repository = repository(&[&text]);
        assert_eq!(passing(&repository, &server(), EGRESS, 80, 6), "", "{wanted}: no service is known");
        put(&mut repository, "services.yaml", SERVICES);
        assert_eq!(passing(&repository, &server(), EGRESS, 80, 6), pods, "{wanted}");
        assert_eq!(passing(&repository, &server(), EGRESS, 81, 6), "", "{wanted}");
        assert_eq!(addresses.map(|a| address_passes(&repository, EGRESS, a, 80)), expected, "{wanted}");
        repository.replace_referents("services.yaml", Vec::new());
        assert_eq!(repository.prefixes_in_use().count(), 0, "{wanted}");
    }
}

#[test]
fn named_ports_are_the_subjects_own_in_ingress_and_the_peers_in_egress() {
    let ports = |text: &str| text.split(',').map(|port| port.parse().unwrap()).collect::<BTreeSet<_>>();
    let own = ports("http=8080/TCP,http=8443/TCP,dns=53/UDP");
    let named = |port: &str| {
        cilium(&format!(
            "ingress: [{{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: {port}}}, {{port: 22, protocol: TCP}}]}}]}}]\n\
             egress: [{{toPorts: [{{ports: [{{port: {port}, protocol: TCP}}]}}]}}]"
        ))
    };
    let mut repository = repository(&[&named("HTTP")]);
    let subject = with_named_ports(&server(), &own);
    assert_eq!(passing(&repository, &subject, INGRESS, 8080, 6), "", "nobody's ports are known");
    assert_eq!(passing(&repository, &subject, INGRESS, 22, 6), "own sibling");
    repository.set_named_ports([(NumericIdentity(310), own)]);
    repository.set_named_ports([(NumericIdentity(302), ports("http=80/TCP,http=80/UDP"))]);
    for (port, proto, ingress, egress) in [
        (8080, 6, "own sibling", ""),
        (8443, 6, "own sibling", ""),
        (80, 6, "", "foreign"),
        (80, 17, "", ""),
        (8080, 17, "", ""),
        (53, 17, "", ""),
    ] {
        assert_eq!(passing(&repository, &subject, INGRESS, port, proto), ingress, "{port}/{proto}");
        assert_eq!(passing(&repository, &subject, EGRESS, port, proto), egress, "{port}/{proto}");
    }
    assert_eq!(passing(&repository, &server(), INGRESS, 8080, 6), "", "a workload without named ports");
    assert_eq!(passing(&repository, &server(), INGRESS, 22, 6), "own sibling");
    repository.set_named_ports([(NumericIdentity(302), BTreeSet::new())]);
    assert_eq!(passing(&repository, &subject, EGRESS, 80, 6), "");
    put(&mut repository, "0.yaml", &named("dns"));
    assert_eq!(passing(&repository, &subject, INGRESS, 53, 17), "own sibling");
}

#[test]
fn what_nobody_has_is_named() {
    let text = cilium(
        "ingress:\n- fromCIDRSet: [{cidrGroupRef: vpn}, {cidrGroupSelector: {matchLabels: {kind: bad}}}]\n\
         egress:\n- toServices: [{k8sService: {serviceName: pods, namespace: b}}, {k8sServiceSelector: {selector: {}}}]\n\
         - toPorts: [{ports: [{port: http}, {port: 80}]}]",
    );
    let mut repository = repository(&[&text]);
    let said = |repository: &Repository| -> Vec<String> {
        let policy = repository.policies().next().unwrap();
        unresolved(policy, repository.referents()).iter().map(ToString::to_string).collect()
    };
    assert_eq!(said(&repository).len(), 5);
    assert_eq!(
        said(&repository)[0],
        "spec.ingress[0] names CIDR group vpn, which nobody has yet: it means nobody"
    );
    put(&mut repository, "groups.yaml", &group("vpn", "{kind: bad}", ""));
    put(&mut repository, "services.yaml", SERVICES);
    repository.set_named_ports([(NumericIdentity(300), ["http=80".parse().unwrap()].into())]);
    assert!(said(&repository).is_empty());
}

#[test]
fn requirements_bind_every_endpoint_that_is_named_as_a_peer() {
    let allow = |sections: &str| cilium(sections);
    let require = |requirement: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: base}}\n\
             spec: {{endpointSelector: {{matchLabels: {{app: server}}}}, {requirement}}}\n"
        )
    };
    let client = "matchLabels: {app: client}";
    // Rules that allow; requirements; who may come in on 80/TCP.
    for (sections, requirement, expected) in [
        ("ingress: [{fromEndpoints: [{}]}]", format!("ingress: [{{fromRequires: [{{{client}}}]}}]"), "own"),
        ("ingress: [{fromEndpoints: [{}]}]", "ingress: [{fromRequires: []}]".to_owned(), "own sibling"),
        ("egress: [{}]", format!("ingress: [{{fromRequires: [{{{client}}}]}}]"), ""),
        (
            "ingress: [{fromEntities: [all]}]",
            format!("ingress: [{{fromRequires: [{{{client}}}]}}]"),
            "own sibling foreign host node world",
        ),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {app: other}}], toPorts: [{ports: [{port: 80}]}]}]",
            format!("ingress: [{{fromRequires: [{{{client}}}]}}]"),
            "",
        ),
        (
            "ingress: [{fromEndpoints: [{}], fromRequires: [{matchLabels: {app: client}}]}]",
            "egress: [{}]".to_owned(),
            "own",
        ),
        (
            "ingress: [{fromEndpoints: [{}]}]",
            format!(
                "ingress: [{{fromRequires: [{{{client}}}, {{matchLabels: {{io.cilium.k8s.namespace.labels.team: blue}}}}]}}]"
            ),
            "own",
        ),
        (
            "ingress: [{fromEndpoints: [{}]}]",
            format!("egress: [{{toRequires: [{{{client}}}]}}]"),
            "own sibling",
        ),
        (
            "ingress: [{fromEndpoints: [{}]}]",
            format!("ingressDeny: [{{fromRequires: [{{{client}}}]}}]"),
            "own sibling",
        ),
    ] {
        let repository = repository(&[&allow(sections), &require(&requirement)]);
        assert_eq!(passing(&repository, &server(), INGRESS, 80, 6), expected, "{sections} {requirement}");
    }
    let lone = cilium("ingress: [{fromRequires: [{}], toPorts: [{ports: [{port: 80}]}]}]");
    assert!(parse("p.yaml", &lone).unwrap().warnings[0].message.contains("grants nothing by itself"));
    assert_eq!(passing(&repository(&[&lone]), &server(), INGRESS, 80, 6), "");
}

#[test]
fn workloads_and_the_node_itself_are_never_mixed() {
    let clusterwide = |subject: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\n\
             spec: {{{subject}, ingress: [{{fromEntities: [world]}}]}}\n"
        )
    };
    let node = labels("reserved:host,tier=edge");
    for (subject, of_node, of_server) in [
        ("endpointSelector: {}", false, true),
        ("endpointSelector: {matchExpressions: [{key: tier, operator: Exists}]}", false, false),
        ("endpointSelector: {matchLabels: {'reserved:host': ''}}", false, false),
        ("nodeSelector: {}", true, false),
        ("nodeSelector: {matchLabels: {tier: edge}}", true, false),
        ("nodeSelector: {matchLabels: {tier: core}}", false, false),
        ("nodeSelector: {matchLabels: {app: server}}", false, false),
    ] {
        let repository = repository(&[&clusterwide(subject)]);
        let enforced =
            |subject: &Labels| repository.endpoint_policy(subject, usize::MAX).unwrap().enforced[0];
        assert_eq!((enforced(&node), enforced(&server())), (of_node, of_server), "{subject}");
    }
}

#[test]
fn other_nodes_are_selected_by_their_labels() {
    let text = cilium("ingress: [{fromNodes: [{matchLabels: {tier: edge}}]}]");
    let mut repository = repository(&[&text]);
    for (identity, text) in
        [(400, "reserved:remote-node,tier=edge"), (401, "reserved:remote-node,tier=core"), (402, "tier=edge")]
    {
        repository.upsert_identity(NumericIdentity(identity), &labels(text));
    }
    let policy = repository.endpoint_policy(&server(), usize::MAX).unwrap();
    let passes = [400, 401, 402, 6].map(|id| policy.verdict(INGRESS, id, 80, 6).is_allowed());
    assert_eq!(passes, [true, false, false, false]);
}

#[test]
fn a_subject_of_another_namespace_is_replaced_with_a_warning() {
    for (subject, warned) in [
        ("{matchLabels: {app: server}}", false),
        ("{matchLabels: {app: server, io.kubernetes.pod.namespace: a}}", false),
        ("{matchLabels: {app: server, 'k8s:io.kubernetes.pod.namespace': b}}", true),
        ("{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [a]}]}", true),
    ] {
        let text = cilium("ingress: [{}]").replace("{matchLabels: {app: server}}", subject);
        let warnings = parse("p.yaml", &text).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(warned), "{subject}");
        assert!(
            warnings.iter().all(|w| w.path == "spec.endpointSelector" && w.message.contains("is replaced"))
        );
        assert!(
            repository(&[&text]).endpoint_policy(&server(), usize::MAX).unwrap().enforced[0],
            "{subject}"
        );
    }
}

#[test]
fn protocols_without_ports_are_enforced_whole() {
    let text = cilium("ingress: [{toPorts: [{ports: [{protocol: VRRP}, {protocol: ESP, port: 0}]}]}]");
    let repository = repository(&[&text]);
    let all = "own sibling foreign host node world";
    for (proto, expected) in [(112, all), (50, all), (51, ""), (6, ""), (2, "")] {
        assert_eq!(passing(&repository, &server(), INGRESS, 0, proto), expected, "{proto}");
    }
}
