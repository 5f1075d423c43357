//! A table of flows or mappings in memory.

use std::{boxed::Box, cell::Cell, cell::RefCell, collections::HashMap, hash::Hash, vec::Vec};

use elsa::FrozenVec;
use villus_abi::FlowCell;

/// Cells by key. As in the kernel, one that is replaced or removed stays readable for whoever holds it.
pub(super) struct Table<K, C = FlowCell> {
    index: RefCell<HashMap<K, usize>>,
    cells: FrozenVec<Box<C>>,
    refuses: Cell<bool>,
}

impl<K, C> Default for Table<K, C> {
    fn default() -> Self {
        Self { index: RefCell::default(), cells: FrozenVec::new(), refuses: Cell::new(false) }
    }
}

impl<K: Copy + Eq + Hash, C: Clone> Table<K, C> {
    /// The cell under a key.
    pub(super) fn get(&self, key: &K) -> Option<&C> {
        let at = self.index.borrow().get(key).copied()?;
        self.cells.get(at)
    }

    /// Stores a cell; false when the table refuses.
    pub(super) fn put(&self, key: &K, cell: C) -> bool {
        if self.refuses.get() {
            return false;
        }
        let at = self.cells.len();
        self.cells.push(Box::new(cell));
        self.index.borrow_mut().insert(*key, at);
        true
    }

    /// Forgets a cell; says whether there was one.
    pub(super) fn remove(&self, key: &K) -> bool {
        self.index.borrow_mut().remove(key).is_some()
    }

    /// All cells as they are now.
    pub(super) fn all(&self) -> Vec<(K, C)> {
        let index = self.index.borrow();
        index.iter().filter_map(|(key, at)| Some((*key, self.cells.get(*at)?.clone()))).collect()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self { refuses: Cell::new(self.refuses.get()), ..Self::default() };
    }

    /// Makes the table refuse new cells, or take them again.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.set(refuses);
    }
}
