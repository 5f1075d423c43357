//! Events as the lines of `villus monitor`, in Cilium's forms (`agent` reference 5.3).

use std::fmt::{self, Write as _};

use crate::{FlowEvent, Kind, Point, Record, WhyQuery};

/// Turns numbers into what people call them. Whatever it does not know is printed as its number.
pub trait Names {
    /// What to print for an identity, for example its labels.
    fn identity(&self, identity: u32) -> Option<String>;

    /// Name of an interface.
    fn interface(&self, _ifindex: u32) -> Option<String> {
        None
    }
}

/// Prints numbers only (`monitor -n`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Numeric;

impl Names for Numeric {
    fn identity(&self, _identity: u32) -> Option<String> {
        None
    }
}

impl<F: Fn(u32) -> Option<String>> Names for F {
    fn identity(&self, identity: u32) -> Option<String> {
        self(identity)
    }
}

/// How lines are printed.
#[derive(Clone, Copy, Debug)]
pub struct LineFormat<N> {
    /// Resolves identities and interfaces; [`Numeric`] for `-n`.
    pub names: N,
    /// Adds a second line with everything else that is known, and for a drop the question to `villus why`.
    pub verbose: bool,
}

impl<N: Names> LineFormat<N> {
    /// The line of an event, without the newline at its end; with `verbose` it has several.
    #[must_use]
    pub fn line(&self, event: &FlowEvent) -> String {
        let mut out = String::with_capacity(160);
        // Writing to a string does not fail.
        let _ = match event.kind {
            Kind::Drop { .. } => self.drop(&mut out, event),
            Kind::Trace { point } => self.trace(&mut out, event, point),
            Kind::Verdict { .. } => self.verdict(&mut out, event),
        };
        if let Some(policies) = &event.policies {
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            let _ = write!(out, "; policy {}", names.join(", "));
        }
        if self.verbose {
            let _ = self.details(&mut out, event);
        }
        out
    }

    /// The line of a record: an event, or how many events are missing here.
    #[must_use]
    pub fn record(&self, record: &Record) -> String {
        match record {
            Record::Event(event) => self.line(event),
            Record::Lost { source, count } => format!("!! {count} events lost ({source})"),
        }
    }

    fn drop(&self, out: &mut String, event: &FlowEvent) -> fmt::Result {
        let reason = event.reason().unwrap_or_default();
        write!(out, "xx drop ({})", reason_text(reason))?;
        write!(out, " flow {:#x} to endpoint {}, ", event.hash, event.dst_endpoint())?;
        if event.src_endpoint() != 0 {
            write!(out, "from endpoint {}, ", event.src_endpoint())?;
        }
        write!(out, "ifindex {}, identity {}: {}", event.ifindex, self.identities(event), event.packet)
    }

    fn trace(&self, out: &mut String, event: &FlowEvent, point: Point) -> fmt::Result {
        match point {
            Point::TO_ENDPOINT => write!(out, "-> endpoint {}", event.endpoint)?,
            Point::FROM_ENDPOINT => write!(out, "<- endpoint {}", event.endpoint)?,
            _ => {
                let name = point.to_string();
                match name.split_once('-') {
                    Some(("to", place)) => write!(out, "-> {place}")?,
                    Some(("from", place)) => write!(out, "<- {place}")?,
                    _ => write!(out, "-- {name}")?,
                }
            }
        }
        let interface = match event.ifindex {
            0 => "0".to_owned(),
            ifindex => self.names.interface(ifindex).unwrap_or_else(|| ifindex.to_string()),
        };
        let v6 = event.packet.addrs.is_some_and(|(src, _)| src.is_ipv6());
        write!(out, " flow {:#x} , identity {}", event.hash, self.identities(event))?;
        write!(out, " state {} ifindex {interface}", event.state)?;
        write!(out, " orig-ip {}: {}", if v6 { "::" } else { "0.0.0.0" }, event.packet)
    }

    fn verdict(&self, out: &mut String, event: &FlowEvent) -> fmt::Result {
        let Kind::Verdict { action, .. } = event.kind else { return Ok(()) };
        let direction = event.direction.name().to_ascii_lowercase();
        write!(
            out,
            "Policy verdict log: flow {:#x} local EP ID {}, remote ID {}, proto {}, {direction}, ",
            event.hash,
            event.endpoint,
            self.identity(event.remote_identity()),
            event.packet.proto,
        )?;
        write!(out, "action {}, auth: disabled, match {}, {}", action.name(), event.matched, event.packet)
    }

    fn details(&self, out: &mut String, event: &FlowEvent) -> fmt::Result {
        write!(out, "\n    time {:.6}s", event.time as f64 / 1e9)?;
        write!(out, " hook {} {}", event.hook, event.direction.name().to_ascii_lowercase())?;
        write!(out, " endpoint {} peer {} ifindex {}", event.endpoint, event.peer, event.ifindex)?;
        write!(out, " state {} match {} {} bytes", event.state, event.matched, event.packet.len)?;
        if event.packet.tcp_flags.0 != 0 {
            let flags: Vec<_> = event.packet.tcp_flags.names().collect();
            write!(out, " tcp flags {}", flags.join("|"))?;
        }
        if let Some(reason) = event.reason() {
            write!(out, " reason {} ({})", reason.0, reason_text(reason))?;
            if let Some(why) = WhyQuery::of(event) {
                write!(out, "\n    explain with: {why}")?;
            }
        }
        Ok(())
    }

    fn identities(&self, event: &FlowEvent) -> String {
        format!("{}->{}", self.identity(event.src_identity), self.identity(event.dst_identity))
    }

    fn identity(&self, identity: u32) -> String {
        self.names.identity(identity).unwrap_or_else(|| identity.to_string())
    }
}

/// The reason's text, with its number where it has no text.
fn reason_text(reason: crate::Reason) -> String {
    match reason.text() {
        "Unknown reason" => format!("Unknown reason {}", reason.0),
        text => text.to_owned(),
    }
}
