//! Policy maps: one per endpoint, pinned as `cilium_policy_<id>`, in the endpoint's slot of the array that the
//! path reads.
//!
//! Pure additions and pure removals are made in place. A change that mixes allow and deny, and growth, go into
//! a new map: it is filled, its pin takes the place of the old one, then it takes over the slot, which waits until no
//! packet uses the old map; then what was counted and what an operator wrote meanwhile is carried over. A crash at any
//! point leaves one of the two maps in the slot, and that one is the truth: [`PolicyMaps::open`] makes the pin agree.

mod carry;
mod edits;
mod entries;
mod instructions;
mod swap;
mod view;
mod writer;
mod written;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use villus_abi::{Endpoint, PolicyEntry, PolicyKey, names};

pub use edits::{Edited, Edits};
pub use entries::{Differences, Entries, Shapes, same_decision};
pub use view::{PolicyView, hand_insert, hand_remove, policy_endpoints, view_entries, view_policy};

use crate::{
    error::{Context, Error, Result},
    map::Map,
    maps::{Maps, POLICY_START, policy_spec},
    pins::Pins,
    sys::{self, RawMap},
};
use edits::Known;
use entries::Plan;
use writer::Writer;
use written::Written;

/// One endpoint's policy map.
pub type PolicyMap = Map<PolicyKey, PolicyEntry>;

/// Entries that every policy map keeps free, so that an emergency entry always fits.
pub const ROOM: usize = 64;
/// Pin of an old map while it is being replaced; five digits of the endpoint's id follow.
const OLD: &str = "villus_old_";
/// The option that bounds a policy map.
const OPTION: &str = "bpf-policy-map-max";

/// Where a replacement has got to; see [`PolicyMaps::on_step`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// New keys are recorded as the agent's.
    Recorded,
    /// The new map is filled; nobody knows it yet.
    Filled,
    /// The old map has a pin of its own.
    OldPinned,
    /// The endpoint's shapes cover old and new.
    Widened,
    /// The pin shows the new map, the slot the old one.
    Pinned,
    /// The slots hold the new maps and no packet uses the old ones.
    Slotted,
    /// Counters and hand-made entries have been carried over.
    Carried,
    /// In place: new entries are there, old ones not yet gone.
    Added,
    /// In place: old entries are gone.
    Removed,
    /// Old pins, shapes and records are cleared.
    Cleared,
}

/// Where the shapes of an endpoint's policy map are told: before entries are added, and after others are gone.
pub trait ShapeSink {
    /// Sets what the path looks up for an endpoint. Called only when it may differ from what was set before.
    ///
    /// # Errors
    /// Whatever keeps the endpoint's record from being written.
    fn set_shapes(&mut self, endpoint: u16, shapes: Shapes) -> Result<()>;

    /// Adds to what the path looks up for an endpoint; what somebody else has added meanwhile stays.
    ///
    /// # Errors
    /// As [`Self::set_shapes`].
    fn widen(&mut self, endpoint: u16, shapes: Shapes) -> Result<()> {
        self.set_shapes(endpoint, shapes)
    }
}

/// The records of `villus_endpoints_v1` as a [`ShapeSink`]. Records that are not in use are left alone; who
/// makes one takes the shapes from [`Applied::shapes`].
impl ShapeSink for &Map<u32, Endpoint> {
    fn set_shapes(&mut self, endpoint: u16, shapes: Shapes) -> Result<()> {
        let slot = u32::from(endpoint);
        let Some(mut record) = self.get(&slot)? else { return Ok(()) };
        if !record.has(villus_abi::endpoint::FLAG_ACTIVE) || Shapes::load(&record) == shapes {
            return Ok(());
        }
        shapes.store(&mut record);
        self.insert(&slot, &record)
    }

    fn widen(&mut self, endpoint: u16, shapes: Shapes) -> Result<()> {
        let there = self.get(&u32::from(endpoint))?.map(|record| Shapes::load(&record)).unwrap_or_default();
        self.set_shapes(endpoint, shapes.union(there))
    }
}

