//! One event: a ring record with its types back.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use villus_abi::{Direction, Event, Reason, event as abi};

use crate::{DecodeError, Hook, Match, Packet, Point, State, json};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The packet was dropped.
    Drop {
        /// Why.
        reason: Reason,
    },
    /// The packet went on.
    Trace {
        /// Where to, or where it came from.
        point: Point,
    },
    /// Policy was asked.
    Verdict {
        /// Its answer.
        action: Action,
        /// Why a denial, also one that audit mode let pass; [`Reason::FORWARDED`] if allowed.
        reason: Reason,
    },
}

/// The answer of policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
    /// Allowed, through a proxy.
    Redirect,
    /// Denied, but audit mode let it pass.
    Audit,
}

impl Action {
    /// `allow`, `deny`, `redirect` or `audit`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Redirect => "redirect",
            Self::Audit => "audit",
        }
    }
}

/// One event of the packet path.
///
/// In JSON it is one flat object with Cilium-like camelCase names; see `villus monitor -j`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "json::Json", try_from = "json::Json")]
pub struct FlowEvent {
    /// Monotonic time since boot, ns.
    pub time: u64,
    /// What happened.
    pub kind: Kind,
    /// How the packet belongs to its flow.
    pub state: State,
    /// Direction of the endpoint that judged.
    pub direction: Direction,
    /// How the deciding policy entry matched.
    pub matched: Match,
    /// The program that reported.
    pub hook: Hook,
    /// The endpoint that judged, or that the packet left or reached; 0 is the node.
    pub endpoint: u16,
    /// The other endpoint, if it lives on this node; else 0.
    pub peer: u16,
    /// Interface index: of the hook for drops and verdicts, of the target for traces.
    pub ifindex: u32,
    /// Identity of the packet's source.
    pub src_identity: u32,
    /// Identity of the packet's destination.
    pub dst_identity: u32,
    /// The kernel's flow hash.
    pub hash: u32,
    /// The packet.
    pub packet: Packet,
    /// The policies that decided, as far as who decoded the event knew them; the kernel's record does not say.
    pub policies: Option<Arc<[PolicyName]>>,
}

/// A policy that decided.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyName {
    /// `CiliumNetworkPolicy`, …
    pub kind: String,
    /// Its namespace; empty if it is in none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyName {
    /// `namespace/name`, or the name of what is in no namespace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

impl FlowEvent {
    /// Reads a record of the ring `villus_events_v1`.
    ///
    /// # Errors
    /// When the record has not exactly the size of an event, or a kind that this version does not know.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        let event: Event = villus_abi::from_bytes(record)
            .ok_or(DecodeError::Length { got: record.len(), want: size_of::<Event>() })?;
        Self::try_from(event)
    }

    /// The endpoint that sent the packet, if it lives on this node; else 0.
    #[must_use]
    pub fn src_endpoint(&self) -> u16 {
        if self.endpoint_is_source() { self.endpoint } else { self.peer }
    }

    /// The endpoint the packet is for, if it lives on this node; else 0.
    #[must_use]
    pub fn dst_endpoint(&self) -> u16 {
        if self.endpoint_is_source() { self.peer } else { self.endpoint }
    }

    /// What a policy was asked about: port in host order, or ICMP type, and protocol. `None` where the packet was not parsed
    /// so far.
    #[must_use]
    pub fn asked(&self) -> Option<(u16, u8)> {
        let packet = &self.packet;
        if packet.is_icmp() {
            return Some((packet.icmp_type.into(), packet.proto));
        }
        packet.ports.map(|(_, dport)| (dport, packet.proto))
    }

    /// Identity of the other side, as seen from the endpoint that judged.
    #[must_use]
    pub const fn remote_identity(&self) -> u32 {
        match self.direction {
            Direction::Ingress => self.src_identity,
            Direction::Egress => self.dst_identity,
        }
    }

    /// The drop or denial reason, if there is one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self.kind {
            Kind::Drop { reason } => Some(reason),
            Kind::Verdict { reason, .. } if reason != Reason::FORWARDED => Some(reason),
            Kind::Verdict { .. } | Kind::Trace { .. } => None,
        }
    }

    fn endpoint_is_source(&self) -> bool {
        match self.kind {
            Kind::Trace { point: Point::TO_ENDPOINT } => false,
            Kind::Trace { point: Point::FROM_ENDPOINT } => true,
            _ => self.direction == Direction::Egress,
        }
    }
}

impl TryFrom<Event> for FlowEvent {
    type Error = DecodeError;

    fn try_from(event: Event) -> Result<Self, DecodeError> {
        Ok(Self {
            time: event.time,
            kind: kind_of(&event)?,
            state: State(event.state),
            direction: if event.direction & 1 == 0 { Direction::Ingress } else { Direction::Egress },
            matched: Match(event.matched),
            hook: Hook(event.hook),
            endpoint: event.endpoint,
            peer: event.peer,
            ifindex: event.ifindex,
            src_identity: event.src_identity,
            dst_identity: event.dst_identity,
            hash: event.hash,
            packet: Packet::of(&event),
            policies: None,
        })
    }
}

fn kind_of(event: &Event) -> Result<Kind, DecodeError> {
    match event.kind {
        abi::KIND_DROP => Ok(Kind::Drop { reason: Reason(event.reason) }),
        abi::KIND_TRACE => Ok(Kind::Trace { point: Point(event.point) }),
        abi::KIND_VERDICT => {
            let denial = u8::try_from(event.verdict.unsigned_abs()).unwrap_or(u8::MAX);
            let reason = match event.verdict {
                ..0 => Reason(denial),
                _ => Reason(event.reason),
            };
            let action = match event.verdict {
                _ if event.flags & abi::FLAG_AUDITED != 0 => Action::Audit,
                ..0 => Action::Deny,
                0 => Action::Allow,
                1.. => Action::Redirect,
            };
            Ok(Kind::Verdict { action, reason })
        }
        other => Err(DecodeError::Kind(other)),
    }
}
