//! What the agent has written into policy maps, so that what an operator has written can be told apart.
//!
//! The bytes of an entry are the same whoever wrote it, so this is kept beside them: in a pinned map, which
//! lives exactly as long as the policy maps do and needs no agent. A key is recorded before it is written and
//! struck off after it is removed, so the record may name too much for a moment, never too little.
//!
//! The map is an array whose memory the agent shares, so that recording a key is one store and no call. An element is
//! a page of one endpoint: a word that says whose it is, then keys.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    os::fd::AsFd,
    sync::atomic::Ordering,
};

use villus_abi::{PolicyKey, bytes_of, from_bytes};

use crate::{
    error::{Context, Result},
    map::Map,
    pins::Pins,
    sys::{Kind, MMAPABLE, MapSpec, NO_PREALLOC, RawMap, SharedWords},
};

/// Pin of the record.
pub(crate) const PIN: &str = "villus_written_v2";
/// Pin of the record of earlier versions, a hash of keys.
const BEFORE: &str = "villus_written_v1";
/// Words of a page.
const PAGE: u32 = 512;
/// Pages to begin with; there will be more.
const START: u32 = 64;
/// Set in a page's first word while it is an endpoint's; the low bits are the endpoint's id.
const TAKEN: u64 = 1 << 32;
/// Set in the direction of a recorded key, so that no key is the word of a free place.
const RECORDED: u8 = 0x80;

pub(crate) const fn spec(pages: u32) -> MapSpec<'static> {
    MapSpec { name: PIN, kind: Kind::Array, key: 4, value: PAGE * 8, entries: pages, flags: MMAPABLE }
}

const fn spec_before() -> MapSpec<'static> {
    MapSpec { name: BEFORE, kind: Kind::Hash, key: 16, value: 4, entries: 1, flags: NO_PREALLOC }
}

fn pack(key: &PolicyKey) -> u64 {
    let marked = PolicyKey { direction: key.direction | RECORDED, ..*key };
    bytes_of(&marked).try_into().map_or(0, u64::from_ne_bytes)
}

/// Where a key stands in the index: what is about one identity stands together.
fn order(key: &PolicyKey) -> u64 {
    pack(key).rotate_left(u32::BITS)
}

fn unpack(word: u64) -> Option<PolicyKey> {
    let key: PolicyKey = from_bytes(&word.to_ne_bytes())?;
    (key.direction & RECORDED != 0).then_some(PolicyKey { direction: key.direction & !RECORDED, ..key })
}

/// The record, with an index of it in memory.
#[derive(Debug)]
pub(crate) struct Written {
    words: SharedWords,
    by_endpoint: BTreeMap<u16, Keys>,
    /// Pages that are nobody's.
    free: Vec<u32>,
}

/// What is recorded of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// Keys by their [`order`] and their places, counted in words.
    places: BTreeMap<u64, u32>,
    /// Places of its pages that are free.
    free: Vec<u32>,
    pages: Vec<u32>,
}

impl Keys {
    pub(crate) fn contains(&self, key: &PolicyKey) -> bool {
        self.places.contains_key(&order(key))
    }

    fn keys(&self) -> impl Iterator<Item = PolicyKey> + '_ {
        self.places.keys().filter_map(|order| unpack(order.rotate_right(u32::BITS)))
    }
}

