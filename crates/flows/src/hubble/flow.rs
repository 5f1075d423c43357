//! A flow as it is read: what Villus needs of Hubble's fields, every one of them optional.

use std::{fmt, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de};
use villus_abi::{Direction, Reason};
use villus_labels::{Label, Labels, source};

use super::reason::reason_number;

/// One observed flow.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// When it was seen.
    #[serde(deserialize_with = "time")]
    pub time: Option<Timestamp>,
    /// What became of it.
    pub verdict: Verdict,
    #[serde(rename = "IP", alias = "ip", deserialize_with = "absent")]
    ip: Option<Addresses>,
    #[serde(deserialize_with = "absent")]
    l4: Option<L4>,
    /// Who sent the packet.
    #[serde(deserialize_with = "or_default")]
    pub source: FlowEnd,
    /// Whom it is for.
    #[serde(deserialize_with = "or_default")]
    pub destination: FlowEnd,
    /// The node that saw it.
    #[serde(alias = "nodeName", deserialize_with = "or_default")]
    pub node_name: String,
    #[serde(alias = "trafficDirection", deserialize_with = "direction")]
    traffic_direction: Option<Direction>,
    #[serde(alias = "isReply", deserialize_with = "absent")]
    is_reply: Option<bool>,
    #[serde(alias = "traceReason", deserialize_with = "word")]
    trace_reason: String,
    #[serde(alias = "dropReason", deserialize_with = "or_default")]
    drop_reason: u32,
    #[serde(alias = "dropReasonDesc", deserialize_with = "word")]
    drop_reason_desc: String,
    #[serde(alias = "eventType", deserialize_with = "or_default")]
    event_type: EventNumbers,
}

/// One end of a flow.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FlowEnd {
    /// Endpoint id on its node; 0 if it has none there.
    #[serde(rename = "ID", alias = "id", deserialize_with = "or_default")]
    pub id: u32,
    /// Numeric identity; 0 if not known.
    #[serde(deserialize_with = "or_default")]
    pub identity: u32,
    /// Namespace.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// Labels of the identity. What is no label is left out.
    #[serde(deserialize_with = "labels")]
    pub labels: Labels,
    /// Name of the pod, container or machine.
    #[serde(alias = "podName", deserialize_with = "or_default")]
    pub pod_name: String,
}

/// What became of a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Verdict {
    /// Not said, or none of those that concern policy.
    #[default]
    Unknown,
    /// It passed.
    Forwarded,
    /// It was dropped.
    Dropped,
    /// Policy denies it; audit mode let it pass.
    Audit,
    /// It passed through a proxy.
    Redirected,
}

impl Verdict {
    /// The name in Hubble's protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "VERDICT_UNKNOWN",
            Self::Forwarded => "FORWARDED",
            Self::Dropped => "DROPPED",
            Self::Audit => "AUDIT",
            Self::Redirected => "REDIRECTED",
        }
    }
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
struct Addresses {
    source: IpAddr,
    destination: IpAddr,
}

#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
struct EventNumbers {
    #[serde(rename = "type")]
    kind: i32,
}

/// The transport of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub enum L4 {
    /// TCP.
    #[serde(alias = "tcp")]
    TCP(Tcp),
    /// UDP.
    #[serde(alias = "udp")]
    UDP(Ports),
    /// SCTP.
    #[serde(alias = "sctp")]
    SCTP(Ports),
    /// ICMP.
    #[serde(alias = "icmpv4")]
    ICMPv4(Icmp),
    /// ICMPv6.
    #[serde(alias = "icmpv6")]
    ICMPv6(Icmp),
}

/// Ports, in host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// Of the source.
    #[serde(alias = "sourcePort")]
    pub source_port: u16,
    /// Of the destination.
    #[serde(alias = "destinationPort")]
    pub destination_port: u16,
}

/// Ports and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tcp {
    /// Ports.
    #[serde(flatten)]
    pub ports: Ports,
    flags: Option<Flags>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
