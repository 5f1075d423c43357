//! What the path reports to user space through the ring buffer `villus_events_v1`.

use crate::plain;

/// [`Event::kind`]: the packet was dropped; `reason` says why.
pub const KIND_DROP: u8 = 1;
/// [`Event::kind`]: the packet went on; `point` says where to.
pub const KIND_TRACE: u8 = 4;
/// [`Event::kind`]: policy was asked; `verdict` is its answer.
pub const KIND_VERDICT: u8 = 5;

/// [`Event::point`]: handed to an endpoint.
pub const POINT_TO_ENDPOINT: u8 = 0;
/// [`Event::point`]: handed to the host's stack as its destination.
pub const POINT_TO_HOST: u8 = 2;
/// [`Event::point`]: handed to the host's stack to be forwarded.
pub const POINT_TO_STACK: u8 = 3;
/// [`Event::point`]: handed to the tunnel.
pub const POINT_TO_OVERLAY: u8 = 4;
/// [`Event::point`]: sent by an endpoint (every packet, only without aggregation).
pub const POINT_FROM_ENDPOINT: u8 = 5;
/// [`Event::point`]: received from the network.
pub const POINT_FROM_NETWORK: u8 = 10;
/// [`Event::point`]: sent to a neighbour on the network.
pub const POINT_TO_NETWORK: u8 = 11;

/// [`Event::state`]: first packet of a flow.
pub const STATE_NEW: u8 = 0;
/// [`Event::state`]: packet in the opener's direction.
pub const STATE_ESTABLISHED: u8 = 1;
/// [`Event::state`]: packet of the answering direction.
pub const STATE_REPLY: u8 = 2;
/// [`Event::state`]: ICMP error about a flow.
pub const STATE_RELATED: u8 = 3;
/// [`Event::state`]: not known.
pub const STATE_UNKNOWN: u8 = 5;

/// [`Event::flags`]: the addresses are IPv6.
pub const FLAG_V6: u8 = 1;
/// [`Event::flags`]: a denial that audit mode let pass.
pub const FLAG_AUDITED: u8 = 1 << 1;
/// [`Event::flags`]: the addresses and ports are valid (the packet was parsed that far).
pub const FLAG_ADDRS: u8 = 1 << 2;
/// [`Event::flags`]: the ports are valid.
pub const FLAG_PORTS: u8 = 1 << 3;

/// [`Event::hook`]: from an endpoint.
pub const HOOK_FROM_ENDPOINT: u8 = 1;
/// [`Event::hook`]: to an endpoint.
pub const HOOK_TO_ENDPOINT: u8 = 2;
/// [`Event::hook`]: from the network.
pub const HOOK_FROM_NETWORK: u8 = 3;
/// [`Event::hook`]: to the network.
pub const HOOK_TO_NETWORK: u8 = 4;
/// [`Event::hook`]: from the tunnel.
pub const HOOK_FROM_OVERLAY: u8 = 5;
/// [`Event::hook`]: into the tunnel.
pub const HOOK_TO_OVERLAY: u8 = 6;

/// How a policy entry matched: numbers of Cilium's policy-verdict records (`datapath` reference 4.6).
pub mod matched {
    /// Nothing matched.
    pub const NONE: u8 = 0;
    /// `{identity, 0, 0}`.
    pub const L3: u8 = 1;
    /// `{identity, port, proto}`.
    pub const L3_L4: u8 = 2;
    /// `{0, port, proto}`.
    pub const L4: u8 = 3;
    /// `{0, 0, 0}`.
    pub const ALL: u8 = 4;
    /// `{identity, 0, proto}`.
    pub const L3_PROTO: u8 = 5;
    /// `{0, 0, proto}`.
    pub const PROTO: u8 = 6;
}

/// One event. 88 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// Monotonic time, ns.
    pub time: u64,
    /// `KIND_*`.
    pub kind: u8,
    /// Drop reason, 0 if none.
    pub reason: u8,
    /// `POINT_*` of a trace.
    pub point: u8,
    /// `STATE_*`.
    pub state: u8,
    /// Direction of the judging endpoint: 0 ingress, 1 egress.
    pub direction: u8,
    /// `matched::*`.
    pub matched: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// `HOOK_*`.
    pub hook: u8,
    /// The endpoint that judged (verdict, drop) or the endpoint the packet left or reached.
    pub endpoint: u16,
    /// The other endpoint, if local; 0 if not.
    pub peer: u16,
    /// Interface index: of the hook for drops and verdicts, of the target for traces.
    pub ifindex: u32,
    /// Identity of the packet's source.
    pub src_identity: u32,
    /// Identity of the packet's destination.
    pub dst_identity: u32,
    /// Length of the packet with its Ethernet header.
    pub len: u32,
    /// Flow hash of the kernel.
    pub hash: u32,
    /// Source address, network order; IPv4 in the first word.
    pub src: [u32; 4],
    /// Destination address, network order; IPv4 in the first word.
    pub dst: [u32; 4],
    /// Source port, network order; echo id for ICMP echo.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// EtherType, network order.
    pub ethertype: u16,
    /// Padding, 0.
    pub pad: u16,
    /// Verdict: 0 allowed, negative the drop reason.
    pub verdict: i32,
}

plain!(Event = 88);
