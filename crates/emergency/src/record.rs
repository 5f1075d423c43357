//! The lines of the journal.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use villus_abi::{Bytes, PolicyEntry, PolicyKey, bytes_of, from_bytes};

use crate::{
    boot_id,
    key::{from_hex, to_hex},
};

/// One line: what happened, when, and in which boot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339, UTC.
    pub time: String,
    /// The kernel's boot id.
    pub boot: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Endpoints are about to be opened.
    Allow(Allow),
    /// A process waits to undo a deed.
    Timer {
        /// The deed.
        id: u64,
        /// The process.
        pid: u32,
    },
    /// A deed was undone.
    Undone {
        /// The deed.
        id: u64,
        /// Who did it: a user, or `timer`.
        by: String,
        /// What was left as it was, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left: Vec<String>,
    },
    /// Entries that somebody had put in by hand were taken out for good.
    Deleted {
        /// Who did it.
        by: String,
        /// Where and what.
        changes: Vec<Change>,
    },
    /// An endpoint is deleted: deeds and holds no longer concern its id, which another may get.
    Gone {
        /// The endpoint.
        endpoint: u16,
    },
    /// The agent's hands are off an endpoint's policy map from now on.
    Hold {
        /// The endpoint.
        endpoint: u16,
        /// Why.
        #[serde(default)]
        reason: String,
    },
    /// A hold ends.
    Release {
        /// The endpoint.
        endpoint: u16,
    },
}

/// A deed: what is put into policy maps and what is taken out of them, until it is undone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Allow {
    /// Number of the deed, given by the journal.
    pub id: u64,
    /// Who did it.
    pub by: String,
    /// With which command: `emergency allow`, `bpf policy add`, …
    #[serde(default)]
    pub command: String,
    /// When it is to be undone, RFC 3339; empty for never.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub until: String,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// What a deed changes at one endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Change {
    /// The endpoint.
    pub endpoint: u16,
    /// Keys of entries that were not there before.
    #[serde(default, serialize_with = "write_keys", deserialize_with = "read_keys")]
    pub insert: Vec<PolicyKey>,
    /// Entries that are taken out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub take: Vec<Taken>,
}

/// An entry that was taken out, counters included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Taken {
    /// Its key.
    #[serde(serialize_with = "write_bytes", deserialize_with = "read_bytes")]
    pub key: PolicyKey,
    /// Its value.
    #[serde(serialize_with = "write_bytes", deserialize_with = "read_bytes")]
    pub entry: PolicyEntry,
}

impl Record {
    /// The line of something that happens now.
    #[must_use]
    pub fn now(event: Event) -> Self {
        Self { time: rfc3339(SystemTime::now()), boot: boot_id(), event }
    }
}

/// RFC 3339 in UTC, whole seconds; empty for a time no calendar has.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

fn write_bytes<T: Bytes, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&to_hex(bytes_of(value)))
}

fn read_bytes<'de, T: Bytes, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    decode(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("not the bytes of a key or value"))
}

fn write_keys<S: Serializer>(keys: &[PolicyKey], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(keys.iter().map(|key| to_hex(bytes_of(key))))
}

fn read_keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PolicyKey>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| decode(text).ok_or_else(|| D::Error::custom("not the bytes of a key"))).collect()
}

fn decode<T: Bytes>(text: &str) -> Option<T> {
    from_bytes(&from_hex(text)?)
}
