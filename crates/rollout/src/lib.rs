//! What observed flows say about policies.
//!
//! [`Observations`] add flows of any number of files and nodes up: who opened flows to whom, on which port, how often,
//! and what became of them. [`learn()`] drafts the least policy that lets them pass; [`preview()`] tells what a change of policies
//! would do to them and to policy maps.
//!
//! The crate refuses to know where flows and policies come from, and changes nothing anywhere.
#![forbid(unsafe_code)]

mod learn;
mod objects;
mod observe;
mod preview;
mod select;
mod side;
mod yaml;

pub use learn::{Choice, Draft, LearnError, Skipped, World, learn};
pub use objects::Objects;
pub use observe::{Count, Observation, Observations, Peer, Seen, Unused};
pub use preview::{
    EndpointChange, Entry, FlowChange, Outcome, Plan, PolicyStep, Preview, Step, Subject, preview,
    subjects_of,
};
pub use select::PeerKeys;
pub use side::{Numbers, Side};
