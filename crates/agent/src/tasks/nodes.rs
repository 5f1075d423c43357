//! Nodes that come, change and go.

use std::time::Duration;

use crate::agent::Agent;

/// How long changes are gathered: a cluster that starts tells of many nodes one after the other.
const GATHER: Duration = Duration::from_millis(20);

/// Keeps what packets between nodes need up to date.
pub(super) async fn follow(agent: Agent) {
    let Ok(mut changes) = agent.with(|node| node.nodes.changes()).await else { return };
    loop {
        changes.changed().await;
        tokio::time::sleep(GATHER).await;
        changes.take();
        let followed = agent.with(|node| {
            if node.sources.complete {
                node.follow_nodes();
            }
        });
        if followed.await.is_err() {
            return;
        }
    }
}
