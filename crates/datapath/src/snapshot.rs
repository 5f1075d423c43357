//! All maps of the kernel as plain collections, read at one moment: what `villus why` runs the packet path over and
//! `policy verify` compares.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use villus_abi::{
    Config, Endpoint, Flow, FlowKey4, FlowKey6, FragKey4, FragKey6, FragPorts, IpcacheKey, IpcacheValue,
    Local, Metric, Node, Uplink, endpoint::FLAG_ACTIVE, ipcache::STATIC_BITS, time::Tick,
};

use crate::{
    error::Result,
    flows::now,
    map::Map,
    maps::Maps,
    pins::Pins,
    policy::{PolicyView, view_policy},
};

/// The kernel's maps. The maps are read one after the other while packets pass, so flows and counters of
/// different maps may be some milliseconds apart.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: Tick,
    /// Runtime configuration.
    pub config: Option<Config>,
    /// Records in use, by slot.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Interface index to slot.
    pub devices: BTreeMap<u32, u32>,
    /// IPv4 addresses, network order, as in the map.
    pub addrs4: HashMap<u32, Local>,
    /// IPv6 addresses.
    pub addrs6: HashMap<[u8; 16], Local>,
    /// Policies by slot: of every endpoint in use, and every one that is pinned.
    pub policies: BTreeMap<u32, PolicyView>,
    /// The ipcache; see [`Self::identity_of`].
    pub ipcache: HashMap<IpcacheKey, IpcacheValue>,
    /// The nodes that a tunnel leads to, by each of their addresses, IPv4 as `::ffff:a.b.c.d`.
    pub nodes: HashMap<[u8; 16], Node>,
    /// `MASQUERADE_*` by prefix, where our programs masquerade.
    pub masquerade: HashMap<IpcacheKey, u32>,
    /// The devices through which packets leave the node, by interface index, where our programs masquerade.
    pub uplinks: HashMap<u32, Uplink>,
    /// IPv4 flows, TCP and others.
    pub flows4: HashMap<FlowKey4, Flow>,
    /// IPv6 flows, TCP and others.
    pub flows6: HashMap<FlowKey6, Flow>,
    /// Fragmented IPv4 datagrams.
    pub frags4: HashMap<FragKey4, FragPorts>,
    /// Fragmented IPv6 datagrams.
    pub frags6: HashMap<FragKey6, FragPorts>,
    /// Counters that are not zero, all CPUs together, by [`villus_abi::metrics::index`].
    pub metrics: BTreeMap<u32, Metric>,
}

impl Snapshot {
    /// Reads everything; changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn take(pins: &Pins, maps: &Maps) -> Result<Self> {
        let mut this = Self::without_flows(pins, maps)?;
        this.flows4 = maps.ct4_tcp.entries()?.into_iter().chain(maps.ct4_any.entries()?).collect();
        this.flows6 = maps.ct6_tcp.entries()?.into_iter().chain(maps.ct6_any.entries()?).collect();
        this.frags4 = maps.frags4.entries()?.into_iter().collect();
        this.frags6 = maps.frags6.entries()?.into_iter().collect();
        Ok(this)
    }

    /// As [`Self::take`] without flows and fragments, which may be many.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn without_flows(pins: &Pins, maps: &Maps) -> Result<Self> {
        let mut endpoints: BTreeMap<u32, Endpoint> = maps.endpoints.entries()?.into_iter().collect();
        endpoints.retain(|_, endpoint| endpoint.has(FLAG_ACTIVE));
        let mut slots: Vec<u32> = crate::policy_endpoints(pins)?.into_iter().map(u32::from).collect();
        slots.extend(endpoints.values().map(|endpoint| endpoint.policy));
        slots.sort_unstable();
        slots.dedup();
        let mut policies = BTreeMap::new();
        for slot in slots {
            let Ok(endpoint) = u16::try_from(slot) else { continue };
            policies.insert(slot, view_policy(pins, maps, endpoint)?);
        }
        let (masquerade, uplinks) = match &maps.nat {
            Some(nat) => (nat.prefixes.entries()?, nat.uplinks.entries()?),
            None => Default::default(),
        };
        Ok(Self {
            taken: now(),
            config: maps.config.get(&0)?,
            endpoints,
            devices: maps.devices.entries()?.into_iter().collect(),
            addrs4: maps.addrs4.entries()?.into_iter().collect(),
            addrs6: maps.addrs6.entries()?.into_iter().collect(),
            policies,
            ipcache: maps.ipcache.entries()?.into_iter().collect(),
            nodes: maps.nodes.entries()?.into_iter().collect(),
            masquerade: masquerade.into_iter().collect(),
            uplinks: uplinks.into_iter().collect(),
            metrics: metrics(maps)?,
            ..Self::default()
        })
    }

    /// The longest prefix of the ipcache that covers an address, and its value; with hash look-ups, as many as there are
    /// lengths.
    #[must_use]
    pub fn identity_of(&self, address: IpAddr) -> Option<(IpcacheKey, IpcacheValue)> {
        longest(address, |key| self.ipcache.get(key).copied())
    }
}

/// The prefixes of an address from the longest to the shortest; the first that `find` knows.
fn longest<V>(address: IpAddr, find: impl Fn(&IpcacheKey) -> Option<V>) -> Option<(IpcacheKey, V)> {
    let (full, bits) = match address {
        IpAddr::V4(v4) => (IpcacheKey::v4(v4.octets(), 32), 32_u32),
        IpAddr::V6(v6) => (IpcacheKey::v6(v6.octets(), 128), 128),
    };
    let address = u128::from_be_bytes(full.addr);
    (0..=bits).rev().find_map(|len| {
        let kept = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        let key = IpcacheKey { prefixlen: STATIC_BITS + len, addr: (address & kept).to_be_bytes(), ..full };
        find(&key).map(|value| (key, value))
    })
}

impl Map<IpcacheKey, IpcacheValue> {
    /// The value that the path finds for an address: that of the longest prefix.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn of_address(&self, address: IpAddr) -> Result<Option<IpcacheValue>> {
        self.get(&match address {
            IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), 32),
            IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), 128),
        })
    }
}

/// Counters that are not zero, all CPUs together.
///
/// # Errors
/// [`crate::Error::Kernel`].
pub fn metrics(maps: &Maps) -> Result<BTreeMap<u32, Metric>> {
    let mut all = BTreeMap::new();
    for (index, values) in maps.metrics.entries()? {
        let sum = values.iter().fold(Metric::default(), |sum, value| Metric {
            packets: sum.packets.wrapping_add(value.packets),
            bytes: sum.bytes.wrapping_add(value.bytes),
        });
        if sum != Metric::default() {
            all.insert(index, sum);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let mut snapshot = Snapshot::default();
        let value = |identity| IpcacheValue { identity, ..IpcacheValue::default() };
        for (key, identity) in [
            (IpcacheKey::v4([0; 4], 0), 2),
            (IpcacheKey::v4([10, 0, 0, 0], 8), 8),
            (IpcacheKey::v4([10, 1, 2, 3], 32), 32),
            (IpcacheKey::v6([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 32), 6),
        ] {
            snapshot.ipcache.insert(key, value(identity));
        }
        for (address, identity) in [
            ("10.1.2.3", Some(32)),
            ("10.1.2.4", Some(8)),
            ("11.0.0.1", Some(2)),
            ("fd00:1::7", Some(6)),
            ("fd01::", None),
        ] {
            let found = snapshot.identity_of(address.parse().unwrap()).map(|(_, value)| value.identity);
            assert_eq!(found, identity, "{address}");
        }
    }
}
