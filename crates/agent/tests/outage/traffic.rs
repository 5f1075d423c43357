//! Traffic that counts: what is allowed must all arrive, what is denied must never.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use villus_net::Netns;
use villus_testbed::eventually;

use crate::common::Workload;

pub const PORT: u16 = 80;
/// How long an answer may take on a busy machine; a packet that was dropped is never answered.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
const INTRUDER: &[u8] = b"intruder";

/// Traffic between a client and a server, and the attempts of somebody who may not. It goes on until it is stopped.
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Exchanges that succeeded, by kind.
    tcp: AtomicU64,
    udp: AtomicU64,
    fresh: AtomicU64,
    tried: AtomicU64,
    leaked: AtomicU64,
}

impl Traffic {
    /// Begins. The server serves TCP already.
    pub fn start(client: &Workload, server: &Workload, intruder: &Workload) -> Self {
        let mut traffic = Self { shared: Arc::default(), threads: Vec::new() };
        for (from, other, to) in
            [(client.v4(), intruder.v4(), server.v4()), (client.v6(), intruder.v6(), server.v6())]
        {
            let socket = server.udp(to, PORT);
            // The end is looked for as often.
            socket.set_read_timeout(Some(10 * PAUSE)).unwrap();
            traffic.spawn(move |shared| echo(&socket, shared));
            let netns = again(client);
            traffic.spawn(move |shared| open_connection(&netns, to, shared));
            let socket = client.udp(from, 0);
            traffic.spawn(move |shared| open_flow(&socket, to, shared));
            let netns = again(client);
            traffic.spawn(move |shared| fresh_flows(&netns, from, to, shared));
            let netns = again(intruder);
            traffic.spawn(move |shared| intrude(&netns, other, to, shared));
        }
        traffic.goes_on();
        traffic
    }

    fn spawn(&mut self, work: impl FnOnce(&Shared) -> Result<(), String> + Send + 'static) {
        let shared = self.shared.clone();
        self.threads.push(std::thread::spawn(move || work(&shared)));
    }

    /// Waits until every kind of traffic got on, so that what was done before was seen by each.
    pub fn goes_on(&self) {
        let counters = [&self.shared.tcp, &self.shared.udp, &self.shared.fresh, &self.shared.tried];
        let before = counters.map(|counter| counter.load(Ordering::Relaxed));
        eventually("traffic goes on", || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "some traffic broke off");
            counters.iter().zip(before).all(|(counter, before)| counter.load(Ordering::Relaxed) > before + 20)
        });
    }

    /// Ends it.
    ///
    /// # Panics
    /// When anything allowed was lost or anything denied arrived.
    pub fn stop(self) {
        self.goes_on();
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(self.shared.leaked.load(Ordering::Relaxed), 0, "denied packets arrived");
    }
}

/// The namespace once more, for another thread.
fn again(workload: &Workload) -> Netns {
    workload.netns.name().open().unwrap()
}

fn echo(socket: &UdpSocket, shared: &Shared) -> Result<(), String> {
    let mut buffer = [0; 64];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if &buffer[..length] == INTRUDER {
            shared.leaked.fetch_add(1, Ordering::Relaxed);
        } else {
            socket.send_to(&buffer[..length], from).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// One connection for the whole time.
fn open_connection(netns: &Netns, to: IpAddr, shared: &Shared) -> Result<(), String> {
    let broken = |error: std::io::Error| format!("the connection to {to}: {error}");
    let mut stream = netns
        .run(|| TcpStream::connect_timeout(&SocketAddr::new(to, PORT), PATIENCE))
        .map_err(|error| error.to_string())?
        .map_err(broken)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    let mut answer = [0; 8];
    while !shared.stop.load(Ordering::Relaxed) {
        let question = shared.tcp.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        stream.write_all(&question).map_err(broken)?;
        stream.read_exact(&mut answer).map_err(broken)?;
        if answer != question {
            return Err(format!("the connection to {to} mixes answers"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// One UDP flow for the whole time: each datagram is sent once, and answered.
fn open_flow(socket: &UdpSocket, to: IpAddr, shared: &Shared) -> Result<(), String> {
    while !shared.stop.load(Ordering::Relaxed) {
        exchange(socket, to, shared.udp.fetch_add(1, Ordering::Relaxed))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A new UDP flow each time: the first packet of each is judged, and answered.
fn fresh_flows(netns: &Netns, from: IpAddr, to: IpAddr, shared: &Shared) -> Result<(), String> {
    while !shared.stop.load(Ordering::Relaxed) {
        let socket = bound(netns, from)?;
        exchange(&socket, to, shared.fresh.fetch_add(1, Ordering::Relaxed))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn bound(netns: &Netns, from: IpAddr) -> Result<UdpSocket, String> {
    let socket =
        netns.run(|| UdpSocket::bind(SocketAddr::new(from, 0))).map_err(|error| error.to_string())?;
    socket.map_err(|error| error.to_string())
}

fn exchange(socket: &UdpSocket, to: IpAddr, number: u64) -> Result<(), String> {
    let lost = |error: std::io::Error| format!("datagram {number} to {to}: {error}");
    socket.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
    socket.send_to(&number.to_be_bytes(), SocketAddr::new(to, PORT)).map_err(lost)?;
    let mut answer = [0; 8];
    socket.recv_from(&mut answer).map_err(lost)?;
    if answer == number.to_be_bytes() {
        Ok(())
    } else {
        Err(format!("datagram {number} to {to}: another's answer"))
    }
}

/// Tries by datagram and by connection.
fn intrude(netns: &Netns, from: IpAddr, to: IpAddr, shared: &Shared) -> Result<(), String> {
    let to = SocketAddr::new(to, PORT);
    while !shared.stop.load(Ordering::Relaxed) {
        let socket = bound(netns, from)?;
        socket.send_to(INTRUDER, to).map_err(|error| error.to_string())?;
        let connected =
            netns.run(|| TcpStream::connect_timeout(&to, PAUSE)).map_err(|error| error.to_string())?;
        if connected.is_ok() {
            shared.leaked.fetch_add(1, Ordering::Relaxed);
        }
        shared.tried.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
