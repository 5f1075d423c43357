//! Changes of single entries, made in place without reading the map: what an identity that comes or goes, or a policy,
//! changes in many maps at once.
//!
//! A packet looks its keys up one after the other, and an edit may fall in between. What it sees must still be what the
//! old or the new policy says. So denies come first and go last, allows come before others go; and between two of these
//! stages every packet that is on its way ends where keys of both may be one packet's: one grace period for all maps.

use std::collections::BTreeSet;

use villus_abi::{PolicyEntry, PolicyKey};

use super::{
    PolicyMap, PolicyMaps, ROOM, ShapeSink, Shapes, Step, descriptor,
    entries::one_packets,
    same_decision,
    writer::{Order, Outcome, Writer},
};
use crate::{error::Result, sys::Update};

/// The stages in their order.
const DENY: usize = 0;
const ALLOW: usize = 1;
const ALLOW_NO_MORE: usize = 2;
const DENY_NO_MORE: usize = 3;
/// Pairs of stages of which a packet must not see the later without the earlier.
const APART: [(usize, usize); 4] =
    [(DENY, ALLOW), (ALLOW, ALLOW_NO_MORE), (ALLOW_NO_MORE, DENY_NO_MORE), (DENY, DENY_NO_MORE)];

/// Changes of entries of one policy map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edits {
    /// Denies, then allows.
    add: [Vec<(PolicyKey, PolicyEntry)>; 2],
    /// Allows, then denies.
    remove: [Vec<PolicyKey>; 2],
    /// An entry that stays decides otherwise: a new value in its place would lose what is being counted on it.
    turned: bool,
    shapes: Shapes,
}

/// What edits did to one endpoint's map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edited {
    /// Entries added.
    pub added: usize,
    /// Entries removed.
    pub removed: usize,
    /// What the path must look up now.
    pub shapes: Shapes,
    /// Entries of the map, an operator's included as far as they are known, and most of them.
    pub size: (usize, u32),
}

/// What is known of a map that was written whole, so that it need not be read to be edited.
#[derive(Debug)]
pub(super) struct Known {
    /// Open as long as there are not too many.
    pub(super) handle: Option<PolicyMap>,
    pub(super) entries: usize,
    pub(super) shapes: Shapes,
    /// The shapes of what an operator wrote.
    pub(super) hand_made: Shapes,
    pub(super) capacity: u32,
}

/// Of fewer entries each is written by a call of its own.
const MANY: usize = 4;
/// How many maps are held open.
pub(super) const HANDLES: usize = 512;

// === impl Edits ===

impl Edits {
    /// No changes yet, of a policy that has these shapes after them.
    #[must_use]
    pub fn new(shapes: Shapes) -> Self {
        Self { shapes, ..Self::default() }
    }

    /// An entry changes: what stood there, and what is to stand there.
    pub fn push(&mut self, key: PolicyKey, before: Option<PolicyEntry>, after: Option<PolicyEntry>) {
        match (before, after) {
            (None, Some(entry)) => self.add[usize::from(!entry.is_deny())].push((key, entry)),
            (Some(entry), None) => self.remove[usize::from(entry.is_deny())].push(key),
            (Some(before), Some(after)) => self.turned |= !same_decision(&before, &after),
            (None, None) => {}
        }
    }

    /// The shapes of the policy after them.
    #[must_use]
    pub const fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.turned && self.written().next().or(self.removed().next()).is_none()
    }

    /// Whether something that was allowed may not be any more.
    #[must_use]
    pub fn restrict(&self) -> bool {
        self.turned || !self.add[0].is_empty() || !self.remove[0].is_empty()
    }

    fn written(&self) -> impl Iterator<Item = PolicyKey> + '_ {
        self.add.iter().flatten().map(|(key, _)| *key)
    }

    fn removed(&self) -> impl Iterator<Item = PolicyKey> + '_ {
        self.remove.iter().flatten().copied()
    }

    fn keys_of(&self, stage: usize) -> Vec<PolicyKey> {
        match stage {
            DENY | ALLOW => self.add[stage].iter().map(|(key, _)| *key).collect(),
            _ => self.remove[stage - ALLOW_NO_MORE].clone(),
        }
    }

    fn has(&self, stage: usize) -> bool {
        match stage {
            DENY | ALLOW => !self.add[stage].is_empty(),
            _ => !self.remove[stage - ALLOW_NO_MORE].is_empty(),
        }
    }

    /// Whether some packet may look up a key of one stage and a key of the other.
    fn meet(&self, one: usize, other: usize) -> bool {
        self.has(one) && self.has(other) && one_packets(&self.keys_of(one), &self.keys_of(other))
    }
}

