use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Label, Labels, source};

/// A number that stands for a set of labels. 24 bits travel on the wire; the top 8 bits are the scope.
///
/// Numbers and names: reference `kvstore` 1.7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumericIdentity(pub u32);

/// How far an identity is known: top 8 bits of its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Known to every cluster.
    Global,
    /// Known to this node only: prefixes.
    Local,
    /// Known to this node only: other nodes.
    RemoteNode,
    /// A scope nobody has defined.
    Other(u8),
}

/// How many clusters may be joined; it decides how many identities each has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MaxConnectedClusters {
    /// 255 clusters of 65,536 identities.
    #[default]
    C255,
    /// 511 clusters of 32,768 identities.
    C511,
}

/// A number that can't be used as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Cluster id beyond the number of clusters.
    #[error(
        "cluster-id {id} is not in 0..={max}; choose one in that range or raise max-connected-clusters to 511"
    )]
    ClusterId {
        /// The id asked for.
        id: u32,
        /// The largest one.
        max: u32,
    },
    /// max-connected-clusters is neither 255 nor 511.
    #[error("max-connected-clusters is {0}; it must be 255 or 511")]
    MaxConnectedClusters(u32),
    /// Not a number and not a reserved name.
    #[error("`{0}` is neither an identity number nor the name of a reserved identity")]
    NotAnIdentity(String),
}

/// Names by number; 0 to 10.
const RESERVED_NAMES: [&str; 11] = [
    "unknown",
    "host",
    "world",
    "unmanaged",
    "health",
    "init",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "world-ipv4",
    "world-ipv6",
];

impl NumericIdentity {
    /// Nothing is known; in policy maps: any identity.
    pub const UNKNOWN: Self = Self(0);
    /// The node itself.
    pub const HOST: Self = Self(1);
    /// All that is outside.
    pub const WORLD: Self = Self(2);
    /// An endpoint of the cluster that nobody manages.
    pub const UNMANAGED: Self = Self(3);
    /// The health endpoint.
    pub const HEALTH: Self = Self(4);
    /// An endpoint whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Another node.
    pub const REMOTE_NODE: Self = Self(6);
    /// The API server of Kubernetes.
    pub const KUBE_APISERVER: Self = Self(7);
    /// An ingress proxy.
    pub const INGRESS: Self = Self(8);
    /// All that is outside, IPv4; only where both families are told apart.
    pub const WORLD_IPV4: Self = Self(9);
    /// All that is outside, IPv6; only where both families are told apart.
    pub const WORLD_IPV6: Self = Self(10);
    /// First of the numbers that an operator may fix (`fixed-identity-mapping`).
    pub const USER_RESERVED_MIN: Self = Self(128);
    /// First number that is allocated in a cluster without id.
    pub const ALLOCATED_MIN: Self = Self(256);
    /// Bits of [`Scope::Local`].
    pub const SCOPE_LOCAL: u32 = 1 << 24;
    /// Bits of [`Scope::RemoteNode`].
    pub const SCOPE_REMOTE_NODE: u32 = 2 << 24;
    /// The numbers of [`Scope::Local`]; the last of them are [`Self::INTERIM_RANGE`].
    pub const LOCAL_RANGE: RangeInclusive<u32> = (Self::SCOPE_LOCAL | 1)..=(Self::SCOPE_LOCAL | 0x00ff_ffff);
    /// The last numbers of [`Scope::Local`]: workloads of this node whose labels have no number of the cluster yet.
    pub const INTERIM_RANGE: RangeInclusive<u32> =
        (Self::SCOPE_LOCAL | 0x00ff_0000)..=(Self::SCOPE_LOCAL | 0x00ff_ffff);

    /// The numbers of [`Scope::RemoteNode`].
    pub const REMOTE_NODE_RANGE: RangeInclusive<u32> =
        (Self::SCOPE_REMOTE_NODE | 1)..=(Self::SCOPE_REMOTE_NODE | 0x00ff_ffff);

    /// The reserved identities with their names, but 0.
    pub fn reserved() -> impl Iterator<Item = (Self, &'static str)> {
        (0..).map(Self).zip(RESERVED_NAMES).skip(1)
    }

