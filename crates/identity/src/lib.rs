//! Which number stands for a set of labels, which number an address has, and which address a workload gets.
//!
//! [`Allocator`] agrees with all nodes of the cluster on global identities through the store;
//! [`LocalIdentities`] numbers prefixes and other nodes for this node alone; both write what they know into one table
//! ([`Identities`]) that policy reads. [`Ipcache`] collects what the sources say about addresses and keeps
//! the table of winners that becomes the kernel's map. [`Nodes`] is the table of all nodes. [`Remote`] brings into
//! both what the store says of others, [`Publisher`] says there what this node has. [`AddressPool`] hands out
//! addresses of this node's prefixes. [`check_entry`] says what an entry of the shared store means before somebody writes
//! it by hand. The crate refuses to know what a policy does with an identity, and how the kernel is told.
#![forbid(unsafe_code)]

mod allocator;
mod clusters;
mod entry;
mod error;
mod forget;
mod gc;
mod identities;
mod ipcache;
mod leased;
mod local;
mod nodes;
mod pool;
mod publish;
mod remote;
mod reserved;

pub use allocator::{Allocator, AllocatorConfig, KnownIdentities, OpenIdentity, Usage, master_key, use_key};
pub use clusters::Clusters;
pub use entry::{EntryError, MAX_VALUE, Meaning, beside, check_entry, users};
pub use error::{AllocateError, LocalError, PoolError};
pub use forget::{end_keys, leased_keys, uses_of};
pub use gc::{Gc, GcReport};
pub use identities::{Identities, new_identities};
pub use ipcache::{Claim, Edit, Ipcache, Mapping, Rank, from_kernel, to_kernel};
pub use leased::Leased;
pub use local::{Checkpoint, LocalIdentities, NodeIdentities, Numbered};
pub use nodes::{Node, NodeName, Nodes, new_nodes};
pub use pool::{AddressPool, Family, PoolState, PoolUsage, PrefixPool, Standing};
pub use publish::{Published, Publisher, PublisherConfig};
pub use remote::{
    AddressRecord, Heard, Layer, Ownership, RecordChange, Refused, Remote, RemoteConfig, RemoteCounts,
    RemoteRecord, Surroundings, read_row,
};
pub use reserved::{Reserved, ReservedError};