impl Written {
    /// Opens it, making it if there is none.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        if let Some(raw) = pins.map_like(PIN, &spec(START))? {
            return Self::load(&raw);
        }
        let before = before(pins)?;
        let raw = RawMap::create(&spec(START), None).on("create map", PIN)?;
        let mut this = Self::load(&raw)?;
        pins.put(PIN, raw.as_fd())?;
        for (endpoint, key) in before {
            this.add(pins, endpoint, [key].into_iter())?;
        }
        pins.remove(BEFORE)?;
        Ok(this)
    }

    /// What is recorded about one endpoint, for readers beside the agent.
    pub(crate) fn of_endpoint(pins: &Pins, endpoint: u16) -> Result<BTreeSet<PolicyKey>> {
        let Some(raw) = pins.map_like(PIN, &spec(START))? else {
            let all = before(pins)?.into_iter();
            return Ok(all.filter(|(of, _)| *of == endpoint).map(|(_, key)| key).collect());
        };
        let words = SharedWords::new(&raw).on("map into memory", PIN)?;
        let pages = words.words().chunks(PAGE as usize);
        let own = pages.filter_map(|page| {
            let (owner, keys) = page.split_first()?;
            (owner.load(Ordering::Acquire) == TAKEN | u64::from(endpoint)).then_some(keys)
        });
        Ok(own.flatten().filter_map(|word| unpack(word.load(Ordering::Acquire))).collect())
    }

    fn load(raw: &RawMap) -> Result<Self> {
        let words = SharedWords::new(raw).on("map into memory", PIN)?;
        let mut this = Self { words, by_endpoint: BTreeMap::new(), free: Vec::new() };
        // The last are taken first.
        for page in (0..raw.info().entries).rev() {
            this.load_page(page);
        }
        Ok(this)
    }

    fn load_page(&mut self, page: u32) {
        let first = page * PAGE;
        let owner = self.get(first);
        if owner & TAKEN == 0 {
            self.free.push(page);
            return;
        }
        let words = self.words.words();
        let keys = self.by_endpoint.entry(owner as u16).or_default();
        keys.pages.push(page);
        for at in (first + 1..first + PAGE).rev() {
            let word = words.get(at as usize).map_or(0, |word| word.load(Ordering::Acquire));
            match unpack(word) {
                Some(key) => drop(keys.places.insert(order(&key), at)),
                None => keys.free.push(at),
            }
        }
    }

    fn get(&self, at: u32) -> u64 {
        self.words.words().get(at as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&self, at: u32, word: u64) {
        if let Some(place) = self.words.words().get(at as usize) {
            place.store(word, Ordering::Release);
        }
    }

    pub(crate) fn of(&self, endpoint: u16) -> &Keys {
        const NONE: &Keys = &Keys { places: BTreeMap::new(), free: Vec::new(), pages: Vec::new() };
        self.by_endpoint.get(&endpoint).unwrap_or(NONE)
    }

    pub(crate) fn endpoints(&self) -> Vec<u16> {
        self.by_endpoint.keys().copied().collect()
    }

    pub(crate) fn contains(&self, endpoint: u16, key: &PolicyKey) -> bool {
        self.of(endpoint).contains(key)
    }

    /// Records keys that are about to be written; returns those that were recorded before.
    pub(crate) fn add(
        &mut self,
        pins: &Pins,
        endpoint: u16,
        keys: impl Iterator<Item = PolicyKey>,
    ) -> Result<BTreeSet<PolicyKey>> {
        let mut before = BTreeSet::new();
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            let (own, words) = (self.by_endpoint.entry(endpoint).or_default(), self.words.words());
            while let Some(key) = keys.next_if(|key| !own.free.is_empty() || own.contains(key)) {
                match own.places.entry(order(&key)) {
                    Entry::Occupied(_) => drop(before.insert(key)),
                    Entry::Vacant(vacant) => {
                        let Some(at) = own.free.pop() else { continue };
                        vacant.insert(at);
                        if let Some(place) = words.get(at as usize) {
                            place.store(pack(&key), Ordering::Release);
                        }
                    }
                }
            }
            if keys.peek().is_some() {
                self.take_page(pins, endpoint)?;
            }
        }
        Ok(before)
    }

    /// One more page for an endpoint.
    fn take_page(&mut self, pins: &Pins, endpoint: u16) -> Result<()> {
        if self.free.is_empty() {
            self.grow(pins)?;
        }
        let Some(page) = self.free.pop() else { return Ok(()) };
        let first = page * PAGE;
        self.set(first, TAKEN | u64::from(endpoint));
        let keys = self.by_endpoint.entry(endpoint).or_default();
        keys.pages.push(page);
        keys.free.extend((first + 1..first + PAGE).rev());
        Ok(())
    }

    /// Strikes keys off; those that are not recorded are no error.
    pub(crate) fn remove(&mut self, endpoint: u16, keys: impl Iterator<Item = PolicyKey>) {
        let Some(own) = self.by_endpoint.get_mut(&endpoint) else { return };
        let words = self.words.words();
        for key in keys {
            let Some(at) = own.places.remove(&order(&key)) else { continue };
            own.free.push(at);
            if let Some(place) = words.get(at as usize) {
                place.store(0, Ordering::Release);
            }
        }
        self.release_if_empty(endpoint);
    }

    /// Strikes off what is not to be kept.
    pub(crate) fn keep(&mut self, endpoint: u16, keep: impl Fn(&PolicyKey) -> bool) {
        let gone: Vec<PolicyKey> = self.of(endpoint).keys().filter(|key| !keep(key)).collect();
        self.remove(endpoint, gone.into_iter());
    }

    /// Pages of an endpoint of which nothing is recorded are anybody's.
    fn release_if_empty(&mut self, endpoint: u16) {
        if !self.of(endpoint).places.is_empty() {
            return;
        }
        let Some(keys) = self.by_endpoint.remove(&endpoint) else { return };
        for page in &keys.pages {
            self.set(page * PAGE, 0);
        }
        self.free.extend(keys.pages);
    }

    /// Twice as many pages. Who reads meanwhile sees the old ones, which hold the same.
    fn grow(&mut self, pins: &Pins) -> Result<()> {
        let before = self.words.len() as u32 / PAGE;
        let after = before.saturating_mul(2);
        let raw = RawMap::create(&spec(after), None).on("create map", PIN)?;
        let larger = SharedWords::new(&raw).on("map into memory", PIN)?;
        for (to, from) in larger.words().iter().zip(self.words.words()) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
        pins.replace(PIN, raw.as_fd())?;
        self.words = larger;
        self.free.extend((before..after).rev());
        Ok(())
    }
}

