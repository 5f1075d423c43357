//! Nodes of which several layers tell: the first layer counts, what the others say waits until that one ends.

use std::{collections::BTreeMap, sync::Arc};

use villus_kvstore::NodeEntry;

use super::{Layer, Remote};

/// What a layer says of a node of which a layer before it tells too.
pub(super) struct Echo {
    pub(super) entry: NodeEntry,
    pub(super) leased: bool,
}

/// Echoes by the node's key among the state, and by layer.
#[derive(Default)]
pub(super) struct Echoes(BTreeMap<Arc<str>, BTreeMap<Layer, Echo>>);

// === impl Echoes ===

impl Echoes {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, Layer, &Echo)> {
        self.0.iter().flat_map(|(key, layers)| layers.iter().map(move |(layer, echo)| (key, *layer, echo)))
    }

    /// What layers say of a node that does not count.
    pub(super) fn of(&self, key: &str) -> impl Iterator<Item = (Layer, &Echo)> {
        self.0.get(key).into_iter().flatten().map(|(layer, echo)| (*layer, echo))
    }

    fn put(&mut self, key: Arc<str>, layer: Layer, echo: Echo) {
        self.0.entry(key).or_default().insert(layer, echo);
    }

    fn take(&mut self, key: &str, layer: Layer) -> Option<Echo> {
        let layers = self.0.get_mut(key)?;
        let echo = layers.remove(&layer);
        if layers.is_empty() {
            self.0.remove(key);
        }
        echo
    }

    fn take_first(&mut self, key: &str) -> Option<(Layer, Echo)> {
        let layer = self.0.get(key)?.keys().next().copied()?;
        Some((layer, self.take(key, layer)?))
    }

    pub(super) fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }
}

// === impl Remote ===

impl Remote {
    /// A layer tells of a node.
    pub(super) fn tell_node(&mut self, key: Arc<str>, layer: Layer, entry: NodeEntry, leased: bool) {
        self.touched.node(&key);
        if let Some(member) = self.members.get(&key).filter(|member| member.layer != layer) {
            if member.own || (member.layer < layer && member.stale.is_none()) {
                self.echoes.put(key, layer, Echo { entry, leased });
                return;
            }
            if member.stale.is_none() {
                let before = Echo { entry: (*member.entry).clone(), leased: member.leased };
                self.echoes.put(Arc::clone(&key), member.layer, before);
            }
        }
        self.echoes.take(&key, layer);
        self.put_node(key, layer, entry, leased);
    }

    /// A layer does not tell of a node any more. Says whether that changes nothing but where it counts from.
    pub(super) fn fall_back(&mut self, key: &Arc<str>, layer: Layer) -> bool {
        self.touched.node(key);
        if self.members.get(key).is_none_or(|member| member.layer != layer || member.own) {
            self.echoes.take(key, layer);
            return true;
        }
        let Some((next, echo)) = self.echoes.take_first(key) else { return false };
        self.put_node(Arc::clone(key), next, echo.entry, echo.leased);
        true
    }
}