/// What applying a policy did to one endpoint's map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Entries added, in place or in a new map.
    pub added: usize,
    /// Entries removed.
    pub removed: usize,
    /// Entries whose decision was changed.
    pub altered: usize,
    /// A new map took the old one's place.
    pub swapped: bool,
    /// Entries of an operator that were found and kept.
    pub hand_made: BTreeSet<PolicyKey>,
    /// What the path must look up now.
    pub shapes: Shapes,
    /// Most entries of the map now.
    pub capacity: u32,
}

type OnStep = Box<dyn FnMut(Step) -> Result<()> + Send>;

/// The policy maps of a node, written by one agent at a time.
pub struct PolicyMaps {
    pins: Arc<Pins>,
    maps: Arc<Maps>,
    written: Written,
    /// Maps that were written whole and hold what was written.
    known: HashMap<u16, Known>,
    most: u32,
    /// Made when it is first needed; nothing where the kernel does not take its program.
    writer: OnceCell<Option<Writer>>,
    on_step: Option<OnStep>,
}

impl fmt::Debug for PolicyMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyMaps")
            .field("pins", &self.pins)
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl PolicyMaps {
    /// Takes over the policy maps that are there, and mends what a crash has left half done. A slot that holds
    /// the right map is not touched. `most` bounds the entries of a policy (`bpf-policy-map-max`).
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::Kernel`].
    pub fn open(pins: Arc<Pins>, maps: Arc<Maps>, most: u32) -> Result<Self> {
        let _lock = pins.lock()?;
        pins.sweep()?;
        let written = Written::open(&pins)?;
        let (known, writer) = (HashMap::new(), OnceCell::new());
        let mut this = Self { pins, maps, written, known, most, writer, on_step: None };
        let slots: BTreeMap<u32, u32> = this.maps.policies.entries()?.into_iter().collect();
        let mut unslotted = Vec::new();
        let endpoints = policy_endpoints(&this.pins)?;
        for &endpoint in &endpoints {
            let pinned = this.pinned(endpoint)?;
            match (slots.get(&u32::from(endpoint)), pinned) {
                (None, Some(map)) => unslotted.push((endpoint, map)),
                (Some(id), Some(map)) if *id != map.info().id => drop(this.mend(endpoint)?),
                _ => {}
            }
        }
        this.fill_slots(&unslotted)?;
        this.finish_swaps()?;
        this.trim_record(&endpoints)?;
        this.maps.epoch.renew()?;
        Ok(this)
    }

    /// Calls a function between the steps of every change. When it fails, the change stops right there, as if the
    /// agent had died: for tests.
    pub fn on_step(&mut self, call: impl FnMut(Step) -> Result<()> + Send + 'static) {
        self.on_step = Some(Box::new(call));
    }

    /// Writes every entry by a call of its own, as where the kernel does not take the program that writes many: for tests.
    pub fn write_one_by_one(&mut self) {
        self.writer = OnceCell::from(None);
    }

    fn step(&mut self, step: Step) -> Result<()> {
        self.on_step.as_mut().map_or(Ok(()), |call| call(step))
    }

    /// Endpoints that have a policy map.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn endpoints(&self) -> Result<Vec<u16>> {
        policy_endpoints(&self.pins)
    }

    /// Puts empty maps into the slots of endpoints to come, all within one grace period; slots in use stay.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn prepare(&mut self, endpoints: &[u16]) -> Result<()> {
        let mut made = Vec::new();
        for &endpoint in endpoints {
            if self.maps.policies.get(&u32::from(endpoint))?.is_none() {
                made.push((endpoint, create(POLICY_START)?));
            }
        }
        self.fill_slots(&made)
    }

    /// Gives an endpoint an empty policy map, pinned and in its slot. With a prepared slot this waits for nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`], with `EEXIST` when it has one.
    pub fn create(&mut self, endpoint: u16) -> Result<()> {
        let _lock = self.pins.lock()?;
        if let Some(map) = self.slotted(endpoint)? {
            map.remove_if(|_, _| true)?;
            return self.pins.put(&pin(endpoint), map.as_fd());
        }
        let map = create(POLICY_START)?;
        self.pins.put(&pin(endpoint), map.as_fd())?;
        self.fill_slots(&[(endpoint, map)])
    }

    /// Takes an endpoint's policy map away. Its slot keeps an empty map for the next endpoint of that number, so an
    /// endpoint's record must be out of use before. That there is none is no error.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove(&mut self, endpoint: u16) -> Result<()> {
        let _lock = self.pins.lock()?;
        self.known.remove(&endpoint);
        self.pins.remove(&pin(endpoint))?;
        self.pins.remove(&old_pin(endpoint))?;
        self.written.keep(endpoint, |_| false);
        match self.slotted(endpoint)? {
            Some(map) if map.info().entries == POLICY_START => map.remove_if(|_, _| true).map(drop),
            Some(_) => self.maps.policies.remove(&u32::from(endpoint)).map(drop),
            None => Ok(()),
        }
    }

    /// Makes one endpoint's map hold what is wanted; see [`Self::apply_all`].
    ///
    /// # Errors
    /// As for each endpoint of [`Self::apply_all`].
    pub fn apply(&mut self, endpoint: u16, wanted: &Entries, shapes: &mut dyn ShapeSink) -> Result<Applied> {
        let mut all = self.apply_all(&[(endpoint, wanted)], shapes)?;
        all.pop().map_or_else(|| Err(Error::Stopped("without a result".to_owned())), |(_, result)| result)
    }

    /// Makes the maps of many endpoints hold what is wanted, together with what operators wrote by hand. Those that
    /// must be replaced are replaced within one grace period. A map that does not exist is made.
    ///
    /// # Errors
    /// For each endpoint: [`Error::Full`], and its old policy stays complete; [`Error::Kernel`]. For all of them
    /// when slots cannot be written.
    pub fn apply_all(
        &mut self,
        wanted: &[(u16, &Entries)],
        shapes: &mut dyn ShapeSink,
    ) -> Result<Vec<(u16, Result<Applied>)>> {
        let lock = self.pins.clone();
        let _lock = lock.lock()?;
        let mut results = BTreeMap::new();
        let mut swaps = Vec::new();
        for &(endpoint, wanted) in wanted {
            match self.change(endpoint, wanted) {
                Ok(change) if change.capacity.is_some() => swaps.push(change),
                Ok(change) => drop(results.insert(endpoint, self.edit(change, shapes))),
                Err(e) => drop(results.insert(endpoint, Err(e))),
            }
        }
        let swapped = self.swap(swaps, shapes);
        self.maps.epoch.renew()?;
        results.extend(swapped?);
        Ok(results.into_iter().collect())
    }

    /// Compares one endpoint's map with what is wanted; changes nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn compare(&self, endpoint: u16, wanted: &Entries) -> Result<Differences> {
        let there = view_entries(&self.pins, &self.maps, endpoint)?;
        let written = self.written.of(endpoint);
        let mut differences = Differences::between(wanted, &there.entries, |key| written.contains(key));
        differences.misplaced = there.is_misplaced();
        differences.cramped = there.free() < ROOM;
        Ok(differences)
    }

    /// From now on these entries are the agent's, as if it had written them: an operator's are given up, and the next
    /// change removes those that are not wanted.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn adopt(&mut self, endpoint: u16, keys: &BTreeSet<PolicyKey>) -> Result<()> {
        let pins = self.pins.clone();
        self.written.add(&pins, endpoint, keys.iter().copied()).map(drop)
    }

    fn pinned(&self, endpoint: u16) -> Result<Option<PolicyMap>> {
        let map = self.pins.map_like(&pin(endpoint), &policy_spec(&pin(endpoint), POLICY_START))?;
        map.map(|raw| Map::new(raw, pin(endpoint))).transpose()
    }

    fn slotted(&self, endpoint: u16) -> Result<Option<PolicyMap>> {
        slotted(&self.maps, endpoint)
    }

    fn fill_slots(&self, maps: &[(u16, PolicyMap)]) -> Result<()> {
        let slots: Vec<(u32, u32)> =
            maps.iter().map(|(endpoint, map)| (u32::from(*endpoint), descriptor(map))).collect();
        self.maps.policies.insert_all(&slots)
    }

    /// The map that packets are judged by, pinned. Made if there is none.
    fn mend(&self, endpoint: u16) -> Result<PolicyMap> {
        match (self.slotted(endpoint)?, self.pinned(endpoint)?) {
            (Some(slot), Some(pinned)) if slot.info().id == pinned.info().id => Ok(slot),
            (Some(slot), Some(pinned)) => {
                self.carry_hand_made(endpoint, &pinned, &slot)?;
                self.pins.replace(&pin(endpoint), slot.as_fd())?;
                Ok(slot)
            }
            (Some(slot), None) => {
                self.pins.put(&pin(endpoint), slot.as_fd())?;
                Ok(slot)
            }
            (None, Some(pinned)) => {
                self.maps.policies.insert(&u32::from(endpoint), &descriptor(&pinned))?;
                Ok(pinned)
            }
            (None, None) => {
                let map = create(POLICY_START)?;
                self.pins.put(&pin(endpoint), map.as_fd())?;
                self.maps.policies.insert(&u32::from(endpoint), &descriptor(&map))?;
                Ok(map)
            }
        }
    }

    /// Copies what an operator wrote into one map to another, where it has no such entry.
    fn carry_hand_made(&self, endpoint: u16, from: &PolicyMap, to: &PolicyMap) -> Result<()> {
        let written = self.written.of(endpoint);
        for (key, entry) in from.entries()? {
            if !written.contains(&key) {
                to.insert_new(&key, &entry)?;
            }
        }
        Ok(())
    }

    /// A swap that died after its slot was set has left the old map pinned: what was written there by hand is kept.
    fn finish_swaps(&self) -> Result<()> {
        let names = self.pins.list()?;
        let digits = names.iter().filter_map(|name| name.strip_prefix(OLD)?.parse().ok());
        digits.into_iter().try_for_each(|endpoint| self.finish_swap(endpoint))
    }

    fn finish_swap(&self, endpoint: u16) -> Result<()> {
        let name = old_pin(endpoint);
        let Some(old) = self.pins.map(&name)? else { return Ok(()) };
        if let Some(slot) = self.slotted(endpoint)?
            && slot.info().id != old.info().id
        {
            self.carry_hand_made(endpoint, &Map::new(old, &name)?, &slot)?;
        }
        self.pins.remove(&name).map(drop)
    }

    /// The record may name keys that never got into a map: an operator's entry must not be taken for one of them.
    fn trim_record(&mut self, endpoints: &[u16]) -> Result<()> {
        for endpoint in self.written.endpoints() {
            let there: BTreeSet<PolicyKey> = if endpoints.contains(&endpoint) {
                let map = self.slotted(endpoint)?;
                map.map_or(Ok(Vec::new()), |map| map.entries())?.into_iter().map(|(key, _)| key).collect()
            } else {
                BTreeSet::new()
            };
            self.written.keep(endpoint, |key| there.contains(key));
        }
        Ok(())
    }

    /// What has to happen to one endpoint's map.
    fn change(&mut self, endpoint: u16, wanted: &Entries) -> Result<Change> {
        self.known.remove(&endpoint);
        let most = self.most as usize;
        if wanted.len() > most {
            return Err(Error::Full { map: pin(endpoint), wanted: wanted.len(), most, option: OPTION });
        }
        let map = self.mend(endpoint)?;
        self.finish_swap(endpoint)?;
        let there: Entries = map.entries()?.into_iter().collect();
        let written = self.written.of(endpoint);
        let differences = Differences::between(wanted, &there, |key| written.contains(key));
        let plan = Plan::new(wanted, &there, &differences);
        let capacity = self.capacity(&plan, there.len(), map.info().entries);
        Ok(Change { endpoint, map, there, differences, plan, capacity })
    }

    /// The size of a new map, if one is needed.
    fn capacity(&self, plan: &Plan, there: usize, now: u32) -> Option<u32> {
        // In place, additions come before removals.
        let peak = there + plan.add.len();
        let fitting = |entries: usize| {
            let size = (entries + ROOM).next_power_of_two().max(POLICY_START as usize);
            let most = (self.most as usize + ROOM).max(entries + ROOM);
            u32::try_from(size.min(most)).unwrap_or(u32::MAX)
        };
        let size = fitting(plan.target.len());
        let cramped = plan.target.len() + ROOM > now as usize || (!plan.is_nothing() && peak > now as usize);
        let wasteful = now > POLICY_START && now / 4 >= size;
        (plan.mixed || cramped || wasteful).then_some(size)
    }

    /// Pure additions or pure removals of one kind, in place.
    fn edit(&mut self, change: Change, shapes: &mut dyn ShapeSink) -> Result<Applied> {
        let (endpoint, applied) = (change.endpoint, change.applied(change.map.info().entries));
        let pins = self.pins.clone();
        if !change.plan.is_nothing() {
            self.written.add(&pins, endpoint, change.plan.add.iter().map(|(key, _)| *key))?;
            self.step(Step::Recorded)?;
            shapes.set_shapes(endpoint, Shapes::of(&change.there).union(applied.shapes))?;
            self.step(Step::Widened)?;
            change.map.insert_all(&change.plan.add)?;
            self.step(Step::Added)?;
            change.map.remove_all(&change.plan.remove)?;
            self.step(Step::Removed)?;
        }
        self.clear(&change, applied.shapes, shapes)?;
        self.learn(change, &applied, None);
        Ok(applied)
    }

    /// A map holds what was wanted: it can be edited without reading it.
    fn learn(&mut self, change: Change, applied: &Applied, new: Option<PolicyMap>) {
        let hand_made = change.plan.target.iter().filter(|(key, _)| applied.hand_made.contains(key));
        let known = Known {
            handle: None,
            entries: change.plan.target.len(),
            shapes: applied.shapes,
            hand_made: Shapes::of(hand_made),
            capacity: applied.capacity,
        };
        self.keep_known(change.endpoint, new.unwrap_or(change.map), known);
    }

    /// The end of every change: shapes become exact, the record too.
    fn clear(&mut self, change: &Change, exact: Shapes, shapes: &mut dyn ShapeSink) -> Result<()> {
        shapes.set_shapes(change.endpoint, exact)?;
        let hand_made = &change.differences.hand_made;
        self.written
            .keep(change.endpoint, |key| change.plan.target.contains_key(key) && !hand_made.contains(key));
        self.step(Step::Cleared)
    }
}

