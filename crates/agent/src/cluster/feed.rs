//! What others say in the store, taken into the tables.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use villus_identity::{Layer, Ownership, Publisher, Remote, Surroundings};
use villus_kvstore::{Batch, Entry, Item, keys};
use villus_labels::NumericIdentity;

use super::Snapshot;
use crate::node::Node;

/// What is known around an entry.
struct Around<'a> {
    known: &'a HashSet<NumericIdentity>,
    publisher: &'a Publisher,
}

impl Surroundings for Around<'_> {
    fn is_known(&self, identity: NumericIdentity) -> bool {
        self.known.contains(&identity)
    }

    fn ownership(&self, key: &str, value: Option<&[u8]>) -> Ownership {
        self.publisher.ownership(key, value)
    }
}

/// Which feed a batch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Feed {
    pub kind: Kind,
    pub layer: Layer,
}

/// What a feed tells of. Identities of the state are the allocator's to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// What clusters say of themselves.
    Clusters,
    Identities,
    Nodes,
    Addresses,
}

// === impl Feed ===

impl Feed {
    /// All feeds of a layer, what others refer to first.
    pub fn of(layer: Layer) -> impl Iterator<Item = Self> {
        let kinds = [Kind::Clusters, Kind::Identities, Kind::Nodes, Kind::Addresses];
        let elsewhere = match layer {
            Layer::State => Some(Kind::Identities),
            // Its store is that of the state.
            Layer::Cache => Some(Kind::Clusters),
            Layer::Mesh => None,
        };
        let kinds = kinds.into_iter().filter(move |kind| Some(*kind) != elsewhere);
        kinds.map(move |kind| Self { kind, layer })
    }

    /// The prefix below which its entries lie in their store.
    pub fn prefix(self) -> String {
        let state = match self.kind {
            Kind::Clusters => return format!("{}/", keys::CLUSTER_CONFIG),
            Kind::Identities => keys::IDENTITIES,
            Kind::Nodes => keys::NODES,
            Kind::Addresses => keys::IPS,
        };
        match self.layer {
            Layer::State => format!("{state}/"),
            Layer::Cache | Layer::Mesh => format!("{}/", keys::state_to_cache(state)),
        }
    }

    /// A batch of the store with keys as tables know them.
    pub fn known(self, mut batch: Batch) -> Batch {
        if self.layer != Layer::Mesh {
            return batch;
        }
        for item in &mut batch.items {
            match item {
                Item::Put(entry) => {
                    *entry = Arc::new(Entry { key: self.layer.known(&entry.key), ..(**entry).clone() });
                }
                Item::Delete { key, .. } => *key = self.layer.known(key),
            }
        }
        batch
    }
}

impl Node {
    /// Takes over what was known before the start.
    pub fn restore_cluster(&mut self, snapshot: Snapshot) {
        self.identities.allocator.restore_copies(snapshot.copies());
        self.absorb_identities();
        self.with_remote(|remote, around| remote.restore(snapshot.remote, around));
        self.carry_remote();
    }

    /// Takes in what others have said. Returns the keys of this node that they have changed or deleted.
    pub fn apply_feed(&mut self, feed: Feed, batch: &Batch) -> Vec<Arc<str>> {
        // Who an address is must be known to policy maps before the address is.
        self.follow_identities();
        let now = Instant::now();
        let refused = |node: &Self| node.remote.as_ref().map(|remote| remote.refused().total());
        let before = refused(self);
        let altered = match feed.kind {
            Kind::Clusters => {
                self.with_remote(|remote, _| remote.apply_clusters(feed.layer, batch));
                None
            }
            Kind::Identities => {
                self.identities.allocator.apply_copies(batch);
                self.learn_copies(batch);
                None
            }
            Kind::Nodes => self.with_remote(|remote, around| remote.apply_nodes(batch, around, now)),
            Kind::Addresses => self.with_remote(|remote, around| remote.apply_addresses(batch, around, now)),
        };
        if batch.relisted.is_some() {
            self.unread.remove(&feed.prefix());
            self.note_unread();
            self.no_more_awaited(feed);
            self.note_silent();
        }
        if feed.kind == Kind::Nodes
            && let Some(shared) = &self.identities.shared
        {
            shared.size.set(self.nodes.len());
        }
        if refused(self) != before {
            self.note_refused();
        }
        self.carry_remote();
        altered.unwrap_or_default()
    }

