//! Entries, transactions and events, as every store knows them.

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// The most operations a transaction may hold on one branch (etcd's default).
pub const MAX_TXN_OPS: usize = 128;
/// The most bytes of keys and values a transaction may hold (etcd's default).
pub const MAX_TXN_BYTES: usize = 1536 * 1024;

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// Revision at which the key was created.
    pub create_revision: u64,
    /// Revision of the last write.
    pub mod_revision: u64,
    /// Writes since the key was created, from 1.
    pub version: u64,
    /// The lease with which the key goes.
    pub lease: Option<LeaseId>,
}

// === impl Entry ===

impl Entry {
    /// The value as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }
}

/// A lease of the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    /// Sixteen hexadecimal digits, as `etcdctl` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeasePurpose {
    /// Entries that tell others about this node.
    Entries,
    /// Locks: they need not outlive the store's process.
    Locks,
}

/// Which store answered, and at which revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tells one store from another; a store that is wiped and restored keeps it.
    pub cluster: u64,
    /// The store's revision.
    pub revision: u64,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// Entries in the order of their keys.
    pub entries: Vec<Entry>,
    /// There are more behind the last key.
    pub more: bool,
    /// Who answered.
    pub header: Header,
}

/// A complete list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Entries in the order of their keys, all as of `header.revision`.
    pub entries: Vec<Entry>,
    /// Who answered.
    pub header: Header,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key is not there.
    Absent(String),
    /// The key is there.
    Present(String),
    /// The key was last written at this revision.
    ModRevision(String, u64),
    /// The key was created at this revision and is still there.
    CreateRevision(String, u64),
    /// The key has this value.
    Value(String, Bytes),
    /// No key begins so.
    NoneBelow(String),
}

// === impl Compare ===

impl Compare {
    /// The key that it looks at, or what the keys begin with.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key)
            | Self::Present(key)
            | Self::ModRevision(key, _)
            | Self::CreateRevision(key, _)
            | Self::Value(key, _)
            | Self::NoneBelow(key) => key,
        }
    }
}

/// An operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads a key.
    Get(String),
    /// Reads the first keys that begin so, `limit` at most.
    List {
        /// What they begin with.
        prefix: String,
        /// How many, from 1.
        limit: usize,
    },
    /// Writes a key. Without a lease a key loses the one it had.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease with which it goes.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; that it is not there is fine.
    Delete(String),
    /// Deletes all keys that begin so.
    DeletePrefix(String),
}

/// If all conditions hold, `then` is carried out, otherwise `otherwise`; in either case all of it, at one
/// revision. A key may be written once only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// Operations if all hold.
    pub then: Vec<Op>,
    /// Operations if one does not.
    pub otherwise: Vec<Op>,
}

// === impl Txn ===

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compare.push(compare);
        self
    }

    /// Adds an operation for the case that all conditions hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation for the case that a condition does not hold.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }
}

// === impl Op ===

impl Op {
    /// Writes a key.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, lease: Option<LeaseId>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease }
    }
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all conditions held.
    pub held: bool,
    /// Revision after the transaction.
    pub revision: u64,
    /// One answer for each operation that was carried out, in their order.
    pub answers: Vec<Answer>,
}

/// What an operation of a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was read.
    Got(Option<Entry>),
    /// What was listed.
    Listed {
        /// Entries in the order of their keys.
        entries: Vec<Entry>,
        /// There are more behind the last key.
        more: bool,
    },
    /// It was written.
    Put,
    /// So many keys were deleted.
    Deleted(u64),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put(Arc<Entry>),
    /// The key was deleted, or went with its lease.
    Delete {
        /// The key.
        key: Arc<str>,
        /// Revision of the deletion.
        revision: u64,
        /// Whether the key was under a lease, where the store says so.
        leased: Option<bool>,
    },
}

// === impl Event ===

impl Event {
    /// The key.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Everything that one transaction did below the watched prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The transaction's revision.
    pub revision: u64,
    /// Its changes, never empty.
    pub events: Vec<Event>,
}

/// How the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// One line for `status`.
    pub text: String,
    /// Whether it answers and can write.
    pub healthy: bool,
    /// Who answered last.
    pub header: Header,
}
