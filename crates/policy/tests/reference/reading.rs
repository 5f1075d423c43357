//! A second, plain reading of the policy language: rules are evaluated directly on labels and addresses, with no
//! selector cache, no labels for prefixes and no map entries. A NetworkPolicy is read as Kubernetes wrote it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use villus_abi::Direction;
use villus_labels::{KeySource, Label, Labels, NumericIdentity, Operator, Selector};
use villus_policy::{
    Element, EnforcementMode, Entity, Kind, Policy, PrefixBase, PrefixSet, Protocol, Rule, ServiceBase,
    ServiceRef, SubjectSelector, Transport,
};

use crate::scene::{Peer, Scene, Workload};

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub direction: Direction,
    pub proto: u8,
    /// Port, or ICMP type.
    pub port: u16,
}

/// Who asks: one subject's policies, and everything else there is.
pub struct Reading<'a> {
    pub policies: &'a [Policy],
    /// The policies as they were written.
    pub objects: &'a [Value],
    pub scene: &'a Scene,
    pub subject: &'a Workload,
}

/// What one policy says to a flow of its subject.
#[derive(Default, Clone, Copy)]
struct Said {
    enforced: bool,
    allow: bool,
    deny: bool,
}

fn find<'a>(labels: &'a Labels, source: &str, key: &str) -> Option<&'a str> {
    labels.iter().find(|l| l.key() == key && (source == "any" || l.source() == source)).map(Label::value)
}

fn is_reserved(peer: &Peer, name: &str) -> bool {
    matches!(peer, Peer::Labelled(_, labels, _) if find(labels, "reserved", name).is_some())
}

fn holds(operator: &Operator, value: Option<&str>) -> bool {
    match operator {
        Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| **w == *v)),
        Operator::NotIn(values) => !value.is_some_and(|v| values.iter().any(|w| **w == *v)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}

/// `skip` is a key whose requirements don't count.
fn selects(selector: &Selector, labels: &Labels, skip: &str) -> bool {
    let asked = selector.requirements().iter().filter(|r| r.key.key() != skip);
    asked.into_iter().all(|r| holds(&r.operator, find(labels, r.key.source_name(), r.key.key())))
}

fn speaks_of_reserved(selector: &Selector) -> bool {
    selector.requirements().iter().any(|r| matches!(r.key.source(), KeySource::Is(s) if &**s == "reserved"))
}