    /// The store does not let this node read a feed. What is known of it goes on counting. Entries of other clusters hold
    /// up nothing; those of this one are waited for.
    pub fn deny_feed(&mut self, feed: Feed, reason: &str) {
        self.unread.insert(feed.prefix(), reason.to_owned());
        self.note_unread();
        if feed.kind == Kind::Clusters || feed.layer != Layer::State {
            self.no_more_awaited(feed);
        }
    }

    /// Says what the store does not let this node read; its identities are the allocator's to follow.
    pub(super) fn note_unread(&mut self) {
        let identities = self.identities.allocator.unread();
        let identities = identities.map(|reason| (format!("{}/", keys::IDENTITY_IDS), reason));
        let mut unread = identities.iter().map(|(prefix, reason)| (prefix, reason)).chain(&self.unread);
        let problem = unread.next().map(|(prefix, reason)| {
            let more = match unread.count() {
                0 => String::new(),
                more => format!(", nor {more} others"),
            };
            format!("`{prefix}` can't be read{more}: {reason}; what was known of it goes on counting")
        });
        self.conditions.note("reading of the store", problem);
    }

    fn no_more_awaited(&mut self, feed: Feed) {
        self.awaited.remove(&feed);
        if self.awaited.is_empty()
            && let Some(source) = self.store_source.take()
        {
            source.complete();
        }
    }

    /// Gives back memory after much was read.
    pub fn pack(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.pack();
        }
        self.ipcache.pack();
    }

    /// Does what time has decided about entries of others. Returns when there is more to do, if that is soon.
    pub fn tick_cluster(&mut self) -> Option<Instant> {
        if self.freeze.is_frozen() {
            return None;
        }
        let remote = self.remote.as_mut()?;
        remote.tick(Instant::now());
        let due = remote.due();
        if remote.has_doubts() {
            self.wake.doubts.send_replace(());
        }
        self.carry_remote();
        due
    }

    /// Carries on what the store has said: policy knows named ports, and nodes that it tells apart, before the kernel's ipcache
    /// has their addresses; what no address has any more goes after.
    pub fn carry_remote(&mut self) {
        self.learn_remote();
        let ports = self.remote.as_mut().map(Remote::take_new_ports).unwrap_or_default();
        self.announce_ports(ports);
        if self.remote.as_ref().is_some_and(Remote::has_new_identities) {
            // Before the kernel knows them: an agent that is killed now gives the same numbers again.
            self.identities.save(&self.state);
            self.follow_identities();
            self.step_ipcache_when_open();
            if self.open {
                self.claim_routers();
            }
            if let Some(remote) = &mut self.remote {
                remote.end_retired(Instant::now());
            }
            self.follow_identities();
            self.identities.save(&self.state);
        }
        self.step_ipcache_when_open();
    }

    /// Addresses whose identities have come are resolved, now that policy maps know these.
    pub fn resolve_addresses(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
        let Some(remote) = &mut self.remote else { return };
        for (identity, is_known) in arrived {
            remote.resolve(identity, is_known);
        }
        self.step_ipcache_when_open();
    }

    /// Keys of a feed that are known, as their store has them, and whether each is under a lease.
    pub fn feed_keys(&self, feed: Feed) -> Vec<(Arc<str>, bool)> {
        let keys = match (feed.kind, &self.remote) {
            // They are read before anything that they say something about.
            (Kind::Clusters, _) => Vec::new(),
            (Kind::Identities, _) => self.identities.allocator.copied_keys(feed.layer),
            (Kind::Nodes, Some(remote)) => remote.node_keys(feed.layer),
            (Kind::Addresses, Some(remote)) => remote.address_keys(feed.layer),
            (_, None) => Vec::new(),
        };
        keys.into_iter().map(|(key, leased)| (feed.layer.stored(&key), leased)).collect()
    }

    /// Keys that an agent of this node left in the store; `None` before all is known.
    pub fn leftovers(&mut self) -> Option<Vec<(Arc<str>, u64)>> {
        if !self.sources.complete || !self.awaited.is_empty() {
            return None;
        }
        self.with_remote(|remote, around| remote.leftovers(around))
    }

    fn with_remote<T>(&mut self, work: impl FnOnce(&mut Remote, &dyn Surroundings) -> T) -> Option<T> {
        let shared = self.identities.shared.as_ref()?;
        let around = Around { known: &self.known, publisher: &shared.publisher };
        Some(work(self.remote.as_mut()?, &around))
    }

    /// The kernel's ipcache follows, once it is right to write it.
    fn step_ipcache_when_open(&mut self) {
        if self.open {
            self.step_ipcache();
        }
    }
}
