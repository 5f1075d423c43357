//! The JSON that says where a node is and which addresses live on it (reference `kvstore` 1.4).

mod cidr;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::keys::{self, join_key};

/// The largest value that is read; one of a node has some hundred bytes.
const MAX: usize = 256 << 10;
/// Numeric identity of a node as others see it; older agents read it here.
const REMOTE_NODE: u32 = 6;

/// Value of a key below [`keys::NODES`]. Field names are those of Cilium's type, to the letter; what a later version
/// adds is left out when it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeEntry {
    /// Its name.
    pub name: String,
    /// Name of its cluster.
    #[serde(default)]
    pub cluster: String,
    /// Its addresses, the one that it is known by first among those of its kind and family.
    #[serde(rename = "IPAddresses", default, deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
    /// The prefix that its endpoints get IPv4 addresses of.
    #[serde(rename = "IPv4AllocCIDR", default, with = "cidr::one")]
    pub ipv4: Option<Ipv4Net>,
    /// Further such prefixes.
    #[serde(rename = "IPv4SecondaryAllocCIDRs", default, with = "cidr::many")]
    pub more_ipv4: Vec<Ipv4Net>,
    /// The prefix that its endpoints get IPv6 addresses of.
    #[serde(rename = "IPv6AllocCIDR", default, with = "cidr::one")]
    pub ipv6: Option<Ipv6Net>,
    /// Further such prefixes.
    #[serde(rename = "IPv6SecondaryAllocCIDRs", default, with = "cidr::many")]
    pub more_ipv6: Vec<Ipv6Net>,
    /// Where its health is asked.
    #[serde(rename = "IPv4HealthIP", default, with = "crate::maybe")]
    pub health_v4: Option<Ipv4Addr>,
    /// Where its health is asked.
    #[serde(rename = "IPv6HealthIP", default, with = "crate::maybe")]
    pub health_v6: Option<Ipv6Addr>,
    /// Source of what an ingress of it sends.
    #[serde(rename = "IPv4IngressIP", default, with = "crate::maybe")]
    pub ingress_v4: Option<Ipv4Addr>,
    /// Source of what an ingress of it sends.
    #[serde(rename = "IPv6IngressIP", default, with = "crate::maybe")]
    pub ingress_v6: Option<Ipv6Addr>,
    /// Id of its cluster.
    #[serde(rename = "ClusterID", default)]
    pub cluster_id: u32,
    /// Who wrote it, by the name of a source.
    #[serde(default)]
    pub source: String,
    /// Index of the encryption key, 0 for none.
    #[serde(default)]
    pub encryption_key: u8,
    /// Its labels.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// Its identity as others see it; 0 where nobody says.
    #[serde(default)]
    pub node_identity: u32,
    /// Its key of WireGuard.
    #[serde(rename = "WireguardPubKey", default)]
    pub wireguard_key: String,
    /// Tells one boot of it from another.
    #[serde(rename = "BootID", default)]
    pub boot_id: String,
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// What it is for.
    pub kind: AddressKind,
    /// The address.
    pub ip: IpAddr,
}

/// What an address of a node is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// Other nodes reach it by this: underlay of tunnels, next hop of its prefixes.
    Internal,
    /// Others reach it by this.
    External,
    /// The gateway of its endpoints.
    Router,
    /// Another, by the name that its writer gave it.
    Other(String),
}

/// Why a key and its value were refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NodeError {
    /// Not JSON, or not of this shape.
    #[error("`{key}`: the value can't be read: {reason}")]
    Json {
        /// The key.
        key: String,
        /// What the parser said.
        reason: String,
    },
    /// Far larger than any node.
    #[error("`{key}`: the value has {size} bytes; one of a node has at most {MAX}")]
    TooLarge {
        /// The key.
        key: String,
        /// Its bytes.
        size: usize,
    },
    /// Key and value speak of different nodes.
    #[error("`{key}`: the value is for `{value}`; key and value must name the same node")]
    KeyDiffers {
        /// The key.
        key: String,
        /// What the value's key would end in.
        value: String,
    },
    /// The key is not one of a node.
    #[error("`{key}` is not `{}/<cluster>/<node>`", keys::NODES)]
    BadKey {
        /// The key.
        key: String,
    },
}

// === impl NodeEntry ===

