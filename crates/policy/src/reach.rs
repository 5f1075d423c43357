//! Which ports stand open between two, as all policies say that are asked about it.

use std::collections::BTreeSet;

use serde::Serialize;
use villus_abi::{Direction, PolicyKey};

use crate::{EndpointPolicy, PortMatch, because::text_of, proto as number};

/// One policy that is asked about what goes between two.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The policy.
    pub policy: &'a EndpointPolicy,
    /// In which direction it is asked.
    pub direction: Direction,
    /// Identity of the other side.
    pub identity: u32,
}

/// Ports that stand open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Open {
    /// `80/TCP`, `8000-8999/TCP`, `ANY/UDP`, `ANY`.
    pub ports: String,
    /// Only because a policy is audited.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audited: bool,
}

/// Protocols that have ports or types.
const PROTOCOLS: [u8; 5] = [number::TCP, number::UDP, number::SCTP, number::ICMP, number::ICMPV6];
/// A protocol that no policy names: what is open for it is open for all.
const OTHER: u8 = 255;

impl Side<'_> {
    fn keys(&self) -> impl Iterator<Item = PolicyKey> + '_ {
        let about = |key: &PolicyKey| {
            key.dir() == self.direction && (key.identity == 0 || key.identity == self.identity)
        };
        self.policy.keys().filter(about)
    }
}

/// Whether all of them let one port pass, and whether that is for audit only.
#[must_use]
pub fn passes(sides: &[Side<'_>], port: u16, proto: u8) -> Option<bool> {
    sides.iter().try_fold(false, |audited, side| {
        let explanation = side.policy.explain(side.direction, side.identity, port, proto);
        explanation.passes().then_some(audited || explanation.audited)
    })
}

/// Everything that all of them let pass, by protocol and port.
#[must_use]
pub fn open_ports(sides: &[Side<'_>]) -> Vec<Open> {
    let mut found: Vec<(PortMatch, bool)> = Vec::new();
    for proto in PROTOCOLS {
        found.extend(of_protocol(sides, proto));
    }
    let whole: Vec<bool> =
        found.iter().filter(|(ports, _)| ports.first == 0).map(|(_, audited)| *audited).collect();
    if let Some(audited) = passes(sides, 1, OTHER)
        && whole == [audited; PROTOCOLS.len()]
    {
        return vec![Open { ports: text_of(PortMatch::ALL), audited }];
    }
    found.into_iter().map(|(ports, audited)| Open { ports: text_of(ports), audited }).collect()
}

/// The runs of ports of a protocol that are open alike.
fn of_protocol(sides: &[Side<'_>], proto: u8) -> Vec<(PortMatch, bool)> {
    let is_icmp = matches!(proto, number::ICMP | number::ICMPV6);
    let end: u32 = if is_icmp { 257 } else { 1 << 16 };
    let mut starts = BTreeSet::from([1_u32]);
    for key in sides.iter().flat_map(Side::keys).filter(|key| key.proto == proto && key.port() != 0) {
        let first = u32::from(key.port());
        starts.extend([first, first + (1 << key.block_log2())]);
    }
    starts.retain(|start| *start < end);
    let mut runs: Vec<(u32, u32, bool)> = Vec::new();
    let ends: Vec<u32> = starts.iter().skip(1).copied().chain([end]).collect();
    for (start, next) in starts.into_iter().zip(ends) {
        let Some(audited) = u16::try_from(start).ok().and_then(|port| passes(sides, port, proto)) else {
            continue;
        };
        match runs.last_mut() {
            Some((_, last, same)) if *last == start && *same == audited => *last = next,
            _ => runs.push((start, next, audited)),
        }
    }
    let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let run = |(start, next, audited): (u32, u32, bool)| {
        let (first, last) = if (start, next) == (1, end) { (0, 0) } else { (port(start), port(next - 1)) };
        (PortMatch { proto, first, last }, audited)
    };
    runs.into_iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use villus_abi::PolicyEntry;

    #[test]
    fn what_both_sides_let_pass_is_open() {
        let of = |entries: &[(PolicyKey, PolicyEntry)]| EndpointPolicy::of_entries(entries.iter().copied());
        let (into, out) = (Direction::Ingress, Direction::Egress);
        let server = of(&[
            (PolicyKey::new(7, 80, 6, into), PolicyEntry::ALLOW),
            (PolicyKey::block(0, 8000, 6, 6, into), PolicyEntry::ALLOW),
            (PolicyKey::new(7, 8001, 6, into), PolicyEntry::DENY),
            (PolicyKey::new(7, 8, 1, into), PolicyEntry::ALLOW),
            (PolicyKey::new(0, 0, 17, into), PolicyEntry::ALLOW),
        ]);
        let all = of(&[(PolicyKey::new(0, 0, 0, out), PolicyEntry::ALLOW)]);
        let tcp = of(&[(PolicyKey::new(9, 0, 6, out), PolicyEntry::ALLOW)]);
        let between = |client: &EndpointPolicy| {
            let sides = [
                Side { policy: client, direction: out, identity: 9 },
                Side { policy: &server, direction: into, identity: 7 },
            ];
            open_ports(&sides).into_iter().map(|open| open.ports).collect::<Vec<_>>()
        };
        assert_eq!(between(&all), ["80/TCP", "8000/TCP", "8002-8063/TCP", "ANY/UDP", "8/ICMP"]);
        assert_eq!(between(&tcp), ["80/TCP", "8000/TCP", "8002-8063/TCP"]);
        let sides = [Side { policy: &all, direction: out, identity: 9 }];
        assert_eq!(open_ports(&sides), [Open { ports: "ANY".into(), audited: false }]);
    }
}
