//! Writing an event as a line of Hubble's exporter.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use villus_labels::Labels;

use super::{Verdict, reason::reason_name};
use crate::{
    Action, Direction, EventType, FlowEvent, Kind, LossSource, Packet, Point, PolicyName, Reason, State,
    TcpFlags,
};

/// What is known about identities and endpoints. What it does not know is left out of the line.
pub trait Workloads {
    /// Labels of an identity.
    fn labels(&self, identity: u32) -> Option<Labels>;

    /// An endpoint of this node.
    fn workload(&self, endpoint: u16) -> Option<&Workload>;
}

/// What an endpoint is called.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    /// Name of its pod, container or machine; may be empty.
    pub pod_name: String,
}

/// Where events come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Cluster and node, `default/node1`.
    pub node_name: String,
    /// Name of the cluster.
    pub cluster: String,
    /// The moment at which the kernel's monotonic clock stood at 0.
    pub boot: Timestamp,
}

impl Origin {
    /// The time of an event.
    #[must_use]
    pub fn time(&self, event: &FlowEvent) -> Timestamp {
        let since = SignedDuration::from_nanos(i64::try_from(event.time).unwrap_or(i64::MAX));
        self.boot.saturating_add(since).unwrap_or(Timestamp::MAX)
    }
}

/// Appends the line of an event to `out`, its newline included. Allocates only where `out` grows, and for what
/// [`Workloads`] makes.
pub fn write_line(out: &mut Vec<u8>, event: &FlowEvent, origin: &Origin, workloads: &dyn Workloads) {
    let time = origin.time(event);
    let node_name = origin.node_name.as_str();
    let flow = FlowOut::of(event, time, origin, workloads);
    append(out, &Line { flow: Some(flow), lost_events: None, node_name, time });
}

/// Appends a line that says that `count` events are missing here.
pub fn write_lost(out: &mut Vec<u8>, source: LossSource, count: u64, origin: &Origin, time: Timestamp) {
    let source = match source {
        LossSource::KernelRing => "PERF_EVENT_RING_BUFFER",
        LossSource::ObserverQueue => "OBSERVER_EVENTS_QUEUE",
    };
    let lost = LostOut { source, num_events_lost: count.to_string() };
    append(out, &Line { flow: None, lost_events: Some(lost), node_name: &origin.node_name, time });
}

fn append(out: &mut Vec<u8>, line: &Line<'_>) {
    let before = out.len();
    // Writing into memory does not fail, and every key is a text.
    match serde_json::to_writer(&mut *out, line) {
        Ok(()) => out.push(b'\n'),
        Err(_) => out.truncate(before),
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<FlowOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_events: Option<LostOut>,
    node_name: &'a str,
    time: Timestamp,
}

#[derive(Serialize)]
struct LostOut {
    source: &'static str,
    /// 64-bit numbers are texts in protobuf's JSON.
    num_events_lost: String,
}

#[derive(Serialize)]
struct FlowOut<'a> {
    time: Timestamp,
    verdict: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    drop_reason: u8,
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    ip: Option<IpOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l4: Option<L4Out>,
    source: EndOut<'a>,
    destination: EndOut<'a>,
    #[serde(rename = "Type")]
    kind: &'static str,
    node_name: &'a str,
    event_type: EventOut,
    traffic_direction: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    policy_match_type: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_observation_point: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_reason_desc: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_reply: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<InterfaceOut>,
    #[serde(rename = "Summary", skip_serializing_if = "String::is_empty")]
    summary: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    egress_allowed_by: &'a [PolicyName],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ingress_allowed_by: &'a [PolicyName],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    egress_denied_by: &'a [PolicyName],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ingress_denied_by: &'a [PolicyName],
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct IpOut {
    source: IpAddr,
    destination: IpAddr,
    #[serde(rename = "ipVersion")]
    version: &'static str,
}

#[derive(Serialize)]
enum L4Out {
    #[serde(rename = "TCP")]
    Tcp { source_port: u16, destination_port: u16, flags: FlagsOut },
    #[serde(rename = "UDP")]
    Udp { source_port: u16, destination_port: u16 },
    #[serde(rename = "SCTP")]
    Sctp { source_port: u16, destination_port: u16 },
    ICMPv4 {
        #[serde(rename = "type")]
        kind: u8,
        #[serde(skip_serializing_if = "is_zero")]
        code: u8,
    },
    ICMPv6 {
        #[serde(rename = "type")]
        kind: u8,
        #[serde(skip_serializing_if = "is_zero")]
        code: u8,
    },
}

/// Flags that are set, each by its name.
struct FlagsOut(TcpFlags);

impl Serialize for FlagsOut {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.names().map(|name| (name, true)))
    }
}

