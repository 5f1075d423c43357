//! The endpoint model.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::{Identity, Mac, is_default};

/// An endpoint: what is wanted (`spec`) and how it is (`status`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Id on this node.
    pub id: u16,
    /// What is wanted.
    #[serde(skip_serializing_if = "is_default")]
    pub spec: EndpointSpec,
    /// How it is.
    pub status: EndpointStatus,
}

/// What can be changed about an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointSpec {
    /// Labels added by people.
    #[serde(skip_serializing_if = "is_default")]
    pub label_configuration: LabelConfigurationSpec,
    /// Options of this endpoint, for example `PolicyAuditMode`.
    #[serde(skip_serializing_if = "is_default")]
    pub options: BTreeMap<String, String>,
}

/// Labels added by people.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelConfigurationSpec {
    /// Labels, `source:key[=value]`.
    pub user: Vec<String>,
}

/// How an endpoint is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointStatus {
    /// Names under which others know it.
    #[serde(skip_serializing_if = "is_default")]
    pub external_identifiers: ExternalIdentifiers,
    /// Its health.
    pub health: EndpointHealth,
    /// Its identity, once it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Its labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: LabelConfigurationStatus,
    /// What happened to it, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<EndpointLogEntry>,
    /// Interfaces and addresses.
    pub networking: EndpointNetworking,
    /// Its policy.
    #[serde(skip_serializing_if = "is_default")]
    pub policy: EndpointPolicyStatus,
    /// The spec that is in effect.
    #[serde(skip_serializing_if = "is_default")]
    pub realized: EndpointSpec,
    /// Where it is in its life.
    pub state: EndpointState,
    /// What Villus knows beyond Cilium's model.
    #[serde(skip_serializing_if = "is_default")]
    pub villus: EndpointVillus,
}

/// Where an endpoint is in its life (`agent` reference 5.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the field's")]
pub enum EndpointState {
    Restoring,
    #[default]
    WaitingForIdentity,
    WaitingToRegenerate,
    Regenerating,
    Ready,
    NotReady,
    Disconnecting,
    Disconnected,
    /// Beyond Cilium's states: an adopted device is gone, and the endpoint waits for it to come back.
    DeviceMissing,
    Invalid,
}

impl EndpointState {
    /// The state as tables print it: `waiting-for-identity`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restoring => "restoring",
            Self::WaitingForIdentity => "waiting-for-identity",
            Self::WaitingToRegenerate => "waiting-to-regenerate",
            Self::Regenerating => "regenerating",
            Self::Ready => "ready",
            Self::NotReady => "not-ready",
            Self::Disconnecting => "disconnecting",
            Self::Disconnected => "disconnected",
            Self::DeviceMissing => "device-missing",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names under which others know an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the field's")]
pub struct ExternalIdentifiers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_attachment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_endpoint_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_network_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_pod_name: Option<String>,
    /// `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
}

/// Health of an endpoint; each is `OK`, `Bootstrap`, `Pending`, `Warning`, `Failure` or `Disabled`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointHealth {
    /// Programs and maps.
    pub bpf: String,
    /// Policy.
    pub policy: String,
    /// Whether its interface is there and up.
    pub connected: bool,
    /// All together.
    #[serde(rename = "overallHealth")]
    pub overall_health: String,
}

/// The labels of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LabelConfigurationStatus {
    /// Labels that say nothing about its identity.
    pub derived: Vec<String>,
    /// Labels that were switched off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disabled: Vec<String>,
    /// Labels added by people.
    #[serde(skip_serializing_if = "is_default")]
    pub realized: LabelConfigurationSpec,
    /// Labels that make its identity.
    pub security_relevant: Vec<String>,
}

/// Something that happened to an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointLogEntry {
    /// `OK` or `Failure`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// State after it.
    pub state: EndpointState,
    /// When, RFC 3339.
    pub timestamp: String,
}

