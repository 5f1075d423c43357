//! Building packets: real headers with right checksums, and the ways to make them odd.

use std::{
    net::{IpAddr, Ipv6Addr},
    vec,
    vec::Vec,
};

const ICMP4: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;

/// What lies behind the IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP with a header of 20 bytes and the options, a multiple of four bytes.
    Tcp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Flags as they lie in the header.
        flags: u8,
        /// Options.
        options: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
    },
    /// SCTP, its checksum left at zero.
    Sctp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Verification tag; that of an INIT is 0.
        tag: u32,
    },
    /// ICMP of the packet's family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The second word of the header: id and sequence number, or what the type says.
        rest: [u8; 4],
    },
    /// Another protocol; the payload is all there is.
    Other(u8),
}

/// A packet to be built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Build {
    /// Source.
    pub src: IpAddr,
    /// Destination, of the same family.
    pub dst: IpAddr,
    /// Source MAC.
    pub smac: [u8; 6],
    /// Destination MAC.
    pub dmac: [u8; 6],
    /// TTL or hop limit.
    pub ttl: u8,
    /// Identification of a fragment.
    pub id: u32,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers in front of a fragment header: number and bytes, of which the first is overwritten with
    /// the number of the next header.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Cuts this part out of the transport: offset in bytes (a multiple of eight), length, whether more follow.
    pub fragment: Option<(u16, usize, bool)>,
    /// What lies behind the IP header.
    pub transport: Transport,
    /// What lies behind the transport header.
    pub payload: Vec<u8>,
}

impl Build {
    /// A packet with a TTL of 64 and eight bytes of payload.
    #[must_use]
    pub fn new(src: IpAddr, dst: IpAddr, transport: Transport) -> Self {
        Self {
            src,
            dst,
            smac: [2, 0, 0, 0, 0, 1],
            dmac: [2, 0, 0, 0, 0, 2],
            ttl: 64,
            id: 0x1234,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            transport,
            payload: vec![0x55; 8],
        }
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, flags: u8) -> Self {
        Self::new(src, dst, Transport::Tcp { sport, dport, flags, options: Vec::new() })
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self::new(src, dst, Transport::Udp { sport, dport })
    }

