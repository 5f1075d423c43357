use std::{collections::BTreeSet, fmt, sync::Arc};

use thiserror::Error;

use crate::{KNOWN_SOURCES, Label, Labels, label::source, nearest, text::excerpt};

/// A selector that can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// No key.
    #[error("a selector key is empty; write `key` or `source:key`")]
    EmptyKey,
    /// What stands before the `:` of a key is no source.
    #[error("selector key `{key}`: `{source_name}` is not a label source{hint} (known: {known})", known = KNOWN_SOURCES.join(", "))]
    UnknownSource {
        /// The key.
        key: String,
        /// What stands before the `:`.
        source_name: String,
        /// ``; did you mean `…`?``, or nothing.
        hint: String,
    },
    /// `k8s:any:app`.
    #[error("selector key `{0}` names two sources; keep one, for example `k8s:app`")]
    TwoSources(String),
    /// `k8s:app` and `container:app` in one selector.
    #[error(
        "the selector asks for key `{key}` from two sources ({first} and {second}); a workload has one label per key, so \
         name one source, or none to take any"
    )]
    KeyOfTwoSources {
        /// The key.
        key: String,
        /// One source.
        first: String,
        /// The other.
        second: String,
    },
    /// Too long.
    #[error("selector on `{key}`: the {part} has {len} characters, at most {max} are allowed; shorten it")]
    TooLong {
        /// The key.
        key: String,
        /// `key's name`, `key's prefix` or `value`.
        part: &'static str,
        /// Length found.
        len: usize,
        /// Length allowed.
        max: usize,
    },
    /// Not what Kubernetes takes as a label.
    #[error(
        "selector on `{key}`: the {part} `{text}` is not valid; letters, digits, `-`, `_` and `.` are allowed, and the ends \
         must be a letter or digit"
    )]
    BadText {
        /// The key.
        key: String,
        /// `key` or `value`.
        part: &'static str,
        /// What was read.
        text: String,
    },
    /// Not an operator.
    #[error(
        "selector on `{key}`: operator `{operator}` is unknown{hint}; use In, NotIn, Exists or DoesNotExist"
    )]
    UnknownOperator {
        /// The key.
        key: String,
        /// What was read.
        operator: String,
        /// ``; did you mean `…`?``, or nothing.
        hint: String,
    },
    /// `In` without values, `Exists` with some.
    #[error("selector on `{key}`: operator {operator} needs {needs}")]
    Values {
        /// The key.
        key: String,
        /// The operator.
        operator: &'static str,
        /// `at least one value` or `an empty list of values`.
        needs: &'static str,
    },
    /// A selector of absurd size.
    #[error("the selector has {found} {what}, at most {max} are allowed; split it")]
    TooBig {
        /// `requirements` or `values`.
        what: &'static str,
        /// How many.
        found: usize,
        /// Allowed.
        max: usize,
    },
}

/// Most values of one requirement.
const MAX_VALUES: usize = 1024;

/// Which source a requirement asks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeySource {
    /// Whatever the source: `any:` or a bare key.
    Any,
    /// This one.
    Is(Arc<str>),
}

/// Source and key that a requirement speaks about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SelectorKey {
    pub(crate) key: Arc<str>,
    pub(crate) source: KeySource,
}

impl SelectorKey {
    /// Reads `k8s:app`, `any:app` or `app`.
    ///
    /// # Errors
    /// An unknown source, two sources, a key that is too long or that Kubernetes would not take.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let (source, key) = match text.split_once(':') {
            None => (KeySource::Any, text),
            Some((source::ANY | "", key)) => (KeySource::Any, key),
            Some((name, key)) if KNOWN_SOURCES.contains(&name) => (KeySource::Is(name.into()), key),
            Some((name, _)) => {
                let hint = nearest(name, KNOWN_SOURCES)
                    .map(|n| format!("; did you mean `{n}`?"))
                    .unwrap_or_default();
                let source_name = excerpt(name);
                return Err(SelectorError::UnknownSource { key: excerpt(text), source_name, hint });
            }
        };
        if key.is_empty() {
            return Err(SelectorError::EmptyKey);
        }
        if key.contains(':') {
            return Err(SelectorError::TwoSources(excerpt(text)));
        }
        check_key(key)?;
        Ok(Self { key: key.into(), source })
    }

    /// The key of a label, its source included.
    #[must_use]
    pub fn of_label(label: &Label) -> Self {
        Self { key: label.key().into(), source: KeySource::Is(label.source().into()) }
    }

    /// The key without source.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The source asked for.
    #[must_use]
    pub fn source(&self) -> &KeySource {
        &self.source
    }

    /// The source's name; `any` where it does not matter.
    #[must_use]
    pub fn source_name(&self) -> &str {
        match &self.source {
            KeySource::Any => source::ANY,
            KeySource::Is(name) => name,
        }
    }

    fn value_in<'a>(&self, labels: &'a Labels) -> Option<&'a str> {
        let label = labels.get(&self.key)?;
        match &self.source {
            KeySource::Is(source) if **source != *label.source() => None,
            _ => Some(label.value()),
        }
    }
}

