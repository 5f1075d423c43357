//! Frames made by hand, right or wrong on purpose, and read back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use villus_net::Mac;

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// IGMP.
pub const IGMP: u8 = 2;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMP6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The Ethernet addresses and IP addresses of a packet to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct L4 {
    /// Source on the link.
    pub from: Mac,
    /// Destination on the link.
    pub to: Mac,
    /// Source.
    pub src: IpAddr,
    /// Destination; of the source's family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// A frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// One's-complement sum of RFC 1071, ready to be stored.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Checksum of a transport header and its payload, with the pseudo-header.
#[must_use]
pub fn l4_checksum(src: IpAddr, dst: IpAddr, proto: u8, body: &[u8]) -> [u8; 2] {
    let length = (body.len() as u32).to_be_bytes();
    let tail = [0, 0, 0, proto];
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => checksum(&[&s.octets(), &d.octets(), &tail, &length, body]),
        (IpAddr::V6(s), IpAddr::V6(d)) => checksum(&[&s.octets(), &d.octets(), &length, &tail, body]),
        _ => panic!("addresses of two families"),
    }
}

fn ethernet(to: Mac, from: Mac, ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), body].concat()
}

/// An IP packet in a frame.
#[must_use]
pub fn ip(l: &L4, proto: u8, body: &[u8]) -> Vec<u8> {
    match (l.src, l.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = header_v4(src, dst, proto, l.ttl, 0, 0, body.len());
            ethernet(l.to, l.from, ETHERTYPE_IPV4, &[&header, body].concat())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = header_v6(src, dst, proto, l.ttl, body.len());
            ethernet(l.to, l.from, ETHERTYPE_IPV6, &[&header, body].concat())
        }
        _ => panic!("addresses of two families"),
    }
}

fn header_v4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, ttl: u8, id: u16, bits: u16, body: usize) -> Vec<u8> {
    let total = u16::try_from(20 + body).unwrap().to_be_bytes();
    let (id, bits) = (id.to_be_bytes(), bits.to_be_bytes());
    let mut header = vec![0x45, 0, total[0], total[1], id[0], id[1], bits[0], bits[1], ttl, proto, 0, 0];
    header.extend(src.octets());
    header.extend(dst.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    header
}

fn header_v6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, body: usize) -> Vec<u8> {
    let length = u16::try_from(body).unwrap().to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, length[0], length[1], next, hops];
    header.extend(src.octets());
    header.extend(dst.octets());
    header
}

/// A fragment of an IPv4 packet: `offset` in bytes, a multiple of eight.
#[must_use]
pub fn fragment_v4(l: &L4, proto: u8, id: u16, offset: u16, more: bool, body: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (l.src, l.dst) else { panic!("not IPv4") };
    let bits = (offset / 8) | if more { 0x2000 } else { 0 };
    let header = header_v4(src, dst, proto, l.ttl, id, bits, body.len());
    ethernet(l.to, l.from, ETHERTYPE_IPV4, &[&header, body].concat())
}

/// A fragment of an IPv6 packet: `offset` in bytes, a multiple of eight.
#[must_use]
pub fn fragment_v6(l: &L4, proto: u8, id: u32, offset: u16, more: bool, body: &[u8]) -> Vec<u8> {
    let place = ((offset & 0xfff8) | u16::from(more)).to_be_bytes();
    let header = [&[proto, 0, place[0], place[1]][..], &id.to_be_bytes()].concat();
    ip(l, 44, &[&header, body].concat())
}

/// A UDP datagram in a frame.
#[must_use]
pub fn udp(l: &L4, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    ip(l, UDP, &udp_body(l, sport, dport, payload))
}

fn udp_body(l: &L4, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut body = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &length, &[0, 0], payload].concat();
    let sum = l4_checksum(l.src, l.dst, UDP, &body);
    body[6..8].copy_from_slice(&sum);
    body
}

/// A TCP segment in a frame. `flags` as in the header: 2 SYN, 16 ACK, 4 RST, 1 FIN.
#[must_use]
pub fn tcp(l: &L4, sport: u16, dport: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut body =
        [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &seq.to_be_bytes(), &ack.to_be_bytes()].concat();
    body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    body.extend(payload);
    let sum = l4_checksum(l.src, l.dst, TCP, &body);
    body[16..18].copy_from_slice(&sum);
    ip(l, TCP, &body)
}

