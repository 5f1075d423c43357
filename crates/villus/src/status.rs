//! `villus status`.

use std::time::{Duration, Instant};

use clap::Args;
use villus_api::model::{ServiceState, State, StatusDetails};
use villus_print::{StatusLine, Table};

use crate::{
    connect::Host,
    failure::{FAILED, Failure},
    out::OutputArgs,
};

/// Between two attempts of `--wait`.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus status --verbose\n  villus status --wait && villus endpoint list\n  villus status --brief   # for probes: exit code 1 if something has failed"
)]
pub struct StatusArgs {
    /// One line, for probes.
    #[arg(long, conflicts_with = "verbose")]
    brief: bool,
    /// Also list what the kernel offers and whether it is used.
    #[arg(short, long)]
    verbose: bool,
    /// Wait until the agent serves, five minutes if nothing is said.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "5m",
        value_parser = villus_config::duration::parse)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, args: &StatusArgs) -> Result<(), Failure> {
    let client = host.client()?;
    if let Some(patience) = args.wait {
        let end = Instant::now() + patience;
        while client.status(true).is_err() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
    }
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

/// Labels in a column; state and message behind them, for states are words or whole sentences.
fn lines(lines: &[StatusLine]) -> String {
    let mut table = Table::default();
    for line in lines {
        let mut message = line.message.lines();
        let first = match (line.state.as_str(), message.next().unwrap_or_default()) {
            (state, "") => state.to_owned(),
            ("", message) => message.to_owned(),
            (state, message) => format!("{state}   {message}"),
        };
        let rest = message.map(str::to_owned);
        table.rows([vec![format!("{}:", line.label)], std::iter::once(first).chain(rest).collect()]);
    }
    table.render()
}

fn text(details: &StatusDetails, verbose: bool) -> String {
    let mut text = lines(&details.lines);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_state_does_not_push_the_others_away() {
        let all = [
            StatusLine::new("KVStore", "Ok", "embedded"),
            StatusLine::new("NodeMonitor", "Listening for events on 2 CPUs", ""),
            StatusLine::new("IPAM", "", "IPv4: 1/254\nIPv6: 1/254"),
        ];
        assert_eq!(
            lines(&all),
            "KVStore:       Ok   embedded\nNodeMonitor:   Listening for events on 2 CPUs\n\
             IPAM:          IPv4: 1/254\n               IPv6: 1/254\n"
        );
    }
}
