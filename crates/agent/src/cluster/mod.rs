//! This node in its cluster: the store that nodes share, what it says of others, what this node says of itself there, and
//! what of all that is on disk for a start without it.

mod calendar;
mod feed;
mod forget;
mod freeze;
mod health;
pub(crate) mod keep;
mod learned;
pub(crate) mod mesh;
mod metrics;
mod own;
mod owners;
mod reader;
mod settle;
mod shared;
mod snapshot;
pub(crate) mod tasks;

pub(crate) use calendar::Calendar;
pub(crate) use feed::Feed;
pub(crate) use forget::forget;
pub(crate) use freeze::Freeze;
pub(crate) use learned::Learned;
pub(crate) use mesh::ClusterMesh;
pub(crate) use shared::SharedStore;
pub(crate) use snapshot::Snapshot;
