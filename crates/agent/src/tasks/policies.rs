//! The directory of policies, those of the cluster, and identities that come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_cluster_policy::Policies;
use villus_kvstore::{Follow, Past};
use villus_table::Backoff;

use crate::agent::Agent;
use crate::cluster::SharedStore;
use crate::policy::{Seen, Watcher};

/// How long changes of files are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// Without any sign the directory is read again after this, for file systems that give none.
const ANYWAY: Duration = Duration::from_secs(30);
/// How often numbers that no node uses are looked for, and how many go at once.
const COLLECT: Duration = Duration::from_secs(900);
const COLLECT_MOST: u64 = 1000;
/// Within this time, in a cluster of one node, the store is told what was realised.
const REPORT: Duration = Duration::from_millis(100);
/// Between two tries to write what is kept, at first and at most.
const KEEP: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
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
        let read = agent.with(|node| (scan(node), node.sources.halves.is_empty())).await;
        let (complete, whole) = read.unwrap_or((false, true));
        let wait = if complete && whole { ANYWAY } else { AGAIN };
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
    if node.sources.complete && node.freeze.is_frozen() {
        return true;
    }
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

/// Keeps the cluster's policies in force, and tells the store how far they are realised.
pub(super) async fn follow_cluster(agent: Agent, shared: Arc<SharedStore>) {
    let begun =
        agent.with(|node| (node.cluster.clone(), node.freeze.clone(), node.cluster_policies_seen())).await;
    let Ok((cluster, freeze, seen)) = begun else { return };
    // What was in force is known from disk; by this a store is known that has lost it meanwhile.
    let (seen, witness) = match seen {
        Some(seen) => seen.past(&cluster),
        None => (shared.seen, shared.witness()),
    };
    let past = Past { keys: Vec::new(), seen, witness };
    let prefix = Policies::prefix(&cluster);
    let mut follow = Follow::resume(shared.store.clone(), &prefix, shared.pace.clone(), past);
    let mut realized = agent.wake.realized.subscribe();
    // Nodes do not all write at the same moment.
    let soon = || Instant::now() + shared.size.stretch(REPORT).mul_f64(fastrand::f64());
    let mut due = None;
    loop {
        let done = tokio::select! {
            batch = follow.next() => {
                let Some(batch) = batch else { return };
                freeze.thawed().await;
                due.get_or_insert_with(soon);
                if batch.is_of_another_past() {
                    tracing::warn!("the store's past is another than it was: policies that it has lost stay in force");
                }
                let seen = follow.seen().map(|seen| Seen::new(&cluster, seen, follow.witness().cloned()));
                agent.with(move |node| node.apply_cluster_policies(&batch, seen)).await
            }
            changed = realized.changed() => {
                if changed.is_err() {
                    return;
                }
                due.get_or_insert_with(soon);
                continue;
            }
            () = until(due), if due.is_some() => {
                due = None;
                agent.with(|node| node.report_cluster_policies()).await
            }
        };
        if done.is_err() {
            return;
        }
    }
}

/// Tries again to write what is kept of the cluster's policies, until it is written.
pub(super) async fn keep_cluster(agent: Agent) {
    let Ok(backoff) = Backoff::try_new(KEEP.0, KEEP.1, 0.5) else { return };
    let mut chance = fastrand::Rng::new();
    loop {
        agent.wake.keep.notified().await;
        for failures in 1.. {
            tokio::time::sleep(backoff.delay(failures, &mut chance)).await;
            match agent.with(crate::node::Node::keep_cluster_policies).await {
                Ok(false) => {}
                Ok(true) => break,
                Err(_) => return,
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
