//! Flows: the connection table, and the ports of fragmented datagrams.
//!
//! One entry serves both directions of a flow. Its key is the pair of ends in a fixed order (the smaller
//! address first), so a packet and its reply find the same entry with one look-up; the entry says which end
//! spoke first. Both ends of a flow between two local endpoints are judged once and share the entry.

use core::{cell::Cell, mem::offset_of};

use crate::{plain, time::Tick};

/// Key of an IPv4 flow. 16 bytes; `villus_ct4_tcp_v2`, `villus_ct4_any_v2`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FlowKey4 {
    /// The end with the smaller (address, port), network order.
    pub lo: u32,
    /// The other end, network order.
    pub hi: u32,
    /// Port of `lo`, network order; see [`FlowKey6::lo_port`] for ICMP.
    pub lo_port: u16,
    /// Port of `hi`, network order.
    pub hi_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Reserved for services; 0.
    pub scope: u8,
    /// Padding, 0.
    pub pad: u16,
}

/// Key of an IPv6 flow. 40 bytes; `villus_ct6_tcp_v2`, `villus_ct6_any_v2`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FlowKey6 {
    /// The end with the smaller (address, port), network order.
    pub lo: [u32; 4],
    /// The other end, network order.
    pub hi: [u32; 4],
    /// Port of `lo`, network order. Of an ICMP echo flow the end that asks has the echo id as its port, the
    /// end that answers 0; so a question from the other side is another flow.
    pub lo_port: u16,
    /// Port of `hi`, network order.
    pub hi_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Reserved for services; 0.
    pub scope: u8,
    /// Padding, 0.
    pub pad: u16,
}

/// The end called `hi` opened the flow; otherwise `lo` did.
pub const FLOW_HI_OPENED: u32 = 1;
/// The opener's egress policy admitted it.
pub const FLOW_EGRESS_ADMITTED: u32 = 1 << 1;
/// The other end's ingress policy admitted it.
pub const FLOW_INGRESS_ADMITTED: u32 = 1 << 2;
/// It reached its destination through the host's stack; replies go back the same way.
pub const FLOW_VIA_STACK: u32 = 1 << 3;
/// A TCP segment without SYN was seen.
pub const FLOW_SEEN_NON_SYN: u32 = 1 << 4;
/// The opener's side is closing.
pub const FLOW_FWD_CLOSING: u32 = 1 << 5;
/// The other side is closing.
pub const FLOW_REV_CLOSING: u32 = 1 << 6;
/// Admitted only because of audit mode.
pub const FLOW_AUDITED: u32 = 1 << 7;
/// A forwarded flow to which the host's own NAT has lent one of the node's addresses: not the host's own.
pub const FLOW_TRANSLATED: u32 = 1 << 8;
/// Its first packet does not say which end opened it, and policy would have let either: both ends' policies are asked
/// about every packet, whoever sends it.
pub const FLOW_EITHER: u32 = 1 << 9;

/// One flow. 168 bytes.
///
/// Packets of both directions are often on two CPUs, so what all of them read and few write stands first, and what the packets of
/// each direction write in a cache line of its own. An element of a hash map has 48 bytes before its key (`struct htab_elem`), so
/// the lines end with the 40th byte of an IPv6 flow and the 64th of an IPv4 one; all that is written begins behind both, and an
/// element of either family is four lines ([`FlowRow`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flow {
    /// When the entry is no longer valid.
    pub expires: Tick,
    /// When it was created.
    pub created: Tick,
    /// Identity of the opener.
    pub src_identity: u32,
    /// Identity of the other end.
    pub dst_identity: u32,
    /// `FLOW_*`.
    pub flags: u32,
    /// Endpoint that opened it, if local.
    pub src_endpoint: u16,
    /// Endpoint at the other end, if local.
    pub dst_endpoint: u16,
    /// Node from which a tunnel brought the flow's first packet, IPv4 in network order; 0 if none did.
    pub tunnel: u32,
    /// Reverse-NAT id of a service; 0 until services exist.
    pub rev_nat: u16,
    /// Padding, 0.
    pub pad: u16,
    /// The rest of the lines that are read, 0.
    pub reserved: [u64; 4],

    /// Packets of the opener's direction.
    pub fwd_packets: u64,
    /// Bytes of the opener's direction.
    pub fwd_bytes: u64,
    /// Last packet of the opener's direction that was looked up, whatever became of it. Not a sign of life: it is written so that the
    /// line is there when the counters are.
    pub fwd_seen: Tick,
    /// Last report of the opener's direction.
    pub fwd_report: Tick,
    /// TCP flags seen in the opener's direction.
    pub fwd_tcp_flags: u8,
    /// Padding, 0.
    pub fwd_pad: [u8; 7],
    /// The rest of the line, 0.
    pub fwd_rest: [u64; 4],

    /// Packets of the answering direction.
    pub rev_packets: u64,
    /// Bytes of the answering direction.
    pub rev_bytes: u64,
    /// See `fwd_seen`.
    pub rev_seen: Tick,
    /// Last report of the answering direction.
    pub rev_report: Tick,
    /// TCP flags seen in the answering direction.
    pub rev_tcp_flags: u8,
    /// Padding, 0.
    pub rev_pad: [u8; 7],
    /// Of the rest of the line what IPv6's elements have, 0.
    pub rev_rest: u64,
}

