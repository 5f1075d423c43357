//! Who is to look again, and why.

use tokio::sync::{Notify, watch};

/// Bells between operations and the tasks behind them.
#[derive(Debug)]
pub(crate) struct Wake {
    /// Flows are to be judged again.
    pub rejudge: Notify,
    /// Empty policy maps are to be made for endpoints to come.
    pub prepare: Notify,
    /// What this node has changed, and the store is to say so.
    pub publish: Notify,
    /// The node's links, addresses or routes have changed: what goes past the stack is to be found anew.
    pub wrapping: Notify,
    /// Compare everything soon.
    pub reconcile: Notify,
    /// The table of masquerading, and connections that it has to do with, are to be looked at.
    pub masquerade: Notify,
    /// Rung while addresses were deleted and it is not known whether their nodes were there.
    pub doubts: watch::Sender<()>,
    /// What is kept of the cluster's policies could not be written.
    pub keep: Notify,
    /// Counts up whenever a policy was realised.
    pub realized: watch::Sender<u64>,
}

impl Wake {
    /// Nobody is called yet.
    pub fn new() -> Self {
        Self {
            rejudge: Notify::new(),
            prepare: Notify::new(),
            publish: Notify::new(),
            wrapping: Notify::new(),
            reconcile: Notify::new(),
            masquerade: Notify::new(),
            doubts: watch::Sender::new(()),
            keep: Notify::new(),
            realized: watch::Sender::new(0),
        }
    }
}
