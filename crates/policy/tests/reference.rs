//! The compiler against a second, plain reading of the policy language: rules are evaluated directly on labels
//! and addresses, with no selector cache, no CIDR labels and no map entries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use villus_abi::{Direction, PolicyEntry, PolicyKey};
use villus_labels::{KeySource, Label, Labels, NumericIdentity, Operator, Selector, cidr_labels};
use villus_policy::{
    Element, EndpointPolicy, EnforcementMode, Entity, Policy, PrefixBase, Protocol, Repository, Rule,
    Settings, SubjectId, Transport, parse,
};

// === the reference ===

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

#[derive(Clone, Debug)]
enum Peer {
    Labelled(NumericIdentity, Labels),
    Outside(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    direction: Direction,
    proto: u8,
    /// Port, or ICMP type.
    port: u16,
}

fn find<'a>(labels: &'a Labels, source: &str, key: &str) -> Option<&'a str> {
    labels.iter().find(|l| l.key() == key && (source == "any" || l.source() == source)).map(Label::value)
}

/// `skip` is a key whose requirements don't count.
fn selects(selector: &Selector, labels: &Labels, skip: &str) -> bool {
    selector.requirements().iter().filter(|r| r.key.key() != skip).all(|r| {
        let value = find(labels, r.key.source_name(), r.key.key());
        match &r.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| **w == *v)),
            Operator::NotIn(values) => !value.is_some_and(|v| values.iter().any(|w| **w == *v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    })
}

fn speaks_of_reserved(selector: &Selector) -> bool {
    selector.requirements().iter().any(|r| matches!(r.key.source(), KeySource::Is(s) if &**s == "reserved"))
}

fn is_subject(policy: &Policy, rule: &Rule, labels: &Labels) -> bool {
    match &policy.key.namespace {
        Some(namespace) if !speaks_of_reserved(rule.subject.selector()) => {
            find(labels, "k8s", NAMESPACE) == Some(namespace)
                && selects(rule.subject.selector(), labels, NAMESPACE)
        }
        _ => selects(rule.subject.selector(), labels, "") && find(labels, "reserved", "host").is_none(),
    }
}

fn endpoint_is_meant(
    policy: &Policy,
    rule: &Rule,
    selector: &Selector,
    peer: &Peer,
    settings: &Settings,
) -> bool {
    let for_init =
        rule.subject.selector().requirements().iter().any(|r| r.key.to_string() == "reserved:init");
    let keys: Vec<&str> = selector.requirements().iter().map(|r| r.key.key()).collect();
    let names_namespace = keys.iter().any(|k| *k == NAMESPACE || k.starts_with(NAMESPACE_LABELS));
    let outside;
    let labels = match peer {
        Peer::Labelled(_, labels) => labels,
        Peer::Outside(address) => {
            let family = if address.is_ipv4() { "world-ipv4" } else { "world-ipv6" };
            outside = Labels::parse_list(&format!("reserved:world,reserved:{family}"), "").unwrap();
            &outside
        }
    };
    if !selects(selector, labels, "") {
        return false;
    }
    if speaks_of_reserved(selector) {
        return true;
    }
    let namespace = find(labels, "k8s", NAMESPACE);
    let in_scope = match &policy.key.namespace {
        _ if names_namespace => true,
        Some(own) => namespace == Some(own),
        None => for_init || namespace.is_some(),
    };
    let in_cluster = !settings.default_local_cluster
        || keys.contains(&CLUSTER)
        || find(labels, "k8s", CLUSTER) == Some(settings.cluster.value());
    in_scope && in_cluster
}

