//! Real traffic between two namespaces: endpoints with policy beside plain veth routing without any.
//!
//! Both are joined by the same links and host routes in one namespace; the only difference is our programs.
//! Rounds alternate, and a control compares the baseline with itself.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_abi::{
    Config, Direction, Endpoint, Local, PolicyEntry, PolicyKey, config,
    endpoint::{FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DELIVER_PEER},
};
use villus_datapath::{AttachMode, Entries, Hook, Links, Maps, Object, Pins, PolicyMaps, Sizes};
use villus_net::{EndpointLink, EndpointLinkSpec, Mac, Netns, NetnsRef, create_endpoint_link};

use crate::{
    apart::apart,
    cost,
    load::{self, Place, Servers},
    report::Row,
};

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 200, 0, 0, 0, 0, 0, 1);
const ROUNDS: usize = 9;
const SECOND: Duration = Duration::from_secs(1);

/// A namespace that lives as long as this does.
pub(crate) struct Workload {
    child: Child,
    netns: Arc<Netns>,
}

impl Workload {
    pub(crate) fn new() -> Result<Self> {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "100000"])
            .stdin(Stdio::null())
            .spawn()
            .context("unshare (package util-linux)")?;
        // The child is in its namespace once its file differs from ours.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let path = format!("/proc/{}/ns/net", child.id());
        for _ in 0..200 {
            if std::fs::read_link(&path).is_ok_and(|other| other != own) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let netns = Arc::new(NetnsRef::Pid(child.id()).open().map_err(|e| anyhow!("{e}"))?);
        Ok(Self { child, netns })
    }

    /// Path of the namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.child.id())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, n)
}

fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 200, 0, 0, 0, 0, 0, u16::from(n))
}

/// The link of a workload; `hooks` runs before it can carry a packet.
fn link(workload: &Workload, n: u8, hooks: impl FnOnce(&EndpointLink) -> Result<()>) -> Result<EndpointLink> {
    let addresses = [IpAddr::from(v4(n)), IpAddr::from(v6(n))];
    let spec = EndpointLinkSpec {
        owner: &format!("bench{n}"),
        host_name: &format!("lxcbench{n}"),
        host_mac: Mac::from_seed(&format!("host{n}")),
        netns: &workload.netns,
        container_name: "eth0",
        container_mac: Mac::from_seed(&format!("container{n}")),
        mtu: 1500,
        route_mtu: None,
        addresses: &addresses,
        gateway_v4: Some(GATEWAY4),
        gateway_v6: Some(GATEWAY6),
        host_sources: &[GATEWAY4.into(), GATEWAY6.into()],
    };
    create_endpoint_link(&spec, |link| hooks(link).map_err(|e| format!("{e:#}"))).map_err(|e| anyhow!("{e}"))
}

pub(crate) struct Node {
    pub(crate) maps: Arc<Maps>,
    pub(crate) object: Object,
    pins: Arc<Pins>,
    policies: PolicyMaps,
}

impl Node {
    fn new() -> Result<Self> {
        let pins = Arc::new(Pins::detached()?);
        let maps = Arc::new(Maps::open(&pins, &Sizes::default())?);
        let object = match std::env::var_os("VILLUS_BENCH_OBJECT") {
            Some(file) => Object::load_from(&std::fs::read(file)?, &pins, &maps, &Hook::WITHOUT_TUNNEL)?,
            None => Object::load(&pins, &maps, &Hook::WITHOUT_TUNNEL)?,
        };
        let policies = PolicyMaps::open(pins.clone(), maps.clone(), 16384)?;
        let gateway = Local { slot: 0, flags: villus_abi::endpoint::ADDR_GATEWAY };
        maps.addrs4.insert(&u32::from_ne_bytes(GATEWAY4.octets()), &gateway)?;
        maps.addrs6.insert(&GATEWAY6.octets(), &gateway)?;
        let node = Self { maps, object, pins, policies };
        node.trace(false)?;
        Ok(node)
    }

    /// Every packet traced, or aggregation.
    fn trace(&self, all: bool) -> Result<()> {
        let mut config = Config::default();
        if all {
            config.flags |= config::FLAG_TRACE_ALL;
        }
        self.maps.config.insert(&0, &config)?;
        Ok(())
    }

