//! The ipcache: what the sources say about addresses, and who wins.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use villus_abi::{
    IpcacheKey, IpcacheValue,
    ipcache::{FAMILY_V4, FAMILY_V6, FLAG_PENDING, FLAG_ROUTED, STATIC_BITS},
};
use villus_labels::NumericIdentity;
use villus_table::{Snapshot, Table};

/// Where a claim comes from; the first of these wins (reference `kvstore` 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// The addresses of the API server.
    KubeApiserver,
    /// This node's endpoints and its own addresses.
    Local,
    /// The shared store.
    Kvstore,
    /// Kubernetes resources.
    CustomResource,
    /// Other clusters' stores.
    #[serde(rename = "clustermesh")]
    ClusterMesh,
    /// Files in a directory.
    Directory,
    /// Callers of the API.
    Api,
    /// Prefixes that policies name.
    Generated,
    /// What was known before a restart.
    Restored,
}

/// What an address maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mapping {
    /// Its identity.
    pub identity: NumericIdentity,
    /// The node behind which it lives, for a tunnel to it.
    pub tunnel: Option<Ipv4Addr>,
    /// Index of the encryption key, 0 for none.
    pub key: u8,
    /// A cluster's range whose addresses have identities of their own that may not have arrived yet.
    pub pending: bool,
    /// Endpoints of other nodes have it, the network takes packets to them as they are, and no NAT of the host is meant for it.
    pub routed: bool,
}

/// What one owner says about a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Kind of its source.
    pub rank: Rank,
    /// Who says so: a key of the store, an endpoint, a policy. One owner has one claim on a prefix.
    pub owner: Arc<str>,
    /// Order of what this owner says; an older revision never replaces or deletes a newer one.
    pub revision: u64,
    /// What it says.
    pub mapping: Mapping,
}

/// All claims on all prefixes. Clones share them.
#[derive(Clone)]
pub struct Ipcache {
    inner: Arc<Mutex<Inner>>,
    winners: Table<IpNet, Claim>,
}

#[derive(Default)]
struct Inner {
    /// The claims that do not win, the next one first. Nearly all prefixes have none.
    others: BTreeMap<IpNet, Vec<Claim>>,
    /// The prefixes that owners claim, of those that are no entries of a store.
    owned: HashMap<Arc<str>, BTreeSet<IpNet>>,
    /// How many prefixes of each length there are, IPv4 first.
    lengths: [BTreeMap<u8, usize>; 2],
}

/// Claims on one prefix, the winner first.
type Claims = SmallVec<[Claim; 1]>;

/// A change of many claims that shows at once.
pub struct Edit<'a> {
    inner: MutexGuard<'a, Inner>,
    winners: &'a Table<IpNet, Claim>,
    /// Prefixes whose claims are others now.
    touched: BTreeMap<IpNet, Claims>,
}

// === impl Rank ===

