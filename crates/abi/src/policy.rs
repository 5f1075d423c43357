//! The policy map of an endpoint: `cilium_policy_%05d`, in the layout that Cilium 1.10 pins.
//!
//! Source of the layout: `bpf-maps` reference 2.2, Cilium 1.10. Operators dump and write this map with
//! `bpftool`, so its bytes are a promise.

use core::cell::Cell;

use crate::plain;

/// Which side of an endpoint a rule, a key or a counter speaks about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// Towards the endpoint.
    Ingress = 0,
    /// From the endpoint.
    Egress = 1,
}

impl Direction {
    /// Both directions, ingress first, as tables are printed.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `Ingress` or `Egress`, as `bpf policy get` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

/// Bit 0 of [`PolicyKey::direction`]: set for egress.
pub const DIRECTION_EGRESS: u8 = 1;
/// How far the block size of a port range is shifted in [`PolicyKey::direction`] (bits 1 to 4).
///
/// A key whose bits 1..=4 hold `k > 0` covers the `1 << k` ports from `dport`, which is aligned to that
/// size. `k == 0` is an exact key and has exactly the bytes of Cilium 1.10.
pub const DIRECTION_BLOCK_SHIFT: u8 = 1;
/// The bits of [`PolicyKey::direction`] that hold the block size.
pub const DIRECTION_BLOCK_MASK: u8 = 0b0001_1110;

/// The "port" under which ICMP type 0 (echo reply) is looked up.
///
/// Types are looked up as ports; port 0 means "all types", so type 0 needs a number of its own.
pub const ICMP_TYPE_ZERO_PORT: u16 = 256;

/// Key of a policy map: who, which port, which protocol, which direction. 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct PolicyKey {
    /// Numeric identity of the other side; 0 is any.
    pub identity: u32,
    /// Destination port (or ICMP type), network order; 0 is any.
    pub dport: u16,
    /// IP protocol number; 0 is any.
    pub proto: u8,
    /// Bit 0: egress. Bits 1..=4: log2 of the port block, 0 for an exact port. Others are 0.
    pub direction: u8,
}

impl PolicyKey {
    /// A key for one port (host order), protocol and direction; zeros are wildcards.
    #[must_use]
    pub const fn new(identity: u32, port: u16, proto: u8, direction: Direction) -> Self {
        Self { identity, dport: port.to_be(), proto, direction: direction as u8 }
    }

    /// A key for the `1 << log2` ports from `port` (host order, aligned to the block).
    #[must_use]
    pub const fn block(identity: u32, port: u16, log2: u8, proto: u8, direction: Direction) -> Self {
        let mut key = Self::new(identity, port, proto, direction);
        key.direction |= (log2 << DIRECTION_BLOCK_SHIFT) & DIRECTION_BLOCK_MASK;
        key
    }

    /// The direction this key speaks about.
    #[must_use]
    pub const fn dir(&self) -> Direction {
        if self.direction & DIRECTION_EGRESS == 0 { Direction::Ingress } else { Direction::Egress }
    }

    /// Port in host order; the first one of a block.
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be(self.dport)
    }

    /// log2 of the number of ports this key covers; 0 for an exact key.
    #[must_use]
    pub const fn block_log2(&self) -> u8 {
        (self.direction & DIRECTION_BLOCK_MASK) >> DIRECTION_BLOCK_SHIFT
    }

    /// Which bit of [`crate::Endpoint::mask`] must be set for the path to look for keys of this shape.
    ///
    /// 0 for the four classic shapes, which are always looked up.
    #[must_use]
    pub const fn mask_bit(&self) -> u32 {
        let log2 = self.block_log2();
        if log2 != 0 {
            1 << log2
        } else if self.dport == 0 && self.proto != 0 {
            crate::endpoint::MASK_PROTO
        } else {
            0
        }
    }
}

/// Set in [`PolicyEntry::flags`] when the entry denies.
pub const ENTRY_DENY: u8 = 1;
/// Set in [`PolicyEntry::flags`] beside [`ENTRY_DENY`] when only audited policies deny: the packet passes and is
/// reported as audit, unless another entry denies it.
pub const ENTRY_AUDIT: u8 = 1 << 1;

/// Value of a policy map. 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PolicyEntry {
    /// Proxy port, network order; always 0 here, kept for the layout.
    pub proxy_port: u16,
    /// `ENTRY_*`.
    pub flags: u8,
    /// Padding of the layout, 0.
    pub pad0: u8,
    /// Padding of the layout, 0.
    pub pad1: u16,
    /// Padding of the layout, 0.
    pub pad2: u16,
    /// Packets that this entry decided.
    pub packets: u64,
    /// Bytes of those packets, with their Ethernet header.
    pub bytes: u64,
}

impl PolicyEntry {
    /// An entry that allows, counters at zero.
    pub const ALLOW: Self = Self { proxy_port: 0, flags: 0, pad0: 0, pad1: 0, pad2: 0, packets: 0, bytes: 0 };
    /// An entry that denies, counters at zero.
    pub const DENY: Self = Self { flags: ENTRY_DENY, ..Self::ALLOW };
    /// An entry whose denials pass as audit, counters at zero.
    pub const AUDIT: Self = Self { flags: ENTRY_DENY | ENTRY_AUDIT, ..Self::ALLOW };

    /// Whether the entry denies, be it as audit.
    #[must_use]
    pub const fn is_deny(&self) -> bool {
        self.flags & ENTRY_DENY != 0
    }

    /// Whether what the entry denies passes as audit.
    #[must_use]
    pub const fn is_audit(&self) -> bool {
        self.is_deny() && self.flags & ENTRY_AUDIT != 0
    }
}

/// A [`PolicyEntry`] that lives in a map: the same bytes, its counters shared.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct PolicyCell {
    /// Proxy port, network order.
    pub proxy_port: u16,
    /// `ENTRY_*`.
    pub flags: u8,
    /// Padding of the layout.
    pub pad0: u8,
    /// Padding of the layout.
    pub pad1: u16,
    /// Padding of the layout.
    pub pad2: u16,
    /// Packets that this entry decided.
    pub packets: Cell<u64>,
    /// Bytes of those packets.
    pub bytes: Cell<u64>,
}

const _: () = assert!(size_of::<PolicyCell>() == size_of::<PolicyEntry>());

plain!(PolicyKey = 8, PolicyEntry = 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes_of;

    #[test]
    fn the_key_of_the_talk_has_its_bytes() {
        let key = PolicyKey::new(298_951, 80, 6, Direction::Ingress);
        assert_eq!(bytes_of(&key), [0xc7, 0x8f, 0x04, 0x00, 0x00, 0x50, 0x06, 0x00]);
    }

    #[test]
    fn a_block_is_marked_in_spare_bits_only() {
        let key = PolicyKey::block(7, 8000, 6, 6, Direction::Egress);
        assert_eq!((key.block_log2(), key.dir(), key.port()), (6, Direction::Egress, 8000));
        assert_eq!(
            PolicyKey::block(7, 8000, 0, 6, Direction::Egress),
            PolicyKey::new(7, 8000, 6, Direction::Egress)
        );
    }
}
