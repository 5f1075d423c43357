//! Adding to the counters of an entry that packets are being counted on.
//!
//! A write from user space replaces the whole value and would lose what was counted since it was read. So the
//! addition is done where the counting is done: by a small program, run once per entry.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use villus_abi::{PolicyKey, bytes_of};

use super::instructions::{
    ADD, ATOMIC_ADD, CALL, EXIT, JUMP_EQUAL, JUMP_UNEQUAL, LOAD, LOAD_BYTES, LOOKUP, MOV, MOV_REGISTER,
    instruction, load_map,
};
use crate::{
    error::{Context, Result},
    sys::{self, RawMap, SkbContext},
};

/// Adds to counters of one policy map.
#[derive(Debug)]
pub(crate) struct Adder {
    program: OwnedFd,
}

/// Reads key, packets and bytes behind the Ethernet header of its "packet" and adds them to the key's entry.
const fn program(map: i32) -> [u64; 19] {
    [
        // skb_load_bytes(ctx, 14, fp - 24, 24)
        instruction(MOV, 2, 0, 0, 14),
        instruction(MOV_REGISTER, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, -24),
        instruction(MOV, 4, 0, 0, 24),
        instruction(CALL, 0, 0, 0, LOAD_BYTES),
        // if r0 != 0, return it
        instruction(JUMP_UNEQUAL, 0, 0, 12, 0),
        // map_lookup_elem(map, fp - 24)
        load_map(1, map),
        0,
        instruction(MOV_REGISTER, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -24),
        instruction(CALL, 0, 0, 0, LOOKUP),
        // if r0 == 0, return it
        instruction(JUMP_EQUAL, 0, 0, 6, 0),
        instruction(LOAD, 1, 10, -16, 0),
        instruction(ATOMIC_ADD, 0, 1, 8, 0),
        instruction(LOAD, 1, 10, -8, 0),
        instruction(ATOMIC_ADD, 0, 1, 16, 0),
        instruction(MOV, 0, 0, 0, 0),
        instruction(MOV, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

impl Adder {
    pub(crate) fn new(map: &RawMap) -> Result<Self> {
        let instructions = program(map.as_fd().as_raw_fd());
        let program =
            sys::prog_load_tc("villus_carry", &instructions).on("load", "the program that adds counters")?;
        Ok(Self { program })
    }

    /// Adds; nothing happens if the key has no entry.
    pub(crate) fn add(&self, key: &PolicyKey, packets: u64, bytes: u64) -> Result<()> {
        let mut message = vec![0; 64];
        message[14..22].copy_from_slice(bytes_of(key));
        message[22..30].copy_from_slice(&packets.to_ne_bytes());
        message[30..38].copy_from_slice(&bytes.to_ne_bytes());
        sys::test_run(self.program.as_fd(), &message, &SkbContext::default(), 1)
            .on("add counters of", "a policy map")
            .map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_abi::{PolicyEntry, policy::Direction};

    use super::*;
    use crate::{map::Map, maps::policy_spec};

    #[test]
    fn counters_are_added_and_nothing_else_is_made() {
        let map: Map<PolicyKey, PolicyEntry> =
            Map::new(RawMap::create(&policy_spec("p", 8), None).unwrap(), "p").unwrap();
        let key = PolicyKey::new(7, 80, 6, Direction::Ingress);
        map.insert(&key, &PolicyEntry { packets: 10, bytes: 1000, ..PolicyEntry::DENY }).unwrap();
        let adder = Adder::new(map.raw()).unwrap();
        adder.add(&key, 3, 1 << 40).unwrap();
        adder.add(&PolicyKey::default(), 3, 1).unwrap();
        let expected = PolicyEntry { packets: 13, bytes: 1000 + (1 << 40), ..PolicyEntry::DENY };
        assert_eq!(map.entries().unwrap(), [(key, expected)]);
    }
}