fn entity_is_meant(entity: Entity, peer: &Peer, cluster: &str) -> bool {
    let reserved =
        |name: &str| matches!(peer, Peer::Labelled(_, labels) if find(labels, "reserved", name).is_some());
    let own = |cluster: Option<&str>| match peer {
        Peer::Labelled(_, labels) => {
            find(labels, "k8s", CLUSTER).filter(|c| cluster.is_none_or(|o| o == *c)).is_some()
        }
        Peer::Outside(_) => false,
    };
    let nodes = ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];
    match entity {
        Entity::All => true,
        Entity::None => false,
        Entity::World => matches!(peer, Peer::Outside(_)) || reserved("world"),
        Entity::WorldIpv4 => matches!(peer, Peer::Outside(a) if a.is_ipv4()),
        Entity::WorldIpv6 => matches!(peer, Peer::Outside(a) if a.is_ipv6()),
        Entity::Cluster => nodes.iter().any(|n| reserved(n)) || own(Some(cluster)),
        Entity::ClusterMesh => nodes.iter().any(|n| reserved(n)) || own(None),
        Entity::Host => reserved("host"),
        Entity::RemoteNode => reserved("remote-node"),
        Entity::KubeApiserver => reserved("kube-apiserver"),
        Entity::Ingress => reserved("ingress"),
        Entity::Init => reserved("init"),
        Entity::Health => reserved("health"),
        Entity::Unmanaged => reserved("unmanaged"),
    }
}

fn peer_is_meant(policy: &Policy, rule: &Rule, element: &Element, peer: &Peer, settings: &Settings) -> bool {
    let Element { endpoints, entities, prefixes, prefix_sets, transport, .. } = element;
    if endpoints.is_none() && entities.is_none() && prefixes.is_none() && prefix_sets.is_none() {
        return transport.is_some();
    }
    let address = match peer {
        Peer::Outside(address) => Some(address),
        Peer::Labelled(..) => None,
    };
    let inside = |net: &IpNet| address.is_some_and(|a| net.contains(a));
    // A selector that asks nothing, and that nothing is added to, means everybody.
    endpoints.iter().flatten().any(|s| endpoint_is_meant(policy, rule, s, peer, settings))
        || entities.iter().flatten().any(|e| entity_is_meant(*e, peer, settings.cluster.value()))
        || prefixes.iter().flatten().any(inside)
        || prefix_sets.iter().flatten().any(|set| {
            let PrefixBase::Prefix(prefix) = &set.base else { return false };
            inside(prefix) && !set.except.iter().any(inside)
        })
}

fn transport_is_meant(element: &Element, flow: Flow) -> bool {
    let Some(transport) = &element.transport else { return true };
    transport.iter().any(|item| match item {
        Transport::Icmp { v6, kind } => {
            flow.proto == if *v6 { 58 } else { 1 } && flow.port == u16::from(*kind)
        }
        Transport::Named { .. } => false,
        Transport::Ports { protocol, first, last } => {
            let all = *last == 0;
            let proto = match protocol {
                Protocol::Any => all || [6, 17, 132].contains(&flow.proto),
                Protocol::Tcp => flow.proto == 6,
                Protocol::Udp => flow.proto == 17,
                Protocol::Sctp => flow.proto == 132,
                Protocol::Icmp => flow.proto == 1,
                Protocol::Icmpv6 => flow.proto == 58,
                Protocol::Other(number) => flow.proto == *number,
            };
            proto && (all || (*first..=*last).contains(&flow.port))
        }
    })
}

fn reference(policies: &[Policy], settings: &Settings, subject: &Labels, peer: &Peer, flow: Flow) -> bool {
    let ingress = flow.direction == Direction::Ingress;
    let mut enforced =
        settings.mode == EnforcementMode::Always || find(subject, "reserved", "init").is_some();
    let (mut allow, mut deny) = (false, false);
    for (policy, rule) in policies.iter().flat_map(|p| p.rules.iter().map(move |r| (p, r))) {
        if !is_subject(policy, rule, subject) {
            continue;
        }
        let (allows, denies, default_deny) = if ingress {
            (&rule.ingress, &rule.ingress_deny, rule.default_deny[0])
        } else {
            (&rule.egress, &rule.egress_deny, rule.default_deny[1])
        };
        let count = |section: &Option<Vec<Element>>| section.as_ref().map_or(0, Vec::len);
        enforced |= default_deny.unwrap_or(count(allows) + count(denies) > 0);
        let hit = |section: &Option<Vec<Element>>| {
            section.iter().flatten().any(|element| {
                peer_is_meant(policy, rule, element, peer, settings) && transport_is_meant(element, flow)
            })
        };
        allow |= hit(allows);
        deny |= hit(denies);
    }
    let host = matches!(peer, Peer::Labelled(id, _) if *id == NumericIdentity::HOST);
    allow |= ingress && host && settings.allow_localhost;
    match settings.mode {
        EnforcementMode::Never => true,
        _ => !deny && (!enforced || allow),
    }
}

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

