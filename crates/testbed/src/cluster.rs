//! Several nodes on one network, each with a pod: what packets between nodes meet. Each node's maps are filled by hand with
//! what its agent would learn from the store.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use ipnet::IpNet;
use villus_abi::{
    Config, Direction, Endpoint, IpcacheKey, IpcacheValue, Local, Node, PolicyEntry, PolicyKey, Reason,
    config::FLAG_IPSEC,
    endpoint::{ADDR_GATEWAY, FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DELIVER_PEER, SLOT_HOST},
    ipcache::{FLAG_PENDING, FLAG_ROUTED},
    metrics,
};
use villus_datapath::{
    AttachMode, Features, Flows, Hook, Links, Maps, Object, Pins, PolicyMaps, Sizes, hand_insert, hand_remove,
};
use villus_net::{
    CONTAINER_DEVICE, EndpointLinkSpec, Journal, Mac, NodeHop, NodeNetwork, Recorder, SystemPaths,
    TUNNEL_OVERHEAD, Tunnel, create_endpoint_link, host_device_name, set_node_route,
};

use crate::{
    host::{Host, join},
    node::{UplinkKind, words},
    party::Version,
    surroundings::{bond, tag},
};

/// Identity of the node itself, of other nodes, and of everybody else.
const HOST: u32 = 1;
const REMOTE_NODE: u32 = 6;
const WORLD: [u32; 2] = [9, 10];
/// The id of the only pod of a node.
const POD: u16 = 101;
/// UDP port of the tunnel.
const PORT: u16 = 8472;
const MTU: u32 = 1500;
/// The least port that the kernel draws for what it sends, and how many there are.
const PORTS: [u16; 2] = [32_768, 60_999 - 32_768];

/// How packets reach pods of other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Between {
    /// Each node has routes to the others' prefixes, between which nothing is masqueraded.
    Routes,
    /// In VXLAN.
    Tunnel,
}

impl Between {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Routes, Self::Tunnel];
}

/// Nodes on one network.
pub struct Cluster {
    /// The network itself, a bridge, with an address on it that is no node's.
    pub lan: Host,
    /// The nodes, numbered from 1.
    pub members: Vec<Member>,
}

/// One node with its pod.
pub struct Member {
    /// Its number.
    pub number: u8,
    /// The node's namespace.
    pub host: Host,
    /// The pod's.
    pub pod: Host,
    /// The maps.
    pub maps: Arc<Maps>,
    /// The programs.
    pub object: Object,
    uplink: UplinkKind,
    pins: Arc<Pins>,
    policies: Mutex<PolicyMaps>,
}

/// An address of somebody numbered, of either family.
fn address(version: Version, v4: [u8; 4], v6: [u16; 3]) -> IpAddr {
    match version {
        Version::V4 => Ipv4Addr::from(v4).into(),
        Version::V6 => Ipv6Addr::new(v6[0], v6[1], 0, 0, 0, 0, 0, v6[2]).into(),
    }
}

/// The prefix of a node's pods.
fn range(version: Version, number: u8) -> IpNet {
    let text = match version {
        Version::V4 => format!("10.9.{number}.0/24"),
        Version::V6 => format!("fd09:{number:x}::/64"),
    };
    text.parse().unwrap()
}

/// The address of a node on the network.
fn node_ip(version: Version, number: u8) -> IpAddr {
    address(version, [192, 0, 2, 10 + number], [0x2001, 0xdb8, 10 + u16::from(number)])
}

fn router_ip(version: Version, number: u8) -> IpAddr {
    address(version, [10, 9, number, 1], [0xfd09, number.into(), 1])
}

fn pod_ip(version: Version, number: u8) -> IpAddr {
    address(version, [10, 9, number, 101], [0xfd09, number.into(), 101])
}

const fn identity(number: u8) -> u32 {
    50_000 + number as u32
}

impl Cluster {
    /// The address on the network that is no node's.
    #[must_use]
    pub fn stranger(version: Version) -> IpAddr {
        node_ip(version, 90)
    }

