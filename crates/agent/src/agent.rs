//! The running agent: the node behind its lock, and the tasks around it.

use std::sync::{Arc, Mutex, PoisonError};

use villus_api::{ApiError, ApiResult};
use villus_flows::History;

use crate::identities::IdentityRoom;
use crate::node::Node;
use crate::wake::Wake;

/// How many events are kept.
const EVENTS: usize = 4096;

/// The running agent. Clones share it.
#[derive(Clone)]
pub(crate) struct Agent {
    node: Arc<Mutex<Node>>,
    pub identities: Arc<IdentityRoom>,
    pub history: Arc<History>,
    pub wake: Arc<Wake>,
}

impl Agent {
    /// Around a node.
    pub fn new(node: Node) -> Self {
        Self {
            identities: node.identities.clone(),
            wake: node.wake.clone(),
            history: Arc::new(History::new(EVENTS)),
            node: Arc::new(Mutex::new(node)),
        }
    }

    /// Does something with the node, on a thread that may block. It is done to its end even if nobody waits for it.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> ApiResult<T> {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || {
            // What a panic left is still the best that is known.
            work(&mut node.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.map_err(|error| ApiError::internal(format!("the operation broke off: {error}")))
    }
}
