//! `./dev lint`: everything a machine can say about the sources without running them.

mod house;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, run, say};
use crate::{object, tree};

type Check = fn(&Path) -> Result<()>;

/// Quick ones first; all run, so that one report shows everything.
const CHECKS: [(&str, Check); 7] = [
    ("house", house::check),
    ("format", format),
    ("clippy", clippy),
    ("docs", documentation),
    ("kernel-format", object::check_format),
    ("kernel-clippy", object::clippy),
    ("kernel-object", object::check),
];

/// Runs the named checks, or all.
pub fn run_checks(wanted: &[String]) -> Result<()> {
    let known = CHECKS.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("lint: no check {unknown}; there are {}", known.join(", "));
    }
    let root = tree::root()?;
    let mut failed = Vec::new();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    for (name, check) in CHECKS.into_iter().filter(|(name, _)| is_wanted(name)) {
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
    let check = run(cargo("fmt").current_dir(root).args(["--all", "--check", "--", "--files-with-diff"]));
    check.context("these files are not formatted: run cargo fmt --all")
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
