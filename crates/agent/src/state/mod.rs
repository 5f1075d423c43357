//! What the agent keeps on disk, below `lib-dir`.

mod endpoint;
mod files;
mod lock;

pub(crate) use endpoint::{Device, EndpointFile, Names};
pub(crate) use files::{Damaged, StateDir, write_atomic};
pub(crate) use lock::AgentLock;

/// The id of the running boot; empty where the kernel does not tell.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Now, RFC 3339 with seconds.
pub(crate) fn timestamp() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string()
}
