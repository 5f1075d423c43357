//! Which texts an option takes, and what they mean.

use crate::{duration, value::Value};
use std::{collections::BTreeMap, net::IpAddr};

/// The kind of an option's value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// `true` or `false`; `1`, `0`, `t`, `f` and any case as well.
    Bool,
    /// A whole number within bounds, both included; 0 as well where `zero` says what it means.
    Int {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
        /// Meaning of 0 where 0 lies below `min`.
        zero: Option<&'static str>,
    },
    /// A duration of Go's syntax; `zero` is the meaning of 0, which is refused without one.
    Duration {
        /// Meaning of 0.
        zero: Option<&'static str>,
        /// Least value besides 0, seconds.
        min_secs: u64,
        /// Greatest value, seconds.
        max_secs: u64,
    },
    /// A number from 0 to 1.
    Ratio,
    /// A number of at least 0.
    Float,
    /// One of these words, any case.
    Choice(&'static [&'static str]),
    /// Words of this list, or all of them by `all`.
    Words(&'static [&'static str]),
    /// Any text, the empty one included.
    Text,
    /// A cluster's name: at most 32 of `a-z`, `0-9` and `-`, `-` not at either end.
    ClusterName,
    /// Texts separated by commas or white space.
    List,
    /// `key=value` pairs separated by commas, or a JSON object of texts.
    Map,
    /// An absolute path; empty where the option may be off.
    Path {
        /// The empty text is a value.
        empty: bool,
    },
    /// A path that a unix socket can be bound to: absolute, at most 107 bytes.
    Socket,
    /// `auto` or an IPv4 address.
    Ipv4OrAuto,
    /// `auto` or an IPv6 address.
    Ipv6OrAuto,
    /// `auto` or an IPv4 prefix from which endpoints get addresses.
    Ipv4Pool,
    /// `auto` or an IPv6 prefix from which endpoints get addresses.
    Ipv6Pool,
    /// An IPv4 prefix, or empty.
    Ipv4Cidr,
    /// An IPv6 prefix, or empty.
    Ipv6Cidr,
    /// Prefixes of either family separated by commas or white space.
    Cidrs,
    /// `address:port`, `:port` on all addresses, or empty for none.
    Listen,
    /// Permission bits of a file, octal.
    Mode,
    /// Network devices separated by commas; `+` at the end stands for any rest, `!` in front excludes.
    Devices,
    /// Limits of API calls: `call=key:value,key:value`, several calls separated by white space, or JSON.
    RateLimits,
    /// Shares of a change: `10%` or `flows=5%,entries=20%`; see [`crate::share::parse`].
    ChangeLimit,
    /// An absolute path, `stdout`, or empty where nothing is written.
    Output,
    /// Nobody reads it.
    Ignored,
}

/// A whole number between two bounds.
pub(crate) const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max, zero: None }
}

/// A whole number between two bounds, or 0.
pub(crate) const fn int_or_zero(min: u64, max: u64, zero: &'static str) -> Kind {
    Kind::Int { min, max, zero: Some(zero) }
}

/// Seconds of the longest duration that is taken where nothing else is said.
const LONGEST: u64 = 10 * 365 * 86_400;

/// A duration of at least a second.
pub(crate) const SECONDS: Kind = Kind::Duration { zero: None, min_secs: 1, max_secs: LONGEST };

/// A duration between two bounds.
pub(crate) const fn secs(min: u64, max: u64) -> Kind {
    Kind::Duration { zero: None, min_secs: min, max_secs: max }
}

/// A duration, or 0.
pub(crate) const fn secs_or_zero(zero: &'static str) -> Kind {
    Kind::Duration { zero: Some(zero), min_secs: 0, max_secs: LONGEST }
}

// === impl Kind ===

