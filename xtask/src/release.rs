//! The release binaries, and running them as root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run::{as_root, cargo, run};
use crate::tree;

/// `./dev build`: everything that is installed somewhere.
pub fn build(root: &Path) -> Result<()> {
    let not_installed = ["--exclude", "xtask", "--exclude", "villus-bench"];
    run(cargo("build").current_dir(root).args(["--release", "--workspace", "--bins"]).args(not_installed))
}

/// Where [`build`] puts them.
pub fn dir(root: &Path) -> PathBuf {
    tree::target_dir(root).join("release")
}

/// A program that runs as root and finds the release binaries in `DEV_BIN_DIR`.
pub fn with_binaries(root: &Path, program: &Path) -> Command {
    let mut command = as_root(program);
    command.current_dir(root).env("DEV_BIN_DIR", dir(root));
    command
}