// === random worlds ===

fn any_labels() -> impl Strategy<Value = Labels> {
    let parts = (
        select(vec!["k8s:app=a", "k8s:app=b", "k8s:app=c", ""]),
        select(vec!["k8s:env=x", "container:env=x", "k8s:env=y", ""]),
        select(vec!["k8s:io.kubernetes.pod.namespace=n1", "k8s:io.kubernetes.pod.namespace=n2", ""]),
        select(vec!["k8s:io.cilium.k8s.policy.cluster=c1", "k8s:io.cilium.k8s.policy.cluster=c2", ""]),
        select(vec!["k8s:io.cilium.k8s.namespace.labels.team=t1", ""]),
        select(vec!["", "", "", "reserved:init", "reserved:health"]),
    );
    parts.prop_map(|(a, b, c, d, e, f)| Labels::parse_list(&[a, b, c, d, e, f].join(","), "k8s").unwrap())
}

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

const PREFIXES: [&str; 9] = [
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

fn any_transport() -> impl Strategy<Value = Option<(&'static str, Value)>> {
    let protocol = || select(vec!["TCP", "UDP", "SCTP", "ANY"]);
    let port = prop_oneof![
        4 => (select(vec![53u16, 80, 443, 8080]), protocol()).prop_map(|(port, protocol)| json!({"port": port.to_string(), "protocol": protocol})),
        1 => protocol().prop_map(|protocol| json!({"protocol": protocol})),
        1 => select(vec!["ICMP", "ICMPv6"]).prop_map(|protocol| json!({"protocol": protocol})),
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
        3 => proptest::collection::vec(any_prefix_set(), 1..3).prop_map(move |p| named("CIDRSet", json!(p))),
    ];
    (peers, any_transport()).prop_map(|(peers, transport)| {
        let mut element = serde_json::Map::new();
        element.extend(peers);
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

fn any_policies() -> impl Strategy<Value = Vec<Value>> {
    let namespace = select(vec![Some("n1"), Some("n2"), None]);
    let policy = (namespace, proptest::collection::vec(any_rule(), 1..3));
    proptest::collection::vec(policy, 1..5).prop_map(|policies| {
        let object = |(i, (namespace, specs)): (usize, (Option<&str>, Vec<Value>))| match namespace {
            Some(ns) => json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
                "metadata": {"name": format!("p{i}"), "namespace": ns}, "specs": specs}),
            None => json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
                "metadata": {"name": format!("p{i}")}, "specs": specs}),
        };
        policies.into_iter().enumerate().map(object).collect()
    })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let mode = select(vec![
        EnforcementMode::Default,
        EnforcementMode::Default,
        EnforcementMode::Default,
        EnforcementMode::Always,
        EnforcementMode::Never,
    ]);
    (mode, any::<bool>(), any::<bool>()).prop_map(|(mode, allow_localhost, default_local_cluster)| Settings {
        mode,
        allow_localhost,
        default_local_cluster,
        ..Settings::new("c1").unwrap()
    })
}

const ADDRESSES: [&str; 8] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.4",
    "10.2.0.1",
    "192.0.2.7",
    "203.0.113.1",
    "2001:db8:1::5",
    "2001:dead::1",
];

/// Gives every prefix in use its identity, as the agent does, and returns them.
fn allocate_prefixes(repository: &mut Repository) -> Vec<(IpNet, NumericIdentity)> {
    // Both worlds always have theirs; so the family of an address outside is never lost.
    let mut prefixes: Vec<IpNet> = repository.prefixes_in_use().collect();
    prefixes.extend(["0.0.0.0/0", "::/0"].map(|p| p.parse::<IpNet>().unwrap()));
    let mut next = NumericIdentity::SCOPE_LOCAL;
    prefixes
        .into_iter()
        .map(|prefix| {
            next += 1;
            let identity = NumericIdentity::of_prefix(prefix).unwrap_or(NumericIdentity(next));
            repository.upsert_identity(identity, &cidr_labels(prefix));
            (prefix, identity)
        })
        .collect()
}