// === impl PolicyMaps ===

/// Edits of one map on their way.
struct Work<'a> {
    endpoint: u16,
    edits: &'a Edits,
    map: PolicyMap,
    known: Known,
    /// Of the keys to be removed those that are not the agent's: what stands there an operator wrote, and it stays.
    others: BTreeSet<PolicyKey>,
    /// Of the keys to be added those that are the agent's: they are written over. Under the others what stands there stays.
    own: BTreeSet<PolicyKey>,
    /// Those of the others where something stood.
    taken: Vec<PolicyKey>,
    added: usize,
    removed: usize,
    result: Result<()>,
}

impl PolicyMaps {
    /// Makes single changes in the maps of many endpoints, each of which holds what the changes start from, with at
    /// most three grace periods, none where no packet can see two of the changes. Nothing is read back: what somebody
    /// else changed meanwhile is found by [`Self::compare`].
    ///
    /// For an endpoint whose map is not known, must grow or could shed shapes, and where an entry that stays decides
    /// otherwise, the result is `None`: nothing was done, and [`Self::apply_all`] is to be called with the whole policy.
    ///
    /// # Errors
    /// For each endpoint [`crate::Error::Kernel`]; its map is then somewhere in between. For all of them when the record of keys
    /// or a grace period fails.
    pub fn apply_edits(
        &mut self,
        edits: &[(u16, &Edits)],
        shapes: &mut dyn ShapeSink,
    ) -> Result<Vec<(u16, Result<Option<Edited>>)>> {
        let pins = self.pins.clone();
        let _lock = pins.lock()?;
        let mut results = Vec::with_capacity(edits.len());
        let mut work = Vec::with_capacity(edits.len());
        for (endpoint, edits) in edits {
            match self.begin(*endpoint, edits) {
                Ok(Some(begun)) => work.push(begun),
                Ok(None) => results.push((*endpoint, Ok(None))),
                Err(error) => results.push((*endpoint, Err(error))),
            }
        }
        for work in &mut work {
            work.own = self.written.add(&pins, work.endpoint, work.edits.written())?;
        }
        self.step(Step::Recorded)?;
        for work in &mut work {
            work.result = self.widen(work, shapes);
        }
        self.step(Step::Widened)?;
        let mut waited = 0;
        for stage in DENY..=DENY_NO_MORE {
            let apart = |earlier: usize| {
                APART.contains(&(earlier, stage)) && work.iter().any(|work| work.edits.meet(earlier, stage))
            };
            if (waited..stage).any(apart) {
                self.wait_for_packets(&work).inspect_err(|_| drop(self.maps.epoch.renew()))?;
                waited = stage;
            }
            if stage <= ALLOW {
                self.add(&mut work, stage);
            } else {
                for work in work.iter_mut().filter(|work| work.result.is_ok()) {
                    work.result = work.remove(stage);
                }
            }
            match stage {
                ALLOW => self.step(Step::Added)?,
                DENY_NO_MORE => self.step(Step::Removed)?,
                _ => {}
            }
        }
        self.maps.epoch.renew()?;
        self.end(work, &mut results);
        self.step(Step::Cleared)?;
        Ok(results)
    }

