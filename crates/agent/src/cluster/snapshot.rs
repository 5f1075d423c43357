//! The last known good state of the cluster, on disk for a start without the store.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_durable::Replacement;
use villus_identity::{AddressRecord, KnownIdentities, RemoteRecord};
use villus_kvstore::{Header, Witness};
use villus_labels::{Labels, NumericIdentity};

use super::learned::{Changes, Learned};
use super::reader;
use crate::conditions::Conditions;
use crate::state::StateDir;

const FILE: &str = "cluster.json";
/// The one before, for when the other is spoiled.
const BEFORE: &str = "cluster-before.json";
const FORMAT: u32 = 1;
const BUFFER: usize = 64 << 10;
const CONDITION: &str = "state of the cluster on disk";

/// What was known of the cluster when it was written.
#[derive(Clone, Debug, Default, Deserialize)]
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
    /// What was learned since lies in the files of [`Learned`] from this number on.
    #[serde(default)]
    learned: Option<u64>,
    /// Addresses and nodes.
    pub remote: RemoteRecord,
}

/// What a snapshot begins with.
#[derive(Debug, Serialize)]
pub(crate) struct Head {
    format: u32,
    saved: Timestamp,
    store: u64,
    revision: u64,
    witness: Option<Witness>,
    mesh: Option<(u64, u64)>,
    learned: u64,
}

/// A snapshot that is written part by part: the whole of it is never in memory.
pub(crate) struct Writer {
    state: StateDir,
    out: BufWriter<Replacement>,
    /// What comes before the next item.
    separator: &'static str,
}

impl Snapshot {
    /// Reads the last one that can be read, and what was learned after it; what cannot be read is kept aside and said.
    pub fn load(state: &StateDir, conditions: &mut Conditions) -> (Option<Self>, Learned) {
        let whole = Self::load_whole(state, conditions);
        // Without one, all that was learned comes after it; one of a version that knew no such files is newer than they.
        let from = whole.as_ref().map_or(Some(0), |snapshot| snapshot.learned);
        let (learned, changes, problems) = Learned::open(state, from);
        if !problems.is_empty() {
            conditions.note(CONDITION, Some(problems.join("; ")));
        }
        let snapshot = match changes.is_empty() {
            true => whole,
            false => Some(whole.unwrap_or_default().with(changes)),
        };
        (snapshot, learned)
    }

