//! Why something was not done.

use thiserror::Error;
use villus_identity::AllocateError;
use villus_kvstore::StoreError;
use villus_labels::{FilterError, IdentityError, LabelError};

use crate::problem::Problems;

/// Why nothing at all was done.
#[derive(Debug, Error)]
pub enum ExternalError {
    /// What was asked for can't be.
    #[error(transparent)]
    Bad(#[from] Problems),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not this cluster's store.
    #[error("{0}; mend `kvstore-opt`, `cluster-name`, `cluster-id` or `max-connected-clusters`")]
    OtherCluster(String),
    /// The filter of labels is none.
    #[error("labels: {0}; write them as the agents have them")]
    Filter(#[from] FilterError),
    /// The cluster's name can't be a label.
    #[error("cluster-name: {0}; write it as the agents have it")]
    Name(#[from] LabelError),
    /// The cluster's id is none.
    #[error("cluster-id: {0}; write it as the agents have it")]
    Id(#[from] IdentityError),
    /// An entry can't be read.
    #[error("`{key}`: {reason}; write the resource again, or delete the key with `villus kvstore delete`")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why one resource was not written.
#[derive(Clone, Debug, Error)]
pub enum Refusal {
    /// One of its addresses is somebody else's.
    #[error(
        "{address} belongs to {owner}; give the resource an address of its own, or delete that owner first"
    )]
    Taken {
        /// The address.
        address: std::net::IpAddr,
        /// Whose it is.
        owner: String,
    },
    /// Others kept changing it.
    #[error("it is being changed by somebody else; look at it, then say it again")]
    Contended,
    /// There is no number for its labels.
    #[error("its labels get no identity: {0}; say it again when that is mended")]
    Identity(String),
    /// The store did not answer. It may have been written.
    #[error("{0}; whether it was written is not known, say it again")]
    Store(StoreError),
}

impl From<AllocateError> for Refusal {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Store { last, .. } => Self::Store(last),
            other => Self::Identity(other.to_string()),
        }
    }
}
