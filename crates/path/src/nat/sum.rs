//! One's complement sums, as checksums of the internet are made of. Values are as they lie in memory, so no byte is turned.

use crate::family::Family;

/// Adds two partial sums.
#[inline(always)]
pub(crate) const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// What replacing a half word changes.
#[inline(always)]
pub(crate) const fn half(old: u16, new: u16) -> u32 {
    add(!(old as u32), new as u32)
}

/// What replacing an address changes.
#[inline(always)]
pub(crate) fn addr<F: Family>(old: &F::Addr, new: &F::Addr) -> u32 {
    let (old, new) = (F::words(old), F::words(new));
    let mut sum = 0;
    let mut i = 0;
    while i < if F::V6 { 4 } else { 1 } {
        sum = add(sum, add(!old[i], new[i]));
        i += 1;
    }
    sum
}

/// Sixteen bits of a partial sum.
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after what it covers has changed.
#[inline(always)]
pub(crate) const fn replaced(sum: u16, difference: u32) -> u16 {
    !fold(add(difference, !(sum as u32)))
}