    /// Builds so many nodes, whose pods may do nothing yet.
    #[must_use]
    pub fn new(between: Between, count: u8) -> Self {
        Self::over(UplinkKind::Device, between, count)
    }

    /// As [`Self::new`], with other uplinks. The members of bonds end at the ports `p1` and `q1` for node 1, and so on.
    #[must_use]
    pub fn over(uplink: UplinkKind, between: Between, count: u8) -> Self {
        let lan = Host::new("network");
        lan.ip("link add br0 type bridge mcast_snooping 0");
        lan.ip("link set br0 up");
        let mut device = "br0";
        if uplink.has_tag() {
            tag(&lan, device);
            device = "br0.7";
        }
        for version in Version::ALL {
            let net = if version == Version::V4 { 24 } else { 64 };
            lan.add_address(device, &format!("{}/{net}", Self::stranger(version)));
        }
        let members: Vec<Member> =
            (1..=count).map(|number| Member::new(&lan, uplink, between, number, count)).collect();
        for member in &members {
            member.pod.wait_until_quiet(CONTAINER_DEVICE);
        }
        Self { lan, members }
    }

    /// A node by its number.
    #[must_use]
    pub fn node(&self, number: u8) -> &Member {
        &self.members[usize::from(number) - 1]
    }
}

impl Member {
    fn new(lan: &Host, uplink: UplinkKind, between: Between, number: u8, count: u8) -> Self {
        let (host, pod) = (Host::new(&format!("node {number}")), Host::new(&format!("pod {number}")));
        let port = format!("p{number}");
        if uplink.has_bond() {
            bond(&host, lan, "br0", [&port, &format!("q{number}")]);
        } else {
            join(&host, "up0", lan, &port, MTU);
            lan.ip(&format!("link set {port} master br0"));
        }
        if uplink.has_tag() {
            tag(&host, if uplink.has_bond() { "bond0" } else { "up0" });
        }
        for version in Version::ALL {
            let net = if version == Version::V4 { 24 } else { 64 };
            host.add_address(uplink.device(), &format!("{}/{net}", node_ip(version, number)));
        }
        let pins = Arc::new(Pins::detached().unwrap());
        let maps = Arc::new(Maps::open(&pins, &sizes()).unwrap());
        // Programs that nobody uses are not verified.
        let hooks: &[Hook] = if between == Between::Tunnel { &Hook::ALL } else { &Hook::WITHOUT_TUNNEL };
        let object = match std::env::var_os("VILLUS_BENCH_OBJECT") {
            Some(file) => Object::load_from(&std::fs::read(file).unwrap(), &pins, &maps, hooks).unwrap(),
            None => Object::load(&pins, &maps, hooks).unwrap(),
        };
        let policies = Mutex::new(PolicyMaps::open(pins.clone(), maps.clone(), 4096).unwrap());
        let member = Self { number, host, pod, maps, object, uplink, pins, policies };
        let tunnel = member.prepare(between);
        member.learn(between, count, tunnel);
        member.attach(uplink.device(), &[Hook::FromNetwork]);
        if tunnel.is_some() {
            member.attach(villus_net::TUNNEL_DEVICE, &Hook::OF_TUNNEL);
        }
        member.add_pod();
        member
    }

    /// The node's network as the agent would make it; the index of the tunnel's device.
    fn prepare(&self, between: Between) -> Option<u32> {
        let nowhere = |name: &str| format!("/nonexistent/{name}").into();
        let (IpAddr::V4(router_v4), IpAddr::V6(router_v6)) =
            (self.router(Version::V4), self.router(Version::V6))
        else {
            unreachable!("a router has an address of each family")
        };
        let network = NodeNetwork {
            router_v4: Some(router_v4),
            router_v6: Some(router_v6),
            pools: Version::ALL.map(|version| range(version, self.number)).to_vec(),
            mtu: MTU,
            uplinks: vec![self.uplink.device().to_owned()],
            system: SystemPaths {
                networkd_state: nowhere("state"),
                networkd_dir: nowhere("network"),
                udev_state: nowhere("udev"),
                sysctl_dir: nowhere("sysctl"),
                reload: false,
            },
        };
        self.host.run(|| {
            let (mut journal, mut save) = (Journal::default(), |_: &Journal| Ok(()));
            let mut recorder = Recorder::new(&mut journal, "memory".as_ref(), &mut save);
            network.apply(&mut recorder).unwrap();
            let tunnel = Tunnel { port: PORT, mtu: MTU - TUNNEL_OVERHEAD };
            (between == Between::Tunnel).then(|| tunnel.apply(&mut recorder).unwrap())
        })
    }

