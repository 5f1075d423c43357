//! What a node takes from the store: the last good version of each object.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use villus_kvstore::{Batch, Entry, Item};
use villus_policy::{ObjectKey, ParsedFile};

use crate::{ObjectName, Policies, Version};

/// Origin of policies that came from the shared store.
pub const ORIGIN: &str = "cluster";

/// The policies of a cluster as a node has them. An object that cannot be read or enforced never replaces a good one.
#[derive(Clone, Debug)]
pub struct Mirror {
    prefix: String,
    objects: BTreeMap<ObjectName, Held>,
    /// Keys that cannot be used, and why.
    refused: BTreeMap<Arc<str>, String>,
    revision: u64,
}

/// An object that is in force.
#[derive(Clone, Debug)]
struct Held {
    version: u64,
    keys: Vec<ObjectKey>,
    /// From disk: the store has not said yet whether it is still so.
    unconfirmed: bool,
}

/// What a batch changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Objects that are new or different, with [`ORIGIN`] as their origin.
    pub put: Vec<(ObjectName, Version, ParsedFile)>,
    /// Objects that are gone.
    pub gone: Vec<(ObjectName, Vec<ObjectKey>)>,
    /// Keys that could not be used and were not known to be so, with the reason.
    pub refused: Vec<(String, String)>,
}

// === impl Mirror ===

impl Mirror {
    /// Nothing is known yet of the policies of this cluster.
    pub fn new(cluster: &str) -> Self {
        let prefix = Policies::prefix(cluster);
        Self { prefix, objects: BTreeMap::new(), refused: BTreeMap::new(), revision: 0 }
    }

    /// Takes what was in force before a restart; it stays until the store was listed.
    ///
    /// # Errors
    /// Why it cannot be enforced.
    pub fn restore(&mut self, name: &ObjectName, version: &Version) -> Result<ParsedFile, String> {
        let parsed = of_the_cluster(version.parsed(name)?);
        self.hold(name, version.version, &parsed, true);
        Ok(parsed)
    }

    /// Takes back what a batch has changed of an object: what `before` says of it stays in force, for this reason.
    pub fn withhold(&mut self, before: &Self, name: &ObjectName, reason: String) {
        match before.objects.get(name) {
            Some(held) => self.objects.insert(name.clone(), Held { unconfirmed: false, ..held.clone() }),
            None => self.objects.remove(name),
        };
        self.refused.insert(format!("{}{}", self.prefix, name.suffix()).into(), reason);
    }

    /// Takes in a version of an object that was withheld; without one its deletion, whose policies are then returned.
    ///
    /// # Errors
    /// Why it cannot be enforced.
    pub fn admit(
        &mut self,
        name: &ObjectName,
        version: Option<&Version>,
    ) -> Result<(Option<ParsedFile>, Vec<ObjectKey>), String> {
        let parsed = match version {
            Some(version) => {
                let parsed = of_the_cluster(version.parsed(name)?);
                self.hold(name, version.version, &parsed, false);
                Some(parsed)
            }
            None => None,
        };
        self.refused.remove(format!("{}{}", self.prefix, name.suffix()).as_str());
        let gone = match parsed {
            Some(_) => Vec::new(),
            None => self.objects.remove(name).map(|held| held.keys).unwrap_or_default(),
        };
        Ok((parsed, gone))
    }

    /// The object that a key is of.
    pub fn object_of(&self, key: &str) -> Option<ObjectName> {
        self.name_of(key)
    }

    /// Applies a batch of the prefix [`Policies::prefix`].
    pub fn apply(&mut self, batch: &Batch) -> Changes {
        let mut changes = Changes::default();
        let mut listed = BTreeSet::new();
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    listed.insert(Arc::clone(&entry.key));
                    self.put(entry, &mut changes);
                }
                Item::Delete { key, .. } => {
                    self.refused.remove(key);
                    self.remove(key, &mut changes);
                }
            }
        }
        if batch.relisted.is_some() {
            self.confirm(&listed, &mut changes);
        }
        self.revision = batch.revision;
        changes
    }

    /// Revision of the store up to which everything was taken over.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Versions in force by object.
    pub fn versions(&self) -> impl Iterator<Item = (&ObjectName, u64)> {
        self.objects.iter().map(|(name, held)| (name, held.version))
    }

    /// The version of an object that is in force.
    pub fn version_of(&self, name: &ObjectName) -> Option<u64> {
        self.objects.get(name).map(|held| held.version)
    }

    /// Objects that cannot be used, as their keys end, with the reason; the last good version of such an object is in
    /// force.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        let end = |key| str::strip_prefix(key, &self.prefix).unwrap_or(key);
        self.refused.iter().map(move |(key, reason)| (end(key), reason.as_str()))
    }

    fn name_of(&self, key: &str) -> Option<ObjectName> {
        key.strip_prefix(&self.prefix).and_then(ObjectName::of_suffix)
    }

    fn put(&mut self, entry: &Entry, changes: &mut Changes) {
        let read = || {
            let name = self.name_of(&entry.key).ok_or("the key is not KIND/NAMESPACE/NAME")?;
            let version = Version::read(entry).map_err(|error| error.to_string())?;
            let parsed = version.parsed(&name)?;
            Ok::<_, String>((name, version, of_the_cluster(parsed)))
        };
        match read() {
            Ok((name, version, parsed)) => {
                self.refused.remove(&entry.key);
                self.hold(&name, version.version, &parsed, false);
                changes.put.push((name, version, parsed));
            }
            Err(reason) => {
                if let Some(held) = self.name_of(&entry.key).and_then(|name| self.objects.get_mut(&name)) {
                    held.unconfirmed = false;
                }
                let old = self.refused.insert(Arc::clone(&entry.key), reason.clone());
                if old.as_ref() != Some(&reason) {
                    changes.refused.push((entry.key.to_string(), reason));
                }
            }
        }
    }

    fn hold(&mut self, name: &ObjectName, version: u64, parsed: &ParsedFile, unconfirmed: bool) {
        let policies = parsed.policies.iter().map(|policy| policy.key.clone());
        let keys = policies.chain(parsed.referents.iter().map(|referent| referent.key.clone())).collect();
        self.objects.insert(name.clone(), Held { version, keys, unconfirmed });
    }

    fn remove(&mut self, key: &str, changes: &mut Changes) {
        if let Some(name) = self.name_of(key)
            && let Some(held) = self.objects.remove(&name)
        {
            changes.gone.push((name, held.keys));
        }
    }

    /// After a list: what came from disk and is not in it is gone.
    fn confirm(&mut self, listed: &BTreeSet<Arc<str>>, changes: &mut Changes) {
        let keys: Vec<String> = self
            .objects
            .iter()
            .filter(|(_, held)| held.unconfirmed)
            .map(|(name, _)| format!("{}{}", self.prefix, name.suffix()))
            .filter(|key| !listed.contains(key.as_str()))
            .collect();
        keys.iter().for_each(|key| self.remove(key, changes));
    }
}

/// Makes the objects those of the shared store.
fn of_the_cluster(mut parsed: ParsedFile) -> ParsedFile {
    let keys = parsed.policies.iter_mut().map(|policy| &mut policy.key);
    for key in keys.chain(parsed.referents.iter_mut().map(|referent| &mut referent.key)) {
        key.origin = ORIGIN.into();
    }
    parsed
}
