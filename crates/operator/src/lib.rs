//! What one process does for a whole cluster.
//!
//! Any number of operators may run; they elect one ([`Election`]), which writes the store's heartbeat and deletes
//! identities that nobody uses ([`villus_identity::Gc`]). When it dies another takes over. Nothing that the datapath
//! needs depends on an operator: without one, unused identities stay, and that is all.
//!
//! External resources ([`villus_external`]) are said to any of them, by other systems with a certificate, and kept in order by
//! the one that leads.
//!
//! The crate refuses to know what identities are good for, and never touches those of another cluster.
#![forbid(unsafe_code)]

mod collect;
mod election;
mod external;
mod operator;
mod proof;
mod serve;
mod tls;

pub use election::{Election, Term};
pub use external::MAX_BODY;
pub use operator::{HEARTBEAT, Operator, OperatorConfig};
pub use serve::{Door, ServeError, Served, serve};
pub use tls::{TlsError, TlsFiles};

/// RFC 3339, UTC, whole seconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
