//! The kernel object: built from `ebpf/`, committed, and compared with what is committed.

mod build;
mod measure;
mod record;
mod toolchain;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::say;
use crate::tree;
use record::Record;
use toolchain::Toolchain;

pub use build::{check_format, clippy};

/// The committed object.
pub const OBJECT: &str = "crates/datapath/bpf/villus.bpf.o";
/// What it was made of and with.
const RECORD: &str = "crates/datapath/bpf/villus.bpf.toml";
const FIX: &str = "run ./dev bpf and commit the result";

/// `./dev bpf`: builds the object and its record in place, and shows what the kernel thinks of it.
pub fn rebuild() -> Result<()> {
    let root = tree::root()?;
    let toolchain = Toolchain::find()?;
    let fresh = build::build(&root, &toolchain)?;
    let record = Record::of(&root, &toolchain, &fresh)?;
    let (object, described) = (root.join(OBJECT), root.join(RECORD));
    let changed = std::fs::read(&object).ok() != std::fs::read(&fresh).ok();
    std::fs::create_dir_all(object.parent().context("object without a folder")?)?;
    std::fs::copy(&fresh, &object).with_context(|| format!("writing {OBJECT}"))?;
    std::fs::write(&described, record.to_string()).with_context(|| format!("writing {RECORD}"))?;
    let size = std::fs::metadata(&object)?.len();
    let news = if changed { "changed" } else { "as it was" };
    say(format_args!("{OBJECT}: {size} bytes, {news}, sha256 {}", record.object));
    measure::measure(&object)
}

/// Part of `./dev lint`: the committed object is the one that the sources make.
///
/// With the recorded versions of the tools its bytes must be those of a fresh build; with others only the
/// hash of the sources can be compared, which is said.
pub fn check(root: &Path) -> Result<()> {
    let committed = Record::read(&root.join(RECORD)).with_context(|| format!("{RECORD}: {FIX}"))?;
    let object = root.join(OBJECT);
    let bytes = tree::sha256_file(&object).with_context(|| FIX)?;
    if bytes != committed.object {
        bail!("{OBJECT} is not the object that {RECORD} describes: {FIX}");
    }
    let sources = record::hash_sources(root)?;
    if sources != committed.sources {
        bail!("{OBJECT} is stale: ebpf/, crates/abi or crates/path changed since it was built: {FIX}");
    }
    let toolchain = Toolchain::find()?;
    let fresh = build::build(root, &toolchain)?;
    if toolchain != committed.toolchain {
        say(format_args!(
            "{OBJECT}: its sources are unchanged, but it was built with {} and here is {toolchain}: bytes not compared",
            committed.toolchain
        ));
        return Ok(());
    }
    if tree::sha256_file(&fresh)? != bytes {
        bail!("{OBJECT} differs from a fresh build by the same tools ({}): {FIX}", fresh.display());
    }
    say(format_args!("{OBJECT} is what its sources make ({toolchain})"));
    Ok(())
}

/// A build by other tools than the committed object's, if the tools here are others. Its bytes cannot be compared
/// with the committed ones; what it does can be.
pub fn other_build(root: &Path) -> Result<Option<PathBuf>> {
    // Without tools there is nothing to compare; a missing record is for `check` to report.
    let (Ok(toolchain), Ok(committed)) = (Toolchain::find(), Record::read(&root.join(RECORD))) else {
        return Ok(None);
    };
    if toolchain == committed.toolchain {
        return Ok(None);
    }
    build::build(root, &toolchain).map(Some)
}

/// The folder of the kernel crate.
pub fn crate_dir(root: &Path) -> PathBuf {
    root.join("ebpf")
}
