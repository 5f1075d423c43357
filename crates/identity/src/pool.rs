//! Addresses for workloads, from the node's prefixes.

mod prefix;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use self::prefix::{PoolUsage, PrefixPool};
use crate::error::PoolError;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The addresses of this node's workloads: a pool for each family that is switched on.
#[derive(Clone, Debug)]
pub struct AddressPool {
    v4: Option<PrefixPool>,
    v6: Option<PrefixPool>,
}

/// How an address stands with its pool: who has it, who had it, until when it rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    address: IpAddr,
    holder: Option<String>,
    last_owner: Option<(String, u64)>,
    rests_until: Option<Instant>,
}

/// What a restart should know of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// Addresses in use, with their owners.
    pub in_use: Vec<(IpAddr, String)>,
    /// Addresses that are free, with their last owners, the longest free first.
    pub last_owners: Vec<(IpAddr, String)>,
    /// Addresses that were resting.
    pub resting: Vec<IpAddr>,
}

// === impl Family ===

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The option that gives a node a prefix of this family.
    pub fn option(self) -> &'static str {
        match self {
            Self::V4 => "ipv4-range",
            Self::V6 => "ipv6-range",
        }
    }
}

// === impl Standing ===

impl Standing {
    /// Whether somebody has the address.
    pub fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

// === impl AddressPool ===

impl AddressPool {
    /// Pools of these prefixes. Of each, the first address (the network's, or the anycast address of its
    /// routers), the second (this node's router) and the last (the broadcast address) are reserved. An address
    /// rests for `rest` after it was released.
    ///
    /// # Errors
    /// When a prefix is too small to hold an address for a workload.
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>, rest: Duration) -> Result<Self, PoolError> {
        let v4 = v4.map(|net| PrefixPool::new(net.into(), rest)).transpose()?;
        let v6 = v6.map(|net| PrefixPool::new(net.into(), rest)).transpose()?;
        Ok(Self { v4, v6 })
    }

    /// The pool of a family.
    ///
    /// # Errors
    /// When there is none.
    pub fn family(&self, family: Family) -> Result<&PrefixPool, PoolError> {
        let pool = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        pool.as_ref().ok_or_else(|| no_pool(family))
    }

    fn family_mut(&mut self, family: Family) -> Result<&mut PrefixPool, PoolError> {
        let pool = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        pool.as_mut().ok_or_else(|| no_pool(family))
    }

    /// The families that have a pool.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.as_ref().map(|_| Family::V4);
        v4.into_iter().chain(self.v6.as_ref().map(|_| Family::V6))
    }

    /// The router's address of a family: the gateway of all workloads.
    pub fn router(&self, family: Family) -> Option<IpAddr> {
        self.family(family).ok().map(PrefixPool::router)
    }

    /// An address for `owner`: one it had before if that is free, else the next one that nobody had for long.
    /// One owner may have many.
    ///
    /// # Errors
    /// When the pool is used up or there is none.
    pub fn allocate_next(&mut self, family: Family, owner: &str, now: Instant) -> Result<IpAddr, PoolError> {
        self.family_mut(family)?.allocate_next(owner, now)
    }

    /// This very address for `owner`. That it has it already is fine.
    ///
    /// # Errors
    /// When it is somebody else's, rests after somebody else, is reserved or of another prefix.
    pub fn allocate(&mut self, address: IpAddr, owner: &str, now: Instant) -> Result<(), PoolError> {
        self.family_mut(Family::of(address))?.allocate(address, owner, now)
    }

    /// Keeps an address from workloads for good, `why` says what it is. In use already, it stays in use.
    ///
    /// # Errors
    /// When it is in use, or of another prefix.
    pub fn reserve(&mut self, address: IpAddr, why: &str) -> Result<(), PoolError> {
        self.family_mut(Family::of(address))?.reserve(address, why)
    }

    /// Gives an address back; it rests from `now` on, for everybody but its owner. Returns who had it; `None` if nobody
    /// did.
    pub fn release(&mut self, address: IpAddr, now: Instant) -> Option<String> {
        self.family_mut(Family::of(address)).ok()?.release(address, now)
    }

    /// Gives an address back that its owner will not want again: it rests for everybody. Returns who had it; `None` if
    /// nobody did.
    pub fn retire(&mut self, address: IpAddr, now: Instant) -> Option<String> {
        self.family_mut(Family::of(address)).ok()?.retire(address, now)
    }

    /// How an address stands, for [`AddressPool::put_back`]; `None` if it is of no pool.
    pub fn standing(&self, address: IpAddr) -> Option<Standing> {
        self.family(Family::of(address)).ok()?.standing(address)
    }

    /// An address that was given back stands as it did before it was taken: it does not rest for a use that came to
    /// nothing.
    ///
    /// # Errors
    /// When somebody has it.
    pub fn put_back(&mut self, standing: Standing) -> Result<(), PoolError> {
        self.family_mut(Family::of(standing.address))?.put_back(standing)
    }

    /// Gives all addresses of an owner back.
    pub fn release_owner(&mut self, owner: &str, now: Instant) -> Vec<IpAddr> {
        let pools = self.v4.iter_mut().chain(self.v6.iter_mut());
        pools.flat_map(|pool| pool.release_owner(owner, now)).collect()
    }

    /// Who has an address.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.family(Family::of(address)).ok()?.owner(address)
    }

    /// All addresses in use, with their owners.
    pub fn in_use(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.v4.iter().chain(&self.v6).flat_map(PrefixPool::in_use)
    }

    /// What a restart should know.
    pub fn state(&self, now: Instant) -> PoolState {
        let mut state = PoolState::default();
        for pool in self.v4.iter().chain(&self.v6) {
            pool.add_state(&mut state, now);
        }
        state
    }

    /// Takes up what was known before a restart; addresses that were resting rest from `now` on. Returns what
    /// could not be taken up, and why: a prefix may have changed.
    pub fn restore(&mut self, state: &PoolState, now: Instant) -> Vec<(IpAddr, PoolError)> {
        let mut refused = Vec::new();
        for (address, owner) in &state.in_use {
            if let Err(error) = self.allocate(*address, owner, now) {
                refused.push((*address, error));
            }
        }
        for (address, owner) in &state.last_owners {
            if let Ok(pool) = self.family_mut(Family::of(*address)) {
                pool.remember(*address, owner);
            }
        }
        for address in &state.resting {
            if let Ok(pool) = self.family_mut(Family::of(*address)) {
                pool.rest_again(*address, now);
            }
        }
        refused
    }
}

fn no_pool(family: Family) -> PoolError {
    PoolError::NoPool { family: family.name(), option: family.option() }
}

fn option_of(prefix: IpNet) -> &'static str {
    Family::of(prefix.addr()).option()
}
