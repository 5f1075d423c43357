//! Entries of many policy maps, written by one call.
//!
//! A call that writes one entry spends most of its time on the way into the kernel and back, and the kernel's batches
//! are of one map and replace what is there. So the entries are laid into memory shared with the kernel, and a small
//! program writes them one after the other into the maps that packets are judged by.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::Ordering,
};

use villus_abi::{PolicyEntry, PolicyKey, bytes_of};

use super::instructions::{
    ADD, CALL, EXIT, JUMP, JUMP_EQUAL, JUMP_FROM, JUMP_FROM_REGISTER, LOAD, LOAD_HALF, LOOKUP, MOV,
    MOV_REGISTER, STORE, STORE_VALUE, UPDATE, instruction, load_map,
};
use crate::{
    error::{Context, Result},
    sys::{self, Kind, MMAPABLE, MapSpec, RawMap, SharedWords, SkbContext, Update},
};

/// Orders of one run. No packet is looked at on its CPU meanwhile: about a tenth of a millisecond.
const ORDERS: usize = 512;
/// Words of an order: slot and how, key, three of the entry, result.
const WORDS: usize = 6;
/// What stands for a result until there is one: the program leaves 0 or less.
const OPEN: u64 = 1;

/// An entry to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// Whose.
    pub endpoint: u16,
    /// Where.
    pub key: PolicyKey,
    /// What.
    pub entry: PolicyEntry,
    /// Over what.
    pub how: Update,
}

/// What became of an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The entry stands there.
    Written,
    /// Another stands there and was not to be replaced.
    Taken,
    /// Nothing was written; a call of its own will say why.
    Undone,
}

/// Writes entries into the maps that an array of maps holds.
#[derive(Debug)]
pub(super) struct Writer {
    program: OwnedFd,
    /// How many orders there are, then the orders.
    words: SharedWords,
}

