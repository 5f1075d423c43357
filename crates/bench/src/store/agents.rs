//! Agents that share the store: processes of the program that users run, each with a network namespace, a bpffs and
//! directories of its own.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use villus_abi::{IpcacheKey, IpcacheValue};
use villus_api::Client;
use villus_datapath::{Maps, Pins};

/// Address of etcd, and the switch's, as nodes see it.
pub const STORE: &str = "192.168.50.254";
const WAIT: Duration = Duration::from_secs(300);

/// One node with its agent. Gone with this value.
pub struct Agent {
    child: Child,
    dir: PathBuf,
    /// Its network namespace.
    name: String,
    started: Instant,
}

/// Makes the switch that joins the nodes and etcd.
///
/// # Errors
/// `ip` fails.
pub fn switch() -> Result<()> {
    for line in ["link set lo up", "link add br0 type bridge", "link set br0 up"] {
        ip(line)?;
    }
    ip(&format!("addr add {STORE}/24 dev br0"))
}

/// The key of one address in the kernel's map.
pub fn key_of(address: Ipv4Addr) -> IpcacheKey {
    IpcacheKey::v4(address.octets(), 32)
}

impl Agent {
    /// Makes node `n` and starts its agent; waits for nothing.
    ///
    /// # Errors
    /// The node cannot be made.
    pub fn start(root: &Path, n: usize, etcd: &str) -> Result<Self> {
        let (dir, name) = (root.join(format!("n{n}")), format!("villus-bench-n{n}"));
        for folder in ["options", "state", "lib", "bpf"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let bpf = dir.join("bpf");
        mount_bpf(&bpf)?;
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add port{n} type veth peer name eth0 netns {name}"))?;
        ip(&format!("link set port{n} master br0 up"))?;
        let address = IpAddr::from([192, 168, 50, u8::try_from(n + 1)?]);
        for line in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {address}/24 dev eth0"),
            format!("route add default via {STORE}"),
        ] {
            ip(&format!("-n {name} {line}"))?;
        }
        for (option, value) in [
            ("state-dir", dir.join("state").display().to_string()),
            ("lib-dir", dir.join("lib").display().to_string()),
            ("bpf-root", bpf.display().to_string()),
            ("ipv4-range", format!("10.201.{n}.0/24")),
            ("enable-ipv6", "false".to_owned()),
            ("node-name", format!("n{n}")),
            ("ipv4-node", address.to_string()),
            ("kvstore", "etcd".to_owned()),
            ("kvstore-opt", format!(r#"{{"etcd.address": "{etcd}", "etcd.limit": "2048"}}"#)),
        ] {
            std::fs::write(dir.join("options").join(option), value)?;
        }
        let (child, started) = run(&dir, &name)?;
        Ok(Self { child, dir, name, started })
    }

    /// Ends the agent and starts it again as after a boot: of the kernel's maps nothing is left, of the disk all. Waits for
    /// nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn boot(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        // What the one before has pinned stays below, and is nobody's.
        mount_bpf(&self.dir.join("bpf"))?;
        (self.child, self.started) = run(&self.dir, &self.name)?;
        Ok(())
    }

    /// Waits until it serves. Says how long that took.
    ///
    /// # Errors
    /// It ends, or it takes too long.
    pub fn serves(&mut self) -> Result<Duration> {
        let client = Client::new(self.dir.join("state/villus.sock")).map_err(|e| anyhow!("{e}"))?;
        self.until("the agent does not serve", |_| Ok(client.endpoints(&[]).is_ok()))
    }

    /// Waits until the kernel's map holds all of these addresses and `count` entries at least. Says how long that took
    /// since the agent was started.
    ///
    /// # Errors
    /// It ends, or it takes too long.
    pub fn holds(&mut self, sample: &[Ipv4Addr], count: usize) -> Result<Duration> {
        let maps = self.maps()?;
        let took = self.until("the ipcache is not filled", |_| {
            for address in sample {
                if maps.ipcache.get(&key_of(*address))?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        // Counting takes long; what was in the sample came by chance from everywhere.
        self.until("the ipcache lacks entries", |_| Ok(maps.ipcache.count()? >= count))?;
        Ok(took)
    }

    /// The kernel's maps of this node.
    ///
    /// # Errors
    /// They are not there.
    pub fn maps(&self) -> Result<Maps> {
        let pins = Pins::existing(&self.dir.join("bpf"))?;
        Ok(Maps::existing(&pins)?)
    }

    /// What the map says of an address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn look(maps: &Maps, address: Ipv4Addr) -> Result<Option<IpcacheValue>> {
        Ok(maps.ipcache.get(&key_of(address))?)
    }

    /// MB that it holds.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident(&self, line: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix(line)).context("no such line")?;
        Ok(line.split_whitespace().next().context("status")?.parse::<f64>()? / 1024.0)
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<Duration> {
        loop {
            if holds(self)? {
                return Ok(self.started.elapsed());
            }
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            ensure!(self.child.try_wait()?.is_none(), "the agent ended: {}", log());
            ensure!(self.started.elapsed() < WAIT, "{what}: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mount_bpf(at: &Path) -> Result<()> {
    let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(at).status()?;
    ensure!(mounted.success(), "mounting a bpffs");
    Ok(())
}

fn run(dir: &Path, netns: &str) -> Result<(Child, Instant)> {
    let villus = std::env::current_exe()?.with_file_name("villus");
    let started = Instant::now();
    let child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        .arg(&villus)
        .args(["agent", "--config-dir"])
        .arg(dir.join("options"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log"))?)
        .spawn()
        .with_context(|| format!("{}", villus.display()))?;
    Ok((child, started))
}

fn ip(line: &str) -> Result<()> {
    let status =
        Command::new("ip").args(line.split_whitespace()).status().context("ip (package iproute2)")?;
    ensure!(status.success(), "ip {line}");
    Ok(())
}
