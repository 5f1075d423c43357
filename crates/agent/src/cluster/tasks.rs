//! What the agent does by itself with the shared store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use villus_identity::{Heard, Layer, Published};
use villus_kvstore::{Compare, Follow, Header, Past, Store, StoreError, keys};

use super::feed::{Feed, Kind};
use super::{SharedStore, owners};
use crate::agent::Agent;
use crate::node::Node;

/// Between two looks at a store that is well, and at one that is not, in a cluster of one node.
const WELL: Duration = Duration::from_secs(30);
const ILL: Duration = Duration::from_secs(5);
/// The longest time, in whole doublings of the first, between looks at a store with something left to do.
const DOUBLINGS: u32 = 8;
/// Between two looks at a store that failed somebody, at least.
const TROUBLE: Duration = Duration::from_secs(1);
/// How long a watch of nodes has stood, in a cluster of one node, when it has told all that it had missed: a store to which a whole
/// cluster comes back tells one after another.
const TOLD: Duration = Duration::from_secs(60);
/// So many entries at once leave much memory behind.
pub(super) const LARGE: usize = 10_000;

/// Follows all feeds of a layer in its store; `seen` is what was known of that before the start.
pub(crate) async fn follow_layer(
    agent: Agent,
    shared: Arc<SharedStore>,
    store: Arc<dyn Store>,
    seen: Option<Header>,
    layer: Layer,
) {
    let mut feeds = tokio::task::JoinSet::new();
    for feed in Feed::of(layer) {
        feeds.spawn(follow(agent.clone(), shared.clone(), store.clone(), seen, feed));
    }
    feeds.spawn(owners::ask(agent, shared, store, layer));
    while feeds.join_next().await.is_some() {}
}

