//! Taking copies of a remote away: one layout, the identities of a former id, or everything.

use std::{ops::RangeInclusive, sync::Arc};

use villus_kvstore::{Entry, Store, StoreError};

use crate::{
    cluster::config_key,
    guard::Guard,
    layout::{Kind, Layout, Space},
    push,
    record::Record,
};

const PIECE: usize = 1000;

/// Takes away all copies of a remote in one layout, its canaries first. Returns how many keys there were.
pub(crate) async fn layout(
    store: &Arc<dyn Store>,
    guard: &Guard,
    space: &Space,
    layout: Layout,
) -> Result<u64, StoreError> {
    let canaries: Vec<Arc<str>> =
        Kind::ALL.iter().map(|kind| kind.canary(layout, &space.cluster).into()).collect();
    push::delete(store.as_ref(), guard, &dedup(canaries)).await?;
    let mut deleted = 0;
    // What others refer to goes last.
    for kind in Kind::ALL.into_iter().rev() {
        deleted += entries(store, guard, space, kind, layout).await?;
    }
    Ok(deleted)
}

/// Takes away the identities of a range in the layout `state`.
pub(crate) async fn identities(
    store: &Arc<dyn Store>,
    guard: &Guard,
    cluster: &str,
    range: RangeInclusive<u32>,
) -> Result<u64, StoreError> {
    let space = Space { cluster: cluster.to_owned(), range };
    let references = entries(store, guard, &space, Kind::References, Layout::State).await?;
    Ok(references + entries(store, guard, &space, Kind::Identities, Layout::State).await?)
}

/// Takes away everything of a remote, its configuration first and the note about it last.
pub(crate) async fn everything(
    store: &Arc<dyn Store>,
    guard: &Guard,
    spaces: &[Space],
    layouts: &[Layout],
) -> Result<u64, StoreError> {
    let Some(cluster) = spaces.first().map(|space| space.cluster.as_str()) else { return Ok(0) };
    push::delete(store.as_ref(), guard, &[config_key(cluster).into()]).await?;
    let mut deleted = 0;
    for space in spaces {
        for one in layouts {
            deleted += layout(store, guard, space, *one).await?;
        }
    }
    push::delete(store.as_ref(), guard, &[Record::key(cluster).into()]).await?;
    Ok(deleted)
}

async fn entries(
    store: &Arc<dyn Store>,
    guard: &Guard,
    space: &Space,
    kind: Kind,
    layout: Layout,
) -> Result<u64, StoreError> {
    let Some(target) = kind.target(layout, &space.cluster) else { return Ok(0) };
    let shared = kind.is_shared(layout);
    let is_ours = |entry: &Entry| match (shared, kind) {
        (false, _) => true,
        (true, Kind::References) => space.reference(&entry.value).is_some(),
        (true, _) => entry.key.strip_prefix(&target).is_some_and(|rest| kind.check(rest, space).is_ok()),
    };
    let (mut deleted, mut after) = (0, None::<Arc<str>>);
    loop {
        let page = store.list_page(&target, after.as_deref(), PIECE, 0).await?;
        let ours: Vec<Arc<str>> =
            page.entries.iter().filter(|entry| is_ours(entry)).map(|entry| Arc::clone(&entry.key)).collect();
        deleted += push::delete(store.as_ref(), guard, &ours).await?;
        let (true, Some(last)) = (page.more, page.entries.last()) else { return Ok(deleted) };
        after = Some(Arc::clone(&last.key));
    }
}

/// A transaction may name a key once.
fn dedup(mut keys: Vec<Arc<str>>) -> Vec<Arc<str>> {
    keys.sort_unstable();
    keys.dedup();
    keys
}
