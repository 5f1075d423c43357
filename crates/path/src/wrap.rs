//! The way into the tunnel between nodes. What an endpoint sends there is wrapped in its own hook where that can be done: VXLAN over
//! IPv4, as the tunnel's device would do it, without that device's question to the routing table for each packet. All else
//! is left to the device: where an agent has not said that nothing on the host must see the outer packet, where the way to the
//! other node is not by the uplink or has no neighbour yet, and what is a fragment or too large.

use villus_abi::{Config, Reason};

use crate::{
    deliver::{largest, route},
    family::Family,
    outcome::{Action, Outcome},
    parse::{ETH_HLEN, Facts, UDP, expired},
    work::{Pick, Room},
    world::{Neighbour, Net, Packet, World},
};

/// Bytes that are put around a frame: headers of IPv4, UDP, VXLAN and, for the packet inside, Ethernet.
pub const AROUND: u32 = 20 + 8 + 8 + ETH_HLEN;

/// The first bytes of a wrapped packet in halves, as they lie in memory: Ethernet, what is around the packet, and of the packet
/// itself as much as a router changes.
pub const HALVES: usize = 7 + AROUND as usize / 2 + 6;

/// The first bytes of a wrapped packet.
#[derive(Clone, Copy)]
pub struct Headers(pub [u16; HALVES]);

impl Default for Headers {
    fn default() -> Self {
        Self([0; HALVES])
    }
}

/// What became of the attempt to wrap a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Wrapping {
    /// It cannot be, and is as it was.
    Refused = 0,
    /// It has its headers.
    Done = 1,
    /// There is room for headers, and nothing in it.
    Torn = 2,
}

/// Sends a packet of an endpoint, whose facts are in the room, to the node that is named there. A drop is not counted here.
#[inline(always)]
pub fn by_tunnel<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &mut Room<F>,
    identity: u32,
) -> Outcome {
    let Some(config) = w.config() else { return Outcome::drop(Reason::NOT_READY) };
    if let Some(next) = way(w, p, room, config) {
        write(p, room, config, &next, identity);
        match p.wrap(&room.outer) {
            Wrapping::Done => {
                room.note.around = AROUND as u8;
                return Outcome::leave(Action::Neighbour, next.ifindex);
            }
            Wrapping::Torn => return Outcome::drop(Reason::WRAP),
            Wrapping::Refused => {}
        }
    }
    by_device(p, room, identity)
}

/// Sends the packet to the tunnel's device.
#[inline(never)]
fn by_device<F: Pick, P: Packet>(p: &mut P, room: &mut Room<F>, identity: u32) -> Outcome {
    if !route(p, &room.facts, &room.next.mac, &room.next.own_mac) {
        return Outcome::drop(Reason::WRITE);
    }
    if !p.encapsulate(room.via, identity) {
        return Outcome::drop(Reason::TUNNEL_KEY);
    }
    Outcome::leave(Action::Tunnel, room.next.ifindex)
}

/// The neighbour to which the wrapped packet goes; `None` where it is a matter of the tunnel's device.
#[inline(always)]
fn way<F: Pick, W: World + Net<F>, P: Packet>(
    w: &W,
    p: &mut P,
    room: &Room<F>,
    config: &Config,
) -> Option<Neighbour> {
    let facts = &room.facts;
    if config.tunnel_source == 0 || expired(config.tunnel_until, w.now()) || facts.fragment {
        return None;
    }
    // A train of segments has one length too, that its segments' headers are made of.
    if facts.l3_len + AROUND > u16::MAX as u32 || p.len() != facts.l3_len + ETH_HLEN {
        return None;
    }
    let mut next = Neighbour::default();
    let fits = p.neighbour4(config.tunnel_source, room.via, largest(p, facts) + AROUND, &mut next);
    if fits && next.ifindex == config.tunnel_uplink { Some(next) } else { None }
}

