//! A draft as YAML, with what it was drafted from in comments.

use std::fmt::Write as _;

use jiff::Timestamp;
use villus_flows::protocol_name;

use crate::{
    Count,
    learn::{Element, Party, Port, Sections},
    select::Labelled,
};

/// Most ports of one `toPorts` and fields of one `icmps`.
const MOST: usize = 40;

/// The whole object.
pub(crate) fn policy(
    name: &str,
    namespace: Option<&str>,
    subject: &Labelled,
    sections: &Sections,
    flows: Count,
    skipped: usize,
) -> String {
    let mut out = Writer::default();
    out.line(0, &format!("# Drafted by villus policy learn from {}.", told(flows)));
    out.line(0, "# It allows what was seen and denies the rest: read it before it is imported.");
    if skipped > 0 {
        out.line(0, &format!("# {skipped} kinds of flow that policies cannot express are not in it."));
    }
    let kind = if namespace.is_some() { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
    out.line(0, "apiVersion: cilium.io/v2");
    out.line(0, &format!("kind: {kind}"));
    out.line(0, "metadata:");
    out.line(1, &format!("name: {}", quoted(name)));
    if let Some(namespace) = namespace {
        out.line(1, &format!("namespace: {}", quoted(namespace)));
    }
    out.line(0, "spec:");
    if subject.equal.is_empty() && subject.expressions.is_empty() {
        out.line(1, "endpointSelector: {}");
    } else {
        out.line(1, "endpointSelector:");
        out.selector(false, 1, subject);
    }
    out.section("ingress", "from", sections.ingress.as_deref());
    out.section("egress", "to", sections.egress.as_deref());
    out.0
}

/// `3 flows, first seen …, last …`.
fn told(count: Count) -> String {
    let flows = if count.count == 1 { "flow" } else { "flows" };
    let mut text = format!("{} {flows}", count.count);
    match (count.first, count.last) {
        (Some(first), Some(last)) if seconds(first) == seconds(last) => {
            let _ = write!(text, ", seen {}", seconds(first));
        }
        (Some(first), Some(last)) => {
            let _ = write!(text, ", first seen {}, last {}", seconds(first), seconds(last));
        }
        _ => {}
    }
    text
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A text in double quotes, which YAML reads as JSON does.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[derive(Default)]
struct Writer(String);

impl Writer {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.push_str(&"  ".repeat(depth));
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// A selector's fields. As an item of a list its first field stands behind the dash.
    fn selector(&mut self, dash: bool, depth: usize, selector: &Labelled) {
        let mut first = dash;
        let mut field = |out: &mut Self, text: &str| {
            let lead = if std::mem::take(&mut first) { "- " } else { "  " };
            out.line(depth, &format!("{lead}{text}"));
        };
        if !selector.equal.is_empty() {
            field(self, "matchLabels:");
            for (key, value) in &selector.equal {
                field(self, &format!("  {key}: {}", quoted(value)));
            }
        }
        if !selector.expressions.is_empty() {
            field(self, "matchExpressions:");
            for (key, operator, values) in &selector.expressions {
                field(self, &format!("  - key: {key}"));
                field(self, &format!("    operator: {operator}"));
                if !values.is_empty() {
                    let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                    field(self, &format!("    values: [{}]", values.join(", ")));
                }
            }
        }
    }

    fn section(&mut self, name: &str, prefix: &str, elements: Option<&[Element]>) {
        let Some(elements) = elements else { return };
        self.line(1, &format!("{name}:"));
        if elements.is_empty() {
            self.line(2, "# Nothing was seen in this direction, so all of it is denied.");
            self.line(2, "- {}");
        }
        for element in elements {
            self.element(prefix, element);
        }
    }

    fn element(&mut self, prefix: &str, element: &Element) {
        let field = match element.parties.first() {
            Some((Party::Endpoints(_), _)) => "Endpoints",
            Some((Party::Entity(_), _)) => "Entities",
            _ => "CIDR",
        };
        self.line(2, &format!("- {prefix}{field}:"));
        for (party, count) in &element.parties {
            match party {
                Party::Endpoints(selector) => {
                    self.line(4, &format!("# {}", told(*count)));
                    if selector.without_namespace {
                        self.line(
                            4,
                            "# It has no namespace: the reserved key keeps this policy's from being added.",
                        );
                    }
                    if selector.equal.is_empty() && selector.expressions.is_empty() {
                        self.line(4, "- {}");
                    } else {
                        self.selector(true, 4, selector);
                    }
                }
                Party::Entity(name) => self.line(4, &format!("- {name} # {}", told(*count))),
                Party::Prefix(prefix) => {
                    self.line(4, &format!("- {} # {}", quoted(&prefix.to_string()), told(*count)))
                }
            }
        }
        match element.ports.first() {
            Some((Port::Icmp { .. }, _)) => self.icmps(&element.ports),
            _ => self.ports(&element.ports),
        }
    }

    fn ports(&mut self, ports: &[(Port, Count)]) {
        self.line(3, "toPorts:");
        for chunk in ports.chunks(MOST) {
            self.line(4, "- ports:");
            for (port, count) in chunk {
                let Port::Range { protocol, first, last } = port else { continue };
                self.line(6, &format!("- port: {} # {}", quoted(&first.to_string()), told(*count)));
                if last > first {
                    self.line(7, &format!("endPort: {last}"));
                }
                let name = protocol_name(*protocol).unwrap_or("any").to_uppercase();
                self.line(7, &format!("protocol: {name}"));
            }
        }
    }

    fn icmps(&mut self, ports: &[(Port, Count)]) {
        self.line(3, "icmps:");
        for chunk in ports.chunks(MOST) {
            self.line(4, "- fields:");
            for (port, count) in chunk {
                let Port::Icmp { v6, kind } = port else { continue };
                let family = if *v6 { "IPv6" } else { "IPv4" };
                self.line(6, &format!("- family: {family}"));
                self.line(7, &format!("type: {kind} # {}", told(*count)));
            }
        }
    }
}
