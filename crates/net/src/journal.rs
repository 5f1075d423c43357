//! What was changed on the node and what was there before, written down before each change, so that all of it can
//! be put back.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::{Errors, NetError, missing_is_fine};
use crate::rtnl::{Route, Rtnl};
use crate::sysctl::{Family, Sysctl};

/// All changes to the node, oldest first. Kept on disk by the caller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The kernel's boot id when the changes were made; all but files end with a boot.
    #[serde(default)]
    boot: String,
    #[serde(default)]
    changes: Vec<Change>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Change {
    /// A kernel parameter.
    Sysctl {
        /// Which.
        key: Sysctl,
        /// The value that was there.
        old: String,
        /// The value that we set.
        ours: String,
    },
    /// Forwarding was switched on for all devices.
    Forwarding {
        /// Of this family.
        family: Family,
        /// The devices that had it on by themselves before.
        devices: Vec<String>,
        /// `accept_redirects` of all devices before, which the kernel changes together with it.
        redirects: Option<String>,
    },
    /// A file was written where none was.
    File {
        /// Which.
        path: PathBuf,
        /// What we wrote.
        content: String,
    },
    /// A device was made.
    Link {
        /// Its name.
        name: String,
        /// Our mark on it.
        alias: String,
    },
    /// A prefix was made unreachable.
    Unreachable {
        /// Which.
        destination: IpNet,
    },
}

/// A journal together with the way to keep it: every change is saved before it is made.
pub struct Recorder<'a> {
    journal: &'a mut Journal,
    save: &'a mut (dyn FnMut(&Journal) -> io::Result<()> + Send),
    path: PathBuf,
}

/// What [`Journal::restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What was put back or removed, in words.
    pub undone: Vec<String>,
    /// What was left alone because somebody changed it since, in words.
    pub left: Vec<String>,
    /// What failed; these changes stay in the journal.
    pub errors: Errors,
}

enum Outcome {
    Undone(String),
    Left(String),
    Nothing,
}

// === impl Journal ===

impl Journal {
    /// All changes, oldest first.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Puts back what was, newest change first, where the value is still the one that we set. Runs in the
    /// namespace in which the changes were made. Afterwards the journal holds only what failed.
    pub fn restore(&mut self) -> Restored {
        self.forget_other_boots();
        let mut report = Restored::default();
        let mut failed = Vec::new();
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            match change.undo() {
                Ok(Outcome::Undone(words)) => report.undone.push(words),
                Ok(Outcome::Left(words)) => report.left.push(words),
                Ok(Outcome::Nothing) => {}
                Err(error) => {
                    report.errors.note(Err(error));
                    failed.push(change);
                }
            }
        }
        failed.reverse();
        self.changes = failed;
        report
    }

    /// Only files outlive a boot.
    fn forget_other_boots(&mut self) {
        let now = boot_id();
        if self.boot != now {
            self.changes.retain(|change| matches!(change, Change::File { .. }));
            self.boot = now;
        }
    }
}

// === impl Change ===

impl fmt::Display for Change {
    /// What taking it back does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Sysctl { key, old, ours } => write!(f, "{key} = {ours}, which becomes {old} again"),
            Change::Forwarding { family, devices, .. } if devices.is_empty() => {
                write!(f, "forwarding of {family}")
            }
            Change::Forwarding { family, devices, .. } => {
                write!(f, "forwarding of {family}, but for {}", devices.join(", "))
            }
            Change::File { path, .. } => write!(f, "file {}", path.display()),
            Change::Link { name, .. } => write!(f, "device {name}"),
            Change::Unreachable { destination } => write!(f, "unreachable route to {destination}"),
        }
    }
}

impl Change {
    fn undo(&self) -> Result<Outcome, NetError> {
        match self {
            Change::Sysctl { key, old, ours } => undo_sysctl(key, old, ours),
            Change::Forwarding { family, devices, redirects } => {
                undo_forwarding(*family, devices, redirects.as_deref())
            }
            Change::File { path, content } => undo_file(path, content),
            Change::Link { name, alias } => undo_link(name, alias),
            Change::Unreachable { destination } => {
                missing_is_fine(Rtnl::open()?.delete_route(&Route::unreachable(*destination)))?;
                Ok(Outcome::Undone(format!("route to {destination} removed")))
            }
        }
    }

    fn is_about_the_same(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::Sysctl { key: a, .. }, Change::Sysctl { key: b, .. }) => a == b,
            (Change::Forwarding { family: a, .. }, Change::Forwarding { family: b, .. }) => a == b,
            (Change::File { path: a, .. }, Change::File { path: b, .. }) => a == b,
            (Change::Link { name: a, .. }, Change::Link { name: b, .. }) => a == b,
            (Change::Unreachable { destination: a }, Change::Unreachable { destination: b }) => a == b,
            _ => false,
        }
    }
}

// === impl Recorder ===

