//! Is a Cilium agent at work on this node, or has it left its datapath behind? Then Villus touches nothing.

use std::{io, os::fd::AsFd, path::Path};

use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use villus_abi::names;

use crate::{
    error::{Context, Error, Result},
    sys::{self, TcxHook},
    tc::{self, Side},
};

/// Devices that its agent makes (`datapath` reference 4).
const DEVICES: [&str; 4] = ["cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve"];
/// What the names of its programs begin with.
const PROGRAMS: &str = "cil_";

/// Refuses a node on which Cilium's pins, devices or programs are found: those of the bpffs at `root` and of the
/// current network namespace. Nothing is changed, not even mounted.
///
/// # Errors
/// [`Error::Cilium`] naming what was found; [`Error::Kernel`].
pub fn refuse_cilium(root: &Path) -> Result<()> {
    let mut found = foreign_pins(root)?;
    let interfaces = interfaces()?;
    found.extend(
        interfaces
            .iter()
            .filter(|(name, _)| DEVICES.contains(&name.as_str()))
            .map(|(name, _)| format!("device {name}")),
    );
    for (name, ifindex) in &interfaces {
        found.extend(programs(*ifindex).into_iter().map(|program| format!("program {program} on {name}")));
    }
    if found.is_empty() { Ok(()) } else { Err(Error::Cilium { found }) }
}

/// Whether a pin's name is one that Villus and Cilium have in common.
fn is_shared(name: &str) -> bool {
    let digits = name.strip_prefix(names::POLICY_PREFIX);
    name == names::IPCACHE || digits.is_some_and(|d| d.len() == 5 && d.bytes().all(|c| c.is_ascii_digit()))
}

fn foreign_pins(root: &Path) -> Result<Vec<String>> {
    let globals = root.join(names::GLOBALS);
    let all = match std::fs::read_dir(&globals) {
        Ok(entries) => {
            entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).on("list", globals.display().to_string()),
    };
    let ours = all.iter().any(|name| name.starts_with("villus_"));
    let mut found: Vec<String> = all
        .iter()
        .filter(|name| name.starts_with("cilium_") && !(ours && is_shared(name)))
        .map(|name| format!("pin {}", globals.join(name).display()))
        .collect();
    found.sort();
    // Agents since 1.14 keep their links in a directory of their own.
    let directory = root.join("cilium");
    if directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        found.push(format!("pins in {}", directory.display()));
    }
    Ok(found)
}

/// Names and indices of the interfaces in the current network namespace.
pub(crate) fn interfaces() -> Result<Vec<(String, u32)>> {
    let file = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(file).on("read", file)?;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).on("open", "a socket")?;
    // Two lines of headings; an interface that went away meanwhile is left out.
    let names = text.lines().skip(2).filter_map(|line| line.split(':').next());
    let indexed =
        names.filter_map(|name| Some((name.trim().to_owned(), name_to_index(&socket, name.trim()).ok()?)));
    Ok(indexed.collect())
}

/// Names of its programs on an interface.
fn programs(ifindex: u32) -> Vec<String> {
    let mut found = Vec::new();
    for hook in [TcxHook::Ingress, TcxHook::Egress] {
        for id in sys::tcx_programs(ifindex, hook).unwrap_or_default() {
            let info = sys::prog_fd_by_id(id).and_then(|fd| sys::prog_info(fd.as_fd()));
            found.extend(info.ok().map(|info| info.name));
        }
    }
    for side in [Side::Ingress, Side::Egress] {
        found.extend(tc::filters(ifindex, side).unwrap_or_default().into_iter().map(|filter| filter.name));
    }
    found.retain(|name| name.starts_with(PROGRAMS));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_common() {
        assert!(is_shared("cilium_ipcache") && is_shared("cilium_policy_00794"));
        for theirs in ["cilium_policy_v2_00794", "cilium_policy_", "cilium_lxc", "cilium_calls_00001"] {
            assert!(!is_shared(theirs), "{theirs}");
        }
    }
}
