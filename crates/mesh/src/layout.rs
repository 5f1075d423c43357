//! Where things lie: in the store of a remote cluster, and in ours.
//!
//! Nothing here reads a value. A key that is copied is put together from our own prefix, which holds the cluster's name or is
//! checked against its range of identities: no key of a remote can name anything of another cluster's.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};
use villus_kvstore::keys::{self, join_key};
use villus_labels::NumericIdentity;

/// How copies lie in the local store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Under the prefixes of the cluster's own state, told apart by cluster and by range of identities.
    State,
    /// Under `cilium/cache`, each cluster below its own name.
    Cache,
}

/// Kinds of entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nodes.
    Nodes,
    /// Shared services.
    Services,
    /// Exported services.
    ServiceExports,
    /// Slices of endpoints.
    EndpointSlices,
    /// Identities by number: master keys.
    Identities,
    /// Identities by labels and node: slave keys. Only the layout `state` has them.
    References,
    /// Addresses and their identities.
    #[serde(rename = "ip")]
    Addresses,
}

/// Why a key of a remote is not copied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Odd {
    /// It is another cluster's: its name or its range of identities.
    Foreign,
    /// It has no shape that keys of this kind have.
    Shape,
}

/// A remote cluster as keys know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Space {
    /// Its name.
    pub cluster: String,
    /// The numbers that its identities have.
    pub range: RangeInclusive<u32>,
}

/// Text that is no layout.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no layout; there are cache and state")]
pub struct UnknownLayout(String);

// === impl Layout ===

