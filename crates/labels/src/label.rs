use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{LabelError, text::excerpt};

/// Names of label sources.
pub mod source {
    /// Kubernetes: pod and namespace labels.
    pub const K8S: &str = "k8s";
    /// Villus' own: host, world, init, …
    pub const RESERVED: &str = "reserved";
    /// An IP prefix.
    pub const CIDR: &str = "cidr";
    /// A CiliumCIDRGroup.
    pub const CIDR_GROUP: &str = "cidrgroup";
    /// A DNS name.
    pub const FQDN: &str = "fqdn";
    /// A container runtime.
    pub const CONTAINER: &str = "container";
    /// In selectors only: whatever the source.
    pub const ANY: &str = "any";
    /// No source was given.
    pub const UNSPEC: &str = "unspec";
    /// Labels of other nodes.
    pub const NODE: &str = "node";
}

/// The sources the field knows; others are taken in labels, not in selectors.
pub const KNOWN_SOURCES: [&str; 12] = [
    source::K8S,
    source::RESERVED,
    source::CIDR,
    source::CIDR_GROUP,
    source::FQDN,
    source::CONTAINER,
    source::ANY,
    "cni",
    "gen",
    "node",
    source::UNSPEC,
    "directory",
];

/// Longest source, in bytes.
const MAX_SOURCE: usize = 63;
/// Longest key: a Kubernetes key (253 + `/` + 63) behind the prefix of namespace labels, and room.
const MAX_KEY: usize = 512;
/// Longest value that is taken from anybody, in bytes.
const MAX_VALUE: usize = 1024;
/// Longest name part of a Kubernetes key, and longest value, in bytes.
const MAX_K8S_NAME: usize = 63;
/// Longest prefix part of a Kubernetes key, and longest name of a Kubernetes object, in bytes.
const MAX_K8S_PREFIX: usize = 253;

/// One label: `source:key=value`. Clones share one allocation.
///
/// Labels are ordered by key, then source, then value, all bytewise.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Label {
    /// `source:key=value`, the `=` always present.
    text: Arc<str>,
    key_at: u16,
    value_at: u16,
}

/// Whether every part of a label may hold the character.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

impl Label {
    /// A label of these parts.
    ///
    /// # Errors
    /// A part is too long, contains a control character or a separator of the texts labels are written in:
    /// `:` or `=` in the source, `=` or white space in the key, `;` anywhere.
    pub fn new(source: &str, key: &str, value: &str) -> Result<Self, LabelError> {
        if key.is_empty() {
            return Err(LabelError::Empty);
        }
        let whole = || excerpt(&format!("{source}:{key}={value}"));
        for (part, text, max, forbidden) in [
            ("source", source, MAX_SOURCE, ":=;,/ "),
            ("key", key, MAX_KEY, "=;, "),
            ("value", value, MAX_VALUE, ";"),
        ] {
            if text.len() > max {
                return Err(LabelError::TooLong { label: whole(), part, len: text.len(), max });
            }
            if !text.bytes().all(is_plain)
                && let Some(c) = text.chars().find(|c| c.is_control() || forbidden.contains(*c))
            {
                return Err(LabelError::BadCharacter { label: whole(), part, character: named(c) });
            }
        }
        Ok(Self::joined(source, key, value))
    }

    /// Both offsets fit: the lengths were checked against limits that add up to less than 65,536.
    fn joined(source: &str, key: &str, value: &str) -> Self {
        let key_at = source.len() + 1;
        let value_at = key_at + key.len() + 1;
        let mut text = String::with_capacity(value_at + value.len());
        for part in [source, ":", key, "=", value] {
            text.push_str(part);
        }
        Self { text: text.into(), key_at: key_at as u16, value_at: value_at as u16 }
    }

    /// A label without a value whose short parts this crate wrote itself.
    pub(crate) fn known(source: &str, key: &str) -> Self {
        Self::joined(source, key, "")
    }