impl NodeEntry {
    /// A node of which nothing else is known.
    pub fn new(cluster: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            node_identity: REMOTE_NODE,
            ..Self::default()
        }
    }

    /// Reads the value of `key` and checks that both speak of the same node.
    ///
    /// # Errors
    /// When the key has another shape, the value is not JSON of this kind, or they differ.
    pub fn read(key: &str, value: &[u8]) -> Result<Self, NodeError> {
        let (cluster, name) = split_key(key)?;
        if value.len() > MAX {
            return Err(NodeError::TooLarge { key: key.to_owned(), size: value.len() });
        }
        let entry: Self = serde_json::from_slice(value)
            .map_err(|error| NodeError::Json { key: key.to_owned(), reason: error.to_string() })?;
        if (entry.cluster.as_str(), entry.name.as_str()) != (cluster, name) {
            let value = format!("{}/{}", entry.cluster, entry.name);
            return Err(NodeError::KeyDiffers { key: key.to_owned(), value });
        }
        Ok(entry)
    }

    /// The key.
    pub fn key(&self) -> String {
        join_key([keys::NODES, &self.cluster, &self.name])
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Strings, numbers, maps of them and lists only: this can't fail, and an empty value would be refused by readers.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// All prefixes of its endpoints, the first one of each family before further ones.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.ipv4.iter().chain(&self.more_ipv4).map(|net| IpNet::V4(net.trunc()));
        v4.chain(self.ipv6.iter().chain(&self.more_ipv6).map(|net| IpNet::V6(net.trunc())))
    }

    /// The address of a family by which other nodes reach it: an internal one, else an external one.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.of_kind(&AddressKind::Internal, ipv4).or_else(|| self.of_kind(&AddressKind::External, ipv4))
    }

    /// The gateway of its endpoints of a family.
    pub fn router(&self, ipv4: bool) -> Option<IpAddr> {
        self.of_kind(&AddressKind::Router, ipv4)
    }

    fn of_kind(&self, kind: &AddressKind, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().find(|a| a.kind == *kind && a.ip.is_ipv4() == ipv4).map(|address| address.ip)
    }
}

/// Cluster and name in the key of a node.
///
/// # Errors
/// The key has another shape.
pub fn split_key(key: &str) -> Result<(&str, &str), NodeError> {
    let rest = key.strip_prefix(keys::NODES).and_then(|rest| rest.strip_prefix('/'));
    let parts = rest.and_then(|rest| rest.split_once('/'));
    parts
        .filter(|(cluster, name)| !cluster.is_empty() && !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| NodeError::BadKey { key: key.to_owned() })
}

// === impl NodeAddress ===

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "IP")]
    ip: IpAddr,
}

impl Serialize for NodeAddress {
    fn serialize<S: Serializer>(&self, ser: S) -> Result<S::Ok, S::Error> {
        Wire { kind: self.kind.name().to_owned(), ip: self.ip }.serialize(ser)
    }
}

impl<'de> Deserialize<'de> for NodeAddress {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let Wire { kind, ip } = Wire::deserialize(de)?;
        Ok(Self { kind: AddressKind::of_name(kind), ip })
    }
}

// === impl AddressKind ===

impl AddressKind {
    const INTERNAL: &str = "InternalIP";
    const EXTERNAL: &str = "ExternalIP";
    const ROUTER: &str = "CiliumInternalIP";

    /// The name in the store.
    pub fn name(&self) -> &str {
        match self {
            Self::Internal => Self::INTERNAL,
            Self::External => Self::EXTERNAL,
            Self::Router => Self::ROUTER,
            Self::Other(name) => name,
        }
    }

    fn of_name(name: String) -> Self {
        match name.as_str() {
            Self::INTERNAL => Self::Internal,
            Self::EXTERNAL => Self::External,
            Self::ROUTER => Self::Router,
            _ => Self::Other(name),
        }
    }
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(de)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "cilium/state/nodes/v1/cluster1/node1";
    /// As an agent of 1.10 writes it.
    const OLD: &str = r#"{"Name":"node1","Cluster":"cluster1","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.10"},{"Type":"CiliumInternalIP","IP":"10.3.192.1"},{"Type":"Hostname","IP":"10.3.9.11"}],"IPv4AllocCIDR":{"IP":"10.3.192.0","Mask":"////AA=="},"IPv6AllocCIDR":null,"IPv4HealthIP":"10.3.192.77","IPv6HealthIP":"","ClusterID":238,"Source":"local","EncryptionKey":0,"Labels":{"rack":"7"},"NodeIdentity":6,"WireguardPubKey":""}"#;

    #[test]
    fn the_value_of_an_older_agent_is_read() {
        let node = NodeEntry::read(KEY, OLD.as_bytes()).unwrap();
        assert_eq!(node.key(), KEY);
        assert_eq!((node.cluster_id, node.node_identity, node.labels["rack"].as_str()), (238, 6, "7"));
        assert_eq!(node.address(true), Some("10.3.9.10".parse().unwrap()));
        assert_eq!(node.router(true), Some("10.3.192.1".parse().unwrap()));
        assert_eq!((node.address(false), node.router(false)), (None, None));
        let ranges: Vec<String> = node.ranges().map(|range| range.to_string()).collect();
        assert_eq!(ranges, ["10.3.192.0/24"]);
        assert_eq!(node.addresses[2].kind, AddressKind::Other("Hostname".into()));
    }

