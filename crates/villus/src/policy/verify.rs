//! `villus policy verify`.

use clap::Args;
use villus_api::{
    EndpointRef,
    model::{DifferenceKind, VerifyReport, VerifyRequest},
};
use villus_print::Table;

use crate::{
    connect::{Host, endpoint_ref},
    failure::{DIFFERS, Failure},
    out::OutputArgs,
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy verify\n  villus policy verify 794 --repair\n\nExit code 3 if something \
                  differs that was not repaired. Entries that an operator put in by hand are shown and kept."
)]
pub struct VerifyArgs {
    /// Only this endpoint's maps.
    #[arg(value_parser = endpoint_ref)]
    endpoint: Option<EndpointRef>,
    /// Make the kernel's maps what policy asks for.
    #[arg(long)]
    repair: bool,
    /// Say what a repair would do, and do nothing.
    #[arg(long, requires = "repair")]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, args: VerifyArgs) -> Result<(), Failure> {
    let request = VerifyRequest { endpoint: args.endpoint, repair: args.repair, dry_run: args.dry_run };
    let report = host.client()?.verify(&request)?;
    args.output.print(&report, || text(&report))?;
    if report.clean() { Ok(()) } else { Err(Failure::silent(DIFFERS)) }
}

fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    if !report.differences.is_empty() {
        let mut table = Table::new(["MAP", "DIFFERENCE", "KEY", "WANTED", "FOUND", "NOTE"]);
        for difference in &report.differences {
            let note = if difference.repaired { "repaired" } else { difference.note.as_str() };
            let kind = difference.kind.to_string();
            let (want, have) = (or_nothing(&difference.want), or_nothing(&difference.have));
            table.row([difference.map.as_str(), &kind, &difference.key, want, have, note]);
        }
        text.push_str(&table.render());
        text.push('\n');
    }
    let entries: u64 = report.checked.iter().map(|checked| checked.entries).sum();
    let count = |hand: bool| {
        report.differences.iter().filter(|d| (d.kind == DifferenceKind::HandMade) == hand).count()
    };
    let by_hand = match count(true) {
        0 => String::new(),
        n => format!(", {n} made by hand"),
    };
    let maps = report.checked.len();
    text.push_str(&format!("{maps} maps with {entries} entries: {} differ{by_hand}\n", count(false)));
    text
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}
