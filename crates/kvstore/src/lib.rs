//! The store that a cluster's nodes share.
//!
//! One trait, [`Store`], shaped after etcd: keys are text, each transaction takes the next revision, a list
//! says at which revision it was true, and a watch goes on from any revision that is not compacted yet.
//! [`Memory`] is for tests and injects faults, [`Embedded`] is for one node and lives on disk, [`Etcd`] is a cluster
//! that many nodes share. What every
//! store can do is built on the trait: [`Follow`] lists and watches a prefix through every interruption ([`Pull`] in pieces),
//! [`Locks`] holds mutexes, [`Session`] keeps what a process owns alive, [`Together`] makes few requests of many
//! transactions, [`Guard`] lets no other cluster's etcd in.
//!
//! [`keys`], [`IpIdentityPair`] and [`NodeEntry`] are the layout that agents of Cilium and of Villus share. The crate refuses
//! to know what identities and addresses are good for.
#![forbid(unsafe_code)]

mod cluster;
mod disk;
mod embedded;
mod engine;
mod error;
mod etcd;
mod figures;
mod follow;
mod guard;
pub mod keys;
mod lock;
mod maybe;
mod memory;
mod model;
mod node;
mod pace;
mod pages;
mod pair;
mod pull;
mod session;
mod store;
mod together;
mod witness;

pub use cluster::{Capabilities, ClusterConfig};
pub use embedded::{Embedded, Opened};
pub use error::{OpenError, StoreError};
pub use etcd::{Etcd, EtcdOptions, EtcdTls, OptionsError};
pub use figures::{Durations, Figures, Operation};
pub use follow::{Batch, Follow, Item, Past};
pub use guard::Guard;
pub use lock::{Local, Lock, Locks};
pub use memory::{Backup, Fault, Memory, Verb};
pub use model::{
    Answer, Compare, Entry, Event, Header, LeaseId, LeasePurpose, Listing, MAX_TXN_BYTES, MAX_TXN_OPS, Op,
    Page, Status, Txn, TxnOutcome, WatchBatch,
};
pub use node::{AddressKind, NodeAddress, NodeEntry, NodeError, split_key as split_node_key};
pub use pace::{ClusterSize, Pace};
pub use pages::{LARGEST_PAGE, Pages};
pub use pair::{IpIdentityPair, NamedPort, PairError};
pub use pull::{Pull, Pulled, Relisted};
pub use session::{Room, Session};
pub use store::{PAGE, Store, Watch};
pub use together::Together;
pub use witness::Witness;
