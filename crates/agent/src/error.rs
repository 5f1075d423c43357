//! Why the agent does not start.

use std::io;
use std::path::PathBuf;

/// What kept the agent from starting, on what, and what the operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The process may not do what an agent must do.
    #[error("the agent must run as root (CAP_SYS_ADMIN, CAP_BPF, CAP_NET_ADMIN): run it with sudo")]
    NotRoot,
    /// Threads or timers cannot be had.
    #[error(
        "cannot start the runtime: {0}; raise the limits of processes and open files (ulimit -u, ulimit -n)"
    )]
    Runtime(#[source] io::Error),
    /// The kernel, its maps or its programs.
    #[error(transparent)]
    Datapath(#[from] villus_datapath::Error),
    /// The node's network.
    #[error("cannot set up the node's network: {0}")]
    Network(#[from] villus_net::NetError),
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] villus_api::server::SocketError),
    /// Serving ended by itself.
    #[error("serving the API on {} failed: {source}; start the agent again", .path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or directory of the agent's own.
    #[error("cannot {action} {}: {source}; {}", .path.display(), file_remedy(source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent is at work with the same directory.
    #[error("another agent (pid {pid}) works with {}: stop it first", .path.display())]
    Running {
        /// Its lock.
        path: PathBuf,
        /// Its process, as far as known.
        pid: String,
    },
    /// A setting that only shows to be wrong when it is used.
    #[error("option {option}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong and what helps.
        reason: String,
    },
    /// The store of identities.
    #[error("cannot open the store: {0}")]
    Store(String),
}

fn file_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            villus_durable::remedy(error)
        }
        _ => "it must be on a local file system that root may write",
    }
}
