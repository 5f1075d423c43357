//! Real traffic between hosts: everything is said once and answered once, so that packets can be counted.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{host::Host, sandbox::eventually};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 32_768;

/// Why there was no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocked {
    /// The first packet was not heard at the other end.
    Forward,
    /// The answer was not heard.
    Back,
    /// The kernel of the asking side says why (an ICMP error, a reset).
    Error(ErrorKind),
}

/// What an exchange has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// The asking end as it knows itself.
    pub client: SocketAddr,
    /// The asking end as the answering one sees it.
    pub seen: SocketAddr,
}

/// Lets this process have so many open files, as far as its hard limit goes.
pub fn raise_open_files(wanted: u64) {
    let now = getrlimit(Resource::Nofile);
    let current = now.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: now.maximum }).unwrap();
}

/// Makes a socket whose address one had that was closed. It may be taken a moment longer: a process that another thread starts
/// just then has a copy of every open socket until it is another program.
fn bound<T>(mut bind: impl FnMut() -> std::io::Result<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.unwrap(),
        }
    }
}

/// A UDP socket of a host.
#[must_use]
pub fn udp_socket(host: &Host, at: SocketAddr) -> UdpSocket {
    host.run(|| bound(|| UdpSocket::bind(at)))
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// A UDP socket of each side.
#[derive(Debug)]
pub struct UdpEcho {
    /// The asking one.
    pub client: UdpSocket,
    /// The answering one.
    pub server: UdpSocket,
}

impl UdpEcho {
    /// A server in `to` that listens on `listen`, and a client in `from` (bound to `source`, if given) that speaks to
    /// `target`: the same, or what is translated to it.
    #[must_use]
    pub fn open(
        from: &Host,
        source: Option<SocketAddr>,
        to: &Host,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> Self {
        let server = udp_socket(to, listen);
        let any =
            SocketAddr::new(if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }, 0);
        let client = udp_socket(from, source.unwrap_or(any));
        client.connect(target).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { client, server }
    }

    /// Changes how long an answer may take.
    pub fn patience(&self, patience: Duration) {
        self.client.set_read_timeout(Some(patience)).unwrap();
        self.server.set_read_timeout(Some(patience)).unwrap();
    }

    /// Sends; does not wait for anything.
    ///
    /// # Errors
    /// What the kernel says about an earlier packet.
    pub fn send(&self, payload: &[u8]) -> Result<(), Blocked> {
        self.client.send(payload).map(drop).map_err(|e| Blocked::Error(e.kind()))
    }

    /// Whether something waits at the server.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.server.set_nonblocking(true).unwrap();
        let heard = self.server.recv_from(&mut [0; 1 << 16]).is_ok();
        self.server.set_nonblocking(false).unwrap();
        heard
    }

    /// Sends a payload to and fro.
    ///
    /// # Errors
    /// Where it got stuck.
    pub fn echo(&self, payload: &[u8]) -> Result<Exchange, Blocked> {
        self.send(payload)?;
        let mut buffer = vec![0; 1 << 16];
        let (length, seen) =
            self.server.recv_from(&mut buffer).map_err(|e| stuck(e.kind(), Blocked::Forward))?;
        assert_eq!(&buffer[..length], payload, "a datagram was altered on its way");
        self.server.send_to(payload, seen).unwrap();
        match self.client.recv(&mut buffer) {
            Ok(length) => assert_eq!(&buffer[..length], payload, "a datagram was altered on its way back"),
            Err(e) if is_timeout(e.kind()) => return Err(Blocked::Back),
            Err(e) => return Err(Blocked::Error(e.kind())),
        }
        Ok(Exchange { client: self.client.local_addr().unwrap(), seen })
    }
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct EchoServer {
    listener: TcpListener,
}

impl EchoServer {
    /// Listens.
    #[must_use]
    pub fn open(host: &Host, listen: SocketAddr) -> Self {
        let bind = || {
            let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&listen.into())?;
            socket.listen(BACKLOG)?;
            Ok::<_, std::io::Error>(TcpListener::from(socket))
        };
        let listener = host.run(|| bound(bind));
        Self { listener }
    }

    /// The next connection.
    ///
    /// # Errors
    /// [`Blocked::Forward`] when none comes in time.
    pub fn accept(&self, patience: Duration) -> Result<(TcpStream, SocketAddr), Blocked> {
        let end = Instant::now() + patience;
        self.listener.set_nonblocking(true).unwrap();
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    stream.set_nonblocking(false).unwrap();
                    return Ok((stream, from));
                }
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return Err(Blocked::Forward),
            }
        }
    }
}

/// Both ends of a TCP connection.
#[derive(Debug)]
pub struct TcpEcho {
    /// The end that opened it.
    pub client: TcpStream,
    /// The other.
    pub server: TcpStream,
    /// The client as the server sees it.
    pub seen: SocketAddr,
}