/// Writes the headers into the room. A function of its own, as [`by_device`]: what they put on the stack is gone before others need
/// it.
#[inline(never)]
fn write<F: Pick, P: Packet>(
    p: &mut P,
    room: &mut Room<F>,
    config: &Config,
    next: &Neighbour,
    identity: u32,
) {
    let Some(inner) = p.halves::<13>(0) else { return };
    let facts = &room.facts;
    let len = facts.l3_len + AROUND;
    let port = source_port(config.tunnel_ports, p.hash());
    let ident = p.number();
    let out = &mut room.outer.0;
    mac(out, 0, &next.mac);
    mac(out, 3, &next.own_mac);
    out[6] = 0x0800_u16.to_be();
    // Nothing of the class inside is shown but what congestion does to it, all of it (RFC 6040, normal mode).
    out[7] = (0x4500 | congestion::<F>(inner[7])).to_be();
    out[8] = (len as u16).to_be();
    out[9] = ident.to_be();
    out[10] = 0;
    out[11] = u16::from_be_bytes([config.tunnel_ttl, UDP]).to_be();
    out[12] = 0;
    address(out, 13, config.tunnel_source);
    address(out, 15, room.via);
    out[12] = header_sum(out);
    out[17] = port.to_be();
    out[18] = config.tunnel_port;
    out[19] = ((len - 20) as u16).to_be();
    // IPv4 allows datagrams without a checksum: what is inside has its own.
    out[20] = 0;
    // The flag that there is a network identifier, and that. What is wider is of this node only; the receiver asks its own
    // ipcache.
    let shown = if identity >> 24 == 0 { identity } else { 0 };
    out[21] = 0x0800_u16.to_be();
    out[22] = 0;
    out[23] = ((shown >> 8) as u16).to_be();
    out[24] = ((shown << 8) as u16).to_be();
    mac(out, 25, &room.next.mac);
    mac(out, 28, &room.next.own_mac);
    out[31] = inner[6];
    let mut i = 0;
    while i < 6 {
        out[32 + i] = inner[7 + i];
        i += 1;
    }
    expire(out, facts);
}

/// Takes one from the TTL or hop limit, as a router does.
#[inline(always)]
fn expire<F: Family>(out: &mut [u16; HALVES], facts: &Facts<F>) {
    let ttl = facts.ttl.wrapping_sub(1);
    if F::V6 {
        let [next, _] = out[35].to_ne_bytes();
        out[35] = u16::from_ne_bytes([next, ttl]);
        return;
    }
    out[36] = u16::from_ne_bytes([ttl, facts.proto]);
    let sum = facts.check as u32 + 0x0100;
    out[37] = ((sum + (sum >= 0xffff) as u32) as u16).to_be();
}

/// The bits for congestion (RFC 3168) of a header whose first half is this.
#[inline(always)]
fn congestion<F: Family>(first: u16) -> u16 {
    let first = u16::from_be(first);
    (if F::V6 { first >> 4 } else { first }) & 3
}

/// The checksum of the IPv4 header around the packet, as it lies in memory.
#[inline(always)]
fn header_sum(out: &[u16; HALVES]) -> u16 {
    let mut sum = 0;
    let mut i = 7;
    while i < 17 {
        sum += out[i] as u32;
        i += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    !((sum + (sum >> 16)) as u16)
}

/// The port that tells a flow from others on the network, as the kernel's tunnels draw it from the flow's hash.
#[inline(always)]
fn source_port([least, count]: [u16; 2], hash: u32) -> u16 {
    let hash = hash ^ (hash << 16);
    least.wrapping_add(((hash as u64 * count as u64) >> 32) as u16)
}

#[inline(always)]
fn mac(out: &mut [u16; HALVES], at: usize, mac: &[u8; 6]) {
    out[at] = u16::from_ne_bytes([mac[0], mac[1]]);
    out[at + 1] = u16::from_ne_bytes([mac[2], mac[3]]);
    out[at + 2] = u16::from_ne_bytes([mac[4], mac[5]]);
}

#[inline(always)]
fn address(out: &mut [u16; HALVES], at: usize, address: u32) {
    let bytes = address.to_ne_bytes();
    out[at] = u16::from_ne_bytes([bytes[0], bytes[1]]);
    out[at + 1] = u16::from_ne_bytes([bytes[2], bytes[3]]);
}
