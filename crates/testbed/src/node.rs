//! The node: its maps, programs and devices, and the hosts around it.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use villus_abi::{
    Config, Direction, Endpoint, IpcacheKey, IpcacheValue, Local, PolicyEntry, PolicyKey, Uplink,
    config::{FLAG_DIRECT_V4, FLAG_DIRECT_V6, FLAG_HOST_POLICY, FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6},
    endpoint::{
        ADDR_GATEWAY, FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER, HOST_ID, SLOT_HOST,
    },
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO},
};
use villus_datapath::{
    AttachMode, EventRing, Flows, Hook, Links, Mappings, Maps, Object, Pins, PolicyMaps, Sizes, hand_insert,
    hand_remove,
};
use villus_net::{Delivery, Journal, Mac, remove_masquerade};

use crate::{
    host::Host,
    party::Addresses,
    residue::Residue,
    sandbox::eventually,
    surroundings::{prepare_network, state_of, surroundings},
    workload::{Kind, Workload},
};

/// Identity of the node itself.
const HOST: u32 = 1;
/// Identity of other nodes.
const REMOTE_NODE: u32 = 6;
/// Identity of every IPv4 address that has no other.
const WORLD_V4: u32 = 9;
/// Identity of every IPv6 address that has no other.
const WORLD_V6: u32 = 10;

/// What connects the node to the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UplinkKind {
    /// A plain device, `up0`.
    #[default]
    Device,
    /// A VLAN device on it, `up0.7`.
    Vlan,
    /// A bond of it and `up1`, `bond0`. They use one at a time, and end at the ports `far0` and `far1` of a bridge.
    Bond,
    /// A VLAN device on that, `bond0.7`.
    BondVlan,
}

impl UplinkKind {
    /// Its device.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Device => "up0",
            Self::Vlan => "up0.7",
            Self::Bond => "bond0",
            Self::BondVlan => "bond0.7",
        }
    }

    pub(crate) const fn has_bond(self) -> bool {
        matches!(self, Self::Bond | Self::BondVlan)
    }

    pub(crate) const fn has_tag(self) -> bool {
        matches!(self, Self::Vlan | Self::BondVlan)
    }
}

/// Whether this kernel makes devices of a kind.
#[must_use]
pub fn kernel_has_link_kind(kind: &str) -> bool {
    let host = Host::new("probe");
    host.run(|| {
        let tried = match kind {
            "vlan" => "link add link lo name probe type vlan id 7".to_owned(),
            kind => format!("link add name probe type {kind}"),
        };
        let output = std::process::Command::new("ip").args(tried.split(' ')).output().unwrap();
        !String::from_utf8_lossy(&output.stderr).contains("Unknown device type")
    })
}

/// What a node should be.
#[derive(Clone, Copy, Debug)]
pub struct NodeSpec {
    /// How programs are attached.
    pub attach: AttachMode,
    /// Masquerading is off: shortcut from the uplink, and neighbour redirect.
    pub direct: bool,
    /// Masquerading is our programs' work, not nftables'.
    pub nat: bool,
    /// What connects it to the world.
    pub uplink: UplinkKind,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// MTU of the network beyond the outside host.
    pub beyond_mtu: u32,
}

impl Default for NodeSpec {
    fn default() -> Self {
        // Small, for the tallies read them whole.
        let sizes = Sizes {
            endpoints: 256,
            ipcache: 1024,
            frags: 1024,
            ct_tcp: 4096,
            ct_any: 4096,
            ..Sizes::default()
        };
        Self {
            attach: AttachMode::Tcx,
            direct: false,
            nat: false,
            uplink: UplinkKind::Device,
            sizes,
            beyond_mtu: 1500,
        }
    }
}

