//! Entries of a policy map as plain data: what is wanted, how it differs from what is there, which shapes of key
//! it needs.

use std::collections::{BTreeMap, BTreeSet};

use villus_abi::{PolicyEntry, PolicyKey, endpoint, policy::Direction};

/// A whole policy map. Counters in wanted entries are ignored.
pub type Entries = BTreeMap<PolicyKey, PolicyEntry>;

/// Whether two entries decide alike; counters are no part of that.
#[must_use]
pub fn same_decision(a: &PolicyEntry, b: &PolicyEntry) -> bool {
    (a.flags, a.proxy_port) == (b.flags, b.proxy_port)
}

/// What the path must know about a policy map to look up all of it: fields of the endpoint's record, ingress first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shapes {
    /// [`villus_abi::Endpoint::mask`].
    pub mask: [u32; 2],
    /// Some entry denies a specific identity, not as audit.
    pub deny_identity: [bool; 2],
}

impl Shapes {
    /// The shapes of a set of entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a PolicyKey, &'a PolicyEntry)>) -> Self {
        let mut shapes = Self::default();
        for (key, entry) in entries {
            let side = key.dir() as usize;
            shapes.mask[side] |= key.mask_bit();
            shapes.deny_identity[side] |= entry.is_deny() && !entry.is_audit() && key.identity != 0;
        }
        shapes
    }

    /// What covers both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let both = |side: usize| self.deny_identity[side] || other.deny_identity[side];
        Self {
            mask: [self.mask[0] | other.mask[0], self.mask[1] | other.mask[1]],
            deny_identity: [both(0), both(1)],
        }
    }

    /// Writes them into an endpoint's record.
    pub fn store(self, record: &mut villus_abi::Endpoint) {
        record.mask = self.mask;
        let bits = [endpoint::FLAG_DENY_ID_INGRESS, endpoint::FLAG_DENY_ID_EGRESS];
        for (side, bit) in Direction::ALL.into_iter().zip(bits) {
            record.flags &= !bit;
            if self.deny_identity[side as usize] {
                record.flags |= bit;
            }
        }
    }

    /// Reads them from an endpoint's record.
    #[must_use]
    pub const fn load(record: &villus_abi::Endpoint) -> Self {
        let deny_identity =
            [record.has(endpoint::FLAG_DENY_ID_INGRESS), record.has(endpoint::FLAG_DENY_ID_EGRESS)];
        Self { mask: record.mask, deny_identity }
    }
}

/// How a policy map in the kernel differs from what is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Differences {
    /// Wanted and not there.
    pub missing: BTreeSet<PolicyKey>,
    /// Written by the agent, there, and not wanted any more.
    pub extra: BTreeSet<PolicyKey>,
    /// There with another decision than wanted.
    pub altered: BTreeSet<PolicyKey>,
    /// There, and never written by the agent: an operator's deed. These are kept.
    pub hand_made: BTreeSet<PolicyKey>,
    /// The map that packets are judged by is not the one that is pinned, or there is none.
    pub misplaced: bool,
    /// Fewer than [`super::ROOM`] entries are free.
    pub cramped: bool,
}

impl Differences {
    /// Compares. `written` says whether the agent has ever written a key and not removed it.
    #[must_use]
    pub fn between(wanted: &Entries, there: &Entries, written: impl Fn(&PolicyKey) -> bool) -> Self {
        let mut differences = Self::default();
        for (key, entry) in there {
            if !written(key) {
                differences.hand_made.insert(*key);
                continue;
            }
            match wanted.get(key) {
                None => drop(differences.extra.insert(*key)),
                Some(wanted) if !same_decision(wanted, entry) => drop(differences.altered.insert(*key)),
                Some(_) => {}
            }
        }
        differences.missing = wanted.keys().filter(|key| !there.contains_key(key)).copied().collect();
        differences
    }

    /// Whether the kernel holds what is wanted; what an operator did by hand does not count.
    #[must_use]
    pub fn is_none(&self) -> bool {
        let entries = self.missing.is_empty() && self.extra.is_empty() && self.altered.is_empty();
        entries && !self.misplaced && !self.cramped
    }
}

/// How wanted entries get into a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// To be added.
    pub add: Vec<(PolicyKey, PolicyEntry)>,
    /// To be removed.
    pub remove: Vec<PolicyKey>,
    /// What the map holds in the end, hand-made entries included; counters as they were.
    pub target: Entries,
    /// Whether no order of single changes is right at every moment.
    pub mixed: bool,
}