    /// What the agent would learn of itself and of the others.
    fn learn(&self, between: Between, count: u8, tunnel: Option<u32>) {
        for (version, world) in Version::ALL.into_iter().zip(WORLD) {
            for (ip, flags) in [(self.router(version), ADDR_GATEWAY), (self.address(version), 0)] {
                self.set_local(ip, Local { slot: SLOT_HOST, flags });
                self.set_identity(ip, None, IpcacheValue { identity: HOST, ..IpcacheValue::default() });
            }
            let value = IpcacheValue { identity: world, ..IpcacheValue::default() };
            self.set_identity(
                if version == Version::V4 { [0; 4].into() } else { [0; 16].into() },
                Some(0),
                value,
            );
            for other in (1..=count).filter(|other| *other != self.number) {
                self.learn_of(version, other, between, tunnel);
            }
        }
        let config = Config {
            router_ifindex: self.host.index(villus_net::ROUTER_DEVICE),
            overlay_ifindex: tunnel.unwrap_or_default(),
            overlay_mtu: tunnel.map_or(0, |_| MTU - TUNNEL_OVERHEAD),
            tunnel_port: PORT.to_be(),
            tunnel_source: match (tunnel, self.address(Version::V4)) {
                (Some(_), IpAddr::V4(v4)) => u32::from_ne_bytes(v4.octets()),
                _ => 0,
            },
            tunnel_uplink: self.host.index(self.uplink.device()),
            tunnel_until: villus_datapath::now().wrapping_add(villus_abi::time::from_secs(86_400)),
            tunnel_ports: PORTS,
            tunnel_ttl: 64,
            ..Config::default()
        };
        self.maps.config.insert(&0, &config).unwrap();
    }

    fn learn_of(&self, version: Version, other: u8, between: Between, device: Option<u32>) {
        let tunnel = match (between, node_ip(Version::V4, other)) {
            (Between::Tunnel, IpAddr::V4(v4)) => u32::from_ne_bytes(v4.octets()),
            _ => 0,
        };
        let value = |identity, tunnel| IpcacheValue { identity, tunnel, ..IpcacheValue::default() };
        self.set_identity(node_ip(version, other), None, value(REMOTE_NODE, 0));
        self.set_identity(router_ip(version, other), None, value(REMOTE_NODE, tunnel));
        let routed = if tunnel == 0 { FLAG_ROUTED } else { 0 };
        let pod = IpcacheValue { flags: routed, ..value(identity(other), tunnel) };
        self.set_identity(pod_ip(version, other), None, pod);
        let net = range(version, other);
        let pending = IpcacheValue { flags: FLAG_PENDING | routed, ..value(0, tunnel) };
        self.set_identity(net.addr(), Some(net.prefix_len()), pending);
        if tunnel != 0 {
            for ip in [node_ip(version, other), router_ip(version, other)] {
                let key = match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                self.maps.nodes.insert(&key, &Node { tunnel, reserved: 0 }).unwrap();
            }
        }
        let hop = match device {
            Some(device) => NodeHop { device, gateway: None, source: Some(self.router(version)), mtu: None },
            None => NodeHop {
                device: self.host.index(self.uplink.device()),
                gateway: Some(node_ip(version, other)),
                source: Some(self.router(version)),
                mtu: None,
            },
        };
        self.host.run(|| set_node_route(net, &hop)).unwrap();
    }

