//! One version of an object.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use villus_kvstore::Entry;
use villus_policy::{ParsedFile, parse};

use crate::{ClusterPolicyError, ObjectName};

/// Value of a key below `current/` or `history/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Counts from 1, deletions too.
    pub version: u64,
    /// Who applied it, and where.
    pub author: String,
    /// When, RFC 3339, UTC.
    pub time: String,
    /// What it was for: `rollback to 3`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The object; nothing if this version deleted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Json>,
    /// Nothing is missing: this version deletes the object. It lies in the object's place where a node may have it although
    /// the store has not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

// === impl Version ===

impl Version {
    /// Reads the value of a key.
    ///
    /// # Errors
    /// It is not JSON of this shape.
    pub fn read(entry: &Entry) -> Result<Self, ClusterPolicyError> {
        serde_json::from_slice(&entry.value).map_err(|error| ClusterPolicyError::Damaged {
            key: entry.key.to_string(),
            reason: error.to_string(),
        })
    }

    /// The value.
    pub fn to_json(&self) -> String {
        // Strings, numbers and JSON only: this can't fail, and an empty value would be refused by readers.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// When it was written, by its author's clock; nothing if that makes no sense.
    pub(crate) fn at(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }

    /// The object, read as a policy file is, if it is the one that `name` says and can be enforced.
    ///
    /// # Errors
    /// Why no node could enforce it.
    pub fn parsed(&self, name: &ObjectName) -> Result<ParsedFile, String> {
        let Some(object) = &self.object else { return Err("the object is missing".to_owned()) };
        let parsed = parse(&name.to_string(), &object.to_string()).map_err(|refused| refused.to_string())?;
        let policies = parsed.policies.iter().map(|policy| &policy.key);
        let keys: Vec<ObjectName> = policies
            .chain(parsed.referents.iter().map(|referent| &referent.key))
            .map(ObjectName::from)
            .collect();
        match keys.as_slice() {
            [one] if one == name => Ok(parsed),
            [one] => Err(format!("the object is {one}; key and value must name the same")),
            _ => Err(format!("{} objects in one value", keys.len())),
        }
    }
}
