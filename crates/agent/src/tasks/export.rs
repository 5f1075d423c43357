//! Events into the file of flows.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use jiff::Timestamp;
use villus_config::config::Export;
use villus_flows::hubble::{ExportFile, Limits, write_line, write_lost};
use villus_flows::{Filter, LossSource, Record};

use crate::agent::Agent;
use crate::names::Names;

/// Records that are written at once, and how long they are gathered.
const BATCH: usize = 1024;
const GATHER: Duration = Duration::from_millis(50);
const CONDITION: &str = "export of flows";

/// What became of events that were to be exported.
#[derive(Debug, Default)]
pub(crate) struct ExportCounts {
    /// Written.
    pub written: AtomicU64,
    /// Came faster than they were written.
    pub overrun: AtomicU64,
    /// The file system refused them.
    pub refused: AtomicU64,
}

/// Writes events for ever; at once done where no file is configured.
pub(super) async fn run(agent: Agent) {
    let Ok(config) = agent.with(|node| node.config.export.clone()).await else { return };
    let Some(path) = config.path.clone() else { return };
    let queue = config.queue.map_or_else(default_queue, |queue| queue as usize);
    let mut observer = agent.history.observe(Filter::default(), 0, queue);
    let counts = agent.exported.clone();
    let mut writer = Writer { path, config, counts, target: None, text: Vec::new() };
    let mut records = Vec::with_capacity(BATCH);
    while let Some(first) = observer.next().await {
        tokio::time::sleep(GATHER).await;
        records.push(first);
        while records.len() < BATCH
            && let Some(record) = observer.ready()
        {
            records.push(record);
        }
        let Ok(names) = agent.with(|node| node.names()).await else { return };
        // The disk may be slow; the reader of the ring must not wait for it.
        let work = move || {
            let result = writer.write(&records, &names);
            records.clear();
            (writer, records, result)
        };
        let Ok(done) = tokio::task::spawn_blocking(work).await else { return };
        let result;
        (writer, records, result) = done;
        let problem = result.err().map(|error| {
            format!("{}: {error}; flows are lost until it can be written", writer.path.display())
        });
        let _ = agent.with(move |node| node.conditions.note(CONDITION, problem)).await;
    }
}

fn default_queue() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(1024).min(16_384)
}

struct Writer {
    path: PathBuf,
    config: Export,
    counts: Arc<ExportCounts>,
    target: Option<Target>,
    /// Lines on their way; kept, so that it is made once.
    text: Vec<u8>,
}

enum Target {
    File(ExportFile),
    Stdout,
}

impl Writer {
    fn write(&mut self, records: &[Record], names: &Names) -> io::Result<()> {
        let now = Timestamp::now();
        let mut events = 0;
        self.text.clear();
        for record in records {
            match record {
                Record::Event(event) => {
                    events += 1;
                    write_line(&mut self.text, event, names.origin(), names);
                }
                Record::Lost { source, count } => {
                    if *source == LossSource::ObserverQueue {
                        self.counts.overrun.fetch_add(*count, Relaxed);
                    }
                    write_lost(&mut self.text, *source, *count, names.origin(), now);
                }
            }
        }
        let result = self.append(now);
        let count = if result.is_ok() { &self.counts.written } else { &self.counts.refused };
        count.fetch_add(events, Relaxed);
        result
    }

    fn append(&mut self, now: Timestamp) -> io::Result<()> {
        let mut target = match self.target.take() {
            Some(target) => target,
            None => self.open()?,
        };
        let result = match &mut target {
            Target::File(file) => file.append(&self.text, now),
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&self.text).and_then(|()| out.flush())
            }
        };
        self.target = Some(target);
        result
    }

    fn open(&self) -> io::Result<Target> {
        if self.path.as_os_str() == "stdout" {
            return Ok(Target::Stdout);
        }
        let Export { file_size, backups, compress, .. } = self.config;
        ExportFile::open(&self.path, Limits { file: file_size, backups: backups as usize, compress })
            .map(Target::File)
    }
}
