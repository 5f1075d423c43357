//! The kernel's maps as the agent wants them, and what is still to be done.

use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_abi::Bytes;
use villus_abi::names;
use villus_api::model::{BpfMap, BpfMapEntry, BpfMapList};
use villus_api::{ApiError, ApiResult};
use villus_datapath::{Map, policy_pin};
use villus_emergency::key_text;
use villus_identity::from_kernel;

use crate::kernel::{Drift, IpcacheMap, Wanted};
use crate::node::Node;

impl Node {
    /// All maps, without their entries.
    pub(super) fn maps(&mut self) -> ApiResult<BpfMapList> {
        let mut maps = Vec::new();
        for name in self.map_names() {
            maps.push(BpfMap { cache: None, ..self.map(&name)? });
        }
        Ok(BpfMapList { maps })
    }

    fn map_names(&self) -> Vec<String> {
        let fixed =
            [names::ADDRS4, names::ADDRS6, names::DEVICES, names::ENDPOINTS, names::IPCACHE, names::CONFIG];
        let live = self.endpoints.values().filter(|e| e.is_live()).map(|e| policy_pin(e.id()));
        fixed.into_iter().map(str::to_owned).chain(live).collect()
    }

    /// A map with its entries.
    pub(super) fn map(&mut self, name: &str) -> ApiResult<BpfMap> {
        let maps = self.kernel.maps.clone();
        let path = self.kernel.pins.path(name).display().to_string();
        let model = match name {
            names::ADDRS4 => {
                let text = |key: &u32| IpAddr::V4(Ipv4Addr::from(key.to_ne_bytes()));
                entries(&maps.addrs4, &self.wanted_addrs4(), text, |v| local_text(*v))?
            }
            names::ADDRS6 => {
                let text = |key: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*key));
                entries(&maps.addrs6, &self.wanted_addrs6(), text, |v| local_text(*v))?
            }
            names::DEVICES => entries(
                &maps.devices,
                &self.wanted_devices(),
                |k| format!("ifindex {k}"),
                |v| format!("endpoint {v}"),
            )?,
            names::IPCACHE => {
                let wanted = IpcacheMap::wanted(&self.ipcache.snapshot());
                let text = |key: &villus_abi::IpcacheKey| ipcache_text(key);
                entries(&maps.ipcache, &wanted, text, |v| format!("identity {}", v.identity))?
            }
            names::ENDPOINTS => self.records(&maps.endpoints)?,
            names::CONFIG => {
                let wanted = Wanted::from([(0, self.wanted_config())]);
                entries(&maps.config, &wanted, |_| "config", |v| format!("flags {:#x}", v.flags))?
            }
            _ => self.policy_entries(name)?,
        };
        Ok(BpfMap { path, ..model })
    }

    /// The array of records; a slot that is not in use is no entry.
    fn records(&self, map: &Map<u32, villus_abi::Endpoint>) -> ApiResult<BpfMap> {
        let unused = villus_abi::Endpoint::default();
        let mut there = map.entries().map_err(ApiError::internal)?;
        let capacity = there.len() as u64;
        there.retain(|(_, record)| *record != unused);
        let wanted = self.wanted_records();
        let drift = Drift::between(&wanted, &there);
        Ok(model(
            capacity,
            &wanted,
            &drift,
            |slot| format!("endpoint {slot}"),
            |v| format!("identity {} ifindex {} flags {:#x}", v.identity, v.ifindex, v.flags),
        ))
    }

    fn policy_entries(&mut self, name: &str) -> ApiResult<BpfMap> {
        let id = name
            .strip_prefix(names::POLICY_PREFIX)
            .and_then(|id| id.parse::<u16>().ok())
            .filter(|id| self.endpoints.get(id).is_some_and(|e| e.is_live()))
            .ok_or_else(|| {
                ApiError::not_found(format!("the agent keeps no map {name}"))
                    .hint("`villus map list` shows them")
            })?;
        let wanted = self.wanted_entries(id).unwrap_or_default();
        let differences = self.kernel.policies.compare(id, &wanted).map_err(ApiError::internal)?;
        let decision = |deny: bool| if deny { "deny" } else { "allow" }.to_owned();
        let mut cache: Vec<BpfMapEntry> = wanted
            .iter()
            .map(|(key, entry)| {
                let due = differences.missing.contains(key) || differences.altered.contains(key);
                row(key_text(key), decision(entry.is_deny()), if due { "insert" } else { "ok" })
            })
            .collect();
        cache.extend(differences.extra.iter().map(|key| row(key_text(key), String::new(), "delete")));
        cache.extend(differences.hand_made.iter().map(|key| row(key_text(key), "by hand".into(), "ok")));
        let capacity = self.endpoints.get(&id).map_or(0, |e| e.size.1);
        Ok(BpfMap {
            entries: wanted.len() as u64,
            max_entries: u64::from(capacity),
            cache: Some(cache),
            ..BpfMap::default()
        })
    }
}

fn entries<K, V, T: Display>(
    map: &Map<K, V>,
    wanted: &Wanted<K, V>,
    key: impl Fn(&K) -> T,
    value: impl Fn(&V) -> String,
) -> ApiResult<BpfMap>
where
    K: Bytes + Eq + Hash,
    V: Bytes + PartialEq,
{
    let there = map.entries().map_err(ApiError::internal)?;
    let drift = Drift::between(wanted, &there);
    Ok(model(u64::from(map.info().entries), wanted, &drift, key, value))
}

fn model<K: Copy + Eq + Hash, V: Copy + PartialEq, T: Display>(
    capacity: u64,
    wanted: &Wanted<K, V>,
    drift: &Drift<K, V>,
    key: impl Fn(&K) -> T,
    value: impl Fn(&V) -> String,
) -> BpfMap {
    let due = |k: &K| {
        drift.missing.iter().any(|(other, _)| other == k)
            || drift.altered.iter().any(|(other, ..)| other == k)
    };
    let mut cache: Vec<BpfMapEntry> = wanted
        .iter()
        .map(|(k, v)| row(key(k).to_string(), value(v), if due(k) { "insert" } else { "ok" }))
        .collect();
    cache.extend(drift.extra.iter().map(|(k, v)| row(key(k).to_string(), value(v), "delete")));
    cache.sort_by(|a, b| a.key.cmp(&b.key));
    BpfMap { entries: wanted.len() as u64, max_entries: capacity, cache: Some(cache), ..BpfMap::default() }
}

fn row(key: String, value: String, action: &str) -> BpfMapEntry {
    BpfMapEntry { key, value, desired_action: action.to_owned(), ..BpfMapEntry::default() }
}

/// Whose an address is.
pub(super) fn local_text(local: villus_abi::Local) -> String {
    match (local.slot, local.flags & villus_abi::endpoint::ADDR_GATEWAY != 0) {
        (0, true) => "node, gateway".to_owned(),
        (0, false) => "node".to_owned(),
        (slot, _) => format!("endpoint {slot}"),
    }
}

/// The prefix of a key of the ipcache.
pub(super) fn ipcache_text(key: &villus_abi::IpcacheKey) -> String {
    from_kernel(key, &villus_abi::IpcacheValue::default())
        .map_or_else(|| format!("{key:?}"), |(prefix, _)| prefix.to_string())
}
