//! The pool of one prefix. Addresses are kept as distances from its first one; what is kept grows with what
//! was handed out, never with the prefix.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{PoolState, Standing, option_of};
use crate::error::PoolError;

/// Last owners that are remembered at most.
const REMEMBERED: usize = 65_536;

/// Addresses of one prefix.
#[derive(Clone, Debug)]
pub struct PrefixPool {
    prefix: IpNet,
    rest: Duration,
    reserved: BTreeMap<u128, String>,
    in_use: BTreeMap<u128, String>,
    /// Released addresses, until when they rest.
    resting: BTreeMap<u128, Instant>,
    /// The last owner of each free address that had one, and its place in `freed`.
    last_owner: BTreeMap<u128, (String, u64)>,
    /// The same the other way round.
    had: BTreeMap<String, BTreeSet<u128>>,
    /// Addresses of `last_owner` in the order in which they became free.
    freed: BTreeMap<u64, u128>,
    /// The next place in `freed`.
    place: u64,
    /// Where the search for a free address goes on.
    next: u128,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// All addresses of the prefix.
    pub total: u128,
    /// Handed out.
    pub in_use: u128,
    /// Released a moment ago.
    pub resting: u128,
    /// Never handed out.
    pub reserved: u128,
}

// === impl PoolUsage ===

impl PoolUsage {
    /// Addresses that could be handed out now.
    pub fn free(&self) -> u128 {
        self.total - self.in_use - self.resting - self.reserved
    }
}

// === impl PrefixPool ===

impl PrefixPool {
    /// See [`super::AddressPool::new`].
    ///
    /// # Errors
    /// When the prefix has less than four addresses.
    pub fn new(prefix: IpNet, rest: Duration) -> Result<Self, PoolError> {
        let prefix = prefix.trunc();
        let option = option_of(prefix);
        let bad = |reason| PoolError::BadPrefix { option, prefix, reason };
        if prefix.max_prefix_len() - prefix.prefix_len() < 2 {
            return Err(bad("it holds no address for a workload; use one of at least four addresses"));
        }
        if prefix.prefix_len() == 0 {
            return Err(bad("it is all there is; use a range of your own"));
        }
        let mut pool = Self {
            prefix,
            rest,
            reserved: BTreeMap::new(),
            in_use: BTreeMap::new(),
            resting: BTreeMap::new(),
            last_owner: BTreeMap::new(),
            had: BTreeMap::new(),
            freed: BTreeMap::new(),
            place: 0,
            next: 2,
        };
        let (first, last) = match prefix {
            IpNet::V4(_) => ("the network address", "the broadcast address"),
            IpNet::V6(_) => ("the anycast address of the routers", "the last address of the range"),
        };
        let end = pool.size() - 1;
        for (at, why) in [(0, first), (1, "the router address of this node"), (end, last)] {
            pool.reserved.insert(at, why.to_owned());
        }
        Ok(pool)
    }

    /// The prefix.
    pub fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// The router's address: the second one.
    pub fn router(&self) -> IpAddr {
        self.address(1)
    }

    /// How full the pool is.
    pub fn usage(&self, now: Instant) -> PoolUsage {
        PoolUsage {
            total: self.size(),
            in_use: self.in_use.len() as u128,
            resting: self.resting.values().filter(|until| now < **until).count() as u128,
            reserved: self.reserved.len() as u128,
        }
    }

    pub(super) fn allocate_next(&mut self, owner: &str, now: Instant) -> Result<IpAddr, PoolError> {
        self.wake(now);
        let again = self.had.get(owner).and_then(|had| had.first().copied());
        let at = again.or_else(|| self.find_fresh()).or_else(|| self.find_longest_free());
        let at = at.ok_or_else(|| self.used_up(now))?;
        self.take(at, owner);
        Ok(self.address(at))
    }

    pub(super) fn allocate(&mut self, address: IpAddr, owner: &str, now: Instant) -> Result<(), PoolError> {
        self.wake(now);
        let at = self.offset(address)?;
        if let Some(why) = self.reserved.get(&at) {
            return Err(PoolError::Reserved { address, why: why.clone() });
        }
        if let Some(holder) = self.in_use.get(&at) {
            let mine = holder == owner;
            return if mine { Ok(()) } else { Err(PoolError::InUse { address, owner: holder.clone() }) };
        }
        if let Some(until) = self.resting.get(&at)
            && self.last_owner.get(&at).is_none_or(|(last, _)| last != owner)
        {
            return Err(PoolError::Resting { address, left: until.saturating_duration_since(now) });
        }
        self.take(at, owner);
        Ok(())
    }

    pub(super) fn reserve(&mut self, address: IpAddr, why: &str) -> Result<(), PoolError> {
        let at = self.offset(address)?;
        if let Some(owner) = self.in_use.get(&at) {
            return Err(PoolError::InUse { address, owner: owner.clone() });
        }
        self.resting.remove(&at);
        self.forget(at);
        self.reserved.insert(at, why.to_owned());
        Ok(())
    }

    pub(super) fn release(&mut self, address: IpAddr, now: Instant) -> Option<String> {
        let at = self.offset(address).ok()?;
        let owner = self.in_use.remove(&at)?;
        self.resting.insert(at, now + self.rest);
        self.remember_last(at, &owner);
        Some(owner)
    }

    pub(super) fn retire(&mut self, address: IpAddr, now: Instant) -> Option<String> {
        let owner = self.release(address, now)?;
        self.forget(self.offset(address).ok()?);
        Some(owner)
    }

