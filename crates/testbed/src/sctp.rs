//! The first two packets of an SCTP association, by raw sockets: the kernels under test need not have SCTP.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{echo::Blocked, frame::SCTP, host::Host};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 0x5c79_0001;

/// A raw SCTP socket of each side.
#[derive(Debug)]
pub struct SctpEcho {
    client: Socket,
    server: Socket,
    target: SocketAddr,
    port: u16,
    source_port: u16,
}

impl SctpEcho {
    /// A client in `from` that speaks to `target`, and a server in `to` on `listen`.
    #[must_use]
    pub fn open(from: &Host, to: &Host, listen: SocketAddr, target: SocketAddr, source_port: u16) -> Self {
        let open = |host: &Host| {
            host.run(|| {
                Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::from(i32::from(SCTP))))
                    .unwrap()
            })
        };
        let server = open(to);
        server.bind(&SocketAddr::new(listen.ip(), 0).into()).unwrap();
        Self { client: open(from), server, target, port: listen.port(), source_port }
    }

    /// Sends INIT and, from the other side, INIT ACK; the client's address as the server sees it.
    ///
    /// # Errors
    /// Where it got stuck.
    pub fn echo(&self, patience: Duration) -> Result<IpAddr, Blocked> {
        let ask = sctp_init(self.source_port, self.target.port());
        self.client
            .send_to(&ask, &SocketAddr::new(self.target.ip(), 0).into())
            .map_err(|e| Blocked::Error(e.kind()))?;
        let (seen, heard) = receive(&self.server, self.port, INIT, patience).ok_or(Blocked::Forward)?;
        let answer = sctp_init_ack(self.port, heard, TAG);
        self.server.send_to(&answer, &SocketAddr::new(seen, 0).into()).unwrap();
        receive(&self.client, self.source_port, INIT_ACK, patience).ok_or(Blocked::Back)?;
        Ok(seen)
    }
}

/// Waits for a packet with this destination port and kind of chunk: who sent it, from which port.
fn receive(socket: &Socket, port: u16, chunk: u8, patience: Duration) -> Option<(IpAddr, u16)> {
    let end = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        socket.set_read_timeout(Some(left.max(Duration::from_micros(100)))).unwrap();
        let v4 = socket.local_addr().unwrap().is_ipv4();
        let mut peek = std::mem::MaybeUninit::<u8>::uninit();
        let (_, from) = socket.peek_from(std::slice::from_mut(&mut peek)).ok()?;
        let mut reader: &Socket = socket;
        let length = reader.read(&mut buffer).ok()?;
        let packet = &buffer[if v4 { 20 } else { 0 }..length];
        if packet.len() >= 13 && packet[2..4] == port.to_be_bytes() && packet[12] == chunk {
            return Some((from.as_socket()?.ip(), u16::from_be_bytes([packet[0], packet[1]])));
        }
    }
}

/// The first packet of an association.
#[must_use]
pub fn sctp_init(source_port: u16, port: u16) -> Vec<u8> {
    packet(source_port, port, 0, INIT, TAG)
}

/// The answer to it; `tag` is the one that the asking side chose.
#[must_use]
pub fn sctp_init_ack(source_port: u16, port: u16, tag: u32) -> Vec<u8> {
    packet(source_port, port, tag, INIT_ACK, TAG + 1)
}

fn packet(sport: u16, dport: u16, tag: u32, chunk: u8, init_tag: u32) -> Vec<u8> {
    let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &tag.to_be_bytes(), &[0; 4]].concat();
    packet.extend([chunk, 0, 0, if chunk == INIT_ACK { 28 } else { 20 }]);
    packet.extend(init_tag.to_be_bytes());
    packet.extend(0x1_0000_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1_u32.to_be_bytes());
    if chunk == INIT_ACK {
        // A state cookie of four bytes.
        packet.extend([0, 7, 0, 8, 1, 2, 3, 4]);
    }
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// CRC-32C of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_crc32c() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