/// First looks up the place of every order: each write waits for the memory that it needs, look-ups do not wait for each
/// other, so that of many comes at once. Then takes the number of orders, so that another run does none of them again,
/// and writes one after the other.
const fn program(orders: i32, policies: i32) -> [u64; 51] {
    [
        // orders = map_lookup_elem(orders, 0)
        instruction(STORE_VALUE, 10, 0, -8, 0),
        load_map(1, orders),
        0,
        instruction(MOV_REGISTER, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -8),
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(JUMP_EQUAL, 0, 0, 42, 0),
        // r6: how many there are, r7: the next order, r8: how many are done, r9: how many there are
        instruction(MOV_REGISTER, 6, 0, 0, 0),
        instruction(MOV_REGISTER, 7, 6, 0, 0),
        instruction(ADD, 7, 0, 0, 8),
        instruction(MOV, 8, 0, 0, 0),
        instruction(LOAD, 9, 6, 0, 0),
        // while there are more
        instruction(JUMP_FROM_REGISTER, 8, 9, 13, 0),
        instruction(JUMP_FROM, 8, 0, 12, ORDERS as i32),
        // map = map_lookup_elem(policies, slot)
        load_map(1, policies),
        0,
        instruction(MOV_REGISTER, 2, 7, 0, 0),
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(JUMP_EQUAL, 0, 0, 4, 0),
        // map_lookup_elem(map, key)
        instruction(MOV_REGISTER, 1, 0, 0, 0),
        instruction(MOV_REGISTER, 2, 7, 0, 0),
        instruction(ADD, 2, 0, 0, 8),
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(ADD, 7, 0, 0, 48),
        instruction(ADD, 8, 0, 0, 1),
        instruction(JUMP, 0, 0, -14, 0),
        // from the first on
        instruction(MOV_REGISTER, 7, 6, 0, 0),
        instruction(ADD, 7, 0, 0, 8),
        instruction(MOV, 8, 0, 0, 0),
        instruction(LOAD, 9, 6, 0, 0),
        instruction(STORE_VALUE, 6, 0, 0, 0),
        // while there are more
        instruction(JUMP_FROM_REGISTER, 8, 9, 17, 0),
        instruction(JUMP_FROM, 8, 0, 16, ORDERS as i32),
        // map = map_lookup_elem(policies, slot)
        load_map(1, policies),
        0,
        instruction(MOV_REGISTER, 2, 7, 0, 0),
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(JUMP_EQUAL, 0, 0, 8, 0),
        // result = map_update_elem(map, key, entry, how)
        instruction(MOV_REGISTER, 1, 0, 0, 0),
        instruction(MOV_REGISTER, 2, 7, 0, 0),
        instruction(ADD, 2, 0, 0, 8),
        instruction(MOV_REGISTER, 3, 7, 0, 0),
        instruction(ADD, 3, 0, 0, 16),
        instruction(LOAD_HALF, 4, 7, 4, 0),
        instruction(CALL, 0, 0, 0, UPDATE),
        instruction(STORE, 7, 0, 40, 0),
        instruction(ADD, 7, 0, 0, 48),
        instruction(ADD, 8, 0, 0, 1),
        instruction(JUMP, 0, 0, -18, 0),
        // The verdict is nobody's.
        instruction(MOV, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

// === impl Order ===

impl Order {
    fn words(&self) -> [u64; WORDS - 1] {
        let mut bytes = [0; (WORDS - 1) * 8];
        bytes[..4].copy_from_slice(&u32::from(self.endpoint).to_ne_bytes());
        bytes[4..8].copy_from_slice(&(self.how as u32).to_ne_bytes());
        bytes[8..16].copy_from_slice(bytes_of(&self.key));
        bytes[16..].copy_from_slice(bytes_of(&self.entry));
        let mut words = [0; WORDS - 1];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

// === impl Outcome ===

impl Outcome {
    fn of(result: u64) -> Self {
        const TAKEN: i64 = -(libc::EEXIST as i64);
        match result.cast_signed() {
            0 => Self::Written,
            TAKEN => Self::Taken,
            _ => Self::Undone,
        }
    }
}

// === impl Writer ===

impl Writer {
    /// A writer into the maps in the slots of `policies`.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`], where the kernel does not take the program too: then entries are to be written one by one.
    pub(super) fn new(policies: &RawMap) -> Result<Self> {
        let what = "the program that writes policy entries";
        let value = ((1 + ORDERS * WORDS) * 8) as u32;
        let spec =
            MapSpec { name: "villus_orders", kind: Kind::Array, key: 4, value, entries: 1, flags: MMAPABLE };
        let orders = RawMap::create(&spec, None).on("create the memory of", what)?;
        let instructions = program(orders.as_fd().as_raw_fd(), policies.as_fd().as_raw_fd());
        let program = sys::prog_load_tc("villus_write", &instructions).on("load", what)?;
        Ok(Self { program, words: SharedWords::new(&orders).on("map the memory of", what)? })
    }

    /// Carries out orders in their sequence; says of each what became of it. Where another stands under a key that was to be
    /// new, it stays.
    pub(super) fn write(&self, orders: impl Iterator<Item = Order>) -> Vec<Outcome> {
        let (mut orders, mut outcomes) = (orders.peekable(), Vec::new());
        while orders.peek().is_some() {
            self.run(orders.by_ref().take(ORDERS), &mut outcomes);
        }
        outcomes
    }

    fn run(&self, orders: impl Iterator<Item = Order>, outcomes: &mut Vec<Outcome>) {
        let Some((count, places)) = self.words.words().split_first() else {
            return outcomes.extend(orders.map(|_| Outcome::Undone));
        };
        let places = places.as_chunks::<WORDS>().0;
        let mut given = 0;
        for (order, place) in orders.zip(places) {
            for (to, word) in place.iter().zip(order.words().into_iter().chain([OPEN])) {
                to.store(word, Ordering::Relaxed);
            }
            given += 1;
        }
        count.store(given as u64, Ordering::Release);
        // Whether it ran is told by what it left.
        let _ = sys::test_run(self.program.as_fd(), &[0; 64], &SkbContext::default(), 1);
        let results = places.iter().take(given);
        outcomes.extend(results.map(|place| Outcome::of(place[WORDS - 1].load(Ordering::Acquire))));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_abi::policy::Direction;

    use super::*;
    use crate::{map::Map, maps::policy_spec, policy::descriptor};

    type PolicyMap = Map<PolicyKey, PolicyEntry>;

    fn key(identity: u32) -> PolicyKey {
        PolicyKey::new(identity, 80, 6, Direction::Ingress)
    }

    fn order(endpoint: u16, identity: u32, entry: PolicyEntry, how: Update) -> Order {
        Order { endpoint, key: key(identity), entry, how }
    }

    /// An array of maps with maps of 600 entries in slots 1 and 2.
    fn slots() -> (RawMap, [PolicyMap; 2]) {
        let map = || Map::new(RawMap::create(&policy_spec("p", 600), None).unwrap(), "p").unwrap();
        let maps: [PolicyMap; 2] = [map(), map()];
        let spec = MapSpec { name: "slots", kind: Kind::ArrayOfMaps, key: 4, value: 4, entries: 4, flags: 0 };
        let slots = RawMap::create(&spec, Some(maps[0].raw())).unwrap();
        for (slot, map) in (1_u32..).zip(&maps) {
            let value = descriptor(map).to_ne_bytes();
            slots.update(&slot.to_ne_bytes(), &value, Update::Any).unwrap();
        }
        (slots, maps)
    }

    #[test]
    fn entries_are_written_as_they_were_asked_for() {
        let (slots, maps) = slots();
        let by_hand = PolicyEntry { packets: 7, bytes: 70, ..PolicyEntry::DENY };
        maps[1].insert(&key(1), &by_hand).unwrap();
        let writer = Writer::new(&slots).unwrap();
        let (allow, deny) = (PolicyEntry::ALLOW, PolicyEntry::DENY);
        let outcomes = writer.write(
            [
                order(1, 1, allow, Update::NoExist),
                order(2, 1, allow, Update::NoExist),
                order(3, 1, allow, Update::NoExist),
                order(1, 1, deny, Update::Any),
                order(1, 2, deny, Update::Exist),
                order(2, 2, allow, Update::NoExist),
                order(4, 2, allow, Update::NoExist),
            ]
            .into_iter(),
        );
        use Outcome::{Taken, Undone, Written};
        assert_eq!(outcomes, [Written, Taken, Undone, Written, Undone, Written, Undone]);
        assert_eq!(maps[0].entries().unwrap(), [(key(1), deny)]);
        assert_eq!(maps[1].get(&key(1)).unwrap(), Some(by_hand));
        assert_eq!(maps[1].get(&key(2)).unwrap(), Some(allow));
        assert!(writer.write(std::iter::empty()).is_empty());
        assert_eq!(maps[1].count().unwrap(), 2);
    }

    #[test]
    fn many_orders_are_several_runs_and_a_full_map_leaves_the_rest_undone() {
        let (slots, maps) = slots();
        let writer = Writer::new(&slots).unwrap();
        let outcomes = writer.write((1..=700).map(|id| order(1, id, PolicyEntry::ALLOW, Update::NoExist)));
        assert!(outcomes[..600].iter().all(|outcome| *outcome == Outcome::Written));
        assert!(outcomes[600..].iter().all(|outcome| *outcome == Outcome::Undone));
        assert_eq!(maps[0].count().unwrap(), 600);
        assert_eq!(maps[1].count().unwrap(), 0);
    }
}
