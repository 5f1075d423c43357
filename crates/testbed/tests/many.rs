//! Many flows: ten thousand connections at once, and a table that is full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use villus_abi::{
    Direction::{Egress, Ingress},
    Reason,
};
use villus_datapath::{FlowKey, Sizes};
use villus_testbed::{
    Capture, Delta, EchoServer, Kind, Node, NodeSpec, TCP, UdpEcho, Version, Workload, eventually,
    raise_open_files, udp,
};

const CONNECTIONS: usize = 10_000;
/// Held by tests that flood: all namespaces share the queues of the kernel, and what one floods loses packets of another.
static FLOODED: Mutex<()> = Mutex::new(());

/// Waits until what is sent is not thrown away because too much waits before it.
fn queues_have_room() {
    eventually("the kernel gets round to what was sent", || {
        let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
        // So many packets wait on each processor; a thousand may.
        let mut waiting = text.lines().map(|line| {
            let field = line.split_whitespace().nth(11).unwrap();
            u32::from_str_radix(field, 16).unwrap()
        });
        waiting.all(|packets| packets < 100)
    });
}

fn pair(sizes: Sizes) -> (Node, Arc<Workload>, Arc<Workload>) {
    let mut node = Node::new(NodeSpec { sizes, ..NodeSpec::default() });
    let (client, server) = (node.add(101, 50_101, Kind::Veth), node.add(102, 50_102, Kind::Veth));
    (node, client, server)
}

#[test]
fn ten_thousand_connections_are_open_at_once() {
    // Those that nobody accepts are open all the same, and need no file here.
    raise_open_files(CONNECTIONS as u64 + 2000);
    for v in Version::ALL {
        let (node, client, server) = pair(Sizes { ct_tcp: 1 << 15, ..NodeSpec::default().sizes });
        node.allow(&client, Egress, 50_102, 80, TCP);
        let key = node.allow(&server, Ingress, 50_101, 80, TCP);
        let at = SocketAddr::new(server.ip(v), 80);
        server.host.sysctl("net/core/somaxconn", "32768");
        server.host.sysctl("net/ipv4/tcp_max_syn_backlog", "32768");
        let listening = EchoServer::open(&server.host, at);
        let before = node.tally();
        let mut open: Vec<TcpStream> =
            client.host.run(|| (0..CONNECTIONS).map(|_| TcpStream::connect(at).unwrap()).collect());
        for from in &mut open {
            from.write_all(b"ping").unwrap();
        }
        for from in open.iter_mut().take(100) {
            let (mut to, _) = listening.accept(Duration::from_secs(30)).unwrap();
            let mut heard = [0; 4];
            to.read_exact(&mut heard).unwrap();
            to.write_all(&heard).unwrap();
            from.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"ping");
            // Closed only with all the others.
            std::mem::forget(to);
        }
        node.expect("all of them", &before, |delta| {
            Delta::same("flows", delta.flows.len(), CONNECTIONS)?;
            Delta::same("drops", delta.drops().len(), 0)?;
            let (there, _) = delta.flow_packets();
            Delta::same("asked of the client", delta.asked(&client, Egress), there)?;
            Delta::same("asked of the server", delta.asked(&server, Ingress), there)?;
            delta.every_sent_packet_counted_once()
        });
        // The policy's change reaches every one of them with its next packet.
        node.forget(&server, &key);
        let before = node.tally();
        for from in &mut open {
            from.write_all(b"ping").unwrap();
        }
        node.expect("cut", &before, |delta| {
            Delta::same("forwarded to the server", delta.asked(&server, Ingress), 0)?;
            let dropped = delta.metric(Reason::POLICY, Ingress);
            if dropped >= CONNECTIONS as u64 { Ok(()) } else { Err(format!("only {dropped} are dropped")) }
        });
        drop(open);
        drop((client, server));
        node.finish();
    }
}

/// Sends the first packet of a new flow again and again, so many a second at most and no more than are allowed, until told
/// to stop.
fn flood(wire: &Capture, frame: &[u8], rate: u64, flood: &Flood) {
    let mut frame = frame.to_vec();
    let ports = if frame[12..14] == [0x86, 0xdd] { 54 } else { 34 };
    let start = Instant::now();
    let mut done = 0_u64;
    while !flood.stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
        let due = due.min(flood.allowed.load(Ordering::Relaxed));
        while done < due.min(done + 200) {
            let (sport, dport) = ((done % 50_000) as u16 + 10_000, (done / 50_000) as u16 + 20_000);
            frame[ports..ports + 2].copy_from_slice(&sport.to_be_bytes());
            frame[ports + 2..ports + 4].copy_from_slice(&dport.to_be_bytes());
            // The server throws it away for its checksum and says nothing.
            frame[ports + 6..ports + 8].copy_from_slice(&[0xba, 0xad]);
            wire.try_send(&frame);
            done += 1;
        }
        flood.sent.store(done, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// New flows that come in while something else goes on.
#[derive(Default)]
struct Flood {
    stop: AtomicBool,
    sent: AtomicU64,
    allowed: AtomicU64,
}

impl Flood {
    /// Allows so many more, and waits until they were sent.
    fn let_through(&self, count: u64) {
        let allowed = self.allowed.fetch_add(count, Ordering::Relaxed) + count;
        eventually("so many new flows", || self.sent.load(Ordering::Relaxed) >= allowed);
        queues_have_room();
    }

    /// Allows any number.
    fn open(&self) {
        self.allowed.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Ends the flood, also when a test fails under it.
struct Stop<'a>(&'a Flood);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs `meanwhile` while new flows come in; says how many came.
fn while_flooded(
    client: &Workload,
    server: &Workload,
    v: Version,
    rate: u64,
    meanwhile: impl FnOnce(&Flood),
) -> u64 {
    let wire = Capture::open(&client.host, "eth0");
    let frame = udp(&client.to(server.ip(v)), 1, 1, b"flood");
    let state = Flood::default();
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&wire, &frame, rate, &state));
        let _stop = Stop(&state);
        meanwhile(&state);
    });
    queues_have_room();
    state.sent.load(Ordering::Relaxed)
}

