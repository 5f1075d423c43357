//! Traffic between two namespaces: one TCP stream, request and response, connect and close.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use villus_net::Netns;

/// Port of the server that swallows a stream.
pub const STREAM: u16 = 5001;
/// Port of the server that echoes 64 bytes.
pub const ECHO: u16 = 5002;
/// Port of the server that answers once and closes.
pub const ONCE: u16 = 5003;

const MESSAGE: usize = 64;

/// Servers in a namespace, stopped on drop.
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<SocketAddr>,
    netns: Arc<Netns>,
}

impl Servers {
    /// Starts the three servers on an address of the namespace.
    pub fn start(netns: Arc<Netns>, address: IpAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut servers = Self { stop, threads: Vec::new(), wake: Vec::new(), netns };
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

impl Drop for Servers {
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
    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; MESSAGE];
    while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
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
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Gbit/s of one TCP stream.
pub fn stream(from: &Netns, to: IpAddr, time: Duration) -> Result<f64> {
    run(from, move || {
        let mut stream = connect(SocketAddr::new(to, STREAM))?;
        let buffer = vec![0_u8; 1 << 18];
        let (start, mut sent) = (Instant::now(), 0_u64);
        while start.elapsed() < time {
            sent += stream.write(&buffer)? as u64;
        }
        Ok(sent as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
    })
}

/// Average and 99th percentile of request and response, µs.
pub fn round_trip(from: &Netns, to: IpAddr, time: Duration) -> Result<(f64, f64)> {
    run(from, move || {
        let mut stream = connect(SocketAddr::new(to, ECHO))?;
        let mut buffer = [0; MESSAGE];
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

fn run<T: Send + 'static>(
    netns: &Netns,
    f: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    Ok(netns.run(f).map_err(|e| anyhow!("{e}"))??)
}
