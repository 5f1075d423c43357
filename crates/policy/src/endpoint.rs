//! What one endpoint's policy map should hold, and which rules asked for it.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use serde::{Serialize, Serializer, ser::SerializeStruct};
use villus_abi::{Direction, PolicyEntry, PolicyKey};

use crate::{Explanation, Origin, Verdict, explain};

/// The rules that asked for an entry, sorted. Entries of one clause share one list.
pub type Origins = Arc<[Origin]>;

/// One wanted entry of a policy map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Wanted {
    /// Whether it denies; one rule that denies is enough.
    pub deny: bool,
    /// Who asked for it, to allow or to deny.
    pub origins: Origins,
}

impl Wanted {
    /// The value to write, its counters at zero.
    #[must_use]
    pub fn entry(&self) -> PolicyEntry {
        if self.deny { PolicyEntry::DENY } else { PolicyEntry::ALLOW }
    }
}

/// The policy of one endpoint, compiled. Index 0 is ingress, 1 is egress.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointPolicy {
    /// The repository's revision it was made from.
    pub revision: u64,
    /// Every entry that the map should hold.
    pub entries: BTreeMap<PolicyKey, Wanted>,
    /// Whether what no entry allows is denied.
    pub enforced: [bool; 2],
    /// What made it so: rules, `reserved:init` or an option. Empty where nothing is enforced.
    pub enforced_by: [Vec<Origin>; 2],
    /// Shapes of key in use beside the four classic ones: bits of [`PolicyKey::mask_bit`].
    pub mask: [u32; 2],
    /// Whether some entry denies one identity.
    pub deny_identity: [bool; 2],
}

impl EndpointPolicy {
    /// The entries as they are written to the map, in order of their keys.
    pub fn map_entries(&self) -> impl ExactSizeIterator<Item = (PolicyKey, PolicyEntry)> + '_ {
        self.entries.iter().map(|(key, wanted)| (*key, wanted.entry()))
    }

    /// What the datapath will say: `port` in host order, for ICMP the type.
    #[must_use]
    pub fn verdict(&self, direction: Direction, identity: u32, port: u16, proto: u8) -> Verdict {
        self.explain(direction, identity, port, proto).verdict
    }

    /// Every key that the datapath looks up for a packet and what stands there.
    #[must_use]
    pub fn explain(&self, direction: Direction, identity: u32, port: u16, proto: u8) -> Explanation {
        explain::explain(self, direction, identity, port, proto)
    }
}

impl Serialize for EndpointPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row<'a> {
            #[serde(flatten)]
            key: KeyShape,
            #[serde(flatten)]
            wanted: &'a Wanted,
        }
        let rows: Vec<Row<'_>> =
            self.entries.iter().map(|(key, wanted)| Row { key: KeyShape::from(*key), wanted }).collect();
        let mut shape = serializer.serialize_struct("EndpointPolicy", 6)?;
        shape.serialize_field("revision", &self.revision)?;
        shape.serialize_field("enforced", &self.enforced)?;
        shape.serialize_field("enforcedBy", &self.enforced_by)?;
        shape.serialize_field("mask", &self.mask)?;
        shape.serialize_field("denyIdentity", &self.deny_identity)?;
        shape.serialize_field("entries", &rows)?;
        shape.end()
    }
}

/// A key of a policy map as JSON.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyShape {
    identity: u32,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_port: Option<u16>,
    protocol: u8,
    direction: &'static str,
}

impl From<PolicyKey> for KeyShape {
    fn from(key: PolicyKey) -> Self {
        let (port, log2) = (key.port(), key.block_log2());
        let end = u32::from(port) + (1u32 << log2) - 1;
        Self {
            identity: key.identity,
            port,
            end_port: (log2 > 0).then(|| u16::try_from(end).unwrap_or(u16::MAX)),
            protocol: key.proto,
            direction: key.dir().name(),
        }
    }
}

/// More entries than allowed were asked for.
pub(crate) struct TooMany;

/// Collects entries, merging what several rules ask for.
pub(crate) struct Builder {
    pub(crate) policy: EndpointPolicy,
    max_entries: usize,
    merged: HashMap<(usize, usize), [Origins; 3]>,
}

impl Builder {
    pub(crate) fn new(revision: u64, max_entries: usize) -> Self {
        let policy = EndpointPolicy { revision, ..EndpointPolicy::default() };
        Self { policy, max_entries, merged: HashMap::new() }
    }

    pub(crate) fn add(&mut self, key: PolicyKey, deny: bool, origins: &Origins) -> Result<(), TooMany> {
        let direction = usize::from(key.dir() == Direction::Egress);
        let full = self.policy.entries.len() >= self.max_entries;
        match self.policy.entries.entry(key) {
            Entry::Vacant(_) if full => return Err(TooMany),
            Entry::Vacant(place) => {
                place.insert(Wanted { deny, origins: origins.clone() });
            }
            Entry::Occupied(mut place) => {
                let wanted = place.get_mut();
                wanted.deny |= deny;
                wanted.origins = union(&mut self.merged, &wanted.origins, origins);
            }
        }
        self.policy.mask[direction] |= key.mask_bit();
        self.policy.deny_identity[direction] |= deny && key.identity != 0;
        Ok(())
    }
}

/// Both lists as one. The same two give the same list again; the cache holds them, so addresses stay theirs.
fn union(merged: &mut HashMap<(usize, usize), [Origins; 3]>, a: &Origins, b: &Origins) -> Origins {
    if Arc::ptr_eq(a, b) {
        return a.clone();
    }
    let key = (a.as_ptr() as usize, b.as_ptr() as usize);
    let [_, _, both] = merged.entry(key).or_insert_with(|| {
        let mut both: Vec<Origin> = a.iter().chain(b.iter()).cloned().collect();
        both.sort_unstable();
        both.dedup();
        [a.clone(), b.clone(), both.into()]
    });
    both.clone()
}
