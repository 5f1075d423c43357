//! KVStoreMesh: what other clusters' stores say about their nodes, addresses, identities and services, in this cluster's
//! store, so that agents read one store only and clusters fail alone.
//!
//! A [`Mesh`] follows a directory of remotes ([`remotes`]); for each it runs one mirror per kind of entry, which pulls from
//! the remote's store and pushes what has changed into the local one. Values are copied as they are. What is there
//! stays, whatever fails, until a remote's complete list lacks it or its configuration is gone for good; `docs/mesh.md`
//! has the picture. The crate refuses to know what agents do with the copies.
#![forbid(unsafe_code)]

mod cluster;
mod drain;
mod filter;
mod guard;
mod layout;
mod leases;
mod mesh;
mod mirror;
mod preview;
mod push;
mod record;
mod remote;
pub mod remotes;
mod serve;
mod status;
mod table;
mod text;
mod troubleshoot;

pub use cluster::{ClusterConfig, Own, Refused, config_key, is_name};
pub use filter::{Dropped, Filter, Judge, Nudge, Reason, Verdict};
pub use layout::{Kind, Layout, Odd, Space, UnknownLayout};
pub use mesh::{Mesh, OwnStore, Settings};
pub use preview::{Preview, PreviewKind};
pub use record::{RECORDS, Record};
pub use remote::Connect;
pub use serve::{file, http};
pub use status::{Board, ConfigStatus, MeshStatus, PrefixStatus, RemoteStatus, State, StoreStatus, metrics};
pub use troubleshoot::{Check, Findings, troubleshoot};

/// The lock of the replica that copies.
pub const LOCK: &str = "cilium/kvstoremesh-lock";