/// A node, the other host on its network, and one beyond that.
pub struct Node {
    /// What it was made from.
    pub spec: NodeSpec,
    /// The node's namespace.
    pub host: Host,
    /// Another host on the node's network: a router, with the device `far` towards the node.
    pub outside: Host,
    /// A host behind that router.
    pub beyond: Host,
    /// The pins, in a bpffs that is mounted nowhere.
    pub pins: Arc<Pins>,
    /// The maps.
    pub maps: Arc<Maps>,
    /// The programs.
    pub object: Object,
    pub(crate) workloads: Vec<Arc<Workload>>,
    policies: Mutex<PolicyMaps>,
    uplinks: Vec<u32>,
    journal: Journal,
    clean: String,
    pub(crate) events: Mutex<EventRing>,
    finished: AtomicBool,
}

impl Node {
    /// Builds a node without workloads.
    #[must_use]
    pub fn new(spec: NodeSpec) -> Self {
        let (host, outside, beyond) = (Host::new("node"), Host::new("outside"), Host::new("beyond"));
        surroundings(&spec, &host, &outside, &beyond);
        eventually("its addresses are usable", || !host.ip("-6 addr show").contains("tentative"));
        let clean = state_of(&host);

        let pins = Arc::new(Pins::detached().unwrap());
        let sizes = Sizes { nat: if spec.nat { spec.sizes.nat.max(1024) } else { 0 }, ..spec.sizes };
        let maps = Arc::new(Maps::open(&pins, &sizes).unwrap());
        let object = Object::load(&pins, &maps, &Hook::WITHOUT_TUNNEL).unwrap();
        let policies = Mutex::new(PolicyMaps::open(pins.clone(), maps.clone(), 16384).unwrap());
        let events = Mutex::new(EventRing::open(&maps).unwrap());

        let mut journal = Journal::default();
        let uplinks: Vec<u32> = host.run(|| prepare_network(&spec, &mut journal));
        let mut node = Self {
            spec,
            host,
            outside,
            beyond,
            pins,
            maps,
            object,
            workloads: Vec::new(),
            policies,
            uplinks,
            journal,
            clean,
            events,
            finished: AtomicBool::new(false),
        };
        node.fill();
        node
    }

    fn fill(&mut self) {
        for (address, flags) in Addresses::ROUTER
            .all()
            .map(|a| (a, ADDR_GATEWAY))
            .into_iter()
            .chain(Addresses::NODE.all().map(|a| (a, 0)))
        {
            self.set_local(address, Some(Local { slot: SLOT_HOST, flags }));
            self.set_identity(address, full(address), HOST);
        }
        self.set_identity(IpAddr::from([0; 4]), 0, WORLD_V4);
        self.set_identity(IpAddr::from([0; 16]), 0, WORLD_V6);
        for address in Addresses::OUTSIDE.all() {
            self.set_identity(address, full(address), REMOTE_NODE);
        }
        let ids: Vec<u16> = (101..=110).collect();
        self.policies.lock().unwrap().prepare(&ids).unwrap();
        let router_ifindex = self.host.index(villus_net::ROUTER_DEVICE);
        let direct = if self.spec.direct { FLAG_DIRECT_V4 | FLAG_DIRECT_V6 } else { 0 };
        let nat = if self.spec.nat { FLAG_MASQUERADE_V4 | FLAG_MASQUERADE_V6 } else { 0 };
        let config = Config::default();
        let config = Config { flags: config.flags | direct | nat, router_ifindex, nat_seed: 7, ..config };
        self.maps.config.insert(&0, &config).unwrap();
        self.fill_masquerade();
        self.attach_uplinks(&self.object);
    }

    /// Gives the uplinks an object's programs.
    pub fn attach_uplinks(&self, object: &Object) {
        let links = Links::new(&self.pins);
        let out = self.spec.nat.then_some(Hook::ToNetwork);
        for &uplink in &self.uplinks {
            for hook in [Hook::FromNetwork].into_iter().chain(out) {
                let program = object.program(hook).unwrap();
                self.host.run(|| links.attach(program, hook, uplink, self.spec.attach)).unwrap();
            }
        }
    }

