//! `./dev demo`: builds, then hands over to the demo's own script.

use std::path::Path;

use anyhow::{Result, bail};

use crate::run::run;
use crate::{release, tree};

const SCRIPT: &str = "demo/demo.sh";

/// Runs the demo as root; it finds the binaries in `DEV_BIN_DIR`.
pub fn run_script(args: &[String]) -> Result<()> {
    let root = tree::root()?;
    if !root.join(SCRIPT).is_file() {
        bail!("{SCRIPT} is missing");
    }
    release::build(&root)?;
    run(release::with_binaries(&root, Path::new("bash")).arg(SCRIPT).args(args))
}
