//! What the path needs from where it runs.

use core::cell::Cell;

use villus_abi::{
    Config, Endpoint, Event, FlowCell, FlowRow, FragPorts, IpcacheValue, Local, Nat, NatCell, Node,
    PolicyCell, PolicyKey, Reason, Uplink, time, time::Tick,
};

use crate::{
    family::{Family, V4, V6},
    nat::lend,
    outcome::Outcome,
    policy::{Ask, Grant, Verdict, verdict},
    report::{emit, end},
    work::{Pick, Room},
    wrap::{Headers, Wrapping, by_tunnel},
};

/// Where a routed packet goes next on a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Neighbour {
    /// Interface to send it through.
    pub ifindex: u32,
    /// MAC of the neighbour.
    pub mac: [u8; 6],
    /// MAC of that interface.
    pub own_mac: [u8; 6],
}

/// What a tunnel says of a packet that it brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tunnel {
    /// Node that sent it, IPv4 in network order.
    pub from: u32,
    /// Identity of its sender; 0 where the address must say.
    pub identity: u32,
}

/// One endpoint's policy map, fetched once per packet and endpoint.
pub trait PolicyMap {
    /// The entry under exactly this key.
    fn entry(&self, key: &PolicyKey) -> Option<&PolicyCell>;
}

/// Look-ups and changes that exist once per address family.
pub trait Net<F: Family> {
    /// Whose address on this node it is.
    fn local(&self, addr: &F::Addr) -> Option<Local>;
    /// The longest prefix of the ipcache that covers it.
    fn remote(&self, addr: &F::Addr) -> Option<IpcacheValue>;
    /// The flow under this key, expired or not.
    fn flow(&self, key: &F::FlowKey, tcp: bool) -> Option<&FlowCell>;
    /// Stores a flow, over an old one if there is one. False when the table refuses.
    fn create(&self, key: &F::FlowKey, tcp: bool, row: &FlowRow) -> bool;
    /// Forgets a flow.
    fn remove(&self, key: &F::FlowKey, tcp: bool);
    /// The ports of a fragmented datagram.
    fn ports(&self, key: &F::FragKey) -> Option<FragPorts>;
    /// Remembers the ports of a fragmented datagram. False when the table refuses.
    fn remember(&self, key: &F::FragKey, ports: &FragPorts) -> bool;
    /// The `MASQUERADE_*` flags of the longest prefix that covers an address; 0 if none does.
    fn masquerades(&self, addr: &F::Addr) -> u32;
    /// What a packet's source or destination becomes, expired or not.
    fn nat(&self, key: &F::NatKey) -> Option<&NatCell>;
    /// Stores an entry where there is none. False when there is one, or the table refuses.
    fn claim(&self, key: &F::NatKey, nat: &Nat) -> bool;
    /// Forgets an entry.
    fn release(&self, key: &F::NatKey);
}

/// Everything a packet is judged by.
pub trait World: Net<V4> + Net<V6> {
    /// An endpoint's policy map.
    type Policy: PolicyMap;

    /// Nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;
    /// The tick of the monotonic clock, late by less than one.
    #[inline(always)]
    fn now(&self) -> Tick {
        time::from_ns(self.now_ns())
    }
    /// Runtime configuration; its flags are 0 until an agent has written it.
    fn config(&self) -> Option<&Config>;
    /// The endpoint slot of an interface.
    fn device(&self, ifindex: u32) -> Option<u32>;
    /// The endpoint record of an interface, in use or not.
    #[inline(always)]
    fn endpoint_on(&self, ifindex: u32) -> Option<&Endpoint> {
        self.endpoint(self.device(ifindex)?)
    }
    /// The endpoint record of a slot, in use or not.
    fn endpoint(&self, slot: u32) -> Option<&Endpoint>;
    /// The node that has an address (IPv4 as `::ffff:a.b.c.d`).
    fn node(&self, addr: &[u32; 4]) -> Option<Node>;
    /// The device through which packets leave the node, by its interface index.
    fn uplink(&self, ifindex: u32) -> Option<Uplink>;
    /// The policy map in a slot of the array of policy maps.
    fn policy(&self, slot: u32) -> Option<Self::Policy>;
    /// Asks a policy map. The kernel does so in a function that the verifier looks at once.
    #[inline(always)]
    fn ask(&self, ask: &Ask) -> Verdict
    where
        Self: Sized,
    {
        verdict(self, ask)
    }
    /// The entry that allowed what was asked before in the same words, if that is remembered. Called before anything is looked up:
    /// what changes from here on must be seen by who asks next.
    #[inline(always)]
    fn granted(&self, _ask: &Ask) -> Option<Grant> {
        None
    }
    /// Remembers the entry that allows what was asked; who remembers nothing looks all of them up each time.
    #[inline(always)]
    fn grants(&self, _ask: &Ask, _grant: &Grant) {}
    /// Adds to a counter that others may add to at the same time.
    fn add(&self, counter: &Cell<u64>, amount: u64);
    /// Counts a packet under a reason and direction (0 ingress, 1 egress).
    fn count(&self, reason: Reason, direction: u8, bytes: u32);
    /// Reports to user space; counts the loss when there is no room.
    fn emit(&self, event: &Event);
}

