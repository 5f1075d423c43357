//! Why policies decide as they do, in rules: which asked, by which selector, and what nearly allows what is denied.

use std::fmt;

use serde::Serialize;
use villus_abi::Direction;
use villus_labels::{Labels, Selector};

use crate::{
    Bound, Clause, Explanation, Origin, Peers, PortMatch, Repository, Verdict, icmp_port, proto as number,
};

/// A rule that decided.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reason {
    /// The rule, or the option.
    pub origin: Origin,
    /// The selector of it that selects the other side; none where it speaks about everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// A rule that would allow if little were different.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Nearest {
    /// The rule.
    pub origin: Origin,
    /// What the other side's labels do not meet; empty if they meet all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmet: Vec<Selector>,
    /// The ports that it allows, where the one that was asked for is not among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
}

impl Repository {
    /// The rules behind an explanation of what policy says to a subject about a peer.
    #[must_use]
    pub fn because(&self, subject: &Labels, peer: Option<&Labels>, explanation: &Explanation) -> Vec<Reason> {
        let clauses: Vec<&Clause> = self.clauses_of(subject, explanation.direction).collect();
        let reason = |origin: &Origin| {
            let own = clauses.iter().filter(|clause| clause.origin == *origin);
            let selector = peer.and_then(|peer| {
                own.filter_map(|clause| match &clause.peers {
                    Peers::Any => None,
                    Peers::Selected(selectors) => selectors.iter().find(|selector| selector.matches(peer)),
                })
                .next()
            });
            Reason { origin: origin.clone(), selector: selector.cloned() }
        };
        explanation.deciders().iter().map(reason).collect()
    }

    /// The rules that come nearest to allowing what an explanation says is denied by default, the nearest first; at most
    /// three.
    #[must_use]
    pub fn nearest(&self, subject: &Labels, peer: &Labels, explanation: &Explanation) -> Vec<Nearest> {
        const MOST: usize = 3;
        if explanation.verdict != Verdict::DeniedByDefault {
            return Vec::new();
        }
        let allows = self.clauses_of(subject, explanation.direction).filter(|clause| !clause.deny);
        let mut all: Vec<(usize, Nearest)> = allows
            .map(|clause| {
                let unmet = unmet(&clause.peers, peer);
                let meets =
                    clause.ports.iter().any(|ports| meets(*ports, explanation.port, explanation.protocol));
                let ports = if meets {
                    Vec::new()
                } else {
                    clause.ports.iter().map(|ports| text_of(*ports)).collect()
                };
                (unmet.len() + usize::from(!meets), Nearest { origin: clause.origin.clone(), unmet, ports })
            })
            .filter(|(distance, _)| *distance > 0)
            .collect();
        all.sort_by(|(a, near), (b, other)| (a, &near.origin).cmp(&(b, &other.origin)));
        let closest = all.first().map_or(0, |(distance, _)| *distance);
        all.dedup_by(|a, b| a.1 == b.1);
        let near = all.into_iter().filter(|(distance, _)| *distance == closest);
        near.take(MOST).map(|(_, nearest)| nearest).collect()
    }

    fn clauses_of(&self, subject: &Labels, direction: Direction) -> impl Iterator<Item = &Clause> {
        let clauses = self.rules_of(subject).flat_map(|rule| &rule.clauses);
        clauses.filter(move |clause| clause.direction == direction && clause.bound != Bound::Requirement)
    }
}

/// What labels do not meet of the selector that they come nearest to.
fn unmet(peers: &Peers, labels: &Labels) -> Vec<Selector> {
    let Peers::Selected(selectors) = peers else { return Vec::new() };
    let of = |selector: &Selector| -> Vec<Selector> {
        let open = selector.requirements().iter().filter(|requirement| !requirement.matches(labels));
        open.filter_map(|requirement| Selector::new([requirement.clone()]).ok()).collect()
    };
    selectors.iter().map(of).min_by_key(Vec::len).unwrap_or_default()
}

fn meets(ports: PortMatch, port: u16, proto: u8) -> bool {
    let all = ports.first == 0 && ports.last == 0;
    (ports.proto == number::ANY || ports.proto == proto)
        && (all || (ports.first..=ports.last).contains(&port))
}

/// `80/TCP`, `8000-8999/TCP`, `ANY/UDP`, `ANY`.
pub(crate) fn text_of(ports: PortMatch) -> String {
    let name = match ports.proto {
        number::ANY => return "ANY".to_owned(),
        number::TCP => "TCP".to_owned(),
        number::UDP => "UDP".to_owned(),
        number::SCTP => "SCTP".to_owned(),
        number::ICMP => "ICMP".to_owned(),
        number::ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    };
    let kind = |port| {
        if matches!(ports.proto, number::ICMP | number::ICMPV6) && port == icmp_port(0) { 0 } else { port }
    };
    match (ports.first, ports.last) {
        (0, 0) => format!("ANY/{name}"),
        (first, last) if first == last => format!("{}/{name}", kind(first)),
        (first, last) => format!("{first}-{last}/{name}"),
    }
}

impl fmt::Display for Reason {
    /// `CiliumNetworkPolicy default/web spec.ingress[0] (web.yaml:7), by k8s:app=client`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        match &self.selector {
            Some(selector) => write!(f, ", by {selector}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Nearest {
    /// `CiliumNetworkPolicy default/web spec.ingress[0] (web.yaml:7) allows 443/TCP; it asks for k8s:app=client`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        if !self.ports.is_empty() {
            write!(f, " allows {}", self.ports.join(", "))?;
        }
        if !self.unmet.is_empty() {
            let unmet: Vec<String> = self.unmet.iter().map(ToString::to_string).collect();
            write!(f, "{} asks for {}", if self.ports.is_empty() { "" } else { " and" }, unmet.join(","))?;
        }
        Ok(())
    }
}
