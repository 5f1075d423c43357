//! What there is beside policies: workloads, groups, services, nodes, addresses. Held as plain data, for the reading
//! of the rules, and put into a repository, for the compiler.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use villus_labels::{Labels, NumericIdentity, cidr_labels};
use villus_policy::{NamedPort, Repository, Settings, parse, with_named_ports};

/// A workload of this or another node.
#[derive(Clone, Debug)]
pub struct Workload {
    pub identity: NumericIdentity,
    pub labels: Labels,
    /// Name, protocol, number.
    pub ports: Vec<(&'static str, u8, u16)>,
}

/// A CiliumCIDRGroup.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: &'static str,
    pub kind: &'static str,
    pub prefixes: Vec<&'static str>,
}

/// A service with pods, or with addresses.
#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: &'static str,
    pub name: &'static str,
    pub tier: &'static str,
    pub app: Option<&'static str>,
    pub addresses: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Scene {
    pub settings: Settings,
    pub workloads: Vec<Workload>,
    pub groups: Vec<Group>,
    pub services: Vec<Service>,
}

/// The other side of a flow.
#[derive(Clone, Debug)]
pub enum Peer {
    Labelled(NumericIdentity, Labels, Vec<(&'static str, u8, u16)>),
    Outside(IpAddr),
}

pub const ADDRESSES: [&str; 8] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.4",
    "10.2.0.1",
    "192.0.2.7",
    "203.0.113.1",
    "2001:db8:1::5",
    "2001:dead::1",
];

/// Labels of other nodes, beside the reserved identity of all of them.
const NODES: [(u32, &str); 2] =
    [(400, "reserved:remote-node,k8s:tier=edge"), (401, "reserved:remote-node,k8s:tier=core")];

impl Workload {
    pub fn named_ports(&self) -> BTreeSet<NamedPort> {
        self.ports
            .iter()
            .map(|(name, proto, number)| NamedPort::new(name, *number, *proto).unwrap())
            .collect()
    }

    /// What its policy is asked for by.
    pub fn subject(&self) -> Labels {
        with_named_ports(&self.labels, &self.named_ports())
    }
}

impl Scene {
    /// Everybody that a flow may come from or go to.
    pub fn peers(&self) -> Vec<Peer> {
        let reserved = NumericIdentity::reserved().filter(|(id, _)| !id.is_world());
        let reserved = reserved.map(|(id, _)| Peer::Labelled(id, id.reserved_labels().unwrap(), Vec::new()));
        let nodes = NODES.iter().map(|(id, text)| {
            Peer::Labelled(NumericIdentity(*id), Labels::parse_list(text, "k8s").unwrap(), Vec::new())
        });
        let workloads = self.workloads.iter().map(|workload| {
            Peer::Labelled(workload.identity, workload.labels.clone(), workload.ports.clone())
        });
        let outside = ADDRESSES.iter().map(|address| Peer::Outside(address.parse().unwrap()));
        reserved.chain(nodes).chain(workloads).chain(outside).collect()
    }

    /// The objects that policies refer to.
    pub fn objects(&self) -> String {
        let mut all: Vec<Value> = Vec::new();
        for group in &self.groups {
            all.push(json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup",
                "metadata": {"name": group.name, "labels": {"kind": group.kind}},
                "spec": {"externalCIDRs": group.prefixes}}));
        }
        for service in &self.services {
            let selector = service.app.map(|app| json!({"app": app}));
            all.push(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": service.name, "namespace": service.namespace, "labels": {"tier": service.tier}},
                "spec": {"selector": selector}}));
            if service.app.is_none() {
                let addresses: Vec<Value> = service.addresses.iter().map(|ip| json!({"ip": ip})).collect();
                all.push(json!({"apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {"name": service.name, "namespace": service.namespace},
                    "subsets": [{"addresses": addresses}]}));
            }
        }
        Value::Array(all).to_string()
    }

    pub fn know_workloads(&self, repository: &mut Repository) {
        for workload in &self.workloads {
            repository.upsert_identity(workload.identity, &workload.labels);
            repository.set_named_ports([(workload.identity, workload.named_ports())]);
        }
        for (identity, text) in NODES {
            repository.upsert_identity(NumericIdentity(identity), &Labels::parse_list(text, "k8s").unwrap());
        }
    }

    pub fn know_objects(&self, repository: &mut Repository) {
        let parsed = parse("objects.json", &self.objects()).unwrap();
        repository.replace_referents("objects.json", parsed.referents);
    }
}

/// Gives every prefix in use its identity, as the agent does, and returns them.
pub fn allocate_prefixes(repository: &mut Repository) -> Vec<(IpNet, NumericIdentity)> {
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

pub fn identity_of(peer: &Peer, prefixes: &[(IpNet, NumericIdentity)]) -> NumericIdentity {
    match peer {
        Peer::Labelled(identity, ..) => *identity,
        Peer::Outside(address) => {
            let covering = prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
            covering
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map_or(NumericIdentity::WORLD, |(_, id)| *id)
        }
    }
}

// === random scenes ===

pub fn any_labels() -> impl Strategy<Value = Labels> {
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

fn any_workloads() -> impl Strategy<Value = Vec<Workload>> {
    let port = select(vec![
        ("http", 6, 80),
        ("http", 6, 8080),
        ("http", 17, 80),
        ("dns", 17, 53),
        ("dns", 132, 443),
    ]);
    let workload = (any_labels(), proptest::collection::vec(port, 0..3));
    proptest::collection::vec(workload, 1..6).prop_map(|all| {
        let identity = |i: usize| NumericIdentity(300 + u32::try_from(i).unwrap());
        let all = all.into_iter().enumerate();
        all.map(|(i, (labels, ports))| Workload { identity: identity(i), labels, ports }).collect()
    })
}

fn any_groups() -> impl Strategy<Value = Vec<Group>> {
    let group = (
        select(vec!["g1", "g2", "g3"]),
        select(vec!["good", "bad"]),
        proptest::collection::vec(select(super::policies::PREFIXES.to_vec()), 0..4),
    );
    proptest::collection::btree_map(group.0, (group.1, group.2), 0..3).prop_map(|groups| {
        groups.into_iter().map(|(name, (kind, prefixes))| Group { name, kind, prefixes }).collect()
    })
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    let place = (select(vec!["n1", "n2"]), select(vec!["s1", "s2"]));
    let what = (
        select(vec!["front", "back"]),
        select(vec![Some("a"), Some("b"), None]),
        proptest::collection::vec(select(ADDRESSES.to_vec()), 0..4),
    );
    proptest::collection::btree_map(place, what, 0..4).prop_map(|services| {
        let service =
            |((namespace, name), (tier, app, addresses))| Service { namespace, name, tier, app, addresses };
        services.into_iter().map(service).collect()
    })
}

pub fn any_settings() -> impl Strategy<Value = Settings> {
    use villus_policy::EnforcementMode::{Always, Default, Never};
    let mode = select(vec![Default, Default, Default, Always, Never]);
    (mode, any::<bool>(), any::<bool>()).prop_map(|(mode, allow_localhost, default_local_cluster)| Settings {
        mode,
        allow_localhost,
        default_local_cluster,
        ..Settings::new("c1").unwrap()
    })
}

pub fn any_scene() -> impl Strategy<Value = Scene> {
    (any_settings(), any_workloads(), any_groups(), any_services())
        .prop_map(|(settings, workloads, groups, services)| Scene { settings, workloads, groups, services })
}