    #[test]
    fn prefixes_are_objects_when_written_and_texts_are_read_too() {
        let text = r#"{"Name":"node1","Cluster":"cluster1","IPv4AllocCIDR":"10.3.192.0/24","IPv4SecondaryAllocCIDRs":["10.4.0.0/16",{"IP":"10.5.0.0","Mask":"//8AAA=="}],"IPv6AllocCIDR":"fd00::/112","IPv6SecondaryAllocCIDRs":null,"IPAddresses":null,"Labels":null,"Later":[{"a":1}]}"#;
        let node = NodeEntry::read(KEY, text.as_bytes()).unwrap();
        let ranges: Vec<String> = node.ranges().map(|range| range.to_string()).collect();
        assert_eq!(ranges, ["10.3.192.0/24", "10.4.0.0/16", "10.5.0.0/16", "fd00::/112"]);
        let written = node.to_json();
        assert!(written.contains(r#""IPv4AllocCIDR":{"IP":"10.3.192.0","Mask":"////AA=="}"#), "{written}");
        assert!(written.contains(r#""IPv4SecondaryAllocCIDRs":[{"IP":"10.4.0.0","Mask":"//8AAA=="}"#));
        assert!(written.contains(r#""IPv6SecondaryAllocCIDRs":null"#), "{written}");
        assert!(written.contains(r#""Mask":"//////////////////8AAA==""#), "{written}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_key() {
        let with = |from: &str, to: &str| OLD.replace(from, to);
        for (key, value, part) in [
            ("cilium/state/nodes/v1/cluster1/node2", OLD.to_owned(), "cluster1/node1"),
            ("cilium/state/nodes/v1/cluster2/node1", OLD.to_owned(), "cluster1/node1"),
            ("cilium/state/nodes/v1/node1", OLD.to_owned(), "<cluster>/<node>"),
            ("cilium/state/nodes/v1/cluster1/a/b", OLD.to_owned(), "<cluster>/<node>"),
            ("cilium/state/ip/v1/default/1.1.1.1", OLD.to_owned(), "<cluster>/<node>"),
            (KEY, "{".to_owned(), "can't be read"),
            (KEY, "[]".to_owned(), "can't be read"),
            (KEY, with("10.3.9.10", "10.3.9"), "can't be read"),
            (KEY, with("////AA==", "//8="), "mask"),
            (KEY, with("////AA==", "AP8A/w=="), "mask"),
            (KEY, with(r#""IP":"10.3.192.0""#, r#""IP":"fd00::""#), "mask"),
            (KEY, with("\"ClusterID\":238", "\"ClusterID\":-1"), "can't be read"),
            (KEY, " ".repeat(MAX + 1), "bytes"),
        ] {
            let error = NodeEntry::read(key, value.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(key), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 500 / 256) })]

        #[test]
        fn no_bytes_panic(key in ".{0,60}", value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = NodeEntry::read(&key, &value);
            let _ = NodeEntry::read(KEY, &value);
        }

        #[test]
        fn no_json_of_any_shape_panics(at in 0..OLD.len(), with in "[\"{}:,0-9a-z/=]{0,4}") {
            let mut text = OLD.to_owned();
            text.replace_range(at..at + 1, &with);
            let _ = NodeEntry::read(KEY, text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            ips in prop::collection::vec((any::<IpAddr>(), "[A-Za-z]{0,12}"), 0..4),
            v4 in prop::option::of((any::<Ipv4Addr>(), 0u8..=32)),
            v6 in prop::collection::vec((any::<Ipv6Addr>(), 0u8..=128), 0..3),
            cluster_id: u32,
            labels in prop::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
        ) {
            let address = |(ip, kind)| NodeAddress { ip, kind: AddressKind::of_name(kind) };
            let entry = NodeEntry {
                addresses: ips.into_iter().map(address).collect(),
                ipv4: v4.map(|(ip, len)| Ipv4Net::new(ip, len).unwrap().trunc()),
                more_ipv6: v6.into_iter().map(|(ip, len)| Ipv6Net::new(ip, len).unwrap().trunc()).collect(),
                cluster_id,
                labels,
                ..NodeEntry::new("cluster1", "node1")
            };
            prop_assert_eq!(NodeEntry::read(KEY, entry.to_json().as_bytes()).unwrap(), entry);
        }
    }
}
