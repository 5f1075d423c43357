//! Ethernet addresses.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet address, in the order of the wire. Text form `02:0a:…`, six pairs of hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an Ethernet address; write it like 02:00:5e:10:00:01")]
pub struct InvalidMac(pub String);

// === impl Mac ===

impl Mac {
    /// A locally administered unicast address made from a seed: the same seed, the same address.
    pub fn from_seed(seed: &str) -> Self {
        let [_, _, a, b, c, d, e, f] = fnv1a(seed.as_bytes()).to_be_bytes();
        Mac([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// True if it may be the address of a device: not multicast, not all zero.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The link-local IPv6 address that RFC 4291 (modified EUI-64) derives from it.
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0.map(u16::from);
        Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
    }

    /// Reads six bytes as the kernel gives them; `None` for addresses of another length.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Mac(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// FNV-1a, 64 bits: a hash whose value never changes between versions, as names on disk and in the kernel need.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn link_local_is_modified_eui64() {
        let mac: Mac = "02:00:5e:10:00:01".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::5eff:fe10:1");
        let mac: Mac = "00:11:22:33:44:55".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::211:22ff:fe33:4455");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "02:00",
            "02:00:5e:10:00:0",
            "02:00:5e:10:00:01:02",
            "0x:00:5e:10:00:01",
            "+2:00:5e:10:00:01",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(InvalidMac(text.into())));
        }
    }

    proptest! {
        #[test]
        fn text_form_round_trips(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            let _ = text.parse::<Mac>();
        }

        #[test]
        fn seeds_make_unicast_local_addresses(seed in ".{0,30}") {
            let mac = Mac::from_seed(&seed);
            prop_assert!(mac.is_unicast());
            prop_assert_eq!(mac.0[0] & 2, 2);
            prop_assert_eq!(mac, Mac::from_seed(&seed));
        }
    }
}
