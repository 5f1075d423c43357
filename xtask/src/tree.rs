//! The repository: where it is, which files it holds, and their hashes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::output;

/// The root of the checkout.
pub fn root() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let start = match here {
        Some(dir) => dir,
        None => std::env::current_dir()?,
    };
    let found = start.ancestors().find(|dir| dir.join("dev").is_file() && dir.join("Cargo.lock").is_file());
    let found = found.context("not inside a checkout of Villus")?;
    Ok(found.canonicalize()?)
}

/// Where build products go: `$CARGO_TARGET_DIR`, else `target` in the checkout.
pub fn target_dir(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => root.join("target"),
    }
}

/// Where tools that we build ourselves are kept between runs.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(dir), _) if !dir.is_empty() => PathBuf::from(dir),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep built tools"),
    };
    Ok(base.join("villus"))
}

/// Every file that is or could be committed, relative to the root, sorted.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    // A checkout may belong to somebody else than to who runs the tests.
    let listed = output(Command::new("git").current_dir(root).args([
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<PathBuf> =
        listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    files.retain(|path| root.join(path).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// Copies every file of [`files`].
pub fn copy(root: &Path, to: &Path) -> Result<()> {
    for file in files(root)? {
        let copied = to.join(&file);
        std::fs::create_dir_all(copied.parent().unwrap_or(to))?;
        std::fs::copy(root.join(&file), &copied).with_context(|| copied.display().to_string())?;
    }
    Ok(())
}

/// SHA-256 of a file's bytes, in hex.
pub fn sha256_file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    sha256(&bytes)
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    child.stdin.take().context("sha256sum without stdin")?.write_all(bytes)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    let Some(hash) = text.split_whitespace().next().filter(|hash| hash.len() == 64) else {
        bail!("sha256sum printed {text:?}");
    };
    Ok(hash.to_owned())
}

/// Every executable source root of a crate: `src/lib.rs`, `src/main.rs`, `src/bin/*.rs`.
pub fn crate_roots(root: &Path, crate_dir: &Path) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        ["src/lib.rs", "src/main.rs"].iter().map(|name| crate_dir.join(name)).collect();
    if let Ok(bins) = std::fs::read_dir(root.join(crate_dir).join("src/bin")) {
        let names = bins.flatten().map(|entry| entry.file_name());
        roots.extend(names.map(|name| crate_dir.join("src/bin").join(name)));
    }
    roots.retain(|path| root.join(path).is_file());
    roots
}
