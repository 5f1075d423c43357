//! Ports as the keys of a policy map can say them: all, one, or aligned blocks.

use villus_abi::{Direction, PolicyKey, policy::ICMP_TYPE_ZERO_PORT};

use crate::{Cut, Protocol, Transport};

/// Protocol numbers of the field.
pub mod proto {
    /// Any protocol.
    pub const ANY: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Ports `first` to `last` of one protocol number; `0` to `0` is all of them, protocol 0 is any.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortMatch {
    /// Protocol number.
    pub proto: u8,
    /// First port, or ICMP type as it is looked up.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortMatch {
    /// Everything.
    pub const ALL: Self = Self { proto: proto::ANY, first: 0, last: 0 };

    /// The aligned blocks that make up the ports: first port and log2 of the size; at most 30.
    pub fn blocks(self) -> impl Iterator<Item = (u16, u8)> {
        Cut::EVERY.blocks(self.first, self.last)
    }

    /// The keys of the ports for one identity (0: any).
    pub fn keys(self, identity: u32, direction: Direction) -> impl Iterator<Item = PolicyKey> {
        self.blocks().map(move |(port, log2)| PolicyKey::block(identity, port, log2, self.proto, direction))
    }

    /// As [`Self::keys`], in blocks of chosen sizes.
    pub fn keys_in(self, cut: Cut, identity: u32, direction: Direction) -> impl Iterator<Item = PolicyKey> {
        let blocks = cut.blocks(self.first, self.last);
        blocks.map(move |(port, log2)| PolicyKey::block(identity, port, log2, self.proto, direction))
    }

    /// Whether it is more than one port, and not all.
    #[must_use]
    pub const fn is_range(self) -> bool {
        self.first != self.last
    }

    /// How many keys that is for each identity.
    #[must_use]
    pub fn key_count(self) -> usize {
        self.blocks().count()
    }
}

/// The same ports, sorted, ranges that touch or overlap made one. Ports that are written one by one stay so: each is
/// found without a look-up for blocks.
pub(crate) fn merged(mut ports: Vec<PortMatch>) -> Vec<PortMatch> {
    ports.sort_unstable();
    let mut merged: Vec<PortMatch> = Vec::with_capacity(ports.len());
    for next in ports {
        match merged.last_mut() {
            // All ports of a protocol are first among its ranges.
            Some(last) if last.proto == next.proto && last.last == 0 => {}
            // Types of ICMP are looked up one by one.
            Some(last)
                if last.proto == next.proto
                    && !matches!(next.proto, proto::ICMP | proto::ICMPV6)
                    && touches(*last, next) =>
            {
                last.last = last.last.max(next.last);
            }
            Some(last) if *last == next => {}
            _ => merged.push(next),
        }
    }
    merged
}

fn touches(a: PortMatch, b: PortMatch) -> bool {
    b.first <= a.last || ((a.is_range() || b.is_range()) && u32::from(b.first) == u32::from(a.last) + 1)
}

/// The protocols and ports that an item of `toPorts` or `icmps` means (reference `policy` 3.1); none of a named
/// port, whose number depends on the workload.
pub(crate) fn port_matches(transport: &Transport) -> impl Iterator<Item = PortMatch> {
    let (protos, first, last) = match *transport {
        Transport::Icmp { v6, kind } => {
            let (proto, port) = (if v6 { proto::ICMPV6 } else { proto::ICMP }, icmp_port(kind));
            ([Some(proto), None, None], port, port)
        }
        Transport::Ports { protocol: Protocol::Any, first: 0, last } => {
            ([Some(proto::ANY), None, None], 0, last)
        }
        Transport::Ports { protocol, first, last } => {
            // All ports of a protocol are one key, not sixteen blocks.
            let (first, last) = if first <= 1 && last == u16::MAX { (0, 0) } else { (first, last) };
            (protocol_numbers(protocol), first, last)
        }
        Transport::Named { .. } => ([None; 3], 0, 0),
    };
    protos.into_iter().flatten().map(move |proto| PortMatch { proto, first, last })
}

/// The protocols that a port can have.
pub(crate) const fn protocol_numbers(protocol: Protocol) -> [Option<u8>; 3] {
    match protocol {
        Protocol::Any => [Some(proto::TCP), Some(proto::UDP), Some(proto::SCTP)],
        Protocol::Tcp => [Some(proto::TCP), None, None],
        Protocol::Udp => [Some(proto::UDP), None, None],
        Protocol::Sctp => [Some(proto::SCTP), None, None],
        Protocol::Icmp => [Some(proto::ICMP), None, None],
        Protocol::Icmpv6 => [Some(proto::ICMPV6), None, None],
        Protocol::Other(number) => [Some(number), None, None],
    }
}

/// The "port" under which an ICMP type is looked up.
#[must_use]
pub fn icmp_port(kind: u8) -> u16 {
    if kind == 0 { ICMP_TYPE_ZERO_PORT } else { u16::from(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks(first: u16, last: u16) -> Vec<(u16, u8)> {
        PortMatch { proto: 6, first, last }.blocks().collect()
    }

    #[test]
    fn ranges_become_aligned_blocks() {
        assert_eq!(blocks(80, 80), [(80, 0)]);
        assert_eq!(blocks(1024, 65535).len(), 6);
        assert_eq!(blocks(8000, 8999), [(8000, 6), (8064, 7), (8192, 9), (8704, 8), (8960, 5), (8992, 3)]);
        assert_eq!(blocks(65535, 65535), [(65535, 0)]);
        assert_eq!(blocks(0, 0), [(0, 0)]);
    }

    #[test]
    fn any_with_a_port_is_three_protocols_and_without_one_is_all() {
        let of = |protocol, first, last| {
            port_matches(&Transport::Ports { protocol, first, last }).collect::<Vec<_>>()
        };
        assert_eq!(of(Protocol::Any, 0, 0), [PortMatch::ALL]);
        assert_eq!(of(Protocol::Any, 53, 53).iter().map(|m| m.proto).collect::<Vec<_>>(), [6, 17, 132]);
        assert_eq!(of(Protocol::Tcp, 0, 0), [PortMatch { proto: 6, first: 0, last: 0 }]);
        assert_eq!(of(Protocol::Tcp, 1, 65535), [PortMatch { proto: 6, first: 0, last: 0 }]);
        assert_eq!(of(Protocol::Any, 1, 65535).iter().map(|m| m.proto).collect::<Vec<_>>(), [6, 17, 132]);
        assert_eq!(
            port_matches(&Transport::Icmp { v6: false, kind: 0 }).collect::<Vec<_>>(),
            [PortMatch { proto: 1, first: 256, last: 256 }]
        );
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let of = |proto, first, last| PortMatch { proto, first, last };
        assert_eq!(
            merged(vec![
                of(6, 81, 90),
                of(17, 80, 80),
                of(6, 80, 80),
                of(6, 85, 95),
                of(6, 97, 97),
                of(1, 8, 8),
                of(1, 8, 8)
            ]),
            [of(1, 8, 8), of(6, 80, 95), of(6, 97, 97), of(17, 80, 80)]
        );
        assert_eq!(merged(vec![of(6, 81, 81), of(6, 80, 80)]), [of(6, 80, 80), of(6, 81, 81)]);
        assert_eq!(merged(vec![of(6, 80, 80), of(6, 0, 0), PortMatch::ALL]), [PortMatch::ALL, of(6, 0, 0)]);
        assert_eq!(merged(vec![of(6, 1, 65534), of(6, 65535, 65535)]), [of(6, 1, 65535)]);
    }

    proptest! {
        #[test]
        fn blocks_cover_exactly_the_range(a in 1u16.., b in 1u16.., probe in 0u16..) {
            let (first, last) = (a.min(b), a.max(b));
            let blocks = blocks(first, last);
            prop_assert!(blocks.len() <= 30);
            let covering = blocks.iter().filter(|(port, log2)| probe >> log2 == port >> log2).count();
            prop_assert!(blocks.iter().all(|(port, log2)| u32::from(*port) % (1u32 << log2) == 0));
            prop_assert_eq!(covering, usize::from((first..=last).contains(&probe)));
        }
    }
}
