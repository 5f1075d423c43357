//! What is known of the packet an event speaks about.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use villus_abi::{Event, event as abi};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;

/// Lower-case name of an IP protocol that the path knows.
#[must_use]
pub const fn protocol_name(proto: u8) -> Option<&'static str> {
    match proto {
        ICMP => Some("icmp"),
        2 => Some("igmp"),
        TCP => Some("tcp"),
        UDP => Some("udp"),
        47 => Some("gre"),
        50 => Some("esp"),
        ICMP6 => Some("icmpv6"),
        SCTP => Some("sctp"),
        _ => None,
    }
}

/// Number of an IP protocol given by name (any case) or number; `None` for anything else.
#[must_use]
pub fn protocol_number(text: &str) -> Option<u8> {
    match text.to_ascii_lowercase().as_str() {
        "icmp6" => Some(ICMP6),
        name => name
            .parse()
            .ok()
            .filter(|_| !name.starts_with('+'))
            .or_else(|| (1..=u8::MAX).find(|&proto| protocol_name(proto) == Some(name))),
    }
}

/// Flags of a TCP header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// Names in the order in which they are printed, with their bits.
    pub const NAMES: [(&'static str, u8); 8] = [
        ("SYN", 0x02),
        ("ACK", 0x10),
        ("RST", 0x04),
        ("FIN", 0x01),
        ("PSH", 0x08),
        ("URG", 0x20),
        ("ECE", 0x40),
        ("CWR", 0x80),
    ];

    /// Names of the flags that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(_, bit)| self.0 & bit != 0).map(|(name, _)| name)
    }
}

impl fmt::Display for TcpFlags {
    /// The four flags that make and end connections, as monitor lines show them: `SYN, ACK`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = Self(self.0 & 0x17);
        for (i, name) in shown.names().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// The packet of an event, as far as it was parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet {
    /// Length with the Ethernet header.
    pub len: u32,
    /// EtherType in host order; 0 if not known.
    pub ethertype: u16,
    /// Source and destination, if the packet was parsed that far.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// Source and destination port in host order, if known. Of an ICMP echo the first is the echo id.
    pub ports: Option<(u16, u16)>,
    /// IP protocol.
    pub proto: u8,
    /// TCP flags.
    pub tcp_flags: TcpFlags,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
}

impl Packet {
    pub(crate) fn of(event: &Event) -> Self {
        let v6 = event.flags & abi::FLAG_V6 != 0;
        let has = |flag| event.flags & flag != 0;
        Self {
            len: event.len,
            ethertype: u16::from_be(event.ethertype),
            addrs: has(abi::FLAG_ADDRS).then(|| (address(event.src, v6), address(event.dst, v6))),
            ports: has(abi::FLAG_PORTS).then(|| (u16::from_be(event.sport), u16::from_be(event.dport))),
            proto: event.proto,
            tcp_flags: TcpFlags(event.tcp_flags),
            icmp_type: event.icmp_type,
            icmp_code: event.icmp_code,
        }
    }

    /// Whether it is ICMP or ICMPv6.
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        matches!(self.proto, ICMP | ICMP6)
    }

    /// The name of an ICMP message, `EchoRequest`, with its code unless that is 0.
    pub(crate) fn icmp_name(&self) -> String {
        Icmp(self).to_string()
    }
}

/// An address of an event: network order words, IPv4 in the first.
fn address(words: [u32; 4], v6: bool) -> IpAddr {
    if !v6 {
        return IpAddr::V4(Ipv4Addr::from(words[0].to_ne_bytes()));
    }
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

impl fmt::Display for Packet {
    /// `10.0.0.1:1 -> 10.0.0.2:80 tcp SYN`, `fd00::1 -> fd00::2 EchoRequest`, `ethertype 0x0806, 42 bytes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((src, dst)) = self.addrs else {
            return match self.ethertype {
                0 => write!(f, "{} bytes", self.len),
                0x0806 => write!(f, "arp, {} bytes", self.len),
                other => write!(f, "ethertype {other:#06x}, {} bytes", self.len),
            };
        };
        if self.is_icmp() {
            return write!(f, "{src} -> {dst} {}", Icmp(self));
        }
        match self.ports {
            Some((sport, dport)) => {
                write!(f, "{} -> {}", SocketAddr::new(src, sport), SocketAddr::new(dst, dport))?;
            }
            None => write!(f, "{src} -> {dst}")?,
        }
        match protocol_name(self.proto) {
            Some(name) => write!(f, " {name}")?,
            None => write!(f, " proto {}", self.proto)?,
        }
        if self.proto == TCP && self.tcp_flags.0 & 0x17 != 0 {
            write!(f, " {}", self.tcp_flags)?;
        }
        Ok(())
    }
}

/// The name of an ICMP message.
struct Icmp<'a>(&'a Packet);

impl fmt::Display for Icmp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { proto, icmp_type, icmp_code, .. } = *self.0;
        let name = if proto == ICMP { icmp4_name(icmp_type) } else { icmp6_name(icmp_type) };
        match (name, icmp_code) {
            (Some(name), 0) => f.write_str(name),
            (Some(name), code) => write!(f, "{name}(code {code})"),
            (None, code) => {
                write!(f, "{} type {icmp_type} code {code}", protocol_name(proto).unwrap_or("icmp"))
            }
        }
    }
}

const fn icmp4_name(icmp_type: u8) -> Option<&'static str> {
    Some(match icmp_type {
        0 => "EchoReply",
        3 => "DestinationUnreachable",
        5 => "Redirect",
        8 => "EchoRequest",
        9 => "RouterAdvertisement",
        10 => "RouterSolicitation",
        11 => "TimeExceeded",
        12 => "ParameterProblem",
        13 => "TimestampRequest",
        14 => "TimestampReply",
        _ => return None,
    })
}

const fn icmp6_name(icmp_type: u8) -> Option<&'static str> {
    Some(match icmp_type {
        1 => "DestinationUnreachable",
        2 => "PacketTooBig",
        3 => "TimeExceeded",
        4 => "ParameterProblem",
        128 => "EchoRequest",
        129 => "EchoReply",
        130 => "MLDListenerQuery",
        131 => "MLDListenerReport",
        132 => "MLDListenerDone",
        133 => "RouterSolicitation",
        134 => "RouterAdvertisement",
        135 => "NeighborSolicitation",
        136 => "NeighborAdvertisement",
        137 => "Redirect",
        143 => "MLDv2ListenerReport",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_by_name_and_number() {
        assert_eq!(protocol_number("TCP"), Some(6));
        assert_eq!(protocol_number("icmp6"), Some(58));
        assert_eq!(protocol_number("132"), Some(132));
        assert_eq!(protocol_number("256"), None);
        assert_eq!(protocol_number("+6"), None);
        assert_eq!(protocol_number(""), None);
    }

    #[test]
    fn flags_print_in_the_order_of_the_field() {
        assert_eq!(TcpFlags(0x12).to_string(), "SYN, ACK");
        assert_eq!(TcpFlags(0x19).to_string(), "ACK, FIN");
        assert_eq!(TcpFlags(0x18).names().collect::<Vec<_>>(), ["ACK", "PSH"]);
    }
}
