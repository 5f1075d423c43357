//! `villus cleanup`.

use clap::Args;

use crate::{agent, failure::Failure, kernel::PlaceArgs, out};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  sudo villus cleanup --dry-run\n\nThe agent must be stopped. Kernel parameters that it changed get their old values back."
)]
pub struct CleanupArgs {
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

pub fn run(args: &CleanupArgs) -> Result<(), Failure> {
    let config = args.places.load()?;
    let (removed, errors) = agent::cleanup(&config, args.dry_run)?;
    if !removed.is_empty() {
        out::line(if args.dry_run { "would remove:" } else { "removed:" })?;
    }
    for what in &removed {
        out::line(&format!("  {what}"))?;
    }
    for error in &errors {
        out::complain(&format!("villus: {error}"));
    }
    match errors.len() {
        0 if removed.is_empty() => out::line("nothing of Villus is here"),
        0 => Ok(()),
        left => Err(Failure::new(format!("{left} things could not be removed"))
            .fix("mend what is named above and run it again; what is gone stays gone")),
    }
}
