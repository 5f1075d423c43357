//! From bytes to facts: IPv4 with options, IPv6 with extension headers, fragments, and the transport
//! headers flows are made of.
//!
//! Every length is checked against the packet's own; what is cut short is malformed and says so.

use villus_abi::{FragPorts, Reason, policy::ICMP_TYPE_ZERO_PORT, time};

use crate::{
    family::{Family, V4, V6},
    world::{Net, Packet, World},
};

/// Length of an Ethernet header.
pub const ETH_HLEN: u32 = 14;
/// How many IPv6 extension headers are followed.
const MAX_EXTENSIONS: u32 = 6;
/// How long the ports of a fragmented datagram are remembered, seconds (the kernel's reassembly time).
const FRAGMENT_SECS: u32 = 30;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IGMP: u8 = 2;
const SCTP: u8 = 132;

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
    /// UDP or SCTP.
    Datagram,
    /// A question with an id: ICMP echo or timestamp request.
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
    /// A fragment that is not the first.
    pub later: bool,
    /// Offset of the transport header from the Ethernet header.
    pub l4: u32,
    /// Length of the packet without its Ethernet header.
    pub l3_len: u32,
}

/// Parsing, per family.
pub trait Parse: Family {
    /// Fills in the facts of a packet whose EtherType says this family. `l3_only` leaves out the transport.
    /// Returns the reason it is refused for, or [`Reason::FORWARDED`].
    fn parse<W: World, P: Packet>(w: &W, p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason;

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
            facts.kind = Kind::Tcp;
        }
        UDP | SCTP => {
            let least = if facts.proto == UDP { 8 } else { 12 };
            let Some(h) = p.halves::<4>(at) else { return Reason::CT_INVALID };
            if len < least {
                return Reason::CT_INVALID;
            }
            facts.sport = h[0];
            facts.dport = h[1];
            facts.asked = h[1];
            facts.kind = Kind::Datagram;
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
fn message<F: Family>(facts: &mut Facts<F>, kind: u8, code: u8, id: u16) {
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

/// The transport of a fragment: the first one remembers its ports, later ones find them.
#[inline(always)]
fn fragment<F: Family, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &P,
    facts: &mut Facts<F>,
    id: u32,
    len: u32,
) -> Reason {
    let key = F::frag_key(&facts.src, &facts.dst, id, facts.proto);
    let now = time::from_ns(w.now_ns());
    w.count(Reason::FRAGMENTED, 0, p.len());
    if !facts.later {
        let reason = transport(p, facts, len);
        if reason.0 != 0 {
            return reason;
        }
        let ports = FragPorts {
            sport: facts.sport,
            dport: facts.dport,
            expires: now.wrapping_add(time::from_secs(FRAGMENT_SECS)),
        };
        if !<W as Net<F>>::remember(w, &key, &ports) {
            w.count(Reason::FRAGMENT_UPDATE, 0, p.len());
        }
        return Reason::FORWARDED;
    }
    let Some(ports) = <W as Net<F>>::ports(w, &key) else { return Reason::FRAGMENT_NOT_FOUND };
    if expired(ports.expires, now) {
        return Reason::FRAGMENT_NOT_FOUND;
    }
    facts.sport = ports.sport;
    facts.dport = ports.dport;
    facts.asked = ports.dport;
    match facts.proto {
        TCP => facts.kind = Kind::Tcp,
        UDP | SCTP => facts.kind = Kind::Datagram,
        proto if proto == F::ICMP => {
            let (question, answer) = if F::V6 { (128, 129) } else { (8, 0) };
            if ports.sport == 0 && ports.dport != 0 {
                message(facts, answer, 0, ports.dport);
            } else {
                message(facts, question, 0, ports.sport);
            }
        }
        _ => {}
    }
    Reason::FORWARDED
}

/// Whether a tick has come. Ticks wrap after nine years, so the difference decides.
#[inline(always)]
pub(crate) fn expired(expires: time::Tick, now: time::Tick) -> bool {
    (expires.wrapping_sub(now) as i32) <= 0
}

impl Parse for V4 {
    #[inline(always)]
    fn parse<W: World, P: Packet>(w: &W, p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason {
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
        if second & 0x3fff == 0 {
            return transport(p, facts, total - header);
        }
        facts.later = second & 0x1fff != 0;
        fragment(w, p, facts, second >> 16, total - header)
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
        quoted_transport(p, quoted)
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn parse<W: World, P: Packet>(w: &W, p: &P, facts: &mut Facts<Self>, l3_only: bool) -> Reason {
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
        let mut id = 0;
        let fragmented = if is_extension(next) {
            match extensions(p, facts, &mut id) {
                Ok(fragmented) => fragmented,
                Err(reason) => return reason,
            }
        } else {
            false
        };
        let end = ETH_HLEN + total;
        if facts.l4 > end {
            return Reason::EXTENSION_HEADER;
        }
        let len = end - facts.l4;
        if fragmented { fragment(w, p, facts, id, len) } else { transport(p, facts, len) }
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
        if is_extension(quoted.proto) {
            let mut id = 0;
            if extensions(p, quoted, &mut id).is_err() || quoted.later {
                return false;
            }
        }
        quoted_transport(p, quoted)
    }
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 59 | 60)
}

/// Follows extension headers from `facts.l4`; says whether the packet is a fragment, and leaves the
/// transport's protocol and offset in the facts and the fragment's identification in `id`.
#[inline(never)]
fn extensions<P: Packet>(p: &P, facts: &mut Facts<V6>, id: &mut u32) -> Result<bool, Reason> {
    let mut fragmented = false;
    let mut at = facts.l4;
    let mut next = facts.proto;
    let mut left = MAX_EXTENSIONS;
    while left > 0 {
        left -= 1;
        if !is_extension(next) {
            facts.proto = next;
            facts.l4 = at;
            return Ok(fragmented);
        }
        let Some(h) = p.load::<8>(at) else { return Err(Reason::EXTENSION_HEADER) };
        match next {
            44 => {
                let offset = be16(h[2], h[3]) & 0xfff8;
                let more = h[3] & 1 != 0;
                *id = word(h[4], h[5], h[6], h[7]);
                at += 8;
                if offset != 0 {
                    facts.later = true;
                    facts.proto = h[0];
                    facts.l4 = at;
                    return Ok(true);
                }
                fragmented |= more;
            }
            // Source routing with segments left would judge one destination and reach another.
            43 if h[3] != 0 => return Err(Reason::EXTENSION_HEADER),
            // Authentication header, in words of four bytes.
            51 => at += (h[1] as u32 + 2) * 4,
            59 => return Err(Reason::CT_UNKNOWN_L4),
            _ => at += (h[1] as u32 + 1) * 8,
        }
        next = h[0];
    }
    Err(Reason::EXTENSION_HEADER)
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