    /// Reads `source:key=value`, `source:key`, `key=value` or `key`; without a source it is `default_source`.
    ///
    /// The source ends at the first `:` before the first `=`; the value is all after the first `=`.
    ///
    /// # Errors
    /// As [`Label::new`], and an empty text or key.
    pub fn parse_with_source(text: &str, default_source: &str) -> Result<Self, LabelError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (source, key) = match name.split_once(':') {
            Some(("", key)) => (default_source, key),
            Some((source, key)) => (source, key),
            None => (default_source, name),
        };
        Self::new(source, key, value)
    }

    /// Where the label comes from: `k8s`, `reserved`, `cidr`, …
    #[must_use]
    pub fn source(&self) -> &str {
        &self.text[..usize::from(self.key_at) - 1]
    }

    /// The key, without its source.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.text[usize::from(self.key_at)..usize::from(self.value_at) - 1]
    }

    /// The value; may be empty.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.text[usize::from(self.value_at)..]
    }

    /// `source:key=value` with the `=` even where the value is empty: the kvstore's form without its `;`.
    #[must_use]
    pub fn full_text(&self) -> &str {
        &self.text
    }

    /// Checks the lengths that Kubernetes sets for labels (key's prefix 253, key's name 63, value 63); labels
    /// whose values are names of Kubernetes objects (`io.cilium.…`, namespaces) may have 253.
    ///
    /// # Errors
    /// The part that is too long.
    pub fn check_kubernetes_lengths(&self) -> Result<(), LabelError> {
        let (key, value) = (self.key(), self.value());
        let too_long =
            |part, len, max| LabelError::TooLong { label: excerpt(&self.to_string()), part, len, max };
        let own = key.strip_prefix(crate::KEY_NAMESPACE_LABELS).unwrap_or(key);
        let (prefix, name) = own.rsplit_once('/').unwrap_or(("", own));
        if prefix.len() > MAX_K8S_PREFIX {
            return Err(too_long("key's prefix", prefix.len(), MAX_K8S_PREFIX));
        }
        if name.len() > MAX_K8S_NAME {
            return Err(too_long("key's name", name.len(), MAX_K8S_NAME));
        }
        let object_name = own.starts_with("io.cilium.") || own == crate::KEY_NAMESPACE;
        let max = if object_name { MAX_K8S_PREFIX } else { MAX_K8S_NAME };
        if value.len() > max {
            return Err(too_long("value", value.len(), max));
        }
        Ok(())
    }
}

fn named(c: char) -> String {
    match c {
        '\n' => "a line break".into(),
        '\t' => "a tab".into(),
        ' ' => "a space".into(),
        c if c.is_control() => format!("the control character U+{:04X}", u32::from(c)),
        c => format!("`{c}`"),
    }
}

// === impl Label ===

impl fmt::Display for Label {
    /// `source:key=value`, or `source:key` where the value is empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.value().is_empty() { self.text.trim_end_matches('=') } else { &self.text })
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Label {
    type Err = LabelError;

    /// [`Label::parse_with_source`] with `unspec`.
    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::parse_with_source(text, source::UNSPEC)
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key(), self.source(), self.value()).cmp(&(other.key(), other.source(), other.value()))
    }
}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        for (text, source, key, value) in [
            ("k8s:app=web", "k8s", "app", "web"),
            ("app=web", "unspec", "app", "web"),
            ("reserved:host", "reserved", "host", ""),
            ("cidr:10.0.0.0/8", "cidr", "10.0.0.0/8", ""),
            ("k8s:url=http://a/b?c=d", "k8s", "url", "http://a/b?c=d"),
            ("url=http://a", "unspec", "url", "http://a"),
            ("k8s:com.trip/appid=100", "k8s", "com.trip/appid", "100"),
        ] {
            let label: Label = text.parse().unwrap();
            assert_eq!((label.source(), label.key(), label.value()), (source, key, value), "{text}");
        }
    }

    #[test]
    fn an_overlong_label_and_control_characters_are_refused_by_name() {
        let long = format!("k8s:app={}", "x".repeat(64)).parse::<Label>().unwrap();
        let error = long.check_kubernetes_lengths().unwrap_err().to_string();
        assert!(error.contains("the value has 64 characters, at most 63"), "{error}");
        let error = "k8s:app=a\nb".parse::<Label>().unwrap_err().to_string();
        assert!(error.contains("line break") && !error.contains('\n'), "{error}");
        assert!(format!("k8s:app={}", "x".repeat(5000)).parse::<Label>().is_err());
        assert!("k8s:=x".parse::<Label>().is_err());
        assert!("k8s:a=b;c".parse::<Label>().is_err());
        let account = Label::new("k8s", crate::KEY_SERVICE_ACCOUNT, &"x".repeat(200)).unwrap();
        assert_eq!(account.check_kubernetes_lengths(), Ok(()));
    }
}