    fn add_pod(&self) {
        self.policies.lock().unwrap().create(POD).unwrap();
        let (owner, slot) = (format!("pod-{}", self.number), u32::from(POD));
        let (node_mac, mac) = (Mac::from_seed(&format!("node {owner}")), Mac::from_seed(&owner));
        let addresses = Version::ALL.map(|version| self.pod(version));
        let routers = Version::ALL.map(|version| self.router(version));
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (addresses[0], addresses[1]) else { unreachable!() };
        let (IpAddr::V4(router_v4), IpAddr::V6(router_v6)) = (routers[0], routers[1]) else { unreachable!() };
        let spec = EndpointLinkSpec {
            owner: &owner,
            host_name: &host_device_name(&owner),
            host_mac: node_mac,
            netns: self.pod.netns(),
            container_name: CONTAINER_DEVICE,
            container_mac: mac,
            mtu: MTU,
            route_mtu: None,
            addresses: &addresses,
            gateway_v4: Some(router_v4),
            gateway_v6: Some(router_v6),
            host_sources: &routers,
        };
        let install = |ifindex: u32| {
            let record = Endpoint {
                id: POD,
                flags: FLAG_ACTIVE | FLAG_CHECK_MAC | FLAG_DELIVER_PEER,
                identity: self.identity(),
                ifindex,
                mtu: MTU,
                mac: mac.0,
                node_mac: node_mac.0,
                ipv4: u32::from_ne_bytes(v4.octets()),
                policy: slot,
                ipv6: words(v6.octets()),
                ..Endpoint::default()
            };
            self.maps.endpoints.insert(&slot, &record).unwrap();
            for ip in addresses {
                self.set_local(ip, Local { slot, flags: 0 });
                let value = IpcacheValue { identity: self.identity(), ..IpcacheValue::default() };
                self.set_identity(ip, None, value);
            }
            self.maps.devices.insert(&ifindex, &slot).unwrap();
            let links = Links::new(&self.pins);
            for hook in [Hook::FromEndpoint, Hook::ToEndpoint] {
                links.attach(self.object.program(hook).unwrap(), hook, ifindex, attach_mode()).unwrap();
            }
        };
        self.host
            .run(|| {
                create_endpoint_link(&spec, |link| {
                    install(link.host_index);
                    Ok::<_, String>(())
                })
            })
            .unwrap();
    }

    fn attach(&self, device: &str, hooks: &[Hook]) {
        let (index, links) = (self.host.index(device), Links::new(&self.pins));
        for hook in hooks {
            self.host
                .run(|| links.attach(self.object.program(*hook).unwrap(), *hook, index, attach_mode()))
                .unwrap();
        }
    }

    fn set_local(&self, ip: IpAddr, local: Local) {
        match ip {
            IpAddr::V4(v4) => self.maps.addrs4.insert(&u32::from_ne_bytes(v4.octets()), &local).unwrap(),
            IpAddr::V6(v6) => self.maps.addrs6.insert(&v6.octets(), &local).unwrap(),
        }
    }

    /// Says who a prefix is; without a length it is the address alone.
    pub fn set_identity(&self, ip: IpAddr, length: Option<u8>, value: IpcacheValue) {
        self.maps.ipcache.insert(&key(ip, length), &value).unwrap();
    }

    /// Forgets who an address is.
    pub fn forget_identity(&self, ip: IpAddr) {
        self.maps.ipcache.remove(&key(ip, None)).unwrap();
    }

    /// Lets the programs wrap packets for the tunnel, or leaves that to the tunnel's device.
    pub fn wraps(&self, wraps: bool) {
        let mut config = self.maps.config.get(&0).unwrap().unwrap();
        let now = villus_datapath::now();
        // The programs' clock may be late by a jiffy, so what is to be over is over for longer.
        config.tunnel_until = if wraps {
            now.wrapping_add(villus_abi::time::from_secs(86_400))
        } else {
            now.wrapping_sub(villus_abi::time::from_secs(1))
        };
        self.maps.config.insert(&0, &config).unwrap();
    }

