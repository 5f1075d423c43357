//! A resource as it lies in the store, and the keys that follow from it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use villus_config::duration;
use villus_kvstore::{Entry, IpIdentityPair, keys};
use villus_labels::{Labels, NumericIdentity};

use crate::{
    nodes::in_state,
    read::{API_VERSION, KIND},
    spec::{Kind, MAX_ADDRESSES, Place, Spec, Wanted},
};

/// Below it lie resources: `<cluster>/resources/<name>`, and which numbers they use: `<cluster>/identities/<number>`.
pub const EXTERNAL: &str = "villus/external/v1";
/// `Metadata` of an address begins so, then come `<cluster>:<name>`.
const MARK: &str = "villus-external";

/// Value of `<cluster>/resources/<name>`: what was said of a resource, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its name.
    pub name: String,
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its labels as they were written.
    pub labels: Labels,
    /// The name of the node that it lives behind, if it was written so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The address of the node that it lives behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
    /// How many seconds it stays without being said again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// When it goes, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// The number of its identity.
    pub identity: NumericIdentity,
    /// The labels that make its identity, as the store spells them.
    pub identity_labels: String,
    /// When it was first written, RFC 3339.
    pub created: String,
    /// When it was last written, RFC 3339.
    pub updated: String,
    /// Who wrote it last.
    pub author: String,
}

/// The keys of one cluster's resources.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    cluster: String,
    /// The address space of the cluster's agents, and the other one that they might have.
    spaces: [String; 2],
}

// === impl Record ===

impl Record {
    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(entry: &Entry) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(&entry.value).map_err(|error| error.to_string())?;
        if entry.key.rsplit('/').next() != Some(&record.name) {
            return Err(format!("the value is of `{}`", record.name.escape_debug()));
        }
        if record.addresses.is_empty() || record.addresses.len() > MAX_ADDRESSES {
            return Err(format!("it has {} addresses", record.addresses.len()));
        }
        let labels = Labels::parse_kvstore(&record.identity_labels).map_err(|error| error.to_string())?;
        if labels.is_empty() || labels.to_kvstore() != record.identity_labels {
            return Err("the labels of its identity are none or not sorted".to_owned());
        }
        Ok(record)
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Texts, numbers and lists only: this can't fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The labels that make its identity.
    pub fn identity_labels(&self) -> Labels {
        // They were read before.
        Labels::parse_kvstore(&self.identity_labels).unwrap_or_default()
    }

    /// The moment at which it goes; none for what stays, or what says none that can be read.
    pub fn expiry(&self) -> Option<Timestamp> {
        self.expires.as_deref().and_then(|text| text.parse().ok())
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expiry().is_some_and(|at| at <= now)
    }

    /// Whether it says the same as another, whoever wrote it and whenever.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let plain = |record: &Self| Self {
            expires: None,
            created: String::new(),
            updated: String::new(),
            author: String::new(),
            ..record.clone()
        };
        plain(self) == plain(other)
    }

    /// What was wanted of it.
    pub fn wanted(&self) -> Wanted {
        let place = match (&self.node, self.host) {
            (Some(node), _) => Some(Place::Node(node.clone())),
            (None, host) => host.map(Place::Host),
        };
        let spec = Spec {
            kind: self.kind,
            addresses: self.addresses.clone(),
            labels: self.labels.clone(),
            place,
            ttl: self.ttl_seconds.map(Duration::from_secs),
        };
        Wanted { name: self.name.clone(), spec }
    }

    /// The object of kind `ExternalResource`, with its status.
    pub fn object(&self) -> serde_json::Value {
        let mut spec = json!({"kind": self.kind, "addresses": self.addresses, "labels": self.labels});
        match (&self.node, self.host) {
            (Some(node), _) => spec["node"] = json!(node),
            (None, Some(host)) => spec["host"] = json!(host),
            (None, None) => {}
        }
        if let Some(seconds) = self.ttl_seconds {
            spec["ttl"] = json!(duration::format(Duration::from_secs(seconds)));
        }
        let mut status = json!({
            "identity": self.identity,
            "identityLabels": self.identity_labels(),
            "created": self.created,
            "updated": self.updated,
            "author": self.author,
        });
        if let Some(host) = self.host {
            status["host"] = json!(host);
        }
        if let Some(expires) = &self.expires {
            status["expires"] = json!(expires);
        }
        json!({
            "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": self.name}, "spec": spec, "status": status,
        })
    }

    /// The value of one of its addresses, as agents read it.
    pub(crate) fn pair(&self, address: IpAddr, cluster: &str) -> Bytes {
        let namespace = self.identity_labels().namespace().map(str::to_owned);
        let pod = if namespace.is_some() { self.name.clone() } else { String::new() };
        let pair = IpIdentityPair {
            metadata: format!("{MARK}:{cluster}:{}", self.name),
            namespace: namespace.unwrap_or_default(),
            pod,
            ..IpIdentityPair::new(address, self.identity.0, self.host)
        };
        pair.to_json().into()
    }
}

// === impl Keys ===

