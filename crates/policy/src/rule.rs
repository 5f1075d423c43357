//! Policies as their authors wrote them: read and checked, nothing derived yet.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use villus_abi::Direction;
use villus_labels::{Label, Labels, Selector};

use crate::{Audit, Position, Problem, Referent};

/// The kinds of objects that are read: policies, and what they refer to by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// In a namespace; selects its pods only.
    CiliumNetworkPolicy,
    /// In no namespace.
    CiliumClusterwideNetworkPolicy,
    /// Of Kubernetes itself: in a namespace; selects its pods only, and can only allow.
    NetworkPolicy,
    /// Prefixes under a name; in no namespace.
    CiliumCidrGroup,
    /// A service of Kubernetes: which pods it has, or none where its backends are written down.
    Service,
    /// The backends of the service of the same name.
    Endpoints,
    /// Some backends of a service.
    EndpointSlice,
}

impl Kind {
    /// As in the object's `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumCidrGroup => "CiliumCIDRGroup",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// Whether objects of this kind are policies.
    #[must_use]
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy | Self::NetworkPolicy)
    }

    /// Whether objects of this kind are in a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::CiliumClusterwideNetworkPolicy | Self::CiliumCidrGroup)
    }
}

impl Serialize for Kind {
    /// As in the object's `kind`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What one object is known by. Of objects of one kind, namespace and name that several
/// origins hold, the one counts whose origin sorts first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; none for a clusterwide one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
    /// Where it came from: a file, `api`, `k8s`, …
    pub origin: Arc<str>,
}

impl fmt::Display for ObjectKey {
    /// `CiliumNetworkPolicy default/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
            None => write!(f, "{} {}", self.kind.name(), self.name),
        }
    }
}

/// One policy object: `spec` and all of `specs`.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// What it is known by.
    pub key: ObjectKey,
    /// The label of its namespace, `k8s:io.kubernetes.pod.namespace=…`; none for a clusterwide one.
    pub namespace: Option<Label>,
    /// In which directions it is audited: what it would deny passes and is reported ([`crate::AUDIT_ANNOTATION`]).
    pub audit: Audit,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// The object as JSON, its namespace filled in, its status left out.
    pub object: ObjectText,
}

/// An object as JSON, kept as text, which takes a tenth of what its tree would.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectText {
    text: Arc<str>,
    uid: Option<Arc<str>>,
}

impl ObjectText {
    /// The text, on one line.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The tree.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }
}

impl From<serde_json::Value> for ObjectText {
    fn from(tree: serde_json::Value) -> Self {
        let uid = tree.pointer("/metadata/uid").and_then(|uid| uid.as_str()).map(Arc::from);
        Self { text: tree.to_string().into(), uid }
    }
}

impl Serialize for ObjectText {
    /// The tree.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl Policy {
    /// The labels of the policy itself, by which it can be found and deleted.
    #[must_use]
    pub fn labels(&self) -> Labels {
        let mut labels = Labels::default();
        for (key, value) in [
            ("derived-from", Some(self.key.kind.name())),
            ("name", Some(&*self.key.name)),
            ("namespace", self.key.namespace.as_deref()),
            ("uid", self.object.uid()),
        ] {
            if let Some(value) = value
                && let Ok(label) = Label::new("k8s", &format!("io.cilium.k8s.policy.{key}"), value)
            {
                labels = labels.with(label);
            }
        }
        self.rules
            .iter()
            .flat_map(|rule| &rule.labels)
            .fold(labels, |labels, label| labels.with(label.clone()))
    }
}

impl Policy {
    /// Whether it refers to something by name: groups of prefixes, services, named ports.
    #[must_use]
    pub fn refers(&self) -> bool {
        let named = |transport: &Transport| matches!(transport, Transport::Named { .. });
        let grouped = |set: &PrefixSet| !matches!(set.base, PrefixBase::Prefix(_));
        self.rules.iter().flat_map(Rule::elements).any(|(.., element)| {
            element.services.is_some()
                || element.prefix_sets.iter().flatten().any(grouped)
                || element.transport.iter().flatten().any(named)
        })
    }
}

impl Serialize for Policy {
    /// The object.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

/// What a file held, none of it refused.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ParsedFile {
    /// The policies, in the file's order.
    pub policies: Vec<Policy>,
    /// What policies refer to by name.
    pub referents: Vec<Referent>,
    /// What their authors may want to know.
    pub warnings: Vec<Problem>,
}

/// One `spec`.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// `spec` or `specs[1]`.
    pub path: Arc<str>,
    /// Where it stands.
    pub position: Option<Position>,
    /// `endpointSelector` or `nodeSelector`, as written.
    pub subject: SubjectSelector,
    /// `ingress`.
    pub ingress: Option<Vec<Element>>,
    /// `egress`.
    pub egress: Option<Vec<Element>>,
    /// `ingressDeny`.
    pub ingress_deny: Option<Vec<Element>>,
    /// `egressDeny`.
    pub egress_deny: Option<Vec<Element>>,
    /// `enableDefaultDeny`: ingress, egress.
    pub default_deny: [Option<bool>; 2],
    /// `labels`.
    pub labels: Labels,
    /// `description`.
    pub description: Option<String>,
}