    /// Says that the node's IPsec has policies, or has none.
    pub fn asks_ipsec(&self, asks: bool) {
        let mut config = self.maps.config.get(&0).unwrap().unwrap();
        config.flags = config.flags & !FLAG_IPSEC | if asks { FLAG_IPSEC } else { 0 };
        self.maps.config.insert(&0, &config).unwrap();
    }

    /// The Ethernet address that the pod's packets go to.
    #[must_use]
    pub fn gateway_mac(&self) -> Mac {
        Mac::from_seed(&format!("node pod-{}", self.number))
    }

    /// Its address on the network.
    #[must_use]
    pub fn address(&self, version: Version) -> IpAddr {
        node_ip(version, self.number)
    }

    /// Its router, which is the source of its own connections to pods.
    #[must_use]
    pub fn router(&self, version: Version) -> IpAddr {
        router_ip(version, self.number)
    }

    /// The address of its pod.
    #[must_use]
    pub fn pod(&self, version: Version) -> IpAddr {
        pod_ip(version, self.number)
    }

    /// The identity of its pod.
    #[must_use]
    pub fn identity(&self) -> u32 {
        identity(self.number)
    }

    /// Lets the pod speak with an identity in a direction; 0 is any.
    pub fn allow(&self, direction: Direction, identity: u32, port: u16, proto: u8) -> PolicyKey {
        let key = PolicyKey::new(identity, port, proto, direction);
        hand_insert(&self.pins, &self.maps, POD, &key, &PolicyEntry::ALLOW).unwrap();
        key
    }

    /// Lets the pod do everything.
    pub fn allow_all(&self) {
        for direction in Direction::ALL {
            self.allow(direction, 0, 0, 0);
        }
    }

    /// Takes an entry of the pod's policy away.
    pub fn forget(&self, key: &PolicyKey) {
        hand_remove(&self.pins, &self.maps, POD, key).unwrap();
    }

    /// Packets that an entry of the pod's policy has decided.
    #[must_use]
    pub fn decided(&self, key: &PolicyKey) -> u64 {
        let view = villus_datapath::view_policy(&self.pins, &self.maps, POD).unwrap();
        view.entries.get(key).map_or(0, |entry| entry.packets)
    }

    /// Packets counted under a reason and direction.
    #[must_use]
    pub fn counted(&self, reason: Reason, direction: Direction) -> u64 {
        let all = villus_datapath::metrics(&self.maps).unwrap();
        all.get(&metrics::index(reason.0, direction as u8)).map_or(0, |metric| metric.packets)
    }

    /// Reasons for which packets were dropped, with how many.
    #[must_use]
    pub fn drops(&self) -> Vec<(Reason, u64)> {
        let all = villus_datapath::metrics(&self.maps).unwrap();
        let reasons = all.into_iter().map(|(index, metric)| (Reason((index >> 1) as u8), metric.packets));
        reasons.filter(|(reason, packets)| reason.is_drop() && *packets > 0).collect()
    }

    /// The flow table.
    #[must_use]
    pub fn flows(&self) -> Flows {
        Flows::new(self.maps.clone())
    }
}

/// The better way of attaching that the kernel has.
fn attach_mode() -> AttachMode {
    if Features::probe().has_tcx() { AttachMode::Tcx } else { AttachMode::Tc }
}

fn key(ip: IpAddr, length: Option<u8>) -> IpcacheKey {
    match ip {
        IpAddr::V4(v4) => IpcacheKey::v4(v4.octets(), length.unwrap_or(32)),
        IpAddr::V6(v6) => IpcacheKey::v6(v6.octets(), length.unwrap_or(128)),
    }
}

fn sizes() -> Sizes {
    Sizes { endpoints: 256, ipcache: 1024, frags: 1024, ct_tcp: 4096, ct_any: 4096, ..Sizes::default() }
}
