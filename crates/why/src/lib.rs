//! What would happen to a packet, and why: the packet path itself, run over a world in memory.
//!
//! The world is a snapshot of the kernel's maps, or what an agent wants them to be; this crate does not care
//! which. It decides nothing of its own: it builds the first packet of a flow, takes it through the hooks that it would
//! meet, and puts into words what the path looked up and answered.
#![forbid(unsafe_code)]

mod judgement;
mod leaving;
mod question;
mod reply;
mod run;
mod words;

pub use judgement::{Judgement, Lookup};
pub use leaving::{Leaving, Masquerader, Rule};
pub use question::{Derivation, Error, Kind, Party, Question, Side};
pub use reply::MASQUERADE;
pub use run::{Explanation, Fate, Flow, Hook, Pass, why};
pub use words::Names;
