//! Maps of another size: a new map takes the pin, and the programs get it when they are loaded anew.
//!
//! Until then the old programs go on with the old maps, which they keep alive, and make flows there. So the flows are
//! copied twice: before the programs are replaced, and once more, what has come since, right after.

use std::os::fd::{AsFd, AsRawFd};

use villus_abi::{Flow, from_bytes, time::Tick};

use crate::{
    error::{Context, Error, Result},
    flows::is_expired,
    map::{Map, front, scan},
    maps::{KNOWN, Known, NAT_KNOWN, POLICY_START, Sizes, policy_spec},
    pins::Pins,
    sys::{self, Kind, RawMap},
};

/// A map that was replaced by one of another size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resized {
    /// Its pin.
    pub pin: &'static str,
    /// Entries (bytes of the event ring) before.
    pub from: u32,
    /// And now.
    pub to: u32,
    /// Elements that were copied.
    pub copied: usize,
}

/// Gives the pinned maps the sizes wanted; those that have them are not touched. To be done before [`crate::Maps::open`],
/// and the programs loaded anew after it. A crash at any point leaves either the old map or the new one under the pin.
///
/// # Errors
/// [`Error::Full`] when what must be kept does not fit, and that map stays as it is; [`Error::Foreign`];
/// [`Error::Kernel`].
pub fn resize(pins: &Pins, sizes: &Sizes, now: Tick) -> Result<Vec<Resized>> {
    let _lock = pins.lock()?;
    let mut resized = Vec::new();
    for known in KNOWN.iter().chain(NAT_KNOWN.iter().filter(|_| sizes.nat != 0)) {
        let spec = known.spec(sizes);
        let Some(old) = pins.map_like(known.pin, &spec)? else { continue };
        if old.info().entries == spec.entries {
            continue;
        }
        let template = RawMap::create(&policy_spec("villus_template", POLICY_START), None)
            .on("create map", known.pin)?;
        let inner = (known.kind == Kind::ArrayOfMaps).then_some(&template);
        let new = RawMap::create(&spec, inner).on("create map", known.pin)?;
        let copied = copy(known, &old, &new, now)?;
        pins.replace(known.pin, new.as_fd())?;
        resized.push(Resized { pin: known.pin, from: old.info().entries, to: spec.entries, copied });
    }
    Ok(resized)
}

fn copy(known: &Known, old: &RawMap, new: &RawMap, now: Tick) -> Result<usize> {
    match known.kind {
        // What is counted or under way there is no state.
        Kind::RingBuf | Kind::PerCpuArray => return Ok(0),
        Kind::ArrayOfMaps => return copy_slots(known, old, new),
        _ => {}
    }
    let mut elements: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let zero = vec![0; known.value];
    let array = known.kind == Kind::Array;
    scan(old, |key, value| {
        // Array elements that are all zero are not in use, and flows that have expired need no room.
        let dead =
            array && value == zero || flow_of(known, value).is_some_and(|flow| is_expired(flow.expires, now));
        if !dead {
            elements.push((key.to_vec(), value.to_vec()));
        }
    })
    .on("list", known.pin)?;
    let most = new.info().entries as usize;
    let last = if array {
        elements.last().and_then(|(key, _)| from_bytes::<u32>(key)).map_or(0, |i| i as usize + 1)
    } else {
        0
    };
    if known.kind == Kind::LruHash {
        // The entries that are inserted last are evicted last.
        elements.sort_by_key(|(_, value)| flow_of(known, value).map_or(0, |flow| flow.expires));
    } else if elements.len() > most || last > most {
        return Err(full(known, elements.len().max(last), most));
    }
    for (key, value) in &elements {
        new.update(key, value, sys::Update::Any).on("write", known.pin)?;
    }
    Ok(elements.len())
}

/// The flow that an element of a flow map is.
fn flow_of(known: &Known, value: &[u8]) -> Option<Flow> {
    if known.pin.starts_with("villus_ct") { front(value) } else { None }
}

/// Slots are read as ids and written as descriptors, all of them in one grace period.
fn copy_slots(known: &Known, old: &RawMap, new: &RawMap) -> Result<usize> {
    let new: Map<u32, u32> = Map::new(new.try_clone().on("open", known.pin)?, known.pin)?;
    let old: Map<u32, u32> = Map::new(old.try_clone().on("open", known.pin)?, known.pin)?;
    let mut held = Vec::new();
    for (slot, id) in old.entries()? {
        if slot >= new.info().entries {
            return Err(full(known, slot as usize + 1, new.info().entries as usize));
        }
        held.push((slot, sys::map_by_id(id).on("open a policy map of", known.pin)?));
    }
    let slots: Vec<(u32, u32)> =
        held.iter().map(|(slot, map)| (*slot, map.as_fd().as_raw_fd().cast_unsigned())).collect();
    new.insert_all(&slots)?;
    Ok(slots.len())
}

fn full(known: &Known, wanted: usize, most: usize) -> Error {
    Error::Full { map: known.pin.to_owned(), wanted, most, option: known.option }
}
