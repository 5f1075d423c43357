//! From an event to the question `villus why SRC DST PORT[/PROTO]`.

use std::{fmt, net::IpAddr, str::FromStr};

use villus_abi::policy::ICMP_TYPE_ZERO_PORT;

use crate::{FlowEvent, State, WhyError, protocol_name, protocol_number};

/// What `villus why` is asked. For ICMP the port is the message's type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WhyQuery {
    /// Who opens the flow.
    pub src: IpAddr,
    /// Whom it is for.
    pub dst: IpAddr,
    /// Destination port and protocol.
    pub port: PortProto,
}

/// A destination port with its protocol; `80`, `80/tcp`, `8/icmp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortProto {
    /// Port in host order, or ICMP type.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
}

impl WhyQuery {
    /// The question that explains an event; `None` when its packet was not parsed far enough.
    ///
    /// For a packet of the answering direction it is the question about the flow it answers.
    #[must_use]
    pub fn of(event: &FlowEvent) -> Option<Self> {
        let packet = &event.packet;
        let (src, dst) = packet.addrs?;
        let reply = event.state == State::REPLY;
        let port = if packet.is_icmp() {
            u16::from(asking_type(packet.proto, packet.icmp_type, reply))
        } else {
            let (sport, dport) = packet.ports?;
            if reply { sport } else { dport }
        };
        let (src, dst) = if reply { (dst, src) } else { (src, dst) };
        Some(Self { src, dst, port: PortProto { port, proto: packet.proto } })
    }
}

/// For a reply, the ICMP type that asked for it.
const fn asking_type(proto: u8, icmp_type: u8, reply: bool) -> u8 {
    match (proto, icmp_type, reply) {
        (1, 0, true) => 8,
        (58, 129, true) => 128,
        _ => icmp_type,
    }
}

impl fmt::Display for WhyQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "villus why {} {} {}", self.src, self.dst, self.port)
    }
}

impl PortProto {
    /// The port as policy keys hold it: ICMP type 0 has a number of its own there.
    #[must_use]
    pub const fn policy_port(&self) -> u16 {
        if matches!(self.proto, 1 | 58) && self.port == 0 { ICMP_TYPE_ZERO_PORT } else { self.port }
    }
}

impl fmt::Display for PortProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match protocol_name(self.proto) {
            Some(name) => write!(f, "{}/{name}", self.port),
            None => write!(f, "{}/{}", self.port, self.proto),
        }
    }
}

impl FromStr for PortProto {
    type Err = WhyError;

    /// Reads `PORT[/PROTO]`; TCP if no protocol is given.
    fn from_str(text: &str) -> Result<Self, WhyError> {
        let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
        let proto = protocol_number(proto).ok_or_else(|| WhyError::Protocol(proto.to_owned()))?;
        let port = port
            .parse()
            .ok()
            .filter(|_| !port.starts_with('+'))
            .ok_or_else(|| WhyError::Port(text.to_owned()))?;
        if matches!(proto, 1 | 58) && port > u16::from(u8::MAX) {
            return Err(WhyError::Port(text.to_owned()));
        }
        Ok(Self { port, proto })
    }
}
