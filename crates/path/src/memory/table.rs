//! A flow table in memory.

use std::{boxed::Box, cell::Cell, cell::RefCell, collections::HashMap, hash::Hash, vec::Vec};

use elsa::FrozenVec;
use villus_abi::{Flow, FlowCell};

/// Flows by key. As in the kernel, a flow that is replaced or removed stays readable for whoever holds it.
pub(super) struct Table<K> {
    index: RefCell<HashMap<K, usize>>,
    cells: FrozenVec<Box<FlowCell>>,
    refuses: Cell<bool>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { index: RefCell::default(), cells: FrozenVec::new(), refuses: Cell::new(false) }
    }
}

impl<K: Copy + Eq + Hash> Table<K> {
    /// The flow under a key.
    pub(super) fn get(&self, key: &K) -> Option<&FlowCell> {
        let at = self.index.borrow().get(key).copied()?;
        self.cells.get(at)
    }

    /// Stores a flow; false when the table refuses.
    pub(super) fn put(&self, key: &K, flow: &Flow) -> bool {
        if self.refuses.get() {
            return false;
        }
        let at = self.cells.len();
        self.cells.push(Box::new(FlowCell::from(*flow)));
        self.index.borrow_mut().insert(*key, at);
        true
    }

    /// Forgets a flow; says whether there was one.
    pub(super) fn remove(&self, key: &K) -> bool {
        self.index.borrow_mut().remove(key).is_some()
    }

    /// All flows as they are now.
    pub(super) fn all(&self) -> Vec<(K, Flow)> {
        let index = self.index.borrow();
        index.iter().filter_map(|(key, at)| Some((*key, self.cells.get(*at)?.get()))).collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self { refuses: Cell::new(self.refuses.get()), ..Self::default() };
    }

    /// Makes the table refuse new flows, or take them again.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.set(refuses);
    }
}