/// A change of one endpoint's map that is about to be made.
struct Change {
    endpoint: u16,
    map: PolicyMap,
    there: Entries,
    differences: Differences,
    plan: Plan,
    /// The size of the new map if the old one is to be replaced.
    capacity: Option<u32>,
}

impl Change {
    fn applied(&self, capacity: u32) -> Applied {
        Applied {
            added: self.plan.add.len(),
            removed: self.plan.remove.len(),
            altered: self.differences.altered.len(),
            swapped: self.capacity.is_some(),
            hand_made: self.differences.hand_made.clone(),
            shapes: Shapes::of(&self.plan.target),
            capacity,
        }
    }
}

/// The pin of an endpoint's policy map.
#[must_use]
pub fn pin(endpoint: u16) -> String {
    format!("{}{endpoint:05}", names::POLICY_PREFIX)
}

fn old_pin(endpoint: u16) -> String {
    format!("{OLD}{endpoint:05}")
}

fn create(entries: u32) -> Result<PolicyMap> {
    let raw =
        RawMap::create(&policy_spec(names::POLICY_PREFIX, entries), None).on("create", "a policy map")?;
    Map::new(raw, "a policy map")
}

fn descriptor(map: &PolicyMap) -> u32 {
    map.as_fd().as_raw_fd().cast_unsigned()
}

fn slotted(maps: &Maps, endpoint: u16) -> Result<Option<PolicyMap>> {
    let Some(id) = maps.policies.get(&u32::from(endpoint))? else { return Ok(None) };
    let raw = sys::map_by_id(id).on("open the policy map of", format!("endpoint {endpoint}"))?;
    Map::new(raw, pin(endpoint)).map(Some)
}
