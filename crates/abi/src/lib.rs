//! Byte layouts shared by the kernel part and user space: map keys and values, event records, drop
//! reasons, pin names.
//!
//! Every type is `repr(C)` without implicit padding, its size is asserted, and integers are host-endian
//! unless a field says "network order". The crate refuses to know how anything is decided (that is
//! `villus-path`) or how a map is opened (that is `villus-datapath`).
#![no_std]

pub mod config;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod flow_v1;
pub mod ipcache;
pub mod metrics;
pub mod names;
pub mod nat;
pub mod node;
pub mod policy;
pub mod reason;
pub mod time;

pub use config::Config;
pub use endpoint::{Endpoint, Local};
pub use event::Event;
pub use flow::{Flow, FlowCell, FlowKey4, FlowKey6, FlowRow, FragKey4, FragKey6, FragPorts};
pub use ipcache::{IpcacheKey, IpcacheValue};
pub use metrics::Metric;
pub use nat::{Nat, NatCell, NatKey4, NatKey6, Uplink};
pub use node::Node;
pub use policy::{Direction, PolicyCell, PolicyEntry, PolicyKey};
pub use reason::Reason;

/// Marks a type whose every bit pattern is a value and which has no padding, so that it may be read from
/// and written to a kernel map as plain bytes.
///
/// # Safety
/// The implementor is `repr(C)`, `Copy`, has no padding bytes, no references and no invalid bit patterns.
pub unsafe trait Bytes: Copy + 'static {}

/// The bytes of a map key or value, as the kernel sees them.
#[must_use]
pub fn bytes_of<T: Bytes>(value: &T) -> &[u8] {
    // SAFETY: `Bytes` promises plain data without padding; the slice borrows `value` for its whole life.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// Reads a key or value back from the bytes of a map, or `None` when the length is not exactly `T`'s.
#[must_use]
pub fn from_bytes<T: Bytes>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was just checked and `Bytes` promises that every bit pattern is a value.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

macro_rules! plain {
    ($($ty:ty = $size:expr),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, plain integers and arrays only; the size assertion shows there is no padding.
        unsafe impl $crate::Bytes for $ty {}
        const _: () = assert!(size_of::<$ty>() == $size);
    )+ };
}
pub(crate) use plain;

// SAFETY: integers of the machine.
unsafe impl Bytes for u32 {}
// SAFETY: integers of the machine.
unsafe impl Bytes for u64 {}
// SAFETY: bytes.
unsafe impl Bytes for [u8; 16] {}
// SAFETY: bytes.
unsafe impl Bytes for [u8; 4] {}
