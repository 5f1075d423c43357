//! What policy asks for beside what the kernel's maps hold.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::EndpointRef;

/// Body of `POST /villus/verify`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct VerifyRequest {
    /// Only this endpoint's maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointRef>,
    /// Make the kernel as it should be.
    #[serde(skip_serializing_if = "is_default")]
    pub repair: bool,
    /// Say what a repair would do, and do nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub dry_run: bool,
}

/// What was compared and where it differs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct VerifyReport {
    /// What was compared.
    pub checked: Vec<Checked>,
    /// Where it differs.
    pub differences: Vec<Difference>,
}

impl VerifyReport {
    /// Nothing differs but what an operator did on purpose or what was repaired.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.differences
            .iter()
            .all(|difference| difference.repaired || difference.kind == DifferenceKind::HandMade)
    }
}

/// A map that was compared.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// Its name.
    pub map: String,
    /// How many entries it holds.
    pub entries: u64,
}

/// An entry that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// The map's name.
    pub map: String,
    /// The endpoint, if it is an endpoint's map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<u16>,
    /// How it differs.
    pub kind: DifferenceKind,
    /// The key's text.
    pub key: String,
    /// What should be there; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub want: String,
    /// What is there; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub have: String,
    /// It was mended.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repaired: bool,
    /// Why it could not be mended, or who did it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// How an entry differs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// It should be there and is not.
    Missing,
    /// It is there and should not be.
    Extra,
    /// Its value is another.
    Altered,
    /// It was put in by hand in an emergency, and is kept.
    HandMade,
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Altered => "altered",
            Self::HandMade => "hand-made",
        })
    }
}
