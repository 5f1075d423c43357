//! From bytes to facts: IPv4 with options, IPv6 with extension headers, fragments, and the transport
//! headers flows are made of.
//!
//! Every length is checked against the packet's own; what is cut short is malformed and says so.

use villus_abi::{Reason, policy::ICMP_TYPE_ZERO_PORT, time};

use crate::{
    family::{Family, V4, V6},
    world::Packet,
};

/// Length of an Ethernet header.
pub const ETH_HLEN: u32 = 14;
/// How many bytes of options an IPv4 header has room for.
const MAX_OPTIONS: u32 = 40;
/// How many IPv6 extension headers are followed.
const MAX_EXTENSIONS: u32 = 6;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IGMP: u8 = 2;
pub(crate) const SCTP: u8 = 132;

/// TCP flags as they lie in the header.
pub(crate) mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What a packet is to the flow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// No transport the path makes flows for.
    #[default]
    Unknown,
    /// TCP.
    Tcp,
    /// UDP, or SCTP within an association.
    Datagram,
    /// What asks for a flow of its own whoever opened the one that is there: an ICMP echo or timestamp request, an SCTP INIT.
    Question,
    /// The answer to one.
    Answer,
    /// An ICMP error, about another packet.
    Error,
    /// Any other ICMP message.
    Message,
}

/// Everything the path knows about a packet after parsing. Addresses and ports are in network order.
#[derive(Clone, Copy, Default)]
pub struct Facts<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port of the flow; an echo's id on the asking side.
    pub sport: u16,
    /// Destination port of the flow.
    pub dport: u16,
    /// What policy is asked for: the destination port or the ICMP type.
    pub asked: u16,
    /// The IPv4 header's checksum, host order.
    pub check: u16,
    /// Transport protocol.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// What it is to the flow table.
    pub kind: Kind,
    /// A fragment; of one that is not the first, ports and kind are found after its source was checked.
    pub fragment: bool,
    /// A fragment that is not the first.
    pub later: bool,
    /// Identification of the datagram that a fragment belongs to, network order.
    pub id: u32,
    /// Length of the transport header.
    pub l4_len: u8,
    /// Offset of the transport header from the Ethernet header.
    pub l4: u32,
    /// Length of the packet without its Ethernet header.
    pub l3_len: u32,
}

