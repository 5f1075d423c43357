//! Traffic between two namespaces: TCP streams, request and response, connect and close.
//!
//! Both ends use the kernel's own default of congestion control, whatever this machine has: one that paces itself by what it
//! thinks of the path (BBR) shows its own opinion, not what the path costs, and sends less where round trips are shorter.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    net::sockopt::set_tcp_congestion,
    thread::{CpuSet, sched_setaffinity},
};
use villus_net::Netns;

/// Port of the server that swallows a stream.
pub const STREAM: u16 = 5001;
/// Port of the server that echoes 64 bytes.
pub const ECHO: u16 = 5002;
/// Port of the server that answers once and closes.
pub const ONCE: u16 = 5003;

/// UDP port at which datagrams arrive and are not read.
pub const SINK: u16 = 5004;
/// UDP port that no policy allows.
pub const DENIED: u16 = 5005;
/// First of the ports that [`datagrams`] sends from.
const FROM: u16 = 10_000;

const MESSAGE: usize = 64;
/// Linux's default.
const CONGESTION_CONTROL: &str = "cubic";

/// Servers in a namespace, stopped on drop.
pub struct Servers<'a> {
    _sink: UdpSocket,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<SocketAddr>,
    netns: &'a Netns,
}

impl<'a> Servers<'a> {
    /// Starts the servers on an address of the namespace.
    pub fn start(netns: &'a Netns, address: IpAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let sink = netns
            .run(move || UdpSocket::bind(SocketAddr::new(address, SINK)))
            .map_err(|e| anyhow!("{e}"))??;
        let mut servers = Self { _sink: sink, stop, threads: Vec::new(), wake: Vec::new(), netns };
        for (port, serve) in [(STREAM, swallow as fn(TcpStream)), (ECHO, echo), (ONCE, once)] {
            let at = SocketAddr::new(address, port);
            let listener = servers
                .netns
                .run(move || TcpListener::bind(at))
                .map_err(|e| anyhow!("{e}"))?
                .with_context(|| format!("listening on {at}"))?;
            let stop = servers.stop.clone();
            servers.wake.push(at);
            servers.threads.push(std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = set_tcp_congestion(&stream, CONGESTION_CONTROL);
                    if port == ONCE {
                        serve(stream);
                    } else {
                        std::thread::spawn(move || serve(stream));
                    }
                }
            }));
        }
        Ok(servers)
    }
}

impl Drop for Servers<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for at in std::mem::take(&mut self.wake) {
            let _ = self.netns.run(move || TcpStream::connect_timeout(&at, Duration::from_secs(1)).map(drop));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 18];
    // The first byte says where to run.
    if stream.read_exact(&mut buffer[..1]).is_ok() {
        let _ = pin(buffer[0]);
    }
    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; MESSAGE];
    let mut at = 0;
    while stream.read_exact(&mut buffer).is_ok() {
        if buffer[0] != at {
            at = buffer[0];
            let _ = pin(at);
        }
        if stream.write_all(&buffer).is_err() {
            break;
        }
    }
}

/// Keeps the calling thread on the CPU that a byte names: one more than its number; 0 is any.
fn pin(byte: u8) -> std::io::Result<()> {
    let mut cpus = CpuSet::new();
    match byte.checked_sub(1) {
        Some(cpu) => cpus.set(cpu.into()),
        None => return Ok(()),
    }
    Ok(sched_setaffinity(None, &cpus)?)
}

/// Where the two ends of a conversation run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Wherever the scheduler puts them.
    Any,
    /// Both on the first CPU.
    Together,
    /// On the first and the second CPU.
    Apart,
}

impl Place {
    /// Apart, where there are two CPUs.
    pub fn of_two() -> std::io::Result<Self> {
        Ok(if std::thread::available_parallelism()?.get() < 2 { Self::Any } else { Self::Apart })
    }

    /// What [`pin`] takes, of the asking end and of the other.
    fn pins(self) -> (u8, u8) {
        match self {
            Self::Any => (0, 0),
            Self::Together => (1, 1),
            Self::Apart => (1, 2),
        }
    }
}

fn once(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; MESSAGE];
    if stream.read_exact(&mut buffer).is_ok() {
        let _ = stream.write_all(&buffer);
        // The client closes first, so that the server's port keeps no TIME_WAIT.
        let _ = stream.read(&mut buffer);
    }
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    set_tcp_congestion(&stream, CONGESTION_CONTROL)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Gbit/s of one TCP stream.
pub fn stream(from: &Netns, to: IpAddr, time: Duration, place: Place) -> Result<f64> {
    let (own, other) = place.pins();
    run(from, move || {
        pin(own)?;
        let mut stream = connect(SocketAddr::new(to, STREAM))?;
        stream.write_all(&[other])?;
        let buffer = vec![0_u8; 1 << 18];
        let (start, mut sent) = (Instant::now(), 0_u64);
        while start.elapsed() < time {
            sent += stream.write(&buffer)? as u64;
        }
        Ok(sent as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
    })
}

/// Gbit/s of several TCP streams together, wherever the scheduler puts their ends.
pub fn streams(from: &Netns, to: IpAddr, time: Duration, count: usize) -> Result<f64> {
    std::thread::scope(|scope| {
        let streams: Vec<_> =
            (0..count).map(|_| scope.spawn(|| stream(from, to, time, Place::Any))).collect();
        streams
            .into_iter()
            .map(|stream| stream.join().map_err(|_| anyhow!("a stream's thread panicked"))?)
            .sum()
    })
}

/// Average and 99th percentile of request and response, µs.
pub fn round_trip(from: &Netns, to: IpAddr, time: Duration, place: Place) -> Result<(f64, f64)> {
    let (own, other) = place.pins();
    run(from, move || {
        pin(own)?;
        let mut stream = connect(SocketAddr::new(to, ECHO))?;
        let mut buffer = [0; MESSAGE];
        buffer[0] = other;
        let mut times = Vec::with_capacity(1 << 18);
        let start = Instant::now();
        while start.elapsed() < time {
            let at = Instant::now();
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            times.push(at.elapsed().as_nanos() as f64 / 1e3);
        }
        times.sort_by(f64::total_cmp);
        let average = times.iter().sum::<f64>() / times.len() as f64;
        Ok((average, times[times.len() * 99 / 100]))
    })
}

/// Connections a second: connect, one request, close.
pub fn connections(from: &Netns, to: IpAddr, time: Duration) -> Result<f64> {
    run(from, move || {
        let mut buffer = [0; MESSAGE];
        let (start, mut count) = (Instant::now(), 0_u32);
        while start.elapsed() < time {
            match connect(SocketAddr::new(to, ONCE)) {
                Ok(mut stream) => {
                    stream.write_all(&buffer)?;
                    stream.read_exact(&mut buffer)?;
                    count += 1;
                }
                // Every port is in TIME_WAIT: nothing more to be measured.
                Err(e) if e.kind() == ErrorKind::AddrNotAvailable => break,
                Err(e) => return Err(e),
            }
        }
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    })
}

/// Sends datagrams to a port, each from a port of its own: the only packet of its flow.
pub fn datagrams(from: &Netns, to: IpAddr, port: u16, count: u16) -> Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    run(from, move || {
        for source in (FROM..).take(count.into()) {
            let socket = UdpSocket::bind(SocketAddr::new(any, source))?;
            socket.send_to(&[0; MESSAGE], SocketAddr::new(to, port))?;
        }
        Ok(())
    })
}

fn run<T: Send + 'static>(
    netns: &Netns,
    f: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    Ok(netns.run(f).map_err(|e| anyhow!("{e}"))??)
}