    /// An SCTP packet within an association.
    #[must_use]
    pub fn sctp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self::new(src, dst, Transport::Sctp { sport, dport, tag: 1 })
    }

    /// The packet that opens an SCTP association: an INIT.
    #[must_use]
    pub fn sctp_init(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self::new(src, dst, Transport::Sctp { sport, dport, tag: 0 })
    }

    /// An ICMP message of the packet's family, its second word zero.
    #[must_use]
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8) -> Self {
        Self::new(src, dst, Transport::Icmp { kind, code, rest: [0; 4] })
    }

    /// An echo request.
    #[must_use]
    pub fn ping(src: IpAddr, dst: IpAddr, id: u16) -> Self {
        Self::echo(src, dst, if src.is_ipv6() { 128 } else { 8 }, id)
    }

    /// An echo reply.
    #[must_use]
    pub fn pong(src: IpAddr, dst: IpAddr, id: u16) -> Self {
        Self::echo(src, dst, if src.is_ipv6() { 129 } else { 0 }, id)
    }

    fn echo(src: IpAddr, dst: IpAddr, kind: u8, id: u16) -> Self {
        let [hi, lo] = id.to_be_bytes();
        Self::new(src, dst, Transport::Icmp { kind, code: 0, rest: [hi, lo, 0, 1] })
    }

    /// An ICMP error that quotes this packet.
    #[must_use]
    pub fn error(&self, from: IpAddr, to: IpAddr, kind: u8, code: u8) -> Self {
        let mut quoted = self.packet();
        quoted.truncate(self.packet_header_len() + 8);
        Self { payload: quoted, ..Self::icmp(from, to, kind, code) }
    }

    fn packet_header_len(&self) -> usize {
        if self.src.is_ipv6() {
            40 + self.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
        } else {
            20 + self.options.len()
        }
    }

    /// A neighbour solicitation with its sender's MAC, to the target's solicited-node group.
    #[must_use]
    pub fn solicitation(src: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Self {
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let option = if src.is_unspecified() { Vec::new() } else { link_address(1, mac) };
        let payload = [&target.octets()[..], &option].concat();
        Self { ttl: 255, payload, ..Self::icmp(src.into(), group.into(), 135, 0) }
    }

    /// A solicited neighbour advertisement.
    #[must_use]
    pub fn advertisement(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Self {
        let payload = [&target.octets()[..], &link_address(2, mac)].concat();
        let transport = Transport::Icmp { kind: 136, code: 0, rest: [0x60, 0, 0, 0] };
        Self { ttl: 255, payload, ..Self::new(src.into(), dst.into(), transport) }
    }

    /// With another TTL or hop limit.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With another source MAC.
    #[must_use]
    pub fn from_mac(self, smac: [u8; 6]) -> Self {
        Self { smac, ..self }
    }

    /// With so many bytes of payload.
    #[must_use]
    pub fn payload(self, len: usize) -> Self {
        Self { payload: vec![0x55; len], ..self }
    }

    /// Only a part of the transport: see [`Self::fragment`].
    #[must_use]
    pub fn part(self, offset: u16, len: usize, more: bool) -> Self {
        Self { fragment: Some((offset, len, more)), ..self }
    }

    /// One more IPv6 extension header in front of the others' end.
    #[must_use]
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let kind = if self.src.is_ipv6() { 0x86dd } else { 0x0800 };
        ethernet(self.dmac, self.smac, kind, &self.packet())
    }

    /// The IP packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let (proto, mut body) = self.body();
        let mut bits = 0;
        if let Some((offset, len, more)) = self.fragment {
            let start = usize::from(offset).min(body.len());
            body = body[start..(start + len).min(body.len())].to_vec();
            bits = offset | u16::from(more);
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.packet4(src.octets(), dst.octets(), proto, bits, &body)
            }
            (src, dst) => self.packet6(octets6(src), octets6(dst), proto, bits, &body),
        }
    }

    fn packet4(&self, src: [u8; 4], dst: [u8; 4], proto: u8, bits: u16, body: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + body.len()).unwrap_or(0);
        let fragment = (bits >> 3) | (bits & 1) << 13;
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(total.to_be_bytes());
        packet.extend((self.id as u16).to_be_bytes());
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.ttl, proto, 0, 0]);
        packet.extend(src);
        packet.extend(dst);
        packet.extend(&self.options);
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend(body);
        packet
    }

    fn packet6(&self, src: [u8; 16], dst: [u8; 16], proto: u8, bits: u16, body: &[u8]) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        if self.fragment.is_some() {
            let mut bytes = vec![0, 0];
            bytes.extend(bits.to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            headers.push((FRAGMENT, bytes));
        }
        let numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).chain([proto]).collect();
        for ((_, bytes), next) in headers.iter_mut().zip(&numbers[1..]) {
            bytes[0] = *next;
        }
        let extensions: Vec<u8> = headers.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let len = u16::try_from(extensions.len() + body.len()).unwrap_or(0);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(len.to_be_bytes());
        packet.extend([numbers[0], self.ttl]);
        packet.extend(src);
        packet.extend(dst);
        packet.extend(extensions);
        packet.extend(body);
        packet
    }

    /// Protocol number, and transport header with payload and checksum.
    fn body(&self) -> (u8, Vec<u8>) {
        let pair = |sport: u16, dport: u16| [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        let (proto, mut bytes, sum_at) = match &self.transport {
            Transport::Tcp { sport, dport, flags, options } => {
                let mut header = pair(*sport, *dport);
                let words = (5 + options.len() / 4) as u8;
                header.extend([0, 0, 0, 1, 0, 0, 0, 0, words << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                header.extend(options);
                (TCP, header, Some(16))
            }
            Transport::Udp { sport, dport } => {
                let mut header = pair(*sport, *dport);
                header.extend(u16::try_from(8 + self.payload.len()).unwrap_or(0).to_be_bytes());
                header.extend([0, 0]);
                (UDP, header, Some(6))
            }
            Transport::Sctp { sport, dport, tag } => {
                (SCTP, [&pair(*sport, *dport)[..], &tag.to_be_bytes(), &[0; 4]].concat(), None)
            }
            Transport::Icmp { kind, code, rest } => {
                let proto = if self.src.is_ipv6() { ICMP6 } else { ICMP4 };
                (proto, [&[*kind, *code, 0, 0][..], rest].concat(), Some(2))
            }
            Transport::Other(proto) => (*proto, Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = sum_at {
            let pseudo = if proto == ICMP4 { Vec::new() } else { self.pseudo(proto, bytes.len()) };
            let sum = checksum(&[pseudo, bytes.clone()].concat()).to_be_bytes();
            bytes[at..at + 2].copy_from_slice(&sum);
        }
        (proto, bytes)
    }

    /// The pseudo-header that transport checksums begin with.
    fn pseudo(&self, proto: u8, len: usize) -> Vec<u8> {
        let len = u32::try_from(len).unwrap_or(0);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                [&src.octets()[..], &dst.octets(), &[0, proto], &(len as u16).to_be_bytes()].concat()
            }
            (src, dst) => [&octets6(src)[..], &octets6(dst), &len.to_be_bytes(), &[0, 0, 0, proto]].concat(),
        }
    }
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A link-layer address option of neighbour discovery.
fn link_address(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// A frame around a packet.
#[must_use]
pub fn ethernet(dst: [u8; 6], src: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &kind.to_be_bytes(), packet].concat()
}

/// An ARP frame: 1 asks, 2 answers. Sender and target are MAC and address.
#[must_use]
pub fn arp(operation: u16, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(sender.0);
    packet.extend(sender.1);
    packet.extend(target.0);
    packet.extend(target.1);
    let to = if operation == 1 { [0xff; 6] } else { target.0 };
    ethernet(to, sender.0, 0x0806, &packet)
}

/// The Internet checksum (RFC 1071). Over bytes that hold a right one it is 0.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