/// What an agent of an earlier version has recorded, if one has.
fn before(pins: &Pins) -> Result<Vec<(u16, PolicyKey)>> {
    let Some(raw) = pins.map_like(BEFORE, &spec_before())? else { return Ok(Vec::new()) };
    // Endpoint id, zeros, policy key, zeros.
    let map: Map<[u8; 16], u32> = Map::new(raw, BEFORE)?;
    let unpack = |packed: [u8; 16]| {
        Some((u16::from_le_bytes([packed[0], packed[1]]), from_bytes(packed.get(4..12)?)?))
    };
    Ok(map.entries()?.into_iter().filter_map(|(packed, _)| unpack(packed)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_abi::policy::Direction;

    use super::*;

    fn keys(n: u32) -> impl Iterator<Item = PolicyKey> {
        (0..n).map(|id| PolicyKey::new(id, 80, 6, Direction::Egress))
    }

    #[test]
    fn the_record_outlives_its_keeper_and_grows() {
        let pins = Pins::detached().unwrap();
        let many = START * PAGE;
        let mut written = Written::open(&pins).unwrap();
        written.add(&pins, 7, keys(3)).unwrap();
        written.add(&pins, 9, keys(many)).unwrap();
        written.add(&pins, 9, keys(many)).unwrap();
        // The key of everything is all zeros.
        written.add(&pins, 7, [PolicyKey::default()].into_iter()).unwrap();
        drop(written);
        let mut written = Written::open(&pins).unwrap();
        assert_eq!((written.of(7).places.len(), written.of(9).places.len()), (4, many as usize));
        assert!(written.words.len() > many as usize);
        written.keep(9, |_| false);
        written.keep(7, |key| key.identity == 1);
        assert_eq!(written.endpoints(), [7]);
        assert_eq!(Written::of_endpoint(&pins, 7).unwrap(), keys(2).skip(1).collect());
        assert!(Written::of_endpoint(&pins, 9).unwrap().is_empty());
        assert_eq!(written.free.len() + 1, written.words.len() / PAGE as usize);
    }

    #[test]
    fn places_are_used_again() {
        let pins = Pins::detached().unwrap();
        let mut written = Written::open(&pins).unwrap();
        let size = written.words.len();
        for round in 0..200_u16 {
            written.add(&pins, round % 3, keys(2000)).unwrap();
            written.remove(round % 3, keys(1500));
        }
        assert_eq!(written.words.len(), size);
        for endpoint in 0..3 {
            assert_eq!(Written::of_endpoint(&pins, endpoint).unwrap(), keys(2000).skip(1500).collect());
        }
    }

    #[test]
    fn what_an_earlier_version_has_recorded_is_taken_over() {
        let pins = Pins::detached().unwrap();
        let (raw, _) = pins.open_or_create(BEFORE, &MapSpec { entries: 16, ..spec_before() }, None).unwrap();
        let map: Map<[u8; 16], u32> = Map::new(raw, BEFORE).unwrap();
        let key = PolicyKey::new(298_951, 80, 6, Direction::Ingress);
        let mut packed = [0; 16];
        packed[..2].copy_from_slice(&7_u16.to_le_bytes());
        packed[4..12].copy_from_slice(bytes_of(&key));
        map.insert(&packed, &0).unwrap();
        assert_eq!(Written::of_endpoint(&pins, 7).unwrap(), [key].into());
        assert!(Written::open(&pins).unwrap().contains(7, &key));
        assert_eq!(pins.list().unwrap(), [PIN]);
        assert!(Written::open(&pins).unwrap().contains(7, &key));
    }
}
