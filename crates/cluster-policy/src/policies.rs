//! Applying, deleting and going back: the writer's side.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value as Json;
use villus_kvstore::{Compare, Entry, Op, Store, StoreError, Txn};
use villus_policy::ParsedFile;

use crate::{ClusterPolicyError, Lost, ObjectName, POLICIES, Version};

/// Versions of an object that are kept besides the current one.
pub const KEPT: u64 = 50;
/// The most bytes of one version.
const MOST: usize = 1 << 20;
/// Objects of one transaction: three operations each, and etcd takes 128.
const TOGETHER: usize = 32;
/// Bytes of versions in one transaction; each is written twice.
const BYTES: usize = 600 << 10;

/// The policies of one cluster, in its store.
#[derive(Clone)]
pub struct Policies {
    store: Arc<dyn Store>,
    cluster: String,
}

/// An object as it stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The object.
    pub name: ObjectName,
    /// Its version; one without an object if it is deleted.
    pub version: Version,
    /// Revision of the store since which it is so.
    pub revision: u64,
}

/// A new version that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The object.
    pub name: ObjectName,
    /// What it is now, if it is.
    pub old: Option<Version>,
    /// What it will be.
    pub new: Version,
    /// Revision of what is there; 0 if nothing is.
    revision: u64,
    /// A node may have the object in force although the store has lost it.
    lost: bool,
}

/// What an object is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The object.
    pub name: ObjectName,
    /// It; nothing if it is to go.
    pub object: Option<Json>,
    /// What it is for.
    pub note: String,
    /// The version that it is to be if the store has none as high; the next one if not given.
    pub version: Option<u64>,
}

// === impl Policies ===

impl Policies {
    /// The policies of the cluster of this name.
    pub fn new(store: Arc<dyn Store>, cluster: &str) -> Self {
        Self { store, cluster: cluster.to_owned() }
    }

    /// Where the current versions lie, for who follows them.
    pub fn prefix(cluster: &str) -> String {
        format!("{POLICIES}/{cluster}/current/")
    }

    fn current_key(&self, name: &ObjectName) -> String {
        Self::prefix(&self.cluster) + &name.suffix()
    }

    fn history_prefix(&self, name: &ObjectName) -> String {
        format!("{POLICIES}/{}/history/{}/", self.cluster, name.suffix())
    }

    fn history_key(&self, name: &ObjectName, version: u64) -> String {
        // So that keys sort as versions do.
        format!("{}{version:010}", self.history_prefix(name))
    }

