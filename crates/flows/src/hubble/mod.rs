//! Flows as Hubble writes them: one JSON object a line, fields and enums by the names of its protocol
//! (`hubble` reference).
//!
//! [`write_line`] makes such a line of an event, [`FlowReader`] reads lines of Villus and of Hubble, of one node or of many, and
//! [`ExportFile`] keeps them on disk within bounds.

mod fields;
mod file;
mod flow;
mod read;
mod reason;

pub use fields::{Origin, Workload, Workloads, write_line, write_lost};
pub use file::{ExportFile, Limits};
pub use flow::{Flow, FlowEnd, L4, Verdict};
pub use read::{Bad, FlowReader, ReadReport, open_flows};
