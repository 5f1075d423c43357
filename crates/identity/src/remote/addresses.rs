//! Addresses of others.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use villus_kvstore::{Batch, Entry, IpIdentityPair, Item, NamedPort};
use villus_labels::{NumericIdentity, Scope};

use super::{Layer, Ownership, Remote, Surroundings};
use crate::ipcache::{Claim, Edit, Mapping};

/// The largest value that is read; one of an address has some hundred bytes.
const MAX: usize = 64 << 10;

/// One entry of an address, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The address or prefix.
    pub prefix: IpNet,
    /// Who it is.
    pub identity: NumericIdentity,
    /// The node, or other machine, behind which it lives.
    pub host: Option<IpAddr>,
    /// Index of the encryption key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key: u8,
    /// The named ports of its workload.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ports: Box<[NamedPort]>,
    /// The key was under a lease.
    pub leased: bool,
    /// It says of itself that this node's agent wrote it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ours: bool,
    /// Revision of its last write; 0 if that is of another past.
    #[serde(skip)]
    pub revision: u64,
    /// The key was deleted, and word of its owner is waited for.
    #[serde(skip)]
    pub(super) waits: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

// === impl AddressRecord ===

impl AddressRecord {
    /// A value that says what is known of it, for its key.
    pub(super) fn value(&self, key: &str) -> String {
        let mask = match self.prefix {
            IpNet::V4(net) => net.netmask().octets().to_vec(),
            IpNet::V6(net) => net.netmask().octets().to_vec(),
        };
        let is_prefix = key.rsplit('/').next().is_some_and(|last| last.parse::<IpAddr>().is_err());
        let pair = IpIdentityPair {
            mask: is_prefix.then_some(mask),
            key: self.key,
            named_ports: self.ports.to_vec(),
            ..IpIdentityPair::new(self.prefix.addr(), self.identity.0, self.host)
        };
        pair.to_json()
    }
}

// === impl Remote ===

impl Remote {
    /// Takes in changes of addresses. Returns the keys of this node that others have changed or deleted.
    pub fn apply_addresses(
        &mut self,
        batch: &Batch,
        around: &dyn Surroundings,
        now: Instant,
    ) -> Vec<Arc<str>> {
        let lost = batch.is_of_another_past();
        let mut altered = Vec::new();
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for item in &batch.items {
            match item {
                Item::Put(entry) => match around.ownership(&entry.key, Some(&entry.value)) {
                    Ownership::Other => match self.read(entry) {
                        Ok(address) => {
                            let prefix = address.prefix;
                            self.put_address(&mut edit, Arc::clone(&entry.key), address, around);
                            if !self.is_rival(&entry.key, prefix) {
                                self.refused.accept(&entry.key);
                            }
                        }
                        Err(reason) => {
                            self.refused.refuse_write(&entry.key, reason, batch.relisted.is_none())
                        }
                    },
                    Ownership::AsWritten => drop(self.drop_address(&mut edit, &entry.key)),
                    Ownership::Altered => altered.push(Arc::clone(&entry.key)),
                },
                Item::Delete { key, leased, revision } => {
                    self.refused.accept(key);
                    if around.ownership(key, None) != Ownership::Other {
                        altered.push(Arc::clone(key));
                    } else if lost {
                        self.lose_address(&mut edit, key, now);
                    } else {
                        self.delete_address(&mut edit, key, *leased, *revision, now);
                    }
                }
            }
        }
        altered
    }

    /// Gives back memory that is kept for addresses to come: a long list in the order of the keys leaves half of it empty.
    pub fn pack(&mut self) {
        self.addresses = std::mem::take(&mut self.addresses).into_iter().collect();
    }

    /// Identities came or went: addresses that wait for them are resolved, those that lost theirs wait again.
    pub fn resolve(&mut self, identity: NumericIdentity, is_known: bool) {
        let keys: Vec<Arc<str>> = match is_known {
            true => self.unresolved.remove(&identity).into_iter().flatten().collect(),
            false => {
                let of = self.addresses.iter().filter(|(_, address)| address.identity == identity);
                of.map(|(key, _)| Arc::clone(key)).collect()
            }
        };
        if keys.is_empty() {
            return;
        }
        let ipcache = self.ipcache.clone();
        let mut edit = ipcache.edit();
        for key in keys {
            let Some(address) = self.addresses.get(&key) else { continue };
            self.claim(&mut edit, &key, address, !is_known);
            if !is_known {
                self.unresolved.entry(identity).or_default().insert(key);
            }
        }
    }

    /// Keys that an agent of this node has left behind, with their revisions: under a lease, written by this node as
    /// they say, and not owned any more.
    pub fn leftovers(&self, around: &dyn Surroundings) -> Vec<(Arc<str>, u64)> {
        let ours = |key: &str, a: &AddressRecord| {
            a.ours
                && a.leased
                && a.revision > 0
                && !self.stale.contains_key(key)
                && around.ownership(key, None) == Ownership::Other
        };
        let left = self.addresses.iter().filter(|(key, address)| ours(key, address));
        left.map(|(key, address)| (Arc::clone(key), address.revision)).collect()
    }

