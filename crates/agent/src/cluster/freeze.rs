//! An agent that stands still: what others say is not applied until it is thawed.

use std::sync::Arc;

use tokio::sync::watch;
use villus_api::model::FreezeRequest;
use villus_api::{ApiError, ApiResult};

use crate::node::Node;

const CONDITION: &str = "frozen";

/// Whether the agent stands still, and why; an empty text if no reason was given. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Freeze(Arc<watch::Sender<Option<String>>>);

impl Default for Freeze {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Freeze {
    pub fn is_frozen(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Why, if it does.
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Waits until it does not stand still.
    pub async fn thawed(&self) {
        let mut frozen = self.0.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = frozen.wait_for(Option::is_none).await;
    }
}

impl Node {
    /// From now on nothing that others say is applied: policies, identities, addresses, nodes. Endpoints of this node come
    /// and go all the same.
    pub fn freeze(&mut self, request: &FreezeRequest) {
        self.freeze.0.send_replace(Some(request.reason.clone()));
        self.identities.allocator.hold(true);
        let reason = match request.reason.as_str() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        self.conditions.note(
            CONDITION,
            Some(format!(
                "by an operator{reason}: policies, identities, addresses and nodes stay as they are until `villus thaw`"
            )),
        );
        // Whoever follows the store waits from now on.
        self.report_cluster_policies();
    }

    /// What was missed is made up.
    pub fn thaw(&mut self) {
        self.freeze.0.send_replace(None);
        self.identities.allocator.hold(false);
        self.conditions.note(CONDITION, None);
        self.report_cluster_policies();
    }

    /// Refuses a change of policy or of labels while the agent stands still.
    ///
    /// # Errors
    /// It does.
    pub fn must_not_be_frozen(&self) -> ApiResult<()> {
        match self.freeze.is_frozen() {
            false => Ok(()),
            true => {
                Err(ApiError::conflict("the agent is frozen: nothing is changed")
                    .hint("`villus thaw` ends that"))
            }
        }
    }
}
