//! The bpffs and the pins on it: maps and links that outlive the agent.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FlockOperation, flock, statfs},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsmount, fsopen, mount},
};
use villus_abi::names;

use crate::{
    error::{Context, Error, Result},
    sys::{self, Kind, MapInfo, MapSpec, RawMap},
};

/// `BPF_FS_MAGIC` of the kernel's `magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// A pin on its way to its name. The kernel keeps names with dots for itself.
const PASSING: &str = "villus_new_";

/// The directory `tc/globals` of one bpffs.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    globals: PathBuf,
    /// The mount, when it has no place in the file system.
    detached: Option<OwnedFd>,
}

/// Held by the one who writes pins; see [`Pins::lock`].
#[derive(Debug)]
#[must_use]
pub struct PinsLock {
    _directory: File,
}

/// How a map came to be open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It was pinned already.
    Found,
    /// It has just been made and pinned.
    Made,
}

impl Pins {
    /// Opens the bpffs at `root`, mounting one there if there is none, and makes `tc/globals` in it.
    ///
    /// # Errors
    /// [`Error::Kernel`] naming the path.
    pub fn open(root: &Path) -> Result<Self> {
        if !is_bpffs(root)? {
            std::fs::create_dir_all(root).on("make directory", root.display().to_string())?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("bpf", root, "bpf", flags, Some(c"mode=0700"))
                .on("mount a bpffs at", root.display().to_string())?;
        }
        Self::at(root.to_owned(), None)
    }

    /// Opens the bpffs at `root` only if everything is there: for commands that look and change nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`] when `root` holds no bpffs or Villus has never run on it.
    pub fn existing(root: &Path) -> Result<Self> {
        let globals = root.join(names::GLOBALS);
        if !is_bpffs(root)? || !globals.is_dir() {
            let source =
                io::Error::new(io::ErrorKind::NotFound, "no pins here: Villus has not run on this bpffs");
            return Err(Error::Kernel { action: "open", what: globals.display().to_string(), source });
        }
        Ok(Self { root: root.to_owned(), globals, detached: None })
    }

