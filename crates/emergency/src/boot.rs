//! Which boot of the machine this is: pinned maps, and so the entries in them, end with it.

use std::fs;

/// The kernel's boot id; empty where it cannot be read.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
