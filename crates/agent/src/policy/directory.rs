//! The watched directory of policy files (`static-cnp-path`).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use villus_policy::ParsedFile;

use super::{FileState, import::merge};
use crate::node::Node;

/// Below `lib-dir`, the last good versions of policy files.
const GOOD: &str = "static-policies";
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
            self.sources.files.remove(&path);
            self.conditions.note(&format!("policy file {}", path.display()), None);
            self.keep_good(&path.display().to_string(), None);
            self.take_over(&path.display().to_string(), ParsedFile::default());
        }
        for (path, text) in found {
            self.read_file(path, text);
        }
        Ok(())
    }

    fn read_file(&mut self, path: PathBuf, text: io::Result<String>) {
        let name = path.display().to_string();
        let mut hasher = DefaultHasher::new();
        text.as_ref().map_err(ToString::to_string).hash(&mut hasher);
        let fingerprint = hasher.finish();
        if self.sources.files.get(&path).is_some_and(|known| known.fingerprint == fingerprint) {
            return;
        }
        let parsed = text.map_err(|error| error.to_string()).and_then(|text| {
            let parsed = villus_policy::parse(&name, &text).map_err(|refused| refused.to_string())?;
            Ok((text, parsed))
        });
        let (problem, warnings) = match parsed {
            Ok((text, parsed)) => {
                self.keep_good(&name, Some(&text));
                let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
                self.take_over(&name, parsed);
                (None, warnings)
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
        self.sources.files.insert(path, FileState { fingerprint, problem, warnings });
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
    fn good_version(&self, name: &str) -> PathBuf {
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

fn read(path: &Path) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > MOST {
        return Err(io::Error::other(format!("it has {length} bytes, more than {MOST}")));
    }
    std::fs::read_to_string(path)
}
