//! A prefix page by page.

use std::sync::Arc;

use crate::{
    error::StoreError,
    model::Page,
    store::{PAGE, Store},
};

/// Keys per page at most: etcd looks at every key behind a page's first one each time, so that many small pages of a large
/// prefix would cost it the square of its size.
pub const LARGEST_PAGE: usize = 4096;
/// Bytes that a page should have at most, as far as the one before tells.
const BYTES: usize = 1 << 20;

/// The entries that begin with a prefix, as of one revision, in pages that grow while their entries are small.
pub struct Pages {
    prefix: String,
    after: Option<Arc<str>>,
    /// Of the first page; 0 before that.
    revision: u64,
    limit: usize,
    ended: bool,
}

// === impl Pages ===

impl Pages {
    /// Nothing is asked yet.
    pub fn of(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, revision: 0, limit: PAGE, ended: false }
    }

    /// The next page; the first may be empty, and says as of which revision all are. `None` after the last. After an error
    /// the same page is asked for again.
    ///
    /// # Errors
    /// When the store is not there, or has forgotten the first page's revision.
    pub async fn next<S: Store + ?Sized>(&mut self, store: &S) -> Result<Option<Page>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        let page = store.list_page(&self.prefix, self.after.as_deref(), self.limit, self.revision).await?;
        if self.revision == 0 {
            self.revision = page.header.revision;
        }
        self.after = page.entries.last().map(|entry| Arc::clone(&entry.key));
        self.ended = !page.more || self.after.is_none();
        let bytes = page.entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        self.limit = next_limit(self.limit, page.entries.len(), bytes);
        Ok(Some(page))
    }

    /// How many pages a list of so many entries has, of so many bytes each with their keys.
    pub fn count(entries: u64, bytes_each: usize) -> u64 {
        let (mut left, mut limit, mut pages) = (entries, PAGE, 1);
        while left > limit as u64 {
            left -= limit as u64;
            limit = next_limit(limit, limit, limit * bytes_each);
            pages += 1;
        }
        pages
    }
}

/// As many entries as fit if they are as large as these; at most twice as many as before, for the next ones may not be.
fn next_limit(limit: usize, entries: usize, bytes: usize) -> usize {
    let fit = BYTES * entries.max(1) / bytes.max(1);
    fit.min(limit * 2).clamp(1, LARGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, model::Op, model::Txn};

    async fn sizes(store: &Memory) -> Vec<usize> {
        let (mut pages, mut sizes) = (Pages::of("a/"), Vec::new());
        while let Some(page) = pages.next(store).await.unwrap() {
            sizes.push(page.entries.len());
            // What is written meanwhile is of a later revision.
            if sizes.len() == 1 {
                store.update("a/later", "x".into(), None).await.unwrap();
            }
        }
        sizes
    }

    async fn fill(store: &Memory, keys: usize, value: usize) {
        for some in (0..keys).collect::<Vec<_>>().chunks(10) {
            let put = |n: &usize| Op::put(format!("a/{n:06}"), "v".repeat(value), None);
            store.txn(some.iter().map(put).fold(Txn::new(), Txn::then)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn pages_grow_while_entries_are_small_and_hold_one_revision() {
        let store = Memory::new().unwrap();
        assert_eq!(sizes(&store).await, [0]);
        store.delete_prefix("a/").await.unwrap();
        fill(&store, 10_000, 10).await;
        assert_eq!(sizes(&store).await, [256, 512, 1024, 2048, 4096, 2064]);
        assert_eq!(Pages::count(10_000, 18), 6);
        assert_eq!([0, 1, 256, 257, 768, 769].map(|n| Pages::count(n, 18)), [1, 1, 1, 2, 2, 3]);
        assert_eq!(Pages::count(100, 100 << 10), 1);
        assert_eq!(Pages::count(600, 100 << 10), 1 + 35);
    }

    #[tokio::test]
    async fn pages_of_large_entries_are_small() {
        let store = Memory::new().unwrap();
        fill(&store, 600, 100 << 10).await;
        let sizes = sizes(&store).await;
        assert_eq!(sizes[..2], [256, 10], "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 600);
    }
}
