//! Reading policy maps, and writing into them by hand, with the agent alive, stopped or dead.

use std::collections::BTreeSet;

use villus_abi::{PolicyEntry, PolicyKey, names};

use super::{Entries, PolicyMap, ShapeSink, Shapes, pin, slotted, written::Written};
use crate::{
    error::Result,
    map::Map,
    maps::{Maps, POLICY_START, policy_spec},
    pins::Pins,
};

/// One endpoint's policy as the kernel holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyView {
    /// The endpoint.
    pub endpoint: u16,
    /// Entries of the map that packets are judged by; of the pinned one if the slot is empty.
    pub entries: Entries,
    /// Those of them that the agent never wrote.
    pub hand_made: BTreeSet<PolicyKey>,
    /// Most entries of that map.
    pub capacity: u32,
    /// Id of the map in the slot.
    pub in_slot: Option<u32>,
    /// Id of the map that is pinned.
    pub pinned: Option<u32>,
}

impl PolicyView {
    /// Whether the map that packets are judged by is not the one that is pinned. While an agent is replacing a map this is
    /// so for some milliseconds.
    #[must_use]
    pub fn is_misplaced(&self) -> bool {
        self.in_slot.is_none() || self.in_slot != self.pinned
    }

    /// Entries that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.entries.len())
    }
}

/// Endpoints that have a policy map, in order of their ids.
///
/// # Errors
/// [`crate::Error::Kernel`].
pub fn policy_endpoints(pins: &Pins) -> Result<Vec<u16>> {
    let names = pins.list()?;
    let digits = names.iter().filter_map(|name| name.strip_prefix(names::POLICY_PREFIX));
    Ok(digits.filter(|digits| digits.len() == 5).filter_map(|digits| digits.parse().ok()).collect())
}

/// Reads one endpoint's policy; changes nothing.
///
/// # Errors
/// [`crate::Error::Kernel`], [`crate::Error::Foreign`].
pub fn view_policy(pins: &Pins, maps: &Maps, endpoint: u16) -> Result<PolicyView> {
    let mut view = view_entries(pins, maps, endpoint)?;
    let written = Written::of_endpoint(pins, endpoint)?;
    view.hand_made = view.entries.keys().filter(|key| !written.contains(key)).copied().collect();
    Ok(view)
}

/// As [`view_policy`] without asking whose the entries are: none is said to be made by hand.
///
/// # Errors
/// As [`view_policy`].
pub fn view_entries(pins: &Pins, maps: &Maps, endpoint: u16) -> Result<PolicyView> {
    let (slot, pinned) = (slotted(maps, endpoint)?, pinned(pins, endpoint)?);
    let id = |map: &Option<PolicyMap>| map.as_ref().map(|map| map.info().id);
    let (in_slot, pinned_id) = (id(&slot), id(&pinned));
    let map = slot.or(pinned);
    let entries: Entries = map.as_ref().map_or(Ok(Vec::new()), Map::entries)?.into_iter().collect();
    let capacity = map.map_or(0, |map| map.info().entries);
    let hand_made = BTreeSet::new();
    Ok(PolicyView { endpoint, entries, hand_made, capacity, in_slot, pinned: pinned_id })
}

/// Writes an entry by hand, if there is none of that key; says whether it did. It is written to every map that
/// the endpoint has at this moment, so that it counts at the next packet whatever an agent is in the middle of.
///
/// # Errors
/// [`crate::Error::Kernel`].
pub fn hand_insert(
    pins: &Pins,
    maps: &Maps,
    endpoint: u16,
    key: &PolicyKey,
    entry: &PolicyEntry,
) -> Result<bool> {
    // An agent that was stopped with the lock in its hands must not keep an operator from acting.
    let _lock = pins.lock().ok();
    widen(maps, endpoint, key, entry)?;
    let all = every_map(pins, maps, endpoint)?;
    let inserted = all.iter().try_fold(false, |inserted, map| Ok(map.insert_new(key, entry)? | inserted));
    maps.epoch.renew()?;
    inserted
}

/// Removes an entry by hand from every map that the endpoint has at this moment; says whether it was there.
///
/// # Errors
/// [`crate::Error::Kernel`].
pub fn hand_remove(pins: &Pins, maps: &Maps, endpoint: u16, key: &PolicyKey) -> Result<bool> {
    let _lock = pins.lock().ok();
    let all = every_map(pins, maps, endpoint)?;
    let removed = all.iter().try_fold(false, |removed, map| Ok(map.remove(key)? | removed));
    maps.epoch.renew()?;
    removed
}

/// The path must look for keys of this shape before there is one.
fn widen(maps: &Maps, endpoint: u16, key: &PolicyKey, entry: &PolicyEntry) -> Result<()> {
    let Some(record) = maps.endpoints.get(&u32::from(endpoint))? else { return Ok(()) };
    let shapes = Shapes::load(&record).union(Shapes::of([(key, entry)]));
    (&maps.endpoints).set_shapes(endpoint, shapes)
}

fn pinned(pins: &Pins, endpoint: u16) -> Result<Option<PolicyMap>> {
    let name = pin(endpoint);
    pins.map_like(&name, &policy_spec(&name, POLICY_START))?.map(|raw| Map::new(raw, name)).transpose()
}

fn every_map(pins: &Pins, maps: &Maps, endpoint: u16) -> Result<Vec<PolicyMap>> {
    let mut all: Vec<PolicyMap> =
        slotted(maps, endpoint)?.into_iter().chain(pinned(pins, endpoint)?).collect();
    all.dedup_by_key(|map| map.info().id);
    Ok(all)
}
