//! The part of a configuration that is about the store that nodes share.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::reader::Reader;

/// The store that nodes share.
#[derive(Clone, PartialEq, Debug)]
pub struct Kvstore {
    /// `kvstore` is etcd; else this node has a store of its own.
    pub etcd: bool,
    /// `kvstore-opt`, as it was given.
    pub options: BTreeMap<String, String>,
    /// `kvstore-address-space` is `cluster`.
    pub space_of_cluster: bool,
    /// `kvstore-lease-ttl`.
    pub lease_ttl: Duration,
    /// `kvstore-max-consecutive-quorum-errors`.
    pub quorum_errors: u32,
    /// `identity-allocation-sync-interval`.
    pub sync_interval: Duration,
    /// `identity-allocation-timeout`.
    pub allocation_timeout: Duration,
    /// `allocator-list-timeout`; `None` never raises an alarm.
    pub list_timeout: Option<Duration>,
    /// `stale-grace`.
    pub stale_grace: Duration,
    /// `clustermesh-config`.
    pub mesh: Option<PathBuf>,
    /// `clustermesh-removal-grace`.
    pub mesh_grace: Duration,
}

impl Kvstore {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            etcd: r.text("kvstore") == "etcd",
            options: r.map("kvstore-opt"),
            space_of_cluster: r.text("kvstore-address-space") == "cluster",
            lease_ttl: r.duration("kvstore-lease-ttl"),
            quorum_errors: r.u32("kvstore-max-consecutive-quorum-errors"),
            sync_interval: r.duration("identity-allocation-sync-interval"),
            allocation_timeout: r.duration("identity-allocation-timeout"),
            list_timeout: r.duration_unless_zero("allocator-list-timeout"),
            stale_grace: r.duration("stale-grace"),
            mesh: r.path_unless_empty("clustermesh-config"),
            mesh_grace: r.duration("clustermesh-removal-grace"),
        }
    }
}
