//! A program that was built without the agent says so.

use clap::ArgMatches;
use villus_config::Config;

use crate::failure::Failure;

pub fn run(_: Option<&ArgMatches>) -> Result<(), Failure> {
    Err(missing())
}

pub fn cleanup(_: &Config, _: bool) -> Result<(Vec<String>, Vec<String>), Failure> {
    Err(missing())
}

fn missing() -> Failure {
    Failure::new("this program was built without the agent").fix("build it with the feature `agent`")
}
