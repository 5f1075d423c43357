//! Measurements: `villus-bench NAME --json FILE`. Every figure stands beside a baseline taken in the same run.
#![forbid(unsafe_code)]

mod path;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().context("villus-bench NAME [--json FILE]: path")?;
    let mut json = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = Some(PathBuf::from(args.next().context("--json FILE")?)),
            other => bail!("unknown argument {other}"),
        }
    }
    let rows = match name.as_str() {
        "path" => path::run()?,
        other => bail!("no benchmark is called {other}; there is: path"),
    };
    report::print(&rows);
    if let Some(file) = json {
        report::write(&file, &rows)?;
    }
    Ok(())
}
