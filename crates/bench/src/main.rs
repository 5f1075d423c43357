//! Measurements: `villus-bench NAME [--json FILE] [--only TEXT] [--svg FILE]`: `--only` keeps the cases of `datapath` and
//! `overlay` whose name contains the text; `--svg` is where `cascade` draws its picture. Every figure stands beside a
//! baseline taken in the same run.
#![forbid(unsafe_code)]

mod agent;
mod apart;
mod cascade;
mod cost;
mod external;
mod load;
mod mesh;
mod overlay;
mod path;
mod policy;
mod report;
mod store;
mod wire;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().context(
        "villus-bench NAME [--json FILE] [--only TEXT] [--svg FILE]: agent, cascade, datapath, external, mesh, overlay, path, policy, store",
    )?;
    let (mut json, mut svg, mut only) = (None, None, String::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = Some(PathBuf::from(args.next().context("--json FILE")?)),
            "--svg" => svg = Some(PathBuf::from(args.next().context("--svg FILE")?)),
            "--only" => only = args.next().context("--only TEXT")?,
            other => bail!("unknown argument {other}"),
        }
    }
    let rows = match name.as_str() {
        "agent" => agent::run()?,
        "cascade" => cascade::run(svg.as_deref())?,
        "overlay" => overlay::run(&only)?,
        "external" => external::run()?,
        "mesh" => mesh::run()?,
        "path" => path::run()?,
        "policy" => policy::run()?,
        "store" => store::run()?,
        "datapath" => wire::run(&only)?,
        other => {
            bail!(
                "no benchmark is called {other}; there are: agent, cascade, datapath, external, mesh, overlay, path, policy, store"
            )
        }
    };
    report::print(&rows);
    if let Some(file) = json {
        report::write(&file, &rows)?;
    }
    Ok(())
}
