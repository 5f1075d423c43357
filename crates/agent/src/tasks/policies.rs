//! The directory of policies, and identities that come and go.

use std::time::Duration;

use crate::agent::Agent;
use crate::policy::Watcher;

/// How long changes of files are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// Without any sign the directory is read again after this, for file systems that give none.
const ANYWAY: Duration = Duration::from_secs(30);
/// How often numbers that no node uses are looked for, and how many go at once.
const COLLECT: Duration = Duration::from_secs(900);
const COLLECT_MOST: u64 = 1000;
/// Between two tries to read a source that is not there.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the directory's policies in force.
pub(super) async fn watch(agent: Agent) {
    let Ok(directory) = agent.with(|node| node.sources.directory.clone()).await else { return };
    let mut watcher = None;
    loop {
        if let (None, Some(directory)) = (&watcher, &directory) {
            watcher = Watcher::new(directory).ok();
        }
        let complete = agent.with(scan).await.unwrap_or(false);
        let wait = if complete { ANYWAY } else { AGAIN };
        match &watcher {
            Some(sign) if complete => {
                if let Ok(Err(_)) = tokio::time::timeout(wait, sign.changed()).await {
                    watcher = None;
                }
                tokio::time::sleep(GATHER).await;
            }
            _ if directory.is_none() && complete => return,
            _ => tokio::time::sleep(if directory.is_none() { AGAIN } else { wait.min(AGAIN) }).await,
        }
        // A directory that was replaced by another of its name gives no signs under its old watch.
        if let Some(directory) = &directory
            && !directory.is_dir()
        {
            watcher = None;
        }
    }
}

/// Reads the directory; when every source was read for the first time, first packets may pass.
fn scan(node: &mut crate::node::Node) -> bool {
    if node.sources.complete {
        let result = node.scan_directory();
        node.conditions.note("sources of policy", result.err());
        return true;
    }
    let result = node.read_sources().and_then(|()| node.go().map_err(|error| error.to_string()));
    let complete = result.is_ok();
    node.conditions.note("sources of policy", result.err());
    complete
}

/// Takes identities of the store into the policy maps.
pub(super) async fn follow_identities(agent: Agent) {
    let mut feed = agent.identities.table.changes();
    loop {
        feed.changed().await;
        feed.take();
        if agent.with(|node| node.follow_identities()).await.is_err() {
            return;
        }
    }
}

/// Forgets numbers that no node uses any more.
pub(super) async fn collect_identities(agent: Agent) {
    let Some(garbage) = &agent.identities.garbage else { return };
    loop {
        tokio::time::sleep(COLLECT).await;
        let result = garbage.lock().await.pass(COLLECT_MOST).await;
        let problem = result.err().map(|error| error.to_string());
        let noted = agent.with(move |node| node.conditions.note("collection of identities", problem)).await;
        if noted.is_err() {
            return;
        }
    }
}
