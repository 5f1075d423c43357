//! The two address families, and the shapes of addresses and keys that follow from them.

use villus_abi::{FlowKey4, FlowKey6, FragKey4, FragKey6, NatKey4, NatKey6, Uplink, config};

/// IPv4 or IPv6, as types.
pub trait Family: 'static + Copy + Default {
    /// An address in network order.
    type Addr: Copy + PartialEq + Default;
    /// Key of the flow tables.
    type FlowKey: Copy + Default;
    /// Key of the fragment table.
    type FragKey: Copy;
    /// Key of the table of masqueraded packets.
    type NatKey: Copy + Default;
    /// Whether this is IPv6.
    const V6: bool;
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Flag of [`villus_abi::Config`] that turns the family on.
    const ENABLED: u32;
    /// Flag of [`villus_abi::Config`] that allows the way past the stack.
    const DIRECT: u32;
    /// Flag of [`villus_abi::Config`] that asks for masquerading.
    const MASQUERADE: u32;
    /// Offset of the source address in the IP header; the destination follows it.
    const SRC_OFFSET: u32;
    /// Bytes of an address.
    const ADDR_LEN: u32;
    /// Offset of the TTL or hop limit in the IP header.
    const TTL_OFFSET: u32;

    /// Four words, IPv4 in the first.
    fn words(addr: &Self::Addr) -> [u32; 4];
    /// Four words, IPv4 as `::ffff:a.b.c.d`.
    fn mapped(addr: &Self::Addr) -> [u32; 4];
    /// A fixed order of addresses.
    fn less(a: &Self::Addr, b: &Self::Addr) -> bool;
    /// A flow's key from its two ends, smaller first.
    fn flow_key(lo: &Self::Addr, hi: &Self::Addr, lo_port: u16, hi_port: u16, proto: u8) -> Self::FlowKey;
    /// A fragmented datagram's key.
    fn frag_key(src: &Self::Addr, dst: &Self::Addr, id: u32, proto: u8) -> Self::FragKey;
    /// The address that four words hold, IPv4 in the first.
    fn of_words(words: &[u32; 4]) -> Self::Addr;
    /// A key of the table of masqueraded packets: who sends (address and port) and to whom.
    fn nat_key(from: (&Self::Addr, u16), to: (&Self::Addr, u16), proto: u8, direction: u8) -> Self::NatKey;
    /// The address of an uplink; unspecified if it has none.
    fn of_uplink(uplink: &Uplink) -> Self::Addr;
    /// Whether the address is multicast or broadcast to all.
    fn is_multicast(addr: &Self::Addr) -> bool;
    /// Whether the address is unspecified.
    fn is_unspecified(addr: &Self::Addr) -> bool;
    /// Whether the address is link-local unicast.
    fn is_link_local(addr: &Self::Addr) -> bool;
    /// The endpoint's first address of this family; unspecified if it has none.
    fn first_of(endpoint: &villus_abi::Endpoint) -> Self::Addr;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default)]
pub struct V6;

impl Family for V4 {
    type Addr = u32;
    type FlowKey = FlowKey4;
    type FragKey = FragKey4;
    type NatKey = NatKey4;
    const V6: bool = false;
    const ICMP: u8 = 1;
    const ENABLED: u32 = config::FLAG_IPV4;
    const DIRECT: u32 = config::FLAG_DIRECT_V4;
    const MASQUERADE: u32 = config::FLAG_MASQUERADE_V4;
    const SRC_OFFSET: u32 = 12;
    const ADDR_LEN: u32 = 4;
    const TTL_OFFSET: u32 = 8;

    #[inline(always)]
    fn words(addr: &u32) -> [u32; 4] {
        [*addr, 0, 0, 0]
    }

    #[inline(always)]
    fn mapped(addr: &u32) -> [u32; 4] {
        villus_abi::node::mapped(*addr)
    }

    #[inline(always)]
    fn less(a: &u32, b: &u32) -> bool {
        *a < *b
    }

    #[inline(always)]
    fn flow_key(lo: &u32, hi: &u32, lo_port: u16, hi_port: u16, proto: u8) -> FlowKey4 {
        FlowKey4 { lo: *lo, hi: *hi, lo_port, hi_port, proto, scope: 0, pad: 0 }
    }

