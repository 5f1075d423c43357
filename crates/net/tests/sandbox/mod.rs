//! Namespaces made for one test and gone after it, whatever happens.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Read;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use villus_net::{EndpointLinkSpec, Mac, Netns, NetnsRef};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A node's namespace and those of its workloads.
pub struct Sandbox {
    prefix: String,
    names: Vec<String>,
    pub node: Netns,
}

impl Sandbox {
    pub fn new() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        assert!(
            uid.split_whitespace().nth(1) == Some("0"),
            "this test makes network namespaces: run it as root"
        );
        let prefix = format!("vnet{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let names = vec![format!("{prefix}-node")];
        run("ip", &["netns", "add", &names[0]]);
        let node = NetnsRef::Name(names[0].clone()).open().unwrap();
        let sandbox = Sandbox { prefix, names, node };
        sandbox.ip("link set lo up");
        // What the node answers with, as its router device would hold it.
        sandbox.ip(&format!("addr add {GATEWAY_4}/32 dev lo"));
        sandbox.ip(&format!("addr add {GATEWAY_6}/128 dev lo nodad"));
        sandbox
    }

    /// One more namespace.
    pub fn workload(&mut self, name: &str) -> Netns {
        let name = format!("{}-{name}", self.prefix);
        run("ip", &["netns", "add", &name]);
        self.names.push(name.clone());
        NetnsRef::Name(name).open().unwrap()
    }

    /// Ends a namespace before its time.
    pub fn end(&mut self, netns: Netns) {
        let name = netns.name().to_string();
        drop(netns);
        run("ip", &["netns", "del", &name]);
        self.names.retain(|other| *other != name);
    }

    /// Runs a test's body in the node's namespace.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.node.run(body).unwrap()
    }

    /// `ip` in the node's namespace.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&self.node, arguments)
    }

    /// `ip -j` in the node's namespace.
    pub fn ip_json(&self, arguments: &str) -> Vec<Value> {
        ip_json(&self.node, arguments)
    }

    /// Everything in the node's namespace that this crate may change, in a form to compare.
    pub fn snapshot(&self) -> String {
        let parts = ["-o link", "-o addr", "route", "-6 route", "neigh"].map(|what| {
            let text = self.ip(&format!("{what} show"));
            // What comes and goes by itself.
            let lines = text
                .lines()
                .filter(|l| !l.contains("STALE") && !l.contains("FAILED") && !l.contains("REACHABLE"));
            lines.map(|line| line.split(" valid_lft").next().unwrap().trim()).collect::<Vec<_>>().join("\n")
        });
        let sysctls = self.inside(|| {
            run_output(
                "sh",
                &[
                    "-c",
                    "cd /proc/sys/net; grep -r . ipv4/ip_forward ipv?/conf/*/forwarding \
                ipv4/conf/*/rp_filter ipv4/conf/*/accept_redirects ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_ra",
                ],
            )
        });
        let nft = self.inside(|| run_output("nft", &["list", "ruleset"]));
        format!("{}\n{sysctls}\n{nft}", parts.join("\n--\n"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// `ip` in a namespace; fails the test if it fails.
pub fn ip(netns: &Netns, arguments: &str) -> String {
    netns.run(|| run("ip", &arguments.split_whitespace().collect::<Vec<_>>())).unwrap()
}

/// `ip -j` in a namespace.
pub fn ip_json(netns: &Netns, arguments: &str) -> Vec<Value> {
    let text = ip(netns, &format!("-j {arguments}"));
    let rows: Vec<Value> =
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() };
    rows.into_iter().filter(|row| row.as_object().is_some_and(|row| !row.is_empty())).collect()
}

/// One echo request, and a second at most for its answer.
pub fn ping(from: &Netns, to: impl Into<IpAddr>) -> bool {
    ping_scoped(from, to.into(), 0)
}

/// The same to a link-local address behind a device.
pub fn ping_scoped(from: &Netns, to: IpAddr, device: u32) -> bool {
    from.run(|| echo(to, device)).unwrap().is_ok()
}

fn echo(to: IpAddr, device: u32) -> std::io::Result<()> {
    let (domain, protocol, request, reply, offset): (_, _, &[u8], _, _) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, &[8, 0, 0x86, 0xfe, 0x71, 0, 0, 1], 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, &[128, 0, 0, 0, 0x71, 0, 0, 1], 129, 0),
    };
    let target = match to {
        IpAddr::V4(v4) => SocketAddr::from((v4, 0)),
        IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, 0, 0, device)),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&target.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send(request)?;
    let mut answer = [0; 128];
    loop {
        let length = socket.read(&mut answer)?;
        if answer[..length].get(offset) == Some(&reply) {
            return Ok(());
        }
    }
}

/// Runs a command that must succeed.
pub fn run(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that may fail.
pub fn run_output(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub const GATEWAY_4: &str = "10.9.0.1";
pub const GATEWAY_6: &str = "fd09::1";

/// An endpoint's link with the usual values.
pub fn spec<'a>(
    owner: &'a str,
    host_name: &'a str,
    netns: &'a Netns,
    addresses: &'a [IpAddr],
) -> EndpointLinkSpec<'a> {
    EndpointLinkSpec {
        owner,
        host_name,
        host_mac: Mac::from_seed(&format!("host {owner}")),
        netns,
        container_name: "eth0",
        container_mac: Mac::from_seed(&format!("container {owner}")),
        mtu: 1500,
        route_mtu: None,
        addresses,
        gateway_v4: Some(GATEWAY_4.parse().unwrap()),
        gateway_v6: Some(GATEWAY_6.parse().unwrap()),
        host_sources: &[],
    }
}

/// A `prepare` step that does nothing.
pub fn nothing(_: &villus_net::EndpointLink) -> Result<(), String> {
    Ok(())
}
