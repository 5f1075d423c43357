//! What of all that others have said should outlive the process: whole, in parts, and what of it is different.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::Bound,
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};
use villus_kvstore::NodeEntry;
use villus_labels::NumericIdentity;

use super::{AddressRecord, Layer, Remote, Surroundings};

/// What is known of addresses and nodes at some time, to begin with after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRecord {
    /// Addresses by their keys; on disk a list of pairs.
    #[serde(serialize_with = "write_pairs", deserialize_with = "read_pairs")]
    pub addresses: BTreeMap<Arc<str>, AddressRecord>,
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
        RemoteRecord { addresses: self.addresses.clone(), ..self.record_of_nodes() }
    }

    /// What should outlive the process, without addresses.
    pub fn record_of_nodes(&self) -> RemoteRecord {
        let others = self.members.values().filter(|member| !member.own);
        let (state, copied_nodes): (Vec<_>, Vec<_>) = others
            .map(|member| (member.layer, (*member.entry).clone(), member.leased))
            .chain(self.echoes.iter().map(|(_, layer, echo)| (layer, echo.entry.clone(), echo.leased)))
            .partition(|(layer, ..)| *layer == Layer::State);
        let nodes = state.into_iter().map(|(_, entry, leased)| (entry, leased)).collect();
        RemoteRecord { addresses: BTreeMap::new(), nodes, copied_nodes }
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

    /// Takes over what was known before a restart; the store's first lists say what of it is still so. To be called before
    /// anything was said of addresses.
    pub fn restore(&mut self, record: RemoteRecord, around: &dyn Surroundings) {
        let state = record.nodes.into_iter().map(|(entry, leased)| (Layer::State, entry, leased));
        for (layer, entry, leased) in state.chain(record.copied_nodes) {
            self.tell_node(entry.key().into(), layer, entry, leased);
        }
        self.restore_hosts(&record.addresses);
        self.restore_addresses(record.addresses, around);
        self.touched = Touched::default();
    }

    /// All that was known is taken as it is, in one go: an agent that starts without the store has a second for hundreds of
    /// thousands.
    fn restore_addresses(&mut self, addresses: BTreeMap<Arc<str>, AddressRecord>, around: &dyn Surroundings) {
        let mut unresolved: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let mut leased: HashMap<NumericIdentity, u32> = HashMap::new();
        let mut with_ports = Vec::new();
        let claim = |(key, address): (&Arc<str>, &AddressRecord)| {
            let pending = !around.is_known(address.identity);
            if pending {
                unresolved.entry(address.identity).or_default().insert(Arc::clone(key));
            }
            if address.leased {
                *leased.entry(address.identity).or_default() += 1;
            }
            if !address.ports.is_empty() {
                with_ports.push(address.clone());
            }
            (address.prefix, self.claim_of(key, address, pending))
        };
        self.ipcache.fill(addresses.iter().map(claim));
        with_ports.iter().for_each(|address| self.count_ports(address, true));
        self.config.leased.restored(leased);
        self.unresolved = unresolved;
        self.addresses = addresses;
    }
}

// === impl RemoteRecord ===

impl RemoteRecord {
    /// The record with what has changed since, by key: addresses, and what all layers say of nodes. See [`RecordChange`].
    pub fn with(
        mut self,
        addresses: BTreeMap<Arc<str>, Option<AddressRecord>>,
        nodes: BTreeMap<String, Vec<(Layer, NodeEntry, bool)>>,
    ) -> Self {
        if self.addresses.is_empty() {
            let there = addresses.into_iter().filter_map(|(key, address)| Some((key, address?)));
            self.addresses = there.collect();
        } else {
            for (key, address) in addresses {
                match address {
                    Some(address) => drop(self.addresses.insert(key, address)),
                    None => drop(self.addresses.remove(&key)),
                }
            }
        }
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

// === addresses on disk ===

/// A key, read without a copy in between: there are hundreds of thousands.
struct Key(Arc<str>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, text: &str) -> Result<Key, E> {
                Ok(Key(text.into()))
            }
        }

        from.deserialize_str(Text)
    }
}

fn write_pairs<S: Serializer>(
    addresses: &BTreeMap<Arc<str>, AddressRecord>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(addresses.iter().map(|(key, address)| (&**key, address)))
}

fn read_pairs<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Arc<str>, AddressRecord>, D::Error> {
    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = BTreeMap<Arc<str>, AddressRecord>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of keys and addresses")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let next = || list.next_element::<(Key, AddressRecord)>().transpose();
            std::iter::from_fn(next).map(|pair| pair.map(|(Key(key), address)| (key, address))).collect()
        }
    }

    from.deserialize_seq(Pairs)
}
