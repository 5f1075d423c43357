//! Which rule asked for an entry.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use crate::{ObjectKey, Position};

/// Where an entry of a policy map comes from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// An element of a rule of a policy.
    Rule(Arc<RuleOrigin>),
    /// The direction is not enforced.
    NotEnforced,
    /// `allow-localhost`.
    AllowLocalhost,
    /// `enable-policy=always`.
    AlwaysEnforced,
    /// The endpoint's labels are not known yet.
    Init,
}

/// An element of a rule of a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleOrigin {
    /// The policy.
    pub policy: ObjectKey,
    /// `spec.ingress[0]`.
    pub path: Arc<str>,
    /// Where it stands in the policy's file.
    pub position: Option<Position>,
    /// Whether it denies.
    pub deny: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => {
                write!(f, "{} {} ({}", rule.policy, rule.path, rule.policy.origin)?;
                if let Some(position) = rule.position {
                    write!(f, ":{}", position.line)?;
                }
                f.write_str(")")
            }
            Self::NotEnforced => f.write_str("no policy selects the endpoint in this direction"),
            Self::AllowLocalhost => f.write_str("option allow-localhost"),
            Self::AlwaysEnforced => f.write_str("option enable-policy=always"),
            Self::Init => f.write_str("the endpoint's labels are not known yet (reserved:init)"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape<'a> {
            text: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            policy: Option<&'a ObjectKey>,
            #[serde(skip_serializing_if = "Option::is_none")]
            path: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            position: Option<Position>,
            #[serde(skip_serializing_if = "Option::is_none")]
            deny: Option<bool>,
        }
        let rule = match self {
            Self::Rule(rule) => Some(rule),
            _ => None,
        };
        Shape {
            text: self.to_string(),
            policy: rule.map(|rule| &rule.policy),
            path: rule.map(|rule| &*rule.path),
            position: rule.and_then(|rule| rule.position),
            deny: rule.map(|rule| rule.deny),
        }
        .serialize(serializer)
    }
}
