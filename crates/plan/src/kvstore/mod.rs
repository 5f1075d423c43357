//! The load of a cluster, replayed against its store before the machines are chosen.
//!
//! Everything is written below a prefix of its own and taken away again; what agents use is not touched.

mod estimate;
mod identities;
mod latency;
mod layout;
mod replay;
mod report;

pub(crate) use estimate::ENTRY;
pub use estimate::{Bound, Estimate, Measured, Shape, estimate};
pub use latency::Latency;
pub use replay::{Load, Outcome, PREFIX, ReplayError, replay};
pub use report::text;
