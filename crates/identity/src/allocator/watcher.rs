//! Follows the master keys of all nodes into the table of identities.

use std::{sync::Arc, time::Instant};

use villus_kvstore::{Batch, Entry, Follow, Item, Past, StoreError, keys};
use villus_labels::{KEY_CLUSTER, Labels, NumericIdentity, Scope};
use villus_table::{Source, Write};

use super::{KnownIdentities, Shared, master_key, state::State};
use crate::remote::Layer;

/// The largest value that is read; labels of a workload have some hundred bytes.
const MAX: usize = 64 << 10;

/// Takes over what was known before; says with which keys the list is compared.
pub(super) fn remember(shared: &Shared, known: KnownIdentities) -> Past {
    let mut write = shared.table.write();
    let mut state = shared.state();
    let mut keys = Vec::with_capacity(known.rows.len());
    state.reserve(known.rows.len());
    for (number, labels) in known.rows {
        keys.push((master_key(number).into(), false));
        state.stated.insert(number);
        let labels = state.beside_last(labels);
        state.add_master(&labels, number);
        if let Err(labels) = write.fill(number, labels) {
            write.put_if_changed(number, labels);
        }
    }
    drop(state);
    write.commit();
    Past { keys, seen: known.seen, witness: known.witness }
}

pub(super) async fn run(shared: Arc<Shared>, source: Source, past: Past) {
    let prefix = format!("{}/", keys::IDENTITY_IDS);
    let pace = shared.config.pace.clone();
    let mut follow = Follow::resume(Arc::clone(&shared.store), &prefix, pace, past);
    let mut source = Some(source);
    let mut held = shared.held.subscribe();
    let others = &shared.config.others;
    others.heard(Layer::State).await;
    let mut others = others.changes(Layer::State);
    others.mark_unchanged();
    loop {
        let heard = tokio::select! {
            heard = follow.heard() => heard,
            // An error means that the sender is gone, which `shared` prevents.
            _ = others.changed() => {
                follow.again();
                continue;
            }
        };
        let batch = match heard {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => {
                if let StoreError::Denied { reason, .. } = error {
                    shared.state().unread = Some(reason);
                }
                continue;
            }
            None => return,
        };
        if batch.relisted.is_some() {
            shared.state().unread = None;
        }
        // An error means that the sender is gone, which `shared` prevents.
        let _ = held.wait_for(|held| !held).await;
        let lost = apply(&shared, &batch);
        if batch.is_of_another_past() {
            shared.compare.notify_one();
        }
        if let Some(source) = source.take() {
            source.complete();
            shared.synced.send_replace(true);
        }
        for (number, text) in lost {
            restore(&shared, number, &text).await;
        }
    }
}

/// Brings a batch into the table and returns the numbers that this node uses and that lost their master key.
fn apply(shared: &Shared, batch: &Batch) -> Vec<(NumericIdentity, String)> {
    let rewound = batch.is_of_another_past();
    let mut lost = Vec::new();
    let mut write = shared.table.write();
    for item in &batch.items {
        match item {
            Item::Put(entry) => put(shared, &mut write, entry),
            Item::Delete { key, .. } => {
                let mut state = shared.state();
                state.accept(key);
                let Some(number) = number_of(key) else { continue };
                state.shadowed.remove(&number);
                if let Some(text) = state.user_of(number) {
                    lost.push((number, text));
                } else if rewound && write.get(&number).is_some() {
                    state.stale.insert(number, Some(Instant::now()));
                } else if state.is_stated(number)
                    && state.copies.labels(number).is_none()
                    && shared.leased.contains(number)
                {
                    // Whoever has the address is silent, or writes the key again.
                    state.stale.insert(number, None);
                } else {
                    end(&mut state, &mut write, number);
                }
            }
        }
    }
    write.commit();
    lost
}

/// A number has no master key any more; copies of another cluster's may have it still.
fn end(state: &mut State, write: &mut Write<'_, NumericIdentity, Labels>, number: NumericIdentity) {
    state.stated.remove(&number);
    if let Some(labels) = write.get(&number) {
        state.remove_master(labels, number);
    }
    match state.copies.labels(number) {
        Some(labels) => drop(write.put_if_changed(number, labels.clone())),
        None => drop(write.delete(&number)),
    }
}

fn put(shared: &Shared, write: &mut Write<'_, NumericIdentity, Labels>, entry: &Entry) {
    // Other clusters' are ordinary here: a mesh copies them beside this cluster's, and so do people.
    let read = read(entry).and_then(|(number, labels)| {
        is_its_clusters(shared, number, &labels)?;
        not_ours(shared, number, labels)
    });
    match read {
        Ok((number, labels)) => {
            let mut state = shared.state();
            state.accept(&entry.key);
            state.stale.remove(&number);
            state.stated.insert(number);
            if let Some(old) = write.get(&number).filter(|old| **old != labels) {
                state.remove_master(old, number);
            }
            let labels = state.beside_last(labels);
            state.add_master(&labels, number);
            write.put_if_changed(number, labels);
        }
        Err(reason) => {
            if shared.state().refuse(&entry.key, reason.clone()) {
                tracing::warn!(key = &*entry.key, reason, "an identity can't be read and is left out");
            }
        }
    }
}

