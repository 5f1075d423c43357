//! The connection table: list it, take flows out of it, clear what has expired.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use villus_abi::{
    Bytes, Flow, FlowKey4, FlowKey6,
    flow::FLOW_HI_OPENED,
    time::{self, Tick},
};

use crate::{
    error::{Context, Result},
    map::{Map, front, scan},
    maps::Maps,
};

/// Nanoseconds of the clock that programs read.
pub(crate) fn now_ns() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock is never negative.
    let (secs, nanos) = (at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs());
    secs.wrapping_mul(1_000_000_000).wrapping_add(nanos)
}

/// Now, on the clock of the path.
#[must_use]
pub fn now() -> Tick {
    time::from_ns(now_ns())
}

/// Whether something that lasts until `expires` is over, by the path's own rule.
#[must_use]
pub const fn is_expired(expires: Tick, now: Tick) -> bool {
    expires.wrapping_sub(now).cast_signed() <= 0
}

/// The key of a flow of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

impl FlowKey {
    /// The end with the smaller address and port. Of ICMP the port is the echo id or 0.
    #[must_use]
    pub fn lo(&self) -> SocketAddr {
        match self {
            Self::V4(key) => (v4(key.lo), u16::from_be(key.lo_port)).into(),
            Self::V6(key) => (v6(key.lo), u16::from_be(key.lo_port)).into(),
        }
    }

    /// The other end.
    #[must_use]
    pub fn hi(&self) -> SocketAddr {
        match self {
            Self::V4(key) => (v4(key.hi), u16::from_be(key.hi_port)).into(),
            Self::V6(key) => (v6(key.hi), u16::from_be(key.hi_port)).into(),
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

    /// The end that opened the flow, then the other one.
    #[must_use]
    pub fn ends(&self, flow: &Flow) -> (SocketAddr, SocketAddr) {
        if flow.flags & FLOW_HI_OPENED == 0 { (self.lo(), self.hi()) } else { (self.hi(), self.lo()) }
    }

    /// Whether an address is one of the ends.
    #[must_use]
    pub fn involves(&self, address: IpAddr) -> bool {
        self.lo().ip() == address || self.hi().ip() == address
    }
}

/// An IPv4 address of a map, network order in memory.
pub(crate) fn v4(address: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes()))
}