    #[inline(always)]
    fn frag_key(src: &u32, dst: &u32, id: u32, proto: u8) -> FragKey4 {
        FragKey4 { src: *src, dst: *dst, id: id as u16, proto, pad: 0 }
    }

    #[inline(always)]
    fn of_words(words: &[u32; 4]) -> u32 {
        words[0]
    }

    #[inline(always)]
    fn nat_key(from: (&u32, u16), to: (&u32, u16), proto: u8, direction: u8) -> NatKey4 {
        NatKey4 { src: *from.0, dst: *to.0, sport: from.1, dport: to.1, proto, direction, pad: 0 }
    }

    #[inline(always)]
    fn of_uplink(uplink: &Uplink) -> u32 {
        uplink.ipv4
    }

    #[inline(always)]
    fn is_multicast(addr: &u32) -> bool {
        let first = u32::from_be(*addr) >> 28;
        first == 0xe || *addr == u32::MAX
    }

    #[inline(always)]
    fn is_unspecified(addr: &u32) -> bool {
        *addr == 0
    }

    #[inline(always)]
    fn is_link_local(addr: &u32) -> bool {
        u32::from_be(*addr) >> 16 == 0xa9fe
    }

    #[inline(always)]
    fn first_of(endpoint: &villus_abi::Endpoint) -> u32 {
        endpoint.ipv4
    }
}

impl Family for V6 {
    type Addr = [u32; 4];
    type FlowKey = FlowKey6;
    type FragKey = FragKey6;
    type NatKey = NatKey6;
    const V6: bool = true;
    const ICMP: u8 = 58;
    const ENABLED: u32 = config::FLAG_IPV6;
    const DIRECT: u32 = config::FLAG_DIRECT_V6;
    const MASQUERADE: u32 = config::FLAG_MASQUERADE_V6;
    const SRC_OFFSET: u32 = 8;
    const ADDR_LEN: u32 = 16;
    const TTL_OFFSET: u32 = 7;

    #[inline(always)]
    fn words(addr: &[u32; 4]) -> [u32; 4] {
        *addr
    }

    #[inline(always)]
    fn mapped(addr: &[u32; 4]) -> [u32; 4] {
        *addr
    }

    #[inline(always)]
    fn less(a: &[u32; 4], b: &[u32; 4]) -> bool {
        // From the last word: neighbours of one prefix differ there.
        if a[3] != b[3] {
            a[3] < b[3]
        } else if a[2] != b[2] {
            a[2] < b[2]
        } else if a[1] != b[1] {
            a[1] < b[1]
        } else {
            a[0] < b[0]
        }
    }

    #[inline(always)]
    fn flow_key(lo: &[u32; 4], hi: &[u32; 4], lo_port: u16, hi_port: u16, proto: u8) -> FlowKey6 {
        FlowKey6 { lo: *lo, hi: *hi, lo_port, hi_port, proto, scope: 0, pad: 0 }
    }

    #[inline(always)]
    fn frag_key(src: &[u32; 4], dst: &[u32; 4], id: u32, proto: u8) -> FragKey6 {
        FragKey6 { src: *src, dst: *dst, id, proto, pad: [0; 3] }
    }

    #[inline(always)]
    fn of_words(words: &[u32; 4]) -> [u32; 4] {
        *words
    }

    #[inline(always)]
    fn nat_key(from: (&[u32; 4], u16), to: (&[u32; 4], u16), proto: u8, direction: u8) -> NatKey6 {
        NatKey6 { src: *from.0, dst: *to.0, sport: from.1, dport: to.1, proto, direction, pad: 0 }
    }

    #[inline(always)]
    fn of_uplink(uplink: &Uplink) -> [u32; 4] {
        uplink.ipv6
    }

    #[inline(always)]
    fn is_multicast(addr: &[u32; 4]) -> bool {
        u32::from_be(addr[0]) >> 24 == 0xff
    }

    #[inline(always)]
    fn is_unspecified(addr: &[u32; 4]) -> bool {
        addr[0] | addr[1] | addr[2] | addr[3] == 0
    }

    #[inline(always)]
    fn is_link_local(addr: &[u32; 4]) -> bool {
        u32::from_be(addr[0]) >> 22 == 0x3fa
    }

    #[inline(always)]
    fn first_of(endpoint: &villus_abi::Endpoint) -> [u32; 4] {
        endpoint.ipv6
    }
}