    fn read(&self, entry: &Entry) -> Result<AddressRecord, String> {
        if entry.value.len() > MAX {
            return Err(format!(
                "the value has {} bytes; one of an address has at most {MAX}",
                entry.value.len()
            ));
        }
        let layer = Layer::of(&entry.key);
        let key = Layer::in_state(&entry.key);
        let (space, pair) = IpIdentityPair::read(&key, &entry.value).map_err(|error| error.to_string())?;
        let prefix = pair.prefix().ok_or("the mask does not fit the address")?.trunc();
        if prefix.prefix_len() == 0 {
            return Err("it claims all addresses".to_owned());
        }
        let identity = match NumericIdentity(pair.id) {
            NumericIdentity::UNKNOWN => return Err("identity 0 is nobody's".to_owned()),
            // Each node is the host to itself only.
            NumericIdentity::HOST => NumericIdentity::REMOTE_NODE,
            number if number.scope() == Scope::Global => number,
            number => {
                return Err(format!("{number} is no identity of a cluster: it is known to one node alone"));
            }
        };
        if layer != Layer::State {
            self.must_be_another_clusters(space)?;
            if self.config.range.contains(&identity.0) {
                return Err(format!("{identity} is an identity of this cluster, the address is of {space}"));
            }
        }
        self.config.others.may_have(layer, space, identity)?;
        let writer = format!("cilium-global:{}:{}:", self.config.cluster, self.config.node);
        Ok(AddressRecord {
            prefix,
            identity,
            host: pair.host_ip,
            key: pair.key,
            ports: pair.named_ports.into(),
            leased: entry.lease.is_some(),
            ours: pair.metadata.starts_with(&writer),
            // A host's entry wins over a prefix that happens to be as long.
            revision: if pair.mask.is_some() && prefix.prefix_len() == prefix.max_prefix_len() {
                0
            } else {
                entry.mod_revision
            },
            waits: false,
        })
    }

    pub(super) fn put_address(
        &mut self,
        edit: &mut Edit<'_>,
        key: Arc<str>,
        address: AddressRecord,
        around: &dyn Surroundings,
    ) {
        let before = self.remove_address(edit, &key);
        let pending = !around.is_known(address.identity);
        self.claim(edit, &key, &address, pending);
        if pending {
            self.unresolved.entry(address.identity).or_default().insert(Arc::clone(&key));
        }
        self.count_ports(&address, true);
        if address.leased {
            self.config.leased.add(address.identity);
        }
        self.touched.address(&key);
        let prefix = address.prefix;
        self.addresses.insert(key, address);
        if let Some(before) = before.filter(|before| before.prefix != prefix) {
            self.settle_rivals(edit, before.prefix);
        }
        self.settle_rivals(edit, prefix);
    }

    pub(super) fn claim(&self, edit: &mut Edit<'_>, key: &Arc<str>, address: &AddressRecord, pending: bool) {
        edit.upsert(address.prefix, self.claim_of(key, address, pending));
    }

    /// What an entry says about its prefix.
    pub(super) fn claim_of(&self, key: &Arc<str>, address: &AddressRecord, pending: bool) -> Claim {
        let tunnel = self.tunnel_to(Layer::of(key), address.host);
        // That a node has it is said better by the node's own key, which may tell it from others.
        let is_node = address.identity == NumericIdentity::REMOTE_NODE;
        // Services may have a node's own address, and a prefix more than endpoints in it.
        let is_endpoint = !is_node && address.prefix.prefix_len() == address.prefix.max_prefix_len();
        let routed = is_endpoint && self.is_routed(address.prefix);
        let mapping = Mapping { identity: address.identity, tunnel, key: address.key, pending, routed };
        let (owner, revision) = (Arc::clone(key), if is_node { 0 } else { address.revision });
        Claim { rank: Layer::of(key).rank(), owner, revision, mapping }
    }

    /// Whether packets to and from endpoints in a prefix travel as they are.
    pub(super) fn is_routed(&self, prefix: IpNet) -> bool {
        self.config.routed.iter().any(|around| around.contains(&prefix))
    }

    /// Whether the address waits for its identity.
    pub(super) fn is_unresolved(&self, key: &str, address: &AddressRecord) -> bool {
        self.unresolved.get(&address.identity).is_some_and(|waiting| waiting.contains(key))
    }

    /// Forgets an entry; that there is none is fine.
    pub(super) fn drop_address(&mut self, edit: &mut Edit<'_>, key: &str) -> Option<AddressRecord> {
        let address = self.remove_address(edit, key)?;
        self.settle_rivals(edit, address.prefix);
        Some(address)
    }

    fn remove_address(&mut self, edit: &mut Edit<'_>, key: &str) -> Option<AddressRecord> {
        let (key, address) = self.addresses.remove_entry(key)?;
        self.touched.address(&key);
        let key = &*key;
        self.stale.remove(key);
        self.count_ports(&address, false);
        if address.leased {
            self.config.leased.remove(address.identity);
        }
        if let Some(waiting) = self.unresolved.get_mut(&address.identity) {
            waiting.remove(key);
            if waiting.is_empty() {
                self.unresolved.remove(&address.identity);
            }
        }
        edit.remove(address.prefix, Layer::of(key).rank(), key, u64::MAX);
        Some(address)
    }
}

pub(super) fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}