impl Kind {
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong with it and what would be right, in a sentence without option or source.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        if text.is_empty() && !self.takes_empty() {
            return Err(format!("the value is empty; {}", self.expected()));
        }
        if text.contains('\0') {
            return Err("the value contains a NUL byte".into());
        }
        match *self {
            Self::Bool => boolean(text).map(Value::Bool),
            Self::Int { min, max, zero } => whole(text, min, max, zero).map(Value::Int),
            Self::Duration { zero, min_secs, max_secs } => time(text, zero, min_secs, max_secs),
            Self::Ratio => float(text, 1.0).map(Value::Float),
            Self::Float => float(text, f64::MAX).map(Value::Float),
            Self::Choice(words) => choice(text, words).map(Value::Text),
            Self::Words(words) => word_list(text, words).map(Value::List),
            Self::Text | Self::Ignored => Ok(Value::Text(text.into())),
            Self::ClusterName => cluster_name(text).map(Value::Text),
            Self::List => Ok(Value::List(split(text))),
            Self::Map => map(text).map(Value::Map),
            Self::Path { .. } => path(text).map(Value::Text),
            Self::Socket => socket(text).map(Value::Text),
            Self::Ipv4OrAuto | Self::Ipv6OrAuto | Self::Ipv4Pool | Self::Ipv6Pool => {
                crate::net::auto_or(self, text)
            }
            Self::Ipv4Cidr | Self::Ipv6Cidr => crate::net::cidr(self, text),
            Self::Cidrs => crate::net::cidrs(text).map(Value::List),
            Self::Listen => crate::net::listen(text).map(Value::Text),
            Self::Mode => mode(text),
            Self::Devices => crate::net::devices(text).map(Value::List),
            Self::RateLimits => crate::rate::check(text).map(|()| Value::Text(text.into())),
            Self::ChangeLimit => crate::share::parse(text).map(|_| Value::Text(text.into())),
            Self::Output if text == "stdout" => Ok(Value::Text(text.into())),
            Self::Output => path(text).map(Value::Text),
        }
    }

    /// Whether the empty text is a value of this kind.
    #[must_use]
    pub const fn takes_empty(&self) -> bool {
        match self {
            Self::Text
            | Self::List
            | Self::Words(_)
            | Self::Map
            | Self::Ipv4Cidr
            | Self::Ipv6Cidr
            | Self::Cidrs
            | Self::Listen
            | Self::Devices
            | Self::RateLimits
            | Self::ChangeLimit
            | Self::Output
            | Self::Ignored => true,
            Self::Path { empty } => *empty,
            Self::Choice(words) => has_empty(words),
            _ => false,
        }
    }

    /// What the kind takes, as a clause that begins "write …".
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Bool => "write true or false".into(),
            Self::Int { min, max, zero: None } => format!("write a number from {min} to {max}"),
            Self::Int { min, max, zero: Some(zero) } => {
                format!("write a number from {min} to {max}, or 0 ({zero})")
            }
            Self::Duration { zero: None, .. } => "write a duration such as 30s, 5m or 2h30m".into(),
            Self::Duration { zero: Some(zero), .. } => {
                format!("write a duration such as 30s, 5m or 2h30m, or 0 ({zero})")
            }
            Self::Ratio => "write a number from 0 to 1, such as 0.0025".into(),
            Self::Float => "write a number of at least 0".into(),
            Self::Choice(words) => format!("write one of {}", join_words(words)),
            Self::Words(words) => {
                format!("write words of {}, separated by commas, or all", join_words(words))
            }
            Self::Text | Self::Ignored => "write any text".into(),
            Self::ClusterName => {
                "write at most 32 lower-case letters, digits and dashes, no dash at either end".into()
            }
            Self::List => "write texts separated by commas or spaces".into(),
            Self::Map => "write key=value,key=value or a JSON object".into(),
            Self::Path { .. } => "write an absolute path".into(),
            Self::Socket => "write an absolute path of at most 107 bytes".into(),
            Self::Ipv4OrAuto => "write auto or an IPv4 address".into(),
            Self::Ipv6OrAuto => "write auto or an IPv6 address".into(),
            Self::Ipv4Pool => "write auto or an IPv4 prefix such as 10.16.0.0/16".into(),
            Self::Ipv6Pool => "write auto or an IPv6 prefix such as fd02:1:1::/96".into(),
            Self::Ipv4Cidr => "write an IPv4 prefix such as 10.0.0.0/8, or nothing".into(),
            Self::Ipv6Cidr => "write an IPv6 prefix such as fd00::/8, or nothing".into(),
            Self::Cidrs => "write prefixes separated by commas".into(),
            Self::Listen => "write address:port, :port, or nothing".into(),
            Self::Mode => "write permission bits in octal, such as 0660".into(),
            Self::Devices => "write device names separated by commas, such as eth0,bond+".into(),
            Self::RateLimits => "write for example endpoint-create=rate-limit:10/m,rate-burst:2".into(),
            Self::ChangeLimit => "write for example 10% or flows=5%,entries=20%, or nothing".into(),
            Self::Output => "write an absolute path, stdout, or nothing".into(),
        }
    }

    /// A short name for tables.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Bool => "bool".into(),
            Self::Int { min, max, zero } => format!("{min}..{max}{}", or_zero(*zero)),
            Self::Duration { zero, min_secs, max_secs } if *min_secs > 1 || *max_secs < LONGEST => {
                let brief = |seconds| bound(seconds).replace("h0m0s", "h").replace("m0s", "m");
                format!("{}..{}{}", brief(*min_secs), brief(*max_secs), or_zero(*zero))
            }
            Self::Duration { zero, .. } => format!("duration{}", or_zero(*zero)),
            Self::Ratio => "ratio".into(),
            Self::Float => "number".into(),
            Self::Choice(words) => {
                words.iter().map(|w| if w.is_empty() { "\"\"" } else { w }).collect::<Vec<_>>().join("\\|")
            }
            Self::Words(_) => "words".into(),
            Self::Text | Self::ClusterName => "text".into(),
            Self::List => "list".into(),
            Self::Map => "map".into(),
            Self::Path { .. } | Self::Socket => "path".into(),
            Self::Ipv4OrAuto | Self::Ipv6OrAuto => "address".into(),
            Self::Ipv4Pool | Self::Ipv6Pool | Self::Ipv4Cidr | Self::Ipv6Cidr => "prefix".into(),
            Self::Cidrs => "prefixes".into(),
            Self::Listen => "address:port".into(),
            Self::Mode => "octal".into(),
            Self::Devices => "devices".into(),
            Self::RateLimits => "limits".into(),
            Self::ChangeLimit => "shares".into(),
            Self::Output => "path\\|stdout".into(),
            Self::Ignored => "-".into(),
        }
    }

    /// How several values of a repeated flag become one.
    #[must_use]
    pub const fn joins_with(&self) -> Option<&'static str> {
        match self {
            Self::List | Self::Words(_) | Self::Map | Self::Cidrs | Self::Devices => Some(","),
            Self::RateLimits => Some(" "),
            _ => None,
        }
    }
}

