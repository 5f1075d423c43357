//! From `ebpf/` to an object without DWARF whose bytes depend on the sources and the tools alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::toolchain;
use crate::run::{run, say};
use crate::{rustc, tree};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "villus-ebpf";

/// Builds the object and returns where it is, below the target folder.
pub fn build(root: &Path, versions: &toolchain::Toolchain) -> Result<PathBuf> {
    let linker = toolchain::bpf_linker()?;
    say(format_args!("building the kernel object with {versions}"));
    // Sources must be there before their folders can be named in the flags.
    run(toolchain::cargo().current_dir(super::crate_dir(root)).args(["fetch", "--quiet", "--locked"]))?;
    let target_dir = tree::target_dir(root).join("kernel");
    run(toolchain::cargo()
        .current_dir(super::crate_dir(root))
        .args(["build", "--quiet", "--release", "--locked", "--bin", PACKAGE])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_INCREMENTAL", "0")
        // Which of aya's bindings are used: any will do, but always the same.
        .env("CARGO_BPF_TARGET_ARCH", "x86_64")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root)?.join("\u{1f}"))
        .env("RUSTC_WRAPPER", std::env::current_exe()?)
        .env(rustc::ROOT_VARIABLE, root))?;
    strip(&target_dir.join(TARGET).join("release").join(PACKAGE), &target_dir.join("villus.bpf.o"))
}

fn flags(root: &Path) -> Result<Vec<String>> {
    let mut flags: Vec<String> = [
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Cdebuginfo=2",
        "-Ctarget-cpu=v3",
    ]
    .map(String::from)
    .into();
    // Messages of the compiler still name the real files.
    flags.extend(["-Zunstable-options", "--remap-path-scope=object"].map(String::from));
    flags.extend(remapped(root)?.into_iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")));
    Ok(flags)
}

/// Folders whose names must not reach the object, with what stands for them there. Where a folder's own
/// name depends on the machine (a registry's mirror), it goes too.
fn remapped(root: &Path) -> Result<Vec<(String, &'static str)>> {
    let mut folders = vec![(root.display().to_string(), "/villus")];
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let registries = home.join("registry/src");
    for entry in std::fs::read_dir(&registries).with_context(|| registries.display().to_string())? {
        folders.push((entry?.path().display().to_string(), "/crates"));
    }
    Ok(folders)
}

/// Drops DWARF and keeps BTF, which the kernel wants for maps and for line numbers in the verifier's log.
fn strip(from: &Path, to: &Path) -> Result<PathBuf> {
    let objcopy = toolchain::llvm_tools()?.join("llvm-objcopy");
    run(Command::new(objcopy).arg("--strip-debug").arg("--remove-section=.debug*").arg(from).arg(to))?;
    Ok(to.to_owned())
}

/// `cargo fmt --check` of the kernel crate: it is outside the workspace.
pub fn check_format(root: &Path) -> Result<()> {
    let mut cargo = crate::run::cargo("fmt");
    let check = run(cargo.current_dir(super::crate_dir(root)).args(["--check", "--", "--files-with-diff"]));
    check.context("these files are not formatted: run cargo fmt in ebpf/")
}

/// Clippy for the kernel's target.
pub fn clippy(root: &Path) -> Result<()> {
    run(toolchain::clippy()
        .current_dir(super::crate_dir(root))
        .args(["clippy", "--quiet", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .args(["--", "-D", "warnings"])
        .env("CARGO_TARGET_DIR", tree::target_dir(root).join("kernel-clippy")))
}
