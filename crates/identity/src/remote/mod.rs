//! What the store says about addresses and nodes, as claims in the ipcache and rows of the table of nodes.
//!
//! A key that vanishes is not always a deletion. One without a lease was deleted on purpose. One with a lease was too, as
//! long as its owner, the node at its host address, still has its own key: while nodes have not been heard as far as that,
//! the address counts as stale. If the owner's key went at the same time the owner has fallen silent: what it said is stale,
//! and goes on counting until the owner has come back and finished without it, somebody else claims the address, or its
//! grace is over. So is everything that a store has lost which was wiped or restored from a backup.

mod addresses;
mod behind;
mod echoes;
mod heard;
mod layer;
mod nodes;
mod ports;
mod record;
mod refused;
mod rivals;
mod rows;
mod stale;
mod who;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use villus_kvstore::{Batch, NamedPort};
use villus_labels::{Labels, NumericIdentity};

pub use addresses::AddressRecord;
pub use heard::Heard;
pub use layer::Layer;
pub use record::{RecordChange, RemoteRecord};
pub use refused::Refused;
pub use rows::read_row;

use crate::{clusters::Clusters, ipcache::Ipcache, leased::Leased, local::NodeIdentities, nodes::Nodes};
use behind::Hosts;
use echoes::Echoes;
use nodes::Member;
use record::Touched;
use stale::Stale;
use who::Told;

/// How a [`Remote`] goes about it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// This node's cluster and its id.
    pub cluster: String,
    /// The id of that cluster.
    pub cluster_id: u32,
    /// The numbers of that cluster's identities, which no other cluster's entry may have.
    pub range: RangeInclusive<u32>,
    /// This node.
    pub node: String,
    /// Whether addresses are reached through tunnels to the nodes behind which they live. Those behind no node are not.
    pub tunnels: bool,
    /// Within which prefixes packets to and from other nodes' endpoints travel as they are, without a tunnel and without NAT.
    pub routed: Vec<IpNet>,
    /// How long an owner that has come back is given to say what it has.
    pub settle: Duration,
    /// How long entries of an owner that is silent are kept (`stale-grace`).
    pub stale_grace: Duration,
    /// Whether nodes are told apart by their labels (`enable-node-selector-labels`).
    pub node_labels: bool,
    /// Whether prefixes mean nodes by their addresses (`policy-cidr-match-mode=nodes`).
    pub node_prefixes: bool,
    /// What other clusters say of themselves.
    pub others: Clusters,
    /// Where is counted which numbers addresses under leases have.
    pub leased: Leased,
}

/// Whose a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Somebody else's.
    Other,
    /// This node's, as it wrote it.
    AsWritten,
    /// This node's, and somebody else has changed or deleted it.
    Altered,
}

/// What must be known to judge an entry.
pub trait Surroundings {
    /// Whether policy knows the identity.
    fn is_known(&self, identity: NumericIdentity) -> bool;
    /// Whose the key is; without a value it was deleted.
    fn ownership(&self, key: &str, value: Option<&[u8]>) -> Ownership;
}

/// How many entries there are, and of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteCounts {
    /// Addresses of others.
    pub addresses: usize,
    /// Of them those whose identity has not arrived.
    pub unresolved: usize,
    /// Addresses that nobody stands behind any more.
    pub stale_addresses: usize,
    /// Of them those that were deleted, perhaps on purpose: it is not known yet whether their owners were there.
    pub doubted_addresses: usize,
    /// Nodes, without this one.
    pub nodes: usize,
    /// Nodes that have fallen silent.
    pub stale_nodes: usize,
}

