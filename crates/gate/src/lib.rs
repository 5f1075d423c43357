//! The start gate: an agent starts once in a window, at a moment that chance picks.
//!
//! When many agents start together (a power cut, a bad roll-out, a store that comes back) the store and the API server
//! see two orders of magnitude more requests than ever else. The gate stands before the agent, not in it: it asks
//! [`rules::ask`] whether this node may start now, or how long it waits. [`window`] says over how long the starts of a
//! cluster are spread, [`size`] how large the cluster is, [`Gate`] keeps what a node remembers in one file.
//!
//! The rules know no clock, no disk and no agent; so `villus plan restart` runs the very same ones for ten thousand nodes.
#![forbid(unsafe_code)]

mod clock;
mod file;
pub mod rules;
pub mod size;
mod state;
pub mod window;

pub use clock::Moment;
pub use file::{Gate, GateError, Looked, TRACE};
pub use rules::{Reason, Verdict};
pub use state::{Bypass, Grant, State, Ticket, Timer};
