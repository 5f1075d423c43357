//! The JSON form of an event: one flat object, as `villus monitor -j` prints it and the API streams it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use villus_abi::{Direction, Reason};

use crate::{
    Action, FlowEvent, Kind, Match, Packet, Point, PolicyName, State, TcpFlags, protocol_name,
    protocol_number,
};

/// The flat object. `reason`, `srcEndpoint`, `dstEndpoint` and `summary` are for readers and follow from the
/// rest; they are ignored on the way back.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Json {
    #[serde(rename = "type")]
    kind: String,
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observation_point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
    #[serde(rename = "match")]
    matched: String,
    state: String,
    direction: String,
    hook: String,
    endpoint: u16,
    peer: u16,
    #[serde(default, skip_deserializing)]
    src_endpoint: u16,
    #[serde(default, skip_deserializing)]
    dst_endpoint: u16,
    ifindex: u32,
    src_identity: u32,
    dst_identity: u32,
    hash: u32,
    bytes: u32,
    ethertype: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u16>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    proto: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tcp_flags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    icmp_code: Option<u8>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    policies: Vec<PolicyName>,
    #[serde(default, skip_deserializing)]
    summary: String,
}

impl From<FlowEvent> for Json {
    fn from(event: FlowEvent) -> Self {
        let packet = &event.packet;
        let (kind, code, point, action) = match event.kind {
            Kind::Drop { reason } => ("drop", Some(reason), None, None),
            Kind::Trace { point } => ("trace", None, Some(point), None),
            Kind::Verdict { action, reason } => ("policy-verdict", Some(reason), None, Some(action)),
        };
        let icmp = packet.icmp_type != 0 || packet.icmp_code != 0 || packet.is_icmp();
        Self {
            kind: kind.to_owned(),
            time: event.time,
            reason: event.reason().map(|reason| reason.text().to_owned()),
            reason_code: code.map(|reason| reason.0),
            observation_point: point.map(|point| point.to_string()),
            action,
            matched: event.matched.to_string(),
            state: event.state.to_string(),
            direction: event.direction.name().to_ascii_lowercase(),
            hook: event.hook.to_string(),
            endpoint: event.endpoint,
            peer: event.peer,
            src_endpoint: event.src_endpoint(),
            dst_endpoint: event.dst_endpoint(),
            ifindex: event.ifindex,
            src_identity: event.src_identity,
            dst_identity: event.dst_identity,
            hash: event.hash,
            bytes: packet.len,
            ethertype: packet.ethertype,
            src: packet.addrs.map(|(src, _)| src),
            dst: packet.addrs.map(|(_, dst)| dst),
            src_port: packet.ports.map(|(sport, _)| sport),
            dst_port: packet.ports.map(|(_, dport)| dport),
            proto: protocol_text(packet.proto),
            tcp_flags: packet.tcp_flags.names().map(str::to_owned).collect(),
            icmp_type: icmp.then_some(packet.icmp_type),
            icmp_code: icmp.then_some(packet.icmp_code),
            policies: event.policies.iter().flat_map(|policies| policies.iter().cloned()).collect(),
            summary: packet.to_string(),
        }
    }
}

impl TryFrom<Json> for FlowEvent {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        Ok(Self {
            time: json.time,
            kind: json.kind()?,
            state: json.state.parse::<State>()?,
            direction: match json.direction.as_str() {
                "ingress" => Direction::Ingress,
                "egress" => Direction::Egress,
                other => return Err(format!("direction {other:?} is neither ingress nor egress")),
            },
            matched: json.matched.parse::<Match>()?,
            hook: json.hook.parse()?,
            endpoint: json.endpoint,
            peer: json.peer,
            ifindex: json.ifindex,
            src_identity: json.src_identity,
            dst_identity: json.dst_identity,
            hash: json.hash,
            packet: json.packet()?,
            policies: (!json.policies.is_empty()).then(|| json.policies.into()),
        })
    }
}

impl Json {
    fn kind(&self) -> Result<Kind, String> {
        let reason = Reason(self.reason_code.unwrap_or_default());
        match self.kind.as_str() {
            "drop" => Ok(Kind::Drop { reason }),
            "trace" => {
                let point = self.observation_point.as_deref().ok_or("observationPoint is missing")?;
                Ok(Kind::Trace { point: point.parse::<Point>()? })
            }
            "policy-verdict" => Ok(Kind::Verdict { action: self.action.ok_or("action is missing")?, reason }),
            other => Err(format!("event type {other:?} is none of drop, trace, policy-verdict")),
        }
    }

    fn packet(&self) -> Result<Packet, String> {
        let mut flags = 0;
        for name in &self.tcp_flags {
            flags |= TcpFlags::NAMES
                .into_iter()
                .find_map(|(known, bit)| (known == name).then_some(bit))
                .ok_or_else(|| format!("{name:?} is no TCP flag"))?;
        }
        let proto = match self.proto.as_str() {
            "" => 0,
            text => protocol_number(text).ok_or_else(|| format!("{text:?} is no protocol"))?,
        };
        Ok(Packet {
            len: self.bytes,
            ethertype: self.ethertype,
            addrs: self.src.zip(self.dst),
            ports: self.src_port.zip(self.dst_port),
            proto,
            tcp_flags: TcpFlags(flags),
            icmp_type: self.icmp_type.unwrap_or_default(),
            icmp_code: self.icmp_code.unwrap_or_default(),
        })
    }
}

/// The name of a protocol, its number if it has none, nothing for 0.
fn protocol_text(proto: u8) -> String {
    match (proto, protocol_name(proto)) {
        (0, _) => String::new(),
        (_, Some(name)) => name.to_owned(),
        (number, None) => number.to_string(),
    }
}
