//! The watched directory of policy files (`static-cnp-path`).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use villus_policy::ParsedFile;

use super::waiting::{GONE, REJECTED, Stays};
use super::{FileState, half::FileId, import::merge};
use crate::node::Node;

/// Below `lib-dir`, the last good versions of policy files.
const GOOD: &str = "static-policies";
/// What is wrong with a file that holds nothing any more.
const EMPTY: &str = "it is empty, as a file is that is being written; remove it to remove its policies";
/// Largest policy file that is read.
const MOST: u64 = 16 << 20;

/// Rings when something in the directory changes.
#[derive(Debug)]
pub(crate) struct Watcher(AsyncFd<std::os::fd::OwnedFd>);

impl Watcher {
    /// Watches a directory. Must be called inside a runtime.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&fd, directory, flags)?;
        #[allow(deprecated, reason = "an OwnedFd is open as long as it is held")]
        let ready = AsyncFd::new(fd)?;
        Ok(Self(ready))
    }

    /// Waits for a change; several are one.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut events = [0_u8; 4096];
        while rustix::io::read(guard.get_inner(), &mut events).is_ok_and(|read| read > 0) {}
        guard.clear_ready();
        Ok(())
    }
}

impl Node {
    /// Reads the directory and takes over what changed. A broken file keeps its last good version in force.
    ///
    /// # Errors
    /// The directory cannot be read: nothing changes.
    pub fn scan_directory(&mut self) -> Result<(), String> {
        let Some(directory) = self.sources.directory.clone() else { return Ok(()) };
        let found = read_all(&directory).map_err(|error| {
            format!(
                "static-cnp-path {} cannot be read: {error}; make it, or unset the option",
                directory.display()
            )
        })?;
        let gone: Vec<PathBuf> =
            self.sources.files.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        for path in gone {
            if self.file_stays(&path, GONE, &ParsedFile::default()).is_none() {
                self.remove_file(&path);
            }
        }
        for (path, text) in found {
            self.read_file(path, text);
        }
        self.keep_removed();
        self.forget_removed();
        Ok(())
    }

    /// At the start: the good versions of files that went meanwhile go too, so that none comes back with a broken file of the
    /// same name.
    fn forget_removed(&self) {
        let Ok(kept) = std::fs::read_dir(self.state.path(GOOD)) else { return };
        if self.sources.complete {
            return;
        }
        let known: BTreeSet<PathBuf> =
            self.sources.files.keys().map(|path| self.good_version(&path.display().to_string())).collect();
        for place in kept.filter_map(|entry| Some(entry.ok()?.path())).filter(|place| !known.contains(place))
        {
            if let Err(error) = std::fs::remove_file(&place) {
                tracing::warn!(file = %place.display(), %error, "the good version of a file that is gone stays");
            }
        }
    }

    /// Nothing of a file is in force any more.
    fn remove_file(&mut self, path: &Path) {
        self.sources.files.remove(path);
        self.sources.halves.remove(path);
        self.conditions.note(&format!("policy file {}", path.display()), None);
        self.keep_good(&path.display().to_string(), None);
        self.take_over(&path.display().to_string(), ParsedFile::default());
    }

    /// Takes over a version of a file that somebody has confirmed.
    ///
    /// # Errors
    /// The file holds something else by now.
    pub(super) fn take_over_confirmed(&mut self, path: &Path, version: u64) -> Result<(), String> {
        let name = path.display().to_string();
        if version == GONE {
            if path.exists() {
                return Err("the file is there again".to_owned());
            }
            self.remove_file(path);
            return Ok(());
        }
        let text = read(path);
        if fingerprint(&text) != version {
            return Err("the file has changed since".to_owned());
        }
        let text = text.map_err(|error| error.to_string())?;
        let parsed = villus_policy::parse(&name, &text).map_err(|refused| refused.to_string())?;
        self.keep_good(&name, Some(&text));
        self.take_over(&name, parsed);
        Ok(())
    }

    /// Before the first go-ahead: what was in force before the start stays in force where the directory says something
    /// else now; that is looked at as a change as soon as packets pass.
    pub(super) fn hold_back(&mut self, path: &Path, text: &io::Result<String>) -> bool {
        if self.sources.complete || !self.config.policy.change_limit.is_on() {
            return false;
        }
        let name = path.display().to_string();
        let good = std::fs::read_to_string(self.good_version(&name));
        let differs = matches!((&good, text), (Ok(good), Ok(text)) if good != text)
            || self.waiting.of_file(path, fingerprint(text)).is_some();
        if differs {
            self.take_over_good(&name);
        }
        differs
    }

