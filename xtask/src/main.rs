//! Chores of the repository that need more than a line of shell. `./dev` calls them after it has made sure
//! that their tools are installed; called directly (`cargo xtask` style) they expect them to be there.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod fuzz;
mod lint;
mod object;
mod old_kernel;
mod release;
mod residue;
mod run;
mod rustc;
mod test;
mod tree;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    if rustc::is_asked() {
        return rustc::exec();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match chore(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(args: &[String]) -> Result<()> {
    let Some((name, rest)) = args.split_first() else {
        bail!("which chore? build, lint, test, bpf, fuzz, bench or demo");
    };
    match name.as_str() {
        "lint" => lint::run_checks(rest),
        "build" => release::build(&tree::root()?),
        "test" => test::run_all(rest),
        "bpf" => object::rebuild(),
        "fuzz" => fuzz::run_targets(rest),
        "bench" => bench::run_one(rest),
        "demo" => demo::run_script(rest),
        "old-kernel" => old_kernel::start(&tree::root()?)?.finish().map(drop),
        other => bail!("no chore named {other}: build, lint, test, bpf, fuzz, bench or demo"),
    }
}
