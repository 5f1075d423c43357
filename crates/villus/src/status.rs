//! `villus status`.

use clap::Args;
use villus_api::model::{ServiceState, State, StatusDetails};
use villus_print::{StatusLine, Table, status};

use crate::{
    connect::Host,
    failure::{FAILED, Failure},
    out::OutputArgs,
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus status --verbose\n  villus status --brief   # for probes: exit code 1 if something has failed"
)]
pub struct StatusArgs {
    /// One line, for probes.
    #[arg(long, conflicts_with = "verbose")]
    brief: bool,
    /// Also list what the kernel offers and whether it is used.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, args: &StatusArgs) -> Result<(), Failure> {
    let client = host.client()?;
    if args.brief {
        let status = client.status(true)?;
        args.output.print(&status, || brief(&status.cilium))?;
        return if status.healthy() { Ok(()) } else { Err(Failure::silent(FAILED)) };
    }
    let details = match client.status_details() {
        Err(error) if error.status() == Some(501) => {
            let State { state, msg } = client.status(false)?.cilium;
            let line = StatusLine::new("Cilium", format!("{state:?}"), msg);
            StatusDetails { lines: vec![line], ..StatusDetails::default() }
        }
        answer => answer?,
    };
    args.output.print(&details, || text(&details, args.verbose))
}

fn brief(state: &State) -> String {
    match state.state {
        ServiceState::Ok => "OK\n".to_owned(),
        other => format!("{other:?}: {}\n", state.msg),
    }
}

fn text(details: &StatusDetails, verbose: bool) -> String {
    let mut text = status(&details.lines);
    for warning in &details.warnings {
        text.push_str(&format!("\nWarning: {}\n", warning.message));
        if !warning.mend.is_empty() {
            text.push_str(&format!("  {}\n", warning.mend));
        }
    }
    if verbose && !details.features.is_empty() {
        let mut table = Table::new(["KERNEL FEATURE", "USED", "WHY"]);
        for feature in &details.features {
            table.row([feature.name.as_str(), if feature.used { "yes" } else { "no" }, &feature.reason]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    if verbose {
        text.push_str(&format!("\nVersion {}, up for {} s\n", details.version, details.uptime));
    }
    text
}