impl fmt::Display for SelectorKey {
    /// `any:app`, `k8s:app`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source_name(), self.key)
    }
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    let own = key.strip_prefix(crate::KEY_NAMESPACE_LABELS).unwrap_or(key);
    let (prefix, name) = own.rsplit_once('/').unwrap_or(("", own));
    for (part, text, max) in [("key's prefix", prefix, 253), ("key's name", name, 63)] {
        if text.len() > max {
            return Err(SelectorError::TooLong { key: excerpt(key), part, len: text.len(), max });
        }
    }
    let bad = || SelectorError::BadText { key: excerpt(key), part: "key", text: excerpt(key) };
    if name.is_empty() || !is_label_text(name) || !is_label_text(prefix) || own.starts_with('/') {
        return Err(bad());
    }
    Ok(())
}

fn is_label_text(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let end = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    text.bytes().all(inner) && end(text.as_bytes().first()) && end(text.as_bytes().last())
}

/// What is asked of a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operator {
    /// The label is there with one of these values.
    In(BTreeSet<Arc<str>>),
    /// The label is not there, or has none of these values.
    NotIn(BTreeSet<Arc<str>>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Operator {
    const NAMES: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

    /// The operator's name in Kubernetes.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::In(_) => "In",
            Self::NotIn(_) => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }

    /// The values of `In` and `NotIn`.
    #[must_use]
    pub fn values(&self) -> Option<&BTreeSet<Arc<str>>> {
        match self {
            Self::In(values) | Self::NotIn(values) => Some(values),
            Self::Exists | Self::DoesNotExist => None,
        }
    }
}

/// One condition on one key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Requirement {
    /// What it speaks about.
    pub key: SelectorKey,
    /// What it asks.
    pub operator: Operator,
}

impl Requirement {
    /// An item of `matchLabels`.
    ///
    /// # Errors
    /// A key or value that can't be a label's.
    pub fn equals(key: &str, value: &str) -> Result<Self, SelectorError> {
        Self::expression(key, "In", [value])
    }

    /// An item of `matchExpressions`.
    ///
    /// # Errors
    /// A key, operator or value that can't be, or values that don't fit the operator.
    pub fn expression<'a>(
        key: &str,
        operator: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SelectorError> {
        let parsed = SelectorKey::parse(key)?;
        let values: BTreeSet<Arc<str>> = values.into_iter().map(Arc::from).collect();
        if values.len() > MAX_VALUES {
            return Err(SelectorError::TooBig { what: "values", found: values.len(), max: MAX_VALUES });
        }
        for value in &values {
            check_value(&parsed.key, value)?;
        }
        let operator = match (operator, values.is_empty()) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            (name, _) => return Err(wrong_operator(key, name)),
        };
        Ok(Self { key: parsed, operator })
    }

    /// Whether labels meet the condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = self.key.value_in(labels);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

fn wrong_operator(key: &str, name: &str) -> SelectorError {
    let key = excerpt(key);
    match Operator::NAMES.iter().find(|known| **known == name) {
        Some(operator @ (&"In" | &"NotIn")) => {
            SelectorError::Values { key, operator, needs: "at least one value" }
        }
        Some(operator) => SelectorError::Values { key, operator, needs: "an empty list of values" },
        None => {
            let hint =
                nearest(name, Operator::NAMES).map(|n| format!(", did you mean `{n}`?")).unwrap_or_default();
            SelectorError::UnknownOperator { key, operator: excerpt(name), hint }
        }
    }
}

fn check_value(key: &str, value: &str) -> Result<(), SelectorError> {
    let object_name = key.starts_with("io.cilium.") && !key.starts_with(crate::KEY_NAMESPACE_LABELS);
    let max = if object_name { 253 } else { 63 };
    if value.len() > max {
        return Err(SelectorError::TooLong { key: excerpt(key), part: "value", len: value.len(), max });
    }
    if !is_label_text(value) {
        return Err(SelectorError::BadText { key: excerpt(key), part: "value", text: excerpt(value) });
    }
    Ok(())
}
