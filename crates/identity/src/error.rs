//! What can go wrong, for each part of the crate.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use thiserror::Error;
use villus_kvstore::StoreError;

/// Why no identity could be allocated.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AllocateError {
    /// Nothing to tell this workload from others.
    #[error("there is no identity-relevant label; give the workload one, or widen `labels`")]
    NoLabels,
    /// All numbers of the cluster are taken.
    #[error(
        "the identities of cluster {cluster} are used up ({used} of {total}); narrow `labels` so that fewer label sets differ, and wait for the garbage collection of unused ones"
    )]
    Exhausted {
        /// The cluster's id.
        cluster: u32,
        /// Numbers taken.
        used: u64,
        /// Numbers there are.
        total: u64,
    },
    /// The store did not answer in time.
    #[error("no identity for `{labels}` after {attempts} attempts: {last}")]
    Store {
        /// The label string.
        labels: String,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong last.
        last: StoreError,
    },
    /// The whole time allowed for an allocation passed.
    #[error("no identity for `{labels}` within {limit:?}; the store is slow or gone, see `status`")]
    Timeout {
        /// The label string.
        labels: String,
        /// The time allowed.
        limit: Duration,
    },
}

// === impl AllocateError ===

impl AllocateError {
    /// Whether other label sets fare no better: the store is not there, or takes nothing.
    pub fn is_of_whole_store(&self) -> bool {
        matches!(self, Self::Store { last, .. } if last.is_of_whole_store())
    }
}

/// Why a prefix or a node got no identity of this node.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LocalError {
    /// All numbers are taken.
    #[error("the identities of this node are used up ({used}); `{of}` gets none: {why}")]
    Exhausted {
        /// What got none.
        of: String,
        /// Numbers taken.
        used: usize,
        /// What to look for.
        why: &'static str,
    },
}

/// Why an address was not handed out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// Every address is taken.
    #[error(
        "pool {prefix} is used up: {in_use} addresses in use, {resting} resting, {reserved} reserved, of {total}; delete endpoints or give the node a wider `{option}`"
    )]
    UsedUp {
        /// The pool's prefix.
        prefix: IpNet,
        /// Handed out.
        in_use: u128,
        /// Released a moment ago.
        resting: u128,
        /// Never handed out.
        reserved: u128,
        /// All addresses of the prefix.
        total: u128,
        /// The option that widens it.
        option: &'static str,
    },
    /// The address is of another prefix.
    #[error("address {address} is not in the node's pool {prefix}")]
    OutOfRange {
        /// The address.
        address: IpAddr,
        /// The pool's prefix.
        prefix: IpNet,
    },
    /// The address is not for workloads.
    #[error("address {address} is reserved: {why}")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// What it is.
        why: String,
    },
    /// Somebody has it.
    #[error("address {address} is in use by `{owner}`")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// Somebody had it a moment ago.
    #[error("address {address} was released a moment ago and rests for another {left:?}")]
    Resting {
        /// The address.
        address: IpAddr,
        /// How long still.
        left: Duration,
    },
    /// There is no pool of this family.
    #[error("there is no pool of {family} addresses; set `{option}`")]
    NoPool {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The option that makes one.
        option: &'static str,
    },
    /// The prefix can't hold a pool.
    #[error("`{option}` {prefix}: {reason}")]
    BadPrefix {
        /// The option.
        option: &'static str,
        /// The prefix.
        prefix: IpNet,
        /// What is wrong with it.
        reason: &'static str,
    },
}