/// Parsing, per family.
pub trait Parse: Family {
    /// Fills in the facts of a packet whose EtherType says this family. `l3_only` leaves out the transport.
    /// Returns the reason it is refused for, or [`Reason::FORWARDED`].
    fn parse<P: Packet>(p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason;

    /// Fills in the facts of the packet that an ICMP error quotes: addresses, protocol and flow ports.
    /// False when they are not all there.
    fn quoted<P: Packet>(p: &P, facts: &Facts<Self>, quoted: &mut Facts<Self>) -> bool;
}

#[inline(always)]
fn be16(hi: u8, lo: u8) -> u32 {
    (hi as u32) << 8 | lo as u32
}

#[inline(always)]
fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

/// The transport header at `facts.l4`, of which `len` bytes belong to the packet.
#[inline(always)]
fn transport<F: Family, P: Packet>(p: &P, facts: &mut Facts<F>, len: u32) -> Reason {
    let at = facts.l4;
    match facts.proto {
        TCP => {
            let Some(h) = p.halves::<8>(at) else { return Reason::CT_INVALID };
            let state = u16::from_be(h[6]);
            let header = (state >> 12) as u32 * 4;
            if header < 20 || header > len {
                return Reason::CT_INVALID;
            }
            facts.sport = h[0];
            facts.dport = h[1];
            facts.asked = h[1];
            facts.tcp_flags = state as u8;
            facts.l4_len = header as u8;
            facts.kind = Kind::Tcp;
        }
        UDP | SCTP => {
            let least: u8 = if facts.proto == UDP { 8 } else { 12 };
            let Some(h) = p.halves::<4>(at) else { return Reason::CT_INVALID };
            if len < least as u32 {
                return Reason::CT_INVALID;
            }
            facts.l4_len = least;
            facts.sport = h[0];
            facts.dport = h[1];
            facts.asked = h[1];
            // An INIT alone has no verification tag (RFC 9260, 8.5.1).
            let opens = facts.proto == SCTP && h[2] | h[3] == 0;
            facts.kind = if opens { Kind::Question } else { Kind::Datagram };
        }
        proto if proto == F::ICMP => {
            let Some(h) = p.halves::<4>(at) else { return Reason::CT_INVALID };
            if len < 8 {
                return Reason::CT_INVALID;
            }
            let kind = u16::from_be(h[0]);
            message(facts, (kind >> 8) as u8, kind as u8, h[2]);
        }
        _ => {}
    }
    Reason::FORWARDED
}

/// What an ICMP type means to flows and policy.
#[inline(always)]
pub(crate) fn message<F: Family>(facts: &mut Facts<F>, kind: u8, code: u8, id: u16) {
    facts.icmp_type = kind;
    facts.icmp_code = code;
    facts.asked = if kind == 0 { ICMP_TYPE_ZERO_PORT.to_be() } else { (kind as u16).to_be() };
    facts.kind = if F::V6 {
        match kind {
            128 => Kind::Question,
            129 => Kind::Answer,
            1..=4 => Kind::Error,
            _ => Kind::Message,
        }
    } else {
        match kind {
            8 | 13 => Kind::Question,
            0 | 14 => Kind::Answer,
            3 | 11 | 12 => Kind::Error,
            _ => Kind::Message,
        }
    };
    match facts.kind {
        Kind::Question => facts.sport = id,
        Kind::Answer => facts.dport = id,
        _ => {}
    }
}

/// Whether a tick has come. Ticks wrap after nine years, so the difference decides.
#[inline(always)]
pub(crate) fn expired(expires: time::Tick, now: time::Tick) -> bool {
    (expires.wrapping_sub(now) as i32) <= 0
}

impl Parse for V4 {
    #[inline(always)]
    fn parse<P: Packet>(p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason {
        *facts = Facts::default();
        let Some(h) = p.words::<5>(ETH_HLEN) else { return Reason::INVALID };
        let available = p.len().wrapping_sub(ETH_HLEN);
        let first = u32::from_be(h[0]);
        let header = (first >> 24 & 0xf) * 4;
        let mut total = first & 0xffff;
        if total == 0 && p.gso_size() != 0 {
            total = available;
        }
        if first >> 28 != 4 || header < 20 || total < header || total > available {
            return Reason::INVALID;
        }
        let third = u32::from_be(h[2]);
        facts.src = h[3];
        facts.dst = h[4];
        facts.proto = (third >> 16) as u8;
        facts.ttl = (third >> 24) as u8;
        facts.check = third as u16;
        facts.l3_len = total;
        facts.l4 = ETH_HLEN + header;
        if l3_only {
            return Reason::FORWARDED;
        }
        let second = u32::from_be(h[1]);
        if second & 0x3fff != 0 {
            facts.fragment = true;
            facts.id = ((second >> 16) as u16).to_be() as u32;
            facts.later = second & 0x1fff != 0;
        }
        if header > 20 {
            let reason = options(p, facts);
            if reason.0 != 0 {
                return reason;
            }
        }
        if facts.later {
            return Reason::FORWARDED;
        }
        transport(p, facts, total - header)
    }

    #[inline(never)]
    fn quoted<P: Packet>(p: &P, facts: &Facts<Self>, quoted: &mut Facts<Self>) -> bool {
        let at = facts.l4 + 8;
        let Some(h) = p.words::<5>(at) else { return false };
        let first = u32::from_be(h[0]);
        let header = (first >> 24 & 0xf) * 4;
        // Of a later fragment the ports are not there.
        if first >> 28 != 4 || header < 20 || u32::from_be(h[1]) & 0x1fff != 0 {
            return false;
        }
        *quoted = Facts::default();
        quoted.src = h[3];
        quoted.dst = h[4];
        quoted.proto = (u32::from_be(h[2]) >> 16) as u8;
        quoted.l4 = at + header;
        // What lies behind the packet's end is not part of it.
        quoted.l4 + 8 <= ETH_HLEN + facts.l3_len && quoted_transport(p, quoted)
    }
}

/// Looks through the options of an IPv4 header. A route of the sender's choice would have one destination judged and reach
/// another.
#[inline(never)]
fn options<P: Packet>(p: &P, facts: &mut Facts<V4>) -> Reason {
    let end = facts.l4;
    let mut at = ETH_HLEN + 20;
    let mut left = MAX_OPTIONS;
    let reason = 'ended: {
        while left > 0 && at < end {
            left -= 1;
            let Some([kind]) = p.load::<1>(at) else { break 'ended Reason::INVALID };
            let mut len = 1;
            match kind {
                0 => break 'ended Reason::FORWARDED,
                1 => {}
                131 | 137 => break 'ended Reason::SOURCE_ROUTE,
                _ => match p.load::<1>(at + 1) {
                    Some([long]) if long >= 2 => len = long as u32,
                    _ => break 'ended Reason::INVALID,
                },
            }
            // By way of memory, so that the verifier does not follow each sum of lengths.
            facts.l4 = at + len;
            core::hint::black_box(&mut *facts);
            at = facts.l4;
        }
        if at > end { Reason::INVALID } else { Reason::FORWARDED }
    };
    facts.l4 = end;
    reason
}

impl Parse for V6 {
    #[inline(always)]
    fn parse<P: Packet>(p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason {
        *facts = Facts::default();
        let Some(h) = p.words::<10>(ETH_HLEN) else { return Reason::INVALID };
        let available = p.len().wrapping_sub(ETH_HLEN);
        let second = u32::from_be(h[1]);
        let mut total = (second >> 16) + 40;
        if total == 40 && p.gso_size() != 0 {
            total = available;
        }
        if u32::from_be(h[0]) >> 28 != 6 || total > available {
            return Reason::INVALID;
        }
        let next = (second >> 8) as u8;
        facts.src = [h[2], h[3], h[4], h[5]];
        facts.dst = [h[6], h[7], h[8], h[9]];
        facts.ttl = second as u8;
        facts.l3_len = total;
        facts.proto = next;
        facts.l4 = ETH_HLEN + 40;
        if l3_only {
            return Reason::FORWARDED;
        }
        if is_extension(next) {
            let reason = extensions(p, facts);
            if reason.0 != 0 {
                return reason;
            }
        }
        let end = ETH_HLEN + total;
        if facts.l4 > end {
            return Reason::EXTENSION_HEADER;
        }
        if facts.later {
            return Reason::FORWARDED;
        }
        transport(p, facts, end - facts.l4)
    }

    #[inline(never)]
    fn quoted<P: Packet>(p: &P, facts: &Facts<Self>, quoted: &mut Facts<Self>) -> bool {
        let at = facts.l4 + 8;
        let Some(h) = p.words::<10>(at) else { return false };
        if u32::from_be(h[0]) >> 28 != 6 {
            return false;
        }
        *quoted = Facts::default();
        quoted.src = [h[2], h[3], h[4], h[5]];
        quoted.dst = [h[6], h[7], h[8], h[9]];
        quoted.proto = (u32::from_be(h[1]) >> 8) as u8;
        quoted.l4 = at + 40;
        if is_extension(quoted.proto) && (extensions(p, quoted).0 != 0 || quoted.later) {
            return false;
        }
        // What lies behind the packet's end is not part of it.
        quoted.l4 + 8 <= ETH_HLEN + facts.l3_len && quoted_transport(p, quoted)
    }
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 59 | 60)
}

/// Follows extension headers from `facts.l4`; leaves the transport's protocol and offset in the facts, and what
/// a fragment header says.
#[inline(never)]
fn extensions<P: Packet>(p: &P, facts: &mut Facts<V6>) -> Reason {
    let mut at = facts.l4;
    let mut next = facts.proto;
    // One more look, at what follows the last of them.
    let mut left = MAX_EXTENSIONS + 1;
    while left > 0 {
        left -= 1;
        if !is_extension(next) {
            facts.proto = next;
            facts.l4 = at;
            return Reason::FORWARDED;
        }
        let Some(h) = p.load::<8>(at) else { return Reason::EXTENSION_HEADER };
        match next {
            44 => {
                let offset = be16(h[2], h[3]) & 0xfff8;
                let more = h[3] & 1 != 0;
                facts.id = word(h[4], h[5], h[6], h[7]);
                at += 8;
                if offset != 0 {
                    facts.fragment = true;
                    facts.later = true;
                    facts.proto = h[0];
                    facts.l4 = at;
                    return Reason::FORWARDED;
                }
                facts.fragment |= more;
            }
            // Source routing with segments left would judge one destination and reach another.
            43 if h[3] != 0 => return Reason::EXTENSION_HEADER,
            // Authentication header, in words of four bytes.
            51 => at += (h[1] as u32 + 2) * 4,
            59 => return Reason::CT_UNKNOWN_L4,
            _ => at += (h[1] as u32 + 1) * 8,
        }
        next = h[0];
    }
    Reason::EXTENSION_HEADER
}

/// Ports of a quoted packet: its first eight transport bytes.
#[inline(always)]
fn quoted_transport<F: Family, P: Packet>(p: &P, facts: &mut Facts<F>) -> bool {
    let Some(h) = p.halves::<4>(facts.l4) else { return false };
    match facts.proto {
        TCP | UDP | SCTP => {
            facts.sport = h[0];
            facts.dport = h[1];
            facts.kind = if facts.proto == TCP { Kind::Tcp } else { Kind::Datagram };
        }
        proto if proto == F::ICMP => {
            let kind = u16::from_be(h[0]);
            message(facts, (kind >> 8) as u8, kind as u8, h[2]);
        }
        _ => {}
    }
    matches!(facts.kind, Kind::Tcp | Kind::Datagram | Kind::Question | Kind::Answer)
}
