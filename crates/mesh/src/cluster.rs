//! What clusters say about themselves: `cilium/cluster-config/<cluster>`, and who may be connected with whom.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use serde_json::{Map, Value};
use thiserror::Error;
use villus_kvstore::keys::{self, join_key};
use villus_labels::MaxConnectedClusters;

use crate::layout::{Kind, Layout, NOBODYS, Space};

const LONGEST_NAME: usize = 32;

/// The local cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its id; 0 for a cluster without.
    pub id: u32,
    /// How many clusters there can be, which says how identities are numbered.
    pub clusters: MaxConnectedClusters,
}

/// A remote's configuration of itself. Fields that are not known here are kept when it is written again.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterConfig {
    /// The cluster's id, at least 1.
    pub id: u32,
    /// Whether its entries lie in the layout `cache`.
    pub cached: bool,
    /// Whether it says which prefixes it has written completely.
    pub canaries: bool,
    clusters: u64,
    exports: bool,
    slices: bool,
    all: Map<String, Value>,
}

/// Why a remote is not connected. Each says what to do.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refused {
    /// Its value can't be read.
    #[error("`cilium/cluster-config/{cluster}` can't be read: {reason}")]
    Unreadable {
        /// The remote.
        cluster: String,
        /// Why.
        reason: String,
    },
    /// No such id.
    #[error("cluster {cluster} has id {id}; ids of clusters are 1 to {max}: give it one with --cluster-id")]
    BadId {
        /// The remote.
        cluster: String,
        /// What it said.
        id: u64,
        /// The largest.
        max: u32,
    },
    /// Our own id.
    #[error(
        "cluster {cluster} has id {id}, which is this cluster's own: their identities would be mixed up; give one of them another --cluster-id"
    )]
    OwnId {
        /// The remote.
        cluster: String,
        /// The id.
        id: u32,
    },
    /// Another remote's id.
    #[error(
        "cluster {cluster} has id {id}, which cluster {other} has too: their identities would be mixed up; give one of them another --cluster-id"
    )]
    SameId {
        /// The remote.
        cluster: String,
        /// The id.
        id: u32,
        /// Who has it.
        other: String,
    },
    /// Its store is of a cluster with our own name.
    #[error(
        "the store of cluster {cluster} is of another cluster that is called {own} too, as this one is: their nodes and services would be mixed up; give one of them another --cluster-name"
    )]
    OwnName {
        /// The remote, as its file calls it.
        cluster: String,
        /// The name.
        own: String,
    },
    /// Its addresses would lie among our own.
    #[error(
        "a cluster called `default` can't be copied in the layout state: this cluster's own addresses lie in `cilium/state/ip/v1/default`; use --layout=cache, or give the cluster another name"
    )]
    DefaultName,
    /// Its endpoints lead to our own store.
    #[error(
        "the endpoints of cluster {cluster} lead to this cluster's own store; name that cluster's etcd in the file"
    )]
    OwnStore {
        /// The remote.
        cluster: String,
    },
    /// Identities are numbered in another way there.
    #[error(
        "cluster {cluster} is set up for {theirs} clusters, this one for {ours}: identities are numbered differently; --max-connected-clusters must be the same everywhere"
    )]
    OtherNumbering {
        /// The remote.
        cluster: String,
        /// Its number of clusters.
        theirs: u64,
        /// Ours.
        ours: u32,
    },
}

/// Which id belongs to which remote.
#[derive(Clone, Default, Debug)]
pub struct Claims(Arc<Mutex<BTreeMap<u32, String>>>);

/// An id that is a remote's as long as this is held.
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    id: u32,
}

/// Whether this can be the name of a cluster: up to 32 small letters, digits and dashes, no dash at an end.
pub fn is_name(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= LONGEST_NAME
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || *b == b'-')
}

/// The key of a cluster's configuration.
pub fn config_key(cluster: &str) -> String {
    join_key([keys::CLUSTER_CONFIG, cluster])
}

// === impl ClusterConfig ===

