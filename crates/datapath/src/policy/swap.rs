//! Replacing policy maps, all within one grace period.

use std::{collections::BTreeMap, os::fd::AsFd};

use villus_abi::PolicyKey;

use super::{
    Applied, Change, Entries, PolicyMap, PolicyMaps, ROOM, ShapeSink, Shapes, Step, carry::Adder, create,
    descriptor, old_pin, pin,
};
use crate::error::Result;

impl PolicyMaps {
    /// Replaces the maps of `changes`. The lock is held.
    pub(super) fn swap(
        &mut self,
        changes: Vec<Change>,
        shapes: &mut dyn ShapeSink,
    ) -> Result<BTreeMap<u16, Result<Applied>>> {
        let mut results = BTreeMap::new();
        let mut filled = Vec::new();
        for change in changes {
            match self.fill(&change, shapes) {
                Ok(new) => filled.push((change, new)),
                Err(e) => drop(results.insert(change.endpoint, Err(e))),
            }
        }
        if filled.is_empty() {
            return Ok(results);
        }
        for (change, new) in &filled {
            self.pins.replace(&pin(change.endpoint), new.as_fd())?;
        }
        self.step(Step::Pinned)?;
        let slots: Vec<(u32, u32)> =
            filled.iter().map(|(change, new)| (u32::from(change.endpoint), descriptor(new))).collect();
        // The kernel returns when no packet that began with the old maps is still on its way.
        self.maps.policies.insert_all(&slots)?;
        self.step(Step::Slotted)?;
        for (change, new) in filled {
            let endpoint = change.endpoint;
            let result = self.finish(change, new, shapes);
            results.insert(endpoint, result);
        }
        Ok(results)
    }

    /// Makes the new map, complete but known to nobody.
    fn fill(&mut self, change: &Change, shapes: &mut dyn ShapeSink) -> Result<PolicyMap> {
        let (endpoint, plan) = (change.endpoint, &change.plan);
        let pins = self.pins.clone();
        let hand_made = &change.differences.hand_made;
        self.written.add(
            &pins,
            endpoint,
            plan.target.keys().filter(|key| !hand_made.contains(key)).copied(),
        )?;
        self.step(Step::Recorded)?;
        let new = create(change.capacity.unwrap_or_else(|| change.map.info().entries))?;
        let elements: Vec<_> = plan.target.iter().map(|(key, entry)| (*key, *entry)).collect();
        new.insert_all(&elements)?;
        self.step(Step::Filled)?;
        self.pins.replace(&old_pin(endpoint), change.map.as_fd())?;
        self.step(Step::OldPinned)?;
        shapes.set_shapes(endpoint, Shapes::of(&change.there).union(Shapes::of(&plan.target)))?;
        self.step(Step::Widened)?;
        Ok(new)
    }

    /// Carries over what happened to the old map after it was read, then forgets it.
    fn finish(&mut self, mut change: Change, new: PolicyMap, shapes: &mut dyn ShapeSink) -> Result<Applied> {
        let now: Entries = change.map.entries()?.into_iter().collect();
        carry_counters(&change.there, &now, &new)?;
        self.carry_edits(&mut change, &now, &new)?;
        self.step(Step::Carried)?;
        self.pins.remove(&old_pin(change.endpoint))?;
        let applied = change.applied(new.info().entries);
        self.clear(&change, applied.shapes, shapes)?;
        self.learn(change, &applied, Some(new));
        Ok(applied)
    }

    /// An operator may have written to the old map since it was read.
    fn carry_edits(&self, change: &mut Change, now: &Entries, new: &PolicyMap) -> Result<()> {
        let written = self.written.of(change.endpoint);
        let came = now.iter().filter(|(key, _)| !change.there.contains_key(key) && !written.contains(key));
        // The room that every map keeps is there for these.
        for (key, entry) in came.take(ROOM) {
            if new.insert_new(key, entry)? {
                change.plan.target.insert(*key, *entry);
                change.differences.hand_made.insert(*key);
            }
        }
        let gone: Vec<PolicyKey> =
            change.differences.hand_made.iter().filter(|key| !now.contains_key(key)).copied().collect();
        for key in gone {
            new.remove(&key)?;
            change.plan.target.remove(&key);
            change.differences.hand_made.remove(&key);
        }
        Ok(())
    }
}

/// Adds to the new map what the old one has counted since it was read.
fn carry_counters(before: &Entries, now: &Entries, new: &PolicyMap) -> Result<()> {
    let mut adder = None;
    for (key, entry) in now {
        let Some(old) = before.get(key) else { continue };
        let packets = entry.packets.saturating_sub(old.packets);
        let bytes = entry.bytes.saturating_sub(old.bytes);
        if packets == 0 && bytes == 0 {
            continue;
        }
        let adder = match &mut adder {
            Some(adder) => adder,
            none => none.insert(Adder::new(new.raw())?),
        };
        adder.add(key, packets, bytes)?;
    }
    Ok(())
}
