//! Namespaces of a benchmark's own.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

const APART: &str = "VILLUS_BENCH_APART";

/// Begins this program again in network and mount namespaces of its own, under `unshare`, if it is not there.
pub(crate) fn apart() -> Result<()> {
    if std::env::var_os(APART).is_some() {
        return Ok(());
    }
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(APART, "1")
        .exec();
    Err(error).context("unshare (package util-linux)")
}
