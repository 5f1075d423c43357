//! The end of a node for the whole cluster, by the word of somebody who knows that it does not come back.

use std::collections::BTreeSet;

use villus_kvstore::{Answer, Compare, Op, Pages, Store, StoreError, Txn, keys};

/// Keys that are read in one request.
const READ: usize = 100;

/// Those of these keys that are in the store under a lease, with their values. Nobody watches the keys by which a node says
/// which numbers it uses ([`crate::use_key`]), and it may have them under other leases than what it says of itself. Where
/// its addresses do not tell which these are, [`uses_of`] finds them.
///
/// # Errors
/// When the store is not there or does not permit it.
pub async fn leased_keys(store: &dyn Store, keys: &[String]) -> Result<Vec<(String, String)>, StoreError> {
    let mut found = Vec::new();
    for some in keys.chunks(READ) {
        let look = some.iter().fold(Txn::new(), |txn, key| txn.then(Op::Get(key.clone())));
        let there = store.txn(look).await?.answers.into_iter().filter_map(|answer| match answer {
            Answer::Got(entry) => entry.filter(|entry| entry.lease.is_some()),
            _ => None,
        });
        found.extend(there.filter_map(|entry| Some((entry.key.to_string(), entry.text()?.to_owned()))));
    }
    Ok(found)
}

/// The keys under a lease by which one of `users` says that it uses a number, with their values, whatever the labels are: all
/// such keys of the cluster are read, page by page (300,000 of them in about a second).
///
/// # Errors
/// When the store is not there, does not permit it, or forgets the first page's revision before the last page was read.
pub async fn uses_of(store: &dyn Store, users: &[String]) -> Result<Vec<(String, String)>, StoreError> {
    let mut pages = Pages::of(format!("{}/", keys::IDENTITY_VALUES));
    let mut found = Vec::new();
    while let Some(page) = pages.next(store).await? {
        // A label string may have slashes of its own; a user has none.
        let of_them =
            |key: &str| key.rsplit('/').next().is_some_and(|user| users.iter().any(|one| one == user));
        let there = page.entries.iter().filter(|entry| entry.lease.is_some() && of_them(&entry.key));
        found.extend(there.filter_map(|entry| Some((entry.key.to_string(), entry.text()?.to_owned()))));
    }
    Ok(found)
}

/// Deletes keys of a node so that everybody sees that this is meant, and ends their leases. `keys` are keys and values as
/// they are known: a key that goes without a lease was deleted on purpose, for everybody, so each loses its lease first, or is
/// put once more. Returns how many leases were ended.
///
/// # Errors
/// When the store is not there or does not permit it. What is done may be done again.
pub async fn end_keys(store: &dyn Store, keys: &[(String, String)]) -> Result<u64, StoreError> {
    let mut leases = BTreeSet::new();
    for (key, known) in keys {
        let there = store.get(key).await?;
        leases.extend(there.as_ref().and_then(|entry| entry.lease));
        let (condition, value) = match there {
            Some(entry) => (Compare::ModRevision(key.clone(), entry.mod_revision), entry.value),
            None => (Compare::Absent(key.clone()), known.clone().into()),
        };
        let put = Txn::new().when(condition).then(Op::put(key.as_str(), value.clone(), None));
        if store.txn(put).await?.held {
            store.compare_and_delete(key, Compare::Value(key.clone(), value)).await?;
        }
    }
    for lease in &leases {
        store.revoke(*lease).await?;
    }
    Ok(leases.len() as u64)
}
