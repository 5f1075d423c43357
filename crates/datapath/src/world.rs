//! A snapshot as a world that the packet path runs over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_abi::time;
use villus_path::memory::{FlowKey, FragKey, Memory, prefix};

use crate::snapshot::Snapshot;

impl From<&Snapshot> for Memory {
    /// The same maps, the clock at the moment when they were read. A slot without a map in the kernel has none here.
    fn from(snapshot: &Snapshot) -> Self {
        let mut world = Self::default();
        world.config = snapshot.config;
        world.endpoints.clone_from(&snapshot.endpoints);
        world.devices.clone_from(&snapshot.devices);
        world.set_clock(time::to_ns(snapshot.taken));
        for (address, local) in &snapshot.addrs4 {
            world.addrs.insert(IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes())), *local);
        }
        for (address, local) in &snapshot.addrs6 {
            world.addrs.insert(IpAddr::V6(Ipv6Addr::from(*address)), *local);
        }
        for (key, value) in &snapshot.ipcache {
            world.ipcache.insert(*key, *value);
        }
        for (address, node) in &snapshot.nodes {
            world.nodes.insert(Ipv6Addr::from(*address).to_canonical(), *node);
        }
        world.masquerade.extend(snapshot.masquerade.iter().map(|(key, flags)| {
            let (address, length) = prefix(key);
            (address, length, *flags)
        }));
        world.uplinks.extend(&snapshot.uplinks);
        let slotted = snapshot.policies.iter().filter(|(_, view)| view.in_slot.is_some());
        for (slot, view) in slotted {
            world.set_policy(*slot, view.entries.clone());
        }
        for (key, flow) in &snapshot.flows4 {
            world.set_flow(&FlowKey::V4(*key), flow);
        }
        for (key, flow) in &snapshot.flows6 {
            world.set_flow(&FlowKey::V6(*key), flow);
        }
        for (key, ports) in &snapshot.frags4 {
            world.set_fragment(&FragKey::V4(*key), ports);
        }
        for (key, ports) in &snapshot.frags6 {
            world.set_fragment(&FragKey::V6(*key), ports);
        }
        world
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use villus_abi::{
        Direction, Endpoint, Flow, FlowKey4, IpcacheKey, IpcacheValue, Local, PolicyEntry, PolicyKey,
    };

    use super::*;
    use crate::policy::PolicyView;

    #[test]
    fn a_world_holds_what_the_snapshot_holds() {
        let mut snapshot = Snapshot { taken: 77, ..Snapshot::default() };
        snapshot.endpoints.insert(3, Endpoint { id: 3, ..Endpoint::default() });
        snapshot.devices.insert(9, 3);
        snapshot.addrs4.insert(u32::from_ne_bytes([10, 0, 0, 3]), Local { slot: 3, flags: 0 });
        let v6: Ipv6Addr = "fd00::3".parse().unwrap();
        snapshot.addrs6.insert(v6.octets(), Local { slot: 3, flags: 0 });
        let row = IpcacheValue { identity: 7, ..IpcacheValue::default() };
        snapshot.ipcache.insert(IpcacheKey::v4([10, 0, 0, 0], 8), row);
        let (key, flow) =
            (FlowKey4 { lo: 1, proto: 6, ..FlowKey4::default() }, Flow { flags: 2, ..Flow::default() });
        snapshot.flows4.insert(key, flow);
        let entries = BTreeMap::from([(PolicyKey::new(1, 80, 6, Direction::Ingress), PolicyEntry::ALLOW)]);
        let view = |endpoint, in_slot| PolicyView {
            endpoint,
            entries: entries.clone().into_iter().collect(),
            hand_made: Default::default(),
            capacity: 1024,
            in_slot,
            pinned: Some(1),
        };
        snapshot.policies.insert(3, view(3, Some(1)));
        snapshot.policies.insert(4, view(4, None));

        let world = Memory::from(&snapshot);
        assert_eq!(
            (world.clock(), &world.endpoints, &world.devices),
            (77 << 26, &snapshot.endpoints, &snapshot.devices)
        );
        assert_eq!(world.addrs.len(), 2);
        assert_eq!(world.addrs[&IpAddr::V6(v6)].slot, 3);
        assert_eq!(world.ipcache.longest("10.1.1.1".parse().unwrap()).unwrap().1.identity, 7);
        assert_eq!(world.flows()[&FlowKey::V4(key)], flow);
        assert_eq!(world.policy_entries(3), Some(entries));
        assert_eq!(world.policy_entries(4), None, "packets do not see a map that is only pinned");
    }
}
