//! An address in JSON, or the empty string or null for none.

use std::{fmt::Display, str::FromStr};

use serde::{Deserialize, Deserializer, Serializer, de};

pub(crate) fn serialize<T: Display, S: Serializer>(ip: &Option<T>, ser: S) -> Result<S::Ok, S::Error> {
    match ip {
        Some(ip) => ser.collect_str(ip),
        None => ser.serialize_str(""),
    }
}

pub(crate) fn deserialize<'de, T, D>(de: D) -> Result<Option<T>, D::Error>
where
    T: FromStr,
    T::Err: Display,
    D: Deserializer<'de>,
{
    let text: Option<String> = Option::deserialize(de)?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(de::Error::custom),
    }
}