fn identity_of(peer: &Peer, prefixes: &[(IpNet, NumericIdentity)]) -> NumericIdentity {
    match peer {
        Peer::Labelled(identity, _) => *identity,
        Peer::Outside(address) => {
            let covering = prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
            covering
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map_or(NumericIdentity::WORLD, |(_, id)| *id)
        }
    }
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
        ] {
            flows.extend(ports.into_iter().map(|port| Flow { direction, proto, port }));
        }
    }
    flows
}

fn parse_all(policies: &[Value]) -> Option<Vec<Policy>> {
    let text = Value::Array(policies.to_vec()).to_string();
    match parse("random.json", &text) {
        Ok(parsed) => Some(parsed.policies),
        Err(refused) => {
            let clash = |message: &str| message.contains("from two sources");
            assert!(refused.problems.iter().all(|p| clash(&p.message)), "{refused}");
            None
        }
    }
}

// === incremental ===

/// One change of the world; indices are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Identity(u32, Option<Labels>),
    Policy(proptest::sample::Index, bool),
    Endpoint(usize, Option<Labels>),
    Prefixes,
    Settings(Settings),
    Sync,
}

fn any_step() -> impl Strategy<Value = Step> {
    let labels = || proptest::option::weighted(0.7, any_labels());
    prop_oneof![
        4 => (0..6u32, labels()).prop_map(|(id, labels)| Step::Identity(300 + id, labels)),
        3 => (any::<proptest::sample::Index>(), any::<bool>()).prop_map(|(i, add)| Step::Policy(i, add)),
        2 => (0..3usize, labels()).prop_map(|(id, labels)| Step::Endpoint(id, labels)),
        1 => Just(Step::Prefixes),
        1 => (any_settings(), select(vec![3, 12, usize::MAX]))
            .prop_map(|(settings, max_entries)| Step::Settings(Settings { max_entries, ..settings })),
        3 => Just(Step::Sync),
    ]
}

/// A node: a repository, and for each endpoint what its policy map would hold had it followed the edits alone.
struct Follower {
    repository: Repository,
    endpoints: [Option<(SubjectId, Labels)>; 3],
    maps: BTreeMap<SubjectId, (u64, BTreeMap<PolicyKey, PolicyEntry>)>,
}

impl Follower {
    fn step(&mut self, step: &Step, policies: &[Policy]) {
        let repository = &mut self.repository;
        match step {
            Step::Identity(id, Some(labels)) => repository.upsert_identity(NumericIdentity(*id), labels),
            Step::Identity(id, None) => repository.remove_identity(NumericIdentity(*id)),
            Step::Policy(which, true) => drop(repository.upsert(which.get(policies).clone())),
            Step::Policy(which, false) => drop(repository.delete([which.get(policies).key.clone()])),
            Step::Endpoint(at, labels) => {
                let new = labels.clone().map(|labels| (repository.acquire_subject(&labels), labels));
                if let Some((old, _)) = std::mem::replace(&mut self.endpoints[*at], new) {
                    repository.release_subject(old);
                }
            }
            Step::Prefixes => drop(allocate_prefixes(repository)),
            Step::Settings(settings) => repository.set_settings(settings.clone()),
            Step::Sync => self.sync(),
        }
    }

