//! The compiler and linker of the kernel object: Debian's rustc, which comes with its sources, and bpf-linker built
//! against the LLVM of that rustc.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{line, output, run, say};
use crate::tree;

const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const CLIPPY: &str = "/usr/bin/cargo-clippy";
const BPF_LINKER: &str = "0.13.0";

/// Versions of everything that turns the sources into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Version of the package rustc-web: Debian's patches are part of it.
    pub rustc: String,
    /// Version of the LLVM library that rustc and bpf-linker share.
    pub llvm: String,
    /// Version of bpf-linker.
    pub bpf_linker: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {}, LLVM {}, bpf-linker {}", self.rustc, self.llvm, self.bpf_linker)
    }
}

impl Toolchain {
    /// Asks the installed tools; an error names the missing package.
    pub fn find() -> Result<Self> {
        package_version("rust-web-src")?;
        let rustc = package_version("rustc-web")?;
        let llvm = package_version(&format!("libllvm{}", llvm_major()?))?;
        Ok(Self { rustc, llvm, bpf_linker: BPF_LINKER.to_owned() })
    }
}

fn package_version(package: &str) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    let shown = query.args(["-W", "-f", "${db:Status-Status} ${Version}", package]).output();
    let shown = String::from_utf8(shown.with_context(|| line(&query))?.stdout)?;
    let version = shown.strip_prefix("installed ");
    version.map(str::to_owned).with_context(|| format!("package {package} is not installed"))
}

fn llvm_major() -> Result<u32> {
    let text = output(plain(RUSTC).arg("-vV"))?;
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = version.and_then(|version| version.split('.').next()?.parse().ok());
    major.with_context(|| format!("{RUSTC} -vV does not name its LLVM:\n{text}"))
}

/// Folder with LLVM's own tools.
pub fn llvm_tools() -> Result<PathBuf> {
    Ok(Path::new("/usr/lib").join(format!("llvm-{}", llvm_major()?)).join("bin"))
}

/// Debian's cargo with an unstable flag or two allowed, whatever toolchain runs us.
pub fn cargo() -> Command {
    let mut command = plain(CARGO);
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Debian's clippy, called directly: cargo would prefer one in its own home.
pub fn clippy() -> Command {
    let mut command = plain(CLIPPY);
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO", CARGO);
    command
}

/// A program of Debian's toolchain, shielded from the settings of the one that runs us.
pub fn plain(program: &str) -> Command {
    let mut command = Command::new(program);
    let ours = ["RUST", "CARGO", "CLIPPY", "LD_LIBRARY_PATH"];
    let kept = [
        "CARGO_HOME",
        "CARGO_HTTP",
        "CARGO_NET",
        "CARGO_REGISTR",
        "CARGO_SOURCE",
        "CARGO_TERM",
        "CARGO_TARGET_DIR",
    ];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        if starts(&ours) && !starts(&kept) {
            command.env_remove(&name);
        }
    }
    command.env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

/// The linker, built on first use and kept in the cache folder.
pub fn bpf_linker() -> Result<PathBuf> {
    let major = llvm_major()?;
    let home = tree::cache_dir()?.join(format!("bpf-linker-{BPF_LINKER}-llvm-{major}"));
    let program = home.join("bin/bpf-linker");
    if is_usable(&program) {
        return Ok(program);
    }
    say(format_args!("building bpf-linker {BPF_LINKER} against LLVM {major} into {}", home.display()));
    let prefix = format!("/usr/lib/llvm-{major}");
    let scratch = home.join("build");
    run(cargo()
        .args(["install", "bpf-linker", "--quiet", "--locked", "--force", "--no-default-features"])
        .args(["--version", BPF_LINKER, "--features", &format!("llvm-{major}")])
        .arg("--root")
        .arg(&home)
        .env("CARGO_TARGET_DIR", &scratch)
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-L native={prefix}/lib -C link-arg=-Wl,-rpath,{prefix}/lib"))
        // rustc is Debian's too: the linker must not change with the toolchain of the day.
        .env("RUSTC", RUSTC))?;
    std::fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    if !is_usable(&program) {
        bail!("{} does not run", program.display());
    }
    Ok(program)
}

fn is_usable(program: &Path) -> bool {
    let version = Command::new(program).arg("--version").output();
    version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER))
}