impl Rule {
    /// Its elements, with their direction and whether they deny.
    pub fn elements(&self) -> impl Iterator<Item = (Direction, bool, &Element)> {
        [
            (Direction::Ingress, false, &self.ingress),
            (Direction::Ingress, true, &self.ingress_deny),
            (Direction::Egress, false, &self.egress),
            (Direction::Egress, true, &self.egress_deny),
        ]
        .into_iter()
        .flat_map(|(direction, deny, section)| {
            section.iter().flatten().map(move |element| (direction, deny, element))
        })
    }
}

/// Whom a rule is about, as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubjectSelector {
    /// `endpointSelector`: workloads, never the node itself.
    Endpoints(Selector),
    /// `nodeSelector`: the host endpoint of nodes with these labels.
    Nodes(Selector),
}

impl SubjectSelector {
    /// What it asks of labels.
    #[must_use]
    pub const fn selector(&self) -> &Selector {
        match self {
            Self::Endpoints(selector) | Self::Nodes(selector) => selector,
        }
    }
}

/// One element of a direction's section. `None` is a field that is absent; an empty list is not.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Element {
    /// `spec.ingress[0]`.
    pub path: Arc<str>,
    /// Where it stands.
    pub position: Option<Position>,
    /// `fromEndpoints`, `toEndpoints`, as written.
    pub endpoints: Option<Vec<Selector>>,
    /// `fromRequires`, `toRequires`, as written: what every endpoint that some rule names as a peer must meet too.
    pub requires: Option<Vec<Selector>>,
    /// `fromNodes`, `toNodes`, as written.
    pub nodes: Option<Vec<Selector>>,
    /// `fromEntities`, `toEntities`.
    pub entities: Option<Vec<Entity>>,
    /// `fromCIDR`, `toCIDR`.
    pub prefixes: Option<Vec<IpNet>>,
    /// `fromCIDRSet`, `toCIDRSet`.
    pub prefix_sets: Option<Vec<PrefixSet>>,
    /// `toServices`.
    pub services: Option<Vec<ServiceRef>>,
    /// `toPorts` or `icmps`, absent when empty.
    pub transport: Option<Vec<Transport>>,
}

impl Element {
    /// Whether it has a field that names peers, be its list empty or not.
    #[must_use]
    pub const fn names_peers(&self) -> bool {
        self.endpoints.is_some()
            || self.requires.is_some()
            || self.nodes.is_some()
            || self.entities.is_some()
            || self.prefixes.is_some()
            || self.prefix_sets.is_some()
            || self.services.is_some()
    }
}

/// Prefixes without some prefixes inside them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixSet {
    /// The prefixes.
    pub base: PrefixBase,
    /// What is not meant.
    pub except: Vec<IpNet>,
}

/// Where the prefixes of a [`PrefixSet`] are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PrefixBase {
    /// `cidr`: here. What is excepted lies inside.
    Prefix(IpNet),
    /// `cidrGroupRef`: in the CiliumCIDRGroup of this name, as soon as there is one.
    Group(Arc<str>),
    /// `cidrGroupSelector`: in every CiliumCIDRGroup with such labels.
    Groups(Selector),
}

/// One item of `toServices`: services, and by them their backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceRef {
    /// Services of this namespace; of any where there is none.
    pub namespace: Option<Arc<str>>,
    /// Which of them.
    pub which: ServiceBase,
}

/// How a [`ServiceRef`] names its services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceBase {
    /// `k8sService`: by name.
    Name(Arc<str>),
    /// `k8sServiceSelector`: by labels.
    Labels(Selector),
}

/// What an element asks of the transport.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// Ports `first` to `last` of a protocol; `0` to `0` is all.
    Ports {
        /// The protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// The port that a workload has under this name: the subject's own in ingress, the peer's in egress.
    Named {
        /// The protocol.
        protocol: Protocol,
        /// The name, in lower case.
        name: Arc<str>,
    },
    /// One ICMP type.
    Icmp {
        /// ICMPv6.
        v6: bool,
        /// The type.
        kind: u8,
    },
}

/// The protocols of `toPorts`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// With a port: TCP, UDP and SCTP. Without: everything.
    Any,
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
    /// 1.
    Icmp,
    /// 58.
    Icmpv6,
    /// One that has no ports: 2, 50, 51 or 112.
    Other(u8),
}

macro_rules! entities {
    ($($name:literal => $variant:ident, $doc:literal;)+) => {
        /// Peers that have a name of their own (reference `policy` 3.3).
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Entity { $(#[doc = $doc] $variant,)+ }

        impl Entity {
            /// The names, as policies write them.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The entity of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

entities! {
    "all" => All, "Everybody.";
    "world" => World, "All that is outside.";
    "world-ipv4" => WorldIpv4, "All that is outside and has an IPv4 address.";
    "world-ipv6" => WorldIpv6, "All that is outside and has an IPv6 address.";
    "cluster" => Cluster, "This cluster: nodes and endpoints.";
    "cluster-mesh" => ClusterMesh, "All joined clusters: nodes and endpoints.";
    "host" => Host, "The node itself.";
    "remote-node" => RemoteNode, "The other nodes.";
    "kube-apiserver" => KubeApiserver, "The API server of Kubernetes.";
    "ingress" => Ingress, "Ingress proxies.";
    "init" => Init, "Endpoints whose labels are not known yet.";
    "health" => Health, "Health endpoints.";
    "unmanaged" => Unmanaged, "Endpoints that nobody manages.";
    "none" => None, "Nobody.";
}
