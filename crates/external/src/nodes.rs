//! The nodes of the store: what is theirs can't be a resource's.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use tokio::{sync::watch, task::JoinHandle};
use villus_kvstore::{Batch, Follow, Item, NodeEntry, Pace, Store, keys};

/// Follows the nodes.
pub(crate) struct Nodes {
    known: Arc<Mutex<Known>>,
    synced: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Known {
    nodes: BTreeMap<Arc<str>, NodeEntry>,
    /// Addresses of nodes.
    own: HashMap<IpAddr, Arc<str>>,
    /// Ranges by their first address. Those of different nodes do not overlap.
    ranges: BTreeMap<IpAddr, (IpNet, Arc<str>)>,
}

// === impl Nodes ===

impl Nodes {
    pub fn start(store: Arc<dyn Store>, pace: Pace) -> Self {
        let known: Arc<Mutex<Known>> = Arc::default();
        let synced = watch::Sender::new(false);
        let (to, done) = (Arc::clone(&known), synced.clone());
        let task = tokio::spawn(async move {
            let mut follow = Follow::start(store, &format!("{}/", keys::NODES), pace);
            while let Some(batch) = follow.next().await {
                to.lock().unwrap_or_else(PoisonError::into_inner).apply(&batch);
                done.send_replace(true);
            }
        });
        Self { known, synced, task }
    }

    /// Waits until they were listed once.
    pub async fn synced(&self) {
        // An error means that the sender is gone, which `self` prevents.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The address by which a node of the cluster is known, IPv4 if it has one.
    pub fn address(&self, cluster: &str, name: &str) -> Option<IpAddr> {
        let known = self.known();
        let node = known.nodes.get(keys::join_key([keys::NODES, cluster, name]).as_str())?;
        node.address(true).or_else(|| node.address(false))
    }

    /// Whose an address is, for people: it is a node's, or of a range that a node's pods get addresses of.
    pub fn owner(&self, address: IpAddr) -> Option<String> {
        let known = self.known();
        let name = |key: &Arc<str>| known.nodes.get(key).map(|node| node.name.clone()).unwrap_or_default();
        if let Some(key) = known.own.get(&address) {
            return Some(format!("node {}", name(key)));
        }
        let (_, (range, key)) = known.ranges.range(..=address).next_back()?;
        range.contains(&address).then(|| format!("the pods of node {}, whose range is {range}", name(key)))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Known ===

impl Known {
    fn apply(&mut self, batch: &Batch) {
        for item in &batch.items {
            match item {
                Item::Put(entry) => {
                    self.remove(&entry.key);
                    // What can't be read says nothing that could be respected.
                    if let Ok(node) = NodeEntry::read(&entry.key, &entry.value) {
                        self.add(&entry.key, node);
                    }
                }
                Item::Delete { key, .. } => self.remove(key),
            }
        }
    }

    fn add(&mut self, key: &Arc<str>, node: NodeEntry) {
        self.own.extend(node.addresses.iter().map(|address| (address.ip, Arc::clone(key))));
        let ranges = node.ranges().map(|range| (range.network(), (range, Arc::clone(key))));
        self.ranges.extend(ranges);
        self.nodes.insert(Arc::clone(key), node);
    }

    fn remove(&mut self, key: &str) {
        let Some(node) = self.nodes.remove(key) else { return };
        let is_its = |owner: &Arc<str>| **owner == *key;
        for address in &node.addresses {
            if self.own.get(&address.ip).is_some_and(is_its) {
                self.own.remove(&address.ip);
            }
        }
        for range in node.ranges() {
            if self.ranges.get(&range.network()).is_some_and(|(_, owner)| is_its(owner)) {
                self.ranges.remove(&range.network());
            }
        }
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
        assert_eq!(owner("10.3.9.1").unwrap(), "node n1");
        assert!(owner("10.2.1.255").unwrap().contains("pods of node n1, whose range is 10.2.1.0/24"));
        assert_eq!((owner("10.2.0.255"), owner("10.2.2.0"), owner("fd00::1")), (None, None, None));
        assert_eq!(nodes.address("c7", "n1"), Some("10.3.9.1".parse().unwrap()));
        assert_eq!(nodes.address("c8", "n1"), None);
        memory.delete(key).await.unwrap();
        while owner("10.3.9.1").is_some() || owner("10.2.1.1").is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
