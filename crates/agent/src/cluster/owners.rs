//! Asks the store whether nodes are there whose addresses were deleted before the feed of nodes has told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_identity::{Heard, Layer};
use villus_kvstore::{Answer, Op, Store, Txn, TxnOutcome};

use super::SharedStore;
use crate::agent::Agent;
use crate::node::Node;

/// How long word of an owner is waited for before it is asked for, and between two questions.
const WAIT: Duration = Duration::from_millis(100);
const NEXT: Duration = Duration::from_secs(1);
/// So many nodes are asked for at once.
const MOST: usize = 100;

/// Asks when there is need. Whose answer does not come is asked for again; meanwhile its addresses count.
pub(super) async fn ask(agent: Agent, shared: Arc<SharedStore>, store: Arc<dyn Store>, layer: Layer) {
    let mut doubts = agent.wake.doubts.subscribe();
    let mut chance = fastrand::Rng::new();
    let (mut wait, mut failures) = (WAIT, 0);
    loop {
        tokio::time::sleep(wait).await;
        let Ok(owners) = agent.with(move |node| node.doubted_owners(layer)).await else { return };
        if owners.is_empty() {
            (wait, failures) = (WAIT, 0);
            if doubts.changed().await.is_err() {
                return;
            }
            continue;
        }
        let get = |txn: Txn, key: &Arc<str>| txn.then(Op::Get(key.to_string()));
        match store.txn(owners.iter().fold(Txn::new(), get)).await {
            Ok(outcome) => {
                (wait, failures) = (NEXT, 0);
                if agent.with(move |node| node.settle_owners(layer, owners, outcome)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                failures += 1;
                wait = shared.pace.delay(failures, &mut chance).max(NEXT);
                tracing::debug!(%error, ?wait, "owners of addresses that were deleted can't be asked for");
            }
        }
    }
}

impl Node {
    /// The nodes of a layer have been heard so far. Returns when there is more to do, if that is soon.
    pub fn hear_nodes(&mut self, layer: Layer, heard: Heard) -> Option<Instant> {
        if let Some(remote) = &mut self.remote {
            remote.hear_nodes(layer, heard, Instant::now());
        }
        self.tick_cluster()
    }

    fn doubted_owners(&self, layer: Layer) -> Vec<Arc<str>> {
        let remote = self.remote.as_ref().filter(|_| !self.freeze.is_frozen());
        remote.into_iter().flat_map(|remote| remote.doubted_owners(layer, MOST)).collect()
    }

    fn settle_owners(&mut self, layer: Layer, owners: Vec<Arc<str>>, outcome: TxnOutcome) {
        let Some(remote) = self.remote.as_mut().filter(|_| !self.freeze.is_frozen()) else { return };
        let found = owners.into_iter().zip(outcome.answers).filter_map(|(key, answer)| match answer {
            Answer::Got(entry) => Some((key, entry.map(|entry| entry.create_revision))),
            Answer::Listed { .. } | Answer::Put | Answer::Deleted(_) => None,
        });
        remote.settle_owners(layer, &found.collect(), outcome.revision, Instant::now());
        self.carry_remote();
        self.note_silent();
    }
}
