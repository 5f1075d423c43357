//! A packet in memory.

use std::{cell::Cell, net::SocketAddr, vec::Vec};

use super::{address4, address6};
use crate::{
    nat::sum,
    world::{Neighbour, Packet, Tunnel},
    wrap::{AROUND, Headers, Wrapping},
};

/// What the routing table says for the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHop {
    /// Where it goes.
    pub neighbour: Neighbour,
    /// The largest layer-3 packet that fits there.
    pub mtu: u32,
}

/// A packet at a hook: its bytes from the Ethernet header on, and what the kernel knows beside them.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Interface it came into the node by; 0 when it was made on this node.
    pub ingress_ifindex: u32,
    /// Its mark.
    pub mark: u32,
    /// Size of a segment when it is a train of segments, else 0.
    pub gso_size: u32,
    /// Whether it carries a VLAN tag outside its bytes.
    pub vlan: bool,
    /// Hash of its flow.
    pub hash: u32,
    /// The routing table's answer; `None` sends the packet to the stack.
    pub next_hop: Option<NextHop>,
    /// Its answers for what goes to nodes (network order).
    pub node_hops: Vec<(u32, Option<NextHop>)>,
    /// Fails the n-th write from now, counted from 1; 0 fails none.
    pub failing_write: u32,
    /// What the tunnel says that brought it.
    pub tunnel: Option<Tunnel>,
    /// Where to and who from the tunnel was told that it is: node (network order) and identity.
    pub encapsulated: Option<(u32, u32)>,
    /// Whether the kernel refuses to wrap it.
    pub unwrappable: bool,
    /// Number of the last packet around another.
    pub number: u16,
    /// Whether the device is to complete the transport's checksum, which holds the sum of the pseudo header until then.
    pub partial: bool,
    /// Sockets of the host: protocol, own end, and peer if it is connected.
    pub sockets: Vec<(u8, SocketAddr, Option<SocketAddr>)>,
    /// How large a packet the routing table was asked about last.
    pub asked_len: Cell<u32>,
}

impl Frame {
    /// A packet with these bytes at a hook on `ifindex`, received by the same interface.
    #[must_use]
    pub fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self { bytes, ifindex, ingress_ifindex: ifindex, ..Self::default() }
    }

    /// The same packet with another interface that it came by.
    #[must_use]
    pub fn via(self, ingress_ifindex: u32) -> Self {
        Self { ingress_ifindex, ..self }
    }

    fn writes(&mut self) -> bool {
        if self.failing_write == 0 {
            return true;
        }
        self.failing_write -= 1;
        self.failing_write != 0
    }

    fn is_hosts(&self, proto: u8, local: SocketAddr, peer: SocketAddr) -> bool {
        let is = |(of, own, to): &(u8, SocketAddr, Option<SocketAddr>)| {
            *of == proto && *own == local && to.is_none_or(|to| to == peer)
        };
        self.sockets.iter().any(is)
    }

    fn route(&self, hop: Option<NextHop>, l3_len: u32, next: &mut Neighbour) -> bool {
        self.asked_len.set(l3_len);
        match hop {
            Some(hop) if l3_len <= hop.mtu => {
                *next = hop.neighbour;
                true
            }
            _ => false,
        }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn vlan(&self) -> bool {
        self.vlan
    }

    fn hash(&self) -> u32 {
        self.hash
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], _sum: bool) -> bool {
        if !self.writes() {
            return false;
        }
        let Ok(start) = usize::try_from(offset) else { return false };
        let Some(end) = start.checked_add(N) else { return false };
        match self.bytes.get_mut(start..end) {
            Some(to) => {
                to.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn resize(&mut self, len: u32) -> bool {
        self.bytes.resize(len as usize, 0);
        true
    }

    fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel
    }

    fn encapsulate(&mut self, to: u32, identity: u32) -> bool {
        let written = self.writes();
        if written {
            self.encapsulated = Some((to, identity));
        }
        written
    }

    fn wrap(&mut self, headers: &Headers) -> Wrapping {
        if self.unwrappable {
            return Wrapping::Refused;
        }
        let bytes: Vec<u8> = headers.0.iter().flat_map(|half| half.to_ne_bytes()).collect();
        let replaced = bytes.len() - AROUND as usize;
        if self.bytes.len() < replaced {
            return Wrapping::Refused;
        }
        if !self.writes() {
            return Wrapping::Torn;
        }
        self.bytes.splice(..replaced, bytes);
        Wrapping::Done
    }

    fn number(&mut self) -> u16 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    fn add_to_ip_sum(&mut self, offset: u32, difference: u32) -> bool {
        let Some([sum]) = self.halves::<1>(offset) else { return false };
        self.store(offset, &sum::replaced(sum, difference).to_ne_bytes(), false)
    }

    fn add_to_sum(&mut self, offset: u32, difference: u32, pseudo: bool, optional: bool) -> bool {
        let Some([sum]) = self.halves::<1>(offset) else { return false };
        if optional && sum == 0 {
            return true;
        }
        let mut new = match (self.partial, pseudo) {
            (false, _) => sum::replaced(sum, difference),
            (true, true) => sum::fold(sum::add(difference, u32::from(sum))),
            (true, false) => sum,
        };
        if optional && new == 0 {
            new = u16::MAX;
        }
        self.store(offset, &new.to_ne_bytes(), false)
    }

    fn is_hosts4(&mut self, proto: u8, local: (u32, u16), peer: (u32, u16)) -> bool {
        let at = |(address, port)| SocketAddr::new(address4(address), u16::from_be(port));
        self.is_hosts(proto, at(local), at(peer))
    }

    fn is_hosts6(&mut self, proto: u8, local: (&[u32; 4], u16), peer: (&[u32; 4], u16)) -> bool {
        let at = |(address, port)| SocketAddr::new(address6(address), u16::from_be(port));
        self.is_hosts(proto, at(local), at(peer))
    }

    fn neighbour4(&mut self, _src: u32, dst: u32, l3_len: u32, next: &mut Neighbour) -> bool {
        let hop = self.node_hops.iter().find(|(node, _)| *node == dst).map_or(self.next_hop, |(_, hop)| *hop);
        self.route(hop, l3_len, next)
    }

    fn neighbour6(&mut self, _src: &[u32; 4], _dst: &[u32; 4], l3_len: u32, next: &mut Neighbour) -> bool {
        self.route(self.next_hop, l3_len, next)
    }
}