/// Refuses a number that is not in the range of the cluster that the labels name.
fn is_its_clusters(shared: &Shared, number: NumericIdentity, labels: &Labels) -> Result<(), String> {
    let Some(cluster) = labels.get(KEY_CLUSTER).map(|label| label.value()) else { return Ok(()) };
    let (others, range) = (&shared.config.others, &shared.range);
    if others.is_own(cluster) && !range.contains(&number.0) {
        let (first, last) = (range.start(), range.end());
        return Err(format!(
            "{number} is no identity of cluster {cluster}: its numbers are {first} to {last}; delete the key, or \
             mend cluster-id"
        ));
    }
    others.may_have(Layer::State, cluster, number)
}

/// Refuses other labels for a number that this node uses: its endpoints are judged by theirs.
fn not_ours(
    shared: &Shared,
    number: NumericIdentity,
    labels: Labels,
) -> Result<(NumericIdentity, Labels), String> {
    let mut state = shared.state();
    let ours = state.user_of(number).filter(|ours| *ours != labels.to_kvstore());
    if let Some(ours) = ours {
        state.shadowed.insert(number, labels);
        return Err(format!("this node uses the number for `{ours}`"));
    }
    // Some endpoint has it still, under the labels that it was left by.
    if state.left.contains(&number) {
        state.shadowed.insert(number, labels);
        return Err("this node gives the number up".to_owned());
    }
    Ok((number, labels))
}

/// Forgets numbers that a rewound store has lost and that nobody has written again for long, and those that were deleted
/// and that no address has any more.
pub(super) fn forget_stale(shared: &Shared) {
    let mut write = shared.table.write();
    let mut state = shared.state();
    let grace = shared.config.stale_grace;
    let is_over = |number: NumericIdentity, since: Option<Instant>| match since {
        Some(since) => since.elapsed() >= grace,
        None => !shared.leased.contains(number),
    };
    let over: Vec<NumericIdentity> =
        state.stale.iter().filter(|(number, since)| is_over(**number, **since)).map(|(n, _)| *n).collect();
    for number in over {
        state.stale.remove(&number);
        if state.user_of(number).is_none() {
            end(&mut state, &mut write, number);
        }
    }
    drop(state);
    write.commit();
}

/// Creates a master key again that this node uses. If that fails the next comparison does it.
async fn restore(shared: &Shared, number: NumericIdentity, text: &str) {
    match shared.store.create(&master_key(number), text.to_owned().into(), None).await {
        Ok(true) => tracing::warn!(%number, labels = text, "Re-created missing master key"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%number, %error, "a missing master key could not be created again"),
    }
}

fn number_of(key: &str) -> Option<NumericIdentity> {
    let text = key.strip_prefix(keys::IDENTITY_IDS)?.strip_prefix('/')?;
    // One number has one key: no sign, no leading zero.
    let number: u32 = text.parse().ok()?;
    let number = NumericIdentity(number);
    let canonical = number.to_string() == text;
    (canonical && !number.is_reserved() && number.scope() == Scope::Global).then_some(number)
}

fn read(entry: &Entry) -> Result<(NumericIdentity, Labels), String> {
    let number = number_of(&entry.key)
        .ok_or_else(|| "the key does not end in the number of a global identity".to_owned())?;
    Ok((number, labels_of(entry)?))
}

/// The labels in the value of a master key, or of a copy of one.
pub(super) fn labels_of(entry: &Entry) -> Result<Labels, String> {
    if entry.value.len() > MAX {
        return Err(format!("the value has {} bytes; labels have at most {MAX}", entry.value.len()));
    }
    let text = entry.text().ok_or_else(|| "the value is not text".to_owned())?;
    let labels = Labels::parse_kvstore(text).map_err(|error| error.to_string())?;
    if labels.is_empty() {
        return Err("the value holds no labels".to_owned());
    }
    if labels.to_kvstore() != text {
        return Err("the labels are not sorted by key".to_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_numbers_of_global_identities_are_keys() {
        for (suffix, number) in [
            ("/256", Some(256)),
            ("/15614229", Some(15_614_229)),
            ("/255", None),
            ("/2", None),
            ("/16777217", None),
            ("/0256", None),
            ("/+256", None),
            ("/256/x", None),
            ("/", None),
            ("", None),
            ("/4294967296", None),
        ] {
            let key = format!("{}{suffix}", keys::IDENTITY_IDS);
            assert_eq!(number_of(&key), number.map(NumericIdentity), "{suffix}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256) })]

        #[test]
        fn no_entry_panics(key in ".{0,40}", number in "[0-9]{0,12}", value in prop::collection::vec(any::<u8>(), 0..60), text in "[a-z0-9:=;/]{0,40}") {
            let entry = |key: &str, value: Vec<u8>| Entry {
                key: Arc::from(key), value: value.into(), create_revision: 1, mod_revision: 1, version: 1, lease: None,
            };
            let good = format!("{}/{number}", keys::IDENTITY_IDS);
            let _ = read(&entry(&key, value.clone()));
            let _ = read(&entry(&good, value));
            if let Ok((number, labels)) = read(&entry(&good, text.clone().into_bytes())) {
                prop_assert_eq!(labels.to_kvstore(), text);
                let end = format!("/{number}");
                prop_assert!(good.ends_with(&end));
            }
        }
    }
}
