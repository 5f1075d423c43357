//! What can go wrong with policies in the store.

use thiserror::Error;
use villus_kvstore::StoreError;

/// Why policies of a cluster were not read or not changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClusterPolicyError {
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else was faster.
    #[error("{object} was changed by somebody else meanwhile; look at it again, then repeat the command")]
    Changed {
        /// The object.
        object: String,
    },
    /// It was never applied.
    #[error("the cluster has no {what}; see `villus policy status` for those it has")]
    Unknown {
        /// What was asked for.
        what: String,
    },
    /// The version is not kept.
    #[error("{object} has no version {version} to go back to; see `villus policy history`")]
    NoVersion {
        /// The object.
        object: String,
        /// The version.
        version: u64,
    },
    /// Another node has a later one.
    #[error(
        "{object}: {node} has version {version} in force, which is later; repeat the command there first"
    )]
    Later {
        /// The object.
        object: String,
        /// The node.
        node: String,
        /// The version.
        version: u64,
    },
    /// Several objects have the name.
    #[error("several objects are called {name}: {all}; name one as KIND/NAMESPACE/NAME")]
    Ambiguous {
        /// The name.
        name: String,
        /// What is meant by it.
        all: String,
    },
    /// Larger than a store takes.
    #[error("{object} has {size} bytes; at most {most} can be stored; split it")]
    TooLarge {
        /// The object.
        object: String,
        /// Its size.
        size: usize,
        /// The most.
        most: usize,
    },
    /// An entry cannot be read.
    #[error("`{key}`: {reason}; apply the policy again, or delete the key with `villus kvstore delete`")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}
