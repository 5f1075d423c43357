//! Masquerading by our programs: what is lent to whom, and clearing what has expired.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use villus_abi::{
    Nat, NatKey4, NatKey6,
    nat::{NAT_IN, NAT_OUT},
    time::{self, Tick},
};

use crate::{
    error::Result,
    flows::{is_expired, v4, v6},
    maps::{Maps, NatMaps},
};

/// How long half a mapping is left alone: the other half may be about to be written.
const YOUNG_SECS: u32 = 5;

/// The key of a masqueraded packet of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NatKey {
    /// IPv4.
    V4(NatKey4),
    /// IPv6.
    V6(NatKey6),
}

impl NatKey {
    /// Source of the packet. Of an ICMP echo the port is its id or 0.
    #[must_use]
    pub fn src(&self) -> SocketAddr {
        match self {
            Self::V4(key) => (v4(key.src), u16::from_be(key.sport)).into(),
            Self::V6(key) => (v6(key.src), u16::from_be(key.sport)).into(),
        }
    }

    /// Destination of the packet.
    #[must_use]
    pub fn dst(&self) -> SocketAddr {
        match self {
            Self::V4(key) => (v4(key.dst), u16::from_be(key.dport)).into(),
            Self::V6(key) => (v6(key.dst), u16::from_be(key.dport)).into(),
        }
    }

    /// IP protocol.
    #[must_use]
    pub const fn proto(&self) -> u8 {
        match self {
            Self::V4(key) => key.proto,
            Self::V6(key) => key.proto,
        }
    }

    /// Whether it is of a packet on its way out; else of an answer.
    #[must_use]
    pub const fn is_out(&self) -> bool {
        let direction = match self {
            Self::V4(key) => key.direction,
            Self::V6(key) => key.direction,
        };
        direction == NAT_OUT
    }

    /// What the packet's source (on its way out) or destination (of an answer) becomes.
    #[must_use]
    pub fn becomes(&self, nat: &Nat) -> SocketAddr {
        let address = match self {
            Self::V4(_) => v4(nat.addr[0]),
            Self::V6(_) => v6(nat.addr),
        };
        (address, u16::from_be(nat.port)).into()
    }

    /// The other half of its mapping.
    #[must_use]
    pub fn other(&self, nat: &Nat) -> Self {
        let out = self.is_out();
        let direction = if out { NAT_IN } else { NAT_OUT };
        match self {
            // The answer to what it becomes.
            Self::V4(key) if out => Self::V4(NatKey4 {
                src: key.dst,
                dst: nat.addr[0],
                sport: key.dport,
                dport: nat.port,
                direction,
                ..*key
            }),
            Self::V4(key) => Self::V4(NatKey4 {
                src: nat.addr[0],
                dst: key.src,
                sport: nat.port,
                dport: key.sport,
                direction,
                ..*key
            }),
            Self::V6(key) if out => Self::V6(NatKey6 {
                src: key.dst,
                dst: nat.addr,
                sport: key.dport,
                dport: nat.port,
                direction,
                ..*key
            }),
            Self::V6(key) => Self::V6(NatKey6 {
                src: nat.addr,
                dst: key.src,
                sport: nat.port,
                dport: key.sport,
                direction,
                ..*key
            }),
        }
    }
}

/// What clearing the mappings found, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NatCleared {
    /// Entries that live.
    pub alive: usize,
    /// Entries that had expired, or had lost their other half, and are gone.
    pub gone: usize,
}

/// The mappings of masqueraded packets.
#[derive(Clone, Debug)]
pub struct Mappings {
    maps: Arc<Maps>,
}

impl Mappings {
    /// The mappings in `maps`: none where our programs masquerade nothing.
    #[must_use]
    pub const fn new(maps: Arc<Maps>) -> Self {
        Self { maps }
    }

    fn maps(&self) -> Option<&NatMaps> {
        self.maps.nat.as_ref()
    }

    /// All entries, those that have expired and are not yet cleared included.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn list(&self) -> Result<Vec<(NatKey, Nat)>> {
        let Some(maps) = self.maps() else { return Ok(Vec::new()) };
        let v4 = maps.nat4.entries()?.into_iter().map(|(key, nat)| (NatKey::V4(key), nat));
        let v6 = maps.nat6.entries()?.into_iter().map(|(key, nat)| (NatKey::V6(key), nat));
        Ok(v4.chain(v6).collect())
    }

    /// The entry under a key.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn get(&self, key: &NatKey) -> Result<Option<Nat>> {
        let Some(maps) = self.maps() else { return Ok(None) };
        match key {
            NatKey::V4(key) => maps.nat4.get(key),
            NatKey::V6(key) => maps.nat6.get(key),
        }
    }

    /// Removes an entry; says whether it was there.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn remove(&self, key: &NatKey) -> Result<bool> {
        let Some(maps) = self.maps() else { return Ok(false) };
        match key {
            NatKey::V4(key) => maps.nat4.remove(key),
            NatKey::V6(key) => maps.nat6.remove(key),
        }
    }

    /// Removes every entry; says how many there were.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn flush(&self) -> Result<usize> {
        let Some(maps) = self.maps() else { return Ok(0) };
        Ok(maps.nat4.remove_if(|_, _| true)? + maps.nat6.remove_if(|_, _| true)?)
    }

    /// Removes the mappings of addresses before they go to somebody else; says how many entries.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn purge(&self, addresses: &[IpAddr]) -> Result<usize> {
        let mut removed = 0;
        for (key, nat) in self.list()? {
            let owner = if key.is_out() { key.src() } else { key.becomes(&nat) };
            if addresses.contains(&owner.ip()) {
                removed += usize::from(self.remove(&key)?);
            }
        }
        Ok(removed)
    }

    /// Removes the mappings that lend an address which the node has no more; says how many entries.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn end_lent(&self, has: impl Fn(IpAddr) -> bool) -> Result<usize> {
        let mut removed = 0;
        for (key, nat) in self.list()? {
            let lent = if key.is_out() { key.becomes(&nat) } else { key.dst() };
            if !has(lent.ip()) {
                removed += usize::from(self.remove(&key)?);
            }
        }
        Ok(removed)
    }

    /// Removes what has expired, whole mappings at a time, and halves that have lost the other one for a while.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn clear_expired(&self, now: Tick) -> Result<NatCleared> {
        let all: HashMap<NatKey, Nat> = self.list()?.into_iter().collect();
        let mut doomed: HashSet<NatKey> = HashSet::new();
        for (key, nat) in &all {
            let other = key.other(nat);
            if key.is_out() {
                if is_expired(nat.expires, now) {
                    doomed.insert(*key);
                    doomed.extend(all.get(&other).filter(|back| other.other(back) == *key).map(|_| other));
                }
            } else {
                let whole = all.get(&other).is_some_and(|of| other.other(of) == *key);
                let old = now.wrapping_sub(nat.created) > time::from_secs(YOUNG_SECS);
                if !whole && old {
                    doomed.insert(*key);
                }
            }
        }
        let mut cleared = NatCleared { alive: all.len() - doomed.len(), gone: 0 };
        for key in doomed {
            // A packet may have used it since it was read.
            let out = if key.is_out() { Some(key) } else { all.get(&key).map(|nat| key.other(nat)) };
            let revived = match out {
                Some(out) => self.get(&out)?.is_some_and(|nat| {
                    !is_expired(nat.expires, now) && (out == key || out.other(&nat) == key)
                }),
                None => false,
            };
            if revived {
                cleared.alive += 1;
            } else {
                cleared.gone += usize::from(self.remove(&key)?);
            }
        }
        Ok(cleared)
    }
}
