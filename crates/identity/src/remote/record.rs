//! What of all that others have said should outlive the process: whole, in parts, and what of it is different.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use serde::{Deserialize, Serialize};
use villus_kvstore::NodeEntry;

use super::{AddressRecord, Layer, Remote, Surroundings};

/// What is known of addresses and nodes at some time, to begin with after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRecord {
    /// Addresses by their keys.
    pub addresses: Vec<(String, AddressRecord)>,
    /// Nodes: their values and whether their keys were under a lease.
    pub nodes: Vec<(NodeEntry, bool)>,
    /// Nodes as layers of copies tell of them.
    #[serde(default)]
    pub copied_nodes: Vec<(Layer, NodeEntry, bool)>,
}

/// A part of the record as it is now.
#[derive(Debug)]
pub enum RecordChange<'a> {
    /// An address by its key; gone without a value.
    Address(&'a str, Option<&'a AddressRecord>),
    /// A node by its key among the state: what each layer says of it, and whether its key there is under a lease. Gone
    /// without any.
    Node(&'a str, Vec<(Layer, &'a NodeEntry, bool)>),
}

/// Keys of which something was said; one may be there several times.
#[derive(Default)]
pub(super) struct Touched {
    addresses: Vec<Arc<str>>,
    nodes: Vec<Arc<str>>,
}

// === impl Touched ===

impl Touched {
    pub(super) fn address(&mut self, key: &Arc<str>) {
        if self.addresses.last() != Some(key) {
            self.addresses.push(Arc::clone(key));
        }
    }

    pub(super) fn node(&mut self, key: &str) {
        self.nodes.push(key.into());
    }
}

// === impl Remote ===

impl Remote {
    /// What should outlive the process.
    pub fn record(&self) -> RemoteRecord {
        let addresses = self.addresses.iter();
        RemoteRecord {
            addresses: addresses.map(|(key, address)| (key.to_string(), address.clone())).collect(),
            ..self.record_of_nodes()
        }
    }

    /// What should outlive the process, without addresses.
    pub fn record_of_nodes(&self) -> RemoteRecord {
        let others = self.members.values().filter(|member| !member.own);
        let (state, copied_nodes): (Vec<_>, Vec<_>) = others
            .map(|member| (member.layer, (*member.entry).clone(), member.leased))
            .chain(self.echoes.iter().map(|(_, layer, echo)| (layer, echo.entry.clone(), echo.leased)))
            .partition(|(layer, ..)| *layer == Layer::State);
        let nodes = state.into_iter().map(|(_, entry, leased)| (entry, leased)).collect();
        RemoteRecord { addresses: Vec::new(), nodes, copied_nodes }
    }

    /// The next addresses of the record behind a key, in the order of their keys; `most` at most.
    pub fn record_behind(&self, key: Option<&str>, most: usize) -> Vec<(Arc<str>, AddressRecord)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.addresses.range::<str, _>((from, Bound::Unbounded)).take(most);
        next.map(|(key, address)| (Arc::clone(key), address.clone())).collect()
    }

    /// Tells what of the record is different since this was last called: each key once. Taken in over a record of before
    /// it gives the one of now.
    pub fn take_changes(&mut self, mut tell: impl FnMut(RecordChange<'_>)) {
        let Touched { mut addresses, mut nodes } = std::mem::take(&mut self.touched);
        addresses.sort_unstable();
        addresses.dedup();
        nodes.sort_unstable();
        nodes.dedup();
        for key in &nodes {
            let member = self.members.get(key).filter(|member| !member.own);
            let member = member.map(|member| (member.layer, &*member.entry, member.leased));
            let echoes = self.echoes.of(key).map(|(layer, echo)| (layer, &echo.entry, echo.leased));
            tell(RecordChange::Node(key, member.into_iter().chain(echoes).collect()));
        }
        for key in &addresses {
            tell(RecordChange::Address(key, self.addresses.get(key)));
        }
    }

    /// Takes over what was known before a restart; the store's first lists say what of it is still so.
    pub fn restore(&mut self, record: RemoteRecord, around: &dyn Surroundings) {
        let state = record.nodes.into_iter().map(|(entry, leased)| (Layer::State, entry, leased));
        for (layer, entry, leased) in state.chain(record.copied_nodes) {
            self.tell_node(entry.key().into(), layer, entry, leased);
        }
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for (key, address) in record.addresses {
            let address = AddressRecord { revision: 0, ..address };
            self.put_address(&mut edit, key.into(), address, around);
        }
        self.config.leased.restored();
        self.touched = Touched::default();
    }
}

// === impl RemoteRecord ===

impl RemoteRecord {
    /// The record with what has changed since, by key: addresses, and what all layers say of nodes. See [`RecordChange`].
    pub fn with(
        mut self,
        addresses: BTreeMap<String, Option<AddressRecord>>,
        nodes: BTreeMap<String, Vec<(Layer, NodeEntry, bool)>>,
    ) -> Self {
        self.addresses.retain(|(key, _)| !addresses.contains_key(key));
        self.addresses.extend(addresses.into_iter().filter_map(|(key, address)| Some((key, address?))));
        self.nodes.retain(|(entry, _)| !nodes.contains_key(&entry.key()));
        self.copied_nodes.retain(|(_, entry, _)| !nodes.contains_key(&entry.key()));
        for (layer, entry, leased) in nodes.into_values().flatten() {
            match layer {
                Layer::State => self.nodes.push((entry, leased)),
                Layer::Cache | Layer::Mesh => self.copied_nodes.push((layer, entry, leased)),
            }
        }
        self
    }
}
