//! `./dev bench NAME`: the benchmarks are the crate villus-bench; here they are built and given their place.

use anyhow::{Context, Result, bail};

use crate::run::{cargo, run, say};
use crate::{release, tree};

/// Builds what is measured and what measures, then runs `villus-bench NAME --json bench-results/NAME.json …`.
pub fn run_one(args: &[String]) -> Result<()> {
    let (name, rest) = args.split_first().context("bench: which one? ./dev bench NAME")?;
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        bail!("{name:?} is no name of a benchmark");
    }
    let root = tree::root()?;
    release::build(&root)?;
    run(cargo("build").current_dir(&root).args(["--release", "--package", "villus-bench"]))?;
    let results = root.join("bench-results");
    std::fs::create_dir_all(&results)?;
    let json = results.join(format!("{name}.json"));
    let bench = release::dir(&root).join("villus-bench");
    run(release::with_binaries(&root, &bench).arg(name).arg("--json").arg(&json).args(rest))?;
    say(format_args!("results are in bench-results/{name}.json"));
    Ok(())
}