/// An ICMP or ICMPv6 message in a frame, by the family of the addresses. `rest` begins behind the checksum.
#[must_use]
pub fn icmp(l: &L4, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = [&[kind, code, 0, 0][..], rest].concat();
    let (proto, sum) = match l.src {
        IpAddr::V4(_) => (ICMP, checksum(&[&body])),
        IpAddr::V6(_) => (ICMP6, l4_checksum(l.src, l.dst, ICMP6, &body)),
    };
    body[2..4].copy_from_slice(&sum);
    ip(l, proto, &body)
}

/// An echo request in a frame.
#[must_use]
pub fn echo_request(l: &L4, id: u16, payload: &[u8]) -> Vec<u8> {
    let rest = [&id.to_be_bytes()[..], &[0, 1], payload].concat();
    icmp(l, if l.src.is_ipv4() { 8 } else { 128 }, 0, &rest)
}

/// A neighbour solicitation for `target` with the sender's link address.
#[must_use]
pub fn neighbour_solicitation(from: Mac, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let low = target.octets();
    let dst = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(low[13]),
        u16::from_be_bytes([low[14], low[15]]),
    );
    let to = Mac([0x33, 0x33, 0xff, low[13], low[14], low[15]]);
    let mut rest = vec![0, 0, 0, 0];
    rest.extend(low);
    if !src.is_unspecified() {
        rest.extend([1, 1]);
        rest.extend(from.0);
    }
    icmp(&L4 { from, to, src: src.into(), dst: dst.into(), ttl: 255 }, 135, 0, &rest)
}

/// An ARP packet over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u8,
    /// Who says so.
    pub sender: (Mac, Ipv4Addr),
    /// Who is asked or told.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// In a frame: a request to everybody, a reply to its target.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, self.operation];
        body.extend(self.sender.0.0);
        body.extend(self.sender.1.octets());
        body.extend(self.target.0.0);
        body.extend(self.target.1.octets());
        let to = if self.operation == 1 { Mac([0xff; 6]) } else { self.target.0 };
        ethernet(to, self.sender.0, ETHERTYPE_ARP, &body)
    }
}

/// A frame with an 802.1Q tag put in.
#[must_use]
pub fn vlan_tagged(frame: &[u8], id: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &id.to_be_bytes(), &frame[12..]].concat()
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in &self.bytes {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Frame {
    /// From bytes of the wire.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Its type.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.bytes[12], self.bytes[13]])
    }

    /// Who sent it on this link.
    #[must_use]
    pub fn from(&self) -> Mac {
        Mac(self.bytes[6..12].try_into().unwrap())
    }

    /// For whom it is on this link.
    #[must_use]
    pub fn to(&self) -> Mac {
        Mac(self.bytes[..6].try_into().unwrap())
    }

    /// Source, destination and protocol, if it is IP. Extension headers are not followed.
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr, u8)> {
        let b = &self.bytes;
        match self.ethertype() {
            ETHERTYPE_IPV4 if b.len() >= 34 => {
                let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&b[at..at + 4]).unwrap());
                Some((v4(26), v4(30), b[23]))
            }
            ETHERTYPE_IPV6 if b.len() >= 54 => {
                let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&b[at..at + 16]).unwrap());
                Some((v6(22), v6(38), b[20]))
            }
            _ => None,
        }
    }

    /// What is behind the IP header.
    #[must_use]
    pub fn l4(&self) -> &[u8] {
        match self.ethertype() {
            ETHERTYPE_IPV4 => &self.bytes[14 + usize::from(self.bytes[14] & 0xf) * 4..],
            ETHERTYPE_IPV6 => &self.bytes[54..],
            _ => &[],
        }
    }

    /// TTL or hop limit of an IP packet.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.bytes[if self.ethertype() == ETHERTYPE_IPV4 { 22 } else { 21 }]
    }

    /// Type and code, if it is ICMP of either family.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let (_, _, proto) = self.addresses()?;
        let l4 = self.l4();
        (matches!(proto, ICMP | ICMP6) && l4.len() >= 4).then(|| (l4[0], l4[1]))
    }

    /// Destination port, if it is UDP or TCP.
    #[must_use]
    pub fn dport(&self) -> Option<u16> {
        let (_, _, proto) = self.addresses()?;
        let l4 = self.l4();
        (matches!(proto, UDP | TCP) && l4.len() >= 4).then(|| u16::from_be_bytes([l4[2], l4[3]]))
    }
}
