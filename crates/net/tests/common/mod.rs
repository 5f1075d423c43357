//! A node that holds the gateway's addresses, and workloads to connect to it.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use serde_json::Value;
use villus_net::{EndpointLinkSpec, Mac};
pub use villus_testbed::Host;
use villus_testbed::{Ping, eventually};

/// A node.
pub struct Sandbox {
    pub node: Host,
}

impl Sandbox {
    pub fn new() -> Self {
        let node = Host::named("node");
        // What the node answers with, as its router device would hold it.
        node.ip(&format!("addr add {GATEWAY_4}/32 dev lo"));
        node.ip(&format!("addr add {GATEWAY_6}/128 dev lo nodad"));
        Sandbox { node }
    }

    /// Runs a test's body in the node's namespace.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.node.run(body)
    }

    /// `ip` in the node's namespace.
    pub fn ip(&self, arguments: &str) -> String {
        self.node.ip(arguments)
    }

    /// Waits until a device has the address that the kernel gives it once both of its ends are up.
    pub fn settle(&self, device: &str) {
        settle(&self.node, device);
    }

    /// `ip -j` in the node's namespace.
    pub fn ip_json(&self, arguments: &str) -> Vec<Value> {
        ip_json(&self.node, arguments)
    }

    /// Everything in the node's namespace that this crate may change, in a form to compare.
    pub fn snapshot(&self) -> String {
        let parts = ["-o link", "-o addr", "route", "-6 route", "neigh"].map(|what| {
            let text = self.ip(&format!("{what} show"));
            // Other neighbours come and go by themselves.
            let lines = text.lines().filter(|line| what != "neigh" || line.contains("PERMANENT"));
            lines.map(|line| line.split(" valid_lft").next().unwrap().trim()).collect::<Vec<_>>().join("\n")
        });
        let sysctls = self.node.command(
            "sh",
            &[
                "-c",
                "cd /proc/sys/net; grep -r . ipv4/ip_forward ipv?/conf/*/forwarding \
                ipv4/conf/*/rp_filter ipv4/conf/*/accept_redirects ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_ra",
            ],
        );
        let nft = self.node.command("nft", &["list", "ruleset"]);
        format!("{}\n{sysctls}\n{nft}", parts.join("\n--\n"))
    }
}

/// As [`Sandbox::settle`], of a device of another host.
pub fn settle(host: &Host, device: &str) {
    eventually("a link-local address", || {
        let shown = host.ip(&format!("-6 addr show dev {device}"));
        shown.contains("fe80:") && !shown.contains("tentative")
    });
}

/// `ip -j` in a namespace.
pub fn ip_json(host: &Host, arguments: &str) -> Vec<Value> {
    let text = host.ip(&format!("-j {arguments}"));
    let rows: Vec<Value> =
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() };
    rows.into_iter().filter(|row| row.as_object().is_some_and(|row| !row.is_empty())).collect()
}

/// Whether an echo request is answered. Asks for a while: what was just made may not carry the first one yet.
pub fn ping(from: &Host, to: impl Into<IpAddr>) -> bool {
    pings(from, SocketAddr::new(to.into(), 0))
}

/// The same to a link-local address behind a device.
pub fn ping_scoped(from: &Host, to: std::net::Ipv6Addr, device: u32) -> bool {
    pings(from, SocketAddrV6::new(to, 0, 0, device).into())
}

fn pings(from: &Host, to: SocketAddr) -> bool {
    let once = || {
        let ping = Ping::connect(from, None, to).map_err(drop)?;
        ping.echo_within(Duration::from_secs(1)).map_err(drop)
    };
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if once().is_ok() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        // Where there is no way yet, that was said at once.
        std::thread::sleep(Duration::from_millis(20));
    }
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
    workload: &'a Host,
    addresses: &'a [IpAddr],
) -> EndpointLinkSpec<'a> {
    EndpointLinkSpec {
        owner,
        host_name,
        host_mac: Mac::from_seed(&format!("host {owner}")),
        netns: workload.netns(),
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