    fn sync(&mut self) {
        for change in self.repository.sync() {
            let (version, map) = self.maps.entry(change.subject).or_default();
            assert_eq!(*version, change.from, "every change starts from the one before");
            *version = change.to;
            for edit in change.edits {
                assert_eq!(map.get(&edit.key), edit.before.as_ref(), "{edit:?}");
                assert_ne!(edit.before, edit.after);
                match edit.after {
                    Some(entry) => map.insert(edit.key, entry),
                    None => map.remove(&edit.key),
                };
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (subject, labels) in self.endpoints.iter().flatten() {
            let most = self.repository.settings().max_entries;
            let compiled = self.repository.compiled(*subject);
            match self.repository.endpoint_policy(labels, most) {
                Ok(fresh) => {
                    let (kept, version) = compiled.unwrap();
                    prop_assert_eq!(self.repository.overflow(*subject), None);
                    prop_assert_eq!(&**kept, &fresh);
                    let (at, map) = &self.maps[subject];
                    prop_assert_eq!(*at, version);
                    let fresh: BTreeMap<_, _> = fresh.map_entries().collect();
                    prop_assert_eq!(map, &fresh);
                }
                // What fitted last stays, complete: the map holds what it held.
                Err(overflow) => {
                    prop_assert_eq!(self.repository.overflow(*subject), Some(&overflow));
                    let kept: Option<BTreeMap<_, _>> = compiled.map(|(kept, _)| kept.map_entries().collect());
                    let map = self.maps.get(subject).map(|(_, map)| map.clone()).unwrap_or_default();
                    prop_assert_eq!(kept.unwrap_or_default(), map);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 160 / 256))]

    #[test]
    fn what_is_kept_compiled_is_what_is_compiled_anew(
        policies in any_policies(),
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let policies: Vec<Policy> = policies.iter().filter_map(|p| parse_all(std::slice::from_ref(p))).flatten().collect();
        prop_assume!(!policies.is_empty());
        let repository = Repository::new(Settings::new("c1").unwrap());
        let mut follower = Follower { repository, endpoints: Default::default(), maps: BTreeMap::new() };
        for step in &steps {
            follower.step(step, &policies);
            if matches!(step, Step::Sync) {
                follower.check()?;
            }
        }
        follower.sync();
        follower.check()?;
    }

    #[test]
    fn compiled_entries_say_what_the_rules_say(
        policies in any_policies(),
        workloads in proptest::collection::vec(any_labels(), 1..6),
        settings in any_settings(),
    ) {
        let policies: Vec<Policy> = policies.iter().filter_map(|p| parse_all(std::slice::from_ref(p))).flatten().collect();
        let mut repository = Repository::new(settings.clone());
        let mut peers: Vec<Peer> = NumericIdentity::reserved()
            .filter(|(id, _)| !id.is_world())
            .map(|(id, _)| Peer::Labelled(id, id.reserved_labels().unwrap()))
            .collect();
        let (early, late) = policies.split_at(policies.len() / 2);
        repository.replace_origin("random.json", early.to_vec());
        for (i, labels) in workloads.iter().enumerate() {
            let identity = NumericIdentity(300 + i as u32);
            repository.upsert_identity(identity, labels);
            peers.push(Peer::Labelled(identity, labels.clone()));
        }
        for policy in late {
            repository.upsert(policy.clone());
        }
        let prefixes = allocate_prefixes(&mut repository);
        peers.extend(ADDRESSES.map(|a| Peer::Outside(a.parse().unwrap())));
        for subject in &workloads {
            let compiled = repository.endpoint_policy(subject, usize::MAX).unwrap();
            for peer in &peers {
                let identity = identity_of(peer, &prefixes).0;
                for flow in flows() {
                    let expected = reference(&policies, &settings, subject, peer, flow);
                    let entries = by_entries(&compiled, identity, flow);
                    prop_assert_eq!(entries, expected, "{:?} -> {:?} {:?}\n{:#?}", subject, peer, flow, compiled);
                    let verdict = compiled.verdict(flow.direction, identity, flow.port, flow.proto);
                    prop_assert_eq!(verdict.is_allowed(), entries, "{:?} {:?}", flow, verdict);
                }
            }
        }
    }

    #[test]
    fn the_order_of_changes_leaves_no_trace(
        policies in any_policies(),
        workloads in proptest::collection::vec(any_labels(), 1..5),
        order in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>()), 0..12),
    ) {
        let policies: Vec<Policy> = policies.iter().filter_map(|p| parse_all(std::slice::from_ref(p))).flatten().collect();
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

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", glue in "[-{}\\[\\]:,&*!|> a-z0-9\n\"']{0,120}") {
        let _ = parse("random", &text);
        let _ = parse("random", &glue);
    }

    #[test]
    fn a_file_cut_anywhere_never_panics(policies in any_policies(), at in any::<proptest::sample::Index>()) {
        let text = serde_json::to_string_pretty(&Value::Array(policies)).unwrap();
        let cut = &text[..at.index(text.len())];
        let _ = parse("cut", cut);
    }
}
