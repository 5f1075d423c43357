//! A node in memory, and packets at its hooks.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod random;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_abi::{
    Config, Direction, Endpoint, Event, Flow, IpcacheValue, Local, Node, PolicyEntry, PolicyKey, Reason,
    config::FLAG_HOST_POLICY,
    endpoint::{
        ADDR_GATEWAY, FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DELIVER_DEVICE, FLAG_DELIVER_PEER, FLAG_DHCP,
        MASK_ALL,
    },
    event::{KIND_DROP, KIND_TRACE, KIND_VERDICT},
    ipcache::FLAG_PENDING,
};
use villus_path::{
    Action, Outcome, Tunnel, Work, from_endpoint, from_network, from_overlay,
    memory::{Build, Frame, Memory},
    to_endpoint, to_network, to_overlay,
};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Reached by its peer.
pub const CLIENT: u16 = 1;
/// Reached by its peer.
pub const SERVER: u16 = 2;
/// A tap: reached by its device; DHCP is allowed.
pub const TAP: u16 = 3;
/// Reached by the stack only.
pub const FAR: u16 = 4;
/// The slot of the node itself.
pub const HOST: u16 = 0;

/// Interface of the uplink.
pub const UPLINK: u32 = 7;
/// Interface of the tunnel's device.
pub const OVERLAY: u32 = 90;
pub const WORLD: u32 = 2;

pub struct Lab {
    pub world: Memory,
}

pub const fn ifindex(id: u16) -> u32 {
    100 + id as u32
}

pub const fn identity(id: u16) -> u32 {
    if id == HOST { 1 } else { 1000 + id as u32 }
}

pub const fn mac(id: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, id as u8]
}

pub const fn node_mac(id: u16) -> [u8; 6] {
    [2, 0, 0, 0, 1, id as u8]
}

/// An endpoint's address, the router's for [`HOST`].
pub fn addr(v6: bool, id: u16) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100 + id).into()
    } else {
        Ipv4Addr::new(10, 0, 0, 100 + id as u8).into()
    }
}

/// Somebody on the other side of the uplink.
pub fn outside(v6: bool) -> IpAddr {
    if v6 { "2001:db8::9".parse().unwrap() } else { Ipv4Addr::new(192, 0, 2, 9).into() }
}

/// Two other nodes to which the tunnel leads, as the tunnel knows them.
pub const NODE_B: u32 = u32::from_ne_bytes([192, 0, 2, 12]);
pub const NODE_C: u32 = u32::from_ne_bytes([192, 0, 2, 13]);

