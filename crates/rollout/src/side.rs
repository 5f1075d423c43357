//! One set of policies, ready to be asked: identities numbered, endpoints' policies compiled when they are needed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use villus_flows::Direction;
use villus_labels::{Labels, NumericIdentity, cidr_labels, source};
use villus_policy::{
    EndpointPolicy, Explanation, NamedPort, Overflow, Repository, Settings, with_named_ports,
};

use crate::{Objects, Peer};

/// Numbers of identities and prefixes. Both sides of a comparison use the same ones.
#[derive(Clone, Debug)]
pub struct Numbers {
    by_labels: HashMap<Labels, NumericIdentity>,
    prefixes: HashMap<IpNet, NumericIdentity>,
    next: u32,
    next_prefix: u32,
    node_prefixes: bool,
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new([], [])
    }
}

impl Numbers {
    /// The numbers that are known. Others are made up where they are needed, from the far ends of their ranges.
    pub fn new(
        identities: impl IntoIterator<Item = (NumericIdentity, Labels)>,
        prefixes: impl IntoIterator<Item = (IpNet, NumericIdentity)>,
    ) -> Self {
        let reserved = NumericIdentity::reserved().filter_map(|(id, _)| Some((id.reserved_labels()?, id)));
        let mut by_labels: HashMap<Labels, NumericIdentity> = reserved.collect();
        by_labels.extend(identities.into_iter().map(|(identity, labels)| (labels, identity)));
        Self {
            by_labels,
            prefixes: prefixes.into_iter().collect(),
            next: NumericIdentity::SCOPE_LOCAL - 1,
            next_prefix: *NumericIdentity::LOCAL_RANGE.end(),
            node_prefixes: false,
        }
    }

    /// Whether prefixes mean nodes too (`policy-cidr-match-mode=nodes`); without this they do not.
    #[must_use]
    pub fn with_node_prefixes(self, node_prefixes: bool) -> Self {
        Self { node_prefixes, ..self }
    }

    /// Whether prefixes mean nodes too.
    pub(crate) fn has_node_prefixes(&self) -> bool {
        self.node_prefixes
    }

    /// The labels by which policies know a peer; none of an address outside.
    pub(crate) fn labels_of<'a>(&self, peer: &'a Peer) -> Option<Cow<'a, Labels>> {
        match peer {
            // All addresses of the node itself are one identity.
            Peer::Node { labels, address } if self.node_prefixes && !labels.has_reserved("host") => {
                Some(Cow::Owned(with_prefixes(labels.clone(), *address)))
            }
            peer => peer.labels().map(Cow::Borrowed),
        }
    }

    /// The number of labels.
    pub fn of_labels(&mut self, labels: &Labels) -> NumericIdentity {
        if let Some(known) = self.by_labels.get(labels) {
            return *known;
        }
        let number = NumericIdentity(self.next);
        self.next = self.next.saturating_sub(1);
        self.by_labels.insert(labels.clone(), number);
        number
    }

    /// The number of a prefix.
    fn of_prefix(&mut self, prefix: IpNet) -> NumericIdentity {
        if let Some(world) = NumericIdentity::of_prefix(prefix) {
            return world;
        }
        let next = &mut self.next_prefix;
        *self.prefixes.entry(prefix).or_insert_with(|| {
            let number = NumericIdentity(*next);
            *next -= 1;
            number
        })
    }

    /// Whether a number was made up.
    pub(crate) fn is_made_up(&self, identity: NumericIdentity) -> bool {
        let global = identity.0 > self.next && identity.0 < NumericIdentity::SCOPE_LOCAL;
        global || (identity.is_local() && identity.0 > self.next_prefix)
    }

    /// The labels of all identities that have some, prefixes included.
    pub(crate) fn labels(&self) -> BTreeMap<NumericIdentity, Labels> {
        let prefixes = self.prefixes.iter().map(|(prefix, number)| (*number, cidr_labels(*prefix)));
        self.by_labels.iter().map(|(labels, number)| (*number, labels.clone())).chain(prefixes).collect()
    }
}

