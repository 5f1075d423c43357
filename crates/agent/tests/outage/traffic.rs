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
    /// Those that ask, each by its name.
    threads: Vec<(&'static str, JoinHandle<Result<(), String>>)>,
    /// Those that answer until nobody asks any more.
    echoes: Vec<JoinHandle<Result<(), String>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Nobody asks any more.
    done: AtomicBool,
    /// Exchanges that succeeded, by kind.
    tcp: AtomicU64,
    udp: AtomicU64,
    fresh: AtomicU64,
    connections: AtomicU64,
    back: AtomicU64,
    tried: AtomicU64,
    leaked: AtomicU64,
}

impl Traffic {
    /// Begins. The server serves TCP already.
    pub fn start(client: &Workload, server: &Workload, intruder: &Workload) -> Self {
        let mut traffic = Self { shared: Arc::default(), threads: Vec::new(), echoes: Vec::new() };
        for (from, other, to) in
            [(client.v4(), intruder.v4(), server.v4()), (client.v6(), intruder.v6(), server.v6())]
        {
            let socket = server.udp(to, PORT);
            traffic.answer(socket);
            let netns = again(client);
            traffic.spawn("an open connection", move |shared| open_connection(&netns, to, shared));
            let socket = client.udp(from, 0);
            traffic.spawn("an open flow", move |shared| open_flow(&socket, to, shared));
            let netns = again(client);
            traffic.spawn("new flows", move |shared| fresh_flows(&netns, from, to, shared, &shared.fresh));
            let netns = again(client);
            traffic.spawn("new connections", move |shared| fresh_connections(&netns, to, shared));
            let socket = client.udp(from, PORT);
            traffic.answer(socket);
            let netns = again(server);
            traffic
                .spawn("new flows back", move |shared| fresh_flows(&netns, to, from, shared, &shared.back));
            let netns = again(intruder);
            traffic.spawn("an intruder", move |shared| intrude(&netns, other, to, shared));
        }
        traffic.goes_on();
        traffic
    }

    fn answer(&mut self, socket: UdpSocket) {
        // The end is looked for as often.
        socket.set_read_timeout(Some(10 * PAUSE)).unwrap();
        let shared = self.shared.clone();
        self.echoes.push(std::thread::spawn(move || echo(&socket, &shared)));
    }

    fn spawn(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Shared) -> Result<(), String> + Send + 'static,
    ) {
        let shared = self.shared.clone();
        self.threads.push((name, std::thread::spawn(move || work(&shared))));
    }

    /// Waits until every kind of traffic got on, so that what was done before was seen by each.
    pub fn goes_on(&self) {
        let Shared { tcp, udp, fresh, connections, back, tried, .. } = &*self.shared;
        let counters = [tcp, udp, fresh, connections, back, tried];
        let before = counters.map(|counter| counter.load(Ordering::Relaxed));
        eventually("traffic goes on", || {
            for (name, thread) in &self.threads {
                assert!(!thread.is_finished(), "{name} broke off");
            }
            counters.iter().zip(before).all(|(counter, before)| counter.load(Ordering::Relaxed) > before + 20)
        });
    }

    /// Ends it. Says what was lost of that which is allowed, and whether anything denied arrived.
    pub fn stop(self) -> Result<(), String> {
        self.goes_on();
        self.shared.stop.store(true, Ordering::Relaxed);
        let ends = |thread: JoinHandle<Result<(), String>>| thread.join().unwrap();
        let mut broken = Vec::new();
        for (name, thread) in self.threads {
            broken.extend(ends(thread).err().map(|error| format!("{name}: {error}")));
        }
        // Whoever has asked before the end is still answered.
        self.shared.done.store(true, Ordering::Relaxed);
        broken.extend(self.echoes.into_iter().filter_map(|thread| ends(thread).err()));
        let leaked = self.shared.leaked.load(Ordering::Relaxed);
        if leaked > 0 {
            broken.push(format!("{leaked} denied packets arrived"));
        }
        if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
    }
}

/// The namespace once more, for another thread.
fn again(workload: &Workload) -> Netns {
    workload.netns.name().open().unwrap()
}

fn echo(socket: &UdpSocket, shared: &Shared) -> Result<(), String> {
    let mut buffer = [0; 64];
    while !shared.done.load(Ordering::Relaxed) {
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
    let mut stream = connected(netns, to)?.map_err(broken)?;
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
fn fresh_flows(
    netns: &Netns,
    from: IpAddr,
    to: IpAddr,
    shared: &Shared,
    count: &AtomicU64,
) -> Result<(), String> {
    while !shared.stop.load(Ordering::Relaxed) {
        let socket = bound(netns, from)?;
        exchange(&socket, to, count.fetch_add(1, Ordering::Relaxed))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A new connection each time, with one question.
fn fresh_connections(netns: &Netns, to: IpAddr, shared: &Shared) -> Result<(), String> {
    while !shared.stop.load(Ordering::Relaxed) {
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let broken = |error: std::io::Error| format!("connection {number} to {to}: {error}");
        let mut stream = connected(netns, to)?.map_err(broken)?;
        let mut answer = [0; 8];
        stream.write_all(&number.to_be_bytes()).map_err(broken)?;
        stream.read_exact(&mut answer).map_err(broken)?;
        if answer != number.to_be_bytes() {
            return Err(format!("connection {number} to {to}: another's answer"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A connection that has patience.
fn connected(netns: &Netns, to: IpAddr) -> Result<std::io::Result<TcpStream>, String> {
    let stream = netns
        .run(|| TcpStream::connect_timeout(&SocketAddr::new(to, PORT), PATIENCE))
        .map_err(|error| error.to_string())?;
    Ok(stream.and_then(|stream| stream.set_read_timeout(Some(PATIENCE)).map(|()| stream)))
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