/// A flow with as much room behind it as fills the lines of an element of IPv4, whose key is shorter. 192 bytes; IPv6's maps hold
/// what comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FlowRow {
    /// The flow.
    pub flow: Flow,
    /// Room, 0.
    pub rest: [u64; 3],
}

/// Bytes of an element of a hash map before its key (`struct htab_elem`, 64 bits).
const BEFORE_KEY: usize = 48;
const CACHE_LINE: usize = 64;

/// Whether the parts of a flow lie in lines of their own behind a key, and the whole element in four.
const fn is_in_lines(key: usize, value: usize) -> bool {
    const fn line(key: usize, field: usize) -> usize {
        (BEFORE_KEY + key + field) / CACHE_LINE
    }
    let read = line(key, offset_of!(Flow, pad));
    let (fwd, fwd_end) =
        (line(key, offset_of!(Flow, fwd_packets)), line(key, offset_of!(Flow, fwd_tcp_flags)));
    let (rev, rev_end) =
        (line(key, offset_of!(Flow, rev_packets)), line(key, offset_of!(Flow, rev_tcp_flags)));
    read < fwd && fwd == fwd_end && fwd < rev && rev == rev_end && BEFORE_KEY + key + value == 4 * CACHE_LINE
}
const _: () = assert!(is_in_lines(size_of::<FlowKey4>(), size_of::<FlowRow>()));
const _: () = assert!(is_in_lines(size_of::<FlowKey6>(), size_of::<Flow>()));

/// A fragmented IPv4 datagram. 12 bytes; `villus_frags4_v1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FragKey4 {
    /// Source, network order.
    pub src: u32,
    /// Destination, network order.
    pub dst: u32,
    /// Identification, network order.
    pub id: u16,
    /// IP protocol.
    pub proto: u8,
    /// Padding, 0.
    pub pad: u8,
}

/// A fragmented IPv6 datagram. 40 bytes; `villus_frags6_v1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FragKey6 {
    /// Source, network order.
    pub src: [u32; 4],
    /// Destination, network order.
    pub dst: [u32; 4],
    /// Identification, network order.
    pub id: u32,
    /// Upper-layer protocol.
    pub proto: u8,
    /// Padding, 0.
    pub pad: [u8; 3],
}

/// What the first fragment said. 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FragPorts {
    /// Source port, network order.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// When the memory is no longer valid.
    pub expires: Tick,
}

plain!(FlowKey4 = 16, FlowKey6 = 40, Flow = 168, FlowRow = 192, FragKey4 = 12, FragKey6 = 40, FragPorts = 8);

/// A [`Flow`] that lives in a map: the same bytes, shared, each field read and written on its own.
#[derive(Clone, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are Flow's")]
pub struct FlowCell {
    pub expires: Cell<Tick>,
    pub created: Cell<Tick>,
    pub src_identity: Cell<u32>,
    pub dst_identity: Cell<u32>,
    pub flags: Cell<u32>,
    pub src_endpoint: Cell<u16>,
    pub dst_endpoint: Cell<u16>,
    pub tunnel: Cell<u32>,
    pub rev_nat: Cell<u16>,
    pub pad: Cell<u16>,
    pub reserved: Cell<[u64; 4]>,

    pub fwd_packets: Cell<u64>,
    pub fwd_bytes: Cell<u64>,
    pub fwd_seen: Cell<Tick>,
    pub fwd_report: Cell<Tick>,
    pub fwd_tcp_flags: Cell<u8>,
    pub fwd_pad: Cell<[u8; 7]>,
    pub fwd_rest: Cell<[u64; 4]>,

    pub rev_packets: Cell<u64>,
    pub rev_bytes: Cell<u64>,
    pub rev_seen: Cell<Tick>,
    pub rev_report: Cell<Tick>,
    pub rev_tcp_flags: Cell<u8>,
    pub rev_pad: Cell<[u8; 7]>,
    pub rev_rest: Cell<u64>,
}

const _: () = assert!(size_of::<FlowCell>() == size_of::<Flow>());
const _: () = assert!(offset_of!(FlowCell, fwd_seen) == offset_of!(Flow, fwd_seen));
const _: () = assert!(offset_of!(FlowCell, rev_rest) == offset_of!(Flow, rev_rest));

impl FlowCell {
    /// The flow as it is now, field by field.
    #[must_use]
    pub fn get(&self) -> Flow {
        // SAFETY: `FlowCell` has the layout of `Flow` (`Cell` is transparent, asserted above) and every bit
        // pattern is a value.
        unsafe { core::ptr::from_ref(self).cast::<Flow>().read_volatile() }
    }
}

impl From<Flow> for FlowCell {
    fn from(flow: Flow) -> Self {
        // SAFETY: same size and layout, plain data.
        unsafe { core::mem::transmute::<Flow, Self>(flow) }
    }
}
