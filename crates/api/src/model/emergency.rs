//! What operators did by hand, and where the agent keeps its hands off.

use serde::{Deserialize, Serialize};

use super::is_default;

/// Answer of `GET /villus/emergency`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EmergencyList {
    /// Entries that are in policy maps because somebody put them there.
    pub entries: Vec<EmergencyEntry>,
    /// Endpoints whose policy map the agent does not touch.
    pub holds: Vec<Hold>,
}

/// An entry that somebody put into a policy map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EmergencyEntry {
    /// Names it for `emergency undo`.
    pub id: String,
    /// The endpoint.
    pub endpoint: u16,
    /// `Ingress` or `Egress`.
    pub direction: String,
    /// The key's text.
    pub key: String,
    /// `villus emergency allow`, or `by hand` where no journal knows it.
    pub origin: String,
    /// Since when, RFC 3339; empty if not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// Until when, RFC 3339; empty until undone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub until: String,
    /// What it does not open, for example because a deny is more specific.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The agent's hands are off an endpoint's policy map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Hold {
    /// The endpoint.
    pub endpoint: u16,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Body of `PUT /villus/hold/{endpoint}`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct HoldRequest {
    /// Why.
    pub reason: String,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}