    fn begin<'a>(&mut self, endpoint: u16, edits: &'a Edits) -> Result<Option<Work<'a>>> {
        let Some(mut known) = self.known.remove(&endpoint) else { return Ok(None) };
        let after = edits.shapes.union(known.hand_made);
        let grown = known.entries + edits.written().count();
        let cramped = grown + ROOM > known.capacity as usize;
        if edits.turned || cramped || after.union(known.shapes) != after {
            return Ok(None);
        }
        let handle = match known.handle.take() {
            Some(handle) => Some(handle),
            None => self.slotted(endpoint)?,
        };
        let Some(map) = handle else { return Ok(None) };
        let others = edits.removed().filter(|key| !self.written.contains(endpoint, key)).collect();
        let (own, taken) = Default::default();
        Ok(Some(Work {
            endpoint,
            edits,
            map,
            known,
            others,
            own,
            taken,
            added: 0,
            removed: 0,
            result: Ok(()),
        }))
    }

    fn widen(&self, work: &mut Work<'_>, shapes: &mut dyn ShapeSink) -> Result<()> {
        let after = work.edits.shapes.union(work.known.hand_made);
        if after != work.known.shapes {
            shapes.widen(work.endpoint, after)?;
            work.known.shapes = after;
        }
        Ok(())
    }

    /// Makes the additions of one stage in all maps.
    fn add(&self, work: &mut [Work<'_>], stage: usize) {
        let orders = || work.iter().flat_map(|work| work.orders(stage));
        let writer = if orders().nth(MANY - 1).is_some() { self.writer() } else { None };
        let outcomes = writer.map_or_else(Vec::new, |writer| writer.write(orders()));
        let mut outcomes = outcomes.into_iter().chain(std::iter::repeat(Outcome::Undone));
        for work in work {
            work.settle(stage, &mut outcomes);
        }
    }

    fn writer(&self) -> Option<&Writer> {
        self.writer.get_or_init(|| Writer::new(self.maps.policies.raw()).ok()).as_ref()
    }

    /// Returns when no packet that began before is still on its way: writing a slot of the array of maps does that.
    fn wait_for_packets(&self, work: &[Work<'_>]) -> Result<()> {
        let Some(work) = work.first() else { return Ok(()) };
        self.maps.policies.insert(&u32::from(work.endpoint), &descriptor(&work.map))
    }

    fn end(&mut self, work: Vec<Work<'_>>, results: &mut Vec<(u16, Result<Option<Edited>>)>) {
        for work in work {
            let Work { endpoint, edits, map, mut known, taken, added, removed, result, .. } = work;
            if let Err(error) = result {
                // All of it stays recorded: some of it may have been written.
                results.push((endpoint, Err(error)));
                continue;
            }
            self.written.remove(endpoint, edits.removed().chain(taken));
            known.entries = (known.entries + added).saturating_sub(removed);
            let edited =
                Edited { added, removed, shapes: known.shapes, size: (known.entries, known.capacity) };
            self.keep_known(endpoint, map, known);
            results.push((endpoint, Ok(Some(edited))));
        }
    }

    /// Remembers what a map holds now.
    pub(super) fn keep_known(&mut self, endpoint: u16, map: PolicyMap, mut known: Known) {
        known.handle = (self.known.len() < HANDLES).then_some(map);
        self.known.insert(endpoint, known);
    }
}

impl Work<'_> {
    /// What is to be written in one stage. What stands under a key that is not the agent's stays.
    fn orders(&self, stage: usize) -> impl Iterator<Item = Order> + '_ {
        let add = self.edits.add.get(stage).filter(|_| self.result.is_ok());
        add.into_iter().flatten().map(|(key, entry)| {
            let how = if self.own.contains(key) { Update::Any } else { Update::NoExist };
            Order { endpoint: self.endpoint, key: *key, entry: *entry, how }
        })
    }

    /// Takes note of what became of the orders of one stage, and writes what is undone.
    fn settle(&mut self, stage: usize, outcomes: &mut impl Iterator<Item = Outcome>) {
        let (mut added, mut taken, mut result) = (0, Vec::new(), Ok(()));
        for (order, outcome) in self.orders(stage).zip(outcomes) {
            let is_written = match (outcome, order.how) {
                // One that failed leaves the others as they are.
                (Outcome::Undone, _) if result.is_err() => continue,
                (Outcome::Undone, Update::NoExist) => self.map.insert_new(&order.key, &order.entry),
                (Outcome::Undone, _) => self.map.insert(&order.key, &order.entry).map(|()| true),
                (told, _) => Ok(told == Outcome::Written),
            };
            match is_written {
                Ok(true) => added += 1,
                Ok(false) => taken.push(order.key),
                Err(error) => result = Err(error),
            }
        }
        self.added += added;
        self.taken.extend(taken);
        self.result = std::mem::replace(&mut self.result, Ok(())).and(result);
    }

    /// Makes the removals of one stage.
    fn remove(&mut self, stage: usize) -> Result<()> {
        let Some(remove) = self.edits.remove.get(stage - ALLOW_NO_MORE) else { return Ok(()) };
        let own = |key: &&PolicyKey| !self.others.contains(*key);
        let own: Vec<PolicyKey> = remove.iter().filter(own).copied().collect();
        self.removed += self.map.remove_all(&own)?;
        Ok(())
    }
}
