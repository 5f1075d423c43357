//! What a cluster will need, asked before it is built or changed.
//!
//! [`identities`] counts the identities that workloads have under a label filter, and says which labels make them many.
//! [`restart`] simulates agents that all come back at once, with the start gate and without it. [`kvstore`] replays the load of
//! a cluster against its store.
//!
//! The crate refuses to know agents: it reads dumps, and simulates with the rules that agents run.
#![forbid(unsafe_code)]

pub mod identities;
pub mod kvstore;
pub mod restart;
