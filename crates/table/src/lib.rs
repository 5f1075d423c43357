//! Versioned tables, their change feeds, and reconcilers.
//!
//! Control state lives in a [`Table`]: sources write rows in [`Write`] transactions, readers take
//! [`Snapshot`]s that cost nothing, and each consumer asks its own [`Changes`] feed what happened since it
//! last looked. A [`Reconciler`] is such a consumer that makes a [`Target`] (a kernel map, a part of the
//! kvstore) equal to the table: incrementally on change, completely from time to time, with backoff on
//! failure and a status for each row.
//!
//! The crate refuses to know what rows mean, and it keeps nothing on disk: after a restart a table is empty
//! and fills up again. [`Table::source`] says when it is full, and until then nothing is pruned anywhere.
#![forbid(unsafe_code)]

mod backoff;
mod changes;
mod drive;
mod reconcile;
mod row;
mod state;
mod status;
mod table;

pub use backoff::{Backoff, InvalidBackoff};
pub use changes::{Change, Changes, Kind};
pub use drive::Stop;
pub use reconcile::{Config, Counters, FullTrigger, InvalidConfig, Op, Pruned, Reconciler, Step, Target};
pub use row::Row;
pub use status::{RowState, RowStatus, Statuses};
pub use table::{Revision, Snapshot, Source, Table, Write};
