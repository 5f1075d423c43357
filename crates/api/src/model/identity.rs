//! Identities and the addresses that have them.

use serde::{Deserialize, Serialize};

use super::is_default;

/// A numeric identity and its labels.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Number.
    pub id: u32,
    /// Labels, `source:key[=value]`, sorted.
    pub labels: Vec<String>,
    /// SHA-256 of the sorted labels, hex.
    #[serde(rename = "labelsSHA256", skip_serializing_if = "String::is_empty")]
    pub labels_sha256: String,
    /// The named ports of its workloads, all together: `http=8080/TCP`.
    #[serde(rename = "named-ports", skip_serializing_if = "Vec::is_empty")]
    pub named_ports: Vec<String>,
    /// Only this node knows the number, until the store says which one the labels have.
    #[serde(skip_serializing_if = "is_default")]
    pub interim: bool,
}

/// An identity and how many endpoints of this node have it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentityEndpoints {
    /// The identity.
    pub identity: Identity,
    /// Endpoints of this node.
    #[serde(rename = "refCount")]
    pub ref_count: u64,
}

/// Query of lists that can be narrowed by labels.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelQuery {
    /// Labels separated by commas; all must be there.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: String,
}

impl LabelQuery {
    /// The labels one by one.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.labels.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect()
    }
}

/// Query of `GET /ip`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IpQuery {
    /// Only prefixes inside this one.
    #[serde(skip_serializing_if = "is_default")]
    pub cidr: String,
    /// Labels separated by commas that the identity has.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: String,
}

/// A prefix and the identity of its addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpListEntry {
    /// Prefix.
    pub cidr: String,
    /// Encryption key index.
    #[serde(rename = "encryptKey", skip_serializing_if = "is_default")]
    pub encrypt_key: u8,
    /// Node behind which the addresses live.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// Numeric identity.
    pub identity: u32,
    /// Where it comes from.
    #[serde(skip_serializing_if = "is_default")]
    pub metadata: IpMetadata,
}

/// Where the identity of an address comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpMetadata {
    /// Name of the pod or owner.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The source that won: `agent-local`, `kvstore`, …
    pub source: String,
    /// The prefix's addresses have identities of their own that may not have arrived.
    #[serde(skip_serializing_if = "is_default")]
    pub pending: bool,
    /// What it is pending for, where that is known: the identity that the entry names and nobody has told of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Only this node knows the identity, until the store says which number its labels have.
    #[serde(skip_serializing_if = "is_default")]
    pub interim: bool,
}
