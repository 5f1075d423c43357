//! Nine pods, what they serve, and all their attempts at once.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol as Kind, Socket, Type};
use villus_api::EndpointRef;
use villus_api::model::{EndpointChangeRequest, PolicyDelete, PolicyImport, PolicyWaitQuery};
use villus_net::{Netns, NetnsRef};
use villus_testbed::{raise_open_files, run, sctp_init, sctp_init_ack};

use crate::{
    common::TestNode,
    probe::{Pod, Probe, Protocol},
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
/// How long a busy machine may take for all attempts of one case.
const PATIENCE: Duration = Duration::from_secs(60);
/// Source port of the first SCTP attempt; each has its own.
const SCTP_BASE: usize = 10_000;
/// The drops by which a policy refuses, as the metrics name them.
const REFUSALS: [&str; 2] = ["Policy denied", "Policy denied by denylist"];

pub struct Cluster {
    node: TestNode,
    pods: Vec<Running>,
}

struct Running {
    pod: Pod,
    netns: Netns,
    addresses: [IpAddr; 2],
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// Raw sockets; the type is that of datagrams, which is all that is asked of them.
    sctp: [UdpSocket; 2],
}

impl Cluster {
    pub fn start() -> Self {
        raise_open_files(8192);
        let node =
            TestNode::started(&[("bpf-ct-global-tcp-max", "65536"), ("bpf-ct-global-any-max", "65536")]);
        let mut pods = Vec::new();
        for namespace in NAMESPACES {
            for name in PODS {
                pods.push(Running::start(&node, Pod { namespace, name }));
            }
        }
        Self { node, pods }
    }

    pub fn import(&self, name: &str, policy: &str) {
        let import =
            PolicyImport { file: format!("{name}.yaml"), text: policy.into(), ..PolicyImport::default() };
        let change =
            self.node.client().import_policy(&import).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.realized(change.revision);
    }

    /// Removes all policies.
    pub fn clear(&self) {
        let change =
            self.node.client().delete_policy(&PolicyDelete { all: true, ..PolicyDelete::default() }).unwrap();
        self.realized(change.revision);
    }

    fn realized(&self, revision: u64) {
        let wait = self.node.client().wait_policy(&PolicyWaitQuery { revision, timeout: 60 }).unwrap();
        assert!(wait.realized, "{wait:?}");
    }

    /// Packets that policy refused so far.
    fn refused(&self) -> f64 {
        let metrics = self.node.client().metrics().unwrap();
        metrics
            .iter()
            .filter(|metric| metric.name == "cilium_drop_count_total")
            .filter(|metric| REFUSALS.contains(&metric.labels["reason"].as_str()))
            .map(|metric| metric.value)
            .sum()
    }

    /// Tries everything at once. What may pass is answered; as many packets as may not are counted as refused; and then
    /// nothing has been answered that may not.
    pub fn check(&self, name: &str, allowed: impl Fn(&Probe) -> bool) {
        let before = self.refused();
        let mut round = Round::begin(&self.pods);
        let expected: Vec<bool> = round.probes.iter().map(&allowed).collect();
        let denied = expected.iter().filter(|may| !**may).count() as f64;
        let end = Instant::now() + PATIENCE;
        loop {
            round.step(&self.pods);
            let all = expected.iter().zip(&round.answered).all(|(may, answered)| !may || *answered);
            if all && self.refused() - before >= denied {
                break;
            }
            if Instant::now() > end {
                let missing = round.differences(&expected);
                panic!("{name}: {denied} must be refused, {} were; {missing}", self.refused() - before);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
        round.step(&self.pods);
        assert!(round.answered == expected, "{name}: {}", round.differences(&expected));
        for pod in &self.pods {
            pod.drain();
        }
    }
}

impl Running {
    fn start(node: &TestNode, pod: Pod) -> Self {
        let name = format!("{}-{}", pod.namespace, pod.name);
        run("ip", &["netns", "add", &name]);
        let team = if pod.namespace == "x" { "red" } else { "blue" };
        let request = EndpointChangeRequest {
            netns: Some(name.clone()),
            labels: [
                format!("k8s:pod={}", pod.name),
                format!("k8s:io.kubernetes.pod.namespace={}", pod.namespace),
                format!("k8s:io.cilium.k8s.namespace.labels.ns={}", pod.namespace),
                format!("k8s:io.cilium.k8s.namespace.labels.team={team}"),
                format!("k8s:io.cilium.k8s.policy.serviceaccount=sa-{}", pod.name),
            ]
            .into(),
            named_ports: vec!["http=80/TCP".to_owned(), "dns=81/UDP".to_owned()],
            ..EndpointChangeRequest::default()
        };
        let endpoint = node.client().create_endpoint(&EndpointRef::Id(0), &request).unwrap();
        let pair = &endpoint.status.networking.addressing[0];
        let addresses = [IpAddr::V4(pair.ipv4.unwrap()), IpAddr::V6(pair.ipv6.unwrap())];
        let netns = NetnsRef::Name(name).open().unwrap();
        let listen = || {
            let ends = || addresses.iter().flat_map(|ip| PORTS.map(|port| SocketAddr::new(*ip, port)));
            let sctp = addresses.map(|ip| {
                let kind = Some(Kind::from(132));
                let socket =
                    Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::RAW, kind).unwrap();
                socket.set_nonblocking(true).unwrap();
                UdpSocket::from(socket)
            });
            let udp = ends().map(|end| UdpSocket::bind(end).unwrap()).collect();
            (ends().map(listener).collect(), udp, sctp)
        };
        let (tcp, udp, sctp): (Vec<_>, Vec<UdpSocket>, _) = netns.run(listen).unwrap();
        for socket in &udp {
            socket.set_nonblocking(true).unwrap();
        }
        Self { pod, netns, addresses, tcp, udp, sctp }
    }

    /// Takes the connections that the kernel accepted, and what came late.
    fn drain(&self) {
        for listener in &self.tcp {
            while listener.accept().is_ok() {}
        }
        let mut buffer = [0; 64];
        for socket in &self.udp {
            while socket.recv_from(&mut buffer).is_ok() {}
        }
    }
}

fn listener(end: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(end), Type::STREAM, None).unwrap();
    socket.bind(&end.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// All attempts of one case.
struct Round {
    probes: Vec<Probe>,
    answered: Vec<bool>,
    connects: Vec<(usize, Socket)>,
    asks: Vec<[UdpSocket; 2]>,
}

impl Round {
    fn begin(pods: &[Running]) -> Self {
        let mut round =
            Self { probes: Vec::new(), answered: Vec::new(), connects: Vec::new(), asks: Vec::new() };
        for from in pods {
            from.netns.run(|| round.begin_from(from, pods)).unwrap();
        }
        round
    }

    fn begin_from(&mut self, from: &Running, pods: &[Running]) {
        let udp = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].map(|any| {
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        for to in pods.iter().filter(|to| to.pod != from.pod) {
            for (v6, ip) in [(false, to.addresses[0]), (true, to.addresses[1])] {
                for port in PORTS {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        let index = self.probes.len();
                        self.probes.push(Probe { from: from.pod, to: to.pod, port, protocol, v6 });
                        self.answered.push(false);
                        let end = SocketAddr::new(ip, port);
                        match protocol {
                            Protocol::Tcp => self.connects.push((index, connect(end))),
                            Protocol::Udp => {
                                let question = u32::try_from(index).unwrap().to_be_bytes();
                                udp[usize::from(v6)].send_to(&question, end).unwrap();
                            }
                            Protocol::Sctp => {
                                let source = u16::try_from(SCTP_BASE + index).unwrap();
                                let socket = &from.sctp[usize::from(v6)];
                                socket.send_to(&sctp_init(source, port), SocketAddr::new(ip, 0)).unwrap();
                            }
                        }
                    }
                }
            }
        }
        self.asks.push(udp);
    }

    /// Hears and answers everything that has come.
    fn step(&mut self, pods: &[Running]) {
        let mut buffer = [0; 256];
        for pod in pods {
            for socket in &pod.udp {
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..length], from).unwrap();
                }
            }
            for (v6, socket) in [(false, &pod.sctp[0]), (true, &pod.sctp[1])] {
                self.hear_sctp(socket, v6);
            }
        }
        for socket in self.asks.iter().flatten() {
            while let Ok(4) = socket.recv(&mut buffer) {
                let index = u32::from_be_bytes(buffer[..4].try_into().unwrap()) as usize;
                self.answered[index] = true;
            }
        }
        let answered = &mut self.answered;
        self.connects.retain(|(index, socket)| {
            let connected = socket.peer_addr().is_ok();
            answered[*index] |= connected;
            !connected
        });
    }

    fn hear_sctp(&mut self, socket: &UdpSocket, v6: bool) {
        let mut buffer = [0; 256];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let packet = &buffer[if v6 { 0 } else { 20 }..length];
            let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
            let (source, target) = (number(0), number(2));
            match packet[12] {
                1 => {
                    let tag = u32::from_be_bytes(packet[16..20].try_into().unwrap());
                    let answer = sctp_init_ack(target, source, tag);
                    socket.send_to(&answer, SocketAddr::new(from.ip(), 0)).unwrap();
                }
                2 => {
                    let index = usize::from(target) - SCTP_BASE;
                    self.answered[index] = true;
                }
                _ => {}
            }
        }
    }

    /// Where the truth and the table differ.
    fn differences(&self, expected: &[bool]) -> String {
        let all: Vec<String> = (0..self.probes.len())
            .filter(|index| self.answered[*index] != expected[*index])
            .map(|index| {
                let verb = if expected[index] { "should pass" } else { "should not pass" };
                format!("{} {verb}", self.probes[index])
            })
            .collect();
        let shown = all.iter().take(12).cloned().collect::<Vec<_>>().join("; ");
        format!("{} of {} differ: {shown}", all.len(), self.probes.len())
    }
}

fn connect(end: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(end), Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    // No connection of one case lingers into the next.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    match socket.connect(&end.into()) {
        Err(error) if error.raw_os_error() != Some(115) && error.kind() != ErrorKind::WouldBlock => {
            panic!("{end}: {error}")
        }
        _ => socket,
    }
}
