//! Identities of other clusters, as copies of their master keys tell: they are in the table beside those of the state, and
//! this cluster's label sets never get one of their numbers.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use villus_kvstore::{Batch, Entry, Item, keys};
use villus_labels::{Labels, NumericIdentity, Scope};
use villus_table::Write;

use super::{Allocator, Shared, watcher::labels_of};
use crate::remote::Layer;

/// What copies tell.
#[derive(Default)]
pub(super) struct Copies {
    /// Labels by number, and by the key that says so; the first one counts.
    numbers: BTreeMap<NumericIdentity, BTreeMap<Arc<str>, Labels>>,
    /// Keys that a rewound store has lost, and when that was seen.
    stale: BTreeMap<Arc<str>, (NumericIdentity, Instant)>,
}

// === impl Copies ===

impl Copies {
    /// The labels of a number as copies tell them.
    pub(super) fn labels(&self, number: NumericIdentity) -> Option<&Labels> {
        self.numbers.get(&number)?.values().next()
    }

    fn insert(&mut self, number: NumericIdentity, key: &Arc<str>, labels: Labels) {
        self.stale.remove(key);
        self.numbers.entry(number).or_default().insert(Arc::clone(key), labels);
    }

    fn remove(&mut self, number: NumericIdentity, key: &str) -> bool {
        self.stale.remove(key);
        let Some(keys) = self.numbers.get_mut(&number) else { return false };
        let was = keys.remove(key).is_some();
        if keys.is_empty() {
            self.numbers.remove(&number);
        }
        was
    }

    fn keys(&self) -> impl Iterator<Item = (&Arc<str>, NumericIdentity, &Labels)> {
        let all = self.numbers.iter();
        all.flat_map(|(number, keys)| keys.iter().map(move |(key, labels)| (key, *number, labels)))
    }
}

// === impl Allocator ===

impl Allocator {
    /// Takes in changes of copies: keys of [`Layer::Cache`] and [`Layer::Mesh`]. What the state says of a number wins.
    pub fn apply_copies(&self, batch: &Batch) {
        let lost = batch.is_of_another_past();
        let shared = &self.shared;
        let mut write = shared.table.write();
        for item in &batch.items {
            match item {
                Item::Put(entry) => put(shared, &mut write, entry),
                Item::Delete { key, .. } => {
                    shared.state().accept(key);
                    let Some((number, _)) = number_of(key) else { continue };
                    if lost {
                        shared.state().copies.stale.insert(Arc::clone(key), (number, Instant::now()));
                    } else {
                        drop_copy(shared, &mut write, number, key);
                    }
                }
            }
        }
        write.commit();
    }

    /// Takes over what copies told before a restart: keys, numbers and labels.
    pub fn restore_copies(&self, rows: Vec<(Arc<str>, NumericIdentity, Labels)>) {
        let mut write = self.shared.table.write();
        for (key, number, labels) in rows {
            if number_of(&key).is_some_and(|(of, _)| of == number) && !self.shared.range.contains(&number.0) {
                self.shared.state().copies.insert(number, &key, labels);
                show(&self.shared, &mut write, number);
            }
        }
        write.commit();
    }

    /// All that copies tell, for [`Self::restore_copies`].
    pub fn copied_rows(&self) -> Vec<(Arc<str>, NumericIdentity, Labels)> {
        let state = self.shared.state();
        state.copies.keys().map(|(key, number, labels)| (Arc::clone(key), number, labels.clone())).collect()
    }

    /// What a copy tells, by its key.
    pub fn copied(&self, key: &str) -> Option<(NumericIdentity, Labels)> {
        let (number, _) = number_of(key)?;
        let state = self.shared.state();
        Some((number, state.copies.numbers.get(&number)?.get(key)?.clone()))
    }

    /// The keys of copies in a layer; none of them is known to be under a lease.
    pub fn copied_keys(&self, layer: Layer) -> Vec<(Arc<str>, bool)> {
        let state = self.shared.state();
        let its = state.copies.keys().filter(|(key, ..)| Layer::of(key) == layer);
        its.map(|(key, ..)| (Arc::clone(key), false)).collect()
    }
}

fn put(shared: &Shared, write: &mut Write<'_, NumericIdentity, Labels>, entry: &Entry) {
    match read(shared, entry) {
        Ok((number, labels)) => {
            let mut state = shared.state();
            state.accept(&entry.key);
            state.copies.insert(number, &entry.key, labels);
            drop(state);
            show(shared, write, number);
        }
        Err(reason) => {
            if shared.state().refuse(&entry.key, reason.clone()) {
                tracing::warn!(key = &*entry.key, reason, "a copied identity can't be used and is left out");
            }
        }
    }
}