    /// The name of a reserved identity: `host`, `world`, …; `unknown` for 0.
    #[must_use]
    pub fn reserved_name(self) -> Option<&'static str> {
        RESERVED_NAMES.get(usize::try_from(self.0).ok()?).copied()
    }

    /// The reserved identity of this name.
    #[must_use]
    pub fn from_reserved_name(name: &str) -> Option<Self> {
        (0..).map(Self).zip(RESERVED_NAMES).find(|(_, known)| *known == name).map(|(id, _)| id)
    }

    /// Reads a number (decimal or `0x…`), `reserved:host` or `host`.
    ///
    /// # Errors
    /// Neither of them.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let number = match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        number
            .map(Self)
            .or_else(|| Self::from_reserved_name(text.strip_prefix("reserved:").unwrap_or(text)))
            .ok_or_else(|| IdentityError::NotAnIdentity(crate::text::excerpt(text)))
    }

    /// The labels of a reserved identity, or `None` for another and for 0. The API server is also a remote node,
    /// the world of one family is also world.
    #[must_use]
    pub fn reserved_labels(self) -> Option<Labels> {
        let name = self.reserved_name().filter(|_| self != Self::UNKNOWN)?;
        let also = match self {
            Self::KUBE_APISERVER => Some("remote-node"),
            Self::WORLD_IPV4 | Self::WORLD_IPV6 => Some("world"),
            _ => None,
        };
        let names = [Some(name), also].into_iter().flatten();
        Some(Labels::of_known(names.map(|name| Label::known(source::RESERVED, name))))
    }

    /// The reserved identity of a prefix of length 0; longer ones need an identity of [`Scope::Local`].
    #[must_use]
    pub fn of_prefix(prefix: ipnet::IpNet) -> Option<Self> {
        match (prefix.prefix_len(), prefix.addr().is_ipv4()) {
            (0, true) => Some(Self::WORLD_IPV4),
            (0, false) => Some(Self::WORLD_IPV6),
            _ => None,
        }
    }

    /// Whether the number is one of those that are fixed for everybody or by an operator (below 256).
    #[must_use]
    pub fn is_reserved(self) -> bool {
        self < Self::ALLOCATED_MIN
    }

    /// Whether this is all that is outside, in one family or both.
    #[must_use]
    pub fn is_world(self) -> bool {
        matches!(self, Self::WORLD | Self::WORLD_IPV4 | Self::WORLD_IPV6)
    }

    /// Whether it stands for a workload of this node until its labels have a number of the cluster.
    #[inline]
    pub fn is_interim(self) -> bool {
        Self::INTERIM_RANGE.contains(&self.0)
    }

    /// How far the identity is known.
    #[must_use]
    pub fn scope(self) -> Scope {
        match self.0 >> 24 {
            0 => Scope::Global,
            1 => Scope::Local,
            2 => Scope::RemoteNode,
            other => Scope::Other(other as u8),
        }
    }

    /// Whether the identity stands for a prefix and is known to this node only.
    #[must_use]
    pub fn is_local(self) -> bool {
        self.scope() == Scope::Local
    }

    /// The cluster whose range the number lies in, 0 for one without id; `None` for reserved and local numbers.
    #[must_use]
    pub fn cluster_id(self, clusters: MaxConnectedClusters) -> Option<u32> {
        (self.scope() == Scope::Global && !self.is_reserved()).then(|| self.0 >> clusters.shift())
    }
}

impl MaxConnectedClusters {
    /// The setting for an option's number.
    ///
    /// # Errors
    /// Neither 255 nor 511.
    pub fn from_number(number: u32) -> Result<Self, IdentityError> {
        match number {
            255 => Ok(Self::C255),
            511 => Ok(Self::C511),
            other => Err(IdentityError::MaxConnectedClusters(other)),
        }
    }

    /// The largest cluster id.
    #[must_use]
    pub fn max_cluster_id(self) -> u32 {
        match self {
            Self::C255 => 255,
            Self::C511 => 511,
        }
    }

    /// How far the cluster id is shifted in an identity's number.
    #[must_use]
    pub fn shift(self) -> u32 {
        match self {
            Self::C255 => 16,
            Self::C511 => 15,
        }
    }

    /// The numbers that a cluster allocates.
    ///
    /// # Errors
    /// A cluster id beyond the largest.
    pub fn range(self, cluster_id: u32) -> Result<RangeInclusive<u32>, IdentityError> {
        let max = self.max_cluster_id();
        if cluster_id > max {
            return Err(IdentityError::ClusterId { id: cluster_id, max });
        }
        let first =
            if cluster_id == 0 { NumericIdentity::ALLOCATED_MIN.0 } else { cluster_id << self.shift() };
        Ok(first..=((cluster_id + 1) << self.shift()) - 1)
    }
}

// === impl NumericIdentity ===

impl fmt::Display for NumericIdentity {
    /// The number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NumericIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => write!(f, "{}({name})", self.0),
            None => self.0.fmt(f),
        }
    }
}

impl From<u32> for NumericIdentity {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_talk_lie_in_their_clusters() {
        let clusters = MaxConnectedClusters::C255;
        assert_eq!(NumericIdentity(298_951).cluster_id(clusters), Some(4));
        assert_eq!(NumericIdentity(15_614_229).cluster_id(clusters), Some(238));
        assert!(clusters.range(238).unwrap().contains(&15_614_229));
        assert_eq!(NumericIdentity::WORLD.cluster_id(clusters), None);
        assert_eq!(NumericIdentity(NumericIdentity::SCOPE_LOCAL | 1).cluster_id(clusters), None);
    }

    #[test]
    fn ranges_follow_the_number_of_clusters() {
        let (c255, c511) = (MaxConnectedClusters::C255, MaxConnectedClusters::C511);
        assert_eq!(c255.range(0), Ok(256..=65_535));
        assert_eq!(c255.range(1), Ok(65_536..=131_071));
        assert_eq!(c255.range(255), Ok(0xff_0000..=0xff_ffff));
        assert_eq!(c511.range(1), Ok(32_768..=65_535));
        assert_eq!(c511.range(511), Ok(0xff_8000..=0xff_ffff));
        assert!(c255.range(256).is_err() && c511.range(512).is_err());
        assert!(MaxConnectedClusters::from_number(300).is_err());
    }

    #[test]
    fn reserved_identities_have_names_and_labels() {
        assert_eq!(NumericIdentity::from_reserved_name("world"), Some(NumericIdentity::WORLD));
        assert_eq!(NumericIdentity::parse("reserved:host"), Ok(NumericIdentity::HOST));
        assert_eq!(NumericIdentity::parse("298951"), Ok(NumericIdentity(298_951)));
        assert!(NumericIdentity::parse("-1").is_err());
        assert_eq!(
            NumericIdentity::KUBE_APISERVER.reserved_labels().unwrap().to_string(),
            "reserved:kube-apiserver,reserved:remote-node"
        );
        assert_eq!(NumericIdentity(0).reserved_labels(), None);
        assert_eq!(NumericIdentity::reserved().count(), 10);
        assert_eq!(NumericIdentity(NumericIdentity::SCOPE_LOCAL | 7).scope(), Scope::Local);
    }
}
