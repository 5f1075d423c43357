//! Ranges of addresses as etcd can tell them apart: by how their keys begin.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use thiserror::Error;

/// Addresses of a node: one, or a range whose keys, and no others, begin with one text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    net: IpNet,
    key: String,
    is_prefix: bool,
}

/// Addresses that etcd cannot tell from others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// Neither an address nor a prefix.
    #[error("{0:?} is neither an address nor a prefix such as 10.0.1.0/24")]
    Text(String),
    /// Host bits.
    #[error("{0} has bits beyond its length; write {1}")]
    HostBits(IpNet, IpNet),
    /// Not at a boundary of the written form.
    #[error(
        "etcd tells addresses apart by how their text begins, and {0} does not end at a dot or colon; give nodes /8, /16 or /24 of IPv4, \
         multiples of 16 bits of IPv6"
    )]
    Unaligned(IpNet),
    /// Zeros that the written form leaves out.
    #[error(
        "the addresses in {0} are written in several ways, for zeros are left out; choose a range whose last group of 16 bits is \
         not zero and that has no two groups of zeros in a row"
    )]
    Zeros(IpNet),
}

// === impl Range ===

impl Range {
    /// The addresses.
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// The key's last part: whole, or the beginning of all of them ([`Range::is_prefix`]).
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether [`Range::key`] is the beginning of many.
    #[must_use]
    pub const fn is_prefix(&self) -> bool {
        self.is_prefix
    }

    fn of(net: IpNet) -> Result<Self, RangeError> {
        if net.trunc() != net {
            return Err(RangeError::HostBits(net, net.trunc()));
        }
        let key = match net {
            _ if net.prefix_len() == net.max_prefix_len() => {
                return Ok(Self { net, key: net.addr().to_string(), is_prefix: false });
            }
            IpNet::V4(v4) if v4.prefix_len() % 8 == 0 && v4.prefix_len() > 0 => {
                let octets = v4.addr().octets();
                octets
                    .iter()
                    .take(usize::from(v4.prefix_len() / 8))
                    .map(|octet| format!("{octet}."))
                    .collect()
            }
            IpNet::V6(v6) if v6.prefix_len() % 16 == 0 && v6.prefix_len() > 0 => {
                of_v6(v6.addr(), usize::from(v6.prefix_len() / 16)).ok_or(RangeError::Zeros(net))?
            }
            _ => return Err(RangeError::Unaligned(net)),
        };
        Ok(Self { net, key, is_prefix: true })
    }
}

/// How all addresses with these leading groups begin, if they begin alike.
fn of_v6(address: Ipv6Addr, groups: usize) -> Option<String> {
    let all = address.segments();
    let kept = all.get(..groups)?;
    let is_plain = kept.last() != Some(&0) && !kept.windows(2).any(|pair| pair == [0, 0]);
    is_plain.then(|| kept.iter().map(|group| format!("{group:x}:")).collect())
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        Self::of(net.map_err(|_| RangeError::Text(text.to_owned()))?)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_that_end_at_a_dot_or_colon_are_taken_and_others_say_why_not() {
        for (text, key) in [
            ("10.0.1.0/24", "10.0.1."),
            ("10.1.0.0/16", "10.1."),
            ("10.0.0.0/8", "10."),
            ("10.0.1.7", "10.0.1.7"),
            ("10.0.1.7/32", "10.0.1.7"),
            ("fd00:1:2:3::/64", "fd00:1:2:3:"),
            ("fd00:0:2:3::/64", "fd00:0:2:3:"),
            ("fd00::7", "fd00::7"),
        ] {
            let range: Range = text.parse().unwrap();
            assert_eq!(range.key(), key, "{text}");
            assert_eq!(range.is_prefix(), key.ends_with(['.', ':']), "{text}");
        }
        for (text, part) in [
            ("10.0.1.0/25", "does not end at a dot"),
            ("0.0.0.0/0", "does not end at a dot"),
            ("10.0.1.7/24", "write 10.0.1.0/24"),
            ("fd00::/64", "zeros"),
            ("fd00:0:0:1::/64", "zeros"),
            ("fd00:1:2:3::/60", "write fd00:1:2::/60"),
            ("fd00:1:2::/60", "does not end"),
            ("node", "neither"),
        ] {
            let error = text.parse::<Range>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few values, so that ranges are hit and zeros run into each other.
        let octet = prop::sample::select(vec![0u8, 1, 10, 100, 255]);
        let group = prop::sample::select(vec![0u16, 0, 1, 0x10, 0xfd00, 0xffff]);
        prop_oneof![
            prop::array::uniform4(octet).prop_map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
            prop::array::uniform8(group).prop_map(|groups| IpAddr::V6(Ipv6Addr::from(groups))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 8))]

        #[test]
        fn a_key_is_in_a_range_exactly_if_its_address_is(base in address(), len in 0u8..=128, other in address(), mix in any::<bool>()) {
            let Ok(net) = IpNet::new(base, len) else { return Ok(()) };
            let Ok(range) = Range::of(net.trunc()) else { return Ok(()) };
            // Half of the time an address from inside.
            let other = match (mix, base, other) {
                (true, IpAddr::V4(b), IpAddr::V4(o)) if len < 32 => {
                    IpAddr::V4((u32::from(b) & !(u32::MAX >> len) | u32::from(o) & (u32::MAX >> len)).into())
                }
                (true, IpAddr::V6(b), IpAddr::V6(o)) if len < 128 => {
                    IpAddr::V6((u128::from(b) & !(u128::MAX >> len) | u128::from(o) & (u128::MAX >> len)).into())
                }
                _ => other,
            };
            let key = other.to_string();
            let matches = if range.is_prefix() { key.starts_with(range.key()) } else { key == range.key() };
            prop_assert_eq!(matches, net.contains(&other), "{} {}", range, other);
        }

        #[test]
        fn no_text_is_too_strange(text in "[0-9a-f.:/]{0,24}") {
            let _ = text.parse::<Range>();
        }
    }
}
