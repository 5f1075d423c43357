//! What can go wrong at the edge to the kernel, on what, and what the operator can do.

use std::{io, path::PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("{action} {what}: {source}{}", hint(.source))]
    Kernel {
        /// What was tried, as in "pin".
        action: &'static str,
        /// On what: a pin, a map, an interface.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else is pinned where one of our maps belongs.
    #[error(
        "{0}: found {found}, wanted {wanted}; it was not made by this version of Villus: \
         stop whoever uses it and remove the pin (rm {0}), or start Villus with another --bpf-root",
        .path.display()
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What belongs there.
        wanted: String,
    },
    /// A Cilium agent's pins, links or devices are on this node.
    #[error(
        "this node runs Cilium or has not been cleaned of it: found {}; \
         stop it and run `cilium-dbg post-uninstall-cleanup` (or remove these), then start Villus again",
        .found.join(", ")
    )]
    Cilium {
        /// What was found.
        found: Vec<String>,
    },
    /// The kernel lacks what Villus cannot do without.
    #[error("this kernel ({release}) does not have what Villus needs: {}; Linux 5.10 or newer is needed", .missing.join("; "))]
    Unsupported {
        /// The kernel's release.
        release: String,
        /// What is missing, and why.
        missing: Vec<String>,
    },
    /// The kernel object cannot be loaded.
    #[error("kernel object: {what}")]
    Object {
        /// What is wrong with it, the end of the verifier's log included.
        what: String,
    },
    /// A map has no room for what it should hold.
    #[error("{map}: {wanted} entries do not fit, {most} do; raise {option}")]
    Full {
        /// The map.
        map: String,
        /// Entries wanted.
        wanted: usize,
        /// Entries that fit.
        most: usize,
        /// The option that changes it.
        option: &'static str,
    },
    /// A test asked for a failure here.
    #[error("stopped on purpose {0}")]
    Stopped(String),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)"
        }
        Some(libc::E2BIG) => " (the map is full)",
        Some(libc::ENODEV) => " (the interface is gone)",
        _ => "",
    }
}

/// Names what was tried when an I/O result is an error.
pub(crate) trait Context<T> {
    fn on(self, action: &'static str, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn on(self, action: &'static str, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Kernel { action, what: what.into(), source: source.into() })
    }
}
