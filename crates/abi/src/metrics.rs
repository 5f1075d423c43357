//! Counters per reason and direction: `villus_metrics_v1`, a per-CPU array.

use crate::plain;

/// Counted traffic of one reason and direction. 16 bytes per CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Metric {
    /// Packets.
    pub packets: u64,
    /// Bytes, with their Ethernet header.
    pub bytes: u64,
}

/// Elements of the array: 256 reasons in two directions.
pub const METRICS: u32 = 512;

/// Element of a reason (0 is forwarded) and direction (0 ingress, 1 egress).
#[must_use]
pub const fn index(reason: u8, direction: u8) -> u32 {
    ((reason as u32) << 1) | (direction as u32 & 1)
}

plain!(Metric = 16);
