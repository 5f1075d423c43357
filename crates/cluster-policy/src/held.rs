//! An object that is in force on a node.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use villus_policy::{ObjectKey, ParsedFile};

use crate::{ObjectName, Version};

/// An object that is in force.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub version: Arc<Version>,
    pub keys: Vec<ObjectKey>,
    /// From disk: the store has not said yet whether it is still so.
    pub unconfirmed: bool,
    pub stale: Option<Stale>,
    /// The latest time that any of its versions had.
    pub latest: Option<Timestamp>,
}

/// The store has lost an object, or went back to an older version of it, and nobody has said that this is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The version that the store has instead; nothing if it has none or was not listed since the start.
    pub stored: Option<u64>,
}

/// An object as it is kept for a start without the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The object.
    pub name: ObjectName,
    /// Its last good version.
    pub version: Version,
    /// The store has lost it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    /// The latest time that any of its versions had, if it is not that of this one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    latest: String,
}

// === impl Held ===

impl Held {
    /// A version takes the place of what was held of the object.
    pub fn new(version: Arc<Version>, parsed: &ParsedFile, before: Option<&Self>) -> Self {
        let policies = parsed.policies.iter().map(|policy| policy.key.clone());
        let keys = policies.chain(parsed.referents.iter().map(|referent| referent.key.clone())).collect();
        let latest = version.at().max(before.and_then(|before| before.latest));
        Self { version, keys, unconfirmed: false, stale: None, latest }
    }

    /// What was in force before a restart.
    pub fn restored(kept: &Kept, parsed: &ParsedFile) -> Self {
        let held = Self::new(Arc::new(kept.version.clone()), parsed, None);
        let stale = kept.stale.then_some(Stale { stored: None });
        let latest = held.latest.max(kept.latest.parse().ok());
        Self { unconfirmed: true, stale, latest, ..held }
    }

    /// As it is kept.
    pub fn kept(&self, name: &ObjectName) -> Kept {
        let version = (*self.version).clone();
        let latest = self.latest.filter(|_| self.latest != version.at());
        let latest = latest.map(|latest| latest.to_string()).unwrap_or_default();
        Kept { name: name.clone(), version, stale: self.stale.is_some(), latest }
    }

    /// Whether a version that a store with another past has is a later one than this, or says the same. Its number may begin
    /// at 1 again there: then one that was written after all versions of this is a later one.
    pub fn gives_way_to(&self, version: &Version) -> bool {
        let is_same = version.object.is_some() && version.object == self.version.object;
        is_same || version.version > self.version.version || version.at() > self.latest
    }
}
