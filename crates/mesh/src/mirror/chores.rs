//! What a mirror does from time to time, rather than because something came.

use std::{sync::Arc, time::Instant};

use villus_kvstore::{Op, StoreError};

use super::{BETWEEN_LISTS, End, Mirror, TICK};
use crate::status::State;

impl Mirror {
    pub(super) async fn tick(&mut self) -> Result<(), End> {
        self.ask_singly().await;
        self.relist &= (1u8 << self.sources.len()) - 1;
        for at in 0..self.sources.len() {
            let bit = 1u8 << at;
            let source = &self.sources[at];
            // One at a time, and not one after the other without pause.
            if self.relist & bit != 0 && source.current && source.listed_at.elapsed() >= BETWEEN_LISTS {
                self.relist &= !bit;
                let (prefix, header) = (source.prefix.clone(), source.header);
                let pull = self.pull(&prefix, header);
                let source = &mut self.sources[at];
                (source.pull, source.current) = (pull, false);
            }
        }
        self.prepare_sweep().await;
        self.revoke_when_away();
        self.compare().await;
        if !self.canary && self.status.state == State::Synced {
            return self.write_canary().await;
        }
        Ok(())
    }

    /// When copies that nobody has may go: lists are read once more, for what was seen before the remote was complete is
    /// no ground for taking anything away.
    async fn prepare_sweep(&mut self) {
        let due = self.sweep_at.is_some_and(|at| at <= tokio::time::Instant::now());
        let current = self.sources.iter().all(|source| source.listed && source.current);
        if !due || !current || self.before_sweep != 0 || !self.remote_is_complete().await {
            return;
        }
        if self.table.count_unclaimed() == 0 {
            self.sweep_at = None;
            return;
        }
        self.before_sweep = (1u8 << self.sources.len()) - 1;
        self.relist |= self.before_sweep;
    }

    async fn remote_is_complete(&self) -> bool {
        match &self.plan.wait_for {
            None => true,
            Some(canary) => matches!(self.plan.remote.get(canary).await, Ok(Some(_))),
        }
    }

    /// `cache-ttl`: what agents would send traffic to goes when its cluster has been away for long.
    fn revoke_when_away(&mut self) {
        let long = self.away_since.is_some_and(|since| since.elapsed() >= self.plan.cache_ttl);
        if !long || self.plan.cache_ttl.is_zero() || !self.plan.kind.is_service() || self.revoked {
            return;
        }
        self.revoked = true;
        tracing::warn!(
            cluster = self.plan.cluster, kind = %self.plan.kind, copies = self.table.len(), ttl = ?self.plan.cache_ttl,
            "the remote has been away for longer than cache-ttl; its services are taken away"
        );
        for source in 0..self.sources.len() {
            self.table.begin(source as u8);
            let _ = self.table.end(source as u8);
        }
        self.sweep();
        // What was forgotten comes back with a list.
        self.relist = u8::MAX;
    }

    async fn write_canary(&mut self) -> Result<(), End> {
        let key = self.plan.kind.canary(self.plan.layout, &self.plan.cluster);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let written = async {
            let lease = self.plan.leases.lease(1).await?;
            self.plan.local.txn(self.plan.guard.txn().then(Op::put(key, now, lease))).await
        };
        match written.await {
            Ok(outcome) if !outcome.held => Err(End::LostLead),
            Ok(_) => {
                self.canary = true;
                Ok(())
            }
            Err(StoreError::LeaseNotFound(lease)) => {
                self.plan.leases.lost(lease);
                Ok(())
            }
            // With the next tick.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn settle(&mut self) {
        let current = self.sources.iter().all(|source| source.listed && source.current);
        if !current || (self.relist != 0 && !self.status.synced_once) {
            return;
        }
        if self.away_since.take().is_some() {
            self.revoked = false;
        }
        if self.push.pending() == 0 {
            self.status.enter(State::Synced);
        } else if self.status.state == State::Stale {
            self.status.enter(State::Syncing);
        }
    }

    pub(super) fn trouble(&mut self, problem: String) {
        self.status.problem = Some(problem);
        self.say(true);
    }

    /// Puts the status where others see it; not for every change.
    pub(super) fn say(&mut self, at_once: bool) {
        if !at_once && self.said.elapsed() < TICK / 2 {
            return;
        }
        self.said = Instant::now();
        self.status.entries = self.table.len() as u64;
        self.status.pending = self.push.pending() as u64;
        let left = self.sweep_at.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        self.status.held = if left.is_some() { self.table.count_unclaimed() as u64 } else { 0 };
        self.status.held_until = left.and_then(|left| jiff::Timestamp::now().checked_add(left).ok());
        self.status.dropped.clear();
        for (reason, count) in self.sources.iter().flat_map(|source| &source.dropped) {
            *self.status.dropped.entry(*reason).or_default() += count;
        }
        let headers = || self.sources.iter().filter_map(|source| source.header);
        let revision = headers().map(|header| header.revision).max().unwrap_or(0);
        let store = headers().map(|header| header.cluster).next();
        let status = self.status.clone();
        self.plan.board.remote(&self.plan.cluster, |remote| {
            remote.revision = revision.max(remote.revision);
            remote.store = store.unwrap_or(remote.store);
            let (kind, layout) = (status.kind, status.layout);
            *remote.prefix(kind, layout) = status;
        });
    }

    /// Copies that no source has go.
    pub(super) fn sweep(&mut self) {
        for (rest, id) in self.table.unclaimed() {
            self.plan.judge.gone(self.plan.kind, &rest, id);
            self.drop_unclaimed(rest);
        }
    }

    pub(super) fn drop_unclaimed(&mut self, rest: Arc<str>) {
        if self.table.drop_unclaimed(&rest) {
            self.push.set(rest, None);
        }
    }
}
