//! Which shapes of key a compiled policy uses, kept while entries come and go.

use villus_abi::{Direction, PolicyKey};

/// How many entries of each direction have each shape.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ShapeCounts([Side; 2]);

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Side {
    /// By the bit of [`PolicyKey::mask_bit`].
    by_bit: [u32; 32],
    /// The bits whose count is not zero.
    mask: u32,
    deny_identity: u32,
}

impl ShapeCounts {
    pub(crate) fn add(&mut self, key: &PolicyKey, denies: bool) {
        self.count(key, denies, |count| *count += 1);
    }

    pub(crate) fn remove(&mut self, key: &PolicyKey, denies: bool) {
        self.count(key, denies, |count| *count = count.saturating_sub(1));
    }

    fn count(&mut self, key: &PolicyKey, denies: bool, change: impl Fn(&mut u32)) {
        let side = &mut self.0[usize::from(key.dir() == Direction::Egress)];
        let bit = key.mask_bit();
        if bit != 0
            && let Some(count) = side.by_bit.get_mut(bit.trailing_zeros() as usize)
        {
            change(count);
            side.mask = if *count > 0 { side.mask | bit } else { side.mask & !bit };
        }
        if denies && key.identity != 0 {
            change(&mut side.deny_identity);
        }
    }

    pub(crate) fn mask(&self) -> [u32; 2] {
        self.0.each_ref().map(|side| side.mask)
    }

    pub(crate) fn deny_identity(&self) -> [bool; 2] {
        self.0.each_ref().map(|side| side.deny_identity > 0)
    }
}