impl ClusterConfig {
    /// Reads the value that the cluster wrote.
    ///
    /// # Errors
    /// It is no JSON object of this kind, or has an id that can't be used beside `own`.
    pub fn read(cluster: &str, value: &[u8], own: &Own) -> Result<Self, Refused> {
        let unreadable =
            |reason: &str| Refused::Unreadable { cluster: cluster.to_owned(), reason: reason.to_owned() };
        let all: Map<String, Value> =
            serde_json::from_slice(value).map_err(|error| unreadable(&error.to_string()))?;
        let none = Map::new();
        let capabilities = match all.get("capabilities") {
            None | Some(Value::Null) => &none,
            Some(Value::Object(capabilities)) => capabilities,
            Some(_) => return Err(unreadable("`capabilities` is no object")),
        };
        let switch = |name: &str| match capabilities.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => Err(unreadable(&format!("`capabilities.{name}` is neither true nor false"))),
        };
        let number = |of: &Map<String, Value>, name: &str, otherwise: u64| match of.get(name) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(value) => {
                value.as_u64().ok_or_else(|| unreadable(&format!("`{name}` is no whole number above 0")))
            }
        };
        let slices = capabilities.get("endpointSlicesExportMode").and_then(Value::as_str);
        let clusters = match number(capabilities, "maxConnectedClusters", 255)? {
            0 => 255,
            clusters => clusters,
        };
        let read = Self {
            id: 0,
            cached: switch("cached")?,
            canaries: switch("syncedCanaries")?,
            clusters,
            exports: switch("serviceExportsEnabled")?,
            slices: slices.is_some_and(|mode| !mode.is_empty()),
            all: all.clone(),
        };
        read.fit(cluster, number(&all, "id", 0)?, own)
    }

    /// What is assumed of a cluster that says nothing about itself, as those before 1.13.
    ///
    /// # Errors
    /// The id can't be used beside `own`.
    pub fn assumed(cluster: &str, id: u32, own: &Own) -> Result<Self, Refused> {
        let mut all = Map::new();
        all.insert("id".to_owned(), id.into());
        let clusters = own.clusters.max_cluster_id().into();
        let read =
            Self { id: 0, cached: false, canaries: false, clusters, exports: false, slices: false, all };
        read.fit(cluster, id.into(), own)
    }

    fn fit(mut self, cluster: &str, id: u64, own: &Own) -> Result<Self, Refused> {
        let cluster = || cluster.to_owned();
        let (ours, max) = (own.clusters.max_cluster_id(), own.clusters.max_cluster_id());
        if self.clusters != u64::from(ours) {
            return Err(Refused::OtherNumbering { cluster: cluster(), theirs: self.clusters, ours });
        }
        self.id = match u32::try_from(id) {
            Ok(id) if (1..=max).contains(&id) => id,
            _ => return Err(Refused::BadId { cluster: cluster(), id, max }),
        };
        if self.id == own.id {
            return Err(Refused::OwnId { cluster: cluster(), id: self.id });
        }
        Ok(self)
    }

    /// The layout in which the remote has its entries.
    pub fn layout(&self) -> Layout {
        if self.cached { Layout::Cache } else { Layout::State }
    }

    /// The kinds that there are to copy from it into `target`.
    pub fn kinds(&self, target: Layout) -> Vec<Kind> {
        let wanted = |kind: &Kind| match kind {
            Kind::ServiceExports => self.exports,
            Kind::EndpointSlices => self.slices,
            Kind::References => target == Layout::State && !self.cached,
            _ => true,
        };
        Kind::ALL.into_iter().filter(wanted).collect()
    }

    /// The cluster as keys know it.
    pub fn space(&self, cluster: &str, own: &Own) -> Space {
        // `fit` has checked the id, so there is a range.
        let range = own.clusters.range(self.id).unwrap_or(NOBODYS);
        Space { cluster: cluster.to_owned(), range }
    }

    /// The value for the local store: readers find copies in the layouts given, and canaries for them.
    pub fn rewritten(&self, layouts: &[Layout]) -> Bytes {
        let mut all = self.all.clone();
        let mut capabilities = match all.remove("capabilities") {
            Some(Value::Object(capabilities)) => capabilities,
            _ => Map::new(),
        };
        capabilities.insert("syncedCanaries".to_owned(), true.into());
        capabilities.remove("cached");
        if layouts.contains(&Layout::Cache) {
            capabilities.insert("cached".to_owned(), true.into());
        }
        all.insert("capabilities".to_owned(), Value::Object(capabilities));
        Value::Object(all).to_string().into()
    }
}

