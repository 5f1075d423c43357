//! Why the agent does not start.

use std::io;

/// What kept the agent from starting, on what, and what the operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The process may not do what an agent must do.
    #[error("the agent must run as root (CAP_SYS_ADMIN, CAP_BPF, CAP_NET_ADMIN): run it with sudo")]
    NotRoot,
    /// Threads or timers cannot be had.
    #[error("cannot start the runtime: {0}; raise the limits of processes and open files (ulimit -u, ulimit -n)")]
    Runtime(#[source] io::Error),
}
