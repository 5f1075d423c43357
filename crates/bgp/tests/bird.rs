//! Three real BIRDs: a node and the two switches above it, with a host behind them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use villus_bgp::{Control, Import, Speaker, Status};
use villus_testbed::{Host, Ping, eventually, join, run};

/// Addresses out of the announced ranges, on the node.
const PODS: [&str; 2] = ["10.0.1.7", "fd00:1:2:3::7"];
/// Addresses of the host behind the switches.
const CLIENT: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

/// How long an answer may take where it is asked for again, and where it is not.
const SOON: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(30);

/// How a BIRD ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As its unit stops it: it says goodbye to its neighbours.
    Stopped,
    /// Its neighbours are to wait for it.
    Graceful,
    /// By signal 9.
    Killed,
}

/// Says that something is over when it goes, whatever happens.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A BIRD in the namespace of a host. Gone with this value.
struct Bird {
    child: Child,
    directory: TempDir,
}

impl Bird {
    fn start(host: &Host, config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("bird.conf"), config).unwrap();
        let bird = Self { child: Self::run(host, directory.path()), directory };
        bird.listens();
        bird
    }

    fn run(host: &Host, directory: &Path) -> Child {
        let file = |name: &str| directory.join(name).display().to_string();
        let arguments =
            ["-R", "-f", "-c", &file("bird.conf"), "-s", &file("bird.ctl"), "-P", &file("bird.pid")];
        let child = host
            .run(|| Command::new("bird").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn());
        child.expect("bird (package bird2)")
    }

    fn listens(&self) {
        eventually("BIRD listens", || Control::connect(&self.socket()).is_ok());
    }

    /// It is gone after this.
    fn end(&mut self, end: End) {
        match end {
            End::Stopped => drop(self.birdc(&["down"])),
            End::Graceful => drop(self.birdc(&["graceful", "restart"])),
            End::Killed => self.child.kill().unwrap(),
        }
        self.child.wait().unwrap();
    }

    fn again(&mut self, host: &Host) {
        self.child = Self::run(host, self.directory.path());
        self.listens();
    }

    fn birdc(&self, command: &[&str]) -> String {
        let socket = self.socket().display().to_string();
        let mut arguments = vec!["-s", socket.as_str()];
        arguments.extend(command);
        run("birdc", &arguments)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bird.ctl")
    }

    fn status(&self) -> Status {
        Control::connect(&self.socket()).unwrap().status().unwrap()
    }

    fn configure(&self, config: &str) {
        std::fs::write(self.directory.path().join("bird.conf"), config).unwrap();
        self.birdc(&["configure"]);
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The node, `up1` and `up2` towards the switches, and the host behind both.
struct Lab {
    node: Host,
    switches: [Host; 2],
    client: Host,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            node: Host::new("node"),
            switches: [Host::new("switch1"), Host::new("switch2")],
            client: Host::new("client"),
        };
        for pod in PODS {
            lab.node.ip(&format!("addr add {pod} dev lo"));
        }
        for address in CLIENT {
            lab.client.ip(&format!("addr add {address} dev lo"));
        }
        for family in ["ipv4", "ipv6"] {
            lab.client.sysctl(&format!("net/{family}/conf/default/ignore_routes_with_linkdown"), "1");
        }
        for (n, switch) in (1..).zip(&lab.switches) {
            switch.forward();
            join(&lab.node, &format!("up{n}"), switch, "down", 1500);
            join(switch, "out", &lab.client, &format!("c{n}"), 1500);
            lab.node.add_address(&format!("up{n}"), &format!("10.9.{n}.1/24"));
            lab.node.add_address(&format!("up{n}"), &format!("fd09:{n}::1/64"));
            switch.add_address("down", &format!("10.9.{n}.2/24"));
            switch.add_address("down", &format!("fd09:{n}::2/64"));
            switch.add_address("out", &format!("10.8.{n}.1/24"));
            switch.add_address("out", &format!("fd08:{n}::1/64"));
            lab.client.add_address(&format!("c{n}"), &format!("10.8.{n}.2/24"));
            lab.client.add_address(&format!("c{n}"), &format!("fd08:{n}::2/64"));
            switch.ip(&format!("route add {} via 10.8.{n}.2", CLIENT[0]));
            switch.ip(&format!("-6 route add {} via fd08:{n}::2", CLIENT[1]));
            // The first is preferred while it is there.
            lab.client.ip(&format!("route add 10.0.1.0/24 via 10.8.{n}.1 src {} metric {n}0", CLIENT[0]));
            lab.client
                .ip(&format!("-6 route add fd00:1:2:3::/64 via fd08:{n}::1 src {} metric {n}0", CLIENT[1]));
        }
        lab
    }

    /// A switch: the first in the node's autonomous system, whose default route is therefore preferred, the second in one of
    /// its own. It offers the default route and one that nobody should take.
    fn switch_config(n: usize) -> String {
        let number = if n == 1 { 65_001 } else { 65_000 };
        let family = |channel: &str, default: &str, other: &str, node: &str| {
            format!(
                "protocol kernel {{ {channel} {{ import none; export where source = RTS_BGP; }}; }}\n\
                 protocol static {{ {channel}; route {default} unreachable; route {other} unreachable; }}\n\
                 protocol bgp {{ local as {number}; neighbor {node} as 65001; direct; \
                 {channel} {{ import all; export all; next hop self; }}; }}\n"
            )
        };
        format!(
            "router id 10.9.{n}.2;\nprotocol device {{}}\n{}{}",
            family("ipv4", "0.0.0.0/0", "203.0.113.0/24", &format!("10.9.{n}.1")),
            family("ipv6", "::/0", "2001:db8:9::/48", &format!("fd09:{n}::1")),
        )
    }

    /// Sends datagrams from the pods to the host, one after the other, until it is told. Returns how many came, or the first that
    /// did not.
    fn sends_out(&self, done: &AtomicBool) -> Result<usize, String> {
        let ends = [0, 1].map(|n| {
            let pod = self.node.run(|| UdpSocket::bind((PODS[n].parse::<IpAddr>().unwrap(), 0)).unwrap());
            let host =
                self.client.run(|| UdpSocket::bind((CLIENT[n].parse::<IpAddr>().unwrap(), 0)).unwrap());
            host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            (pod, host)
        });
        let mut came = 0_usize;
        while !done.load(Ordering::Relaxed) {
            for (pod, host) in &ends {
                let sent = pod.send_to(&came.to_be_bytes(), host.local_addr().unwrap());
                sent.map_err(|error| format!("datagram {came} from {pod:?}: {error}"))?;
                let mut got = [0; size_of::<usize>()];
                host.recv(&mut got).map_err(|error| format!("datagram {came} to {host:?}: {error}"))?;
                assert_eq!(usize::from_be_bytes(got), came);
                came += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(came)
    }

    /// Whether the host reaches the pods; an answer may take so long.
    fn reaches_pods(&self, patience: Duration) -> bool {
        let echo = |pod: &str| {
            let ping = Ping::open(&self.client, None, pod.parse::<IpAddr>().unwrap());
            ping.echo_within(patience).is_ok()
        };
        PODS.into_iter().all(echo)
    }
}

fn speaker(import: Import) -> Speaker {
    let neighbours = ["10.9.1.2,as=65001", "10.9.2.2,as=65000", "fd09:1::2,as=65001", "fd09:2::2,as=65000"];
    let speaker = Speaker {
        router_id: "10.9.1.1".parse().unwrap(),
        local_as: 65_001,
        neighbours: neighbours.iter().map(|text| text.parse().unwrap()).collect(),
        ranges: ["10.0.1.0/24", "fd00:1:2:3::/64"].iter().map(|text| text.parse().unwrap()).collect(),
        import,
        hold: Some(6),
    };
    speaker.check(false).unwrap();
    speaker
}

fn learned(host: &Host, family: &str) -> String {
    host.ip(&format!("{family} route show proto bird"))
}

#[test]
fn neighbours_learn_the_ranges_and_traffic_goes_on_when_one_dies() {
    let lab = Lab::new();
    let mut switches: Vec<Bird> =
        (1..).zip(&lab.switches).map(|(n, host)| Bird::start(host, &Lab::switch_config(n))).collect();
    let node = Bird::start(&lab.node, &speaker(Import::None).render());
    eventually("all sessions are established", || node.status().is_whole());
    for switch in &lab.switches {
        eventually("the switch learns IPv4", || learned(switch, "-4").contains("10.0.1.0/24 via 10.9."));
        eventually("the switch learns IPv6", || learned(switch, "-6").contains("fd00:1:2:3::/64 via "));
    }
    eventually("the node announces everywhere", || {
        node.status()
            .sessions
            .iter()
            .all(|session| session.channels.iter().all(|channel| channel.exported == 1))
    });
    // Nothing is imported: neither into BIRD nor into the kernel.
    let status = node.status();
    assert_eq!(status.sessions.len(), 4, "{status:?}");
    assert!(
        status.sessions.iter().flat_map(|session| &session.channels).all(|channel| channel.imported == 0)
    );
    assert_eq!((learned(&lab.node, "-4"), learned(&lab.node, "-6")), (String::new(), String::new()));

    // Keeping only the default route: out through the first, and nothing else is there.
    node.configure(&speaker(Import::Default).render());
    for family in ["-4", "-6"] {
        eventually("the node learns the default route", || {
            let routes = learned(&lab.node, family);
            routes.starts_with("default via") && routes.contains("up1")
        });
        assert_eq!(learned(&lab.node, family).matches(" via ").count(), 1, "{}", learned(&lab.node, family));
    }
    eventually("the pods are reached", || lab.reaches_pods(SOON));

    // The first switch dies, with its links.
    drop(switches.remove(0));
    for device in ["down", "out"] {
        lab.switches[0].ip(&format!("link set dev {device} down"));
    }
    eventually("the node sees who is gone", || {
        let status = node.status();
        let of = |address: &str| {
            status.sessions.iter().find(|one| one.neighbour == address).unwrap().is_established()
        };
        !of("10.9.1.2") && !of("fd09:1::2") && of("10.9.2.2") && of("fd09:2::2")
    });
    assert!(!node.status().is_whole());
    eventually("the pods are reached through the other", || lab.reaches_pods(SOON));
    assert!(learned(&lab.node, "-4").contains("10.9.2.2"), "{}", learned(&lab.node, "-4"));
}

#[test]
fn the_default_route_and_traffic_stay_while_bird_is_stopped_killed_and_started_again() {
    let lab = Lab::new();
    let _switches: Vec<Bird> =
        (1..).zip(&lab.switches).map(|(n, host)| Bird::start(host, &Lab::switch_config(n))).collect();
    let mut node = Bird::start(&lab.node, &speaker(Import::Default).render());
    let has_default =
        || ["-4", "-6"].iter().all(|family| learned(&lab.node, family).starts_with("default via"));
    let is_settled = |node: &Bird| {
        node.status().is_whole() && !node.birdc(&["show", "status"]).contains("recovery in progress")
    };
    eventually("all sessions are established", || is_settled(&node));
    eventually("the node learns the default routes", has_default);
    eventually("the pods are reached", || lab.reaches_pods(SOON));
    for end in [End::Stopped, End::Graceful, End::Killed] {
        let done = AtomicBool::new(false);
        let came = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| lab.sends_out(&done));
            let over = Over(&done);
            node.end(end);
            let stayed = has_default();
            let is_reached = lab.reaches_pods(LONG);
            node.again(&lab.node);
            eventually("all sessions are established again", || is_settled(&node));
            assert!(stayed, "{end:?}: no default route while BIRD is away");
            // Who says goodbye is believed.
            assert!(is_reached || end == End::Stopped, "{end:?}: neighbours forgot the node's ranges");
            drop(over);
            traffic.join().unwrap()
        });
        let came = came.unwrap_or_else(|lost| panic!("{end:?}: {lost}"));
        assert!(came > 0 && has_default(), "{end:?}: {came}");
        eventually("the pods are reached again", || lab.reaches_pods(SOON));
    }
}

#[test]
fn where_no_bird_listens_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let error = Control::connect(&directory.path().join("bird.ctl")).unwrap_err().to_string();
    assert!(error.contains("bird.ctl") && error.contains("--socket"), "{error}");
    // Somebody else listens there.
    let path = directory.path().join("other.ctl");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        use std::io::Write;
        listener.accept().unwrap().0.write_all(b"220 mail.example.org\n").unwrap();
    });
    let error = Control::connect(&path).unwrap_err().to_string();
    other.join().unwrap();
    assert!(error.contains("BIRD 2"), "{error}");
}
