//! Where an entry of another lies: among this cluster's own state, or among the copies that a mesh has made.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use villus_kvstore::keys;

use crate::ipcache::Rank;

/// Keys of copies that this agent's own mesh holds begin so; in its store they lie below [`keys::CACHE`].
const MESH: &str = "clustermesh";

/// A layer of entries. Where several tell of the same node, the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// `cilium/state` of the shared store: this cluster's own, and other clusters' where a mesh copies them there.
    State,
    /// `cilium/cache` of the shared store: copies of other clusters' entries.
    Cache,
    /// Copies that this agent has made itself of other clusters' stores.
    Mesh,
}

// === impl Layer ===

impl Layer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::State, Self::Cache, Self::Mesh];

    /// The layer of a key as [`crate::Remote`] knows it.
    pub fn of(key: &str) -> Self {
        let below = |base: &str| key.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
        if below(MESH) {
            Self::Mesh
        } else if below(keys::CACHE) {
            Self::Cache
        } else {
            Self::State
        }
    }

    /// How its entries rank among what else is said of an address.
    pub fn rank(self) -> Rank {
        match self {
            Self::State | Self::Cache => Rank::Kvstore,
            Self::Mesh => Rank::ClusterMesh,
        }
    }

    fn base(self) -> &'static str {
        match self {
            Self::State => keys::STATE,
            Self::Cache => keys::CACHE,
            Self::Mesh => MESH,
        }
    }

    /// The key that an entry of this layer has in the store that holds it.
    pub fn stored(self, key: &Arc<str>) -> Arc<str> {
        match self {
            Self::Mesh => moved(key, MESH, keys::CACHE).into(),
            Self::State | Self::Cache => Arc::clone(key),
        }
    }

    /// The key as [`crate::Remote`] knows it of one in the store that holds this layer.
    pub fn known(self, key: &Arc<str>) -> Arc<str> {
        match self {
            Self::Mesh => moved(key, keys::CACHE, MESH).into(),
            Self::State | Self::Cache => Arc::clone(key),
        }
    }

    /// The key that the same entry has, or would have, among the state.
    pub(crate) fn in_state(key: &str) -> String {
        moved(key, Self::of(key).base(), keys::STATE)
    }

    /// The key that an entry of the state has, or would have, in this layer.
    pub(crate) fn of_state(self, key: &str) -> String {
        moved(key, keys::STATE, self.base())
    }
}

fn moved(key: &str, from: &str, to: &str) -> String {
    match key.strip_prefix(from) {
        Some(rest) if rest.starts_with('/') => format!("{to}{rest}"),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_tell_their_layer() {
        for (key, layer, state) in [
            ("cilium/state/ip/v1/c2/10.0.0.1", Layer::State, "cilium/state/ip/v1/c2/10.0.0.1"),
            ("cilium/cache/ip/v1/c2/10.0.0.1", Layer::Cache, "cilium/state/ip/v1/c2/10.0.0.1"),
            ("clustermesh/nodes/v1/c2/n", Layer::Mesh, "cilium/state/nodes/v1/c2/n"),
            ("cilium/cached/x", Layer::State, "cilium/cached/x"),
            ("clustermeshes/x", Layer::State, "clustermeshes/x"),
        ] {
            assert_eq!((Layer::of(key), Layer::in_state(key).as_str()), (layer, state), "{key}");
        }
        let key: Arc<str> = "cilium/cache/ip/v1/c2/10.0.0.1".into();
        assert_eq!(&*Layer::Mesh.known(&key), "clustermesh/ip/v1/c2/10.0.0.1");
        assert_eq!(Layer::Cache.known(&key), key);
    }

    proptest! {
        #[test]
        fn a_key_is_stored_where_it_is_known_from(rest in "[a-z0-9/.:;=]{0,30}") {
            for layer in Layer::ALL {
                let stored: Arc<str> = format!("{}/{rest}", if layer == Layer::State { keys::STATE } else { keys::CACHE }).into();
                let known = layer.known(&stored);
                prop_assert_eq!(Layer::of(&known), layer);
                prop_assert_eq!(layer.stored(&known), stored);
                prop_assert_eq!(layer.of_state(&Layer::in_state(&known)), &*known);
            }
        }
    }
}