    /// Who is masqueraded, with what.
    fn fill_masquerade(&self) {
        let Some(nat) = &self.maps.nat else { return };
        for key in [IpcacheKey::v4([10, 9, 0, 0], 16), IpcacheKey::v6(Addresses::ROUTER.v6.octets(), 64)] {
            nat.prefixes.insert(&key, &(MASQUERADE_FROM | MASQUERADE_NOT_TO)).unwrap();
        }
        let uplink = Uplink {
            ipv4: u32::from_ne_bytes(Addresses::NODE.v4.octets()),
            ipv6: words(Addresses::NODE.v6.octets()),
            reserved: 0,
        };
        for index in &self.uplinks {
            nat.uplinks.insert(index, &uplink).unwrap();
        }
    }

    /// What is lent to whom, where our programs masquerade.
    #[must_use]
    pub fn mappings(&self) -> Mappings {
        Mappings::new(self.maps.clone())
    }

    /// Adds a workload whose policy map is empty: nothing may pass. Ids are 101 to 199.
    pub fn add(&mut self, id: u16, identity: u32, kind: Kind) -> Arc<Workload> {
        self.add_with_mtu(id, identity, kind, 1500)
    }

    /// As [`Self::add`], with another MTU for a veth pair of ours.
    pub fn add_with_mtu(&mut self, id: u16, identity: u32, kind: Kind, mtu: u32) -> Arc<Workload> {
        self.policies.lock().unwrap().create(id).unwrap();
        let workload = Arc::new(Workload::make(self, id, identity, kind, mtu));
        workload.host.wait_until_quiet("eth0");
        self.workloads.push(workload.clone());
        workload
    }

