//! Who other nodes are to policy: all alike, or told apart by what they say of themselves and by their addresses.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ipnet::IpNet;
use villus_kvstore::NodeEntry;
use villus_labels::{Label, Labels, NumericIdentity, cidr_labels, source};

use super::Remote;

/// An address of a node that has an identity of its own.
pub(super) struct Told {
    node: Arc<str>,
    labels: Labels,
    number: NumericIdentity,
}

// === impl Remote ===

impl Remote {
    /// The identity of an address of another node. For one of nobody's it is that of any node.
    pub fn node_identity(&self, ip: IpAddr) -> NumericIdentity {
        self.told.get(&ip).map_or(NumericIdentity::REMOTE_NODE, |told| told.number)
    }

    /// Whether identities of nodes came or are not used any more since [`Self::end_retired`] was called. Policy must know
    /// those that came before the kernel is told of their addresses, and the other way round.
    pub fn has_new_identities(&self) -> bool {
        self.fresh || !self.retired.is_empty()
    }

    /// Gives back identities of nodes that no address has any more.
    pub fn end_retired(&mut self, now: Instant) {
        self.fresh = false;
        for labels in self.retired.drain(..) {
            self.numbers.release(labels, now);
        }
    }

    /// Gives each address of a node the identity that it should have; what the node had beside is retired.
    pub(super) fn tell_apart(&mut self, key: &Arc<str>, entry: &NodeEntry) {
        let is_told = self.config.node_labels || self.config.node_prefixes;
        let kept: Vec<IpAddr> =
            entry.addresses.iter().map(|address| address.ip).filter(|_| is_told).collect();
        self.retire(key, |ip| kept.contains(&ip));
        for ip in kept {
            let labels = self.labels_of(entry, ip);
            let is_same = |told: &Told| Some(&told.labels) == labels.as_ref() && told.node == *key;
            if self.told.get(&ip).is_some_and(is_same) {
                continue;
            }
            let number = labels.map(|labels| (self.numbers.acquire(labels.clone(), Instant::now()), labels));
            let told = match number {
                Some((Ok(number), labels)) => Some(Told { node: Arc::clone(key), labels, number }),
                Some((Err(error), _)) => {
                    self.refused.refuse(key, error.to_string());
                    None
                }
                None => None,
            };
            self.fresh |= told.is_some();
            let before = match told {
                Some(told) => self.told.insert(ip, told),
                None => self.told.remove(&ip),
            };
            self.retired.extend(before.map(|told| told.labels));
        }
    }

    /// Addresses of a node have no identity of their own any more, but those that are kept.
    pub(super) fn retire(&mut self, key: &str, keep: impl Fn(IpAddr) -> bool) {
        let gone = self.told.extract_if(|ip, told| *told.node == *key && !keep(*ip));
        self.retired.extend(gone.map(|(_, told)| told.labels));
    }

    /// What policy should know of a node's address beside that a node has it; `None` if that is nothing.
    fn labels_of(&self, entry: &NodeEntry, ip: IpAddr) -> Option<Labels> {
        let any = NumericIdentity::REMOTE_NODE.reserved_labels()?;
        let own = entry.labels.iter().filter(|_| self.config.node_labels);
        let own = own.filter_map(|(key, value)| Label::new(source::NODE, key, value).ok());
        let prefixes = self.config.node_prefixes.then(|| cidr_labels(IpNet::from(ip)));
        let prefixes = prefixes.iter().flat_map(Labels::iter).filter(|label| label.source() == source::CIDR);
        let more = own.chain(prefixes.cloned()).fold(Labels::default(), |all, label| all.with(label));
        let all = any.iter().fold(more, |all, label| all.with(label.clone()));
        (all != any).then_some(all)
    }
}