    /// An endpoint that allows the benchmark's ports of one peer in a direction.
    fn endpoint(&mut self, workload: &Workload, n: u8, peer: u8, direction: Direction) -> Result<()> {
        let id = u16::from(n);
        let entries =
            [(load::STREAM, 6), (load::ECHO, 6), (load::ONCE, 6), (load::SINK, 17)].map(|(port, proto)| {
                (PolicyKey::new(1000 + u32::from(peer), port, proto, direction), PolicyEntry::ALLOW)
            });
        self.policies.create(id)?;
        self.policies.apply(id, &Entries::from(entries), &mut &self.maps.endpoints)?;
        let (maps, object, pins) = (&self.maps, &self.object, &self.pins);
        link(workload, n, |link| {
            let record = Endpoint {
                id,
                flags: FLAG_ACTIVE | FLAG_DELIVER_PEER | FLAG_CHECK_MAC,
                identity: 1000 + u32::from(n),
                ifindex: link.host_index,
                mtu: 1500,
                mac: link.container_mac.0,
                node_mac: link.host_mac.0,
                ipv4: u32::from_ne_bytes(v4(n).octets()),
                policy: u32::from(n),
                ipv6: std::array::from_fn(|i| {
                    let o = v6(n).octets();
                    u32::from_ne_bytes([o[i * 4], o[i * 4 + 1], o[i * 4 + 2], o[i * 4 + 3]])
                }),
                ..Endpoint::default()
            };
            maps.endpoints.insert(&u32::from(n), &record)?;
            let local = Local { slot: u32::from(n), flags: 0 };
            maps.addrs4.insert(&u32::from_ne_bytes(v4(n).octets()), &local)?;
            maps.addrs6.insert(&v6(n).octets(), &local)?;
            maps.devices.insert(&link.host_index, &u32::from(n))?;
            let links = Links::new(pins);
            for hook in [Hook::FromEndpoint, Hook::ToEndpoint] {
                links.attach(object.program(hook)?, hook, link.host_index, AttachMode::Tcx)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Runs the benchmark in a network and mount namespace of its own: this program again, under `unshare`.
pub fn run(only: &str) -> Result<Vec<Row>> {
    apart()?;
    for (program, args) in [
        ("ip", "link set lo up"),
        ("ip", "addr add 10.200.0.1/32 dev lo"),
        ("ip", "addr add fd00:c8::1/128 dev lo nodad"),
        ("sysctl", "-qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"),
    ] {
        let status = Command::new(program).args(args.split(' ')).status().context(program)?;
        ensure!(status.success(), "{program} {args}");
    }
    let mut node = Node::new()?;
    let (client, server, plain_client, plain_server) =
        (Workload::new()?, Workload::new()?, Workload::new()?, Workload::new()?);
    node.endpoint(&client, 2, 3, Direction::Egress)?;
    node.endpoint(&server, 3, 2, Direction::Ingress)?;
    link(&plain_client, 4, |_| Ok(()))?;
    link(&plain_server, 5, |_| Ok(()))?;
    let _servers = [
        Servers::start(&server.netns, v4(3).into())?,
        Servers::start(&server.netns, v6(3).into())?,
        Servers::start(&plain_server.netns, v4(5).into())?,
    ];
    let ours = Pair { from: &client.netns, to: v4(3).into() };
    let plain = Pair { from: &plain_client.netns, to: v4(5).into() };

    let mut rows = Vec::new();
    let beside = Beside {
        ours: &ours,
        baseline: &plain,
        name: "plain veth routing, no policy",
        only,
        rounds: (ROUNDS, SECOND),
    };
    beside.compare(&mut rows, ("TCP stream", "Gbit/s", Goal::AtLeast(1.05)), stream)?;
    beside.compare(
        &mut rows,
        ("request/response, average", "us", Goal::AtMost(1.02)),
        average(Place::of_two()?),
    )?;
    beside.compare(&mut rows, ("request/response, p99", "us", Goal::AtMost(1.05)), p99(Place::of_two()?))?;
    beside.compare(&mut rows, ("connect/request/close", "1/s", Goal::AtLeast(1.0)), connections)?;
    if "TCP stream, every packet traced".contains(only) {
        rows.push(traced(&node, &ours)?);
    }
    for (name, to) in [("IPv4", IpAddr::from(v4(3))), ("IPv6", IpAddr::from(v6(3)))] {
        cost::rows(&node, only, name, &Pair { from: &client.netns, to }, &mut rows)?;
    }
    Ok(rows)
}

/// Where traffic comes from and goes to.
pub(crate) struct Pair<'a> {
    pub(crate) from: &'a Netns,
    pub(crate) to: IpAddr,
}

/// Gbit/s of one stream, its ends each on a CPU of its own.
pub(crate) fn stream(pair: &Pair<'_>, time: Duration) -> Result<f64> {
    load::stream(pair.from, pair.to, time, Place::of_two()?)
}

/// Gbit/s of several streams, which keep all CPUs busy.
pub(crate) fn streams(pair: &Pair<'_>, time: Duration) -> Result<f64> {
    load::streams(pair.from, pair.to, time, 8)
}

/// Average time of request and response, µs.
pub(crate) fn average(place: Place) -> impl Fn(&Pair<'_>, Duration) -> Result<f64> {
    move |pair, time| Ok(load::round_trip(pair.from, pair.to, time, place)?.0)
}

/// 99th percentile of request and response, µs.
pub(crate) fn p99(place: Place) -> impl Fn(&Pair<'_>, Duration) -> Result<f64> {
    move |pair, time| Ok(load::round_trip(pair.from, pair.to, time, place)?.1)
}

/// Connections a second.
pub(crate) fn connections(pair: &Pair<'_>, time: Duration) -> Result<f64> {
    load::connections(pair.from, pair.to, time)
}

/// What a ratio to the baseline must be.
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Our way beside another one.
pub(crate) struct Beside<'a> {
    pub(crate) ours: &'a Pair<'a>,
    pub(crate) baseline: &'a Pair<'a>,
    /// What the baseline is.
    pub(crate) name: &'a str,
    /// Cases whose name does not contain this are left out.
    pub(crate) only: &'a str,
    /// How many rounds, and how long each measurement in them.
    pub(crate) rounds: (usize, Duration),
}

impl Beside<'_> {
    /// Rounds of ours, the baseline and the baseline again as a control. A ratio is the median of the rounds' ratios: what
    /// else the machine does during a round meets both sides.
    pub(crate) fn compare(
        &self,
        rows: &mut Vec<Row>,
        (case, unit, goal): (&str, &str, Goal),
        measure: impl Fn(&Pair<'_>, Duration) -> Result<f64>,
    ) -> Result<()> {
        if !case.contains(self.only) {
            return Ok(());
        }
        let (rounds, time) = self.rounds;
        let pairs = [self.ours, self.baseline, self.baseline];
        for pair in &pairs[..2] {
            measure(pair, time)?;
        }
        let (mut figures, mut ratios) = ([const { Vec::new() }; 3], [const { Vec::new() }; 2]);
        for round in 0..rounds {
            let mut of_round = [0.0; 3];
            // Each of the three comes first, second and last equally often.
            for turn in 0..3 {
                let which = (round + turn) % 3;
                of_round[which] = measure(pairs[which], time)?;
                figures[which].push(of_round[which]);
            }
            let [ours, baseline, control] = of_round;
            ratios[0].push(ours / baseline);
            ratios[1].push(control / baseline);
        }
        let [a, b, c] = figures.map(median);
        let [ratio, control] = ratios.map(median);
        let (text, holds) = match goal {
            Goal::AtLeast(least) => (format!(">= {least}x"), ratio >= least),
            Goal::AtMost(most) => (format!("<= {most}x"), ratio <= most),
        };
        let row = |case: String, ours: f64, ratio: f64, goal: String, holds| Row {
            case,
            ours,
            baseline: b,
            baseline_name: self.name.into(),
            ratio,
            unit: unit.into(),
            goal,
            holds,
        };
        rows.push(row(case.into(), a, ratio, text, holds));
        rows.push(row(format!("  control: the baseline again ({case})"), c, control, "-".into(), true));
        Ok(())
    }
}

/// Every packet traced beside aggregation.
fn traced(node: &Node, pair: &Pair<'_>) -> Result<Row> {
    let (mut all, mut medium) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        node.trace(true)?;
        all.push(stream(pair, SECOND)?);
        node.trace(false)?;
        medium.push(stream(pair, SECOND)?);
    }
    let (ours, baseline) = (median(all), median(medium));
    Ok(Row {
        case: "TCP stream, every packet traced".into(),
        ours,
        baseline,
        baseline_name: "aggregation medium".into(),
        ratio: ours / baseline,
        unit: "Gbit/s".into(),
        goal: ">= 0.8x".into(),
        holds: ours / baseline >= 0.8,
    })
}
