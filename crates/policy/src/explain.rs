//! Which keys the datapath looks up for a packet, what stands there, and why.

use std::fmt;

use serde::{Serialize, Serializer};
use villus_abi::{Direction, PolicyKey};

use crate::{EndpointPolicy, Origin, Wanted, endpoint::KeyShape, icmp_port, ports::proto as number};

/// What a policy says to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The entry of this key, the most specific that allows, lets it pass.
    Allowed(PolicyKey),
    /// The entry of this key, the most specific that denies, stops it.
    Denied(PolicyKey),
    /// No entry matches.
    DeniedByDefault,
}

impl Verdict {
    /// Whether the packet is allowed.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// `allowed`, `denied by policy` or `denied by default`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed",
            Self::Denied(_) => "denied by policy",
            Self::DeniedByDefault => "denied by default",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One key that is looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// The key.
    pub key: PolicyKey,
    /// What the key says: `identity, port and protocol`, …
    pub shape: &'static str,
    /// The entry that stands there.
    pub found: Option<Wanted>,
}

impl Serialize for Lookup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            shape: &'static str,
            key: KeyShape,
            #[serde(skip_serializing_if = "Option::is_none")]
            found: Option<&'a Wanted>,
        }
        Shape { shape: self.shape, key: self.key.into(), found: self.found.as_ref() }.serialize(serializer)
    }
}

/// How a verdict came about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Which direction, `Ingress` or `Egress`.
    #[serde(serialize_with = "direction_name")]
    pub direction: Direction,
    /// Identity of the other side.
    pub identity: u32,
    /// Destination port, or ICMP type as it is looked up.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// What comes of it.
    pub verdict: Verdict,
    /// It is a denial of audited policies only: the packet passes and is reported.
    pub audited: bool,
    /// The keys, the most specific first.
    pub lookups: Vec<Lookup>,
    /// For a denial by default: what switched the direction to default deny.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_deny_by: Vec<Origin>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn direction_name<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.name())
}

/// The keys of a packet, the most specific first, and what each says.
fn keys(
    identity: u32,
    port: u16,
    proto: u8,
    direction: Direction,
    mask: u32,
) -> Vec<(PolicyKey, &'static str)> {
    let key = |identity, port, proto| PolicyKey::new(identity, port, proto, direction);
    let mut keys = vec![
        (key(identity, port, proto), "identity, port and protocol"),
        (key(0, port, proto), "port and protocol"),
    ];
    for log2 in (1..16u8).filter(|log2| mask & (1 << log2) != 0) {
        let first = port >> log2 << log2;
        keys.push((
            PolicyKey::block(identity, first, log2, proto, direction),
            "identity, port range and protocol",
        ));
        keys.push((PolicyKey::block(0, first, log2, proto, direction), "port range and protocol"));
    }
    keys.extend([
        (key(identity, 0, proto), "identity and protocol"),
        (key(0, 0, proto), "protocol"),
        (key(identity, 0, 0), "identity"),
        (key(0, 0, 0), "everything"),
    ]);
    let mut seen = std::collections::BTreeSet::new();
    keys.retain(|(key, _)| seen.insert(*key));
    keys
}

pub(crate) fn explain(
    policy: &EndpointPolicy,
    direction: Direction,
    identity: u32,
    port: u16,
    proto: u8,
) -> Explanation {
    let port = match (proto, u8::try_from(port)) {
        (number::ICMP | number::ICMPV6, Ok(kind)) => icmp_port(kind),
        _ => port,
    };
    let side = usize::from(direction == Direction::Egress);
    let lookups: Vec<Lookup> = keys(identity, port, proto, direction, policy.mask()[side])
        .into_iter()
        .map(|(key, shape)| Lookup { key, shape, found: policy.get(&key) })
        .collect();
    let first = |deny: bool, audit: bool| {
        let decides = |found: &Wanted| found.deny == deny && found.audit == audit;
        lookups.iter().find(|lookup| lookup.found.as_ref().is_some_and(decides)).map(|lookup| lookup.key)
    };
    let (verdict, audited) = match (first(true, false), first(true, true), first(false, false)) {
        (Some(key), ..) => (Verdict::Denied(key), false),
        (None, Some(key), _) => (Verdict::Denied(key), true),
        (None, None, Some(key)) => (Verdict::Allowed(key), false),
        (None, None, None) => (Verdict::DeniedByDefault, policy.audit[side]),
    };
    let default_deny_by = match verdict {
        Verdict::DeniedByDefault => policy.enforced_by[side].clone(),
        _ => Vec::new(),
    };
    Explanation { direction, identity, port, protocol: proto, verdict, audited, lookups, default_deny_by }
}

impl Explanation {
    /// Whether the packet passes, be it as audit.
    #[must_use]
    pub const fn passes(&self) -> bool {
        self.verdict.is_allowed() || self.audited
    }

    /// Who decided: those who asked for the entry, or for the default deny.
    #[must_use]
    pub fn deciders(&self) -> &[Origin] {
        match self.verdict {
            Verdict::DeniedByDefault => &self.default_deny_by,
            Verdict::Allowed(key) | Verdict::Denied(key) => {
                let decided = self.lookups.iter().find(|lookup| lookup.key == key);
                decided.and_then(|lookup| lookup.found.as_ref()).map_or(&[], |found| &found.origins)
            }
        }
    }
}

impl fmt::Display for Explanation {
    /// The verdict, then one line per key that was found and who asked for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, identity, port, protocol, verdict, .. } = self;
        writeln!(
            f,
            "{}, identity {identity}, port {port}, protocol {protocol}: {}{}",
            direction.name(),
            verdict.name(),
            if self.audited { ", passes as audit" } else { "" }
        )?;
        for Lookup { key, shape, found } in &self.lookups {
            let (port, end) = (key.port(), u32::from(key.port()) + (1u32 << key.block_log2()) - 1);
            let ports = if key.block_log2() > 0 { format!("{port}-{end}") } else { port.to_string() };
            write!(f, "  {{{}, {ports}, {}}} {shape}: ", key.identity, key.proto)?;
            match found {
                None => writeln!(f, "no entry")?,
                Some(Wanted { deny, audit, origins }) => {
                    let says = if *audit {
                        "deny as audit"
                    } else if *deny {
                        "deny"
                    } else {
                        "allow"
                    };
                    writeln!(f, "{says}")?;
                    for origin in origins.iter() {
                        writeln!(f, "    {origin}")?;
                    }
                }
            }
        }
        for origin in &self.default_deny_by {
            writeln!(f, "  default deny because of {origin}")?;
        }
        Ok(())
    }
}
