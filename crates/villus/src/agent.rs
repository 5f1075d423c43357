//! The agent inside this program: `villus agent`, and its part of `villus cleanup`.

use clap::ArgMatches;
use villus_config::{Config, Sources};

use crate::failure::Failure;

pub fn run(matches: Option<&ArgMatches>) -> Result<(), Failure> {
    let sources = match matches {
        Some(matches) => Sources::new().matches(matches),
        None => Sources::new(),
    };
    let config = Config::load(sources.process_env())
        .map_err(|error| Failure::new(error).fix("nothing was changed; correct what is named above"))?;
    villus_agent::run(config, villus_agent::signals()).map_err(|error| refused(&error))
}

/// What was removed, and what could not be.
pub fn cleanup(config: &Config, dry_run: bool) -> Result<(Vec<String>, Vec<String>), Failure> {
    let report = villus_agent::cleanup(config, dry_run).map_err(|error| refused(&error))?;
    Ok((report.removed, report.errors))
}

/// The agent's errors say after a semicolon what to do.
fn refused(error: &villus_agent::AgentError) -> Failure {
    match error.to_string().split_once("; ") {
        Some((what, fix)) => Failure::new(what).fix(fix),
        None => Failure::new(error),
    }
}
