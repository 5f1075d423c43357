//! Doing what a plan says, and taking it back.

use villus_abi::{PolicyEntry, PolicyKey};
use villus_datapath::{Maps, Pins, hand_insert, hand_remove, view_policy};

use crate::{Change, Deed, key::key_text};

/// What came of the changes of a deed.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Endpoints that are as the plan says.
    pub done: Vec<u16>,
    /// Endpoints that are not, each with why.
    pub failed: Vec<(u16, villus_datapath::Error)>,
}

/// What undoing a deed did.
#[derive(Debug, Default)]
pub struct Undone {
    /// Entries that are out again.
    pub removed: Vec<(u16, PolicyKey)>,
    /// Entries that deny and are in again.
    pub put_back: Vec<(u16, PolicyKey)>,
    /// What was left as it was, one sentence each.
    pub left: Vec<String>,
    /// Endpoints where something could not be done, each with why.
    pub failed: Vec<(u16, villus_datapath::Error)>,
}

/// Makes changes in the kernel's maps, in spite of errors.
#[must_use]
pub fn carry_out(pins: &Pins, maps: &Maps, changes: &[Change]) -> Outcome {
    let mut outcome = Outcome::default();
    for change in changes {
        match open(pins, maps, change) {
            Ok(()) => outcome.done.push(change.endpoint),
            Err(error) => outcome.failed.push((change.endpoint, error)),
        }
    }
    outcome
}

/// Denies go first: where one denies everything, its key is the one that is to allow.
fn open(pins: &Pins, maps: &Maps, change: &Change) -> villus_datapath::Result<()> {
    for taken in &change.take {
        hand_remove(pins, maps, change.endpoint, &taken.key)?;
    }
    for key in &change.insert {
        hand_insert(pins, maps, change.endpoint, key, &PolicyEntry::ALLOW)?;
    }
    Ok(())
}

/// Takes a deed back, in spite of errors. What policy itself has come to ask for meanwhile stays.
#[must_use]
pub fn undo(pins: &Pins, maps: &Maps, deed: &Deed) -> Undone {
    let mut undone = Undone::default();
    for change in &deed.allow.changes {
        if let Err(error) = close(pins, maps, change, &mut undone) {
            undone.failed.push((change.endpoint, error));
        }
    }
    undone
}

fn close(pins: &Pins, maps: &Maps, change: &Change, undone: &mut Undone) -> villus_datapath::Result<()> {
    let endpoint = change.endpoint;
    let view = view_policy(pins, maps, endpoint)?;
    if view.pinned.is_none() && view.in_slot.is_none() {
        undone.left.push(format!("endpoint {endpoint} is gone"));
        return Ok(());
    }
    for key in &change.insert {
        let taken = change.take.iter().any(|taken| taken.key == *key);
        if view.entries.contains_key(key) && !view.hand_made.contains(key) && !taken {
            undone.left.push(format!("endpoint {endpoint}: policy itself now has {}", key_text(key)));
        } else if hand_remove(pins, maps, endpoint, key)? {
            undone.removed.push((endpoint, *key));
        }
    }
    for taken in &change.take {
        if hand_insert(pins, maps, endpoint, &taken.key, &taken.entry)? {
            undone.put_back.push((endpoint, taken.key));
        }
    }
    Ok(())
}

/// Takes an entry out that somebody put in without the journal; says whether it was there and made by hand.
///
/// # Errors
/// [`villus_datapath::Error`].
pub fn remove_hand_made(
    pins: &Pins,
    maps: &Maps,
    endpoint: u16,
    key: &PolicyKey,
) -> villus_datapath::Result<bool> {
    if !view_policy(pins, maps, endpoint)?.hand_made.contains(key) {
        return Ok(false);
    }
    hand_remove(pins, maps, endpoint, key)
}
