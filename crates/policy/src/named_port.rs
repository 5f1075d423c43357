//! Ports by the names that workloads give them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use villus_labels::{Label, Labels, Selector};

use crate::{
    ports::{PortMatch, proto},
    transport::is_port_name,
};

/// Source of the labels that stand for named ports.
const SOURCE: &str = "gen";
/// How their keys begin.
const KEY_PREFIX: &str = "named-port/";

/// One port of a workload under a name: `http=8080/TCP`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamedPort {
    name: Arc<str>,
    proto: u8,
    number: u16,
}

/// What should be a named port and is not.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{text}` is not a named port: {reason}; write for example `http=8080/TCP`")]
pub struct NamedPortError {
    text: String,
    reason: &'static str,
}

impl NamedPort {
    /// A port of TCP (6), UDP (17) or SCTP (132).
    ///
    /// # Errors
    /// A name that is not one of RFC 6335 (up to 15 letters, digits and `-`), another protocol, port 0.
    pub fn new(name: &str, number: u16, proto: u8) -> Result<Self, NamedPortError> {
        let refuse = |reason| {
            let text = name.chars().take(40).flat_map(char::escape_debug).collect();
            NamedPortError { text, reason }
        };
        if !is_port_name(name) {
            return Err(refuse("the name must be up to 15 letters, digits and `-`, a letter among them"));
        }
        if number == 0 {
            return Err(refuse("the number must be from 1 to 65535"));
        }
        if protocol_name(proto).is_none() {
            return Err(refuse("the protocol must be TCP, UDP or SCTP"));
        }
        Ok(Self { name: name.to_ascii_lowercase().into(), proto, number })
    }

    /// The name, in lower case.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// The protocol's number.
    #[must_use]
    pub const fn proto(&self) -> u8 {
        self.proto
    }

    pub(crate) const fn matches(&self) -> PortMatch {
        PortMatch { proto: self.proto, first: self.number, last: self.number }
    }

    fn key(&self) -> String {
        // No key that a policy can write: it has more than one `/`.
        let protocol = protocol_name(self.proto).unwrap_or_default();
        format!("{KEY_PREFIX}{protocol}/{}/{}", self.name, self.number)
    }

    /// Selects whoever has this port under this name.
    pub(crate) fn selector(&self) -> Selector {
        Selector::everything().requiring_key(SOURCE, &self.key())
    }
}

/// Labels and, for each named port, a label that only rules with named ports ask for. A workload's policy is asked
/// for by these, and an identity's are those of all its workloads.
#[must_use]
pub fn with_named_ports<'a>(labels: &Labels, ports: impl IntoIterator<Item = &'a NamedPort>) -> Labels {
    let ports = ports.into_iter().filter_map(|port| Label::new(SOURCE, &port.key(), "").ok());
    ports.fold(labels.clone(), |labels, port| labels.with(port))
}

/// The labels without those for named ports.
pub(crate) fn without_named_ports(labels: &Labels) -> Labels {
    labels.filtered(|label| label.source() != SOURCE || !label.key().starts_with(KEY_PREFIX))
}

fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        proto::TCP => Some("TCP"),
        proto::UDP => Some("UDP"),
        proto::SCTP => Some("SCTP"),
        _ => None,
    }
}

impl FromStr for NamedPort {
    type Err = NamedPortError;

    /// Reads `NAME=NUMBER[/PROTOCOL]`; the protocol is TCP where none is given.
    fn from_str(text: &str) -> Result<Self, NamedPortError> {
        let refuse = |reason| {
            let text = text.chars().take(60).flat_map(char::escape_debug).collect();
            NamedPortError { text, reason }
        };
        let (name, rest) = text.split_once('=').ok_or_else(|| refuse("it has no `=`"))?;
        let (number, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        let digits = number.bytes().all(|b| b.is_ascii_digit());
        let number = number
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| refuse("the number must be from 1 to 65535"))?;
        let proto = [proto::TCP, proto::UDP, proto::SCTP]
            .into_iter()
            .find(|number| protocol_name(*number).is_some_and(|name| name.eq_ignore_ascii_case(protocol)))
            .ok_or_else(|| refuse("the protocol must be TCP, UDP or SCTP"))?;
        Self::new(name, number, proto).map_err(|error| refuse(error.reason))
    }
}

impl fmt::Display for NamedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}/{}", self.name, self.number, protocol_name(self.proto).unwrap_or_default())
    }
}

impl Serialize for NamedPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NamedPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_ports_are_read_and_printed() {
        for (text, printed) in [
            ("http=8080/TCP", "http=8080/TCP"),
            ("DNS=53/udp", "dns=53/UDP"),
            ("a=1", "a=1/TCP"),
            ("s=9/sctp", "s=9/SCTP"),
        ] {
            assert_eq!(text.parse::<NamedPort>().unwrap().to_string(), printed);
        }
        for (text, part) in [
            ("http", "no `=`"),
            ("http=0", "from 1 to 65535"),
            ("http=+80", "from 1 to 65535"),
            ("http=65536", "from 1 to 65535"),
            ("http=80/ICMP", "TCP, UDP or SCTP"),
            ("=80", "up to 15"),
            ("80=80", "up to 15"),
            ("a-name-of-many-letters=80", "up to 15"),
        ] {
            let error = text.parse::<NamedPort>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_named_port_is_a_label_that_no_policy_can_write() {
        let port: NamedPort = "http=8080/TCP".parse().unwrap();
        let labels = with_named_ports(&Labels::default(), [&port]);
        assert!(port.selector().matches(&labels));
        assert!(!"http=80/TCP".parse::<NamedPort>().unwrap().selector().matches(&labels));
        assert!(Selector::parse("gen:named-port/TCP/http/8080").is_err());
    }
}