struct Flags {
    #[serde(rename = "SYN", alias = "syn")]
    syn: bool,
    #[serde(rename = "ACK", alias = "ack")]
    ack: bool,
}

/// An ICMP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Icmp {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: u8,
}

// === impl Flow ===

impl Flow {
    /// Source and destination address.
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        self.ip.as_ref().map(|ip| (ip.source, ip.destination))
    }

    /// Protocol number and destination port; of ICMP the message's type. `None` where the transport is not said or is one
    /// that policy has no word for.
    #[must_use]
    pub fn transport(&self) -> Option<(u8, u16)> {
        Some(match self.l4? {
            L4::TCP(tcp) => (6, tcp.ports.destination_port),
            L4::UDP(ports) => (17, ports.destination_port),
            L4::SCTP(ports) => (132, ports.destination_port),
            L4::ICMPv4(icmp) => (1, u16::from(icmp.kind)),
            L4::ICMPv6(icmp) => (58, u16::from(icmp.kind)),
        })
    }

    /// Direction of the endpoint that judged.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        self.traffic_direction
    }

    /// The drop reason.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let number = u8::try_from(self.drop_reason).ok().filter(|number| *number != 0);
        number.or_else(|| reason_number(&self.drop_reason_desc)).map(Reason)
    }

    /// Whether the packet belongs to the direction of who opened the flow; `None` where that cannot be told.
    #[must_use]
    pub fn is_opening(&self) -> Option<bool> {
        if self.trace_reason == "RELATED" || self.trace_reason == "REPLY" {
            return Some(false);
        }
        if let Some(reply) = self.is_reply {
            return Some(!reply);
        }
        match self.l4? {
            L4::TCP(Tcp { flags: Some(Flags { syn: true, ack }), .. }) => Some(!ack),
            L4::TCP(_) if self.event_type.kind != VERDICT_EVENT => None,
            L4::ICMPv4(icmp) => Some(icmp.kind == 8),
            L4::ICMPv6(icmp) => Some(icmp.kind == 128),
            _ => Some(true),
        }
    }
}

/// Number of policy verdicts in `event_type`; they are about the first packet of a flow.
const VERDICT_EVENT: i32 = 5;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Verdict {
    /// By name or by number, as protobuf's JSON allows both.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Enum::deserialize(deserializer)? {
            Enum::Name(name) => match name.as_str() {
                "FORWARDED" => Self::Forwarded,
                "DROPPED" => Self::Dropped,
                "AUDIT" => Self::Audit,
                "REDIRECTED" => Self::Redirected,
                _ => Self::Unknown,
            },
            Enum::Number(1) => Self::Forwarded,
            Enum::Number(2) => Self::Dropped,
            Enum::Number(4) => Self::Audit,
            Enum::Number(5) => Self::Redirected,
            Enum::Number(_) | Enum::Null(()) => Self::Unknown,
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Enum {
    Name(String),
    Number(i64),
    Null(()),
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(|_| de::Error::custom(format!("time {text:?} is not RFC 3339"))))
        .transpose()
}

/// A value that a producer may also give as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn absent<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<T>::deserialize(deserializer)
}

/// The name of an enum's value; numbers have none here.
fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Enum::deserialize(deserializer)? {
        Enum::Name(name) => name,
        Enum::Number(_) | Enum::Null(()) => String::new(),
    })
}

fn direction<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Direction>, D::Error> {
    Ok(match Enum::deserialize(deserializer)? {
        Enum::Name(name) if name == "INGRESS" => Some(Direction::Ingress),
        Enum::Name(name) if name == "EGRESS" => Some(Direction::Egress),
        Enum::Number(1) => Some(Direction::Ingress),
        Enum::Number(2) => Some(Direction::Egress),
        _ => None,
    })
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
    let parsed = texts.iter().filter_map(|text| Label::parse_with_source(text, source::UNSPEC).ok());
    Labels::new(parsed).map_err(de::Error::custom)
}
