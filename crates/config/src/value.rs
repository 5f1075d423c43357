//! The value of an option after it was checked.

use crate::duration;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, time::Duration};

/// A checked value. Its text form reads back to the same value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(u64),
    /// A number.
    Float(f64),
    /// A duration.
    Duration(Duration),
    /// A text: words, paths, addresses, prefixes.
    Text(String),
    /// Texts in order.
    List(Vec<String>),
    /// Texts by key.
    Map(BTreeMap<String, String>),
    /// Permission bits.
    Mode(u32),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => v.fmt(f),
            Self::Int(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Duration(v) => f.write_str(&duration::format(*v)),
            Self::Text(v) => v.fmt(f),
            Self::List(v) => f.write_str(&v.join(",")),
            Self::Map(v) if v.is_empty() => Ok(()),
            Self::Map(v) => f.write_str(&serde_json::to_string(v).unwrap_or_default()),
            Self::Mode(v) => write!(f, "{v:04o}"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(v) => v.serialize(s),
            Self::Int(v) => v.serialize(s),
            Self::Float(v) => v.serialize(s),
            Self::List(v) => v.serialize(s),
            Self::Map(v) => v.serialize(s),
            Self::Duration(_) | Self::Text(_) | Self::Mode(_) => self.to_string().serialize(s),
        }
    }
}