/// An endpoint behind node B (identity 2011) or C (2012).
pub fn behind(v6: bool, node: u32) -> IpAddr {
    let number = u16::from(node.to_ne_bytes()[3]);
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, number, 0, 0, 0, 5).into()
    } else {
        Ipv4Addr::new(10, 0, number as u8, 5).into()
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn record(id: u16, flags: u16) -> Endpoint {
    Endpoint {
        id,
        flags: FLAG_ACTIVE | FLAG_CHECK_MAC | flags,
        identity: identity(id),
        ifindex: ifindex(id),
        mtu: 1500,
        mask: [MASK_ALL; 2],
        mac: mac(id),
        node_mac: node_mac(id),
        policy: u32::from(id),
        ..Endpoint::default()
    }
}

/// The node's record.
pub fn host_record(flags: u16) -> Endpoint {
    Endpoint {
        flags: FLAG_ACTIVE | flags,
        identity: identity(HOST),
        mask: [MASK_ALL; 2],
        ..Endpoint::default()
    }
}

pub fn allow_all() -> [(PolicyKey, PolicyEntry); 2] {
    Direction::ALL.map(|direction| (PolicyKey::new(0, 0, 0, direction), PolicyEntry::ALLOW))
}

impl Default for Lab {
    fn default() -> Self {
        Self::with(Config::default())
    }
}

impl Lab {
    pub fn with(config: Config) -> Self {
        let mut world = Memory::new(config);
        for (id, flags) in [
            (CLIENT, FLAG_DELIVER_PEER),
            (SERVER, FLAG_DELIVER_PEER),
            (TAP, FLAG_DELIVER_DEVICE | FLAG_DHCP),
            (FAR, 0),
        ] {
            world.add_endpoint(record(id, flags), &[addr(false, id), addr(true, id)]);
            world.set_policy(u32::from(id), allow_all());
        }
        for v6 in [false, true] {
            world.addrs.insert(addr(v6, HOST), Local { slot: 0, flags: ADDR_GATEWAY });
        }
        let mut lab = Self { world };
        lab.row("0.0.0.0", 0, 9, false);
        lab.row("::", 0, 10, false);
        lab
    }

    pub fn row(&mut self, address: &str, len: u8, identity: u32, pending: bool) {
        let flags = if pending { FLAG_PENDING } else { 0 };
        let value = IpcacheValue { identity, flags, ..IpcacheValue::default() };
        self.world.ipcache.insert_prefix(ip(address), len, value);
    }

    /// Packets to endpoints of other nodes take a tunnel: there are nodes B and C, each with an endpoint.
    pub fn tunnel(&mut self) {
        tunnel(&mut self.world);
    }

    /// The tunnel brings a packet.
    pub fn brought(&self, from: u32, identity: u32, packet: &Build) -> Outcome {
        self.run_brought(Some(Tunnel { from, identity }), packet).0
    }

    pub fn run_brought(&self, tunnel: Option<Tunnel>, packet: &Build) -> (Outcome, Frame) {
        let mut frame = Frame { tunnel, ..Frame::new(packet.frame(), OVERLAY) };
        (from_overlay(&self.world, &mut frame, &mut Work::default()), frame)
    }

    /// The stack sends a packet into the tunnel: made on the node (`ingress` 0) or forwarded.
    pub fn sent(&self, ingress: u32, packet: &Build) -> (Outcome, Frame) {
        let mut frame = Frame::new(packet.frame(), OVERLAY).via(ingress);
        (to_overlay(&self.world, &mut frame, &mut Work::default()), frame)
    }

    /// Sets an endpoint's policy: `(identity, port, protocol, direction, allows)`.
    pub fn policy(&mut self, id: u16, entries: &[(u32, u16, u8, Direction, bool)]) {
        let entries = entries.iter().map(|(identity, port, proto, direction, allows)| {
            let entry = if *allows { PolicyEntry::ALLOW } else { PolicyEntry::DENY };
            (PolicyKey::new(*identity, *port, *proto, *direction), entry)
        });
        self.world.set_policy(u32::from(id), entries);
    }

    /// One direction of an endpoint's policy, the other one open.
    pub fn only(&mut self, id: u16, direction: Direction, keys: &[(u32, u16, u8)]) {
        let other = if direction == Direction::Egress { Direction::Ingress } else { Direction::Egress };
        let mut entries = vec![(0, 0, 0, other, true)];
        entries
            .extend(keys.iter().map(|(identity, port, proto)| (*identity, *port, *proto, direction, true)));
        self.policy(id, &entries);
    }

    pub fn run_from(&self, id: u16, bytes: Vec<u8>) -> (Outcome, Frame) {
        let mut frame = Frame::new(bytes, ifindex(id));
        (from_endpoint(&self.world, &mut frame, &mut Work::default()), frame)
    }

    /// An endpoint sends.
    pub fn from(&self, id: u16, packet: &Build) -> Outcome {
        self.run_from(id, packet.clone().from_mac(mac(id)).frame()).0
    }

    /// The stack delivers what came by `ingress`.
    pub fn to(&self, id: u16, ingress: u32, packet: &Build) -> Outcome {
        let mut frame = Frame::new(packet.frame(), ifindex(id)).via(ingress);
        to_endpoint(&self.world, &mut frame, &mut Work::default())
    }

    /// A packet comes in on the uplink.
    pub fn net(&self, packet: &Build) -> Outcome {
        let mut frame = Frame::new(packet.frame(), UPLINK);
        from_network(&self.world, &mut frame, &mut Work::default())
    }

    /// A packet goes out on the uplink, as the stack gives it there: made on the node (`ingress` 0) or forwarded.
    pub fn out(&self, ingress: u32, mark: u32, packet: &Build) -> Outcome {
        let mut frame = Frame::new(packet.frame(), UPLINK).via(ingress);
        frame.mark = mark;
        to_network(&self.world, &mut frame, &mut Work::default())
    }

    /// The node itself is judged, by a policy of its own that is open.
    pub fn select_node(&mut self, flags: u16) {
        self.world.config.as_mut().unwrap().flags |= FLAG_HOST_POLICY;
        self.world.endpoints.insert(u32::from(HOST), host_record(flags));
        self.world.set_policy(u32::from(HOST), allow_all());
    }

    /// The flow that there is.
    pub fn flow(&self) -> Flow {
        let flows = self.world.flows();
        assert_eq!(flows.len(), 1, "{flows:?}");
        *flows.values().next().unwrap()
    }

    pub fn flows(&self) -> usize {
        self.world.flows().len()
    }

    /// Packets that an endpoint's policy has counted, in one direction.
    pub fn judged(&self, id: u16, direction: Direction) -> u64 {
        let entries = self.world.policy_entries(u32::from(id)).unwrap();
        entries.iter().filter(|(key, _)| key.dir() == direction).map(|(_, entry)| entry.packets).sum()
    }

    pub fn events(&self) -> Vec<Event> {
        self.world.take_events()
    }

    /// Kinds of the events since the last call: `d`rop, `t`race, `v`erdict.
    pub fn kinds(&self) -> String {
        self.events()
            .iter()
            .map(|event| match event.kind {
                KIND_DROP => 'd',
                KIND_TRACE => 't',
                KIND_VERDICT => 'v',
                _ => '?',
            })
            .collect()
    }
}

/// The address of this node in the tunnel, the first port of its flows, and for how long they may be wrapped past the stack.
pub const NODE_A: u32 = u32::from_ne_bytes([192, 0, 2, 1]);
pub const FLOW_PORT: u16 = 50_000;
pub const LONG: u32 = 1 << 30;

/// What goes into the tunnel is wrapped past the stack, where the uplink leads to the node.
pub fn wraps(world: &mut Memory) {
    let config = world.config.as_mut().unwrap();
    config.tunnel_source = NODE_A;
    config.tunnel_uplink = UPLINK;
    config.tunnel_until = LONG;
    config.tunnel_ports = [FLOW_PORT, 1];
    config.tunnel_ttl = 61;
}

/// Makes packets to endpoints of other nodes take a tunnel: there are nodes B and C, each with an endpoint.
pub fn tunnel(world: &mut Memory) {
    let config = world.config.as_mut().unwrap();
    config.overlay_ifindex = OVERLAY;
    config.overlay_mtu = 1450;
    config.tunnel_port = 8472_u16.to_be();
    for (node, identity) in [(NODE_B, 2011), (NODE_C, 2012)] {
        let [a, b, c, d] = node.to_ne_bytes();
        // The second is another address of the same node.
        for address in [Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(a, b, c + 100, d)] {
            world.nodes.insert(address.into(), Node { tunnel: node, reserved: 0 });
            let value = IpcacheValue { identity: 6, ..IpcacheValue::default() };
            world.ipcache.insert_prefix(address.into(), 32, value);
        }
        for (address, len) in [(behind(false, node), 32), (behind(true, node), 128)] {
            let value = IpcacheValue { identity, tunnel: node, ..IpcacheValue::default() };
            world.ipcache.insert_prefix(address, len, value);
            // The others of its range are not known yet.
            let value = IpcacheValue { tunnel: node, flags: FLAG_PENDING, ..value };
            world.ipcache.insert_prefix(address, if len == 32 { 24 } else { 64 }, value);
        }
    }
}

/// What became of a packet: `Ok(action, interface)` or the reason it ended for.
pub fn end(outcome: Outcome) -> Result<(Action, u32), Reason> {
    match outcome.action() {
        Action::Drop => Err(outcome.reason()),
        action => Ok((action, outcome.ifindex())),
    }
}

pub const PASS: Result<(Action, u32), Reason> = Ok((Action::Pass, 0));

pub const fn peer(id: u16) -> Result<(Action, u32), Reason> {
    Ok((Action::Peer, ifindex(id)))
}

pub const fn device(id: u16) -> Result<(Action, u32), Reason> {
    Ok((Action::Device, ifindex(id)))
}
