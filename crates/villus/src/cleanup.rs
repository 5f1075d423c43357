//! `villus cleanup`.

use clap::Args;
use serde::Serialize;

use crate::{
    agent,
    failure::Failure,
    kernel::PlaceArgs,
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  sudo villus cleanup --dry-run\n\nThe agent must be stopped. Kernel parameters that it changed get their old values back."
)]
pub struct CleanupArgs {
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    places: PlaceArgs,
}

/// What is gone or would go.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cleaned {
    dry_run: bool,
    removed: Vec<String>,
    errors: Vec<String>,
}

pub fn run(args: &CleanupArgs) -> Result<(), Failure> {
    let config = args.places.load()?;
    let (removed, errors) = agent::cleanup(&config, args.dry_run)?;
    let cleaned = Cleaned { dry_run: args.dry_run, removed, errors };
    args.output.print(&cleaned, || text(&cleaned))?;
    for error in &cleaned.errors {
        out::complain(&format!("villus: {error}"));
    }
    match cleaned.errors.len() {
        0 => Ok(()),
        left => Err(Failure::new(format!("{left} things could not be removed"))
            .fix("mend what is named above and run it again; what is gone stays gone")),
    }
}

/// One thing in a line.
fn text(cleaned: &Cleaned) -> String {
    if cleaned.removed.is_empty() && cleaned.errors.is_empty() {
        return "nothing of Villus is here\n".to_owned();
    }
    let head = if cleaned.dry_run { "would remove:" } else { "removed:" };
    let lines: String = cleaned.removed.iter().map(|what| format!("  {what}\n")).collect();
    format!("{head}\n{lines}")
}