impl TcpEcho {
    /// Connects `from` to `target`, which is `listen` of `to` or what is translated to it.
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
        let server = EchoServer::open(to, listen);
        Self::connect(from, &server, target, patience)
    }

    /// Connects to a server that listens already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn connect(
        from: &Host,
        server: &EchoServer,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Self, Blocked> {
        let client =
            from.run(|| TcpStream::connect_timeout(&target, patience)).map_err(|e| match e.kind() {
                kind if is_timeout(kind) => Blocked::Forward,
                kind => Blocked::Error(kind),
            })?;
        let (server, seen) = server.accept(PATIENCE)?;
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Ok(Self { client, server, seen })
    }

    /// Changes how long an answer may take.
    pub fn patience(&self, patience: Duration) {
        self.client.set_read_timeout(Some(patience)).unwrap();
        self.server.set_read_timeout(Some(patience)).unwrap();
    }

    /// Sends a payload to and fro; at most as much as fits into a socket's buffer.
    ///
    /// # Errors
    /// Where it got stuck.
    pub fn echo(&mut self, payload: &[u8]) -> Result<(), Blocked> {
        say(&mut self.client, &mut self.server, payload).map_err(|kind| stuck(kind, Blocked::Forward))?;
        say(&mut self.server, &mut self.client, payload).map_err(|kind| stuck(kind, Blocked::Back))
    }

    /// Sends a payload from the server to the client.
    ///
    /// # Errors
    /// [`Blocked::Back`].
    pub fn answer(&mut self, payload: &[u8]) -> Result<(), Blocked> {
        say(&mut self.server, &mut self.client, payload).map_err(|kind| stuck(kind, Blocked::Back))
    }

    /// Ends it from the client's side, and waits until neither side has anything more to say. `to` is the server's host.
    pub fn close(self, to: &Host) {
        let Self { mut client, mut server, .. } = self;
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "more was said than was heard");
        let ends = [server.local_addr().unwrap(), server.peer_addr().unwrap()];
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "more was answered than was heard");
        drop(client);
        // The kernel keeps the server's end until it has heard that its own last word was heard.
        eventually("the end of a connection", || !to.has_connection(ends));
    }

    /// Sends so many bytes from the client to the server, as fast as they go.
    ///
    /// # Errors
    /// [`Blocked::Forward`].
    pub fn stream(&mut self, bytes: usize) -> Result<(), Blocked> {
        let client = &mut self.client;
        let server = &mut self.server;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let chunk = vec![0x5a; 1 << 16];
                let mut left = bytes;
                while left > 0 {
                    let now = left.min(chunk.len());
                    client.write_all(&chunk[..now])?;
                    left -= now;
                }
                Ok::<_, std::io::Error>(())
            });
            let mut buffer = vec![0; 1 << 18];
            let mut got = 0;
            while got < bytes {
                match server.read(&mut buffer) {
                    Ok(0) | Err(_) => return Err(Blocked::Forward),
                    Ok(length) => got += length,
                }
            }
            writer.join().unwrap().map_err(|e| Blocked::Error(e.kind()))
        })
    }
}

fn stuck(kind: ErrorKind, place: Blocked) -> Blocked {
    if is_timeout(kind) { place } else { Blocked::Error(kind) }
}

fn say(from: &mut TcpStream, to: &mut TcpStream, payload: &[u8]) -> Result<(), ErrorKind> {
    from.write_all(payload).map_err(|e| e.kind())?;
    let mut buffer = vec![0; payload.len()];
    to.read_exact(&mut buffer).map_err(|e| e.kind())?;
    assert_eq!(buffer, payload, "a stream was altered");
    Ok(())
}

static PING: AtomicU16 = AtomicU16::new(0x7100);

/// An ICMP echo flow.
#[derive(Debug)]
pub struct Ping {
    socket: Socket,
    id: u16,
    v4: bool,
}

impl Ping {
    /// Asks from a host (from `source`, if given).
    #[must_use]
    pub fn open(from: &Host, source: Option<IpAddr>, target: IpAddr) -> Self {
        Self::connect(from, source, SocketAddr::new(target, 0)).unwrap()
    }

    /// As [`Self::open`], where there may be no way to the target. A link-local one needs its device.
    ///
    /// # Errors
    /// What the kernel says about the way.
    pub fn connect(from: &Host, source: Option<IpAddr>, target: SocketAddr) -> std::io::Result<Self> {
        let v4 = target.is_ipv4();
        let (domain, protocol) =
            if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
        let socket = from.run(|| Socket::new(domain, Type::RAW, Some(protocol)))?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect(&target.into())?;
        Ok(Self { socket, id: PING.fetch_add(1, Ordering::Relaxed), v4 })
    }

    /// Sends a request with so many bytes behind the ICMP header.
    ///
    /// # Errors
    /// What the kernel says about an earlier packet.
    pub fn send(&self, payload: usize) -> Result<(), Blocked> {
        let id = self.id.to_be_bytes();
        let mut request = vec![if self.v4 { 8 } else { 128 }, 0, 0, 0, id[0], id[1], 0, 1];
        request.resize(8 + payload, 0xa5);
        if self.v4 {
            let sum = crate::frame::checksum(&[&request]);
            request[2..4].copy_from_slice(&sum);
        }
        self.socket.send(&request).map(drop).map_err(|e| Blocked::Error(e.kind()))
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// [`Blocked::Back`] when there is none: whether the request arrived is not known.
    pub fn wait(&self, patience: Duration) -> Result<(), Blocked> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = end.checked_duration_since(Instant::now()).ok_or(Blocked::Back)?;
            self.socket.set_read_timeout(Some(left.max(Duration::from_micros(100)))).unwrap();
            let length = match (&self.socket).read(&mut buffer) {
                Ok(length) => length,
                Err(e) if is_timeout(e.kind()) => return Err(Blocked::Back),
                Err(e) => return Err(Blocked::Error(e.kind())),
            };
            let message = if self.v4 { &buffer[20..length] } else { &buffer[..length] };
            let answer = if self.v4 { 0 } else { 129 };
            if message[0] == answer && message[4..6] == self.id.to_be_bytes() {
                return Ok(());
            }
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::wait`].
    pub fn echo(&self, payload: usize) -> Result<(), Blocked> {
        self.send(payload)?;
        self.wait(PATIENCE)
    }

    /// The shortest question, and a limit for its answer.
    ///
    /// # Errors
    /// As [`Self::echo`].
    pub fn echo_within(&self, patience: Duration) -> Result<(), Blocked> {
        self.send(0)?;
        self.wait(patience)
    }
}
