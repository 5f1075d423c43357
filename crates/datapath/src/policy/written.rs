//! What the agent has written into policy maps, so that what an operator has written can be told apart.
//!
//! The bytes of an entry are the same whoever wrote it, so this is kept beside them: in a pinned map, which
//! lives exactly as long as the policy maps do and needs no agent. A key is recorded before it is written and
//! struck off after it is removed, so the record may name too much for a moment, never too little.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
};

use villus_abi::{PolicyKey, bytes_of, from_bytes};

use crate::{
    error::{Context, Result},
    map::Map,
    pins::Pins,
    sys::{Kind, MapSpec, NO_PREALLOC, RawMap},
};

/// Pin of the record.
pub(crate) const PIN: &str = "villus_written_v1";
/// Entries to begin with; it grows.
const START: u32 = 1 << 14;

/// Endpoint id, zeros, policy key, zeros.
type Key = [u8; 16];

pub(crate) const fn spec(entries: u32) -> MapSpec<'static> {
    MapSpec { name: PIN, kind: Kind::Hash, key: 16, value: 4, entries, flags: NO_PREALLOC }
}

fn pack(endpoint: u16, key: &PolicyKey) -> Key {
    let mut packed = [0; 16];
    packed[..2].copy_from_slice(&endpoint.to_le_bytes());
    packed[4..12].copy_from_slice(bytes_of(key));
    packed
}

fn unpack(packed: &Key) -> Option<(u16, PolicyKey)> {
    Some((u16::from_le_bytes([packed[0], packed[1]]), from_bytes(packed.get(4..12)?)?))
}

/// The record, with its contents in memory.
#[derive(Debug)]
pub(crate) struct Written {
    map: Map<Key, u32>,
    by_endpoint: BTreeMap<u16, BTreeSet<PolicyKey>>,
    count: usize,
}

impl Written {
    /// Opens it, making it if there is none.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        let (raw, _) = pins.open_or_create(PIN, &spec(START), None)?;
        Self::load(raw)
    }

    /// What is recorded about one endpoint, for readers beside the agent.
    pub(crate) fn of_endpoint(pins: &Pins, endpoint: u16) -> Result<BTreeSet<PolicyKey>> {
        let Some(raw) = pins.map_like(PIN, &spec(START))? else { return Ok(BTreeSet::new()) };
        Ok(Self::load(raw)?.by_endpoint.remove(&endpoint).unwrap_or_default())
    }

    fn load(raw: RawMap) -> Result<Self> {
        let map: Map<Key, u32> = Map::new(raw, PIN)?;
        let mut by_endpoint: BTreeMap<u16, BTreeSet<PolicyKey>> = BTreeMap::new();
        let all = map.entries()?;
        for (endpoint, key) in all.iter().filter_map(|(packed, _)| unpack(packed)) {
            by_endpoint.entry(endpoint).or_default().insert(key);
        }
        Ok(Self { map, by_endpoint, count: all.len() })
    }

    pub(crate) fn of(&self, endpoint: u16) -> &BTreeSet<PolicyKey> {
        const NONE: &BTreeSet<PolicyKey> = &BTreeSet::new();
        self.by_endpoint.get(&endpoint).unwrap_or(NONE)
    }

    pub(crate) fn endpoints(&self) -> Vec<u16> {
        self.by_endpoint.keys().copied().collect()
    }

    pub(crate) fn contains(&self, endpoint: u16, key: &PolicyKey) -> bool {
        self.by_endpoint.get(&endpoint).is_some_and(|keys| keys.contains(key))
    }

    /// Records keys that are about to be written.
    pub(crate) fn add(
        &mut self,
        pins: &Pins,
        endpoint: u16,
        keys: impl Iterator<Item = PolicyKey>,
    ) -> Result<()> {
        self.add_many(pins, &keys.map(|key| (endpoint, key)).collect::<Vec<_>>())
    }

    /// Records keys of many endpoints that are about to be written.
    pub(crate) fn add_many(&mut self, pins: &Pins, keys: &[(u16, PolicyKey)]) -> Result<()> {
        let new: Vec<(u16, PolicyKey)> =
            keys.iter().filter(|(endpoint, key)| !self.contains(*endpoint, key)).copied().collect();
        if self.count + new.len() > self.map.info().entries as usize {
            self.grow(pins, self.count + new.len())?;
        }
        let packed: Vec<(Key, u32)> = new.iter().map(|(endpoint, key)| (pack(*endpoint, key), 0)).collect();
        self.map.insert_all(&packed)?;
        self.count += new.len();
        for (endpoint, key) in new {
            self.by_endpoint.entry(endpoint).or_default().insert(key);
        }
        Ok(())
    }

    /// Strikes keys off; those that are not recorded are no error.
    pub(crate) fn remove_many(&mut self, keys: &[(u16, PolicyKey)]) -> Result<()> {
        let gone = keys.iter().filter(|(endpoint, key)| self.contains(*endpoint, key));
        let gone: Vec<Key> = gone.map(|(endpoint, key)| pack(*endpoint, key)).collect();
        self.map.remove_all(&gone)?;
        self.count -= gone.len().min(self.count);
        for (endpoint, key) in keys {
            if let Some(known) = self.by_endpoint.get_mut(endpoint) {
                known.remove(key);
                if known.is_empty() {
                    self.by_endpoint.remove(endpoint);
                }
            }
        }
        Ok(())
    }

    /// Strikes off what is not to be kept.
    pub(crate) fn keep(&mut self, endpoint: u16, keep: impl Fn(&PolicyKey) -> bool) -> Result<()> {
        let Some(known) = self.by_endpoint.get_mut(&endpoint) else { return Ok(()) };
        let gone: Vec<Key> = known.iter().filter(|key| !keep(key)).map(|key| pack(endpoint, key)).collect();
        self.map.remove_all(&gone)?;
        self.count -= gone.len().min(self.count);
        known.retain(|key| keep(key));
        if known.is_empty() {
            self.by_endpoint.remove(&endpoint);
        }
        Ok(())
    }

    fn grow(&mut self, pins: &Pins, needed: usize) -> Result<()> {
        let entries = u32::try_from((needed * 2).next_power_of_two()).unwrap_or(u32::MAX);
        let raw = RawMap::create(&spec(entries), None).on("create map", PIN)?;
        let larger: Map<Key, u32> = Map::new(raw, PIN)?;
        larger.insert_all(&self.map.entries()?)?;
        pins.replace(PIN, larger.as_fd())?;
        self.map = larger;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_abi::policy::Direction;

    use super::*;

    #[test]
    fn the_record_outlives_its_keeper_and_grows() {
        let pins = Pins::detached().unwrap();
        let keys = |n: u32| (0..n).map(|id| PolicyKey::new(id, 80, 6, Direction::Egress));
        let mut written = Written::open(&pins).unwrap();
        written.add(&pins, 7, keys(3)).unwrap();
        written.add(&pins, 9, keys(START)).unwrap();
        assert!(written.map.info().entries > START);
        drop(written);
        let mut written = Written::open(&pins).unwrap();
        assert_eq!((written.of(7).len(), written.of(9).len()), (3, START as usize));
        written.keep(9, |_| false).unwrap();
        written.keep(7, |key| key.identity == 1).unwrap();
        assert_eq!(written.endpoints(), [7]);
        assert_eq!(Written::of_endpoint(&pins, 7).unwrap().len(), 1);
        assert!(Written::of_endpoint(&pins, 9).unwrap().is_empty());
        assert_eq!(written.count, 1);
    }
}
