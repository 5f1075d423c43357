//! An explanation in words.

use std::fmt;

use villus_abi::{Reason, endpoint::SLOT_HOST};

use crate::{
    judgement::{Judgement, Lookup},
    question::{Derivation, Kind, Side},
    run::{Explanation, Fate, Flow, Hook, Pass},
};

/// Names for identities: their labels, for instance.
pub type Names<'a> = dyn Fn(u32) -> Option<String> + 'a;

impl Explanation {
    /// The explanation, line by line.
    #[must_use]
    pub fn lines(&self, names: &Names<'_>) -> Vec<String> {
        let mut lines = vec![
            format!("{} -> {}", self.src.address, target(&self.dst, self.port, self.proto)),
            format!("  from {}", side(&self.src, names)),
            format!("  to   {}", side(&self.dst, names)),
        ];
        for pass in &self.passes {
            describe(pass, names, &mut lines);
        }
        if let Some(leaving) = &self.leaving {
            lines.push(format!("leaves the node with {}", leaving.text()));
        }
        lines.push(self.ending());
        lines
    }

    /// What becomes of the packet, in one sentence.
    #[must_use]
    pub fn ending(&self) -> String {
        let to = self.dst.endpoint.map_or_else(|| "it".to_owned(), |id| format!("endpoint {id}"));
        match self.fate {
            Fate::HandedOver => format!("allowed: handed over to {to}"),
            Fate::DeliveredByStack => format!("allowed: delivered to {to} by the host's stack"),
            Fate::DeliveredToHost => "allowed: given to the host, which is its destination".to_owned(),
            Fate::LeavesByStack => "allowed: given to the host's stack, which forwards it".to_owned(),
            Fate::LeavesDirectly => "allowed: sent to the neighbour that the routing table names".to_owned(),
            Fate::LeavesByTunnel => "allowed: sent through the tunnel to the node where it lives".to_owned(),
            Fate::Dropped => {
                let denied = self.passes.iter().flat_map(|pass| &pass.judgements).find(|j| !j.allowed);
                let by = denied.map_or_else(String::new, |j| {
                    format!(", by the {} policy of {}", j.direction.to_lowercase(), owner(j.endpoint))
                });
                format!("dropped: {} ({}){by}", self.text, self.reason)
            }
        }
    }
}

impl fmt::Display for Explanation {
    /// The lines with identities as numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines(&|_| None).join("\n"))
    }
}

fn describe(pass: &Pass, names: &Names<'_>, lines: &mut Vec<String>) {
    let place = match (pass.hook, pass.endpoint) {
        (Hook::FromEndpoint, Some(id)) => format!("sent by endpoint {id}"),
        (Hook::ToEndpoint, Some(id)) => format!("delivered to endpoint {id} by the host's stack"),
        (Hook::FromEndpoint | Hook::ToEndpoint, None) => "at an endpoint".to_owned(),
        (Hook::FromNetwork, _) => "received on an uplink".to_owned(),
        (Hook::ToNetwork, _) => "sent on an uplink".to_owned(),
        (Hook::FromOverlay, _) => "brought by the tunnel between nodes".to_owned(),
        (Hook::ToOverlay, _) => "sent into the tunnel between nodes".to_owned(),
    };
    let flow = match pass.flow {
        Flow::NotAsked => "",
        Flow::New => ", the first packet of a flow",
        Flow::Known => ", a packet of a known flow",
    };
    lines.push(format!("{place}{flow}:"));
    for judgement in &pass.judgements {
        judged(judgement, names, lines);
    }
    if pass.judgements.is_empty() {
        lines.push(if pass.reason == 0 {
            "  no policy is asked here".to_owned()
        } else {
            format!("  {}", refused(pass))
        });
    }
    if pass.audited {
        lines.push("  audit mode lets it pass and reports it".to_owned());
    }
}

/// What dropped a packet when no policy did.
pub(crate) fn refused(pass: &Pass) -> String {
    let (text, reason) = (pass.text, pass.reason);
    match Reason(reason) {
        Reason::NAT_NO_MAPPING | Reason::NAT_PROTOCOL => format!("cannot be masqueraded: {text} ({reason})"),
        _ => format!("refused before any policy is asked: {text} ({reason})"),
    }
}

fn judged(judgement: &Judgement, names: &Names<'_>, lines: &mut Vec<String>) {
    let (direction, to_or_from) = if judgement.is_egress() { ("egress", "to") } else { ("ingress", "from") };
    let asked = port(judgement.port, 1, judgement.proto);
    lines.push(format!(
        "  {direction} policy of {}: {to_or_from} identity {}, {asked}",
        owner(judgement.endpoint),
        identity(judgement.identity, judgement.pending, names),
    ));
    for lookup in &judgement.lookups {
        lines.push(format!("    {}", entry(lookup)));
    }
    lines.push(format!("    {}", conclusion(judgement)));
}

/// Whose policy it is.
fn owner(slot: u32) -> String {
    if slot == SLOT_HOST { "this node".to_owned() } else { format!("endpoint {slot}") }
}

fn entry(lookup: &Lookup) -> String {
    let who = if lookup.identity == 0 { "any".to_owned() } else { lookup.identity.to_string() };
    let what = port(lookup.port, lookup.ports, lookup.proto);
    let found = lookup.entry.unwrap_or("-");
    let decided = if lookup.decided { "  <- decides" } else { "" };
    format!("{}  identity {who}, {what}: {found}{decided}", lookup.hex)
}

fn conclusion(judgement: &Judgement) -> String {
    if judgement.allowed {
        return "allowed".to_owned();
    }
    let why = match judgement.reason {
        133 => ": no entry matches",
        230 => ": its identity has not arrived, and without it the answer is not certain",
        233 => ": its slot holds no map",
        _ => "",
    };
    format!("{} ({}){why}", judgement.text, judgement.reason)
}

fn side(side: &Side, names: &Names<'_>) -> String {
    let who = match (side.kind, side.endpoint) {
        (Kind::Endpoint, Some(id)) => format!("endpoint {id}"),
        (Kind::Host, _) => "this node".to_owned(),
        _ => "outside this node".to_owned(),
    };
    let from = match &side.derived {
        Derivation::Endpoint => "the endpoint's record".to_owned(),
        Derivation::Node => "an address of this node".to_owned(),
        Derivation::Ipcache { prefix } => format!("{prefix} in the ipcache"),
        Derivation::NoPrefix => "no prefix in the ipcache".to_owned(),
    };
    let identity = identity(side.identity, side.pending, names);
    format!("{}: {who}, identity {identity} ({from})", side.address)
}

fn identity(number: u32, pending: bool, names: &Names<'_>) -> String {
    let name = names(number).map_or_else(String::new, |name| format!(" [{name}]"));
    let pending = if pending { " (pending)" } else { "" };
    format!("{number}{name}{pending}")
}

fn target(side: &Side, number: u16, proto: u8) -> String {
    format!("{} {}", side.address, port(number, 1, proto))
}

/// A port or block of ports with its protocol.
fn port(first: u16, ports: u32, proto: u8) -> String {
    let protocol = protocol(proto);
    let last = u32::from(first) + ports.saturating_sub(1);
    match (proto, ports) {
        (0, _) => "any port and protocol".to_owned(),
        (1 | 58, 0) => format!("any type of {protocol}"),
        (1 | 58, _) => format!("{protocol} type {first}"),
        (_, 0) => format!("any port of {protocol}"),
        (_, 1) => format!("{first}/{protocol}"),
        _ => format!("{first}-{last}/{protocol}"),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}
