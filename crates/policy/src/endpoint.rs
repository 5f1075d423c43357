//! What one endpoint's policy map should hold, and which rules asked for it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};
use villus_abi::{Direction, PolicyEntry, PolicyKey};

use crate::{
    Explanation, Origin, Verdict,
    askers::{Askers, Decision},
    explain,
    packed::Packed,
    shapes::ShapeCounts,
};

/// The rules that asked for an entry, sorted.
pub type Origins = Arc<[Origin]>;

/// One wanted entry of a policy map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Wanted {
    /// Whether it denies; one rule that denies is enough.
    pub deny: bool,
    /// Whether only audited policies deny: what the entry denies passes and is reported.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Who asked for it, to allow or to deny.
    pub origins: Origins,
}

/// The policy of an endpoint, compiled; endpoints of one subject share it. Index 0 is ingress, 1 is egress.
///
/// Two are equal if they hold the same entries for the same reasons, whatever revision they were made from.
#[derive(Clone, Debug, Default)]
pub struct EndpointPolicy {
    /// The repository's revision it was made from.
    pub revision: u64,
    /// Whether what no entry allows is denied.
    pub enforced: [bool; 2],
    /// Whether only audited policies ask for that: what no entry decides passes and is reported.
    pub audit: [bool; 2],
    /// What made it so: rules, `reserved:init` or an option. Empty where nothing is enforced.
    pub enforced_by: [Vec<Origin>; 2],
    entries: BTreeMap<Packed, Decision>,
    askers: Askers,
    shapes: ShapeCounts,
}

/// An entry of a compiled policy that is different now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edit {
    /// Its key.
    pub key: PolicyKey,
    /// What stood there.
    pub before: Option<PolicyEntry>,
    /// What stands there.
    pub after: Option<PolicyEntry>,
}

impl EndpointPolicy {
    /// A policy of entries whose origins nobody knows, such as those of a kernel map. Everything else is denied.
    pub fn of_entries(entries: impl IntoIterator<Item = (PolicyKey, PolicyEntry)>) -> Self {
        let mut policy = Self { enforced: [true; 2], ..Self::default() };
        for (key, entry) in entries {
            let decision = policy.askers.nobody(&entry);
            policy.put(key, decision);
        }
        policy
    }

    /// A policy of asks: keys, each with the number of the one of `askers` who asks for it. `asks` is consumed.
    pub(crate) fn of_asks(mut askers: Askers, asks: &mut Vec<(Packed, u32)>) -> Self {
        asks.sort_unstable();
        asks.dedup();
        let mut shapes = ShapeCounts::default();
        let mut entries = Vec::with_capacity(asks.len());
        let mut numbers = Vec::new();
        for same in asks.chunk_by(|a, b| a.0 == b.0) {
            numbers.clear();
            numbers.extend(same.iter().map(|(_, ask)| *ask));
            let Some((key, _)) = same.first() else { continue };
            let decision = askers.decide(&numbers);
            shapes.add(&PolicyKey::from(*key), decision.holds());
            entries.push((*key, decision));
        }
        asks.clear();
        Self { entries: entries.into_iter().collect(), askers, shapes, ..Self::default() }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = PolicyKey> + '_ {
        self.entries.keys().map(|key| PolicyKey::from(*key))
    }

    /// The entry of a key, and who asked for it.
    #[must_use]
    pub fn get(&self, key: &PolicyKey) -> Option<Wanted> {
        self.entries.get(&Packed::from(*key)).map(|decision| self.wanted(*decision))
    }