    /// All that the store has in force, and what cannot be read.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn current(&self) -> Result<(Vec<Standing>, Vec<ClusterPolicyError>), StoreError> {
        let prefix = Self::prefix(&self.cluster);
        let (mut all, mut damaged) = (Vec::new(), Vec::new());
        for entry in self.store.list_prefix(&prefix).await?.entries {
            match (ObjectName::of_suffix(&entry.key[prefix.len()..]), Version::read(&entry)) {
                (Some(_), Ok(version)) if version.deleted => {}
                (Some(name), Ok(version)) => {
                    all.push(Standing { name, version, revision: entry.mod_revision })
                }
                (None, _) => damaged.push(ClusterPolicyError::Damaged {
                    key: entry.key.to_string(),
                    reason: "the key is not KIND/NAMESPACE/NAME".to_owned(),
                }),
                (_, Err(error)) => damaged.push(error),
            }
        }
        Ok((all, damaged))
    }

    /// The object that somebody means: in force, deleted, or lost by the store and in force on a node.
    ///
    /// # Errors
    /// None or several are meant, or the store is not there.
    pub async fn find(&self, text: &str) -> Result<ObjectName, ClusterPolicyError> {
        let prefix = format!("{POLICIES}/{}/history/", self.cluster);
        let listing = self.store.list_prefix(&prefix).await?;
        let names = listing.entries.iter().filter_map(|entry| {
            let (object, _) = entry.key.get(prefix.len()..)?.rsplit_once('/')?;
            ObjectName::of_suffix(object)
        });
        let mut meant: BTreeSet<ObjectName> = names.filter(|name| name.is_meant_by(text)).collect();
        meant.extend(self.lost().await?.meant_by(text));
        match (meant.pop_first(), meant.len()) {
            (None, _) => Err(ClusterPolicyError::Unknown { what: format!("policy {text}") }),
            (Some(one), 0) => Ok(one),
            (Some(one), _) => {
                let all: Vec<String> = [one].iter().chain(&meant).map(ObjectName::suffix).collect();
                Err(ClusterPolicyError::Ambiguous { name: text.to_owned(), all: all.join(", ") })
            }
        }
    }

    /// All versions of an object that are kept, oldest first, each with the revision since which it was in force.
    ///
    /// # Errors
    /// When the store is not there or a version cannot be read.
    pub async fn history(&self, name: &ObjectName) -> Result<Vec<Standing>, ClusterPolicyError> {
        let listing = self.store.list_prefix(&self.history_prefix(name)).await?;
        let standing = |entry: &Entry| {
            let version = Version::read(entry)?;
            Ok(Standing { name: name.clone(), version, revision: entry.mod_revision })
        };
        listing.entries.iter().map(standing).collect()
    }

    /// What nodes say is in force there although the store has lost it. Who may not read what nodes say is told of nothing.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn lost(&self) -> Result<Lost, StoreError> {
        match Lost::of(&self.store, &self.cluster).await {
            Err(StoreError::Denied { .. }) => Ok(Lost::default()),
            lost => lost,
        }
    }

    /// What applying the objects of files changes; objects that are as they are in the store are left out, unless a node goes
    /// on with another version that the store has lost.
    ///
    /// # Errors
    /// An object is too large, or the store is not there.
    pub async fn plan(&self, files: &[ParsedFile], author: &str) -> Result<Vec<Change>, ClusterPolicyError> {
        let mut objects: BTreeMap<ObjectName, Json> = BTreeMap::new();
        for file in files {
            let referents = file.referents.iter().map(|referent| (&referent.key, &referent.object));
            let policies = file.policies.iter().map(|policy| (&policy.key, &policy.object));
            objects.extend(
                referents.chain(policies).map(|(key, object)| (ObjectName::from(key), object.to_json())),
            );
        }
        let wanted = objects.into_iter().map(|(name, object)| Wanted::object(name, Some(object)));
        self.changes(wanted, author).await
    }

    /// What it changes to write again what is in force on a node and the store has lost.
    ///
    /// # Errors
    /// Another node has a later version in force, or the store is not there.
    pub async fn plan_restore(
        &self,
        wanted: Vec<Wanted>,
        author: &str,
    ) -> Result<Vec<Change>, ClusterPolicyError> {
        let lost = self.lost().await?;
        for Wanted { name, version, .. } in &wanted {
            if let Some((node, latest)) = lost.latest(name)
                && version.is_some_and(|version| version < latest)
            {
                let (object, node) = (name.to_string(), node.to_owned());
                return Err(ClusterPolicyError::Later { object, node, version: latest });
            }
        }
        self.changes(wanted, author).await
    }

    /// What deleting an object changes: nothing if it is deleted.
    ///
    /// # Errors
    /// When the store is not there.
    pub async fn plan_delete(
        &self,
        name: &ObjectName,
        author: &str,
    ) -> Result<Option<Change>, ClusterPolicyError> {
        Ok(self.changes([Wanted::object(name.clone(), None)], author).await?.pop())
    }

    /// What going back to a version changes; without one, to the version before the current one.
    ///
    /// # Errors
    /// The version is not kept, or the store is not there.
    pub async fn plan_rollback(
        &self,
        name: &ObjectName,
        version: Option<u64>,
        author: &str,
    ) -> Result<Option<Change>, ClusterPolicyError> {
        let history = self.history(name).await?;
        let last = history.last().map_or(0, |last| last.version.version);
        let wanted = version.unwrap_or(last.saturating_sub(1));
        let Some(old) = history.into_iter().find(|old| old.version.version == wanted) else {
            return Err(ClusterPolicyError::NoVersion { object: name.to_string(), version: wanted });
        };
        let back = Wanted::object(name.clone(), old.version.object);
        let back = Wanted { note: format!("rollback to {wanted}"), ..back };
        Ok(self.changes([back], author).await?.pop())
    }

    async fn changes(
        &self,
        wanted: impl IntoIterator<Item = Wanted>,
        author: &str,
    ) -> Result<Vec<Change>, ClusterPolicyError> {
        let lost = self.lost().await?;
        let mut changes = Vec::new();
        for wanted in wanted {
            changes.extend(self.change(wanted, author, &lost).await?);
        }
        Ok(changes)
    }

    async fn change(
        &self,
        wanted: Wanted,
        author: &str,
        lost: &Lost,
    ) -> Result<Option<Change>, ClusterPolicyError> {
        let Wanted { name, object, note, version } = wanted;
        let entry = self.store.get(&self.current_key(&name)).await?;
        let revision = entry.as_ref().map_or(0, |entry| entry.mod_revision);
        // What cannot be read is written anew.
        let old = entry.as_ref().and_then(|entry| Version::read(entry).ok());
        let lost = lost.version_of(&name);
        let is_same = match &old {
            Some(old) => old.object == object,
            None => object.is_none() && entry.is_none(),
        };
        // Nodes that have less than the store hear of it, or hold it back themselves: saying it again tells them nothing.
        let is_said = lost.is_none_or(|lost| old.as_ref().is_some_and(|old| old.version > lost));
        if is_same && (is_said || version.is_some()) {
            return Ok(None);
        }
        let stored = self.last_version(&name).await?.max(old.as_ref().map_or(0, |old| old.version));
        // Nodes that have more than the store take it for later than what they have.
        let next = 1 + stored.max(lost.unwrap_or_default());
        let version = version.filter(|version| *version > stored).unwrap_or(next);
        let old = old.filter(|old| !old.deleted);
        let deleted = object.is_none();
        let new = Version { version, author: author.to_owned(), time: now(), note, object, deleted };
        let size = new.to_json().len();
        if size > MOST {
            return Err(ClusterPolicyError::TooLarge { object: name.to_string(), size, most: MOST });
        }
        Ok(Some(Change { name, old, new, revision, lost: lost.is_some() }))
    }

    async fn last_version(&self, name: &ObjectName) -> Result<u64, StoreError> {
        let prefix = self.history_prefix(name);
        let listing = self.store.list_prefix(&prefix).await?;
        let last = listing.entries.last().and_then(|entry| entry.key.get(prefix.len()..)?.parse().ok());
        Ok(last.unwrap_or_default())
    }

    /// Writes changes, up to 32 objects in one transaction. Returns how many were written.
    ///
    /// # Errors
    /// With how many were written before: somebody else changed an object meanwhile, or the store is not there.
    pub async fn write(&self, changes: &[Change]) -> Result<usize, (usize, ClusterPolicyError)> {
        let mut done = 0;
        while done < changes.len() {
            let mut bytes = 0;
            let fits = |change: &&Change| {
                bytes += change.new.to_json().len();
                bytes <= BYTES
            };
            let count = changes[done..].iter().take(TOGETHER).take_while(fits).count().max(1);
            let batch = &changes[done..done + count];
            let txn = batch.iter().fold(Txn::new(), |txn, change| self.written(txn, change));
            match self.store.txn(txn).await {
                Ok(outcome) if outcome.held => done += count,
                Ok(_) => {
                    let all: Vec<String> = batch.iter().map(|change| change.name.to_string()).collect();
                    return Err((done, ClusterPolicyError::Changed { object: all.join(" or ") }));
                }
                Err(error) => return Err((done, error.into())),
            }
        }
        Ok(done)
    }

    fn written(&self, txn: Txn, change: &Change) -> Txn {
        let Change { name, new, revision, lost, .. } = change;
        let (current, value) = (self.current_key(name), new.to_json());
        let history = self.history_key(name, new.version);
        let as_seen = match revision {
            0 => Compare::Absent(current.clone()),
            revision => Compare::ModRevision(current.clone(), *revision),
        };
        let txn = txn.when(as_seen).when(Compare::Absent(history.clone()));
        let txn = txn.then(Op::put(history, value.clone(), None)).then(match new.object {
            None if !lost => Op::Delete(current),
            // What deletes it must be found by nodes that have what the store has lost.
            Some(_) | None => Op::put(current, value, None),
        });
        match new.version.checked_sub(KEPT + 1) {
            Some(old @ 1..) => txn.then(Op::Delete(self.history_key(name, old))),
            _ => txn,
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// The object, or that it is to go.
    fn object(name: ObjectName, object: Option<Json>) -> Self {
        Self { name, object, note: String::new(), version: None }
    }
}

/// RFC 3339, UTC, whole seconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
