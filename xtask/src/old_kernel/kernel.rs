//! Debian's kernel with its modules, downloaded once and unpacked, never installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run::{output, run, say};

/// Debian 12's kernel for virtual machines, 6.1: small, and what booting needs is built in.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel.
pub struct Kernel {
    /// As it names itself.
    pub version: String,
    /// What is booted.
    pub image: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Looks for it in a folder and puts it there if it is not.
    pub fn fetch(dir: &Path) -> Result<Self> {
        let depends = output(Command::new("apt-cache").args(["depends", PACKAGE]))?;
        let version = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .with_context(|| format!("apt knows no {PACKAGE}: apt-get update"))?
            .to_owned();
        let kernel = Self {
            image: dir.join(format!("boot/vmlinuz-{version}")),
            modules: dir.join(format!("lib/modules/{version}")),
            version,
        };
        if !kernel.image.exists() || !kernel.modules.exists() {
            unpack(dir, &format!("linux-image-{}", kernel.version))?;
        }
        Ok(kernel)
    }
}

fn unpack(dir: &Path, package: &str) -> Result<()> {
    say(format_args!("fetching {package}"));
    run(Command::new("apt-get").current_dir(dir).args(["download", "-qq", package]).stderr(Stdio::null()))?;
    let archive = std::fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .context("apt-get downloaded nothing")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(dir))?;
    Ok(std::fs::remove_file(&archive)?)
}
