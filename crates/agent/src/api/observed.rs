//! Flows that were observed of late: from the file of flows, else from memory.

use std::io::Cursor;
use std::path::Path;

use villus_api::model::ObservedFlows;
use villus_api::{ApiError, ApiResult};
use villus_flows::hubble::{ExportFile, Flow, FlowReader, ReadReport, Workloads, open_flows, write_line};
use villus_flows::{Filter, FlowEvent};
use villus_rollout::Observations;

use crate::agent::Agent;
use crate::names::Names;

/// Adds up what this node has observed.
pub(super) async fn flows(agent: &Agent) -> ApiResult<ObservedFlows> {
    let (names, file) = agent.with(|node| (node.names(), node.config.export.path.clone())).await?;
    let file = file.filter(|file| file.is_absolute());
    let history = agent.history.clone();
    let work = move || match file {
        Some(file) => of_files(&file, &names),
        None => Ok(of_memory(&history.last(usize::MAX, &Filter::default()), &names)),
    };
    // Files may be large.
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(format!("reading flows broke off: {error}")))?
}

fn of_files(file: &Path, names: &Names) -> ApiResult<ObservedFlows> {
    let failed = |error: std::io::Error| {
        ApiError::internal(format!("{}: {error}", file.display()))
            .hint("see whether hubble-export-file-path can be read, or name files with --flows")
    };
    let mut found = Found::new(names);
    for file in ExportFile::all(file).map_err(failed)? {
        match open_flows(&file).and_then(|reader| reader.each(|flow| found.add(&flow))) {
            Ok(report) => found.report.add(report),
            // Renamed or removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(found.named(file.display().to_string()))
}

/// The same way as through a file: as lines.
fn of_memory(events: &[FlowEvent], names: &Names) -> ObservedFlows {
    let mut found = Found::new(names);
    let mut lines = Vec::new();
    for chunk in events.chunks(1024) {
        lines.clear();
        chunk.iter().for_each(|event| write_line(&mut lines, event, names.origin(), names));
        let reader = FlowReader::new("memory", Cursor::new(&lines));
        // Memory can be read.
        if let Ok(report) = reader.each(|flow| found.add(&flow)) {
            found.report.add(report);
        }
    }
    found.named("the agent's memory".to_owned())
}

struct Found<'a> {
    names: &'a Names,
    observations: Observations,
    report: ReadReport,
}

impl<'a> Found<'a> {
    fn new(names: &'a Names) -> Self {
        Self { names, observations: Observations::default(), report: ReadReport::default() }
    }

    fn add(&mut self, flow: &Flow) {
        self.observations.add_flow(flow, &|identity| self.names.labels(identity));
    }

    fn named(self, source: String) -> ObservedFlows {
        ObservedFlows { observations: self.observations, source, report: self.report }
    }
}