/// All that others have said in the store about addresses and nodes.
pub struct Remote {
    config: RemoteConfig,
    ipcache: Ipcache,
    nodes: Nodes,
    numbers: Arc<NodeIdentities>,
    addresses: BTreeMap<Arc<str>, AddressRecord>,
    /// Nodes by the keys that they have, or would have, among the state.
    members: BTreeMap<Arc<str>, Member>,
    echoes: Echoes,
    /// Whose the addresses of nodes are, by the keys of the nodes.
    hosts: HashMap<IpAddr, Arc<str>>,
    behind: Hosts,
    /// Whose the prefixes of endpoints are; they do not overlap.
    ranges: BTreeMap<IpNet, Arc<str>>,
    unresolved: BTreeMap<NumericIdentity, BTreeSet<Arc<str>>>,
    /// Addresses that nobody stands behind.
    stale: BTreeMap<Arc<str>, Stale>,
    /// Of some of them it may not be known whether they were deleted on purpose.
    may_doubt: bool,
    /// How far the nodes of each layer have been heard.
    heard: [Heard; Layer::ALL.len()],
    /// Deletions that wait for word of their owners, with their revisions, in the order of their times.
    held: VecDeque<(Instant, Arc<str>, u64)>,
    /// What was deleted a moment ago while its owner was there.
    buried: VecDeque<(Instant, Arc<str>, AddressRecord)>,
    /// Named ports of identities, and how many addresses have each.
    ports: BTreeMap<NumericIdentity, BTreeMap<NamedPort, usize>>,
    /// Identities whose named ports are others.
    new_ports: BTreeSet<NumericIdentity>,
    /// Identities of nodes' addresses, where they are told apart.
    told: HashMap<IpAddr, Told>,
    /// Labels of identities that no address has any more.
    retired: Vec<Labels>,
    /// An identity of a node is new.
    fresh: bool,
    refused: Refused,
    /// Keys that are refused for what others say of their prefixes.
    rivals: BTreeMap<IpNet, BTreeSet<Arc<str>>>,
    /// What of its record is different since that was last told.
    touched: Touched,
}

// === impl Remote ===

impl Remote {
    /// Nothing was said yet. Nodes that are told apart get their numbers from `numbers`.
    pub fn new(config: RemoteConfig, ipcache: Ipcache, nodes: Nodes, numbers: Arc<NodeIdentities>) -> Self {
        Self {
            config,
            ipcache,
            nodes,
            numbers,
            addresses: BTreeMap::new(),
            members: BTreeMap::new(),
            echoes: Echoes::default(),
            hosts: HashMap::new(),
            behind: Hosts::default(),
            ranges: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            stale: BTreeMap::new(),
            may_doubt: false,
            heard: Default::default(),
            held: VecDeque::new(),
            buried: VecDeque::new(),
            ports: BTreeMap::new(),
            new_ports: BTreeSet::new(),
            told: HashMap::new(),
            retired: Vec::new(),
            fresh: false,
            refused: Refused::default(),
            rivals: BTreeMap::new(),
            touched: Touched::default(),
        }
    }

    /// Entries that could not be used.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// How many entries there are.
    pub fn counts(&self) -> RemoteCounts {
        let others = || self.members.values().filter(|member| !member.own);
        RemoteCounts {
            addresses: self.addresses.len(),
            unresolved: self.unresolved.values().map(BTreeSet::len).sum(),
            stale_addresses: self.stale.len(),
            doubted_addresses: self.doubts().count(),
            nodes: others().count(),
            stale_nodes: others().filter(|member| member.stale.is_some()).count(),
        }
    }

    /// The keys of addresses that are known in a layer, and whether each is under a lease.
    pub fn address_keys(&self, layer: Layer) -> Vec<(Arc<str>, bool)> {
        let its = self.addresses.iter().filter(|(key, _)| Layer::of(key) == layer);
        its.map(|(key, address)| (Arc::clone(key), address.leased)).collect()
    }

    /// The keys of nodes that are known in a layer, and whether each is under a lease.
    pub fn node_keys(&self, layer: Layer) -> Vec<(Arc<str>, bool)> {
        let others = self.members.iter().filter(|(_, member)| !member.own && member.layer == layer);
        let others = others.map(|(key, member)| (key, member.leased));
        let echoes = self.echoes.iter().filter(|(_, of, _)| *of == layer);
        others
            .chain(echoes.map(|(key, _, echo)| (key, echo.leased)))
            .map(|(key, leased)| (layer.of_state(key).into(), leased))
            .collect()
    }

    /// Takes in changes of what other clusters say of themselves.
    pub fn apply_clusters(&mut self, layer: Layer, batch: &Batch) {
        for (key, outcome) in self.config.others.apply(layer, batch) {
            match outcome {
                Ok(()) => self.refused.accept(&key),
                Err(reason) => self.refused.refuse_write(&key, reason, batch.relisted.is_none()),
            }
        }
    }

    /// An entry among copies is another cluster's, or it is none.
    fn must_be_another_clusters(&self, cluster: &str) -> Result<(), String> {
        match cluster == self.config.cluster {
            true => Err(format!("{cluster} is this cluster: its own entries lie among no copies")),
            false => Ok(()),
        }
    }
}
