//! BGP through BIRD 2, which runs beside the agent and is not ours.
//!
//! [`Speaker`] renders the configuration that announces a node's pod ranges to its neighbours and imports nothing, or only the
//! default route. [`Control`] asks a running BIRD over its control socket; [`Status`] is what its sessions say.
//!
//! The crate refuses to know where ranges come from, and never changes what BIRD does.
#![forbid(unsafe_code)]

mod config;
mod control;
mod reply;
mod status;

pub use config::{ConfigError, Import, Neighbour, Speaker};
pub use control::{Control, ControlError};
pub use reply::{Line, Reply, ReplyError};
pub use status::{Channel, Session, Status};
