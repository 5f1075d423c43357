//! The agent of a node: reads its configuration, keeps endpoints, identities and policies, makes the kernel's maps
//! say what they ask for, and serves the REST API.
//!
//! It wires the other rooms and knows how none of them works inside. All state is one `Node` behind one
//! lock; operations of the API and the tasks beside them (events, changes of the network, policy files,
//! reconciliation) take turns with it.

#![forbid(unsafe_code)]

mod agent;
mod api;
mod attach;
mod between;
mod cleanup;
mod cluster;
mod conditions;
mod emergency;
mod endpoint;
mod error;
mod host;
mod host_only;
mod identities;
mod kernel;
mod log;
mod masquerade;
mod names;
mod nat;
mod network;
mod node;
mod options;
mod policy;
mod reconcile;
mod run;
mod shutdown;
mod start;
mod state;
mod sweep;
mod tasks;
mod wake;

pub use cleanup::{CleanupReport, cleanup};
pub use error::AgentError;
pub use policy::settings as policy_settings;
pub use run::run;
pub use shutdown::signals;
