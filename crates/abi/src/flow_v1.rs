//! Flows as they were kept before their directions had lines of their own: the maps `villus_ct?_*_v1`.

use crate::{Flow, plain, time::Tick};

/// One flow. 96 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "each is that of the same name in `Flow`")]
#[repr(C)]
pub struct FlowV1 {
    pub fwd_packets: u64,
    pub fwd_bytes: u64,
    pub rev_packets: u64,
    pub rev_bytes: u64,
    pub expires: Tick,
    pub created: Tick,
    pub fwd_report: Tick,
    pub rev_report: Tick,
    pub src_identity: u32,
    pub dst_identity: u32,
    pub flags: u32,
    pub fwd_tcp_flags: u8,
    pub rev_tcp_flags: u8,
    pub rev_nat: u16,
    /// Never used, 0.
    pub nat: [u16; 9],
    pub src_endpoint: u16,
    pub dst_endpoint: u16,
    /// Padding, 0.
    pub pad: u16,
    pub tunnel: u32,
    /// Padding, 0.
    pub reserved: u32,
}

plain!(FlowV1 = 96);

impl From<FlowV1> for Flow {
    fn from(old: FlowV1) -> Self {
        Self {
            expires: old.expires,
            created: old.created,
            src_identity: old.src_identity,
            dst_identity: old.dst_identity,
            flags: old.flags,
            src_endpoint: old.src_endpoint,
            dst_endpoint: old.dst_endpoint,
            tunnel: old.tunnel,
            rev_nat: old.rev_nat,
            fwd_packets: old.fwd_packets,
            fwd_bytes: old.fwd_bytes,
            fwd_report: old.fwd_report,
            fwd_tcp_flags: old.fwd_tcp_flags,
            rev_packets: old.rev_packets,
            rev_bytes: old.rev_bytes,
            rev_report: old.rev_report,
            rev_tcp_flags: old.rev_tcp_flags,
            ..Self::default()
        }
    }
}