impl Layout {
    /// `state` or `cache`.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Cache => "cache",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::State => Self::Cache,
            Self::Cache => Self::State,
        }
    }

    /// The prefix of a kind without its cluster: `cilium/cache/ip/v1`.
    fn base(self, kind: Kind) -> String {
        let state = kind.state_prefix();
        match self {
            Self::State => state.to_owned(),
            Self::Cache => keys::state_to_cache(state),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(text: &str) -> Result<Self, UnknownLayout> {
        match text {
            "state" => Ok(Self::State),
            "cache" => Ok(Self::Cache),
            other => Err(UnknownLayout(other.to_owned())),
        }
    }
}

// === impl Kind ===

impl Kind {
    /// All kinds, in the order in which they are of use: what others refer to comes first.
    pub const ALL: [Self; 7] = [
        Self::Nodes,
        Self::Services,
        Self::ServiceExports,
        Self::EndpointSlices,
        Self::Identities,
        Self::References,
        Self::Addresses,
    ];

    /// The word for it: in keys, in status and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Services => "services",
            Self::ServiceExports => "serviceexports",
            Self::EndpointSlices => "endpointslices",
            Self::Identities => "identities",
            Self::References => "references",
            Self::Addresses => "ip",
        }
    }

    /// Whether agents would send traffic to what these entries name, which `cache-ttl` takes away.
    pub fn is_service(self) -> bool {
        matches!(self, Self::Services | Self::ServiceExports | Self::EndpointSlices)
    }

    fn state_prefix(self) -> &'static str {
        match self {
            Self::Nodes => keys::NODES,
            Self::Services => keys::SERVICES,
            Self::ServiceExports => keys::SERVICE_EXPORTS,
            Self::EndpointSlices => "cilium/state/endpointslices/v1",
            Self::Identities | Self::References => keys::IDENTITIES,
            Self::Addresses => keys::IPS,
        }
    }

    /// Prefixes, each ending in `/`, below which a remote has its own entries of this kind; none if its layout has no
    /// such entries. Where the same entry is in several, that of the first counts.
    pub fn sources(self, layout: Layout, cluster: &str) -> Vec<String> {
        let base = layout.base(self);
        let below = |parts: &[&str]| format!("{}/", join_key([&[base.as_str()], parts].concat()));
        match (self, layout) {
            (Self::Identities, Layout::State) => vec![below(&["id"])],
            (Self::Identities, Layout::Cache) => vec![below(&[cluster, "id"])],
            (Self::References, Layout::State) => vec![below(&["value"])],
            (Self::References, Layout::Cache) => Vec::new(),
            (Self::Addresses, Layout::State) if cluster != keys::DEFAULT_ADDRESS_SPACE => {
                vec![below(&[keys::DEFAULT_ADDRESS_SPACE]), below(&[cluster])]
            }
            _ => vec![below(&[cluster])],
        }
    }

    /// The prefix, ending in `/`, below which copies lie in the local store; `None` if the layout has none.
    pub fn target(self, layout: Layout, cluster: &str) -> Option<String> {
        // Where a copy lies is where a reader of a remote with that layout looks, but for the address space: copies carry
        // the cluster's name.
        self.sources(layout, cluster).pop()
    }

    /// Whether the target holds entries of other clusters too.
    pub fn is_shared(self, layout: Layout) -> bool {
        layout == Layout::State && matches!(self, Self::Identities | Self::References)
    }

    /// The key that says that all of this kind has been written once. Identities and references share one.
    pub fn canary(self, layout: Layout, cluster: &str) -> String {
        join_key([keys::SYNCED, cluster, &layout.base(self)])
    }

    /// Checks what follows the prefix in a key of the remote. What is there may stand behind the target's prefix.
    ///
    /// # Errors
    /// The key has no shape of this kind, or is another cluster's.
    pub fn check(self, rest: &str, space: &Space) -> Result<(), Odd> {
        let parts = || rest.split('/');
        let whole = |wanted: usize| parts().count() == wanted && parts().all(|part| !part.is_empty());
        let sound = match self {
            Self::Nodes => whole(1),
            Self::Services | Self::ServiceExports | Self::EndpointSlices => whole(2),
            Self::Identities => {
                let id = number(rest).ok_or(Odd::Shape)?;
                return if space.range.contains(&id) { Ok(()) } else { Err(Odd::Foreign) };
            }
            // The label string ends in `;`; only then is it certain where it ends.
            Self::References => {
                rest.rsplit_once('/').is_some_and(|(labels, node)| labels.ends_with(';') && !node.is_empty())
            }
            // An address or a prefix with its length.
            Self::Addresses => {
                let (address, length) = rest.split_once('/').unwrap_or((rest, "0"));
                address.parse::<std::net::IpAddr>().is_ok() && length.parse::<u8>().is_ok()
            }
        };
        if sound { Ok(()) } else { Err(Odd::Shape) }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A range in which nobody's identities lie.
pub(crate) const NOBODYS: RangeInclusive<u32> = 0..=0;

/// A number as identities are written: decimal, without signs or zeros in front.
pub(crate) fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (text.starts_with(|c: char| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0')))
        .then_some(number)
}

// === impl Space ===

impl Space {
    /// Whether an address of this cluster may have the identity: one of the cluster's, or a reserved one.
    pub fn may_have(&self, id: u32) -> bool {
        self.range.contains(&id) || NumericIdentity(id).is_reserved()
    }

    /// The number in the value of a reference, if it is one of this cluster's.
    pub fn reference(&self, value: &[u8]) -> Option<u32> {
        std::str::from_utf8(value).ok().and_then(number).filter(|id| self.range.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> Space {
        Space { cluster: "c2".to_owned(), range: 131_072..=196_607 }
    }

    #[test]
    fn both_layouts_have_the_published_keys() {
        for (kind, state, cache) in [
            (Kind::Nodes, "cilium/state/nodes/v1/c2/", "cilium/cache/nodes/v1/c2/"),
            (Kind::Services, "cilium/state/services/v1/c2/", "cilium/cache/services/v1/c2/"),
            (
                Kind::ServiceExports,
                "cilium/state/serviceexports/v1/c2/",
                "cilium/cache/serviceexports/v1/c2/",
            ),
            (
                Kind::EndpointSlices,
                "cilium/state/endpointslices/v1/c2/",
                "cilium/cache/endpointslices/v1/c2/",
            ),
            (Kind::Identities, "cilium/state/identities/v1/id/", "cilium/cache/identities/v1/c2/id/"),
            (Kind::Addresses, "cilium/state/ip/v1/c2/", "cilium/cache/ip/v1/c2/"),
        ] {
            assert_eq!(kind.target(Layout::State, "c2").unwrap(), state);
            assert_eq!(kind.target(Layout::Cache, "c2").unwrap(), cache);
        }
        assert_eq!(
            Kind::References.target(Layout::State, "c2").unwrap(),
            "cilium/state/identities/v1/value/"
        );
        assert_eq!(Kind::References.target(Layout::Cache, "c2"), None);
        assert_eq!(
            Kind::Addresses.sources(Layout::State, "c2"),
            ["cilium/state/ip/v1/default/", "cilium/state/ip/v1/c2/"]
        );
        for (kind, layout, canary) in [
            (Kind::Nodes, Layout::Cache, "cilium/synced/c2/cilium/cache/nodes/v1"),
            (Kind::Identities, Layout::Cache, "cilium/synced/c2/cilium/cache/identities/v1"),
            (Kind::Addresses, Layout::State, "cilium/synced/c2/cilium/state/ip/v1"),
        ] {
            assert_eq!(kind.canary(layout, "c2"), canary);
        }
    }

    #[test]
    fn keys_of_other_clusters_and_of_no_shape_are_told_apart() {
        for (kind, rest, wanted) in [
            (Kind::Nodes, "n1", Ok(())),
            (Kind::Nodes, "", Err(Odd::Shape)),
            (Kind::Nodes, "n1/x", Err(Odd::Shape)),
            (Kind::Services, "ns/web", Ok(())),
            (Kind::Services, "web", Err(Odd::Shape)),
            (Kind::Services, "ns//web", Err(Odd::Shape)),
            (Kind::Identities, "131072", Ok(())),
            (Kind::Identities, "131071", Err(Odd::Foreign)),
            (Kind::Identities, "0131072", Err(Odd::Shape)),
            (Kind::Identities, "+131072", Err(Odd::Shape)),
            (Kind::Identities, "7", Err(Odd::Foreign)),
            (Kind::References, "k8s:a=b/c;/10.0.0.1", Ok(())),
            (Kind::References, "k8s:a=b/10.0.0.1", Err(Odd::Shape)),
            (Kind::Addresses, "10.2.0.1", Ok(())),
            (Kind::Addresses, "10.2.0.0/16", Ok(())),
            (Kind::Addresses, "fd00::1", Ok(())),
            (Kind::Addresses, "c3/10.2.0.1", Err(Odd::Shape)),
            (Kind::Addresses, "10.2.0.1/../x", Err(Odd::Shape)),
        ] {
            assert_eq!(kind.check(rest, &space()), wanted, "{kind} {rest}");
        }
    }

    proptest! {
        #[test]
        fn no_key_leaves_its_clusters_prefix(rest in ".{0,40}") {
            for kind in Kind::ALL {
                if kind.check(&rest, &space()).is_ok() && kind != Kind::References {
                    // Nothing that the store would read as a way up, and no empty part.
                    prop_assert!(!rest.is_empty() && !rest.starts_with('/') && !rest.ends_with('/'));
                }
            }
            let _ = space().reference(rest.as_bytes());
        }
    }
}
