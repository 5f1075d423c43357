//! Masquerading: which address and port an endpoint's packets have been lent, what is masqueraded, and with what.
//!
//! A mapping is two entries of `villus_nat4_v1` or `villus_nat6_v1`: one under the packet as the endpoint sends it, which says
//! what its source becomes and how long the mapping lives, and one under the answer as it comes back, which says whose it is.

use core::cell::Cell;

use crate::{plain, time::Tick};

/// Direction of a key: a packet on its way out.
pub const NAT_OUT: u8 = 0;
/// Direction of a key: an answer on its way in.
pub const NAT_IN: u8 = 1;

/// Prefix flag: packets from here are masqueraded when they leave the cluster.
pub const MASQUERADE_FROM: u32 = 1;
/// Prefix flag: packets to here keep their source.
pub const MASQUERADE_NOT_TO: u32 = 1 << 1;

/// Least port that is lent, host order. From here on the node's own connections are looked at too.
pub const NAT_LEAST: u16 = 32_768;
/// Ports that are tried for a mapping before its first packet is dropped (167).
pub const NAT_TRIES: u16 = 32;

/// A packet over IPv4 before it is translated. 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct NatKey4 {
    /// Source, network order.
    pub src: u32,
    /// Destination, network order.
    pub dst: u32,
    /// Source port, network order. Of an ICMP echo the asking side has the echo id, the answering one 0.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u8,
    /// [`NAT_OUT`] or [`NAT_IN`].
    pub direction: u8,
    /// Padding, 0.
    pub pad: u16,
}

/// A packet over IPv6 before it is translated. 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct NatKey6 {
    /// Source, network order.
    pub src: [u32; 4],
    /// Destination, network order.
    pub dst: [u32; 4],
    /// Source port, network order; see [`NatKey4::sport`].
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u8,
    /// [`NAT_OUT`] or [`NAT_IN`].
    pub direction: u8,
    /// Padding, 0.
    pub pad: u16,
}

/// What a packet's source (on its way out) or destination (on its way in) becomes. 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Nat {
    /// Address, network order; IPv4 in the first word.
    pub addr: [u32; 4],
    /// Port or echo id, network order.
    pub port: u16,
    /// Padding, 0.
    pub pad: u16,
    /// `FLOW_SEEN_NON_SYN`, `FLOW_FWD_CLOSING`, `FLOW_REV_CLOSING` of [`crate::flow`]; of the way out only.
    pub flags: u32,
    /// When the mapping is no longer valid; of the way out only.
    pub expires: Tick,
    /// When it was made.
    pub created: Tick,
}

/// A device through which packets leave the node, by interface index: `villus_uplinks_v1`. 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Uplink {
    /// Its IPv4 address, network order; 0 if it has none.
    pub ipv4: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Its IPv6 address, network order; zero if it has none.
    pub ipv6: [u32; 4],
}

plain!(NatKey4 = 16, NatKey6 = 40, Nat = 32, Uplink = 24);

/// A [`Nat`] that lives in a map: the same bytes, shared, each field read and written on its own.
#[derive(Clone, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are Nat's")]
pub struct NatCell {
    pub addr: Cell<[u32; 4]>,
    pub port: Cell<u16>,
    pub pad: Cell<u16>,
    pub flags: Cell<u32>,
    pub expires: Cell<Tick>,
    pub created: Cell<Tick>,
}

const _: () = assert!(size_of::<NatCell>() == size_of::<Nat>());
const _: () = assert!(core::mem::offset_of!(NatCell, created) == core::mem::offset_of!(Nat, created));

impl NatCell {
    /// The entry as it is now, field by field.
    #[must_use]
    pub fn get(&self) -> Nat {
        Nat {
            addr: self.addr.get(),
            port: self.port.get(),
            pad: self.pad.get(),
            flags: self.flags.get(),
            expires: self.expires.get(),
            created: self.created.get(),
        }
    }
}

impl From<Nat> for NatCell {
    fn from(nat: Nat) -> Self {
        let Nat { addr, port, pad, flags, expires, created } = nat;
        Self {
            addr: Cell::new(addr),
            port: Cell::new(port),
            pad: Cell::new(pad),
            flags: Cell::new(flags),
            expires: Cell::new(expires),
            created: Cell::new(created),
        }
    }
}
