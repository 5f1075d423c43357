//! The nodes of the store and the clusters that it knows: what is theirs can't be a resource's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use tokio::{sync::watch, task::JoinHandle};
use villus_kvstore::{Batch, Follow, Item, NodeEntry, Pace, Store, keys};

/// Follows nodes, copies of other clusters' among them, and the names of clusters.
pub(crate) struct Nodes {
    known: Arc<Mutex<Known>>,
    /// How many of the prefixes were listed.
    synced: watch::Sender<usize>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Known {
    /// By their keys, as the store has them.
    nodes: BTreeMap<Arc<str>, NodeEntry>,
    /// The keys of who has an address.
    own: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    /// The keys of whose pods get addresses of a range.
    ranges: HashMap<IpNet, BTreeSet<Arc<str>>>,
    /// How many ranges there are of each length, of each family.
    lengths: BTreeMap<(bool, u8), usize>,
    /// Clusters that say something of themselves.
    clusters: BTreeSet<String>,
}

// === impl Nodes ===

impl Nodes {
    pub fn start(store: Arc<dyn Store>, pace: Pace) -> Self {
        let known: Arc<Mutex<Known>> = Arc::default();
        let synced = watch::Sender::new(0);
        let prefixes = Self::prefixes().map(|prefix| format!("{prefix}/"));
        let follow = prefixes.into_iter().map(|prefix| {
            let (to, done) = (Arc::clone(&known), synced.clone());
            let mut follow = Follow::start(Arc::clone(&store), &prefix, pace.clone());
            tokio::spawn(async move {
                let mut first = true;
                while let Some(batch) = follow.next().await {
                    to.lock().unwrap_or_else(PoisonError::into_inner).apply(&batch);
                    if std::mem::take(&mut first) {
                        done.send_modify(|listed| *listed += 1);
                    }
                }
            })
        });
        let tasks = follow.collect();
        Self { known, synced, tasks }
    }

    fn prefixes() -> [String; 3] {
        [keys::NODES.to_owned(), keys::state_to_cache(keys::NODES), keys::CLUSTER_CONFIG.to_owned()]
    }

    /// Waits until they were listed once.
    pub async fn synced(&self) {
        let all = Self::prefixes().len();
        // An error means that the sender is gone, which `self` prevents.
        let _ = self.synced.subscribe().wait_for(|listed| *listed >= all).await;
    }

    /// The address by which a node of the cluster is known, IPv4 if it has one.
    pub fn address(&self, cluster: &str, name: &str) -> Option<IpAddr> {
        let known = self.known();
        let node = known.nodes.get(keys::join_key([keys::NODES, cluster, name]).as_str())?;
        node.address(true).or_else(|| node.address(false))
    }

    /// Clusters that the store tells of, by what they say of themselves or by their nodes.
    pub fn clusters(&self) -> BTreeSet<String> {
        let known = self.known();
        let by_nodes = known.nodes.values().map(|node| node.cluster.clone());
        known.clusters.iter().cloned().chain(by_nodes).collect()
    }

