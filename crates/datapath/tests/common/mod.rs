//! What the tests stand on: pins of their own, and small programs.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use villus_abi::PolicyKey;
use villus_datapath::{Map, Pins, sys};

/// A bpffs of the test's own; the test is `alone!`.
pub fn bpffs() -> (PathBuf, Pins) {
    let root = PathBuf::from("/tmp/bpf");
    let pins = Pins::open(&root).unwrap();
    (root, pins)
}

/// `r0 = value; exit`.
pub fn returns(value: i32) -> [u64; 2] {
    [0xb7 | u64::from(value.cast_unsigned()) << 32, 0x95]
}

/// Looks the slot's map up, then a key in it, counts a packet on the entry and returns 1; 0 if one is missing.
pub fn counting_program(policies: &Map<u32, u32>, slot: u32, key: &PolicyKey) -> OwnedFd {
    let insn = |code: u64, dst: u64, src: u64, offset: i16, value: u32| {
        code | dst << 8 | src << 12 | u64::from(offset.cast_unsigned()) << 16 | u64::from(value) << 32
    };
    let key = u64::from_ne_bytes(villus_abi::bytes_of(key).try_into().unwrap());
    let policies = policies.as_fd().as_raw_fd().cast_unsigned();
    let program = [
        insn(0x62, 10, 0, -4, slot),
        insn(0x18, 1, 1, 0, policies),
        0,
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, (-4_i32).cast_unsigned()),
        insn(0x85, 0, 0, 0, 1),
        insn(0x15, 0, 0, 11, 0),
        insn(0xbf, 1, 0, 0, 0),
        insn(0x62, 10, 0, -16, key as u32),
        insn(0x62, 10, 0, -12, (key >> 32) as u32),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, (-16_i32).cast_unsigned()),
        insn(0x85, 0, 0, 0, 1),
        insn(0x15, 0, 0, 4, 0),
        insn(0xb7, 1, 0, 0, 1),
        insn(0xdb, 0, 1, 8, 0),
        insn(0xb7, 0, 0, 0, 1),
        0x95,
        insn(0xb7, 0, 0, 0, 0),
        0x95,
    ];
    sys::prog_load_tc("villus_count", &program).unwrap()
}

/// Looks the slot's map up, then the keys in it one after the other until one is found; counts a packet on the entry of
/// `missed` if none is.
pub fn either_program(
    policies: &Map<u32, u32>,
    slot: u32,
    keys: [&PolicyKey; 2],
    missed: &PolicyKey,
) -> OwnedFd {
    let insn = |code: u64, dst: u64, src: u64, offset: i16, value: u32| {
        code | dst << 8 | src << 12 | u64::from(offset.cast_unsigned()) << 16 | u64::from(value) << 32
    };
    let policies = policies.as_fd().as_raw_fd().cast_unsigned();
    let look_up = |key: &PolicyKey| {
        let key = u64::from_ne_bytes(villus_abi::bytes_of(key).try_into().unwrap());
        [
            insn(0xbf, 1, 6, 0, 0),
            insn(0x62, 10, 0, -16, key as u32),
            insn(0x62, 10, 0, -12, (key >> 32) as u32),
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, (-16_i32).cast_unsigned()),
            insn(0x85, 0, 0, 0, 1),
        ]
    };
    let mut program = vec![
        insn(0x62, 10, 0, -4, slot),
        insn(0x18, 1, 1, 0, policies),
        0,
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, (-4_i32).cast_unsigned()),
        insn(0x85, 0, 0, 0, 1),
        insn(0x15, 0, 0, 24, 0),
        insn(0xbf, 6, 0, 0, 0),
    ];
    program.extend(look_up(keys[0]));
    program.push(insn(0x55, 0, 0, 16, 0));
    program.extend(look_up(keys[1]));
    program.push(insn(0x55, 0, 0, 9, 0));
    program.extend(look_up(missed));
    program.extend([insn(0x15, 0, 0, 2, 0), insn(0xb7, 1, 0, 0, 1), insn(0xdb, 0, 1, 8, 0)]);
    program.extend([insn(0xb7, 0, 0, 0, 1), 0x95]);
    sys::prog_load_tc("villus_either", &program).unwrap()
}
