//! `./dev lint`: everything a machine can say about the sources without running them.

mod house;

use std::path::Path;

use anyhow::{Result, bail};

use crate::run::{cargo, run, say};
use crate::{object, tree};

type Check = fn(&Path) -> Result<()>;

/// Quick ones first; all run, so that one report shows everything.
const CHECKS: [(&str, Check); 7] = [
    ("house rules", house::check),
    ("format", format),
    ("clippy", clippy),
    ("documentation", documentation),
    ("kernel format", object::check_format),
    ("kernel clippy", object::clippy),
    ("kernel object", object::check),
];

pub fn run_all() -> Result<()> {
    let root = tree::root()?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        say(format_args!("lint: {name}"));
        if let Err(error) = check(&root) {
            eprintln!("dev: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    say("lint: all clean");
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    run(cargo("fmt").current_dir(root).args(["--all", "--check"]))
}

fn clippy(root: &Path) -> Result<()> {
    run(cargo("clippy").current_dir(root).args([
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Links between the doc comments hold.
fn documentation(root: &Path) -> Result<()> {
    run(cargo("doc")
        .current_dir(root)
        .args(["--quiet", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}