/// Follows one kind of entries.
async fn follow(
    agent: Agent,
    shared: Arc<SharedStore>,
    store: Arc<dyn Store>,
    seen: Option<Header>,
    feed: Feed,
) {
    let Ok(keys) = agent.with(move |node| node.feed_keys(feed)).await else { return };
    let witness = shared.witness().filter(|_| feed.layer != Layer::Mesh);
    let past = Past { keys, seen, witness };
    let judged = feed.kind != Kind::Clusters;
    let mut others = shared.others.changes(feed.layer);
    if judged {
        shared.others.heard(feed.layer).await;
        others.mark_unchanged();
    }
    let mut follow = Follow::resume(store, &feed.prefix(), shared.pace.clone(), past);
    if feed.kind == Kind::Addresses {
        // None depends on another: they may come one after the other.
        follow = follow.in_parts();
    }
    let mut read = 0;
    let Ok(freeze) = agent.with(|node| node.freeze.clone()).await else { return };
    let mut due = None;
    let is_of_nodes = feed.kind == Kind::Nodes;
    let (mut stands, mut so_far) = (follow.stands(), Heard::default());
    // From when on it tells all.
    let live = |since: Option<Instant>| since.map(|since| since + shared.size.stretch(TOLD));
    loop {
        let heard = tokio::select! {
            heard = follow.heard() => heard,
            () = sleep_until(due), if due.is_some() => {
                due = agent.with(|node| node.tick_cluster()).await.unwrap_or_default();
                continue;
            }
            // An error means that the sender is gone, which `shared` prevents.
            _ = others.changed(), if judged => {
                follow.again();
                continue;
            }
            // Likewise, which `follow` prevents.
            _ = stands.changed(), if is_of_nodes => {
                let since = *stands.borrow_and_update();
                so_far = if since.is_some() { Heard { live: live(since), ..so_far } } else { Heard::default() };
                let told = agent.with(move |node| node.hear_nodes(feed.layer, so_far)).await;
                due = told.unwrap_or_default();
                continue;
            }
        };
        let batch = match heard {
            Some(Ok(batch)) => batch,
            Some(Err(StoreError::Denied { reason, .. })) => {
                if feed.kind == Kind::Clusters {
                    shared.others.untold(feed.layer);
                }
                if agent.with(move |node| node.deny_feed(feed, &reason)).await.is_err() {
                    return;
                }
                continue;
            }
            Some(Err(_)) => continue,
            None => return,
        };
        if is_of_nodes && freeze.is_frozen() {
            // What comes after it is not heard until then.
            so_far = Heard::default();
            if agent.with(move |node| node.hear_nodes(feed.layer, so_far)).await.is_err() {
                return;
            }
        }
        freeze.thawed().await;
        let batch = feed.known(batch);
        if is_of_nodes {
            let stands = stands.borrow().map(|_| Instant::now());
            so_far = Heard { through: batch.revision, live: so_far.live.or_else(|| live(stands)) };
        }
        let is_shared = feed.layer != Layer::Mesh;
        let lost = is_shared && batch.is_of_another_past();
        if is_shared {
            shared.note_witness(follow.witness(), lost);
        }
        read += batch.items.len();
        let is_large = batch.relisted.is_some() && read >= LARGE;
        let apply = move |node: &mut Node| {
            let altered = node.apply_feed(feed, &batch);
            let due = if is_of_nodes { node.hear_nodes(feed.layer, so_far) } else { node.tick_cluster() };
            (altered, due)
        };
        let done = agent.with(apply).await;
        let Ok((altered, next)) = done else { return };
        if is_large {
            read = 0;
            // Of what was read little is kept. An error means that the runtime ends.
            let agent = agent.clone();
            let packed = move || {
                agent.locked(Node::pack);
                villus_datapath::sys::return_memory();
            };
            let _ = tokio::task::spawn_blocking(packed).await;
        }
        due = next;
        if lost {
            tracing::warn!(
                "the store's past is another than it was: what it lost is kept, this node's part is written again"
            );
            shared.publisher.reassert_now();
            agent.identities.allocator.compare_now();
        }
        if !altered.is_empty() {
            shared.publisher.altered(altered);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Looks at the store one after another.
#[derive(Default)]
struct Looks {
    /// So many in a row found something left to do.
    unfinished: u32,
}

impl Looks {
    /// Until the next one, in a cluster of one node: soon while there is something to read or to write, but more and more
    /// seldom, for what the store refuses may never be done.
    fn rest(&mut self, is_well: bool, is_done: bool) -> Duration {
        let base = if is_well { WELL } else { ILL };
        if is_done {
            self.unfinished = 0;
            return base;
        }
        let soon = TROUBLE * 2u32.pow(self.unfinished.min(DOUBLINGS));
        self.unfinished += 1;
        soon.min(base)
    }
}

/// Looks at the store, always.
pub(crate) async fn watch_health(agent: Agent, shared: Arc<SharedStore>) {
    let Ok(freeze) = agent.with(|node| node.freeze.clone()).await else { return };
    let (mut started, mut is_clean) = (false, false);
    let mut looks = Looks::default();
    loop {
        let health = shared.look().await;
        let is_well = health.down_since.is_none();
        agent.identities.allocator.set_reachable(is_well);
        if is_well {
            // Its outcome is part of the next look.
            let _ = shared.etcd.check().await;
            is_clean = remove_leftovers(&agent, &shared).await;
        }
        // A frozen agent takes in no list, and asks no faster for it.
        if !started && (agent.identities.allocator.is_synced() || freeze.is_frozen()) {
            started = true;
            shared.etcd.started();
        }
        if agent.with(move |node| node.note_store(&health)).await.is_err() {
            return;
        }
        let rest = tokio::time::sleep(shared.size.interval(looks.rest(is_well, started && is_clean)));
        tokio::select! {
            () = rest => {}
            () = trouble(&shared), if is_well => {}
        }
    }
}

/// Waits until a request has failed: what is wrong is looked at soon, but neither often nor by all agents at once.
async fn trouble(shared: &SharedStore) {
    tokio::time::sleep(shared.size.interval(TROUBLE)).await;
    shared.etcd.trouble().await;
    tokio::time::sleep(shared.size.interval(TROUBLE).mul_f64(fastrand::f64())).await;
}

/// What an agent of this node wrote before and that nobody wants any more goes, unless somebody wrote it meanwhile. Says
/// whether all of it is gone. What has the address of a key that the store does not take stays: it is all that is said of it.
async fn remove_leftovers(agent: &Agent, shared: &SharedStore) -> bool {
    let Published { wanted, written, refused, .. } = shared.publisher.state();
    if wanted == 0 || written + refused.len() < wanted {
        return false;
    }
    let Ok(Some(leftovers)) = agent.with(|node| node.leftovers()).await else { return false };
    let unsaid: BTreeSet<&str> = refused.iter().filter_map(|key| address_of(key)).collect();
    let mut is_clean = true;
    for (key, revision) in leftovers {
        if address_of(&key).is_some_and(|address| unsaid.contains(address)) {
            is_clean = false;
            continue;
        }
        let same = Compare::ModRevision(key.to_string(), revision);
        match shared.store.compare_and_delete(&key, same).await {
            Ok(true) => {
                tracing::info!(key = &*key, "an entry of before the start was removed from the store")
            }
            Ok(false) => {}
            // It holds up no other.
            Err(error) if error.is_of_one_key() => is_clean = false,
            Err(_) => return false,
        }
    }
    is_clean
}

/// The part of an address's key that names it, whatever its space.
fn address_of(key: &str) -> Option<&str> {
    let (_, address) = key.strip_prefix(keys::IPS)?.strip_prefix('/')?.split_once('/')?;
    Some(address)
}

/// Tells the publisher what this node has, whenever that changes.
pub(crate) async fn publish(agent: Agent, shared: Arc<SharedStore>) {
    loop {
        match agent.with(|node| node.sources.complete.then(|| node.own_keys())).await {
            Ok(Some(keys)) => shared.publisher.want(keys),
            Ok(None) => {}
            Err(_) => return,
        }
        agent.wake.publish.notified().await;
    }
}

/// Makes the store say what this node has.
pub(crate) async fn write(shared: Arc<SharedStore>) {
    tokio::join!(shared.publisher.run(&shared.stop), shared.publisher.keep_alive(&shared.stop));
}

/// Gives endpoints the identities that the store says.
pub(crate) async fn settle(agent: Agent) {
    let mut settled = agent.identities.allocator.settled();
    while settled.changed().await.is_ok() {
        if agent.with(|node| node.settle_identities()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_never_done_is_looked_at_more_and_more_seldom() {
        let mut looks = Looks::default();
        let mut rests = |is_well, is_done, count: usize| {
            let rest = |_| looks.rest(is_well, is_done).as_secs();
            (0..count).map(rest).collect::<Vec<u64>>()
        };
        assert_eq!(rests(true, false, 8), [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(rests(true, true, 2), [30, 30]);
        assert_eq!(rests(true, false, 2), [1, 2], "something else is to be done");
        assert_eq!(rests(false, false, 3), [4, 5, 5]);
        assert_eq!(rests(false, true, 1), [5]);
        assert_eq!(rests(true, false, 2000).last(), Some(&30));
    }
}
