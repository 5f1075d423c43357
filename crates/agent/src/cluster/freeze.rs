//! An agent that stands still: what others say is not applied until it is thawed, over restarts too.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use tokio::sync::watch;
use villus_api::model::FreezeRequest;
use villus_api::{ApiError, ApiResult};

use crate::node::Node;
use crate::state::timestamp;

const CONDITION: &str = "frozen";
/// Below `lib-dir`, there while the agent stands still.
const FILE: &str = "frozen.json";

/// As it is on disk.
#[derive(Serialize, Deserialize)]
struct Frozen {
    reason: String,
    since: String,
}

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
    ///
    /// # Errors
    /// The agent stands still, and that cannot be written down for one that is started after it.
    pub fn freeze(&mut self, request: &FreezeRequest) -> ApiResult<()> {
        self.stand_still(&request.reason);
        // Whoever follows the store waits from now on.
        self.report_cluster_policies();
        let frozen = Frozen { reason: request.reason.clone(), since: timestamp() };
        self.state.save(FILE, &frozen).map_err(|error| {
            let path = self.state.path(FILE);
            ApiError::unavailable(format!(
                "the agent is frozen, but {} cannot be written: {error}; a restart would thaw it",
                path.display()
            ))
            .hint("make room, then say it again")
        })
    }

    /// Stands still from the start, if the agent before did until its end. That the file is there says enough, whatever is
    /// in it.
    pub fn freeze_as_before(&mut self) {
        let path = self.state.path(FILE);
        let reason = match self.state.load::<Frozen>(FILE) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(Frozen { reason, since }))) if reason.is_empty() => format!("since {since}"),
            Ok(Ok(Some(Frozen { reason, since }))) => format!("{reason}; since {since}"),
            Ok(Err(damaged)) => {
                let reason = format!("why is not known: it lies in {}", damaged.kept.display());
                let again = Frozen { reason: reason.clone(), since: timestamp() };
                if let Err(error) = self.state.save(FILE, &again) {
                    tracing::warn!(%error, path = %path.display(), "the next start will not know that it is frozen");
                }
                reason
            }
            Err(error) => format!("why is not known: {}: {error}", path.display()),
        };
        self.stand_still(&reason);
    }

    fn stand_still(&mut self, reason: &str) {
        self.freeze.0.send_replace(Some(reason.to_owned()));
        self.identities.allocator.hold(true);
        let reason = match reason {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        self.conditions.note(
            CONDITION,
            Some(format!(
                "by an operator{reason}: policies, identities, addresses and nodes stay as they are until `villus thaw`"
            )),
        );
    }

    /// What was missed is made up.
    ///
    /// # Errors
    /// That it was frozen cannot be taken from the disk; it stays so.
    pub fn thaw(&mut self) -> ApiResult<()> {
        let path = self.state.path(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let said = format!("{} cannot be removed: {error}; the agent stays frozen", path.display());
                return Err(ApiError::unavailable(said).hint("mend that, then say it again"));
            }
            _ => {}
        }
        self.freeze.0.send_replace(None);
        self.identities.allocator.hold(false);
        self.conditions.note(CONDITION, None);
        self.report_cluster_policies();
        Ok(())
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
