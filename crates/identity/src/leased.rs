//! Which numbers addresses under leases have: somebody has said so who lives, or who is silent and may come back.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use villus_labels::NumericIdentity;

/// How many addresses under leases have each number. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Leased(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    now: HashMap<NumericIdentity, u32>,
    /// Those of before a restart, until the addresses of then are counted.
    before: BTreeSet<NumericIdentity>,
}

// === impl Leased ===

impl Leased {
    /// With numbers from before a restart, which count until the addresses of then are counted.
    pub fn known(before: BTreeSet<NumericIdentity>) -> Self {
        Self(Arc::new(Mutex::new(Counts { now: HashMap::new(), before })))
    }

    /// Whether an address under a lease has the number.
    pub fn contains(&self, number: NumericIdentity) -> bool {
        let counts = self.counts();
        counts.now.contains_key(&number) || counts.before.contains(&number)
    }

    /// The addresses of before a restart are counted: so many have each number.
    pub(crate) fn restored(&self, addresses: HashMap<NumericIdentity, u32>) {
        let mut counts = self.counts();
        counts.before.clear();
        for (number, more) in addresses {
            *counts.now.entry(number).or_default() += more;
        }
    }

    /// An address under a lease has the number.
    pub fn add(&self, number: NumericIdentity) {
        *self.counts().now.entry(number).or_default() += 1;
    }

    /// An address of those that were added has it no more.
    pub fn remove(&self, number: NumericIdentity) {
        let mut counts = self.counts();
        if let Some(count) = counts.now.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                counts.now.remove(&number);
            }
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
