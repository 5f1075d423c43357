//! What a mesh does, over stores in memory that fail on request, and over real etcds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod copying;
mod election;
mod etcd;
mod failures;
mod filters;
mod hostile;
mod layouts;
mod previews;
mod random;
mod troubleshooting;
mod world;
