//! Garbage collection of identities, pass after pass, while the store's quorum is proven.

use std::{sync::Arc, time::Duration};

use villus_api::model::OperatorCollection;
use villus_identity::{Gc, GcReport};
use villus_kvstore::{Compare, StoreError};

use crate::operator::Shared;

/// How long one deletion waits for the lock of a label set.
const PATIENCE: Duration = Duration::from_secs(10);

/// Collects until it is dropped. Every deletion carries `office`, the condition that this is still the one to do it.
pub(crate) async fn run(shared: Arc<Shared>, office: Compare) {
    let config = &shared.config;
    let Some(interval) = config.gc_interval else {
        return std::future::pending().await;
    };
    let gc = Gc::new(Arc::clone(&shared.store), config.range.clone(), PATIENCE);
    let mut gc = gc.after(config.gc_grace).fenced(office);
    let mut chance = fastrand::Rng::new();
    let (mut held, mut failures) = (None, 0);
    loop {
        let lost = shared.proof.proven().await;
        if held.replace(lost) != Some(lost) {
            // Agents that could not reach the store could not say what they use.
            gc.forget();
        }
        let outcome = pass(&shared, &mut gc, lost).await;
        let wait = match &outcome {
            Ok(_) => {
                failures = 0;
                interval.mul_f64(0.9 + 0.2 * chance.f64())
            }
            Err(_) => {
                failures += 1;
                config.backoff.delay(failures, &mut chance).min(interval)
            }
        };
        shared.note_collection(&outcome);
        // Once it is proven again, what is unused is looked for anew, and found twice before anything goes.
        let _ = tokio::time::timeout(wait, shared.proof.lost_since(lost)).await;
    }
}

/// One pass, with as many deletions in each interval as the rate allows.
async fn pass(shared: &Shared, gc: &mut Gc, lost: u64) -> Result<GcReport, StoreError> {
    let (limit, every) = shared.config.gc_rate;
    let mut report = gc.pass(limit).await?;
    while report.deferred > 0 {
        tokio::time::sleep(every).await;
        if !shared.proof.held_since(lost) {
            break;
        }
        let more = gc.rest(limit).await?;
        report.used += more.used;
        report.deleted += more.deleted;
        report.deferred = more.deferred;
    }
    Ok(report)
}

/// A pass as the status shows it.
pub(crate) fn note(last: &mut OperatorCollection, outcome: &Result<GcReport, StoreError>) {
    last.time = crate::now();
    match outcome {
        Ok(report) => {
            last.passes += 1;
            last.problem = String::new();
            (last.used, last.marked, last.waiting) = (report.used, report.marked, report.waiting);
            (last.deferred, last.skipped) = (report.deferred, report.skipped);
            last.deleted = report.deleted;
            last.deleted_total += report.deleted;
        }
        Err(error) => {
            last.failures += 1;
            last.problem = error.to_string();
        }
    }
}