    fn load_whole(state: &StateDir, conditions: &mut Conditions) -> Option<Self> {
        for name in [FILE, BEFORE] {
            let loaded = match Self::read_parts(&state.path(name)) {
                Some(snapshot) => Ok(Ok(Some(snapshot))),
                None => state.load::<Self>(name),
            };
            let problem = match loaded {
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

    /// Reads one that is written as this version does it; of any other [`StateDir::load`] says what it is.
    fn read_parts(path: &Path) -> Option<Self> {
        let (rest, addresses) = reader::read(File::open(path).ok()?).ok()??;
        let mut snapshot: Self = serde_json::from_slice(&rest).ok()?;
        snapshot.remote.addresses = addresses;
        Some(snapshot)
    }

    /// With what was learned since.
    fn with(mut self, changes: Changes) -> Self {
        self.saved = self.saved.max(changes.written.unwrap_or(self.saved));
        if let Some((header, witness)) = changes.store {
            (self.store, self.revision, self.witness) = (header.cluster, header.revision, witness);
        }
        self.identities.retain(|(number, _)| !changes.identities.contains_key(number));
        let new = changes.identities.into_iter();
        self.identities.extend(new.filter_map(|(number, labels)| Some((number, labels?))));
        self.copies.retain(|(key, ..)| !changes.copies.contains_key(key));
        let new = changes.copies.into_iter();
        self.copies.extend(new.filter_map(|(key, row)| row.map(|(number, labels)| (key, number, labels))));
        self.remote = self.remote.with(changes.addresses, changes.nodes);
        self
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
        let leased = self.remote.addresses.values().filter(|address| address.leased);
        // Many addresses have one number.
        let leased: HashSet<NumericIdentity> = leased.map(|address| address.identity).collect();
        KnownIdentities {
            rows: self.identities.iter().filter_map(row).collect(),
            seen: self.seen(),
            witness: self.witness.clone(),
            leased: leased.into_iter().collect(),
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

    /// How old one that was written then is now, in words; a clock that was or is wrong does not know.
    pub fn age(saved: Timestamp, now: Timestamp) -> String {
        let age = now.duration_since(saved).as_secs();
        match age {
            0.. => format!("age {age}s"),
            _ => format!("age unknown (it says that it was written {}s from now: a clock was wrong)", -age),
        }
    }
}

// === impl Head ===

impl Head {
    /// Of now: which store says so, a write of it, which store holds this agent's own copies, and where lies what is learned
    /// from now on.
    pub fn new(header: Option<Header>, witness: Option<Witness>, mesh: Option<Header>, learned: u64) -> Self {
        let (store, revision) = header.map_or((0, 0), |header| (header.cluster, header.revision));
        let mesh = mesh.map(|header| (header.cluster, header.revision));
        Self { format: FORMAT, saved: Timestamp::now(), store, revision, witness, mesh, learned }
    }
}

// === impl Writer ===

impl Writer {
    /// Begins one. The parts follow in the order of these methods.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(state: &StateDir, head: &Head) -> io::Result<Self> {
        let file = Replacement::begin(&state.path(FILE), 0o600).map_err(io::Error::other)?;
        let mut out = BufWriter::with_capacity(BUFFER, file);
        let head = serde_json::to_string(head)?;
        out.write_all(head.trim_end_matches('}').as_bytes())?;
        out.write_all(br#","identities":["#)?;
        Ok(Self { state: state.clone(), out, separator: "" })
    }

    fn item(&mut self, item: &impl Serialize) -> io::Result<()> {
        self.out.write_all(self.separator.as_bytes())?;
        self.separator = ",";
        Ok(serde_json::to_writer(&mut self.out, item)?)
    }

    fn part(&mut self, between: &str) -> io::Result<()> {
        self.separator = "";
        self.out.write_all(between.as_bytes())
    }

    /// # Errors
    /// The file system refuses.
    pub fn identities(&mut self, rows: &[(NumericIdentity, Labels)]) -> io::Result<()> {
        rows.iter().try_for_each(|(number, labels)| self.item(&(number.0, labels.to_kvstore())))
    }

    /// # Errors
    /// The file system refuses.
    pub fn copies(&mut self, rows: &[(Arc<str>, NumericIdentity, Labels)]) -> io::Result<()> {
        self.part(r#"],"copies":["#)?;
        rows.iter().try_for_each(|(key, number, labels)| self.item(&(&**key, number.0, labels.to_kvstore())))
    }

    /// # Errors
    /// The file system refuses.
    pub fn nodes(&mut self, record: &RemoteRecord) -> io::Result<()> {
        self.part(r#"],"remote":{"nodes":["#)?;
        record.nodes.iter().try_for_each(|node| self.item(node))?;
        self.part(r#"],"copied_nodes":["#)?;
        record.copied_nodes.iter().try_for_each(|node| self.item(node))?;
        self.part(r#"],"addresses":["#)
    }

    /// To be called as often as it takes.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn addresses(&mut self, rows: &[(Arc<str>, AddressRecord)]) -> io::Result<()> {
        rows.iter().try_for_each(|(key, address)| self.item(&(&**key, address)))
    }

    /// Puts it in the place of the one before.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn finish(mut self) -> io::Result<()> {
        self.part("]}}")?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let (path, before) = (self.state.path(FILE), self.state.path(BEFORE));
        if path.exists() {
            std::fs::rename(&path, before)?;
        }
        file.finish().map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_snapshot_makes_sense_whatever_the_clock_was() {
        let now = Timestamp::now();
        for (ago, said) in
            [(0, "age 0s"), (3600, "age 3600s"), (-1, "written 1s from now"), (-86_400, "86400s from now")]
        {
            let saved = now - jiff::SignedDuration::from_secs(ago);
            let text = Snapshot::age(saved, now);
            assert!(text.contains(said), "{text}");
        }
        assert!(Snapshot::age(Timestamp::MAX, Timestamp::MIN).contains("unknown"));
        assert!(Snapshot::age(Timestamp::MIN, Timestamp::MAX).starts_with("age "));
    }
}
