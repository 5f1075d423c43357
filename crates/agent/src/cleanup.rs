//! Taking everything of Villus off the node.

use std::path::Path;

use villus_config::Config;
use villus_datapath::{DatapathCleanup, Pins};
use villus_net::{Journal, endpoint_devices, release_interface, remove_all_marked, remove_masquerade};

use crate::AgentError;
use crate::network::JOURNAL;
use crate::state::{AgentLock, Device, StateDir};

/// What [`cleanup`] removed, or would remove, and what went wrong on the way.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// What was removed, one line each.
    pub removed: Vec<String>,
    /// What could not be removed; the rest was removed all the same.
    pub errors: Vec<String>,
}

/// Removes everything of Villus from this node: programs, pins, devices it made, routes, its nftables table and its
/// state, and puts kernel parameters back. Adopted devices are left as they were found. Goes on past errors. With
/// `dry_run` it only says what would go.
///
/// # Errors
/// Only when nothing can be done at all: not root, or an agent is running.
pub fn cleanup(config: &Config, dry_run: bool) -> Result<CleanupReport, AgentError> {
    if !rustix::process::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    let mut work = Cleanup { report: CleanupReport::default(), dry_run };
    let state =
        if config.paths.lib_dir.exists() { Some(StateDir::open(&config.paths.lib_dir)?) } else { None };
    let lock = state.as_ref().map(AgentLock::take).transpose()?;
    work.datapath(config);
    if let Some(state) = &state {
        work.adopted(state);
    }
    work.devices();
    work.masquerade();
    if let Some(state) = &state {
        work.journal(state);
    }
    drop(lock);
    work.files(config);
    Ok(work.report)
}

struct Cleanup {
    report: CleanupReport,
    dry_run: bool,
}

impl Cleanup {
    fn removed(&mut self, what: impl Into<String>) {
        self.report.removed.push(what.into());
    }

    fn failed(&mut self, what: impl std::fmt::Display) {
        self.report.errors.push(what.to_string());
    }

    fn datapath(&mut self, config: &Config) {
        // No bpffs of ours: nothing is pinned.
        let Ok(pins) = Pins::existing(&config.paths.bpf_root) else { return };
        match DatapathCleanup::new(&pins, self.dry_run).run() {
            Ok(cleaned) => {
                self.report.removed.extend(cleaned.removed);
                self.report.errors.extend(cleaned.errors.iter().map(ToString::to_string));
            }
            Err(error) => self.failed(error),
        }
    }

    /// Devices of others keep nothing of us: neither routes nor neighbours.
    fn adopted(&mut self, state: &StateDir) {
        let files =
            if self.dry_run { state.peek_endpoints() } else { state.load_endpoints().map(|(good, _)| good) };
        for file in files.unwrap_or_default() {
            let Some(Device::Adopted(device)) = &file.device else { continue };
            self.removed(format!("routes to {}, which stays", device.device));
            if self.dry_run {
                continue;
            }
            if let Err(errors) = release_interface(device) {
                errors.0.iter().for_each(|error| self.failed(error));
            }
        }
    }

    fn devices(&mut self) {
        match endpoint_devices() {
            Ok(devices) => {
                for (link, owner) in devices {
                    self.removed(format!("device {} of endpoint {owner}", link.name));
                }
            }
            Err(error) => self.failed(error),
        }
        if self.dry_run {
            return;
        }
        if let Err(errors) = remove_all_marked() {
            errors.0.iter().for_each(|error| self.failed(error));
        }
    }

    fn masquerade(&mut self) {
        let there = villus_net::masquerade_counters().is_ok_and(|counters| counters.is_some());
        if there {
            self.removed(format!("nftables table inet {}", villus_net::NAT_TABLE));
        }
        if !self.dry_run
            && let Err(error) = remove_masquerade()
        {
            self.failed(error);
        }
    }

    fn journal(&mut self, state: &StateDir) {
        let mut journal: Journal = match state.load(JOURNAL) {
            Ok(Ok(Some(journal))) => journal,
            Ok(Ok(None)) => return,
            Ok(Err(damaged)) => {
                let (kept, reason) = (damaged.kept.display(), damaged.reason);
                return self
                    .failed(format!("the journal of changes to the node cannot be read ({reason}): {kept}"));
            }
            Err(error) => return self.failed(error),
        };
        if self.dry_run {
            for change in journal.changes() {
                self.removed(change.to_string());
            }
            return;
        }
        let restored = journal.restore();
        self.report.removed.extend(restored.undone);
        for left in restored.left {
            self.removed(format!("nothing: {left}"));
        }
        if !restored.errors.0.is_empty() {
            restored.errors.0.iter().for_each(|error| self.failed(error));
            if let Err(error) = state.save(JOURNAL, &journal) {
                self.failed(error);
            }
        }
    }

    fn files(&mut self, config: &Config) {
        // While something is left to put back, what is known about it stays.
        let keep = !self.report.errors.is_empty();
        for directory in [&config.paths.state_dir, &config.paths.lib_dir] {
            if keep && directory == &config.paths.lib_dir || !directory.exists() {
                continue;
            }
            self.removed(format!("directory {}", directory.display()));
            if !self.dry_run {
                self.remove_directory(directory);
            }
        }
        let socket = &config.api.socket;
        if socket.exists() {
            self.removed(format!("socket {}", socket.display()));
            if !self.dry_run
                && let Err(error) = std::fs::remove_file(socket)
            {
                self.failed(format!("{}: {error}", socket.display()));
            }
        }
    }

    fn remove_directory(&mut self, directory: &Path) {
        if let Err(error) = std::fs::remove_dir_all(directory) {
            self.failed(format!("{}: {error}", directory.display()));
        }
    }
}
