//! Audit: which directions only report what they would deny.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use villus_abi::Direction;

/// The annotation by which a policy is audited: `true`, `false`, `ingress` or `egress`.
pub const AUDIT_ANNOTATION: &str = "policy.villus.io/audit";

/// The directions in which denials pass and are reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Audit {
    /// Towards endpoints.
    pub ingress: bool,
    /// From endpoints.
    pub egress: bool,
}

/// A text that says no audit mode.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is none of true, false, ingress and egress")]
pub struct AuditError(String);

impl Audit {
    /// No direction.
    pub const NONE: Self = Self { ingress: false, egress: false };
    /// Both directions.
    pub const BOTH: Self = Self { ingress: true, egress: true };

    /// Whether this direction is audited.
    #[must_use]
    pub const fn has(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether no direction is.
    #[must_use]
    pub const fn is_none(self) -> bool {
        !self.ingress && !self.egress
    }

    /// What either of two audits.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { ingress: self.ingress || other.ingress, egress: self.egress || other.egress }
    }

    /// What both of two audit.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { ingress: self.ingress && other.ingress, egress: self.egress && other.egress }
    }

    /// `false`, `true`, `ingress` or `egress`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.ingress, self.egress) {
            (false, false) => "false",
            (true, true) => "true",
            (true, false) => "ingress",
            (false, true) => "egress",
        }
    }
}

// === impl Audit ===

impl From<bool> for Audit {
    fn from(both: bool) -> Self {
        if both { Self::BOTH } else { Self::NONE }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Audit {
    type Err = AuditError;

    /// Reads what [`Self::name`] says and the words of switches, in any case.
    fn from_str(text: &str) -> Result<Self, AuditError> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "enabled" | "enable" | "on" | "1" | "both" => Ok(Self::BOTH),
            "false" | "disabled" | "disable" | "off" | "0" | "none" => Ok(Self::NONE),
            "ingress" => Ok(Self { ingress: true, egress: false }),
            "egress" => Ok(Self { ingress: false, egress: true }),
            _ => Err(AuditError(text.chars().take(80).collect())),
        }
    }
}

impl Serialize for Audit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Audit {
    /// Reads a text or a boolean.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Shape {
            Both(bool),
            Text(String),
        }
        match Shape::deserialize(deserializer)? {
            Shape::Both(both) => Ok(both.into()),
            Shape::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_survives_its_text_and_booleans_are_read() {
        for (ingress, egress) in [(false, false), (true, true), (true, false), (false, true)] {
            let audit = Audit { ingress, egress };
            assert_eq!(audit.to_string().parse(), Ok(audit));
            assert_eq!(
                serde_json::from_str::<Audit>(&serde_json::to_string(&audit).unwrap()).unwrap(),
                audit
            );
        }
        assert_eq!(serde_json::from_str::<Audit>("true").unwrap(), Audit::BOTH);
        assert_eq!("Enabled".parse(), Ok(Audit::BOTH));
        let error = "sometimes".parse::<Audit>().unwrap_err().to_string();
        assert_eq!(error, "`sometimes` is none of true, false, ingress and egress");
    }
}
