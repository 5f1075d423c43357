//! How long operations on the store took, and how long what it told waited until it was taken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    keys,
    model::{Event, Op, Txn, WatchBatch},
};

/// Bounds of the classes of durations, seconds; what takes longer is in none but the last, which has no bound.
const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// What keys are about, by what they begin with.
const SCOPES: [(&str, &str); 14] = [
    (keys::IDENTITIES, "identities/v1"),
    (keys::IPS, "ip/v1"),
    (keys::NODES, "nodes/v1"),
    (keys::NODE_REGISTER, "noderegister/v1"),
    (keys::SERVICES, "services/v1"),
    (keys::SERVICE_EXPORTS, "serviceexports/v1"),
    ("cilium/cache/identities/v1", "identities/v1"),
    ("cilium/cache/ip/v1", "ip/v1"),
    ("cilium/cache/nodes/v1", "nodes/v1"),
    ("cilium/cache/services/v1", "services/v1"),
    (keys::CLUSTER_CONFIG, "cluster-config"),
    (keys::SYNCED, "synced"),
    (keys::HEARTBEAT, "heartbeat"),
    ("villus/", "villus"),
];
/// What is about keys of no scope.
const OTHER: &str = "other";

/// An operation on the store. All words are of small sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// What its keys are about: `identities/v1`, `ip/v1`, …; `leases`; `other`.
    pub scope: &'static str,
    /// `read`, `set` or `delete`.
    pub kind: &'static str,
    /// `txn`, `list`, `watch`, `grant`, `keep-alive`, `revoke` or `header`.
    pub action: &'static str,
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Durations {
    classes: [u64; BOUNDS.len()],
    /// How often.
    pub count: u64,
    /// All together, seconds.
    pub sum: f64,
}

/// Figures of a store. Clones share them.
#[derive(Clone, Default)]
pub struct Figures(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    operations: BTreeMap<(Operation, bool), Durations>,
    waits: BTreeMap<(&'static str, &'static str), Durations>,
}

// === impl Operation ===

impl Operation {
    /// Something that changes nothing below a key or prefix.
    pub(crate) fn read(action: &'static str, key: &str) -> Self {
        Self { scope: scope_of(key), kind: "read", action }
    }

    /// Something about leases.
    pub(crate) fn lease(action: &'static str, kind: &'static str) -> Self {
        Self { scope: "leases", kind, action }
    }
}

impl From<&Txn> for Operation {
    /// By the first thing that it writes, or else deletes, or else reads.
    fn from(txn: &Txn) -> Self {
        let ops = || txn.then.iter().chain(&txn.otherwise);
        let put = ops().find_map(|op| if let Op::Put { key, .. } = op { Some((key, "set")) } else { None });
        let deleted = || {
            ops().find_map(|op| match op {
                Op::Delete(key) | Op::DeletePrefix(key) => Some((key, "delete")),
                _ => None,
            })
        };
        let read = || {
            ops().find_map(|op| match op {
                Op::Get(key) | Op::List { prefix: key, .. } => Some((key, "read")),
                _ => None,
            })
        };
        let (scope, kind) = match put.or_else(deleted).or_else(read) {
            Some((key, kind)) => (scope_of(key), kind),
            None => (txn.compare.first().map_or(OTHER, |compare| scope_of(compare.key())), "read"),
        };
        Self { scope, kind, action: "txn" }
    }
}

// === impl Durations ===

impl Durations {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(class) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.classes[class] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// How often it took at most so many seconds, by bounds that grow.
    pub fn at_most(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().zip(self.classes).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }
}

// === impl Figures ===

impl Figures {
    /// All operations so far, by whether they succeeded: from when they were asked for, the wait for their turn included,
    /// until they were answered.
    pub fn operations(&self) -> Vec<(Operation, bool, Durations)> {
        let inner = self.inner();
        inner.operations.iter().map(|((operation, ok), took)| (*operation, *ok, took.clone())).collect()
    }

    /// How long events waited from when they were received until they were taken, by scope and `update` or `delete`.
    pub fn waits(&self) -> Vec<(&'static str, &'static str, Durations)> {
        let inner = self.inner();
        inner.waits.iter().map(|((scope, action), took)| (*scope, *action, took.clone())).collect()
    }

    pub(crate) fn note(&self, operation: Operation, succeeded: bool, took: Duration) {
        self.inner().operations.entry((operation, succeeded)).or_default().add(took);
    }

    pub(crate) fn taken(&self, batch: &WatchBatch, waited: Duration) {
        let mut inner = self.inner();
        for event in &batch.events {
            let action = if matches!(event, Event::Put(_)) { "update" } else { "delete" };
            inner.waits.entry((scope_of(event.key()), action)).or_default().add(waited);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn scope_of(key: &str) -> &'static str {
    let of = |(prefix, _): &&(&str, &str)| key.starts_with(prefix);
    SCOPES.iter().find(of).map_or(OTHER, |(_, scope)| scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compare;

    #[test]
    fn operations_are_told_apart_by_what_they_do_and_to_which_keys() {
        let key = |rest: &str| format!("cilium/state/{rest}");
        let (put, get) = (Op::put(key("ip/v1/default/1"), "x", None), Op::Get(key("nodes/v1/c/n")));
        for (txn, scope, kind) in [
            (Txn::new().then(get.clone()), "nodes/v1", "read"),
            (Txn::new().then(get.clone()).otherwise(put.clone()), "ip/v1", "set"),
            (Txn::new().then(Op::Delete(key("identities/v1/id/7"))).then(get), "identities/v1", "delete"),
            (
                Txn::new().when(Compare::Absent("cilium/cluster-config/c".to_owned())),
                "cluster-config",
                "read",
            ),
            (Txn::new().then(Op::DeletePrefix("elsewhere".to_owned())), "other", "delete"),
            (Txn::new(), "other", "read"),
        ] {
            assert_eq!(Operation::from(&txn), Operation { scope, kind, action: "txn" });
        }
        assert_eq!(scope_of("cilium/cache/identities/v1/c2/id/9"), "identities/v1");
        assert_eq!(scope_of(""), "other");
    }

    #[test]
    fn durations_are_counted_in_classes() {
        let mut took = Durations::default();
        for millis in [1, 5, 6, 900, 60_000] {
            took.add(Duration::from_millis(millis));
        }
        let at_most: Vec<(f64, u64)> = took.at_most().collect();
        assert_eq!(
            (at_most[0], at_most[1], at_most[7], at_most[10]),
            ((0.005, 2), (0.01, 3), (1.0, 4), (10.0, 4))
        );
        assert_eq!(took.count, 5);
        assert!((took.sum - 60.912).abs() < 1e-6, "{}", took.sum);
    }
}
