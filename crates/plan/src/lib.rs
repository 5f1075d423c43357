//! What a cluster will need, asked before it is built or changed.
//!
//! [`identities`] counts the identities that workloads have under a label filter, and says which labels make them many.
//!
//! The crate refuses to know agents: it reads dumps.
#![forbid(unsafe_code)]

pub mod identities;