impl Reading<'_> {
    pub fn allows(&self, peer: &Peer, flow: Flow) -> bool {
        let settings = &self.scene.settings;
        let init = find(&self.subject.labels, "reserved", "init").is_some();
        let mut all = Said { enforced: settings.mode == EnforcementMode::Always || init, ..Said::default() };
        for (policy, object) in self.policies.iter().zip(self.objects) {
            let said: Vec<Said> = match policy.key.kind {
                Kind::NetworkPolicy => vec![self.network_policy(policy, object, peer, flow)],
                _ => policy.rules.iter().map(|rule| self.rule(policy, rule, peer, flow)).collect(),
            };
            for said in said {
                all.enforced |= said.enforced;
                all.allow |= said.allow;
                all.deny |= said.deny;
            }
        }
        let host = matches!(peer, Peer::Labelled(id, ..) if *id == NumericIdentity::HOST);
        all.allow |= flow.direction == Direction::Ingress && host && settings.allow_localhost;
        settings.mode == EnforcementMode::Never || (!all.deny && (!all.enforced || all.allow))
    }

    fn is_subject(&self, policy: &Policy, rule: &Rule) -> bool {
        let labels = &self.subject.labels;
        let node = find(labels, "reserved", "host").is_some();
        match (&rule.subject, &policy.key.namespace) {
            (SubjectSelector::Nodes(selector), _) => node && selects(selector, labels, ""),
            (SubjectSelector::Endpoints(_), _) if node => false,
            (SubjectSelector::Endpoints(selector), Some(namespace)) if !speaks_of_reserved(selector) => {
                find(labels, "k8s", NAMESPACE) == Some(namespace) && selects(selector, labels, NAMESPACE)
            }
            (SubjectSelector::Endpoints(selector), _) => selects(selector, labels, ""),
        }
    }

    fn rule(&self, policy: &Policy, rule: &Rule, peer: &Peer, flow: Flow) -> Said {
        if !self.is_subject(policy, rule) {
            return Said::default();
        }
        let (allows, denies, default_deny) = match flow.direction {
            Direction::Ingress => (&rule.ingress, &rule.ingress_deny, rule.default_deny[0]),
            Direction::Egress => (&rule.egress, &rule.egress_deny, rule.default_deny[1]),
        };
        let count = |section: &Option<Vec<Element>>| section.as_ref().map_or(0, Vec::len);
        let hit = |section: &Option<Vec<Element>>, deny: bool| {
            section.iter().flatten().any(|element| {
                self.peer_is_meant(policy, rule, element, peer, (flow.direction, deny))
                    && self.transport_is_meant(element, peer, flow)
            })
        };
        Said {
            enforced: default_deny.unwrap_or(count(allows) + count(denies) > 0),
            allow: hit(allows, false),
            deny: hit(denies, true),
        }
    }

    fn peer_is_meant(
        &self,
        policy: &Policy,
        rule: &Rule,
        element: &Element,
        peer: &Peer,
        section: (Direction, bool),
    ) -> bool {
        if !element.names_peers() {
            return element.transport.is_some();
        }
        let Element { endpoints, nodes, entities, prefixes, prefix_sets, services, .. } = element;
        let inside = |net: &IpNet| matches!(peer, Peer::Outside(a) if net.contains(a));
        let is_node = is_reserved(peer, "remote-node");
        let labels = labels_of(peer);
        let mut endpoints = endpoints.iter().flatten();
        endpoints.any(|s| self.endpoint_is_meant(policy, rule, s, peer))
            && self.meets_requirements(peer, section)
            || nodes.iter().flatten().any(|s| is_node && selects(s, &labels, ""))
            || entities.iter().flatten().any(|e| self.entity_is_meant(*e, peer))
            || prefixes.iter().flatten().any(inside)
            || prefix_sets.iter().flatten().any(|set| self.set_is_meant(set, &inside))
            || services.iter().flatten().any(|service| self.service_is_meant(service, peer))
    }

    /// Requirements of every rule that selects the subject, in this direction, of the same kind of section.
    fn meets_requirements(&self, peer: &Peer, (direction, deny): (Direction, bool)) -> bool {
        let rules = self.policies.iter().filter(|policy| policy.key.kind != Kind::NetworkPolicy);
        let rules = rules.flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
        rules.filter(|(policy, rule)| self.is_subject(policy, rule)).all(|(policy, rule)| {
            let section = match (direction, deny) {
                (Direction::Ingress, false) => &rule.ingress,
                (Direction::Ingress, true) => &rule.ingress_deny,
                (Direction::Egress, false) => &rule.egress,
                (Direction::Egress, true) => &rule.egress_deny,
            };
            let required = section.iter().flatten().flat_map(|element| element.requires.iter().flatten());
            required.into_iter().all(|selector| self.endpoint_is_meant(policy, rule, selector, peer))
        })
    }

    fn endpoint_is_meant(&self, policy: &Policy, rule: &Rule, selector: &Selector, peer: &Peer) -> bool {
        let settings = &self.scene.settings;
        let for_init = matches!(&rule.subject, SubjectSelector::Endpoints(subject)
            if subject.requirements().iter().any(|r| r.key.to_string() == "reserved:init"));
        let keys: Vec<&str> = selector.requirements().iter().map(|r| r.key.key()).collect();
        let names_namespace = keys.iter().any(|k| *k == NAMESPACE || k.starts_with(NAMESPACE_LABELS));
        let labels = labels_of(peer);
        if !selects(selector, &labels, "") {
            return false;
        }
        if speaks_of_reserved(selector) {
            return true;
        }
        let namespace = find(&labels, "k8s", NAMESPACE);
        let in_scope = match &policy.key.namespace {
            _ if names_namespace => true,
            Some(own) => namespace == Some(own),
            None => for_init || namespace.is_some(),
        };
        let in_cluster = !settings.default_local_cluster
            || keys.contains(&CLUSTER)
            || find(&labels, "k8s", CLUSTER) == Some(settings.cluster.value());
        in_scope && in_cluster
    }

    fn entity_is_meant(&self, entity: Entity, peer: &Peer) -> bool {
        let reserved = |name: &str| is_reserved(peer, name);
        let of_cluster = |cluster: Option<&str>| match peer {
            Peer::Labelled(_, labels, _) => {
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
            Entity::Cluster => {
                nodes.iter().any(|n| reserved(n)) || of_cluster(Some(self.scene.settings.cluster.value()))
            }
            Entity::ClusterMesh => nodes.iter().any(|n| reserved(n)) || of_cluster(None),
            Entity::Host => reserved("host"),
            Entity::RemoteNode => reserved("remote-node"),
            Entity::KubeApiserver => reserved("kube-apiserver"),
            Entity::Ingress => reserved("ingress"),
            Entity::Init => reserved("init"),
            Entity::Health => reserved("health"),
            Entity::Unmanaged => reserved("unmanaged"),
        }
    }

    fn set_is_meant(&self, set: &PrefixSet, inside: &dyn Fn(&IpNet) -> bool) -> bool {
        let groups = |wanted: &dyn Fn(&crate::scene::Group) -> bool| {
            let mut meant = self.scene.groups.iter().filter(|group| wanted(group));
            meant.any(|group| group.prefixes.iter().any(|prefix| inside(&prefix.parse().unwrap())))
        };
        let base = match &set.base {
            PrefixBase::Prefix(prefix) => inside(prefix),
            PrefixBase::Group(name) => groups(&|group| group.name == &**name),
            PrefixBase::Groups(selector) => groups(&|group| {
                selector
                    .requirements()
                    .iter()
                    .all(|r| r.key.key() == "kind" && holds(&r.operator, Some(group.kind)))
            }),
        };
        base && !set.except.iter().any(inside)
    }

    fn service_is_meant(&self, wanted: &ServiceRef, peer: &Peer) -> bool {
        self.scene.services.iter().any(|service| {
            let named = match &wanted.which {
                ServiceBase::Name(name) => service.name == &**name,
                ServiceBase::Labels(selector) => selector
                    .requirements()
                    .iter()
                    .all(|r| r.key.key() == "tier" && holds(&r.operator, Some(service.tier))),
            };
            let there = wanted.namespace.as_ref().is_none_or(|namespace| **namespace == *service.namespace);
            let is_backend = match (service.app, peer) {
                (Some(app), Peer::Labelled(_, labels, _)) => {
                    find(labels, "k8s", "app") == Some(app)
                        && find(labels, "k8s", NAMESPACE) == Some(service.namespace)
                }
                (None, Peer::Outside(address)) => {
                    service.addresses.iter().any(|a| a.parse::<IpAddr>().unwrap() == *address)
                }
                _ => false,
            };
            named && there && is_backend
        })
    }

    fn transport_is_meant(&self, element: &Element, peer: &Peer, flow: Flow) -> bool {
        let Some(transport) = &element.transport else { return true };
        transport.iter().any(|item| match item {
            Transport::Icmp { v6, kind } => {
                flow.proto == if *v6 { 58 } else { 1 } && flow.port == u16::from(*kind)
            }
            Transport::Named { protocol, name } => {
                is_protocol(*protocol, flow.proto, false) && self.has_port(peer, name, flow)
            }
            Transport::Ports { protocol, first, last } => {
                let all = *last == 0;
                is_protocol(*protocol, flow.proto, all) && (all || (*first..=*last).contains(&flow.port))
            }
        })
    }

    /// Whether the side that is asked has the flow's port under a name.
    fn has_port(&self, peer: &Peer, name: &str, flow: Flow) -> bool {
        let ports = match (flow.direction, peer) {
            (Direction::Ingress, _) => &self.subject.ports,
            (Direction::Egress, Peer::Labelled(_, _, ports)) => ports,
            (Direction::Egress, Peer::Outside(_)) => return false,
        };
        ports.contains(&(
            match name {
                "http" => "http",
                "dns" => "dns",
                _ => return false,
            },
            flow.proto,
            flow.port,
        ))
    }

    // === NetworkPolicy, as Kubernetes has it ===

    fn network_policy(&self, policy: &Policy, object: &Value, peer: &Peer, flow: Flow) -> Said {
        let spec = &object["spec"];
        let namespace = policy.key.namespace.as_deref().unwrap();
        let labels = &self.subject.labels;
        let own = find(labels, "k8s", NAMESPACE) == Some(namespace);
        if !own
            || find(labels, "reserved", "host").is_some()
            || !object_selects(&spec["podSelector"], labels, &pod_value)
        {
            return Said::default();
        }
        let types: Vec<&str> = list(&spec["policyTypes"]).iter().filter_map(Value::as_str).collect();
        let (section, side, listed) = match flow.direction {
            Direction::Ingress => {
                ("ingress", "from", types.contains(&"Ingress") || !types.contains(&"Egress"))
            }
            Direction::Egress => ("egress", "to", types.contains(&"Egress")),
        };
        let rules = list(&spec[section]);
        let passes = |rule: &Value| {
            let peers = list(&rule[side]);
            let ports = list(&rule["ports"]);
            (peers.is_empty() || peers.iter().any(|p| self.object_means(p, namespace, peer, flow.direction)))
                && (ports.is_empty() || ports.iter().any(|port| self.object_port(port, peer, flow)))
        };
        Said { enforced: listed || !rules.is_empty(), allow: rules.iter().any(passes), deny: false }
    }

    /// Kubernetes' words, and then the requirements of other rules for the same subject, which it does not know of.
    fn object_means(&self, wanted: &Value, own: &str, peer: &Peer, direction: Direction) -> bool {
        if let Some(block) = wanted.get("ipBlock") {
            let Peer::Outside(address) = peer else { return false };
            let contains = |cidr: &Value| cidr.as_str().unwrap().parse::<IpNet>().unwrap().contains(address);
            return contains(&block["cidr"]) && !list(&block["except"]).iter().any(contains);
        }
        let Peer::Labelled(_, labels, _) = peer else { return false };
        let Some(namespace) = find(labels, "k8s", NAMESPACE) else { return false };
        let settings = &self.scene.settings;
        let in_cluster =
            !settings.default_local_cluster || find(labels, "k8s", CLUSTER) == Some(settings.cluster.value());
        let there = match wanted.get("namespaceSelector") {
            None => namespace == own,
            Some(selector) => object_selects(selector, labels, &namespace_value),
        };
        let pods =
            wanted.get("podSelector").is_none_or(|selector| object_selects(selector, labels, &pod_value));
        in_cluster && there && pods && self.meets_requirements(peer, (direction, false))
    }

    fn object_port(&self, port: &Value, peer: &Peer, flow: Flow) -> bool {
        let proto = match port["protocol"].as_str() {
            None | Some("TCP") => 6,
            Some("UDP") => 17,
            _ => 132,
        };
        let number = match &port["port"] {
            Value::Null => true,
            Value::String(name) => self.has_port(peer, name, flow),
            first => {
                let last = port["endPort"].as_u64().or(first.as_u64()).unwrap();
                (first.as_u64().unwrap()..=last).contains(&u64::from(flow.port))
            }
        };
        flow.proto == proto && number
    }
}

