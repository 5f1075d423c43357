//! The agent's side: the operations, their routes and the socket.

mod backend;
mod extract;
mod monitor;
mod routes;
mod socket;

pub use backend::Backend;
pub use routes::router;
pub use socket::{Socket, SocketError, SocketOptions, serve};

/// Largest body of a request, bytes.
pub const MAX_BODY: usize = 8 << 20;
/// Requests that may be under way at once; one more is answered with 429.
pub const MAX_REQUESTS: usize = 512;
/// Streams and waits that may be under way at once; one more is answered with 429.
pub const MAX_STREAMS: usize = 32;
