//! Network namespaces: which one, whether it still lives, and running code inside it.
//!
//! No thread of the caller ever changes its namespace: [`Netns::run`] does its work on a thread of its own that
//! ends with it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::error::NetError;

/// Where `ip netns` keeps the named namespaces.
pub const NAMED: &str = "/run/netns";

/// How an operator or a runtime names a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetnsRef {
    /// The name of a file in `/run/netns`.
    Name(String),
    /// A path to a namespace file, such as `/proc/1/ns/net` or a CNI runtime's.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

/// The identity of a namespace: equal while and only while it is the same one. Numbers are reused by the kernel
/// after a namespace has died, so compare only against one that is held open or known to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device number of the kernel's namespace file system.
    pub dev: u64,
    /// Inode number there, as shown by `ls -l /proc/PID/ns/net`.
    pub inode: u64,
}

/// What became of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetnsState {
    /// The reference leads to the same namespace as before.
    Alive,
    /// The reference leads nowhere any more.
    Gone,
    /// The reference leads to another namespace now.
    Replaced,
}

/// An open network namespace. It stays alive as long as this is held, even if everybody else has left it: to
/// notice its end, drop this and ask [`NetnsRef::state`].
#[derive(Debug)]
pub struct Netns {
    name: NetnsRef,
    file: File,
    id: NetnsId,
}

// === impl NetnsRef ===

impl NetnsRef {
    /// The file that leads to the namespace.
    pub fn path(&self) -> PathBuf {
        match self {
            NetnsRef::Name(name) => Path::new(NAMED).join(name),
            NetnsRef::Path(path) => path.clone(),
            NetnsRef::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// Opens the namespace.
    ///
    /// # Errors
    /// When nothing is there, or what is there is no network namespace.
    pub fn open(&self) -> Result<Netns, NetError> {
        self.check_name()?;
        let fail = |source| NetError::Namespace { namespace: self.to_string(), action: "open", source };
        let file = File::open(self.path()).map_err(fail)?;
        if !is_namespace(&file).map_err(fail)? {
            return Err(fail(rustix::io::Errno::INVAL.into()));
        }
        let id = identity(&file).map_err(fail)?;
        Ok(Netns { name: self.clone(), file, id })
    }

    /// Compares what the reference leads to now with the namespace it led to before.
    pub fn state(&self, before: NetnsId) -> NetnsState {
        match self.open() {
            Ok(now) if now.id == before => NetnsState::Alive,
            Ok(_) => NetnsState::Replaced,
            Err(_) => NetnsState::Gone,
        }
    }

    fn check_name(&self) -> Result<(), NetError> {
        match self {
            NetnsRef::Name(name) if name.is_empty() || name.contains('/') || name == "." || name == ".." => {
                Err(NetError::Invalid {
                    field: "netns",
                    reason: format!(
                        "`{name}` is not the name of a namespace; give a file name in {NAMED}, or a path"
                    ),
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetnsRef::Name(name) => f.write_str(name),
            NetnsRef::Path(path) => write!(f, "{}", path.display()),
            NetnsRef::Pid(pid) => write!(f, "of process {pid}"),
        }
    }
}

// === impl Netns ===

impl Netns {
    /// The calling thread's own namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NetError> {
        NetnsRef::Path("/proc/thread-self/ns/net".into()).open()
    }

    /// How the caller named it.
    pub fn name(&self) -> &NetnsRef {
        &self.name
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside the namespace, on a thread made for it, and waits. What the thread opens there (sockets,
    /// netlink connections) stays in the namespace after it ended. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter the namespace; `work` has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        let fail = |source| NetError::Namespace { namespace: self.name.to_string(), action: "enter", source };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))?;
                    Ok(work())
                })
                .map_err(fail)?;
            match thread.join() {
                Ok(done) => done.map_err(|errno: rustix::io::Errno| fail(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the namespace and runs `work` inside it: see [`Netns::run`].
///
/// # Errors
/// As [`NetnsRef::open`] and [`Netns::run`].
pub fn run_in<T: Send>(netns: &NetnsRef, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
    netns.open()?.run(work)
}

fn identity(file: &File) -> io::Result<NetnsId> {
    let status = file.metadata()?;
    Ok(NetnsId { dev: status.dev(), inode: status.ino() })
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

fn is_namespace(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == NSFS_MAGIC)
}
