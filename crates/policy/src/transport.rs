//! Reading `toPorts` and `icmps`.

use std::sync::Arc;

use villus_labels::nearest;

use crate::{
    ProblemKind, Protocol, Transport, icmp,
    node::Value,
    read::{At, Reader, Schema},
};

/// Most ports of one `toPorts` item, and most fields of one `icmps` item.
const MAX_ITEMS: usize = 40;

const TLS: &str = "TLS is not intercepted; remove the field and what depends on it";
const TO_PORTS: Schema = Schema {
    known: &["ports", "rules"],
    refused: &[
        ("terminatingTLS", TLS),
        ("originatingTLS", TLS),
        ("serverNames", "TLS server names are not enforced; list the servers' addresses in `toCIDR`"),
        ("listener", "traffic is not sent to a proxy; remove the field"),
    ],
    elsewhere: &[("port", "put it under `ports`"), ("protocol", "put it under `ports`")],
};

macro_rules! layer7 {
    ($what:literal) => {
        concat!(
            $what,
            " rules are not enforced; without them the rule would allow more than it says, so remove it whole"
        )
    };
}

const RULES: Schema = Schema {
    known: &[],
    refused: &[
        ("http", layer7!("HTTP")),
        ("dns", layer7!("DNS")),
        ("kafka", layer7!("Kafka")),
        ("l7proto", layer7!("Application protocol")),
        ("l7", layer7!("Application protocol")),
    ],
    elsewhere: &[],
};

/// All that `toPorts` and `icmps` ask for; empty when both are absent or empty.
pub(crate) fn read_transport(
    reader: &mut Reader<'_>,
    ports: Option<At<'_>>,
    icmps: Option<At<'_>>,
    deny: bool,
) -> Vec<Transport> {
    let mut found = Vec::new();
    for item in ports.and_then(|at| reader.items(&at)).unwrap_or_default() {
        read_to_ports(reader, &item, deny, &mut found);
    }
    for item in icmps.and_then(|at| reader.items(&at)).unwrap_or_default() {
        read_icmps(reader, &item, &mut found);
    }
    found
}

fn read_to_ports(reader: &mut Reader<'_>, at: &At<'_>, deny: bool, found: &mut Vec<Transport>) {
    let Some(fields) = reader.fields(at, &TO_PORTS) else { return };
    if let Some(rules) = fields.get("rules") {
        if deny {
            reader.invalid(&rules, "deny sections have no application rules; remove them");
        } else {
            reader.fields(&rules, &RULES);
        }
    }
    let items = fields.get("ports").and_then(|at| reader.items(&at)).unwrap_or_default();
    if items.is_empty() {
        reader.invalid(at, "names no ports; remove `toPorts` to mean all of them");
    }
    too_many(reader, at, items.len(), "ports");
    for item in items {
        let ports = read_port(reader, &item);
        found.extend(ports);
    }
}

fn too_many(reader: &mut Reader<'_>, at: &At<'_>, found: usize, what: &str) {
    if found > MAX_ITEMS {
        reader.invalid(at, format!("has {found} {what}, at most {MAX_ITEMS} are allowed; split it"));
    }
}

