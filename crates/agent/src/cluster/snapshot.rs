//! The last known good state of the cluster, on disk for a start without the store.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_identity::{Allocator, KnownIdentities, RemoteRecord};
use villus_kvstore::{Header, Witness};
use villus_labels::{Labels, NumericIdentity};

use crate::conditions::Conditions;
use crate::state::StateDir;

const FILE: &str = "cluster.json";
/// The one before, for when the other is spoiled.
const BEFORE: &str = "cluster-before.json";
const FORMAT: u32 = 1;
const CONDITION: &str = "state of the cluster on disk";

/// What was known of the cluster when it was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    format: u32,
    /// When it was written.
    pub saved: Timestamp,
    /// Which store said so, and its revision; 0 if that is not known.
    store: u64,
    revision: u64,
    /// A write of then, by which a store is known that was rewound and has passed this revision again.
    #[serde(default)]
    witness: Option<Witness>,
    /// Numbers and label strings.
    identities: Vec<(u32, String)>,
    /// The same of copies of other clusters' identities, and their keys.
    #[serde(default)]
    copies: Vec<(String, u32, String)>,
    /// Which store holds this agent's own copies of other clusters' entries, and its revision.
    #[serde(default)]
    mesh: Option<(u64, u64)>,
    /// Addresses and nodes.
    pub remote: RemoteRecord,
}

impl Snapshot {
    /// What is known now.
    pub fn new(
        header: Option<Header>,
        witness: Option<Witness>,
        mesh: Option<Header>,
        allocator: &Allocator,
        remote: RemoteRecord,
    ) -> Self {
        let (store, revision) = header.map_or((0, 0), |header| (header.cluster, header.revision));
        let rows = allocator.rows().into_iter();
        let copies = allocator.copied_rows().into_iter();
        Self {
            format: FORMAT,
            saved: Timestamp::now(),
            store,
            revision,
            witness,
            identities: rows.map(|(n, labels)| (n.0, labels.to_kvstore())).collect(),
            copies: copies.map(|(key, n, labels)| (key.to_string(), n.0, labels.to_kvstore())).collect(),
            mesh: mesh.map(|header| (header.cluster, header.revision)),
            remote,
        }
    }

    /// Reads the last one that can be read; what cannot is kept aside and said.
    pub fn load(state: &StateDir, conditions: &mut Conditions) -> Option<Self> {
        for name in [FILE, BEFORE] {
            let problem = match state.load::<Self>(name) {
                Ok(Ok(Some(snapshot))) if snapshot.format == FORMAT => return Some(snapshot),
                Ok(Ok(Some(other))) => {
                    format!("{name} has format {}, this version reads {FORMAT}", other.format)
                }
                Ok(Ok(None)) => continue,
                Ok(Err(damaged)) => {
                    format!("{name} was damaged ({}) and lies in {}", damaged.reason, damaged.kept.display())
                }
                Err(error) => format!("{name} cannot be read: {error}"),
            };
            conditions.note(CONDITION, Some(problem));
        }
        None
    }

    /// Writes it in the place of the one before.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, state: &StateDir) -> std::io::Result<()> {
        let (path, before) = (state.path(FILE), state.path(BEFORE));
        let content = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        if path.exists() {
            std::fs::rename(&path, before)?;
        }
        crate::state::write_atomic(&path, &content)
    }

    /// Which store it is of.
    pub fn seen(&self) -> Option<Header> {
        (self.revision > 0).then_some(Header { cluster: self.store, revision: self.revision })
    }

    /// A write of then.
    pub fn witness(&self) -> Option<Witness> {
        self.witness.clone()
    }

    /// Which store of this agent's own copies it is of.
    pub fn mesh_seen(&self) -> Option<Header> {
        self.mesh.map(|(cluster, revision)| Header { cluster, revision })
    }

    /// Its identities; labels that make no sense are left out.
    pub fn identities(&self) -> KnownIdentities {
        let row = |(number, text): &(u32, String)| {
            let number = NumericIdentity(*number);
            Some((number, Labels::parse_kvstore(text).ok().filter(|labels| !labels.is_empty())?))
        };
        KnownIdentities {
            rows: self.identities.iter().filter_map(row).collect(),
            seen: self.seen(),
            witness: self.witness.clone(),
        }
    }

    /// Its copies of other clusters' identities; labels that make no sense are left out.
    pub fn copies(&self) -> Vec<(Arc<str>, NumericIdentity, Labels)> {
        let row = |(key, number, text): &(String, u32, String)| {
            let labels = Labels::parse_kvstore(text).ok().filter(|labels| !labels.is_empty())?;
            Some((key.as_str().into(), NumericIdentity(*number), labels))
        };
        self.copies.iter().filter_map(row).collect()
    }

    /// How long ago it was written; nothing if the clock went back meanwhile.
    pub fn age(saved: Timestamp) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(saved)).unwrap_or_default()
    }
}
