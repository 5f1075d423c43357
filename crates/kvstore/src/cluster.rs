//! What a cluster says of itself in the store (reference `kvstore` 1.2).

use serde::{Deserialize, Serialize};

use crate::keys::{CLUSTER_CONFIG, join_key};

/// Clusters that may be joined where nobody says.
const MAX_CONNECTED: u32 = 255;

/// Value of [`ClusterConfig::key`]: which cluster the store is of. What else it may hold is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The cluster's id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub id: u32,
    /// What its writers can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// The part of [`ClusterConfig`] that describes its writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// How many clusters may be joined, which says where a cluster's identities begin; 0 where nobody says: 255.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_connected_clusters: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

// === impl ClusterConfig ===

impl ClusterConfig {
    /// A cluster with this id among at most so many.
    pub fn new(id: u32, max_connected_clusters: u32) -> Self {
        Self { id, capabilities: Capabilities { max_connected_clusters } }
    }

    /// The key of the cluster with this name.
    pub fn key(cluster: &str) -> String {
        join_key([CLUSTER_CONFIG, cluster])
    }

    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Numbers only: this can't fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// In which way the two can't be the same cluster.
    pub fn differs(&self, other: &Self) -> Option<String> {
        let most = |config: &Self| match config.capabilities.max_connected_clusters {
            0 => MAX_CONNECTED,
            most => most,
        };
        if self.id != other.id {
            return Some(format!("cluster-id is {} there and {} here", other.id, self.id));
        }
        let (here, there) = (most(self), most(other));
        (here != there).then(|| format!("max-connected-clusters is {there} there and {here} here"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_value_is_that_of_every_agent() {
        assert_eq!(ClusterConfig::key("c1"), "cilium/cluster-config/c1");
        let ours = ClusterConfig::new(238, 255);
        assert_eq!(ours.to_json(), r#"{"id":238,"capabilities":{"maxConnectedClusters":255}}"#);
        let theirs = br#"{"id":238,"capabilities":{"syncedCanaries":true,"later":[1]},"later":{}}"#;
        assert_eq!(ours.differs(&ClusterConfig::read(theirs).unwrap()), None);
        for (theirs, says) in [
            (r#"{"id":7}"#, "cluster-id is 7 there and 238 here"),
            (r#"{}"#, "cluster-id is 0"),
            (r#"{"id":238,"capabilities":{"maxConnectedClusters":511}}"#, "511 there and 255 here"),
        ] {
            let theirs = ClusterConfig::read(theirs.as_bytes()).unwrap();
            assert!(ours.differs(&theirs).unwrap().contains(says), "{theirs:?}");
        }
        assert!(ClusterConfig::read(b"{").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ClusterConfig::read(&value);
        }

        #[test]
        fn what_is_written_is_read(id: u32, most: u32) {
            let config = ClusterConfig::new(id, most);
            prop_assert_eq!(ClusterConfig::read(config.to_json().as_bytes()), Ok(config));
        }
    }
}
