//! Whatever becomes of a live node, and in whatever order: once it has settled, the kernel's policy maps hold what is
//! compiled from nothing of the policies, endpoints and identities that there are then.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::TestNode;
use villus_abi::PolicyKey;
use villus_api::EndpointRef;
use villus_api::model::{
    DaemonConfigurationSpec, Endpoint, EndpointChangeRequest, EndpointPatch, PolicyDelete, PolicyImport,
};
use villus_config::config::Enforcement;
use villus_datapath::{Maps, Pins, Shapes, view_policy};
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{NamedPort, Repository, parse, with_named_ports};
use villus_testbed::{alone, eventually, run};

/// Changes of one run.
const STEPS: usize = 110;
/// Namespaces that endpoints come and go in.
const PLACES: usize = 7;
const ENFORCEMENT: [(&str, Enforcement); 4] = [
    ("default", Enforcement::Default),
    ("default", Enforcement::Default),
    ("always", Enforcement::Always),
    ("never", Enforcement::Never),
];
const LABELS: [&[&str]; 6] = [
    &["k8s:app=web", "k8s:env=prod"],
    &["k8s:app=web", "k8s:env=dev"],
    &["k8s:app=db"],
    &["k8s:app=client", "k8s:env=prod"],
    &["k8s:app=client"],
    &["k8s:app=other", "k8s:io.kubernetes.pod.namespace=shop"],
];
const PORTS: [&[&str]; 3] = [&[], &["http=8080/TCP"], &["http=9090/TCP", "dns=53/UDP"]];

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Objects by name, each in several versions.
fn objects() -> BTreeMap<&'static str, Vec<String>> {
    let object = |kind: &str, name: &str, meta: &str, rest: &str| {
        let version = match kind {
            "NetworkPolicy" => "networking.k8s.io/v1",
            "Service" => "v1",
            _ => "cilium.io/v2",
        };
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{meta}}}\n{rest}\n")
    };
    let cnp = |name: &str, app: &str, sections: &str| {
        let spec = format!("spec: {{endpointSelector: {{matchLabels: {{app: {app}}}}}, {sections}}}");
        object("CiliumNetworkPolicy", name, "", &spec)
    };
    let ccnp = |name: &str, spec: &str| object("CiliumClusterwideNetworkPolicy", name, "", spec);
    let audited = ", annotations: {policy.villus.io/audit: 'true'}";
    BTreeMap::from([
        (
            "web",
            vec![
                cnp(
                    "web",
                    "web",
                    "ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
                ),
                cnp(
                    "web",
                    "web",
                    "ingress: [{toPorts: [{ports: [{port: http}, {port: '8000', endPort: 8999, protocol: TCP}]}]}]",
                ),
                cnp(
                    "web",
                    "web",
                    "ingress: [{fromEndpoints: [{}]}], ingressDeny: [{fromEndpoints: [{matchLabels: {env: dev}}]}]",
                ),
                cnp(
                    "web",
                    "web",
                    "ingress: [{fromRequires: [{matchLabels: {env: prod}}], fromEndpoints: [{}]}]",
                ),
            ],
        ),
        (
            "db",
            vec![
                cnp(
                    "db",
                    "db",
                    "ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}], egress: [{toEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: http, protocol: TCP}]}]}]",
                ),
                cnp(
                    "db",
                    "db",
                    "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}]}, {fromCIDR: [2001:db8::/32]}]",
                ),
                cnp(
                    "db",
                    "db",
                    "ingressDeny: [{fromCIDR: [0.0.0.0/0]}], enableDefaultDeny: {ingress: false}",
                ),
            ],
        ),
        (
            "groups",
            vec![
                cnp(
                    "groups",
                    "web",
                    "ingress: [{fromCIDRSet: [{cidrGroupRef: friends, except: [198.51.100.128/25]}], icmps: [{fields: [{type: 8}, {family: IPv6, type: 128}]}]}]",
                ),
                cnp(
                    "groups",
                    "client",
                    "egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {kind: good}}}]}, {toEntities: [world], toPorts: [{ports: [{port: '53', protocol: ANY}]}]}]",
                ),
            ],
        ),
        (
            "friends",
            vec![
                object(
                    "CiliumCIDRGroup",
                    "friends",
                    ", labels: {kind: good}",
                    "spec: {externalCIDRs: [198.51.100.0/24, 2001:db8:1::/48]}",
                ),
                object(
                    "CiliumCIDRGroup",
                    "friends",
                    ", labels: {kind: bad}",
                    "spec: {externalCIDRs: [198.51.100.0/24, 203.0.113.0/24]}",
                ),
            ],
        ),
        (
            "api",
            vec![
                cnp(
                    "api",
                    "client",
                    "egress: [{toServices: [{k8sService: {serviceName: backend, namespace: default}}], toPorts: [{ports: [{port: '443'}]}]}]",
                ),
                cnp(
                    "api",
                    "client",
                    "egressDeny: [{toServices: [{k8sService: {serviceName: backend, namespace: default}}]}], egress: [{toEntities: [all]}]",
                ),
            ],
        ),
        (
            "backend",
            vec![
                object("Service", "backend", "", "spec: {selector: {app: web}}"),
                object("Service", "backend", "", "spec: {selector: {app: db}}"),
            ],
        ),
        (
            "wide",
            vec![
                ccnp(
                    "wide",
                    "spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster]}], egress: [{toEntities: [world, host]}]}",
                ),
                ccnp(
                    "wide",
                    "specs: [{endpointSelector: {matchLabels: {env: prod}}, ingress: [{}]}, {endpointSelector: {matchLabels: {app: other}}, egress: [{toEndpoints: [{}]}]}]",
                ),
                object(
                    "CiliumClusterwideNetworkPolicy",
                    "wide",
                    audited,
                    "spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [world]}], ingress: [{fromEntities: [host]}]}",
                ),
            ],
        ),
        (
            "knp",
            vec![
                object("NetworkPolicy", "knp", "", "spec: {podSelector: {}, policyTypes: [Ingress]}"),
                object(
                    "NetworkPolicy",
                    "knp",
                    "",
                    "spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}], ports: [{port: http}, {port: 1024, endPort: 65535}]}]}",
                ),
                object(
                    "NetworkPolicy",
                    "knp",
                    audited,
                    "spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}",
                ),
            ],
        ),
    ])
}

