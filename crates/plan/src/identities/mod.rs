//! How many identities the workloads of a cluster need under a label filter.

mod columns;
mod count;
mod dump;
mod report;

pub use count::{Advice, Cost, Count, count};
pub use dump::{Dump, DumpError, Skipped, Workload};
pub use report::text;
