//! Which events somebody wants to see.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use villus_abi::Reason;

use crate::{FilterError, FlowEvent, Kind, protocol_number};

/// The types of events that `monitor --type` names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventType {
    /// Dropped packets.
    Drop,
    /// Packets that went on.
    Trace,
    /// Answers of policy.
    PolicyVerdict,
}

impl EventType {
    /// The type of an event.
    #[must_use]
    pub const fn of(event: &FlowEvent) -> Self {
        match event.kind {
            Kind::Drop { .. } => Self::Drop,
            Kind::Trace { .. } => Self::Trace,
            Kind::Verdict { .. } => Self::PolicyVerdict,
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "drop",
            Self::Trace => "trace",
            Self::PolicyVerdict => "policy-verdict",
        })
    }
}

impl FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "drop" => Ok(Self::Drop),
            "trace" => Ok(Self::Trace),
            "policy-verdict" => Ok(Self::PolicyVerdict),
            "agent" | "capture" | "debug" | "l7" | "recorder" | "trace-sock" => {
                Err("is a type that Villus does not report; use drop, trace or policy-verdict".to_owned())
            }
            _ => Err("is none of drop, trace, policy-verdict".to_owned()),
        }
    }
}

/// A filter as people and query strings give it: each field a list separated by commas, empty for "any".
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct FilterSpec {
    /// Event types: `drop`, `trace`, `policy-verdict`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub types: String,
    /// Ids of endpoints that sent the packet.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Ids of endpoints the packet is for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub to: String,
    /// Ids of endpoints on either side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub related_to: String,
    /// Numeric identities on either side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Addresses or prefixes on either side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// Ports on either side.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port: String,
    /// Protocols by name or number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Drop reasons by number or text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Which events pass: every field that is not empty must hold; inside a field one value is enough.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Event types.
    pub types: Vec<EventType>,
    /// Endpoints that sent the packet.
    pub from: Vec<u16>,
    /// Endpoints the packet is for.
    pub to: Vec<u16>,
    /// Endpoints on either side.
    pub related_to: Vec<u16>,
    /// Identities on either side.
    pub identities: Vec<u32>,
    /// Prefixes on either side.
    pub ips: Vec<IpNet>,
    /// Ports on either side.
    pub ports: Vec<u16>,
    /// IP protocols.
    pub protocols: Vec<u8>,
    /// Drop and denial reasons.
    pub reasons: Vec<Reason>,
}

impl Filter {
    /// Whether an event passes.
    #[must_use]
    pub fn matches(&self, event: &FlowEvent) -> bool {
        let (src, dst) = (event.src_endpoint(), event.dst_endpoint());
        any(&self.types, |wanted| *wanted == EventType::of(event))
            && any(&self.from, |id| *id == src)
            && any(&self.to, |id| *id == dst)
            && any(&self.related_to, |id| *id == src || *id == dst)
            && any(&self.identities, |id| *id == event.src_identity || *id == event.dst_identity)
            && any(&self.reasons, |reason| event.reason() == Some(*reason))
            && self.matches_packet(event)
    }

    fn matches_packet(&self, event: &FlowEvent) -> bool {
        let packet = &event.packet;
        any(&self.protocols, |proto| packet.addrs.is_some() && *proto == packet.proto)
            && any(&self.ips, |net| {
                packet.addrs.is_some_and(|(src, dst)| net.contains(&src) || net.contains(&dst))
            })
            && any(&self.ports, |port| {
                !packet.is_icmp()
                    && packet.ports.is_some_and(|(sport, dport)| *port == sport || *port == dport)
            })
    }
}

fn any<T>(wanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(holds)
}

impl TryFrom<&FilterSpec> for Filter {
    type Error = FilterError;

    fn try_from(spec: &FilterSpec) -> Result<Self, FilterError> {
        let reasons: Vec<Vec<Reason>> = list("reason", &spec.reason, reasons)?;
        Ok(Self {
            types: list("type", &spec.types, str::parse)?,
            from: list("from", &spec.from, endpoint)?,
            to: list("to", &spec.to, endpoint)?,
            related_to: list("related-to", &spec.related_to, endpoint)?,
            identities: list("identity", &spec.identity, |text| number(text, "an identity, a number"))?,
            ips: list("ip", &spec.ip, prefix)?,
            ports: list("port", &spec.port, |text| number(text, "a port from 0 to 65535"))?,
            protocols: list("protocol", &spec.protocol, |text| {
                protocol_number(text)
                    .ok_or_else(|| "is no protocol: tcp, udp, sctp, icmp, icmpv6 or a number".to_owned())
            })?,
            reasons: reasons.into_iter().flatten().collect(),
        })
    }
}

/// Reads each element of a list separated by commas.
fn list<T>(
    field: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, FilterError> {
    text.split(',')
        .map(str::trim)
        .filter(|element| !element.is_empty())
        .map(|element| {
            parse(element).map_err(|problem| FilterError { field, value: element.to_owned(), problem })
        })
        .collect()
}

fn number<T: FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("is not {what}"))
}

fn endpoint(text: &str) -> Result<u16, String> {
    number(text, "an endpoint id, a number from 0 to 65535")
}

fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "is neither an address nor a prefix such as 10.0.0.0/8".to_owned())
}

/// Every reason that a number or a text means; `Invalid packet` has two numbers.
fn reasons(text: &str) -> Result<Vec<Reason>, String> {
    if let Ok(number) = text.parse() {
        return Ok(vec![Reason(number)]);
    }
    let known = (0..=u8::MAX).map(Reason).filter(|reason| reason.text() != "Unknown reason");
    let found: Vec<_> = known.filter(|reason| same_words(reason.text(), text)).collect();
    if found.is_empty() {
        return Err("is no drop reason; give its number or its text, for example \"Policy denied\"".into());
    }
    Ok(found)
}

/// Equal up to case, and up to `-` and `_` written for spaces.
fn same_words(known: &str, given: &str) -> bool {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], " ");
    plain(known) == plain(given)
}