impl Keys {
    /// `space_of_cluster`: agents write their addresses below the cluster's name, not below `default`.
    pub fn new(cluster: &str, space_of_cluster: bool) -> Self {
        let mut spaces = [keys::DEFAULT_ADDRESS_SPACE.to_owned(), cluster.to_owned()];
        if space_of_cluster {
            spaces.swap(0, 1);
        }
        Self { cluster: cluster.to_owned(), spaces }
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Where the resources lie.
    pub fn resources(&self) -> String {
        format!("{EXTERNAL}/{}/resources/", self.cluster)
    }

    pub fn resource(&self, name: &str) -> String {
        self.resources() + name
    }

    /// Where it lies which numbers are used.
    pub fn identities(&self) -> String {
        format!("{EXTERNAL}/{}/identities/", self.cluster)
    }

    pub fn identity(&self, number: NumericIdentity) -> String {
        format!("{}{number}", self.identities())
    }

    /// Who uses a number, in its key.
    pub fn user(&self) -> String {
        format!("external.{}", self.cluster)
    }

    /// The key of an address, and the one that it must not have.
    pub fn address(&self, address: IpAddr) -> [String; 2] {
        self.spaces.clone().map(|space| keys::join_key([keys::IPS, &space, &address.to_string()]))
    }

    /// The keys that an address has as another cluster's, in either layout of copies.
    pub fn copies(&self, address: IpAddr, clusters: &BTreeSet<String>) -> impl Iterator<Item = String> {
        let others = clusters.iter().filter(|cluster| **cluster != self.cluster);
        others.flat_map(move |cluster| {
            let state = keys::join_key([keys::IPS, cluster, &address.to_string()]);
            let cache = keys::state_to_cache(&state);
            // What lies in the space of this cluster's agents is none.
            [cache, state].into_iter().filter(|key| !self.address(address).contains(key)).collect::<Vec<_>>()
        })
    }

    /// Where addresses lie.
    pub fn addresses(&self) -> [String; 2] {
        self.spaces.clone().map(|space| format!("{}/{space}/", keys::IPS))
    }

    /// The resource of this cluster that an entry of an address says it is of.
    pub fn owner_of(&self, entry: &Entry) -> Option<String> {
        let text = entry.text().filter(|text| text.contains(MARK))?;
        let pair: IpIdentityPair = serde_json::from_str(text).ok()?;
        let rest = pair.metadata.strip_prefix(MARK)?.strip_prefix(':')?.strip_prefix(&self.cluster)?;
        rest.strip_prefix(':').map(str::to_owned)
    }
}

/// Who has an address, for people.
pub(crate) fn owner(entry: &Entry) -> String {
    let key = in_state(&entry.key);
    let Ok((space, pair)) = IpIdentityPair::read(&key, &entry.value) else {
        return format!("whoever wrote `{}`, which can't be read", entry.key);
    };
    let of = if space == keys::DEFAULT_ADDRESS_SPACE && key == *entry.key {
        String::new()
    } else {
        format!(" of cluster {space}")
    };
    let parts: Vec<&str> = pair.metadata.split(':').collect();
    match parts.as_slice() {
        [MARK, cluster, name] => format!("external resource {name} of cluster {cluster}"),
        ["cilium-global", cluster, node, endpoint] => {
            let what = match (pair.namespace.as_str(), pair.pod.as_str()) {
                (_, "") => format!("endpoint {endpoint}"),
                (namespace, pod) => format!("pod {namespace}/{pod}"),
            };
            format!("{what} of node {node} of cluster {cluster}")
        }
        _ if !pair.pod.is_empty() => format!("pod {}/{}{of}", pair.namespace, pair.pod),
        _ => format!("identity {}{of} (`{}`)", pair.id, entry.key),
    }
}

/// RFC 3339, UTC, whole seconds.
pub(crate) fn written(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// When something ends that begins now.
pub(crate) fn expiry(now: Timestamp, seconds: u64) -> String {
    let lasts = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    written(now.checked_add(lasts).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const VALUE: &str = r#"{"name":"db","kind":"vm","addresses":["10.9.0.5"],"labels":["k8s:app=db"],"identity":458755,"identityLabels":"k8s:app=db;","created":"2026-01-01T00:00:00Z","updated":"2026-01-01T00:00:00Z","author":"ann"}"#;

    fn entry(key: &str, value: &[u8]) -> Entry {
        let (key, value) = (Arc::from(key), Bytes::copy_from_slice(value));
        Entry { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: None }
    }

    #[test]
    fn what_makes_no_sense_is_not_taken_for_a_resource() {
        assert_eq!(Record::read(&entry("x/db", VALUE.as_bytes())).unwrap().to_json(), VALUE);
        for (key, value) in [
            ("x/other", VALUE.to_owned()),
            ("x/db", VALUE.replace(r#""10.9.0.5""#, "")),
            ("x/db", VALUE.replace("app=db;", "app=db")),
            ("x/db", VALUE.replace("k8s:app=db;", "")),
            ("x/db", VALUE.replace("458755", "-1")),
            ("x/db", "{".to_owned()),
        ] {
            assert!(Record::read(&entry(key, value.as_bytes())).is_err(), "{key} {value}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value in prop::collection::vec(any::<u8>(), 0..200), at in 0..VALUE.len(), with in "[\"{}:,0-9a-z;=]{0,4}") {
            let keys = Keys::new("c7", false);
            let mut text = VALUE.to_owned();
            text.replace_range(at..at + 1, &with);
            for value in [&value, text.as_bytes()] {
                let entry = entry("cilium/state/ip/v1/default/10.9.0.5", value);
                let _ = (Record::read(&entry), keys.owner_of(&entry), owner(&entry));
            }
            if let Ok(record) = Record::read(&entry("x/db", text.as_bytes())) {
                let pair = record.pair([10, 9, 0, 5].into(), "c7");
                let of = keys.owner_of(&entry("cilium/state/ip/v1/default/10.9.0.5", &pair));
                prop_assert_eq!(of, Some(record.name));
            }
        }
    }
}