/// A packet at a hook, starting at its Ethernet header.
pub trait Packet {
    /// Length with the Ethernet header.
    fn len(&self) -> u32;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Interface of the hook.
    fn ifindex(&self) -> u32;
    /// Interface it came into the node by; 0 when it was made on this node.
    fn ingress_ifindex(&self) -> u32;
    /// Its mark.
    fn mark(&self) -> u32;
    /// Size of a segment when it is a train of segments, else 0.
    fn gso_size(&self) -> u32;
    /// Whether it carries a VLAN tag outside its bytes.
    fn vlan(&self) -> bool;
    /// Hash of its flow, for reports.
    fn hash(&self) -> u32;
    /// Copies `N` bytes from `offset`, or `None` if they are not all there.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Copies `N` words of four bytes from `offset`, each as it lies in memory. Aligned, where the machine cares.
    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((offset..).step_by(4)) {
            *word = u32::from_ne_bytes(self.load::<4>(at)?);
        }
        Some(words)
    }
    /// As [`Packet::words`], with two bytes each.
    #[inline(always)]
    fn halves<const N: usize>(&self, offset: u32) -> Option<[u16; N]> {
        let mut halves = [0; N];
        for (half, at) in halves.iter_mut().zip((offset..).step_by(2)) {
            *half = u16::from_ne_bytes(self.load::<2>(at)?);
        }
        Some(halves)
    }
    /// Writes `N` bytes at `offset`; false if that failed. `sum` says that the bytes count towards a
    /// checksum the device has made over the packet.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], sum: bool) -> bool;
    /// Cuts the packet to a length or adds bytes at its end; false if that failed.
    fn resize(&mut self, len: u32) -> bool;
    /// What the tunnel that brought it says; `None` if it came by none, or by one over IPv6.
    fn tunnel(&self) -> Option<Tunnel>;
    /// Says to which node (IPv4 in network order) the tunnel's device is to send it, and the identity of its sender.
    /// False if that failed.
    fn encapsulate(&mut self, to: u32, identity: u32) -> bool;
    /// Puts the first bytes of a packet that is wrapped for the tunnel in the place of its own, [`AROUND`](crate::AROUND) bytes
    /// longer than those, and tells the kernel what is inside: segments and checksums are made of that.
    fn wrap(&mut self, headers: &Headers) -> Wrapping;
    /// The number of the next packet around another (the identification of IPv4); a train of segments takes as many as it has.
    fn number(&mut self) -> u16;
    /// Sends the packet in the room into the tunnel, see [`by_tunnel`]. As [`Packet::parse`] in the kernel.
    #[inline(always)]
    fn by_tunnel<F: Pick, W: World + Net<F>>(&mut self, w: &W, room: &mut Room<F>, identity: u32) -> Outcome
    where
        Self: Sized,
    {
        by_tunnel(w, self, room, identity)
    }
    /// Fills in the facts of a packet. The kernel does so in a function that the verifier looks at once.
    #[inline(always)]
    fn parse<F: Pick>(&self, room: &mut Room<F>, l3_only: bool) -> Reason
    where
        Self: Sized,
    {
        F::parse(self, &mut room.facts, l3_only)
    }
    /// Reports the packet with the facts and the note in its room. As [`Packet::parse`] in the kernel.
    #[inline(always)]
    fn emit<F: Pick, W: World>(&self, w: &W, room: &mut Room<F>)
    where
        Self: Sized,
    {
        emit(w, self, room);
    }
    /// Counts and reports a packet's end. As [`Packet::parse`] in the kernel.
    #[inline(always)]
    fn end<F: Pick, W: World>(&self, w: &W, config: &Config, room: &mut Room<F>, reason: Reason)
    where
        Self: Sized,
    {
        end(w, self, config, room, reason);
    }
    /// Adds a difference (one's complement, as the bytes lie in memory) to the IPv4 header's checksum at `offset`; false if that
    /// failed.
    fn add_to_ip_sum(&mut self, offset: u32, difference: u32) -> bool;
    /// Adds a difference to a transport's checksum at `offset`; false if that failed. `pseudo` says that it is of the addresses,
    /// which count also where the device is to complete the sum; `optional` that a sum of 0 is none.
    fn add_to_sum(&mut self, offset: u32, difference: u32, pseudo: bool, optional: bool) -> bool;
    /// Whether the host has a socket that has a local address and port, and a peer, of IPv4: connected to it, or bound where
    /// there are no connections. All in network order.
    fn is_hosts4(&mut self, proto: u8, local: (u32, u16), peer: (u32, u16)) -> bool;
    /// As [`Packet::is_hosts4`] for IPv6.
    fn is_hosts6(&mut self, proto: u8, local: (&[u32; 4], u16), peer: (&[u32; 4], u16)) -> bool;
    /// Tries to lend a port (host order) to the packet in the room. As [`Packet::parse`] in the kernel.
    #[inline(always)]
    fn lend<F: Pick, W: World + Net<F>>(&mut self, w: &W, room: &mut Room<F>, port: u16, own: bool) -> bool
    where
        Self: Sized,
    {
        lend(w, self, room, port, own)
    }
    /// Asks the routing table for the neighbour of an IPv4 packet and fills it in; false when the stack must
    /// see the packet.
    fn neighbour4(&mut self, src: u32, dst: u32, l3_len: u32, next: &mut Neighbour) -> bool;
    /// As [`Packet::neighbour4`] for IPv6.
    fn neighbour6(&mut self, src: &[u32; 4], dst: &[u32; 4], l3_len: u32, next: &mut Neighbour) -> bool;
}
