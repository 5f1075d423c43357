//! The comparison of the copies with the remote, from time to time: what others did to them is mended.
//!
//! The local store is read page by page between other work, then the remote is listed; nothing is remembered but what is known
//! of each copy anyway.

use std::{sync::Arc, time::Instant};

use villus_kvstore::StoreError;

use super::Mirror;
use crate::status::State;

/// Copies that are looked at together.
const PIECE: usize = 1000;

/// How far a comparison is.
#[derive(Default)]
pub(super) struct Comparison {
    /// When the last one ended, or the mirror was synced first.
    since: Option<Instant>,
    /// The key behind which the next page begins, while one is under way.
    under_way: Option<Option<Arc<str>>>,
    /// Copies that it found different, missing, or nobody's.
    odd: u64,
}

impl Mirror {
    /// Does the next step of a comparison, when one is due.
    pub(super) async fn compare(&mut self) {
        let is_synced = self.status.state == State::Synced && self.relist == 0 && self.sweep_at.is_none();
        if self.plan.compare.is_zero() || !is_synced {
            return;
        }
        let since = *self.comparison.since.get_or_insert_with(Instant::now);
        if self.comparison.under_way.is_none() {
            // Mirrors that began together do not compare together.
            let spread = self.plan.compare.mul_f64(0.9 + 0.1 * fastrand::f64());
            if since.elapsed() < spread {
                return;
            }
            self.table.begin_comparison();
            (self.comparison.under_way, self.comparison.odd) = (Some(None), 0);
        }
        match self.compare_page().await {
            Ok(true) => self.end_comparison(),
            Ok(false) => {}
            // The next tick goes on where this one was.
            Err(error) => self.trouble(format!("the local store: {error}")),
        }
    }

    /// Looks at one page of the local store; says whether it was the last.
    async fn compare_page(&mut self) -> Result<bool, StoreError> {
        let after = self.comparison.under_way.clone().flatten();
        let page = self.plan.local.list_page(&self.plan.target, after.as_deref(), PIECE, 0).await?;
        for entry in &page.entries {
            let Some(rest) = self.copy_of(entry) else { continue };
            if self.push.has(rest) {
                continue;
            }
            let fits = self.plan.leases.fits(entry.lease);
            self.comparison.odd += u64::from(self.table.compare(rest, fits.then_some(&entry.value)));
        }
        let last = page.entries.last().map(|entry| Arc::clone(&entry.key));
        self.comparison.under_way = Some(last);
        Ok(!page.more)
    }

    fn end_comparison(&mut self) {
        let push = &self.push;
        self.comparison.odd += self.table.end_comparison(|rest| push.has(rest));
        (self.comparison.since, self.comparison.under_way) = (Some(Instant::now()), None);
        self.status.compared = Some(jiff::Timestamp::now());
        self.status.repaired += self.comparison.odd;
        if self.comparison.odd > 0 {
            tracing::warn!(
                prefix = self.plan.target,
                copies = self.comparison.odd,
                "copies were not what the remote has; they are mended"
            );
        }
        // The remote says what the copies should be.
        self.relist = u8::MAX;
    }
}