// === impl Claims ===

impl Claims {
    /// Takes an id for a remote.
    ///
    /// # Errors
    /// Another remote has it.
    pub fn take(&self, cluster: &str, id: u32) -> Result<Claim, Refused> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match claims.get(&id) {
            Some(other) => Err(Refused::SameId { cluster: cluster.to_owned(), id, other: other.clone() }),
            None => {
                claims.insert(id, cluster.to_owned());
                Ok(Claim { claims: self.clone(), id })
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own() -> Own {
        Own { name: "c1".to_owned(), id: 1, clusters: MaxConnectedClusters::C255 }
    }

    #[test]
    fn a_configuration_is_rewritten_and_what_is_not_known_here_stays() {
        let value = br#"{"id":2,"capabilities":{"maxConnectedClusters":255,"later":[1]},"new":"x"}"#;
        let config = ClusterConfig::read("c2", value, &own()).unwrap();
        assert_eq!((config.id, config.cached, config.canaries), (2, false, false));
        let cache = String::from_utf8(config.rewritten(&[Layout::Cache]).to_vec()).unwrap();
        assert_eq!(
            cache,
            r#"{"capabilities":{"cached":true,"later":[1],"maxConnectedClusters":255,"syncedCanaries":true},"id":2,"new":"x"}"#
        );
        let state = String::from_utf8(config.rewritten(&[Layout::State]).to_vec()).unwrap();
        assert!(!state.contains("cached") && state.contains("syncedCanaries"), "{state}");
        let cached = ClusterConfig::read("c2", cache.as_bytes(), &own()).unwrap();
        assert!(cached.cached && cached.canaries && cached.layout() == Layout::Cache);
        assert!(!cached.kinds(Layout::State).contains(&Kind::References));
    }

    #[test]
    fn what_cannot_be_connected_is_refused_with_a_reason() {
        for (value, says) in [
            ("{", "can't be read"),
            ("[]", "can't be read"),
            (r#"{"id":-2}"#, "no whole number"),
            (r#"{"id":0}"#, "1 to 255"),
            ("{}", "1 to 255"),
            (r#"{"id":256}"#, "1 to 255"),
            (r#"{"id":1}"#, "this cluster's own"),
            (r#"{"id":2,"capabilities":{"maxConnectedClusters":511}}"#, "set up for 511"),
            (r#"{"id":2,"capabilities":{"cached":"yes"}}"#, "neither true nor false"),
            (r#"{"id":2,"capabilities":7}"#, "no object"),
        ] {
            let error = ClusterConfig::read("c2", value.as_bytes(), &own()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("c2"), "{value}: {error}");
        }
    }

    #[test]
    fn two_remotes_never_have_one_id() {
        let claims = Claims::default();
        let first = claims.take("c2", 2).unwrap();
        let error = claims.take("c3", 2).unwrap_err().to_string();
        assert!(error.contains("c2") && error.contains("c3"), "{error}");
        drop(first);
        claims.take("c3", 2).unwrap();
    }

    #[test]
    fn names_of_clusters_are_those_of_the_field() {
        for (name, good) in [
            ("c1", true),
            ("a-b", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("a/b", false),
            ("..", false),
        ] {
            assert_eq!(is_name(name), good, "{name}");
        }
        assert!(is_name(&"a".repeat(32)) && !is_name(&"a".repeat(33)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = ClusterConfig::read("c2", &value, &own());
        }

        #[test]
        fn no_json_panics(id in "-?[0-9]{1,20}", text in "[\"{}:,0-9a-z/=]{0,12}") {
            let _ = ClusterConfig::read("c2", format!(r#"{{"id":{id},"capabilities":{text}}}"#).as_bytes(), &own());
        }
    }
}
