//! A client that blocks, for the command line and other small programs.

mod connection;
mod error;
mod monitor;
mod operations;

pub use connection::Client;
pub use error::ClientError;
pub use monitor::Monitor;