/// An IPv6 address of a map, network order in memory.
pub(crate) fn v6(address: [u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_mut(4).zip(address) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

/// What clearing the table found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cleared {
    /// Flows that live.
    pub alive: usize,
    /// Flows that had expired and are gone.
    pub expired: usize,
    /// Memories of fragmented datagrams that had expired and are gone.
    pub fragments: usize,
}

/// The flows of all four maps.
#[derive(Clone, Debug)]
pub struct Flows {
    maps: Arc<Maps>,
}

impl Flows {
    /// The flows in `maps`.
    #[must_use]
    pub const fn new(maps: Arc<Maps>) -> Self {
        Self { maps }
    }

    fn v4(&self) -> [&Map<FlowKey4, Flow>; 2] {
        [&self.maps.ct4_tcp, &self.maps.ct4_any]
    }

    fn v6(&self) -> [&Map<FlowKey6, Flow>; 2] {
        [&self.maps.ct6_tcp, &self.maps.ct6_any]
    }

    /// All flows, those that have expired and are not yet cleared included.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn list(&self) -> Result<Vec<(FlowKey, Flow)>> {
        let mut all = Vec::new();
        for map in self.v4() {
            all.extend(map.entries()?.into_iter().map(|(key, flow)| (FlowKey::V4(key), flow)));
        }
        for map in self.v6() {
            all.extend(map.entries()?.into_iter().map(|(key, flow)| (FlowKey::V6(key), flow)));
        }
        Ok(all)
    }

    /// Removes a flow; says whether it was there.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn remove(&self, key: &FlowKey) -> Result<bool> {
        match key {
            FlowKey::V4(at) => self.v4()[which(key)].remove(at),
            FlowKey::V6(at) => self.v6()[which(key)].remove(at),
        }
    }

    /// Removes every flow that `doomed` picks; says how many.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn remove_if(&self, mut doomed: impl FnMut(&FlowKey, &Flow) -> bool) -> Result<usize> {
        let mut removed = 0;
        for map in self.v4() {
            removed += map.remove_if(|key, flow| doomed(&FlowKey::V4(*key), flow))?;
        }
        for map in self.v6() {
            removed += map.remove_if(|key, flow| doomed(&FlowKey::V6(*key), flow))?;
        }
        Ok(removed)
    }

    /// The flows that `wanted` picks.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn find(&self, mut wanted: impl FnMut(&FlowKey, &Flow) -> bool) -> Result<Vec<(FlowKey, Flow)>> {
        let mut found = self.list()?;
        found.retain(|(key, flow)| wanted(key, flow));
        Ok(found)
    }

    /// The flow under a key, expired or not.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn get(&self, key: &FlowKey) -> Result<Option<Flow>> {
        match key {
            FlowKey::V4(at) => self.v4()[which(key)].get(at),
            FlowKey::V6(at) => self.v6()[which(key)].get(at),
        }
    }

    /// Removes every flow; says how many there were.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn flush(&self) -> Result<usize> {
        self.remove_if(|_, _| true)
    }

    /// Removes the flows of addresses, and what is remembered of their fragmented datagrams, before they go to somebody
    /// else; says how many flows.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn purge(&self, addresses: &[IpAddr]) -> Result<usize> {
        let ours = |address: IpAddr| addresses.contains(&address);
        self.maps.frags4.remove_if(|key, _| ours(v4(key.src)) || ours(v4(key.dst)))?;
        self.maps.frags6.remove_if(|key, _| ours(v6(key.src)) || ours(v6(key.dst)))?;
        self.remove_if(|key, _| ours(key.lo().ip()) || ours(key.hi().ip()))
    }

    /// Removes the flows that a local endpoint opened or accepted; says how many.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn remove_of_endpoint(&self, endpoint: u16) -> Result<usize> {
        self.remove_if(|_, flow| flow.src_endpoint == endpoint || flow.dst_endpoint == endpoint)
    }

    /// Removes what has expired. A flow that a packet brings back to life meanwhile stays.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn clear_expired(&self, now: Tick) -> Result<Cleared> {
        let mut cleared = Cleared::default();
        for map in self.v4() {
            clear(map, now, &mut cleared)?;
        }
        for map in self.v6() {
            clear(map, now, &mut cleared)?;
        }
        cleared.fragments += self.maps.frags4.remove_if(|_, ports| is_expired(ports.expires, now))?;
        cleared.fragments += self.maps.frags6.remove_if(|_, ports| is_expired(ports.expires, now))?;
        Ok(cleared)
    }
}

/// Which map of its family holds a flow.
fn which(key: &FlowKey) -> usize {
    const TCP: u8 = 6;
    usize::from(key.proto() != TCP)
}

fn clear<K: Bytes>(map: &Map<K, Flow>, now: Tick, cleared: &mut Cleared) -> Result<()> {
    let mut doomed: Vec<K> = Vec::new();
    scan(map.raw(), |key, flow| {
        if let (Some(key), Some(flow)) = (villus_abi::from_bytes(key), front::<Flow>(flow)) {
            if is_expired(flow.expires, now) { doomed.push(key) } else { cleared.alive += 1 }
        }
    })
    .on("list", map.name())?;
    // Between listing and removing lie milliseconds, in which a packet may have used the entry again. Looking once more
    // right before makes that a microsecond.
    for key in doomed {
        match map.get(&key)? {
            Some(flow) if is_expired(flow.expires, now) => cleared.expired += usize::from(map.remove(&key)?),
            Some(_) => cleared.alive += 1,
            None => {}
        }
    }
    Ok(())
}
