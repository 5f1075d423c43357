//! Reading files of flows: lines of one node or of many, plain or in the envelope of `hubble observe -o jsonpb`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Flow;

/// Longest line that is read; more is no flow.
const MAX_LINE: usize = 1 << 20;
/// How many bad lines are shown.
const SHOWN: usize = 5;

/// Reads flows line by line. Whatever a line holds, reading goes on with the next.
pub struct FlowReader<R> {
    name: String,
    input: R,
    line: Vec<u8>,
    report: ReadReport,
}

/// What was found in the lines read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ReadReport {
    /// Lines that are not empty.
    pub lines: u64,
    /// Flows among them.
    pub flows: u64,
    /// Lines about something else: the state of nodes, agent events.
    pub others: u64,
    /// Flows that their producer says it has lost.
    pub lost: u64,
    /// Lines that could not be read.
    pub malformed: u64,
    /// The first of them.
    pub bad: Vec<Bad>,
}

/// A line that could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bad {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl ReadReport {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.flows += other.flows;
        self.others += other.others;
        self.lost += other.lost;
        self.malformed += other.malformed;
        let room = SHOWN.saturating_sub(self.bad.len());
        self.bad.extend(other.bad.into_iter().take(room));
    }
}

/// A line of an exporter or of `hubble observe`; each kind of content has a field.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    flow: Option<&'a RawValue>,
    #[serde(borrow, alias = "lostEvents")]
    lost_events: Option<&'a RawValue>,
    node_status: Option<serde::de::IgnoredAny>,
    agent_event: Option<serde::de::IgnoredAny>,
    debug_event: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    node_name: Option<String>,
}

#[derive(Deserialize)]
struct Lost {
    #[serde(alias = "numEventsLost")]
    num_events_lost: serde_json::Value,
}

/// Opens a file of flows; one that was compressed with gzip is read as well.
///
/// # Errors
/// The file cannot be opened or read.
pub fn open_flows(path: &Path) -> io::Result<FlowReader<Box<dyn BufRead + Send>>> {
    FlowReader::of_any(path.display().to_string(), File::open(path)?)
}

impl FlowReader<Box<dyn BufRead + Send>> {
    /// Reads what may be compressed with gzip.
    ///
    /// # Errors
    /// Nothing can be read.
    pub fn of_any(name: String, input: impl Read + Send + 'static) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let zipped = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> =
            if zipped { Box::new(BufReader::new(MultiGzDecoder::new(input))) } else { Box::new(input) };
        Ok(Self::new(name, input))
    }
}

impl<R: BufRead> FlowReader<R> {
    /// Reads from `input`, which errors call `name`.
    pub fn new(name: impl Into<String>, input: R) -> Self {
        Self { name: name.into(), input, line: Vec::new(), report: ReadReport::default() }
    }

    /// Gives every flow to `sink`, in the order of the file, and says what was found.
    ///
    /// # Errors
    /// The input cannot be read any further; `sink` has everything before.
    pub fn each(mut self, mut sink: impl FnMut(Flow)) -> io::Result<ReadReport> {
        let mut number = 0;
        loop {
            let whole = match self.next_line()? {
                Next::End => return Ok(self.report),
                Next::Whole => true,
                Next::TooLong => false,
            };
            number += 1;
            let text = self.line.trim_ascii();
            if whole && text.is_empty() {
                continue;
            }
            self.report.lines += 1;
            let read =
                if whole { read_line(text) } else { Err(format!("the line has more than {MAX_LINE} bytes")) };
            match read {
                Ok(Content::Flow(flow)) => {
                    self.report.flows += 1;
                    sink(*flow);
                }
                Ok(Content::Lost(count)) => self.report.lost = self.report.lost.saturating_add(count),
                Ok(Content::Other) => self.report.others += 1,
                Err(problem) => {
                    self.report.malformed += 1;
                    if self.report.bad.len() < SHOWN {
                        self.report.bad.push(Bad { file: self.name.clone(), line: number, problem });
                    }
                }
            }
        }
    }

    /// Reads a line into the buffer, at most [`MAX_LINE`] bytes of it; the rest is passed over.
    fn next_line(&mut self) -> io::Result<Next> {
        self.line.clear();
        let mut any = false;
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            // One byte more than fits shows that the line is too long.
            let room = (MAX_LINE + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(match (any, self.line.len() > MAX_LINE) {
            (false, _) => Next::End,
            (true, true) => Next::TooLong,
            (true, false) => Next::Whole,
        })
    }
}

enum Next {
    End,
    Whole,
    TooLong,
}

enum Content {
    Flow(Box<Flow>),
    Lost(u64),
    Other,
}

fn read_line(line: &[u8]) -> Result<Content, String> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is no UTF-8 text".to_owned())?;
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(no_json)?;
    if let Some(lost) = envelope.lost_events {
        let lost: Lost = serde_json::from_str(lost.get()).map_err(|error| format!("lost_events: {error}"))?;
        return Ok(Content::Lost(count_of(&lost.num_events_lost)));
    }
    let flow = match envelope.flow {
        Some(raw) => raw.get(),
        None if envelope.node_status.is_some()
            || envelope.agent_event.is_some()
            || envelope.debug_event.is_some() =>
        {
            return Ok(Content::Other);
        }
        // `hubble observe -o json` of older versions prints the flow itself.
        None if text.contains("\"verdict\"") || text.contains("\"IP\"") => text,
        None => return Err("the object has no `flow` and is none itself".to_owned()),
    };
    let mut flow: Flow = serde_json::from_str(flow).map_err(|error| format!("flow: {error}"))?;
    if flow.node_name.is_empty() {
        flow.node_name = envelope.node_name.unwrap_or_default();
    }
    Ok(Content::Flow(Box::new(flow)))
}

fn no_json(error: serde_json::Error) -> String {
    format!("not an object of JSON: {error}")
}

/// A 64-bit number, which protobuf's JSON writes as a text.
fn count_of(value: &serde_json::Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}
