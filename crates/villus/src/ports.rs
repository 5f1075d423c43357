//! Ports and protocols on the command line: `80/tcp`, `8000-8999/udp`, `8/icmp`, `any`.

use std::str::FromStr;

use villus_abi::{Direction, PolicyKey};
use villus_flows::protocol_number;
use villus_policy::{PortMatch, icmp_port};

/// What the port part of policy keys is given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(PortMatch);

impl Default for Ports {
    /// Everything.
    fn default() -> Self {
        Self(PortMatch::ALL)
    }
}

impl Ports {
    /// The keys for one identity.
    pub fn keys(self, identity: u32, direction: Direction) -> Vec<PolicyKey> {
        self.0.keys(identity, direction).collect()
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "is not PORT[-LAST][/PROTOCOL], for example 80/tcp, 8000-8999/udp, any/sctp, 8/icmp, any"
                .to_owned()
        };
        let (ports, proto) = match text.split_once('/') {
            Some((ports, proto)) => (ports, proto),
            None if text.eq_ignore_ascii_case("any") => ("any", "any"),
            None => (text, "tcp"),
        };
        let proto = match proto {
            any if any.eq_ignore_ascii_case("any") => 0,
            name => protocol_number(name).ok_or_else(wrong)?,
        };
        let (first, last) = if ports.eq_ignore_ascii_case("any") {
            (0, 0)
        } else {
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?)
        };
        if first > last {
            return Err(format!("has its first port, {first}, after its last, {last}"));
        }
        match proto {
            0 if last != 0 => Err("names a port without its protocol".to_owned()),
            1 | 58 if first != last => Err("gives a range of ICMP types; name them one by one".to_owned()),
            1 | 58 if ports.eq_ignore_ascii_case("any") => Ok(Self(PortMatch { proto, first: 0, last: 0 })),
            1 | 58 => {
                let kind = u8::try_from(first).map_err(|_| "has an ICMP type above 255".to_owned())?;
                Ok(Self(PortMatch { proto, first: icmp_port(kind), last: icmp_port(kind) }))
            }
            // All ports are one key, not sixteen blocks.
            _ if first <= 1 && last == u16::MAX => Ok(Self(PortMatch { proto, first: 0, last: 0 })),
            _ => Ok(Self(PortMatch { proto, first, last })),
        }
    }
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> Vec<PolicyKey> {
        text.parse::<Ports>().unwrap().keys(7, Direction::Ingress)
    }

    #[test]
    fn ports_become_keys() {
        let key = |port, proto| PolicyKey::new(7, port, proto, Direction::Ingress);
        assert_eq!(keys("80"), [key(80, 6)]);
        assert_eq!(keys("53/UDP"), [key(53, 17)]);
        assert_eq!(keys("any"), [key(0, 0)]);
        assert_eq!(keys("any/sctp"), [key(0, 132)]);
        assert_eq!(keys("0/icmp"), [key(256, 1)]);
        assert_eq!(keys("8/icmp"), [key(8, 1)]);
        assert_eq!(keys("8000-8999/tcp").len(), 6);
    }

    #[test]
    fn wrong_ports_say_why() {
        for (text, needle) in [
            ("70000", "PORT[-LAST]"),
            ("80/any", "without its protocol"),
            ("90-80/tcp", "after its last"),
            ("8-9/icmp", "one by one"),
            ("300/icmp", "above 255"),
            ("80/xyz", "PORT[-LAST]"),
            ("", "PORT[-LAST]"),
        ] {
            let error = text.parse::<Ports>().unwrap_err();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[0-9a-z/+-]{0,12}|.{0,8}") {
            if let Ok(ports) = text.parse::<Ports>() {
                prop_assert!(!ports.keys(1, Direction::Egress).is_empty());
            }
        }
    }
}