impl Plan {
    pub(crate) fn new(wanted: &Entries, there: &Entries, differences: &Differences) -> Self {
        let mut target = there.clone();
        target.retain(|key, _| !differences.extra.contains(key));
        let mut add = Vec::new();
        for (key, entry) in wanted.iter().filter(|(key, _)| !differences.hand_made.contains(key)) {
            let counted = target.get(key).map_or((0, 0), |old| (old.packets, old.bytes));
            let entry = PolicyEntry { packets: counted.0, bytes: counted.1, ..*entry };
            if target.insert(*key, entry).is_none() {
                add.push((*key, entry));
            }
        }
        let touched = add.iter().map(|(_, entry)| entry.is_deny());
        let removed = differences.extra.iter().filter_map(|key| there.get(key)).map(PolicyEntry::is_deny);
        let kinds: BTreeSet<bool> = touched.chain(removed).collect();
        let remove: Vec<PolicyKey> = differences.extra.iter().copied().collect();
        let added: Vec<PolicyKey> = add.iter().map(|(key, _)| *key).collect();
        let mixed = kinds.len() > 1 || !differences.altered.is_empty() || one_packets(&added, &remove);
        Self { add, remove, target, mixed }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty() && !self.mixed
    }
}

/// Pairs of keys that are compared; of more some are taken to be one packet's.
const COMPARED: usize = 4096;

/// Whether some packet may look up a key of each list. Looking them up one after the other, it may miss both of them
/// where one comes and then the other goes.
pub(crate) fn one_packets(some: &[PolicyKey], others: &[PolicyKey]) -> bool {
    let compared = some.len().saturating_mul(others.len());
    compared > COMPARED || some.iter().any(|a| others.iter().any(|b| one_packet(a, b)))
}

fn one_packet(a: &PolicyKey, b: &PolicyKey) -> bool {
    let either = |a: u32, b: u32| a == 0 || b == 0 || a == b;
    let wide = |key: &PolicyKey| key.port() == 0 && key.block_log2() == 0;
    let log2 = a.block_log2().max(b.block_log2());
    let ports = wide(a) || wide(b) || a.port() >> log2 == b.port() >> log2;
    a.dir() == b.dir() && either(a.identity, b.identity) && either(a.proto.into(), b.proto.into()) && ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(identity: u32, port: u16) -> PolicyKey {
        PolicyKey::new(identity, port, 6, Direction::Ingress)
    }

    #[test]
    fn differences_and_what_follows_from_them() {
        let (a, d) = (PolicyEntry::ALLOW, PolicyEntry::DENY);
        // wanted, there, written, (mixed, added, removed, in the end)
        type Case<'a> =
            (&'a [(u32, PolicyEntry)], &'a [(u32, PolicyEntry)], &'a [u32], (bool, usize, usize, usize));
        let cases: [Case<'_>; 7] = [
            (&[(1, a)], &[], &[], (false, 1, 0, 1)),
            (&[], &[(1, a)], &[1], (false, 0, 1, 0)),
            (&[(2, a)], &[(1, a)], &[1], (false, 1, 1, 1)),
            (&[(2, d)], &[(1, a)], &[1], (true, 1, 1, 1)),
            (&[(1, d)], &[(1, a)], &[1], (true, 0, 0, 1)),
            // By hand: neither removed nor altered.
            (&[(2, a)], &[(1, a)], &[], (false, 1, 0, 2)),
            (&[(1, d)], &[(1, a)], &[], (false, 0, 0, 1)),
        ];
        for (wanted, there, written, expected) in cases {
            let entries =
                |list: &[(u32, PolicyEntry)]| list.iter().map(|(id, e)| (key(*id, 80), *e)).collect();
            let (wanted, there): (Entries, Entries) = (entries(wanted), entries(there));
            let written = |of: &PolicyKey| written.iter().any(|id| key(*id, 80) == *of);
            let differences = Differences::between(&wanted, &there, written);
            let plan = Plan::new(&wanted, &there, &differences);
            assert_eq!(
                (plan.mixed, plan.add.len(), plan.remove.len(), plan.target.len()),
                expected,
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn counters_stay_when_the_decision_changes() {
        let counted = PolicyEntry { packets: 5, bytes: 500, ..PolicyEntry::ALLOW };
        let there = Entries::from([(key(1, 80), counted)]);
        let wanted = Entries::from([(key(1, 80), PolicyEntry::DENY)]);
        let differences = Differences::between(&wanted, &there, |of| *of == key(1, 80));
        let plan = Plan::new(&wanted, &there, &differences);
        let entry = plan.target[&key(1, 80)];
        assert!(plan.mixed && entry.is_deny());
        assert_eq!((entry.packets, entry.bytes), (5, 500));
    }

    #[test]
    fn shapes_survive_the_record() {
        let entries = Entries::from([
            (PolicyKey::block(7, 8000, 6, 6, Direction::Egress), PolicyEntry::ALLOW),
            (PolicyKey::new(7, 0, 17, Direction::Ingress), PolicyEntry::DENY),
            (PolicyKey::new(0, 0, 0, Direction::Egress), PolicyEntry::DENY),
            (PolicyKey::new(7, 0, 0, Direction::Egress), PolicyEntry::AUDIT),
        ]);
        let shapes = Shapes::of(&entries);
        assert_eq!(shapes, Shapes { mask: [1, 1 << 6], deny_identity: [true, false] });
        let mut record =
            villus_abi::Endpoint { flags: endpoint::FLAG_DENY_ID_EGRESS | 1, ..Default::default() };
        shapes.store(&mut record);
        assert_eq!((Shapes::load(&record), record.flags & 1), (shapes, 1));
    }
}