    /// Files whose removal waits hold what they held before the start.
    fn keep_removed(&mut self) {
        if self.sources.complete || !self.config.policy.change_limit.is_on() {
            return;
        }
        for path in self.waiting.removals() {
            if path.exists() || self.sources.files.contains_key(&path) {
                continue;
            }
            self.take_over_good(&path.display().to_string());
            let state =
                FileState { fingerprint: GONE, id: FileId::default(), problem: None, warnings: Vec::new() };
            self.sources.files.insert(path, state);
        }
    }

    fn read_file(&mut self, path: PathBuf, text: io::Result<String>) {
        let name = path.display().to_string();
        let fingerprint = fingerprint(&text);
        if self.hold_back(&path, &text) {
            return;
        }
        let id = FileId::of(&path);
        if let Some(known) =
            self.sources.files.get_mut(&path).filter(|known| known.fingerprint == fingerprint)
        {
            known.id = id;
            self.sources.halves.remove(&path);
            return;
        }
        let parsed = text.map_err(|error| error.to_string()).and_then(|text| {
            if text.trim().is_empty() && self.good_version(&name).exists() {
                return Err(EMPTY.to_owned());
            }
            let parsed = villus_policy::parse(&name, &text).map_err(|refused| refused.to_string())?;
            Ok((text, parsed))
        });
        let (problem, warnings) = match parsed {
            Ok((text, parsed)) => {
                if self.may_be_half(&path, fingerprint, &text, &parsed) {
                    return;
                }
                let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
                let stays = self.file_stays(&path, fingerprint, &parsed);
                if stays.is_none() {
                    self.keep_good(&name, Some(&text));
                    self.take_over(&name, parsed);
                }
                ((stays == Some(Stays::Rejected)).then(|| REJECTED.to_owned()), warnings)
            }
            Err(problem) => {
                if !self.sources.files.contains_key(&path) {
                    self.take_over_good(&name);
                }
                (Some(problem), Vec::new())
            }
        };
        self.conditions.note(
            &format!("policy file {name}"),
            problem.as_ref().map(|problem| format!("its last good version stays in force: {problem}")),
        );
        self.sources.halves.remove(&path);
        self.sources.files.insert(path, FileState { fingerprint, id, problem, warnings });
    }

    /// Keeps the good version of a file for a start at which the file is broken; without a text forgets it.
    fn keep_good(&self, name: &str, text: Option<&str>) {
        let place = self.good_version(name);
        let result = match text {
            Some(text) if std::fs::read_to_string(&place).is_ok_and(|kept| kept == text) => Ok(()),
            Some(text) => std::fs::create_dir_all(self.state.path(GOOD))
                .and_then(|()| crate::state::write_atomic(&place, text.as_bytes())),
            None => std::fs::remove_file(&place),
        };
        if let Err(error) = result
            && text.is_some()
        {
            tracing::warn!(file = name, %error, "its good version cannot be kept for a restart");
        }
    }

    /// Takes over the good version of a file that is broken since before the start.
    fn take_over_good(&mut self, name: &str) {
        let Ok(text) = std::fs::read_to_string(self.good_version(name)) else { return };
        if let Ok(parsed) = villus_policy::parse(name, &text) {
            self.take_over(name, parsed);
        }
    }

    /// Where the good version of a file is kept: its path with `/` as `%`.
    pub(super) fn good_version(&self, name: &str) -> PathBuf {
        self.state.path(GOOD).join(name.replace('%', "%%").replace('/', "%"))
    }

    /// Makes what a file holds all of its origin.
    fn take_over(&mut self, origin: &str, parsed: ParsedFile) {
        let mut all = None;
        merge(&mut all, self.repository.replace_referents(origin, parsed.referents));
        merge(&mut all, self.repository.replace_origin(origin, parsed.policies));
        if !self.sources.complete {
            return;
        }
        match all.filter(|change| !change.is_empty()) {
            Some(change) => self.realize(&change),
            // What is missing or in a shadow may be different all the same.
            None => self.note_policies(),
        }
    }
}

fn read_all(directory: &Path) -> io::Result<BTreeMap<PathBuf, io::Result<String>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_policy = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
        if name.starts_with('.') || !is_policy || !path.is_file() {
            continue;
        }
        let text = read(&path);
        // Gone since it was listed.
        if matches!(&text, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        found.insert(path, text);
    }
    Ok(found)
}

/// A file's text as a number, which is never [`GONE`].
fn fingerprint(text: &io::Result<String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.as_ref().map_err(ToString::to_string).hash(&mut hasher);
    hasher.finish().max(GONE + 1)
}

fn read(path: &Path) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > MOST {
        return Err(io::Error::other(format!("it has {length} bytes, more than {MOST}")));
    }
    std::fs::read_to_string(path)
}
