//! The agent's REST API on a unix socket, base path `/v1`.
//!
//! [`model`] holds the bodies, with Cilium's field names where Cilium has them (`agent` reference 5.2); what
//! is ours lives below `/v1/villus` or is named in the model. [`server`] turns a [`server::Backend`] into
//! routes and serves them; [`client`] asks from outside and blocks.
//!
//! The crate refuses to know how anything is done: the agent implements the backend.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
mod endpoint_ref;
mod error;
pub mod model;
mod rows;
#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "client")]
pub use client::{Client, ClientError};
pub use endpoint_ref::{EndpointRef, EndpointRefError};
pub use error::{ApiError, ApiResult};
#[cfg(feature = "server")]
pub use server::{Backend, Socket, SocketOptions, router, serve};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/villus/villus.sock";
/// Environment variable that names another socket.
pub const SOCKET_ENV: &str = "VILLUS_SOCK";
