//! Observed flows for `policy learn` and `policy preview`: from files, or from the agent.

use std::{io, path::Path};

use clap::Args;
use villus_flows::hubble::{FlowReader, ReadReport, open_flows};
use villus_labels::Labels;
use villus_rollout::Observations;

use crate::{connect::Host, failure::Failure, out};

#[derive(Args, Debug)]
pub struct FlowArgs {
    /// Files of flows as JSON lines, of any number of nodes, gzip allowed, - for standard input; without them what the agent
    /// has observed.
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = clap::ValueHint::FilePath)]
    pub flows: Vec<String>,
}

impl FlowArgs {
    /// Adds the files' flows up; nothing where no file is named. What could not be used is said on standard error.
    pub fn read(&self, labels_of: &dyn Fn(u32) -> Option<Labels>) -> Result<Option<Observations>, Failure> {
        if self.flows.is_empty() {
            return Ok(None);
        }
        let mut observations = Observations::default();
        let mut all = ReadReport::default();
        for name in &self.flows {
            let failed = |error: io::Error| Failure::new(format!("cannot read {name}: {error}"));
            let reader = match name.as_str() {
                "-" => FlowReader::of_any("standard input".to_owned(), io::stdin()),
                _ => open_flows(Path::new(name)),
            };
            let report = reader
                .map_err(failed)?
                .each(|flow| observations.add_flow(&flow, labels_of))
                .map_err(failed)?;
            all.add(report);
        }
        tell(&observations, &all);
        Ok(Some(observations))
    }

    /// As [`Self::read`], or what the agent has observed.
    pub fn read_or_ask(&self, host: &Host) -> Result<Observations, Failure> {
        if let Some(observations) = self.read(&|_| None)? {
            return Ok(observations);
        }
        let observed = host.client()?.observed_flows()?;
        tell(&observed.observations, &observed.report);
        Ok(observed.observations)
    }
}

/// Says what of the flows was of no use.
fn tell(observations: &Observations, report: &ReadReport) {
    for bad in &report.bad {
        out::complain(&format!("{}:{}: {}", bad.file, bad.line, bad.problem));
    }
    let mut notes = Vec::new();
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    };
    let unused = &observations.unused;
    note(report.malformed, "lines could not be read");
    note(report.lost, "flows were lost before they were written");
    note(unused.undirected, "do not say who opened them");
    note(unused.not_policy, "were dropped for another reason than policy");
    note(unused.no_transport, "are neither TCP, UDP, SCTP nor ICMP");
    note(unused.unnamed, "say nothing about one of their ends");
    if !notes.is_empty() {
        out::complain(&format!("of {} flows and {} lines: {}", report.flows, report.lines, notes.join(", ")));
    }
}
