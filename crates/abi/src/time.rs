//! Time in the packet path: ticks of 2^26 ns (67 ms) of the monotonic clock since boot.
//!
//! A `u32` of them lasts nine years; a shift makes one from `bpf_ktime_get_ns`.

/// Nanoseconds to ticks: `ns >> SHIFT`.
pub const SHIFT: u32 = 26;

/// A point in time or a span, in ticks of 2^26 ns.
pub type Tick = u32;

/// The tick of a monotonic time in nanoseconds.
#[must_use]
pub const fn from_ns(ns: u64) -> Tick {
    (ns >> SHIFT) as Tick
}

/// A span of whole seconds in ticks, rounded up, saturating.
#[must_use]
pub const fn from_secs(secs: u32) -> Tick {
    let ticks = ((secs as u64 * 1_000_000_000) + ((1 << SHIFT) - 1)) >> SHIFT;
    if ticks > u32::MAX as u64 { u32::MAX } else { ticks as Tick }
}

/// Nanoseconds of a tick.
#[must_use]
pub const fn to_ns(tick: Tick) -> u64 {
    (tick as u64) << SHIFT
}
