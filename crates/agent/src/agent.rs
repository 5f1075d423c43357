//! The running agent: the node behind its lock, and the tasks around it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use villus_api::{ApiError, ApiResult};
use villus_flows::{FlowEvent, History};

use crate::api::Limiters;
use crate::identities::IdentityRoom;
use crate::node::Node;
use crate::policy::Answers;
use crate::tasks::ExportCounts;
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
    pub limiters: Arc<Limiters>,
    pub exported: Arc<ExportCounts>,
    answers: Arc<Answers>,
}

impl Agent {
    /// Around a node.
    pub fn new(node: Node) -> Self {
        Self {
            identities: node.identities.clone(),
            wake: node.wake.clone(),
            limiters: Arc::new(Limiters::new(node.config.api.limits.clone())),
            history: Arc::new(History::new(EVENTS)),
            exported: Arc::default(),
            answers: node.answers.clone(),
            node: Arc::new(Mutex::new(node)),
        }
    }

    /// Does something with the node, on a thread that may block. It is done to its end even if nobody waits for it.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> ApiResult<T> {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut lock(&node)));
        done.await.map_err(|error| ApiError::internal(format!("the operation broke off: {error}")))
    }

    /// Does something with the node on this thread, which may block.
    pub fn locked<T>(&self, work: impl FnOnce(&mut Node) -> T) -> T {
        work(&mut lock(&self.node))
    }

    /// Names the policies behind verdicts and denials in events, as policies are now. The node is asked for what is not known.
    pub async fn name_policies(&self, mut events: Vec<FlowEvent>) -> Vec<FlowEvent> {
        if self.answers.name(&mut events) {
            return events;
        }
        if let Ok(node) = self.node.try_lock() {
            node.name_policies(&mut events);
            return events;
        }
        let unnamed = events.clone();
        let named = self.with(move |node| {
            node.name_policies(&mut events);
            events
        });
        named.await.unwrap_or(unnamed)
    }

    /// Attaches the programs of one endpoint the way that the options say, while others have their turn with the node. Says
    /// whether there was one and it is done.
    pub async fn settle_one(&self) -> bool {
        let node = self.node.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut locked = lock(&node);
            let Some(work) = locked.next_to_settle(Instant::now()) else { return false };
            // Taken before the node is let go of, so that who deletes the endpoint cannot come between.
            let busy = work.busy.lock().unwrap_or_else(PoisonError::into_inner);
            drop(locked);
            let result = work.attacher.attach_endpoint(work.ifindex);
            drop(busy);
            lock(&node).settled(work.id, result)
        });
        done.await.unwrap_or(false)
    }
}

fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    // What a panic left is still the best that is known.
    node.lock().unwrap_or_else(PoisonError::into_inner)
}