fn read_port(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Transport> {
    const SCHEMA: Schema = Schema { known: &["port", "endPort", "protocol"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let protocol = match fields.get("protocol") {
        Some(at) => read_protocol(reader, &at)?,
        None => Protocol::Any,
    };
    read_port_of(reader, at, protocol, fields.get("port"), fields.get("endPort"))
}

/// `port` and `endPort` of an item: a number, a range or a name; all ports where there is none.
pub(crate) fn read_port_of(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    protocol: Protocol,
    port: Option<At<'_>>,
    end: Option<At<'_>>,
) -> Option<Transport> {
    let has_ports = matches!(protocol, Protocol::Any | Protocol::Tcp | Protocol::Udp | Protocol::Sctp);
    if let Some(name) = port.as_ref().and_then(port_name) {
        let at = port.as_ref().unwrap_or(at);
        if !has_ports {
            reader.invalid(at, "the protocol has no ports; remove the name");
            return None;
        }
        if let Some(end) = &end {
            reader.invalid(end, "endPort needs the number of the first port, not its name");
            return None;
        }
        return Some(Transport::Named { protocol, name });
    }
    let first = match &port {
        Some(at) => read_number(reader, at)?,
        None => 0,
    };
    let last = match &end {
        Some(at) => read_number(reader, at)?,
        None => 0,
    };
    if let (Some(at), true) = (&end, last != 0 && last < first) {
        reader.invalid(at, format!("endPort {last} is below port {first}; swap them"));
        return None;
    }
    if let (Some(at), true) = (&end, last != 0 && first == 0) {
        reader.invalid(at, "endPort needs a port to start from; write `port: \"1\"` for the lowest");
        return None;
    }
    if !has_ports && first != 0 {
        let icmp = matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
        let message = if icmp {
            "ICMP has no ports; name its types under `icmps`"
        } else {
            "the protocol has no ports; remove the port"
        };
        reader.invalid(port.as_ref().unwrap_or(at), message);
        return None;
    }
    Some(Transport::Ports { protocol, first, last: last.max(first) })
}

pub(crate) fn read_protocol(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Protocol> {
    let text = reader.text(at)?;
    match text.to_ascii_uppercase().as_str() {
        "" | "ANY" => Some(Protocol::Any),
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        "ICMP" => Some(Protocol::Icmp),
        "ICMPV6" => Some(Protocol::Icmpv6),
        "IGMP" => Some(Protocol::Other(2)),
        "ESP" => Some(Protocol::Other(50)),
        "AH" => {
            reader.warn(
                at,
                "in IPv6 AH is a header, not a protocol: what follows it is what rules speak about",
            );
            Some(Protocol::Other(51))
        }
        "VRRP" => Some(Protocol::Other(112)),
        _ => {
            let message = "unknown protocol; use TCP, UDP, SCTP, ICMP, ICMPv6, VRRP, IGMP, ESP, AH or ANY";
            reader.invalid(at, message);
            None
        }
    }
}

/// A port's number: a text as Kubernetes wants it, or a number.
fn read_number(reader: &mut Reader<'_>, at: &At<'_>) -> Option<u16> {
    let text = match &at.node.value {
        Value::Number(number) => number.to_string(),
        _ => reader.text(at)?.to_owned(),
    };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits && text.len() > 1 && text.starts_with('0') {
        reader.invalid(at, format!("port {text} begins with 0; write it without"));
        return None;
    }
    match text.parse::<u16>() {
        Ok(number) if digits => Some(number),
        _ => {
            let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
            let message = format!(
                "port {shown} is not a number from 0 to 65535, nor a name of up to 15 letters, digits and `-`"
            );
            reader.invalid(at, message);
            None
        }
    }
}

/// A port given by its name, in lower case.
fn port_name(at: &At<'_>) -> Option<Arc<str>> {
    let text = at.node.as_str().filter(|text| is_port_name(text))?;
    Some(text.to_ascii_lowercase().into())
}

/// Whether a text is a service name of RFC 6335, in letters of either case.
#[must_use]
pub fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn read_icmps(reader: &mut Reader<'_>, at: &At<'_>, found: &mut Vec<Transport>) {
    const ITEM: Schema =
        Schema { known: &["fields"], refused: &[], elsewhere: &[("type", "put it under `fields`")] };
    const FIELD: Schema = Schema { known: &["family", "type"], refused: &[], elsewhere: &[] };
    let Some(fields) = reader.fields(at, &ITEM) else { return };
    let items = fields.get("fields").and_then(|at| reader.items(&at)).unwrap_or_default();
    if items.is_empty() {
        reader.invalid(at, "names no types; list them under `fields`");
    }
    too_many(reader, at, items.len(), "fields");
    for item in items {
        let Some(fields) = reader.fields(&item, &FIELD) else { continue };
        let v6 = match fields.get("family") {
            None => false,
            Some(at) => match reader.text(&at) {
                Some("" | "IPv4") => false,
                Some("IPv6") => true,
                Some(_) => {
                    reader.invalid(&at, "unknown family; use IPv4 or IPv6");
                    continue;
                }
                None => continue,
            },
        };
        let Some(kind) = fields.get("type") else {
            reader.problem(
                &item,
                ProblemKind::Missing,
                "`type` is missing; write a number or a name like EchoRequest",
            );
            continue;
        };
        let kind = read_icmp_type(reader, &kind, v6);
        found.extend(kind.map(|kind| Transport::Icmp { v6, kind }));
    }
}

fn read_icmp_type(reader: &mut Reader<'_>, at: &At<'_>, v6: bool) -> Option<u8> {
    let text = match &at.node.value {
        Value::Number(number) => number.to_string(),
        _ => reader.text(at)?.to_owned(),
    };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits).or_else(|| icmp::by_name(v6, &text));
    if number.is_none() {
        let family = if v6 { "ICMPv6" } else { "ICMP" };
        let hint = nearest(&text, icmp::names(v6).iter().map(|(name, _)| *name));
        let hint = hint.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        reader.invalid(at, format!("not a type of {family}{hint}; use a number from 0 to 255 or a name"));
    }
    number
}