const fn has_empty(words: &[&str]) -> bool {
    let mut i = 0;
    while i < words.len() {
        if words[i].is_empty() {
            return true;
        }
        i += 1;
    }
    false
}

fn or_zero(meaning: Option<&str>) -> String {
    meaning.map(|m| format!(", or 0: {m}")).unwrap_or_default()
}

fn join_words(words: &[&str]) -> String {
    let shown: Vec<_> = words.iter().map(|w| if w.is_empty() { "\"\"" } else { w }).collect();
    match shown.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => shown.concat(),
    }
}

pub(crate) fn split(text: &str) -> Vec<String> {
    text.split([',', ' ', '\t', '\r', '\n']).filter(|w| !w.is_empty()).map(Into::into).collect()
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        "yes" | "on" | "enabled" => Err("not a truth value; did you mean true?".into()),
        "no" | "off" | "disabled" => Err("not a truth value; did you mean false?".into()),
        _ => Err("not a truth value; write true or false".into()),
    }
}

fn whole(text: &str, min: u64, max: u64, zero: Option<&str>) -> Result<u64, String> {
    let limits = || Kind::Int { min, max, zero: None }.expected();
    let number: u64 = text.parse().map_err(|_| {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            format!("too great; {}", limits())
        } else {
            format!("not a whole number; {}", limits())
        }
    })?;
    match zero {
        Some(_) if number == 0 => Ok(0),
        Some(zero) if number < min => Err(format!("too small; {}, or 0 ({zero})", limits())),
        _ if number < min => Err(format!("too small; {}", limits())),
        _ if number > max => Err(format!("too great; {}", limits())),
        _ => Ok(number),
    }
}

fn bound(seconds: u64) -> String {
    duration::format(std::time::Duration::from_secs(seconds))
}

fn time(text: &str, zero: Option<&str>, min: u64, max: u64) -> Result<Value, String> {
    let value = duration::parse(text)?;
    if value.is_zero() {
        return zero
            .map(|_| Value::Duration(value))
            .ok_or_else(|| format!("0 is not allowed; the least value is {}", bound(min)));
    }
    if value.as_secs() < min {
        return Err(format!("too short; the least value is {}", bound(min)));
    }
    if value > std::time::Duration::from_secs(max) {
        return Err(format!("too long; the greatest value is {}", bound(max)));
    }
    Ok(Value::Duration(value))
}