#[derive(Serialize)]
struct EndOut<'a> {
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
}

#[derive(Serialize)]
struct EventOut {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "is_zero")]
    sub_type: u8,
}

#[derive(Serialize)]
struct InterfaceOut {
    index: u32,
}

// === impl FlowOut ===

impl<'a> FlowOut<'a> {
    fn of(event: &'a FlowEvent, time: Timestamp, origin: &'a Origin, workloads: &'a dyn Workloads) -> Self {
        // What audit lets pass is denied by them all the same.
        let allows = event.reason().is_none_or(|reason| reason == Reason::FORWARDED);
        let by = |direction, allowed| {
            let decided =
                event.policies.as_deref().filter(|_| (event.direction, allows) == (direction, allowed));
            decided.unwrap_or_default()
        };
        let verdict = verdict_of(event.kind);
        let dropped = event.reason().filter(|_| verdict == Verdict::Dropped);
        let packet = &event.packet;
        let ip = packet.addrs.map(|(source, destination)| {
            let version = if source.is_ipv4() { "IPv4" } else { "IPv6" };
            IpOut { source, destination, version }
        });
        let (point, trace) = match event.kind {
            Kind::Trace { point } => (point_name(point), trace_reason(event.state)),
            _ => (None, None),
        };
        let end = |endpoint, identity| EndOut::of(endpoint, identity, origin, workloads);
        Self {
            time,
            verdict: verdict.name(),
            drop_reason: dropped.map_or(0, |reason| reason.0),
            l4: ip.as_ref().and_then(|_| l4_of(packet)),
            kind: if ip.is_some() { "L3_L4" } else { "UNKNOWN_TYPE" },
            ip,
            source: end(event.src_endpoint(), event.src_identity),
            destination: end(event.dst_endpoint(), event.dst_identity),
            node_name: &origin.node_name,
            event_type: numbers_of(event),
            traffic_direction: match event.direction {
                Direction::Ingress => "INGRESS",
                Direction::Egress => "EGRESS",
            },
            policy_match_type: if matches!(event.kind, Kind::Verdict { .. }) { event.matched.0 } else { 0 },
            trace_observation_point: point,
            trace_reason: trace,
            drop_reason_desc: dropped.and_then(reason_name),
            is_reply: is_reply(event),
            interface: (event.ifindex != 0).then_some(InterfaceOut { index: event.ifindex }),
            summary: summary_of(packet),
            egress_allowed_by: by(Direction::Egress, true),
            ingress_allowed_by: by(Direction::Ingress, true),
            egress_denied_by: by(Direction::Egress, false),
            ingress_denied_by: by(Direction::Ingress, false),
        }
    }
}

impl<'a> EndOut<'a> {
    fn of(endpoint: u16, identity: u32, origin: &'a Origin, workloads: &'a dyn Workloads) -> Self {
        let labels = workloads.labels(identity).unwrap_or_default();
        let workload = workloads.workload(endpoint).filter(|_| endpoint != 0);
        Self {
            id: (endpoint != 0).then_some(endpoint),
            identity: (identity != 0).then_some(identity),
            cluster_name: (endpoint != 0).then_some(origin.cluster.as_str()),
            namespace: labels.namespace().map(str::to_owned),
            pod_name: workload.map(|workload| workload.pod_name.as_str()).filter(|name| !name.is_empty()),
            labels,
        }
    }
}

