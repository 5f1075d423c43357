//! Instructions of the kernel, for programs so small that they are written down where they are used.

/// `r = value`.
pub(super) const MOV: u8 = 0xb7;
/// `r = r'`.
pub(super) const MOV_REGISTER: u8 = 0xbf;
/// `r += value`.
pub(super) const ADD: u8 = 0x07;
/// Calls a helper.
pub(super) const CALL: u8 = 0x85;
/// `r = *(u64 *)(r' + offset)`.
pub(super) const LOAD: u8 = 0x79;
/// `r = *(u32 *)(r' + offset)`.
pub(super) const LOAD_HALF: u8 = 0x61;
/// `*(u64 *)(r + offset) = r'`.
pub(super) const STORE: u8 = 0x7b;
/// `*(u64 *)(r + offset) = value`.
pub(super) const STORE_VALUE: u8 = 0x7a;
/// `*(u64 *)(r + offset) += r'`, in one step.
pub(super) const ATOMIC_ADD: u8 = 0xdb;
/// Goes on `offset` instructions after the next one.
pub(super) const JUMP: u8 = 0x05;
/// The same if `r == value`.
pub(super) const JUMP_EQUAL: u8 = 0x15;
/// The same if `r != value`.
pub(super) const JUMP_UNEQUAL: u8 = 0x55;
/// The same if `r >= value`.
pub(super) const JUMP_FROM: u8 = 0x35;
/// The same if `r >= r'`.
pub(super) const JUMP_FROM_REGISTER: u8 = 0x3d;
/// Returns `r0`.
pub(super) const EXIT: u8 = 0x95;
/// `bpf_map_lookup_elem(map, key)`.
pub(super) const LOOKUP: i32 = 1;
/// `bpf_map_update_elem(map, key, value, flags)`.
pub(super) const UPDATE: i32 = 2;
/// `bpf_skb_load_bytes(ctx, offset, to, length)`.
pub(super) const LOAD_BYTES: i32 = 26;

/// One instruction.
pub(super) const fn instruction(code: u8, dst: u8, src: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (value.cast_unsigned() as u64) << 32
}

/// The first half of an instruction that puts a map, given by its descriptor, into a register; the other half is 0.
pub(super) const fn load_map(dst: u8, map: i32) -> u64 {
    instruction(0x18, dst, 1, 0, map)
}