    /// What comes before the first packet: record, addresses, device, programs.
    #[allow(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(crate) fn install(
        &self,
        id: u16,
        identity: u32,
        addresses: Addresses,
        ifindex: u32,
        mtu: u32,
        mac: Mac,
        node_mac: Mac,
        flags: u16,
    ) {
        let slot = u32::from(id);
        let record = Endpoint {
            id,
            flags: FLAG_ACTIVE | FLAG_CHECK_MAC | flags,
            identity,
            ifindex,
            mtu,
            mac: mac.0,
            node_mac: node_mac.0,
            ipv4: u32::from_ne_bytes(addresses.v4.octets()),
            policy: slot,
            ipv6: words(addresses.v6.octets()),
            ..Endpoint::default()
        };
        self.maps.endpoints.insert(&slot, &record).unwrap();
        for address in addresses.all() {
            self.set_local(address, Some(Local { slot, flags: 0 }));
            self.set_identity(address, full(address), identity);
        }
        self.maps.devices.insert(&ifindex, &slot).unwrap();
        let links = Links::new(&self.pins);
        for hook in [Hook::FromEndpoint, Hook::ToEndpoint] {
            self.host
                .run(|| links.attach(self.object.program(hook).unwrap(), hook, ifindex, self.spec.attach))
                .unwrap();
        }
    }

    pub(crate) fn deliver_by(&self, id: u16, delivery: Delivery) {
        self.edit_record(id, |record| {
            record.flags &= !(FLAG_DELIVER_PEER | FLAG_DELIVER_DEVICE);
            record.flags |= match delivery {
                Delivery::Peer => FLAG_DELIVER_PEER,
                Delivery::Device => FLAG_DELIVER_DEVICE,
            };
        });
    }

    /// Changes an endpoint's record.
    pub fn edit_record(&self, id: u16, edit: impl FnOnce(&mut Endpoint)) {
        let slot = u32::from(id);
        let mut record = self.maps.endpoints.get(&slot).unwrap().unwrap();
        edit(&mut record);
        self.maps.endpoints.insert(&slot, &record).unwrap();
    }

    /// Changes the configuration of the path.
    pub fn edit_config(&self, edit: impl FnOnce(&mut Config)) {
        let mut config = self.maps.config.get(&0).unwrap().unwrap();
        edit(&mut config);
        self.maps.config.insert(&0, &config).unwrap();
    }

    /// Says whose an address is, or that it is nobody's here.
    pub fn set_local(&self, address: IpAddr, local: Option<Local>) {
        match (address, local) {
            (IpAddr::V4(v4), Some(local)) => {
                self.maps.addrs4.insert(&u32::from_ne_bytes(v4.octets()), &local).unwrap();
            }
            (IpAddr::V6(v6), Some(local)) => self.maps.addrs6.insert(&v6.octets(), &local).unwrap(),
            (IpAddr::V4(v4), None) => {
                self.maps.addrs4.remove(&u32::from_ne_bytes(v4.octets())).unwrap();
            }
            (IpAddr::V6(v6), None) => {
                self.maps.addrs6.remove(&v6.octets()).unwrap();
            }
        }
    }

    /// Says which identity a prefix has.
    pub fn set_identity(&self, address: IpAddr, length: u8, identity: u32) {
        let key = match address {
            IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), length),
            IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), length),
        };
        self.maps.ipcache.insert(&key, &IpcacheValue { identity, ..IpcacheValue::default() }).unwrap();
    }

    /// Writes an entry that allows. `port` and `proto` 0 are any.
    pub fn allow(
        &self,
        workload: &Workload,
        direction: Direction,
        identity: u32,
        port: u16,
        proto: u8,
    ) -> PolicyKey {
        self.write(workload.id, PolicyKey::new(identity, port, proto, direction), &PolicyEntry::ALLOW)
    }

    /// Writes an entry that denies.
    pub fn deny(
        &self,
        workload: &Workload,
        direction: Direction,
        identity: u32,
        port: u16,
        proto: u8,
    ) -> PolicyKey {
        self.write(workload.id, PolicyKey::new(identity, port, proto, direction), &PolicyEntry::DENY)
    }

    fn write(&self, id: u16, key: PolicyKey, entry: &PolicyEntry) -> PolicyKey {
        hand_insert(&self.pins, &self.maps, id, &key, entry).unwrap();
        key
    }

    /// Lets a workload do everything.
    pub fn allow_all(&self, workload: &Workload) {
        for direction in Direction::ALL {
            self.allow(workload, direction, 0, 0, 0);
        }
    }

    /// Removes an entry.
    pub fn forget(&self, workload: &Workload, key: &PolicyKey) {
        hand_remove(&self.pins, &self.maps, workload.id, key).unwrap();
    }

    /// Removes every entry of a workload's policy.
    pub fn forget_all(&self, workload: &Workload) {
        let view = villus_datapath::view_policy(&self.pins, &self.maps, workload.id).unwrap();
        for key in view.entries.keys() {
            self.forget(workload, key);
        }
    }

    // === the node itself ===

    /// From now on the node is judged as well, by a policy that lets nothing pass.
    pub fn judge_host(&self) {
        self.policies.lock().unwrap().create(HOST_ID).unwrap();
        let record = Endpoint {
            id: HOST_ID,
            flags: FLAG_ACTIVE,
            identity: HOST,
            policy: SLOT_HOST,
            ..Endpoint::default()
        };
        self.maps.endpoints.insert(&SLOT_HOST, &record).unwrap();
        let links = Links::new(&self.pins);
        let program = self.object.program(Hook::ToNetwork).unwrap();
        for &uplink in &self.uplinks {
            self.host.run(|| links.attach(program, Hook::ToNetwork, uplink, self.spec.attach)).unwrap();
        }
        self.edit_config(|config| config.flags |= FLAG_HOST_POLICY);
    }

    /// Whether the node is judged.
    #[must_use]
    pub(crate) fn is_host_judged(&self) -> bool {
        let flags = self.maps.config.get(&0).unwrap().map_or(0, |config| config.flags);
        flags & FLAG_HOST_POLICY != 0
    }

    /// Writes an entry of the node's own policy that allows.
    pub fn host_allow(&self, direction: Direction, identity: u32, port: u16, proto: u8) -> PolicyKey {
        self.write(HOST_ID, PolicyKey::new(identity, port, proto, direction), &PolicyEntry::ALLOW)
    }

    /// Removes an entry of the node's own policy.
    pub fn host_forget(&self, key: &PolicyKey) {
        hand_remove(&self.pins, &self.maps, HOST_ID, key).unwrap();
    }

    fn end_host(&self) {
        if self.is_host_judged() {
            self.edit_config(|config| config.flags &= !FLAG_HOST_POLICY);
            self.maps.endpoints.insert(&SLOT_HOST, &Endpoint::default()).unwrap();
            self.policies.lock().unwrap().remove(HOST_ID).unwrap();
        }
    }

    /// Path of a pin as commands that we start see it: the bpffs is mounted nowhere but known to this process.
    #[must_use]
    pub fn pin_for_commands(&self, name: &str) -> String {
        let path = self.pins.path(name).display().to_string();
        path.replace("/proc/self/", &format!("/proc/{}/", std::process::id()))
    }

    /// The flow table.
    #[must_use]
    pub fn flows(&self) -> Flows {
        Flows::new(self.maps.clone())
    }

    /// Forgets all flows, so that the next packet of each is a first one.
    pub fn flush_flows(&self) {
        self.flows().remove_if(|_, _| true).unwrap();
    }

    /// Removes everything in the order of an agent, and checks that nothing of ours is left: neither in the node's
    /// namespace nor, a moment later, in the kernel.
    pub fn finish(mut self) {
        for workload in std::mem::take(&mut self.workloads) {
            self.remove(workload);
        }
        self.end_host();
        let links = Links::new(&self.pins);
        let errors = self.host.run(|| links.remove_all(&self.uplinks));
        assert!(errors.is_empty(), "{errors:?}");
        self.host.run(|| {
            remove_masquerade().unwrap();
            let restored = self.journal.restore();
            assert!(restored.errors.0.is_empty() && restored.left.is_empty(), "{restored:?}");
        });
        self.host.nft("add table inet services; delete table inet services");
        let left: Vec<String> = self.pins.list().unwrap();
        let left: Vec<&String> =
            left.iter().filter(|name| name.starts_with("villus_link_") || name.contains("policy_")).collect();
        assert!(left.is_empty(), "pins are left: {left:?}");
        assert_eq!(state_of(&self.host), self.clean, "the node is not as it was");
        self.finished.store(true, Ordering::Relaxed);
        let residue = Residue::of(&self);
        drop(self);
        residue.check(Duration::from_secs(60));
    }

    /// Removes one workload in the order of an agent.
    pub fn remove(&mut self, workload: Arc<Workload>) {
        self.workloads.retain(|other| other.id != workload.id);
        let id = workload.id;
        self.maps.devices.remove(&workload.ifindex).unwrap();
        for address in workload.addresses.all() {
            self.set_local(address, None);
        }
        self.edit_record(id, |record| record.flags &= !FLAG_ACTIVE);
        let links = Links::new(&self.pins);
        for hook in [Hook::FromEndpoint, Hook::ToEndpoint] {
            assert!(
                self.host.run(|| links.detach(hook, workload.ifindex)).unwrap(),
                "{hook:?} was not attached"
            );
        }
        self.flows().remove_of_endpoint(id).unwrap();
        self.policies.lock().unwrap().remove(id).unwrap();
        let workload = Arc::try_unwrap(workload).expect("the test still holds a workload: drop it before");
        workload.remove(&self.host);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.dump());
        }
    }
}

pub(crate) fn words(bytes: [u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

const fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