/// Labels of a node with the prefixes that cover an address of it.
pub(crate) fn with_prefixes(labels: Labels, address: IpAddr) -> Labels {
    let covering = cidr_labels(IpNet::from(address));
    let prefixes = covering.iter().filter(|label| label.source() == source::CIDR);
    prefixes.fold(labels, |all, label| all.with(label.clone()))
}

/// Policies over identities.
#[derive(Debug)]
pub struct Side {
    repository: Repository,
    /// Named ports of whoever has certain labels.
    ports: HashMap<Labels, BTreeSet<NamedPort>>,
    /// Prefixes in use, by family and length.
    lengths: [BTreeSet<u8>; 2],
    in_use: BTreeMap<IpNet, NumericIdentity>,
    compiled: HashMap<Labels, Result<Arc<EndpointPolicy>, Overflow>>,
    most: usize,
}

impl Side {
    /// These policies over the identities that `numbers` knows. An endpoint's map holds at most `most` entries.
    #[must_use]
    pub fn new(settings: Settings, objects: Objects, numbers: &mut Numbers, most: usize) -> Self {
        let host = objects.host.clone();
        let ports = numbers
            .by_labels
            .iter()
            .filter_map(|(labels, identity)| Some((labels.clone(), objects.ports.get(identity)?.clone())));
        let ports: HashMap<Labels, BTreeSet<NamedPort>> = ports.collect();
        let mut repository = objects.into_repository(settings);
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        let mut in_use = BTreeMap::new();
        for prefix in repository.prefixes_in_use().collect::<Vec<_>>() {
            lengths[usize::from(prefix.addr().is_ipv6())].insert(prefix.prefix_len());
            in_use.insert(prefix, numbers.of_prefix(prefix));
        }
        for (labels, identity) in &numbers.by_labels {
            repository.upsert_identity(*identity, labels);
        }
        if let Some(labels) = host {
            repository.upsert_identity(NumericIdentity::HOST, &labels);
        }
        for (prefix, identity) in &in_use {
            if prefix.prefix_len() > 0 {
                repository.upsert_identity(*identity, &cidr_labels(*prefix));
            }
        }
        Self { repository, ports, lengths, in_use, compiled: HashMap::new(), most }
    }

    /// What an endpoint with these labels holds, those for its named ports among them ([`with_named_ports`]).
    ///
    /// # Errors
    /// More entries than fit.
    pub fn policy_of(&mut self, subject: &Labels) -> Result<Arc<EndpointPolicy>, Overflow> {
        if let Some(known) = self.compiled.get(subject) {
            return known.clone();
        }
        let compiled = self.repository.endpoint_policy(subject, self.most).map(Arc::new);
        self.compiled.insert(subject.clone(), compiled.clone());
        compiled
    }

    /// Labels and those for the named ports of all who have them.
    pub(crate) fn with_ports(&self, subject: &Labels) -> Labels {
        with_named_ports(subject, self.ports.get(subject).into_iter().flatten())
    }

    /// The number under which a peer is looked up; `None` for labels that had none when the side was made.
    #[must_use]
    pub fn identity_of(&self, peer: &Peer, numbers: &Numbers) -> Option<NumericIdentity> {
        match peer {
            Peer::World(address) => Some(self.identity_of_address(*address)),
            _ => numbers.labels_of(peer).and_then(|labels| numbers.by_labels.get(&*labels).copied()),
        }
    }

    /// The number of an address outside: that of the longest prefix in use which holds it.
    #[must_use]
    pub fn identity_of_address(&self, address: IpAddr) -> NumericIdentity {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let longest = lengths.iter().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.in_use.get(&prefix).copied()
        });
        let world = if address.is_ipv4() { NumericIdentity::WORLD_IPV4 } else { NumericIdentity::WORLD_IPV6 };
        longest.unwrap_or(world)
    }

    /// What becomes of a packet, and why. The subject's named ports are those of all with its labels.
    ///
    /// # Errors
    /// The subject's policy does not fit.
    pub fn judge(
        &mut self,
        subject: &Labels,
        direction: Direction,
        peer: NumericIdentity,
        port: u16,
        protocol: u8,
    ) -> Result<Explanation, Overflow> {
        let subject = self.with_ports(subject);
        Ok(self.policy_of(&subject)?.explain(direction, peer.0, port, protocol))
    }
}