const fn verdict_of(kind: Kind) -> Verdict {
    match kind {
        Kind::Drop { .. } | Kind::Verdict { action: Action::Deny, .. } => Verdict::Dropped,
        Kind::Trace { .. } | Kind::Verdict { action: Action::Allow, .. } => Verdict::Forwarded,
        Kind::Verdict { action: Action::Redirect, .. } => Verdict::Redirected,
        Kind::Verdict { action: Action::Audit, .. } => Verdict::Audit,
    }
}

/// Type and subtype, by Cilium's numbers of monitor messages.
fn numbers_of(event: &FlowEvent) -> EventOut {
    match EventType::of(event) {
        EventType::Drop => EventOut { kind: 1, sub_type: event.reason().unwrap_or_default().0 },
        EventType::Trace => match event.kind {
            Kind::Trace { point } => EventOut { kind: 4, sub_type: point.0 },
            _ => EventOut { kind: 4, sub_type: 0 },
        },
        EventType::PolicyVerdict => EventOut { kind: 5, sub_type: 0 },
    }
}

fn point_name(point: Point) -> Option<&'static str> {
    Some(match point {
        Point::TO_PROXY => "TO_PROXY",
        Point::TO_HOST => "TO_HOST",
        Point::TO_STACK => "TO_STACK",
        Point::TO_OVERLAY => "TO_OVERLAY",
        Point::TO_ENDPOINT => "TO_ENDPOINT",
        Point::FROM_ENDPOINT => "FROM_ENDPOINT",
        Point::FROM_PROXY => "FROM_PROXY",
        Point::FROM_HOST => "FROM_HOST",
        Point::FROM_STACK => "FROM_STACK",
        Point::FROM_OVERLAY => "FROM_OVERLAY",
        Point::FROM_NETWORK => "FROM_NETWORK",
        Point::TO_NETWORK => "TO_NETWORK",
        _ => return None,
    })
}

fn trace_reason(state: State) -> Option<&'static str> {
    Some(match state {
        State::NEW => "NEW",
        State::ESTABLISHED => "ESTABLISHED",
        State::REPLY => "REPLY",
        State::RELATED => "RELATED",
        _ => return None,
    })
}

/// Nothing for a dropped packet whose flow was not looked for.
fn is_reply(event: &FlowEvent) -> Option<bool> {
    match event.state {
        State::REPLY => Some(true),
        State::NEW if matches!(event.kind, Kind::Drop { reason } if !of_policy(reason)) => None,
        State::NEW | State::ESTABLISHED | State::RELATED => Some(false),
        _ => None,
    }
}

fn of_policy(reason: Reason) -> bool {
    reason == Reason::POLICY || reason == Reason::POLICY_DENY
}

fn l4_of(packet: &Packet) -> Option<L4Out> {
    let (kind, code) = (packet.icmp_type, packet.icmp_code);
    match packet.proto {
        1 => return Some(L4Out::ICMPv4 { kind, code }),
        58 => return Some(L4Out::ICMPv6 { kind, code }),
        _ => {}
    }
    let (source_port, destination_port) = packet.ports?;
    match packet.proto {
        6 => Some(L4Out::Tcp { source_port, destination_port, flags: FlagsOut(packet.tcp_flags) }),
        17 => Some(L4Out::Udp { source_port, destination_port }),
        132 => Some(L4Out::Sctp { source_port, destination_port }),
        _ => None,
    }
}

fn summary_of(packet: &Packet) -> String {
    match packet.proto {
        _ if packet.addrs.is_none() => String::new(),
        6 => {
            let flags: Vec<_> = packet.tcp_flags.names().collect();
            if flags.is_empty() { "TCP".to_owned() } else { format!("TCP Flags: {}", flags.join(", ")) }
        }
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        1 => format!("ICMPv4 {}", packet.icmp_name()),
        58 => format!("ICMPv6 {}", packet.icmp_name()),
        other => format!("IP protocol {other}"),
    }
}