/// Brings a number's row of the table in line, unless the state has it.
fn show(shared: &Shared, write: &mut Write<'_, NumericIdentity, Labels>, number: NumericIdentity) {
    let state = shared.state();
    if state.is_stated(number) || state.user_of(number).is_some() {
        return;
    }
    match state.copies.labels(number).cloned() {
        Some(labels) => {
            write.put_if_changed(number, labels);
        }
        None => {
            write.delete(&number);
        }
    }
}

fn drop_copy(
    shared: &Shared,
    write: &mut Write<'_, NumericIdentity, Labels>,
    number: NumericIdentity,
    key: &str,
) {
    let was = shared.state().copies.remove(number, key);
    if was {
        show(shared, write, number);
    }
}

/// Forgets copies that a rewound store has lost and that nobody has written again for long.
pub(super) fn forget_stale(shared: &Shared) {
    let grace = shared.config.stale_grace;
    let mut write = shared.table.write();
    let over: Vec<(Arc<str>, NumericIdentity)> = {
        let state = shared.state();
        let over = state.copies.stale.iter().filter(|(_, (_, since))| since.elapsed() >= grace);
        over.map(|(key, (number, _))| (Arc::clone(key), *number)).collect()
    };
    for (key, number) in over {
        drop_copy(shared, &mut write, number, &key);
    }
    write.commit();
}

/// Number and cluster in the key of a copy: `…/identities/v1/<cluster>/id/<number>`.
fn number_of(key: &str) -> Option<(NumericIdentity, String)> {
    let state = Layer::in_state(key);
    let rest = state.strip_prefix(keys::IDENTITIES)?.strip_prefix('/')?;
    let (cluster, text) = rest.split_once("/id/")?;
    let number = NumericIdentity(text.parse().ok()?);
    let sound = number.to_string() == text && !number.is_reserved() && number.scope() == Scope::Global;
    (sound && !cluster.is_empty() && !cluster.contains('/')).then(|| (number, cluster.to_owned()))
}

fn read(shared: &Shared, entry: &Entry) -> Result<(NumericIdentity, Labels), String> {
    let (number, cluster) = number_of(&entry.key)
        .ok_or_else(|| "the key does not end in the number of another cluster's identity".to_owned())?;
    if shared.range.contains(&number.0) {
        return Err(format!("{number} is an identity of this cluster, the copy is of {cluster}"));
    }
    shared.config.others.may_have(Layer::of(&entry.key), &cluster, number)?;
    let labels = labels_of(entry)?;
    // Two clusters with one range: the first one's identities are not changed under its endpoints' feet.
    let state = shared.state();
    let other = state.copies.numbers.get(&number).and_then(|keys| {
        let of = |key: &Arc<str>| number_of(key).map(|(_, cluster)| cluster);
        keys.iter().find(|(key, has)| of(key).as_deref() != Some(&cluster) && **has != labels)
    });
    match other {
        Some((key, _)) => {
            Err(format!("`{key}` gives the number to other labels: two clusters have one range"))
        }
        None => Ok((number, labels)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_of_copies_hold_cluster_and_number() {
        for (key, wanted) in [
            ("cilium/cache/identities/v1/c2/id/131073", Some((131_073, "c2"))),
            ("clustermesh/identities/v1/c2/id/131073", Some((131_073, "c2"))),
            ("cilium/cache/identities/v1/c2/id/0131073", None),
            ("cilium/cache/identities/v1/c2/id/2", None),
            ("cilium/cache/identities/v1/c2/id/16777217", None),
            ("cilium/cache/identities/v1/c2/value/x", None),
            ("cilium/cache/identities/v1//id/131073", None),
            ("cilium/cache/identities/v1/a/b/id/131073", None),
            ("cilium/cache/nodes/v1/c2/id/131073", None),
        ] {
            let wanted = wanted.map(|(number, cluster)| (NumericIdentity(number), cluster.to_owned()));
            assert_eq!(number_of(key), wanted, "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_key_panics(key in ".{0,60}", rest in "[a-z0-9/]{0,30}") {
            let _ = number_of(&key);
            let _ = number_of(&format!("cilium/cache/identities/v1/{rest}"));
        }
    }
}