impl Rank {
    /// The name, as other agents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Local => "local",
            Self::Kvstore => "kvstore",
            Self::CustomResource => "custom-resource",
            Self::ClusterMesh => "clustermesh",
            Self::Directory => "directory",
            Self::Api => "api",
            Self::Generated => "generated",
            Self::Restored => "restored",
        }
    }

    /// Whether its claims are entries of a store, each an owner of its own. Only of these there are many.
    fn is_of_a_store(self) -> bool {
        matches!(self, Self::Kvstore | Self::ClusterMesh)
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Mapping ===

impl Mapping {
    /// An identity on this node or without a tunnel.
    pub fn plain(identity: NumericIdentity) -> Self {
        Self { identity, tunnel: None, key: 0, pending: false, routed: false }
    }

    /// A cluster's range: its addresses are not the world, but who they are has to arrive first.
    pub fn cluster_range() -> Self {
        Self { pending: true, ..Self::plain(NumericIdentity::WORLD) }
    }
}

// === impl Claim ===

impl Claim {
    /// Whether both say the same, of the same source, if not at the same time.
    fn says_as(&self, other: &Self) -> bool {
        (self.mapping, self.rank, &self.owner) == (other.mapping, other.rank, &other.owner)
    }
}

// === impl Ipcache ===

impl Default for Ipcache {
    fn default() -> Self {
        Self::new()
    }
}

impl Ipcache {
    /// Nothing is known.
    pub fn new() -> Self {
        Self { inner: Arc::default(), winners: Table::new("ipcache") }
    }

    /// The winners, as they are to be in the kernel. A winner of which nothing but the revision is another is no change.
    pub fn winners(&self) -> &Table<IpNet, Claim> {
        &self.winners
    }

    /// Begins a change; what it does shows when it is dropped, all at once. Others wait meanwhile.
    pub fn edit(&self) -> Edit<'_> {
        Edit { inner: self.inner(), winners: &self.winners, touched: BTreeMap::new() }
    }

    /// Makes one claim. Returns whether it was news.
    pub fn upsert(&self, prefix: IpNet, claim: Claim) -> bool {
        self.edit().upsert(prefix, claim)
    }

    /// Takes one claim back. See [`Edit::remove`].
    pub fn remove(&self, prefix: IpNet, rank: Rank, owner: &str, revision: u64) -> bool {
        self.edit().remove(prefix, rank, owner, revision)
    }

    /// Makes many claims: far quicker than an [`Edit`] for entries of a store where little is known of their prefixes. What it
    /// does shows prefix by prefix.
    pub fn fill(&self, claims: impl IntoIterator<Item = (IpNet, Claim)>) {
        let mut known = Vec::new();
        {
            let mut inner = self.inner();
            let mut write = self.winners.write();
            for (prefix, claim) in claims {
                let prefix = prefix.trunc();
                if !claim.rank.is_of_a_store() {
                    known.push((prefix, claim));
                    continue;
                }
                match write.fill(prefix, claim) {
                    Ok(()) => inner.count(prefix, true),
                    Err(claim) => known.push((prefix, claim)),
                }
            }
            write.commit();
        }
        let mut edit = self.edit();
        for (prefix, claim) in known {
            edit.upsert(prefix, claim);
        }
    }

    /// The winner of the longest prefix that holds the address.
    pub fn lookup(&self, address: IpAddr) -> Option<(IpNet, Claim)> {
        let candidates: Vec<IpNet> = {
            let inner = self.inner();
            let lengths = &inner.lengths[family_index(address.is_ipv4())];
            lengths
                .keys()
                .rev()
                .filter_map(|len| IpNet::new(address, *len).ok())
                .map(|net| net.trunc())
                .collect()
        };
        let winners = self.winners.snapshot();
        candidates.into_iter().find_map(|prefix| winners.get(&prefix).map(|winner| (prefix, winner.clone())))
    }

    /// All claims on a prefix, the winner first.
    pub fn claims(&self, prefix: IpNet) -> Vec<Claim> {
        self.inner().claims(&self.winners, &prefix.trunc()).into_vec()
    }

    /// All prefixes with all claims, the winner first: the rows of `ip list`.
    pub fn list(&self) -> Vec<(IpNet, Vec<Claim>)> {
        let inner = self.inner();
        let winners = self.winners.snapshot();
        let row = |(prefix, winner): (&IpNet, &Claim)| {
            (*prefix, inner.with_others(prefix, winner).cloned().collect())
        };
        winners.iter().map(row).collect()
    }

    /// The winners of this moment.
    pub fn snapshot(&self) -> Snapshot<IpNet, Claim> {
        self.winners.snapshot()
    }

    /// Gives back memory that is kept for prefixes to come: a long list in their order leaves half of it empty.
    pub fn pack(&self) {
        self.winners.pack();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Edit ===

impl Edit<'_> {
    /// Makes a claim, or replaces the same owner's claim. One that is older than what the owner already said
    /// changes nothing. Returns whether it was news.
    pub fn upsert(&mut self, prefix: IpNet, claim: Claim) -> bool {
        let prefix = prefix.trunc();
        let mut claims = self.claims(&prefix);
        if let Some(old) = claims.iter_mut().find(|old| old.rank == claim.rank && old.owner == claim.owner) {
            if old.revision > claim.revision || *old == claim {
                return false;
            }
            *old = claim;
        } else {
            if !claim.rank.is_of_a_store() {
                self.inner.owned.entry(Arc::clone(&claim.owner)).or_default().insert(prefix);
            }
            claims.push(claim);
        }
        sort(&mut claims);
        self.touched.insert(prefix, claims);
        true
    }

    /// All claims on a prefix as they are by now, the winner first; none if there are less than two. It costs little where there are
    /// not.
    pub(crate) fn contested(&self, prefix: IpNet) -> Vec<Claim> {
        let prefix = prefix.trunc();
        let has_two = match self.touched.get(&prefix) {
            Some(claims) => claims.len() > 1,
            None => self.inner.others.contains_key(&prefix),
        };
        if has_two { self.claims(&prefix).into_vec() } else { Vec::new() }
    }

    /// Takes back the claim of this owner, if it is not newer than `revision`: whoever deletes says what it
    /// knew. Returns whether there was such a claim.
    pub fn remove(&mut self, prefix: IpNet, rank: Rank, owner: &str, revision: u64) -> bool {
        let prefix = prefix.trunc();
        self.retain_of(prefix, |claim| {
            claim.rank != rank || *claim.owner != *owner || claim.revision > revision
        }) > 0
    }

    /// Takes back all claims for which `keep` says no: those of a source that ended, or those that a complete
    /// list does not hold any more. Returns how many.
    pub fn retain(&mut self, mut keep: impl FnMut(IpNet, &Claim) -> bool) -> usize {
        let winners = self.winners.snapshot();
        let untouched = winners.iter().filter(|(prefix, _)| !self.touched.contains_key(prefix));
        let untouched = untouched.filter(|(prefix, winner)| {
            self.inner.with_others(prefix, winner).any(|claim| !keep(**prefix, claim))
        });
        let prefixes: Vec<IpNet> =
            untouched.map(|(prefix, _)| *prefix).chain(self.touched.keys().copied()).collect();
        prefixes.into_iter().map(|prefix| self.retain_of(prefix, |claim| keep(prefix, claim))).sum()
    }

    /// Takes back all claims of an owner, but for those on prefixes for which `keep` says yes and for entries of a store. It looks
    /// at no claim of others, however many there are. Returns how many.
    pub fn retain_owned(&mut self, owner: &str, mut keep: impl FnMut(IpNet) -> bool) -> usize {
        let owned = self.inner.owned.get(owner).into_iter().flatten();
        let gone: Vec<IpNet> = owned.filter(|prefix| !keep(**prefix)).copied().collect();
        let others = |claim: &Claim| *claim.owner != *owner || claim.rank.is_of_a_store();
        gone.into_iter().map(|prefix| self.retain_of(prefix, others)).sum()
    }

    /// Returns how many claims went.
    fn retain_of(&mut self, prefix: IpNet, mut keep: impl FnMut(&Claim) -> bool) -> usize {
        let (kept, gone): (Claims, Claims) = self.claims(&prefix).into_iter().partition(|claim| keep(claim));
        if gone.is_empty() {
            return 0;
        }
        for claim in gone.iter().filter(|claim| !claim.rank.is_of_a_store()) {
            let has = |other: &Claim| other.owner == claim.owner && !other.rank.is_of_a_store();
            if !kept.iter().any(has) {
                self.inner.disown(&claim.owner, &prefix);
            }
        }
        self.touched.insert(prefix, kept);
        gone.len()
    }

    fn claims(&self, prefix: &IpNet) -> Claims {
        self.touched.get(prefix).cloned().unwrap_or_else(|| self.inner.claims(self.winners, prefix))
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let mut write = self.winners.write();
        for (prefix, claims) in std::mem::take(&mut self.touched) {
            let mut claims = claims.into_iter();
            match (claims.next(), write.get(&prefix)) {
                (Some(winner), Some(old)) if winner.says_as(old) => {
                    if winner.revision != old.revision {
                        write.amend(&prefix, winner);
                    }
                }
                (Some(winner), old) => {
                    if old.is_none() {
                        self.inner.count(prefix, true);
                    }
                    write.put(prefix, winner);
                }
                (None, Some(_)) => {
                    self.inner.count(prefix, false);
                    write.delete(&prefix);
                }
                (None, None) => {}
            }
            let others: Vec<Claim> = claims.collect();
            match others.is_empty() {
                true => drop(self.inner.others.remove(&prefix)),
                false => drop(self.inner.others.insert(prefix, others)),
            }
        }
        write.commit();
    }
}

/// The winner first: rank, then what names an identity before what waits for one, then what was said last.
fn sort(claims: &mut [Claim]) {
    claims.sort_by(|a, b| {
        let order = (a.rank, a.mapping.pending).cmp(&(b.rank, b.mapping.pending));
        order.then(b.revision.cmp(&a.revision)).then_with(|| a.owner.cmp(&b.owner))
    });
}

fn family_index(v4: bool) -> usize {
    usize::from(!v4)
}

// === impl Inner ===

impl Inner {
    /// All claims on a prefix, the winner first.
    fn claims(&self, winners: &Table<IpNet, Claim>, prefix: &IpNet) -> Claims {
        let winner = winners.get(prefix);
        winner.iter().flat_map(|winner| self.with_others(prefix, winner)).cloned().collect()
    }

    /// A winner, and after it the other claims on its prefix.
    fn with_others<'a>(&'a self, prefix: &IpNet, winner: &'a Claim) -> impl Iterator<Item = &'a Claim> {
        std::iter::once(winner).chain(self.others.get(prefix).into_iter().flatten())
    }

    /// An owner claims a prefix no more.
    fn disown(&mut self, owner: &str, prefix: &IpNet) {
        let Some(prefixes) = self.owned.get_mut(owner) else { return };
        prefixes.remove(prefix);
        if prefixes.is_empty() {
            self.owned.remove(owner);
        }
    }

    fn count(&mut self, prefix: IpNet, more: bool) {
        let lengths = &mut self.lengths[family_index(matches!(prefix, IpNet::V4(_)))];
        let count = lengths.entry(prefix.prefix_len()).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            lengths.remove(&prefix.prefix_len());
        }
    }
}