    pub(super) fn standing(&self, address: IpAddr) -> Option<Standing> {
        let at = self.offset(address).ok()?;
        Some(Standing {
            address,
            holder: self.in_use.get(&at).cloned(),
            last_owner: self.last_owner.get(&at).cloned(),
            rests_until: self.resting.get(&at).copied(),
        })
    }

    pub(super) fn put_back(&mut self, standing: Standing) -> Result<(), PoolError> {
        let Standing { address, holder, last_owner, rests_until } = standing;
        let at = self.offset(address)?;
        if let Some(owner) = self.in_use.get(&at) {
            return Err(PoolError::InUse { address, owner: owner.clone() });
        }
        self.resting.remove(&at);
        self.forget(at);
        if let Some(holder) = holder {
            self.in_use.insert(at, holder);
        }
        if let Some(until) = rests_until {
            self.resting.insert(at, until);
        }
        if let Some((owner, place)) = last_owner {
            self.remember_at(at, &owner, place);
        }
        Ok(())
    }

    pub(super) fn release_owner(&mut self, owner: &str, now: Instant) -> Vec<IpAddr> {
        let mine = self.in_use().filter(|(_, holder)| *holder == owner);
        let mine: Vec<IpAddr> = mine.map(|(address, _)| address).collect();
        for address in &mine {
            self.release(*address, now);
        }
        mine
    }

    pub(super) fn owner(&self, address: IpAddr) -> Option<&str> {
        let at = self.offset(address).ok()?;
        self.in_use.get(&at).map(String::as_str)
    }

    pub(super) fn in_use(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.in_use.iter().map(|(at, owner)| (self.address(*at), owner.as_str()))
    }

    pub(super) fn add_state(&self, state: &mut PoolState, now: Instant) {
        state.in_use.extend(self.in_use().map(|(address, owner)| (address, owner.to_owned())));
        let owners = self.freed.values().filter_map(|at| Some((*at, &self.last_owner.get(at)?.0)));
        state.last_owners.extend(owners.map(|(at, owner)| (self.address(at), owner.clone())));
        let resting = self.resting.iter().filter(|(_, until)| now < **until);
        state.resting.extend(resting.map(|(at, _)| self.address(*at)));
    }

    pub(super) fn remember(&mut self, address: IpAddr, owner: &str) {
        if let Ok(at) = self.offset(address)
            && !self.in_use.contains_key(&at)
            && !self.reserved.contains_key(&at)
        {
            self.remember_last(at, owner);
        }
    }

    pub(super) fn rest_again(&mut self, address: IpAddr, now: Instant) {
        if let Ok(at) = self.offset(address)
            && !self.in_use.contains_key(&at)
            && !self.reserved.contains_key(&at)
        {
            self.resting.insert(at, now + self.rest);
        }
    }

    fn take(&mut self, at: u128, owner: &str) {
        self.resting.remove(&at);
        self.forget(at);
        self.in_use.insert(at, owner.to_owned());
        // Addresses go round: what is free now is looked at again after all others.
        self.next = at + 1;
    }

    fn wake(&mut self, now: Instant) {
        self.resting.retain(|_, until| now < *until);
    }

    /// The next address, from where the last search ended, that nobody had.
    fn find_fresh(&self) -> Option<u128> {
        let end = self.size();
        let taken = |at: &u128| {
            self.in_use.contains_key(at)
                || self.reserved.contains_key(at)
                || self.resting.contains_key(at)
                || self.last_owner.contains_key(at)
        };
        // Each step past a taken address is one of finitely many that are kept.
        let from = if self.next < end { self.next } else { 0 };
        (from..end).chain(0..from).find(|at| !taken(at))
    }

    /// The address that is free for the longest time, although somebody may want it again.
    fn find_longest_free(&self) -> Option<u128> {
        self.freed.values().copied().find(|at| !self.resting.contains_key(at))
    }

    fn remember_last(&mut self, at: u128, owner: &str) {
        self.place += 1;
        self.remember_at(at, owner, self.place);
    }

    fn remember_at(&mut self, at: u128, owner: &str, place: u64) {
        self.forget(at);
        self.last_owner.insert(at, (owner.to_owned(), place));
        self.had.entry(owner.to_owned()).or_default().insert(at);
        self.freed.insert(place, at);
        if self.last_owner.len() > REMEMBERED
            && let Some((_, oldest)) = self.freed.pop_first()
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, at: u128) {
        let Some((owner, place)) = self.last_owner.remove(&at) else { return };
        self.freed.remove(&place);
        if let Some(had) = self.had.get_mut(&owner) {
            had.remove(&at);
            if had.is_empty() {
                self.had.remove(&owner);
            }
        }
    }

    fn used_up(&self, now: Instant) -> PoolError {
        let PoolUsage { total, in_use, resting, reserved } = self.usage(now);
        let (prefix, option) = (self.prefix, option_of(self.prefix));
        PoolError::UsedUp { prefix, in_use, resting, reserved, total, option }
    }

    fn size(&self) -> u128 {
        // The length is at least 1, so this fits.
        1u128 << (self.prefix.max_prefix_len() - self.prefix.prefix_len())
    }

    fn offset(&self, address: IpAddr) -> Result<u128, PoolError> {
        if !self.prefix.contains(&address) {
            return Err(PoolError::OutOfRange { address, prefix: self.prefix });
        }
        Ok(bits(address) - bits(self.prefix.network()))
    }

    fn address(&self, at: u128) -> IpAddr {
        match self.prefix {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).wrapping_add(at as u32))),
            IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from(u128::from(net.network()).wrapping_add(at))),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}
