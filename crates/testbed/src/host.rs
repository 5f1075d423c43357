//! Network namespaces of the testbed, and commands and sockets inside them.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use villus_net::{LinkChange, Mac, Netns, NetnsRef, Rtnl, Sysctl, VethPair};

/// One host: a network namespace that ends with this value.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: Netns,
}

impl Host {
    /// A new namespace with its loopback switched on. `name` is for messages only.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("tests of the kernel part make namespaces: run them as root");
            NetnsRef::Path("/proc/thread-self/ns/net".into()).open().unwrap()
        });
        Self { name: name.to_owned(), netns: made.join().expect("no namespace") }.prepared()
    }

    /// A new namespace that `ip netns` knows, under a name of its own that ends with `name`: for tests of what asks
    /// for a name. Its name is taken away with this value.
    #[must_use]
    pub fn named(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("villus{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        Self { netns: NetnsRef::Name(name.clone()).open().unwrap(), name }.prepared()
    }

    /// The namespace of the calling thread, as it is.
    #[must_use]
    pub fn here(name: &str) -> Self {
        let netns = NetnsRef::Path("/proc/thread-self/ns/net".into()).open().unwrap();
        Self { name: name.to_owned(), netns }
    }

    fn prepared(self) -> Self {
        let host = self;
        host.ip("link set lo up");
        // A new namespace has IPv4's parameters from the first one, where machines differ.
        host.sysctl("net/ipv4/ip_forward", "0");
        // Addresses are usable at once: nobody else is there to have them.
        for device in ["all", "default"] {
            host.sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0");
            host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0");
            // Groups are reported at once, so that nothing is sent later that nobody asked for.
            host.sysctl(&format!("net/ipv6/conf/{device}/mldv2_unsolicited_report_interval"), "1");
            // Nor is a router looked for, again and again: what adopted interfaces say of that is forwarded.
            host.sysctl(&format!("net/ipv6/conf/{device}/router_solicitations"), "0");
        }
        host
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs something inside. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        self.run(|| run(program, arguments))
    }

    /// `ip` with arguments in one text; must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        self.run(|| run_ip(arguments))
    }

    /// `tc` with arguments in one text; must succeed.
    pub fn tc(&self, arguments: &str) -> String {
        self.command("tc", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// A script of nftables; must succeed.
    pub fn nft(&self, script: &str) -> String {
        self.command("nft", &[script])
    }

    /// Sets a kernel parameter below `/proc/sys`.
    pub fn sysctl(&self, path: &str, value: &str) {
        self.run(|| Sysctl::at(path).write(value)).unwrap();
    }

    /// Gives a device an address.
    pub fn add_address(&self, device: &str, net: &str) {
        let net: IpNet = net.parse().unwrap();
        let nodad = if net.addr().is_ipv6() { " nodad" } else { "" };
        self.ip(&format!("addr add {net} dev {device}{nodad}"));
    }

    /// Adds the default route of the gateway's family.
    pub fn default_via(&self, gateway: IpAddr) {
        self.ip(&format!("{} route add default via {gateway}", if gateway.is_ipv6() { "-6" } else { "-4" }));
    }

    /// Lets the host forward between its devices.
    pub fn forward(&self) {
        self.sysctl("net/ipv4/ip_forward", "1");
        self.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// Index of a device.
    #[must_use]
    pub fn index(&self, device: &str) -> u32 {
        self.run(|| Rtnl::open().unwrap().link_by_name(device).unwrap()).expect("no such device").index
    }

    /// Address of a device.
    #[must_use]
    pub fn mac(&self, device: &str) -> Mac {
        self.run(|| Rtnl::open().unwrap().link_by_name(device).unwrap()).expect("no such device").mac.unwrap()
    }

    /// Waits until a device has nothing more to say by itself.
    pub fn wait_until_quiet(&self, device: &str) {
        let mut sent = self.sent(device);
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(30));
            let now = self.sent(device);
            if now == sent {
                return;
            }
            sent = now;
        }
    }

    /// Whether there is a TCP connection between these ports, the own one first, however far it has ended.
    pub(crate) fn has_connection(&self, ends: [SocketAddr; 2]) -> bool {
        let wanted = ends.map(|end| format!(":{:04X}", end.port()));
        ["tcp", "tcp6"].into_iter().any(|file| {
            let text = self.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap();
            text.lines().skip(1).any(|line| {
                let ends = line.split_whitespace().skip(1);
                ends.zip(&wanted).all(|(end, wanted)| end.ends_with(wanted))
            })
        })
    }

    /// Packets that a device has sent.
    #[must_use]
    pub fn sent(&self, device: &str) -> u64 {
        // `/proc/net` is the namespace of the process, not of the thread.
        let text = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let fields: Vec<u64> =
            line.expect("no such device").split_whitespace().filter_map(|field| field.parse().ok()).collect();
        fields[9]
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let NetnsRef::Name(name) = self.netns.name() {
            let _ = try_run("ip", &["netns", "del", name]);
        }
    }
}

/// Joins two hosts by a veth pair, both ends switched on.
pub fn join(a: &Host, device_a: &str, b: &Host, device_b: &str, mtu: u32) {
    let pair = VethPair {
        name: device_a,
        mac: Mac::from_seed(&format!("{} {device_a}", a.name)),
        peer_name: device_b,
        peer_mac: Mac::from_seed(&format!("{} {device_b}", b.name)),
        peer_netns: Some(&b.netns),
        mtu,
    };
    a.run(|| Rtnl::open()?.create_veth(&pair)).unwrap();
    for (host, device) in [(a, device_a), (b, device_b)] {
        let index = host.index(device);
        host.run(|| {
            Rtnl::open()?.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })
        })
        .unwrap();
    }
    let index = a.index(device_a);
    a.run(|| Rtnl::open()?.wait_until_running(index)).unwrap();
}

/// Runs a command that must succeed, in the namespaces of the calling thread; what it printed.
///
/// # Panics
/// With what it printed, when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {out}{stderr}");
    out
}

/// [`run`] of `ip`, with arguments in one text.
pub fn run_ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Runs a command that may fail.
///
/// # Panics
/// When there is no such command.
#[must_use]
pub fn try_run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}
