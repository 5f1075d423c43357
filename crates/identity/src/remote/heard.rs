//! How far the nodes of a layer have been heard. Addresses and nodes are told apart, each in its own time: that an address was
//! deleted on purpose is known only when its owner was there after that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{Layer, Remote, stale::Owner};

/// How far the nodes of a layer have been heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Everything up to this revision; 0 if that is not known.
    pub through: u64,
    /// From when on everything is heard a moment after it happens; `None` while contact is lost.
    pub live: Option<Instant>,
}

// === impl Heard ===

impl Heard {
    /// Whether what was there at a revision is known by now.
    fn holds(self, revision: u64, now: Instant) -> bool {
        self.through >= revision || self.live.is_some_and(|from| from <= now)
    }
}

// === impl Remote ===

impl Remote {
    /// Nodes of a layer have been heard so far. To be called whenever that is otherwise, after what was heard was taken in.
    pub fn hear_nodes(&mut self, layer: Layer, heard: Heard, now: Instant) {
        self.heard[layer as usize] = heard;
        self.end_doubts(now);
        if heard.through > 0 {
            self.list_hosts(layer);
        }
    }

    pub(super) fn has_heard(&self, layer: Layer, revision: u64, now: Instant) -> bool {
        self.heard[layer as usize].holds(revision, now)
    }

    /// Addresses that were deleted, perhaps on purpose: the revision of that, by key.
    pub(super) fn doubts(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        let stale = self.may_doubt.then(|| self.stale.iter()).into_iter().flatten();
        stale.filter(|(_, stale)| stale.deleted > 0).map(|(key, stale)| (key, stale.deleted))
    }

    /// Whether there are addresses of which it is not known whether they were deleted on purpose. They count as stale.
    pub fn has_doubts(&self) -> bool {
        self.doubts().next().is_some()
    }

    /// Keys of nodes, as their store has them, on which it depends whether addresses of a layer were deleted on purpose; `most`
    /// at most.
    pub fn doubted_owners(&self, layer: Layer, most: usize) -> BTreeSet<Arc<str>> {
        let mut owners = BTreeSet::new();
        for (key, _) in self.doubts().filter(|(key, _)| Layer::of(key) == layer) {
            owners.extend(self.owner_key(key));
            if owners.len() >= most {
                break;
            }
        }
        owners
    }

    /// At a revision these nodes had keys that were created at these revisions, or none: see [`Self::doubted_owners`].
    pub fn settle_owners(
        &mut self,
        layer: Layer,
        found: &BTreeMap<Arc<str>, Option<u64>>,
        revision: u64,
        now: Instant,
    ) {
        let verdict = |key: &str, deleted: u64| {
            let created = found.get(&self.owner_key(key)?).filter(|_| deleted <= revision)?;
            // One that was created later was gone meanwhile.
            Some(created.is_some_and(|created| created <= deleted))
        };
        let its = self.doubts().filter(|(key, _)| Layer::of(key) == layer);
        let settled = its.filter_map(|(key, deleted)| Some((Arc::clone(key), verdict(key, deleted)?)));
        let settled = settled.collect();
        self.end_these(settled, now);
    }

    /// Decides about deletions as far as their owners have been heard by now.
    pub(super) fn end_doubts(&mut self, now: Instant) {
        let known = self.doubts().filter(|(key, deleted)| self.has_heard(Layer::of(key), *deleted, now));
        let settled = known.map(|(key, _)| (Arc::clone(key), !matches!(self.owner_of(key), Owner::Silent)));
        let settled = settled.collect();
        self.end_these(settled, now);
        self.may_doubt = self.has_doubts();
    }

    /// What was deleted on purpose goes; the owner of what was not is silent.
    fn end_these(&mut self, settled: Vec<(Arc<str>, bool)>, now: Instant) {
        if settled.is_empty() {
            return;
        }
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for (key, on_purpose) in settled {
            if on_purpose {
                self.bury_address(&mut edit, key, now);
            } else if let Some(stale) = self.stale.get_mut(&key) {
                stale.deleted = 0;
            }
        }
    }

    /// The key of an address's owner in the store that holds the address.
    fn owner_key(&self, key: &str) -> Option<Arc<str>> {
        let host = self.addresses.get(key)?.host?;
        let layer = Layer::of(key);
        Some(layer.stored(&layer.of_state(self.hosts.get(&host)?).into()))
    }
}
