//! Policies as their authors wrote them: read and checked, nothing derived yet.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use villus_labels::{Label, Labels, Selector};

use crate::{Position, Problem};

/// The kinds of policy objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub enum Kind {
    /// In a namespace; selects its pods only.
    CiliumNetworkPolicy,
    /// In no namespace.
    CiliumClusterwideNetworkPolicy,
}

impl Kind {
    /// As in the object's `kind`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        }
    }
}

/// What one policy object is known by. Two sources may hold objects of one name; both count.
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
    /// Its rules.
    pub rules: Vec<Rule>,
    /// The object as JSON, its namespace filled in, its status left out.
    pub object: serde_json::Value,
}

impl Policy {
    /// The labels of the policy itself, by which it can be found and deleted.
    #[must_use]
    pub fn labels(&self) -> Labels {
        let mut labels = Labels::default();
        let uid = self.object.pointer("/metadata/uid").and_then(|uid| uid.as_str());
        for (key, value) in [
            ("derived-from", Some(self.key.kind.name())),
            ("name", Some(&*self.key.name)),
            ("namespace", self.key.namespace.as_deref()),
            ("uid", uid),
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
    /// `endpointSelector`, as written.
    pub subject: Selector,
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

/// One element of a direction's section. `None` is a field that is absent; an empty list is not.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Element {
    /// `spec.ingress[0]`.
    pub path: Arc<str>,
    /// Where it stands.
    pub position: Option<Position>,
    /// `fromEndpoints`, `toEndpoints`, as written.
    pub endpoints: Option<Vec<Selector>>,
    /// `fromEntities`, `toEntities`.
    pub entities: Option<Vec<Entity>>,
    /// `fromCIDR`, `toCIDR`.
    pub prefixes: Option<Vec<IpNet>>,
    /// `fromCIDRSet`, `toCIDRSet`.
    pub prefix_sets: Option<Vec<PrefixSet>>,
    /// `toPorts` or `icmps`, absent when empty.
    pub transport: Option<Vec<Transport>>,
}

/// A prefix without some prefixes inside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixSet {
    /// The prefix.
    pub prefix: IpNet,
    /// What is not meant; each lies inside.
    pub except: Vec<IpNet>,
}

/// What an element asks of the transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