/// What was done to a node.
struct Run {
    node: TestNode,
    random: fastrand::Rng,
    objects: BTreeMap<&'static str, Vec<String>>,
    /// What is in force, by name.
    in_force: BTreeMap<&'static str, String>,
    /// Names that files hold.
    filed: BTreeSet<&'static str>,
    endpoints: BTreeMap<usize, Endpoint>,
    enforcement: Enforcement,
    pins: Pins,
    maps: Maps,
    done: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let node = TestNode::started(&[("identity-change-grace-period", "0s")]);
        for place in 0..PLACES {
            run("ip", &["netns", "add", &format!("place{place}")]);
        }
        let pins = Pins::existing(&node.root.join("bpf")).unwrap();
        let maps = Maps::existing(&pins).unwrap();
        Self {
            node,
            random: fastrand::Rng::with_seed(seed),
            objects: objects(),
            in_force: BTreeMap::new(),
            filed: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            enforcement: Enforcement::Default,
            pins,
            maps,
            done: Vec::new(),
        }
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.random.usize(..all.len())].clone()
    }

    fn step(&mut self) {
        match self.random.u32(..20) {
            0..=5 => self.endpoint(),
            6..=8 => self.relabel(),
            9..=15 => self.object(),
            16..=17 => self.take_back(),
            18 => self.enforce(),
            _ => self.restart(),
        }
    }

    /// An endpoint comes where there is none, and goes where there is one.
    fn endpoint(&mut self) {
        let place = self.random.usize(..PLACES);
        if let Some(endpoint) = self.endpoints.remove(&place) {
            self.done.push(format!("endpoint {} goes", endpoint.id));
            self.node.client().delete_endpoint(&EndpointRef::Id(endpoint.id)).unwrap();
            return;
        }
        let (labels, ports) = (self.one_of(&LABELS), self.one_of(&PORTS));
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let request = EndpointChangeRequest {
            netns: Some(format!("place{place}")),
            labels: texts(labels),
            named_ports: texts(ports),
            ..EndpointChangeRequest::default()
        };
        let endpoint = self.node.client().create_endpoint(&EndpointRef::Id(0), &request).unwrap();
        self.done.push(format!(
            "endpoint {} comes with {:?} {:?}",
            endpoint.id, request.labels, request.named_ports
        ));
        self.endpoints.insert(place, endpoint);
    }

    fn relabel(&mut self) {
        let places: Vec<usize> = self.endpoints.keys().copied().collect();
        if places.is_empty() {
            return;
        }
        let place = self.one_of(&places);
        let id = self.endpoints[&place].id;
        let labels: Vec<String> = self.one_of(&LABELS).iter().map(|label| (*label).to_owned()).collect();
        self.done.push(format!("endpoint {id} becomes {labels:?}"));
        let patch = EndpointPatch { labels: Some(labels), ..EndpointPatch::default() };
        self.node.client().patch_endpoint(&EndpointRef::Id(id), &patch).unwrap();
    }

    /// A version of an object, by import or by file.
    fn object(&mut self) {
        let names: Vec<&'static str> = self.objects.keys().copied().collect();
        let name = self.one_of(&names);
        let versions = self.objects[name].clone();
        let text = self.one_of(&versions);
        let by_file = match self.in_force.contains_key(name) {
            true => self.filed.contains(name),
            false => self.random.u32(..3) == 0,
        };
        self.done.push(format!("{}: {text}", if by_file { "file" } else { "import" }));
        if by_file {
            self.node.policy_file(&format!("{name}.yaml"), &text);
            self.filed.insert(name);
        } else {
            self.import(&text);
        }
        self.in_force.insert(name, text);
    }

    /// Imports what a file may have held a moment ago: the agent need not have seen yet that the file is gone.
    fn import(&self, text: &str) {
        let import = PolicyImport { text: text.to_owned(), ..PolicyImport::default() };
        eventually("no file holds it", || match self.node.client().import_policy(&import) {
            Err(error) if error.status() == Some(409) => false,
            change => change.map(|_| true).unwrap(),
        });
    }

    /// A policy goes; groups and services stay, for nothing deletes what was imported of them.
    fn take_back(&mut self) {
        let is_policy = |name: &&str| !["friends", "backend"].contains(name) || self.filed.contains(name);
        let names: Vec<&'static str> = self.in_force.keys().copied().filter(is_policy).collect();
        if names.is_empty() {
            return;
        }
        let name = self.one_of(&names);
        self.done.push(format!("{name} goes"));
        if self.filed.remove(name) {
            std::fs::remove_file(self.node.root.join(format!("policies/{name}.yaml"))).unwrap();
        } else {
            let namespace = if name == "wide" { "" } else { "default" };
            let delete = PolicyDelete {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                ..PolicyDelete::default()
            };
            assert_eq!(self.node.client().delete_policy(&delete).unwrap().deleted.len(), 1, "{name}");
        }
        self.in_force.remove(name);
    }

    fn enforce(&mut self) {
        let (name, enforcement) = self.one_of(&ENFORCEMENT);
        self.done.push(format!("enforcement {name}"));
        let spec = DaemonConfigurationSpec {
            policy_enforcement: Some(name.to_owned()),
            ..DaemonConfigurationSpec::default()
        };
        self.node.client().patch_config(&spec).unwrap();
        self.enforcement = enforcement;
    }

    fn restart(&mut self) {
        self.done.push("the agent is killed and started".to_owned());
        self.node.kill();
        self.node.start();
        self.enforcement = Enforcement::Default;
    }

    /// What is compiled from nothing, for each endpoint.
    fn compiled(&self) -> BTreeMap<u16, BTreeMap<PolicyKey, u8>> {
        let settings = villus_agent::policy_settings(&self.node.config(), self.enforcement).unwrap();
        let mut repository = Repository::new(settings);
        for (name, text) in &self.in_force {
            let parsed = parse(name, text).unwrap();
            repository.upsert_referents(parsed.referents);
            for policy in parsed.policies {
                repository.upsert(policy);
            }
        }
        for identity in self.node.client().identities(&[]).unwrap() {
            let labels = Labels::parse_list(&identity.labels.join(","), "k8s").unwrap();
            repository.upsert_identity(NumericIdentity(identity.id), &labels);
        }
        let endpoints = self.node.client().endpoints(&[]).unwrap();
        let mut subjects: BTreeMap<u16, (u32, Labels, BTreeSet<NamedPort>)> = BTreeMap::new();
        for endpoint in &endpoints {
            let identity = endpoint.status.identity.as_ref().unwrap();
            let labels = Labels::parse_list(&identity.labels.join(","), "k8s").unwrap();
            let ports = endpoint.status.villus.named_ports.iter().map(|port| port.parse().unwrap()).collect();
            subjects.insert(endpoint.id, (identity.id, labels, ports));
        }
        for (identity, ..) in subjects.values() {
            let alike = subjects.values().filter(|(other, ..)| other == identity);
            let ports: BTreeSet<NamedPort> = alike.flat_map(|(_, _, ports)| ports).cloned().collect();
            repository.set_named_ports([(NumericIdentity(*identity), ports)]);
        }
        let entries = |labels: &Labels, ports: &BTreeSet<NamedPort>| {
            let policy = repository.endpoint_policy(&with_named_ports(labels, ports), usize::MAX).unwrap();
            policy.map_entries().map(|(key, entry)| (key, entry.flags)).collect()
        };
        subjects.iter().map(|(id, (_, labels, ports))| (*id, entries(labels, ports))).collect()
    }

    /// What the kernel holds, for each endpoint; nothing if a record does not name just the shapes of key that there are.
    fn held(&self) -> Option<BTreeMap<u16, BTreeMap<PolicyKey, u8>>> {
        let mut all = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let view = view_policy(&self.pins, &self.maps, endpoint.id).unwrap();
            let record = self.maps.endpoints.get(&endpoint.id.into()).unwrap()?;
            let exact = Shapes::load(&record) == Shapes::of(&view.entries);
            if view.is_misplaced() || !view.hand_made.is_empty() || !exact {
                return None;
            }
            let flags = view.entries.into_iter().map(|(key, entry)| (key, entry.flags));
            all.insert(endpoint.id, flags.collect());
        }
        Some(all)
    }

    fn check(&self) {
        let what = || format!("the maps are as compiled from nothing after {:#?}", self.done);
        eventually(&what(), || self.held().is_some_and(|there| there == self.compiled()));
    }
}

#[test]
fn maps_hold_what_is_compiled_from_nothing_whatever_became_of_the_node() {
    alone!();
    let seed = std::env::var("VILLUS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut run = Run::new(seed);
    let mut most = 0;
    for _ in 0..STEPS {
        run.step();
        run.check();
        most = run.held().iter().flat_map(BTreeMap::values).map(BTreeMap::len).fold(most, usize::max);
    }
    assert!(most > 20, "{:#?}", run.done);
    let report = run.node.client().verify(&villus_api::model::VerifyRequest::default()).unwrap();
    assert!(report.differences.is_empty(), "{report:?}");
}