    /// The entry of a key as it is written to the map, its counters at zero.
    #[must_use]
    pub fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.entries.get(&Packed::from(*key)).map(|decision| decision.entry())
    }

    /// The entries in order of their keys, and who asked for them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PolicyKey, Wanted)> + '_ {
        self.entries.iter().map(|(key, decision)| (PolicyKey::from(*key), self.wanted(*decision)))
    }

    fn wanted(&self, decision: Decision) -> Wanted {
        Wanted {
            deny: decision.is_deny(),
            audit: decision.is_audit(),
            origins: self.askers.origins(decision),
        }
    }

    /// The entries as they are written to the map, their counters at zero, in order of their keys.
    pub fn map_entries(&self) -> impl ExactSizeIterator<Item = (PolicyKey, PolicyEntry)> + '_ {
        self.entries.iter().map(|(key, decision)| (PolicyKey::from(*key), decision.entry()))
    }

    /// Shapes of key in use beside the four classic ones: bits of [`PolicyKey::mask_bit`].
    #[must_use]
    pub fn mask(&self) -> [u32; 2] {
        self.shapes.mask()
    }

    /// Whether some entry denies one identity, not as audit.
    #[must_use]
    pub fn deny_identity(&self) -> [bool; 2] {
        self.shapes.deny_identity()
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

    // === changing ===

    /// Makes these asks all that there is about one identity; tells each entry that is different, with what stood there and
    /// what stands there.
    pub(crate) fn replace_identity(
        &mut self,
        identity: u32,
        asks: &mut Vec<(Packed, u32)>,
        mut tell: impl FnMut(PolicyKey, Option<Decision>, Option<Decision>),
    ) {
        asks.sort_unstable();
        asks.dedup();
        let gone: Vec<PolicyKey> = self
            .keys_of(identity)
            .filter(|key| asks.binary_search_by(|(asked, _)| asked.cmp(key)).is_err())
            .map(PolicyKey::from)
            .collect();
        for key in gone {
            tell(key, self.take(&key), None);
        }
        let mut numbers = Vec::new();
        for same in asks.chunk_by(|a, b| a.0 == b.0) {
            numbers.clear();
            numbers.extend(same.iter().map(|(_, ask)| *ask));
            let Some((key, _)) = same.first() else { continue };
            let (key, decision) = (PolicyKey::from(*key), self.askers.decide(&numbers));
            let before = self.put(key, decision);
            if before.map(Decision::entry) != Some(decision.entry()) {
                tell(key, before, Some(decision));
            }
        }
    }

    /// How many entries there would be if there were this many about one identity.
    pub(crate) fn len_with(&self, identity: u32, entries: usize) -> usize {
        self.len() - self.keys_of(identity).count() + entries
    }

    fn keys_of(&self, identity: u32) -> impl Iterator<Item = Packed> + '_ {
        let first = PolicyKey { identity, ..PolicyKey::default() };
        let last = PolicyKey { identity, dport: u16::MAX, proto: u8::MAX, direction: u8::MAX };
        self.entries.range(Packed::from(first)..=Packed::from(last)).map(|(key, _)| *key)
    }

    fn put(&mut self, key: PolicyKey, decision: Decision) -> Option<Decision> {
        self.shapes.add(&key, decision.holds());
        let before = self.entries.insert(Packed::from(key), decision);
        self.forget(&key, before);
        before
    }

    fn take(&mut self, key: &PolicyKey) -> Option<Decision> {
        let before = self.entries.remove(&Packed::from(*key));
        self.forget(key, before);
        before
    }

    fn forget(&mut self, key: &PolicyKey, decision: Option<Decision>) {
        if let Some(decision) = decision {
            self.shapes.remove(key, decision.holds());
            self.askers.release(decision);
        }
    }

    /// The entries that are different in `after`.
    pub(crate) fn edits_to(&self, after: &Self) -> Vec<Edit> {
        let mut edits = Vec::new();
        let (mut old, mut new) = (self.map_entries().peekable(), after.map_entries().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return edits,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            let before = if order.is_le() { old.next() } else { None };
            let now = if order.is_ge() { new.next() } else { None };
            let Some((key, _)) = before.or(now) else { return edits };
            let (before, after) = (before.map(|(_, entry)| entry), now.map(|(_, entry)| entry));
            if before != after {
                edits.push(Edit { key, before, after });
            }
        }
    }
}

// === impl EndpointPolicy ===

impl PartialEq for EndpointPolicy {
    fn eq(&self, other: &Self) -> bool {
        let head = |policy: &Self| (policy.enforced, policy.audit, policy.mask(), policy.deny_identity());
        head(self) == head(other) && self.enforced_by == other.enforced_by && self.iter().eq(other.iter())
    }
}

impl Eq for EndpointPolicy {}

impl Serialize for EndpointPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Row {
            #[serde(flatten)]
            key: KeyShape,
            #[serde(flatten)]
            wanted: Wanted,
        }
        let rows: Vec<Row> =
            self.iter().map(|(key, wanted)| Row { key: KeyShape::from(key), wanted }).collect();
        let mut shape = serializer.serialize_struct("EndpointPolicy", 7)?;
        shape.serialize_field("revision", &self.revision)?;
        shape.serialize_field("enforced", &self.enforced)?;
        shape.serialize_field("audit", &self.audit)?;
        shape.serialize_field("enforcedBy", &self.enforced_by)?;
        shape.serialize_field("mask", &self.mask())?;
        shape.serialize_field("denyIdentity", &self.deny_identity())?;
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
