//! What a resource is: its name and what somebody says of it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use villus_labels::Labels;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 253;
/// Most addresses of one resource: all its keys fit one transaction twice, old and new.
pub const MAX_ADDRESSES: usize = 16;
/// Most labels of one resource.
pub const MAX_LABELS: usize = 64;
/// Shortest and longest time to live.
pub const TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10 * 365 * 86_400));

/// What kind of thing it is. Nothing follows from it but what people see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A virtual machine.
    Vm,
    /// A machine without an agent.
    Baremetal,
    /// A pod of another network or another cluster.
    Pod,
    /// Anything else that has addresses.
    #[default]
    Other,
}

/// Behind what it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The node with this address.
    Host(IpAddr),
    /// The node of this cluster with this name.
    Node(String),
}

/// What somebody says of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its addresses, at least one.
    pub addresses: BTreeSet<IpAddr>,
    /// Its labels as they were written, each with a source.
    pub labels: Labels,
    /// The node behind which it lives, if it lives behind one: there its packets are sent where nodes tunnel.
    pub place: Option<Place>,
    /// How long it stays without being said again; for ever if not given.
    pub ttl: Option<Duration>,
}

/// A resource as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, unique among the resources of a cluster.
    pub name: String,
    /// What is said of it.
    pub spec: Spec,
}

// === impl Kind ===

impl Kind {
    /// All kinds, by their names.
    pub const NAMES: [(&str, Self); 4] =
        [("vm", Self::Vm), ("baremetal", Self::Baremetal), ("pod", Self::Pod), ("other", Self::Other)];

    /// The kind of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("other", |(name, _)| name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a name can't be the name of a resource, and what to write.
pub(crate) fn check_name(name: &str) -> Result<(), (String, &'static str)> {
    const FIX: &str =
        "write up to 253 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends";
    if name.is_empty() {
        return Err(("is empty".to_owned(), FIX));
    }
    if name.len() > MAX_NAME {
        return Err((format!("has {} characters, at most {MAX_NAME}", name.len()), FIX));
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        return Err((format!("holds `{}`", c.escape_debug()), FIX));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(("begins or ends with a sign".to_owned(), FIX));
    }
    Ok(())
}

/// Why nobody outside can have the address.
pub(crate) fn check_address(address: IpAddr) -> Result<(), &'static str> {
    let odd = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some() || is_compatible(v6),
    };
    if address.is_unspecified() {
        Err("is the unspecified address")
    } else if address.is_loopback() {
        Err("is a loopback address")
    } else if address.is_multicast() {
        Err("is a multicast address")
    } else if odd {
        Err("is link-local, broadcast or written as an address of the other family")
    } else {
        Ok(())
    }
}

/// `::/96`, the old form of IPv4 addresses.
fn is_compatible(address: Ipv6Addr) -> bool {
    address.segments()[..6] == [0; 6]
}

/// Why a time to live is none.
pub(crate) fn check_ttl(ttl: Duration) -> Result<(), String> {
    if ttl < TTL.0 || ttl > TTL.1 {
        return Err("is not between 10s and ten years".to_owned());
    }
    Ok(())
}