    /// Whose an address is, for people: it is a node's, or of a range that a node's pods get addresses of.
    pub fn owner(&self, address: IpAddr) -> Option<String> {
        let known = self.known();
        let name = |keys: &BTreeSet<Arc<str>>| {
            // What the state says comes before what is a copy.
            let node = keys.last().and_then(|key| known.nodes.get(key))?;
            Some(format!("node {} of cluster {}", node.name, node.cluster))
        };
        if let Some(keys) = known.own.get(&address) {
            return name(keys);
        }
        let lengths = known.lengths.keys().rev().filter(|(v4, _)| *v4 == address.is_ipv4());
        let mut around = lengths.filter_map(|(_, length)| IpNet::new(address, *length).ok());
        let (range, keys) =
            around.find_map(|net| known.ranges.get(&net.trunc()).map(|keys| (net.trunc(), keys)))?;
        Some(format!("the pods of {}, whose range is {range}", name(keys)?))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

// === impl Known ===

impl Known {
    fn apply(&mut self, batch: &Batch) {
        for item in &batch.items {
            let (key, value) = match item {
                Item::Put(entry) => (&entry.key, Some(&entry.value)),
                Item::Delete { key, .. } => (key, None),
            };
            if let Some(cluster) = key.strip_prefix(keys::CLUSTER_CONFIG) {
                let cluster = cluster.trim_start_matches('/').to_owned();
                match value {
                    Some(_) => self.clusters.insert(cluster),
                    None => self.clusters.remove(&cluster),
                };
                continue;
            }
            self.remove(key);
            // What can't be read says nothing that could be respected.
            if let Some(value) = value
                && let Ok(node) = NodeEntry::read(&in_state(key), value)
            {
                self.add(key, node);
            }
        }
    }

    fn add(&mut self, key: &Arc<str>, node: NodeEntry) {
        for address in &node.addresses {
            self.own.entry(address.ip).or_default().insert(Arc::clone(key));
        }
        for range in node.ranges().map(|range| range.trunc()) {
            self.ranges.entry(range).or_default().insert(Arc::clone(key));
            *self.lengths.entry((range.addr().is_ipv4(), range.prefix_len())).or_default() += 1;
        }
        self.nodes.insert(Arc::clone(key), node);
    }

    fn remove(&mut self, key: &str) {
        let Some(node) = self.nodes.remove(key) else { return };
        for address in &node.addresses {
            forget(&mut self.own, address.ip, key);
        }
        for range in node.ranges().map(|range| range.trunc()) {
            forget(&mut self.ranges, range, key);
            let length = (range.addr().is_ipv4(), range.prefix_len());
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
    }
}

fn forget<K: Eq + std::hash::Hash>(of: &mut HashMap<K, BTreeSet<Arc<str>>>, what: K, key: &str) {
    if let Some(keys) = of.get_mut(&what) {
        keys.remove(key);
        if keys.is_empty() {
            of.remove(&what);
        }
    }
}

/// The key that a copy has, or would have, among the state.
pub(crate) fn in_state(key: &str) -> String {
    match key.strip_prefix(keys::CACHE) {
        Some(rest) => format!("{}{rest}", keys::STATE),
        None => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use villus_kvstore::Memory;

    use super::*;

    #[tokio::test]
    async fn addresses_and_ranges_of_nodes_are_theirs_until_they_go() {
        let memory: Arc<dyn Store> = Arc::new(Memory::new().unwrap());
        let key = "cilium/state/nodes/v1/c7/n1";
        let value = r#"{"Name":"n1","Cluster":"c7","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.1"}],"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="}}"#;
        memory.update(key, value.into(), None).await.unwrap();
        memory.update("cilium/state/nodes/v1/c7/odd", "{".into(), None).await.unwrap();
        let backoff = villus_table::Backoff::try_new(
            std::time::Duration::from_millis(5),
            std::time::Duration::from_millis(50),
            0.5,
        );
        let nodes = Nodes::start(Arc::clone(&memory), backoff.unwrap().into());
        nodes.synced().await;
        let owner = |text: &str| nodes.owner(text.parse().unwrap());
        assert_eq!(owner("10.3.9.1").unwrap(), "node n1 of cluster c7");
        assert!(
            owner("10.2.1.255")
                .unwrap()
                .contains("pods of node n1 of cluster c7, whose range is 10.2.1.0/24")
        );
        assert_eq!((owner("10.2.0.255"), owner("10.2.2.0"), owner("fd00::1")), (None, None, None));
        assert_eq!(nodes.address("c7", "n1"), Some("10.3.9.1".parse().unwrap()));
        assert_eq!(nodes.address("c8", "n1"), None);
        // Copies of another cluster's nodes, one of them in both layouts, with a range within a larger one.
        let copy = r#"{"Name":"n2","Cluster":"c8","IPAddresses":[{"Type":"InternalIP","IP":"10.8.0.1"}],"IPv4AllocCIDR":{"IP":"10.2.0.0","Mask":"//8AAA=="}}"#;
        for key in ["cilium/cache/nodes/v1/c8/n2", "cilium/state/nodes/v1/c8/n2"] {
            memory.update(key, copy.into(), None).await.unwrap();
        }
        memory.update("cilium/cluster-config/c9", "{}".into(), None).await.unwrap();
        while owner("10.8.0.1").is_none() || nodes.clusters().len() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        memory.delete("cilium/state/nodes/v1/c8/n2").await.unwrap();
        while nodes.known().own.values().any(|keys| keys.len() > 1) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(owner("10.8.0.1").unwrap(), "node n2 of cluster c8");
        assert!(owner("10.2.1.1").unwrap().contains("node n1 of cluster c7"), "the narrower range counts");
        assert!(owner("10.2.7.1").unwrap().contains("node n2 of cluster c8, whose range is 10.2.0.0/16"));
        assert_eq!(nodes.clusters(), ["c7", "c8", "c9"].map(str::to_owned).into());
        memory.delete("cilium/cache/nodes/v1/c8/n2").await.unwrap();
        memory.delete("cilium/cluster-config/c9").await.unwrap();
        memory.delete(key).await.unwrap();
        while owner("10.3.9.1").is_some() || owner("10.2.1.1").is_some() || !nodes.clusters().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
