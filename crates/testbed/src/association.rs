//! An SCTP association between two hosts, by the kernel's own SCTP.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{echo::Blocked, host::Host};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both ends of an association.
#[derive(Debug)]
pub struct SctpAssociation {
    client: Socket,
    server: Socket,
}

impl SctpAssociation {
    /// Whether this kernel has SCTP.
    #[must_use]
    pub fn kernel_has_it() -> bool {
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)).is_ok()
    }

    /// Associates `from` with `target`, which is `listen` of `to` or what is translated to it.
    ///
    /// # Errors
    /// [`Blocked`] when it is not there after `patience`.
    pub fn open(
        from: &Host,
        to: &Host,
        listen: SocketAddr,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Self, Blocked> {
        let open = |host: &Host| {
            host.run(|| {
                let socket =
                    Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::SCTP)).unwrap();
                // Addresses of the other family would be told to the other end.
                if target.is_ipv6() {
                    socket.set_only_v6(true).unwrap();
                }
                socket
            })
        };
        let (listener, client) = (open(to), open(from));
        listener.bind(&listen.into()).unwrap();
        listener.listen(1).unwrap();
        // A single address is not told to the other end, which then answers to where packets come from.
        client.bind(&SocketAddr::new(source(from, target), 0).into()).unwrap();
        client.connect_timeout(&target.into(), patience).map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => Blocked::Forward,
            kind => Blocked::Error(kind),
        })?;
        let (server, _) = listener.accept().map_err(|e| Blocked::Error(e.kind()))?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Ok(Self { client, server })
    }

    /// Changes how long an answer may take.
    pub fn patience(&self, patience: Duration) {
        for socket in [&self.client, &self.server] {
            socket.set_read_timeout(Some(patience)).unwrap();
        }
    }

    /// Sends a payload to and fro.
    ///
    /// # Errors
    /// Where it got stuck.
    pub fn echo(&mut self, payload: &[u8]) -> Result<(), Blocked> {
        self.client.write_all(payload).map_err(|e| Blocked::Error(e.kind()))?;
        self.answer_of(payload)
    }

    /// Waits until the server has got a payload that was sent before, and sends it back.
    ///
    /// # Errors
    /// Where it got stuck.
    pub fn answer_of(&mut self, payload: &[u8]) -> Result<(), Blocked> {
        hear(&mut self.server, payload, Blocked::Forward)?;
        self.server.write_all(payload).map_err(|e| Blocked::Error(e.kind()))?;
        hear(&mut self.client, payload, Blocked::Back)
    }

    /// Ends it from the client's side and waits until the server knows.
    pub fn close(self) {
        drop(self.client);
        let end = Instant::now() + PATIENCE;
        let mut server = self.server;
        while !matches!(server.read(&mut [0; 64]), Ok(0)) {
            assert!(Instant::now() < end, "the association does not end");
        }
    }
}

/// The address that the kernel would choose for packets to a target.
fn source(from: &Host, target: SocketAddr) -> IpAddr {
    from.run(|| {
        let any = SocketAddr::new(if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
        let probe = std::net::UdpSocket::bind(any).unwrap();
        probe.connect(target).unwrap();
        probe.local_addr().unwrap().ip()
    })
}

fn hear(to: &mut Socket, payload: &[u8], place: Blocked) -> Result<(), Blocked> {
    let mut buffer = vec![0; payload.len()];
    to.read_exact(&mut buffer).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => place,
        kind => Blocked::Error(kind),
    })?;
    assert_eq!(buffer, payload, "a message was altered");
    Ok(())
}