fn float(text: &str, max: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number; write for example 0.0025".to_string())?;
    if !number.is_finite() || number < 0.0 || number > max {
        return Err(if max == 1.0 { "outside of 0 to 1".into() } else { "below 0".into() });
    }
    Ok(number)
}

fn choice(text: &str, words: &[&str]) -> Result<String, String> {
    let word = text.to_ascii_lowercase();
    if words.contains(&word.as_str()) {
        return Ok(word);
    }
    let hint = crate::suggest::nearest(&word, words.iter().copied());
    Err(match hint {
        Some(near) => format!("unknown value; did you mean {near}? (one of {})", join_words(words)),
        None => format!("unknown value; write one of {}", join_words(words)),
    })
}

fn word_list(text: &str, words: &[&str]) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    for word in split(text) {
        let word = word.to_ascii_lowercase();
        if word == "all" {
            return Ok(words.iter().map(ToString::to_string).collect());
        }
        let word = choice(&word, words)?;
        if !out.contains(&word) {
            out.push(word);
        }
    }
    Ok(out)
}

fn cluster_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.len() > 32 {
        return Err(format!("{} characters long; a cluster's name has at most 32", text.len()));
    }
    if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') {
        return Err(
            "a cluster's name has lower-case letters, digits and dashes, no dash at either end".into()
        );
    }
    Ok(text.into())
}

/// `KEY=VALUE,KEY=VALUE` or a JSON object. A piece without `=` goes on with the value before it: a value may be a list.
pub(crate) fn map(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.starts_with('{') {
        return json_map(text);
    }
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    let mut last = None;
    for piece in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        if let Some((key, value)) = piece.split_once('=') {
            out.insert(key.trim().to_string(), value.trim().to_string());
            last = Some(key.trim());
            continue;
        }
        let Some(value) = last.and_then(|key| out.get_mut(key)) else {
            return Err(format!("'{piece}' is not key=value"));
        };
        *value = format!("{value},{piece}");
    }
    Ok(out)
}

fn json_map(text: &str) -> Result<BTreeMap<String, String>, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))?;
    let mut out = BTreeMap::new();
    for (key, value) in object {
        let value = match value {
            serde_json::Value::String(s) => s,
            serde_json::Value::Number(n) => n.to_string(),
            serde_json::Value::Bool(b) => b.to_string(),
            _ => return Err(format!("the value of '{key}' must be a text")),
        };
        out.insert(key, value);
    }
    Ok(out)
}

fn path(text: &str) -> Result<String, String> {
    if !text.is_empty() && !text.starts_with('/') {
        return Err("not an absolute path; begin it with /".into());
    }
    Ok(text.into())
}

fn socket(text: &str) -> Result<String, String> {
    if text.len() > 107 {
        return Err(format!("{} bytes long; the kernel takes at most 107 for a socket", text.len()));
    }
    path(text)
}

fn mode(text: &str) -> Result<Value, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u64::from_str_radix(digits, 8) {
        Ok(bits) if bits <= 0o777 && bits & 0o600 == 0o600 => Ok(Value::Mode(bits as u32)),
        Ok(bits) if bits <= 0o777 => Err("the owner must be able to read and write (0600)".into()),
        _ => Err("not permission bits; write them in octal, such as 0660".into()),
    }
}

/// The address of a text in either family.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_without_a_key_goes_on_with_the_value_before() {
        for (text, pairs) in [
            ("", &[][..]),
            ("a=1, b = 2,", &[("a", "1"), ("b", "2")]),
            (
                "etcd.address=http://a:1, http://b:2,http://c:3,etcd.qps=5",
                &[("etcd.address", "http://a:1,http://b:2,http://c:3"), ("etcd.qps", "5")],
            ),
            ("a=,x", &[("a", ",x")]),
            (r#"{"a": "1,2", "b": 3}"#, &[("a", "1,2"), ("b", "3")]),
        ] {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(Kind::Map.parse(text), Ok(Value::Map(pairs)), "{text}");
        }
        for text in ["a", "a,b=1", ",x,y=2"] {
            assert!(Kind::Map.parse(text).unwrap_err().ends_with("is not key=value"), "{text}");
        }
    }
}