fn is_protocol(protocol: Protocol, proto: u8, all_ports: bool) -> bool {
    match protocol {
        Protocol::Any => all_ports || [6, 17, 132].contains(&proto),
        Protocol::Tcp => proto == 6,
        Protocol::Udp => proto == 17,
        Protocol::Sctp => proto == 132,
        Protocol::Icmp => proto == 1,
        Protocol::Icmpv6 => proto == 58,
        Protocol::Other(number) => proto == number,
    }
}

/// An address outside is known as such and by its family.
fn labels_of(peer: &Peer) -> Labels {
    match peer {
        Peer::Labelled(_, labels, _) => labels.clone(),
        Peer::Outside(address) => {
            let family = if address.is_ipv4() { "world-ipv4" } else { "world-ipv6" };
            Labels::parse_list(&format!("reserved:world,reserved:{family}"), "").unwrap()
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn pod_value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    find(labels, "k8s", key)
}

/// A label of a pod's namespace; its name is one of them.
fn namespace_value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    match key {
        "kubernetes.io/metadata.name" => find(labels, "k8s", NAMESPACE),
        key => find(labels, "k8s", &format!("{NAMESPACE_LABELS}{key}")),
    }
}

fn object_selects<'a>(
    selector: &Value,
    labels: &'a Labels,
    value: &dyn Fn(&'a Labels, &str) -> Option<&'a str>,
) -> bool {
    let labelled = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = list(&selector["matchExpressions"]).iter();
    labelled.into_iter().all(|(key, wanted)| value(labels, key) == wanted.as_str())
        && expressions.all(|expression| {
            let found = value(labels, expression["key"].as_str().unwrap());
            let listed = found.is_some_and(|found| list(&expression["values"]).iter().any(|v| v == found));
            match expression["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                _ => found.is_none(),
            }
        })
}