fn flows_of(node: &Node, ports: &[u16]) -> HashMap<FlowKey, u32> {
    let all = node.flows().list().unwrap();
    let ours = all.into_iter().filter(|(key, flow)| ports.contains(&key.ends(flow).0.port()));
    ours.map(|(key, flow)| (key, flow.created)).collect()
}

#[test]
fn flows_with_a_packet_a_second_outlive_fifty_thousand_new_ones_a_second() {
    // Of the second only what it means is asserted, so that a slow machine makes it longer: between two packets of a flow
    // there are so many new flows.
    const A_SECOND: u64 = 50_000;
    const TABLE: u32 = 1 << 17;
    let _alone = FLOODED.lock().unwrap_or_else(PoisonError::into_inner);
    for v in Version::ALL {
        let (node, client, server) = pair(Sizes { ct_any: TABLE, ..NodeSpec::default().sizes });
        node.allow_all(&client);
        node.allow_all(&server);
        let at = |port| SocketAddr::new(server.ip(v), port);
        let quiet: Vec<UdpEcho> = (0..50)
            .map(|n| UdpEcho::open(&client.host, None, &server.host, at(5000 + n), at(5000 + n)))
            .collect();
        let ports: Vec<u16> = quiet.iter().map(|echo| echo.client.local_addr().unwrap().port()).collect();
        let mut born = HashMap::new();
        let flooded = while_flooded(&client, &server, v, A_SECOND, |flood| {
            for round in 0..6 {
                for echo in &quiet {
                    assert!(echo.echo(b"still here").is_ok(), "{v:?} round {round}");
                }
                if round == 0 {
                    born = flows_of(&node, &ports);
                }
                flood.let_through(A_SECOND);
            }
        });
        assert!(flooded > u64::from(TABLE), "the table was not filled: {flooded} flows");
        assert_eq!(born.len(), quiet.len());
        let now = flows_of(&node, &ports);
        let lost = born.iter().filter(|(key, created)| now.get(key) != Some(created)).count();
        assert_eq!(lost, 0, "{v:?}: so many of {} flows were forgotten", born.len());
        drop((client, server));
        node.finish();
    }
}

#[test]
fn a_forgotten_flow_comes_back_when_its_client_speaks() {
    let _alone = FLOODED.lock().unwrap_or_else(PoisonError::into_inner);
    for v in Version::ALL {
        let (node, client, server) = pair(Sizes { ct_any: 1 << 10, ..NodeSpec::default().sizes });
        node.allow(&client, Egress, 50_102, 0, 0);
        node.allow(&server, Ingress, 50_101, 0, 0);
        let at = |port| SocketAddr::new(server.ip(v), port);
        let all: Vec<UdpEcho> = (0..200)
            .map(|n| UdpEcho::open(&client.host, None, &server.host, at(5000 + n), at(5000 + n)))
            .collect();
        let seen: Vec<SocketAddr> = all.iter().map(|echo| echo.echo(b"hello").unwrap().seen).collect();
        let ports: Vec<u16> = seen.iter().map(SocketAddr::port).collect();
        let mut forgotten = None;
        while_flooded(&client, &server, v, 20_000, |flood| {
            flood.open();
            let end = Instant::now() + Duration::from_secs(60);
            while forgotten.is_none() {
                assert!(Instant::now() < end, "{v:?}: no flow is ever forgotten");
                std::thread::sleep(Duration::from_millis(50));
                let left = flows_of(&node, &ports);
                let is_left = |port: u16| {
                    left.iter().any(|(key, _)| key.lo().port() == port || key.hi().port() == port)
                };
                forgotten = ports.iter().position(|port| !is_left(*port));
            }
        });
        let (echo, seen) = (&all[forgotten.unwrap()], seen[forgotten.unwrap()]);
        // The server's next word is a new flow, which its policy does not allow.
        let before = node.tally();
        echo.server.send_to(b"hello?", seen).unwrap();
        node.expect("the server speaks", &before, |delta| {
            Delta::same("dropped", delta.metric(Reason::POLICY, Egress), 1)
        });
        for _ in 0..20 {
            assert!(echo.echo(b"here I am").is_ok(), "{v:?}: not recovered");
        }
        // Under the flood every word of the client brings it back.
        while_flooded(&client, &server, v, 50_000, |flood| {
            flood.open();
            // The kernel itself loses packets where so many come in that it does not get round to them.
            echo.patience(Duration::from_secs(3));
            let mut lost = 0;
            for _ in 0..200 {
                echo.send(b"again and again").unwrap();
                lost += u32::from(echo.server.recv(&mut [0; 64]).is_err());
            }
            assert!(lost < 20, "{v:?}: not heard under the flood {lost} times");
        });
        let refused = villus_datapath::metrics(&node.maps).unwrap();
        assert!(!refused.contains_key(&villus_abi::metrics::index(Reason::CT_INSERT.0, 1)), "{refused:?}");
        drop((client, server));
        node.finish();
    }
}
