//! What can go wrong with the node's network, on what, and what helps.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// A failed step on the node's network. The text names the device or file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A network namespace could not be opened or entered.
    #[error("cannot {action} network namespace {namespace}: {source}; {}", advice(.source, Subject::Namespace))]
    Namespace {
        /// The namespace as the caller named it.
        namespace: String,
        /// What was tried, as a verb.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a change to, or a listing of, links, addresses, routes or neighbours.
    #[error("cannot {action}: {source}{}; {}", kernel_words(.kernel), advice(.source, Subject::Netlink))]
    Netlink {
        /// What was tried and on which device.
        action: String,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's own explanation, when it gave one.
        kernel: Option<String>,
    },
    /// A netlink answer could not be understood.
    #[error(
        "cannot {action}: the kernel's answer was not understood: {reason}; please report it with `uname -r`"
    )]
    Answer {
        /// What was tried.
        action: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// A device that must exist does not.
    #[error("there is no device {device} in {namespace}; `ip link` lists those that exist")]
    NoDevice {
        /// The device's name or `index N`.
        device: String,
        /// The namespace that was searched.
        namespace: String,
    },
    /// A device's name is already in use by something that is not this endpoint's.
    #[error("device {device} already exists in {namespace} and {whose}; {fix}")]
    NameTaken {
        /// The name.
        device: String,
        /// The namespace that has it.
        namespace: String,
        /// To whom it belongs, as far as known.
        whose: String,
        /// What the operator can do.
        fix: String,
    },
    /// A device is not fit to be adopted or used.
    #[error("device {device} cannot be used: {reason}")]
    Refused {
        /// The device.
        device: String,
        /// Why, and what the operator can do.
        reason: String,
    },
    /// A route that is not ours is where ours must go.
    #[error(
        "a route to {destination} exists already ({existing}); remove it or take the address out of the pool"
    )]
    ForeignRoute {
        /// The destination prefix.
        destination: String,
        /// The route that is there.
        existing: String,
    },
    /// A request that makes no sense, found before anything was touched.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A kernel parameter could not be read or written.
    #[error("cannot {action} sysctl {key}: {source}; {}", advice(.source, Subject::Sysctl))]
    Sysctl {
        /// `read`, or `set to VALUE`.
        action: String,
        /// The key, path form below /proc/sys.
        key: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A command is not installed.
    #[error("command `{command}` is not installed; install the package `{package}` ({purpose})")]
    CommandMissing {
        /// The command.
        command: &'static str,
        /// Debian's name of the package.
        package: &'static str,
        /// What it is needed for and how to do without it.
        purpose: &'static str,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}): {stderr}; {fix}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it said.
        stderr: String,
        /// What the operator can do.
        fix: &'static str,
    },
    /// The caller's own step between creation and start of a link failed.
    #[error("preparing device {device} failed: {reason}")]
    Prepare {
        /// The host-side device.
        device: String,
        /// The caller's error.
        reason: String,
    },
    /// A step failed, and undoing what came before it failed as well.
    #[error("{cause}; and undoing it left something behind: {leftover}")]
    NotUndone {
        /// The first failure.
        cause: Box<NetError>,
        /// What could not be undone.
        leftover: Errors,
    },
}

/// Failures of a teardown, which goes on past each of them.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<NetError>);

// === impl Errors ===

impl Errors {
    /// Keeps the error of a step, if it had one.
    pub fn note(&mut self, step: Result<(), NetError>) {
        if let Err(error) = step {
            self.0.push(error);
        }
    }

    /// `Ok` when nothing failed.
    pub fn into_result(self) -> Result<(), Errors> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

// === impl NetError ===

impl NetError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetError::Namespace { source, .. }
            | NetError::Netlink { source, .. }
            | NetError::Sysctl { source, .. }
            | NetError::File { source, .. } => source.raw_os_error(),
            NetError::NotUndone { cause, .. } => cause.errno(),
            _ => None,
        }
    }

    /// True if the thing acted upon does not exist (any more).
    pub fn is_missing(&self) -> bool {
        const MISSING: [Errno; 4] = [Errno::NOENT, Errno::NODEV, Errno::SRCH, Errno::ADDRNOTAVAIL];
        matches!(self, NetError::NoDevice { .. })
            || self.errno().is_some_and(|n| MISSING.iter().any(|e| e.raw_os_error() == n))
    }

    /// True if what was to be made exists already.
    pub fn exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST.raw_os_error()) || matches!(self, NetError::NameTaken { .. })
    }
}

/// `Ok` also where there was nothing to remove.
pub(crate) fn missing_is_fine(step: Result<(), NetError>) -> Result<(), NetError> {
    match step {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

enum Subject {
    Namespace,
    Netlink,
    Sysctl,
}

fn kernel_words(kernel: &Option<String>) -> String {
    kernel.as_ref().map(|words| format!(" ({words})")).unwrap_or_default()
}

fn advice(source: &io::Error, subject: Subject) -> &'static str {
    let Some(errno) = source.raw_os_error().map(Errno::from_raw_os_error) else {
        return "see the error";
    };
    match (errno, subject) {
        (Errno::PERM | Errno::ACCESS, _) => "run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        (Errno::NOENT, Subject::Namespace) => "`ip netns list` shows the named ones; has the workload ended?",
        (Errno::INVAL, Subject::Namespace) => "it is not a network namespace",
        (Errno::ROFS, Subject::Sysctl) => "/proc/sys is mounted read-only here: remount it or run privileged",
        (Errno::NOENT, Subject::Sysctl) => "the device is gone or the kernel lacks this family",
        (Errno::NODEV, _) => "the device is gone; `ip link` lists those that exist",
        (Errno::EXIST, _) => "something else made it already; remove that first",
        (Errno::OPNOTSUPP, _) => "the running kernel does not support this; see `villus status`",
        (Errno::NETDOWN, _) => "the device must be up",
        (Errno::NETUNREACH | Errno::HOSTUNREACH, _) => "the gateway is not on this link",
        (Errno::NOBUFS | Errno::NOMEM, _) => "the kernel is short of memory",
        (Errno::MFILE | Errno::NFILE, _) => "too many open files: raise LimitNOFILE",
        (Errno::INVAL, _) => "the kernel found a value invalid",
        _ => "see `dmesg` for more",
    }
}
