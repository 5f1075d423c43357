//! An ipcache in memory: prefixes, of which the longest that covers an address answers.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use villus_abi::{IpcacheKey, IpcacheValue, ipcache::STATIC_BITS};

/// Prefixes of both families.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    rows: HashMap<IpcacheKey, IpcacheValue>,
    lengths: [BTreeSet<u32>; 2],
}

impl Prefixes {
    /// Adds or replaces a prefix. Bits of its address beyond its length do not count.
    pub fn insert(&mut self, key: IpcacheKey, value: IpcacheValue) {
        let len = key.prefixlen.saturating_sub(STATIC_BITS);
        self.lengths[family(&key)].insert(len);
        self.rows.insert(cut(&key, len), value);
    }

    /// Adds or replaces a prefix of an address.
    pub fn insert_prefix(&mut self, address: IpAddr, len: u8, value: IpcacheValue) {
        self.insert(IpcacheKey { prefixlen: STATIC_BITS + u32::from(len), ..key_of(address) }, value);
    }

    /// Removes a prefix; says whether it was there.
    pub fn remove(&mut self, key: &IpcacheKey) -> bool {
        self.rows.remove(&cut(key, key.prefixlen.saturating_sub(STATIC_BITS))).is_some()
    }

    /// The longest prefix that covers an address, and its value.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<(IpcacheKey, IpcacheValue)> {
        let full = key_of(address);
        self.lengths[family(&full)].iter().rev().find_map(|len| {
            let key = cut(&full, *len);
            self.rows.get(&key).map(|value| (key, *value))
        })
    }

    /// All prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (&IpcacheKey, &IpcacheValue)> {
        self.rows.iter()
    }
}

/// The address and length of a key's prefix.
#[must_use]
pub fn prefix(key: &IpcacheKey) -> (IpAddr, u8) {
    let bytes = key.addr;
    let address = match family(key) {
        0 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        _ => IpAddr::from(bytes),
    };
    (address, u8::try_from(key.prefixlen.saturating_sub(STATIC_BITS)).unwrap_or(u8::MAX))
}

/// The key of a whole address.
fn key_of(address: IpAddr) -> IpcacheKey {
    match address {
        IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), 32),
        IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), 128),
    }
}

fn family(key: &IpcacheKey) -> usize {
    usize::from(key.family == villus_abi::ipcache::FAMILY_V6)
}

/// The prefix of this length.
fn cut(key: &IpcacheKey, len: u32) -> IpcacheKey {
    let keep = u128::MAX.checked_shl(128_u32.saturating_sub(len)).unwrap_or(0);
    let addr = (u128::from_be_bytes(key.addr) & keep).to_be_bytes();
    IpcacheKey { prefixlen: STATIC_BITS + len, addr, ..*key }
}