impl<'a> Recorder<'a> {
    /// `save` is called with the journal before every change, and must have it on disk when it returns; `path` is
    /// for the text of its errors.
    pub fn new(
        journal: &'a mut Journal,
        path: &Path,
        save: &'a mut (dyn FnMut(&Journal) -> io::Result<()> + Send),
    ) -> Self {
        journal.forget_other_boots();
        Recorder { journal, save, path: path.to_owned() }
    }

    /// Notes a change that is about to be made. A change that is noted already keeps its place.
    pub(crate) fn note(&mut self, change: Change) -> Result<(), NetError> {
        match self.journal.changes.iter_mut().find(|noted| noted.is_about_the_same(&change)) {
            Some(noted) if *noted == change => return Ok(()),
            Some(noted) => *noted = change,
            None => self.journal.changes.push(change),
        }
        let failed = |source| NetError::File { action: "save the journal", path: self.path.clone(), source };
        (self.save)(self.journal).map_err(failed)
    }

    /// Sets a parameter and notes what it was. Does nothing where the value is right or the parameter missing.
    pub(crate) fn set(&mut self, key: Sysctl, value: &str) -> Result<(), NetError> {
        let Some(old) = key.read_if_present()? else { return Ok(()) };
        if old == value {
            return Ok(());
        }
        // A value that we set earlier is not what was there before us.
        let before = self.journal.changes.iter().find_map(|change| match change {
            Change::Sysctl { key: noted, old: before, ours } if *noted == key && *ours == old => {
                Some(before.clone())
            }
            _ => None,
        });
        self.note(Change::Sysctl { key: key.clone(), old: before.unwrap_or(old), ours: value.to_owned() })?;
        key.write(value)
    }

    /// Writes a file where none is; one of ours from before is replaced, another's left alone.
    ///
    /// Returns true if it was written.
    pub(crate) fn write_file(&mut self, path: &Path, content: &str) -> Result<bool, NetError> {
        let present = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(NetError::File { action: "read", path: path.to_owned(), source }),
        };
        let ours = |change: &Change| match change {
            Change::File { path: ours, content } => ours == path && Some(content) == present.as_ref(),
            _ => false,
        };
        if present.as_deref() == Some(content) {
            return Ok(false);
        }
        if present.is_some() && !self.journal.changes.iter().any(ours) {
            tracing::warn!(path = %path.display(), "is not ours and is left as it is");
            return Ok(false);
        }
        self.note(Change::File { path: path.to_owned(), content: content.to_owned() })?;
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(path, content)
        };
        write().map_err(|source| NetError::File { action: "write", path: path.to_owned(), source })?;
        Ok(true)
    }

    /// Forgets the change about a route that was removed.
    pub(crate) fn forget_route(&mut self, gone: IpNet) {
        self.journal.changes.retain(|change| *change != Change::Unreachable { destination: gone });
    }
}

fn undo_sysctl(key: &Sysctl, old: &str, ours: &str) -> Result<Outcome, NetError> {
    match key.read_if_present()? {
        None => Ok(Outcome::Nothing),
        Some(now) if now != ours => Ok(Outcome::Left(format!("{key} is {now} now, no longer our {ours}"))),
        Some(_) => {
            key.write(old)?;
            Ok(Outcome::Undone(format!("{key} is {old} again")))
        }
    }
}

/// Switching forwarding off for all devices does so for each; those that had it on get it back.
fn undo_forwarding(family: Family, devices: &[String], redirects: Option<&str>) -> Result<Outcome, NetError> {
    let all = Sysctl::of_device(family, "all", "forwarding");
    if all.read_if_present()?.as_deref() != Some("1") {
        return Ok(Outcome::Left(format!("forwarding of {family} was switched off by somebody else")));
    }
    all.write("0")?;
    for device in devices {
        Sysctl::of_device(family, device, "forwarding").write_if_present("1")?;
    }
    if let Some(redirects) = redirects {
        Sysctl::of_device(family, "all", "accept_redirects").write_if_present(redirects)?;
    }
    Ok(Outcome::Undone(format!("forwarding of {family} is off again")))
}

fn undo_file(path: &Path, content: &str) -> Result<Outcome, NetError> {
    let failed = |action, source| NetError::File { action, path: path.to_owned(), source };
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Nothing),
        Err(source) => Err(failed("read", source)),
        Ok(now) if now != content.as_bytes() => {
            Ok(Outcome::Left(format!("{} was changed by somebody", path.display())))
        }
        Ok(_) => {
            fs::remove_file(path).map_err(|source| failed("remove", source))?;
            Ok(Outcome::Undone(format!("{} removed", path.display())))
        }
    }
}

fn undo_link(name: &str, alias: &str) -> Result<Outcome, NetError> {
    let mut host = Rtnl::open()?;
    match host.link_by_name(name)? {
        None => Ok(Outcome::Nothing),
        Some(link) if link.alias.as_deref() != Some(alias) => {
            Ok(Outcome::Left(format!("device {name} is not the one that we made")))
        }
        Some(link) => {
            missing_is_fine(host.delete_link(link.index))?;
            Ok(Outcome::Undone(format!("device {name} removed")))
        }
    }
}

fn boot_id() -> String {
    Sysctl::at("kernel/random/boot_id").read().unwrap_or_default()
}