/// Interfaces and addresses of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointNetworking {
    /// Its addresses, in pairs.
    pub addressing: Vec<Addressing>,
    /// MAC of the host side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<Mac>,
    /// Index of the host-side interface.
    pub interface_index: u32,
    /// Name of the host-side interface.
    pub interface_name: String,
    /// Name of the interface inside the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_interface_name: Option<String>,
    /// MAC of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

impl EndpointNetworking {
    /// The addressing of any number of addresses: pairs while both families last.
    #[must_use]
    pub fn pairs(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Addressing> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        (0..v4.len().max(v6.len()))
            .map(|i| Addressing { ipv4: v4.get(i).copied(), ipv6: v6.get(i).copied() })
            .collect()
    }
}

/// One address of each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Addressing {
    /// IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

/// Which directions policy is enforced for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the field's")]
pub enum PolicyEnabled {
    #[default]
    None,
    Ingress,
    Egress,
    Both,
    AuditIngress,
    AuditEgress,
    AuditBoth,
}

impl PolicyEnabled {
    /// The value for the directions with default deny and those that are audited, ingress first. Where one direction is
    /// enforced and the other audited, it names the enforced one: [`EndpointVillus::audited`] names the other.
    #[must_use]
    pub const fn new(default_deny: [bool; 2], audited: [bool; 2]) -> Self {
        let ingress = (default_deny[0], audited[0]);
        let egress = (default_deny[1], audited[1]);
        match (ingress, egress) {
            ((true, false), (true, false)) => Self::Both,
            ((true, false), _) => Self::Ingress,
            (_, (true, false)) => Self::Egress,
            ((true, true), (true, true)) => Self::AuditBoth,
            ((true, true), _) => Self::AuditIngress,
            (_, (true, true)) => Self::AuditEgress,
            _ => Self::None,
        }
    }
}

/// The policy of an endpoint: wanted and in effect.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointPolicyStatus {
    /// In effect.
    pub realized: EndpointPolicy,
    /// Wanted.
    pub spec: EndpointPolicy,
}

/// The policy of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointPolicy {
    /// Identities that may reach it on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_ingress_identities: Vec<u32>,
    /// Identities that it may reach on some port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_egress_identities: Vec<u32>,
    /// Identities that may not reach it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_ingress_identities: Vec<u32>,
    /// Identities that it may not reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_egress_identities: Vec<u32>,
    /// Its numeric identity.
    pub id: u32,
    /// Number of the computation.
    pub build: u64,
    /// Enforced directions.
    pub policy_enabled: PolicyEnabled,
    /// Revision of the rules that went in.
    pub policy_revision: u64,
}

/// What Villus knows of an endpoint beyond Cilium's model.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EndpointVillus {
    /// Network namespace: a name below `/run/netns` or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The name its addresses belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The addresses stay with the owner when the endpoint goes.
    #[serde(skip_serializing_if = "is_default")]
    pub sticky: bool,
    /// The interface was there before and stays when the endpoint goes.
    #[serde(skip_serializing_if = "is_default")]
    pub adopted: bool,
    /// `tcx` or `tc`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub attach_mode: String,
    /// How packets are handed over: `peer`, `device` or `stack`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub delivery: String,
    /// Largest layer-3 packet; 0 is not known.
    #[serde(skip_serializing_if = "is_default")]
    pub mtu: u32,
    /// Ports by name, `http=80/TCP`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<String>,
    /// Name of its policy map below `tc/globals`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_map: String,
    /// Entries of that map and how many it can hold.
    #[serde(skip_serializing_if = "is_default")]
    pub policy_entries: (u32, u32),
    /// Entries put in by hand, which the agent keeps.
    #[serde(skip_serializing_if = "is_default")]
    pub hand_made_entries: u32,
    /// The agent's hands are off its policy map.
    #[serde(skip_serializing_if = "is_default")]
    pub held: bool,
    /// Directions in which policy would deny by default, and what it denies passes and is reported: `ingress`, `egress`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<String>,
    /// What is not as it should be, each with what mends it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The answer to a deletion.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointDeleted {
    /// Ids that are gone.
    pub deleted: Vec<u16>,
    /// What could not be removed; the rest is gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}
