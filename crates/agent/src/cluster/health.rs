//! How the shared store is, in words.

use jiff::Timestamp;
use villus_api::model::ServiceState;
use villus_identity::Usage;

use super::calendar::Moment;
use super::shared::Health;
use super::{SharedStore, Snapshot};
use crate::node::Node;

/// Shares of the identity space from which it is said how full it is.
const FULL: [u64; 3] = [90, 75, 50];
/// Entries of others that are named at once.
const NAMED: usize = 5;

impl Node {
    /// Notes how the store is, and what of it should be mended.
    pub fn note_store(&mut self, health: &Health) {
        let Some(shared) = self.identities.shared.clone() else { return };
        self.note_reach(&shared, health);
        self.note_calendar(health);
        let waited = self.started.elapsed();
        let late = self.config.kvstore.list_timeout.filter(|limit| waited >= *limit);
        let late = late.filter(|_| !self.freeze.is_frozen() && !self.identities.allocator.is_synced());
        self.conditions.note(
            "identities of the store",
            late.map(|limit| {
                format!(
                    "they could not be listed within {limit:?} (allocator-list-timeout); \
                     the agent goes on with what it knows: {}",
                    self.known_text()
                )
            }),
        );
        let state = shared.publisher.state();
        let contested = (!state.contested.is_empty()).then(|| {
            let keys: Vec<String> = state
                .contested
                .iter()
                .take(NAMED)
                .map(|(key, times)| format!("`{key}` ({times} times)"))
                .collect();
            let count = state.contested.len();
            format!(
                "{count} keys of this node were changed or deleted by others and written again: {}",
                keys.join(", ")
            )
        });
        self.conditions.note("keys of this node", contested);
        // Of a store that does not answer all is said already.
        let unwritten = state.problem.filter(|_| health.down_since.is_none());
        self.conditions.note(
            "writing to the store",
            unwritten.map(|problem| {
                let missing = state.wanted.saturating_sub(state.written);
                format!(
                    "what this node says of itself can't be written ({missing} of {} keys are missing); \
                     other nodes act on what was written before: {problem}",
                    state.wanted
                )
            }),
        );
        self.conditions.note("cluster-config", shared.guard.oddity());
        self.note_unread();
        self.note_refused();
        self.note_silent();
    }

    /// Says what counts though nobody stands behind it.
    pub fn note_silent(&mut self) {
        if let Some(remote) = &self.remote {
            let counts = remote.counts();
            let (addresses, nodes) = (counts.stale_addresses, counts.stale_nodes);
            self.conditions.set_if("silent nodes", addresses + nodes > 0, || {
                let node = if nodes == 1 { "node" } else { "nodes" };
                let address = if addresses == 1 { "address" } else { "addresses" };
                let doubted = match counts.doubted_addresses {
                    0 => String::new(),
                    some => format!(" ({some} until it is known whether their nodes are there)"),
                };
                format!(
                    "{nodes} {node} and {addresses} {address} count though nobody stands behind them any more{doubted}; \
                     they go after {:?} (stale-grace); `villus node list` shows the nodes, `villus node forget` ends one",
                    self.config.kvstore.stale_grace
                )
            });
        }
    }

    /// Says when this machine's calendar is not that of the others.
    fn note_calendar(&mut self, health: &Health) {
        let now = Moment::now();
        if let Some(jump) = self.calendar.tick(now) {
            let jump = jump.as_secs();
            tracing::warn!(
                seconds = jump,
                "this machine's clock has jumped; nothing that runs out depends on it"
            );
        }
        if let Some(beat) = &health.beat {
            self.calendar.compare(beat, now);
        }
        self.conditions.note("clock", self.calendar.problem());
    }

    fn note_reach(&mut self, shared: &SharedStore, health: &Health) {
        let limit = self.config.kvstore.quorum_errors;
        let errors = shared.etcd.quorum_errors();
        let problem = health.down_since.map(|since| {
            let quorum = match errors > limit {
                true => format!("it has no quorum ({errors} checks failed one after another), "),
                false => String::new(),
            };
            let text = health.status.as_ref().map(|status| status.text.as_str()).unwrap_or_default();
            let fault = match shared.guard.refusal() {
                Some(_) => "it is not used",
                None => "it does not answer",
            };
            format!(
                "{quorum}{fault} (for {}s now); the agent goes on with what it knows: {}; {text}",
                since.elapsed().as_secs(),
                self.known_text()
            )
        });
        self.conditions.note("store", problem);
    }

    /// Says which entries of others can't be used.
    pub(super) fn note_refused(&mut self) {
        let ids = self.identities.allocator.refused();
        let others = self.remote.iter().flat_map(|remote| remote.refused().iter());
        let all: Vec<String> = ids
            .iter()
            .map(|(key, reason)| (key.as_str(), reason.as_str()))
            .chain(others)
            .map(|(key, reason)| match reason.contains(key) {
                true => reason.to_owned(),
                false => format!("`{key}`: {reason}"),
            })
            .collect();
        let count = ids.len() + self.remote.as_ref().map_or(0, |remote| remote.refused().count());
        self.conditions.set_if("entries of the store", !all.is_empty(), || {
            let named: Vec<&str> = all.iter().take(NAMED).map(String::as_str).collect();
            let more = match count.saturating_sub(NAMED) {
                0 => String::new(),
                more => format!("; and {more} more, in the log"),
            };
            format!("{count} can't be used and are left out: {}{more}", named.join("; "))
        });
    }

    /// Says how full the identity space is, from half on.
    pub fn note_usage(&mut self) {
        let Usage { used, total } = self.identities.allocator.usage();
        let full = FULL.into_iter().find(|share| used * 100 >= total * share);
        self.conditions.note(
            "identity space",
            full.map(|share| {
                format!(
                    "{share} % of the cluster's identities are used ({used} of {total}): \
                     narrow `labels` so that fewer label sets differ"
                )
            }),
        );
    }

    /// What is known of the cluster, and from where.
    fn known_text(&self) -> String {
        let counts = self.remote.as_ref().map(|remote| remote.counts()).unwrap_or_default();
        let identities = self.identities.allocator.usage().used;
        let what = format!("{identities} identities, {} addresses, {} nodes", counts.addresses, counts.nodes);
        match self.snapshot_saved.filter(|_| !self.awaited.is_empty()) {
            Some(saved) => format!("from snapshot, {}: {what}", Snapshot::age(saved, Timestamp::now())),
            None => what,
        }
    }

    /// State and text of the store, for probes and `villus status`.
    pub fn store_state(&self) -> (ServiceState, String) {
        let Some(shared) = &self.identities.shared else {
            let usage = self.identities.allocator.usage();
            let text = format!("embedded, {} of {} identities used", usage.used, usage.total);
            return (ServiceState::Ok, text);
        };
        let health = shared.health();
        let text = health.status.map_or("etcd: not asked yet".to_owned(), |status| status.text);
        // Probes must not end an agent because the store is away.
        let is_there = health.down_since.is_none() && self.awaited.is_empty();
        let state = if is_there { ServiceState::Ok } else { ServiceState::Warning };
        (state, format!("{text}\n{}", self.known_text()))
    }
}