/// Key and value of the kernel's map. What a prefix maps to is IPv4 only for the tunnel, as the layout is.
pub fn to_kernel(prefix: IpNet, mapping: &Mapping) -> (IpcacheKey, IpcacheValue) {
    let key = match prefix.trunc() {
        IpNet::V4(net) => IpcacheKey::v4(net.network().octets(), net.prefix_len()),
        IpNet::V6(net) => IpcacheKey::v6(net.network().octets(), net.prefix_len()),
    };
    let pending = if mapping.pending { FLAG_PENDING } else { 0 };
    let routed = if mapping.routed { FLAG_ROUTED } else { 0 };
    let value = IpcacheValue {
        identity: mapping.identity.0,
        tunnel: mapping.tunnel.map_or(0, |address| u32::from_ne_bytes(address.octets())),
        key: mapping.key,
        flags: pending | routed,
        pad: [0; 2],
    };
    (key, value)
}

/// What a key and value of the kernel's map mean; `None` for a key that no agent writes.
pub fn from_kernel(key: &IpcacheKey, value: &IpcacheValue) -> Option<(IpNet, Mapping)> {
    let len = u8::try_from(key.prefixlen.checked_sub(STATIC_BITS)?).ok()?;
    let prefix = match key.family {
        FAMILY_V4 => {
            let [a, b, c, d, ..] = key.addr;
            IpNet::V4(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), len).ok()?)
        }
        FAMILY_V6 => IpNet::V6(Ipv6Net::new(key.addr.into(), len).ok()?),
        _ => return None,
    };
    let tunnel = (value.tunnel != 0).then(|| Ipv4Addr::from(value.tunnel.to_ne_bytes()));
    let mapping = Mapping {
        identity: NumericIdentity(value.identity),
        tunnel,
        key: value.key,
        pending: value.flags & FLAG_PENDING != 0,
        routed: value.flags & FLAG_ROUTED != 0,
    };
    Some((prefix, mapping))
}