    /// Makes a bpffs without a place in the file system: it is gone with the last user of this value, so it
    /// leaves nothing behind. For test runs of the programs beside a live node.
    ///
    /// # Errors
    /// [`Error::Kernel`]; needs Linux 5.2 and root.
    pub fn detached() -> Result<Self> {
        let what = "a private bpffs";
        let fs = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC).on("make", what)?;
        fsconfig_create(fs.as_fd()).on("make", what)?;
        let mounted =
            fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).on("make", what)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
        Self::at(root, Some(mounted))
    }

    fn at(root: PathBuf, detached: Option<OwnedFd>) -> Result<Self> {
        let globals = root.join(names::GLOBALS);
        std::fs::create_dir_all(&globals).on("make directory", globals.display().to_string())?;
        Ok(Self { root, globals, detached })
    }

    /// Where the bpffs is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this bpffs is one of [`Self::detached`].
    #[must_use]
    pub const fn is_detached(&self) -> bool {
        self.detached.is_some()
    }

    /// Where a pin is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.globals.join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Names of everything that is pinned, sorted.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn list(&self) -> Result<Vec<String>> {
        let what = || self.globals.display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.globals).on("list", what())? {
            found.push(entry.on("list", what())?.file_name().to_string_lossy().into_owned());
        }
        found.sort();
        Ok(found)
    }

    /// Opens what is pinned under a name, if anything is.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn get(&self, name: &str) -> Result<Option<OwnedFd>> {
        match sys::get(&self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some).on("open pin", self.shown(name)),
        }
    }

    /// Opens a pinned map, if there is one.
    ///
    /// # Errors
    /// [`Error::Kernel`], also when the pin is not a map.
    pub fn map(&self, name: &str) -> Result<Option<RawMap>> {
        self.get(name)?.map(|fd| RawMap::from_fd(fd).on("open pin", self.shown(name))).transpose()
    }

    /// Opens a pinned map that must be of a kind; any number of entries will do.
    ///
    /// # Errors
    /// [`Error::Foreign`] when something else is pinned there.
    pub fn map_like(&self, name: &str, spec: &MapSpec<'_>) -> Result<Option<RawMap>> {
        let Some(fd) = self.get(name)? else { return Ok(None) };
        let foreign = |found| Error::Foreign { path: self.path(name), found, wanted: describe_spec(spec) };
        let map = RawMap::from_fd(fd).map_err(|e| foreign(e.to_string()))?;
        if same_shape(map.info(), spec) { Ok(Some(map)) } else { Err(foreign(describe(map.info()))) }
    }

    /// Opens a pinned map, or makes and pins it. The number of entries of one that is there stays as it is.
    ///
    /// # Errors
    /// As [`Self::map_like`].
    pub fn open_or_create(
        &self,
        name: &str,
        spec: &MapSpec<'_>,
        inner: Option<&RawMap>,
    ) -> Result<(RawMap, Origin)> {
        if let Some(map) = self.map_like(name, spec)? {
            return Ok((map, Origin::Found));
        }
        let map = RawMap::create(spec, inner).on("create map", name)?;
        self.put(name, map.as_fd())?;
        Ok((map, Origin::Made))
    }

    /// Pins something under a free name.
    ///
    /// # Errors
    /// [`Error::Kernel`], with `EEXIST` when the name is taken.
    pub fn put(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        sys::pin(fd, &self.path(name)).on("pin", self.shown(name))
    }

    /// Pins something under a name, in place of what is there: at every moment the name is either the old one
    /// or the new one.
    ///
    /// # Errors
    /// [`Error::Kernel`]; the old pin is then untouched.
    pub fn replace(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let passing = format!("{PASSING}{name}");
        self.remove(&passing)?;
        self.put(&passing, fd)?;
        rustix::fs::renameat(CWD, self.path(&passing), CWD, self.path(name))
            .on("replace pin", self.shown(name))
    }

    /// Removes a pin; says whether it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove(&self, name: &str) -> Result<bool> {
        match std::fs::remove_file(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true).on("remove pin", self.shown(name)),
        }
    }

    /// Removes pins that a crash has left on their way to their name; says which.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn sweep(&self) -> Result<Vec<String>> {
        let mut swept = self.list()?;
        swept.retain(|name| name.starts_with(PASSING));
        for name in &swept {
            self.remove(name)?;
        }
        Ok(swept)
    }

    /// Keeps other writers of these pins out until the value is dropped. Waits for them for two seconds.
    ///
    /// # Errors
    /// [`Error::Kernel`] when somebody keeps us out longer.
    pub fn lock(&self) -> Result<PinsLock> {
        let what = || format!("{} (another command or agent is writing)", self.globals.display());
        let directory = File::open(&self.globals).on("lock", what())?;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result.map(|()| PinsLock { _directory: directory }).on("lock", what()),
            }
        }
    }

    /// Removes `tc/globals` and `tc` if nothing is in them any more.
    pub fn remove_empty_directories(&self) {
        // A directory that is not empty stays, which is what is meant.
        let _ = std::fs::remove_dir(&self.globals);
        let _ = self.globals.parent().map(std::fs::remove_dir);
    }
}

fn is_bpffs(path: &Path) -> Result<bool> {
    match statfs(path) {
        Ok(stat) => Ok(stat.f_type == BPF_FS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e).on("look at", path.display().to_string()),
    }
}

fn same_shape(info: &MapInfo, spec: &MapSpec<'_>) -> bool {
    (info.kind, info.key, info.value, info.flags) == (spec.kind as u32, spec.key, spec.value, spec.flags)
}

fn describe_spec(spec: &MapSpec<'_>) -> String {
    shape(Some(spec.kind), spec.kind as u32, spec.key, spec.value, spec.flags)
}

fn describe(info: &MapInfo) -> String {
    shape(Kind::from_number(info.kind), info.kind, info.key, info.value, info.flags)
}

fn shape(kind: Option<Kind>, number: u32, key: u32, value: u32, flags: u32) -> String {
    let kind = kind.map_or_else(|| format!("type {number}"), |kind| format!("{kind:?}"));
    format!("a map of {kind}, key {key} bytes, value {value} bytes, flags {flags:#x}")
}
