//! What a node takes from the store: the last good version of each object.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use villus_kvstore::{Batch, Entry, Item};
use villus_policy::{ObjectKey, ParsedFile};

use crate::{Kept, ObjectName, Policies, Stale, Version, held::Held};

/// Origin of policies that came from the shared store.
pub const ORIGIN: &str = "cluster";

/// The policies of a cluster as a node has them. An object that cannot be read or enforced never replaces a good one, and
/// what a store loses that was wiped or restored from a backup stays in force until somebody has said what is to be.
#[derive(Clone, Debug)]
pub struct Mirror {
    prefix: String,
    objects: BTreeMap<ObjectName, Held>,
    /// Keys that cannot be used, and why.
    refused: BTreeMap<Arc<str>, String>,
    revision: u64,
}

/// What a batch changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Objects that are new or different, with [`ORIGIN`] as their origin.
    pub put: Vec<(ObjectName, Version, ParsedFile)>,
    /// Objects that are gone.
    pub gone: Vec<(ObjectName, Vec<ObjectKey>)>,
    /// Objects that stay as they were although the store has lost them.
    pub stale: Vec<ObjectName>,
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

    /// Takes what was in force before a restart; it stays until the store was listed, and longer if the store has lost it.
    ///
    /// # Errors
    /// Why it cannot be enforced.
    pub fn restore(&mut self, kept: &Kept) -> Result<ParsedFile, String> {
        let parsed = of_the_cluster(kept.version.parsed(&kept.name)?);
        self.objects.insert(kept.name.clone(), Held::restored(kept, &parsed));
        Ok(parsed)
    }

    /// An object as it is kept for a start without the store; nothing if it is not in force.
    pub fn kept(&self, name: &ObjectName) -> Option<Kept> {
        self.objects.get(name).map(|held| held.kept(name))
    }

    /// Takes back what a batch has changed of an object: what `before` says of it stays in force, for this reason.
    pub fn withhold(&mut self, before: &Self, name: &ObjectName, reason: String) {
        match before.objects.get(name) {
            Some(held) => self.objects.insert(name.clone(), Held { unconfirmed: false, ..held.clone() }),
            None => self.objects.remove(name),
        };
        self.refused.insert(self.key_of(name).into(), reason);
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
                self.hold(name, version, &parsed);
                Some(parsed)
            }
            None => None,
        };
        self.refused.remove(self.key_of(name).as_str());
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
        let anew = batch.is_of_another_past();
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    listed.insert(Arc::clone(&entry.key));
                    self.put(entry, batch, &mut changes);
                }
                // Nobody has deleted it.
                Item::Delete { key, .. } if anew => drop(self.refused.remove(key)),
                Item::Delete { key, .. } => {
                    self.refused.remove(key);
                    self.remove(key, &mut changes);
                }
            }
        }
        if anew {
            self.lose(&listed, &mut changes);
        } else if batch.relisted.is_some() {
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
        self.objects.iter().map(|(name, held)| (name, held.version.version))
    }

    /// The version of an object that is in force.
    pub fn version_of(&self, name: &ObjectName) -> Option<u64> {
        self.objects.get(name).map(|held| held.version.version)
    }

    /// Whether this version of an object is in force.
    pub fn has(&self, name: &ObjectName, version: &Version) -> bool {
        let held = self.objects.get(name).map(|held| &held.version);
        held.is_some_and(|held| held.version == version.version && held.object == version.object)
    }

    /// Objects that are in force although the store has lost them.
    pub fn stale(&self) -> impl Iterator<Item = (&ObjectName, &Version, Stale)> {
        self.objects.iter().filter_map(|(name, held)| Some((name, &*held.version, held.stale?)))
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

    fn key_of(&self, name: &ObjectName) -> String {
        format!("{}{}", self.prefix, name.suffix())
    }

    fn put(&mut self, entry: &Entry, batch: &Batch, changes: &mut Changes) {
        let read = || {
            let name = self.name_of(&entry.key).ok_or("the key is not KIND/NAMESPACE/NAME")?;
            let version = Version::read(entry).map_err(|error| error.to_string())?;
            let is_deletion = version.deleted && version.object.is_none();
            let parsed = if is_deletion { None } else { Some(of_the_cluster(version.parsed(&name)?)) };
            Ok::<_, String>((name, version, parsed))
        };
        match read() {
            Ok((name, version, parsed)) => {
                self.refused.remove(&entry.key);
                if batch.relisted.is_some() && self.outlasts(&name, &version, batch) {
                    self.note_stale(&name, Stale { stored: Some(version.version) }, changes);
                } else if let Some(parsed) = parsed {
                    self.hold(&name, &version, &parsed);
                    changes.put.push((name, version, parsed));
                } else {
                    self.remove(&entry.key, changes);
                }
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

    /// Whether what is in force is later than what a list says of it. Only a store that has lost something says so; and what a
    /// watch tells was written just now, whatever its number.
    fn outlasts(&self, name: &ObjectName, version: &Version, batch: &Batch) -> bool {
        self.objects.get(name).is_some_and(|held| {
            (batch.is_of_another_past() || held.stale.is_some()) && !held.gives_way_to(version)
        })
    }

    fn hold(&mut self, name: &ObjectName, version: &Version, parsed: &ParsedFile) {
        let held = Held::new(Arc::new(version.clone()), parsed, self.objects.get(name));
        self.objects.insert(name.clone(), held);
    }

    fn remove(&mut self, key: &str, changes: &mut Changes) {
        if let Some(name) = self.name_of(key)
            && let Some(held) = self.objects.remove(&name)
        {
            changes.gone.push((name, held.keys));
        }
    }

    /// After a list: what came from disk and is not in it is gone, unless it was lost before.
    fn confirm(&mut self, listed: &BTreeSet<Arc<str>>, changes: &mut Changes) {
        let in_question = self.objects.iter().filter(|(_, held)| held.unconfirmed && held.stale.is_none());
        let keys = self.unlisted(in_question.map(|(name, _)| name), listed);
        keys.iter().for_each(|(_, key)| self.remove(key, changes));
    }

    /// After a list of a store with another past: what is in force and not in it was lost.
    fn lose(&mut self, listed: &BTreeSet<Arc<str>>, changes: &mut Changes) {
        for (name, _) in self.unlisted(self.objects.keys(), listed) {
            self.note_stale(&name, Stale { stored: None }, changes);
        }
    }

    fn unlisted<'a>(
        &self,
        names: impl Iterator<Item = &'a ObjectName>,
        listed: &BTreeSet<Arc<str>>,
    ) -> Vec<(ObjectName, String)> {
        let all = names.map(|name| (name.clone(), self.key_of(name)));
        all.filter(|(_, key)| !listed.contains(key.as_str())).collect()
    }

    fn note_stale(&mut self, name: &ObjectName, stale: Stale, changes: &mut Changes) {
        let Some(held) = self.objects.get_mut(name) else { return };
        held.unconfirmed = false;
        if held.stale.replace(stale) != Some(stale) {
            changes.stale.push(name.clone());
        }
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
