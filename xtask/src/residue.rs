//! Whether tests left something on the machine: what is there after them and was not before.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::run::as_root;

/// How long the kernel may take to finish what the tests have already undone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of the node that an agent changes and must restore.
const SETTINGS: [&str; 6] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "kernel/bpf_stats_enabled",
];

/// What of the machine tests could touch, one line per thing.
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the machine. `ours` is the folder whose programs must not be left running.
    pub fn take(ours: &Path) -> Self {
        let mut things = BTreeSet::new();
        let mut add = |kind: &str, names: Vec<String>| {
            things.extend(names.into_iter().map(|name| format!("{kind} {name}")));
        };
        add("namespace", lines(Command::new("ls").arg("/run/netns")));
        add("link", links());
        add("pin", lines(as_root("find").args(["/sys/fs/bpf", "-mindepth", "1"])));
        add("nftables", lines(as_root("nft").args(["list", "tables"])));
        add("rule", lines(Command::new("ip").args(["-4", "rule"])));
        add("rule", lines(Command::new("ip").args(["-6", "rule"])));
        add("mount", mounts());
        add("setting", SETTINGS.iter().filter_map(|name| setting(name)).collect());
        add("process", processes(ours));
        Self(things)
    }

    /// Fails naming everything that was added since.
    pub fn check(&self, ours: &Path) -> Result<()> {
        let started = Instant::now();
        loop {
            let now = Self::take(ours);
            let left: Vec<&str> = now.0.difference(&self.0).map(String::as_str).collect();
            if left.is_empty() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!("the tests left on this machine:\n  {}", left.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Lines of output; none where the command or what it lists is missing.
fn lines(command: &mut Command) -> Vec<String> {
    let Ok(output) = command.stderr(Stdio::null()).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
}

/// Names of this namespace's devices.
fn links() -> Vec<String> {
    let Ok(devices) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    devices.flatten().map(|device| device.file_name().to_string_lossy().into_owned()).collect()
}

/// Mounted bpffs, namespaces and cgroups.
fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_ours = fields.filter(|fields| matches!(fields.get(2), Some(&("bpf" | "nsfs" | "cgroup2"))));
    of_ours.filter_map(|fields| fields.get(1).map(|place| (*place).to_owned())).collect()
}

fn setting(name: &str) -> Option<String> {
    let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(format!("{name} = {}", value.trim()))
}

/// Running programs that were built below `ours`, but for ourselves.
fn processes(ours: &Path) -> Vec<String> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in all.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        // `self` and `thread-self` are this process, whose file may have been built anew meanwhile.
        if pid.parse::<u32>().is_err() {
            continue;
        }
        let Ok(program) = std::fs::read_link(entry.path().join("exe")) else { continue };
        if pid != me && program.starts_with(ours) && !program.ends_with("xtask") {
            found.push(format!("{pid} {}", program.display()));
        }
    }
    found
}
