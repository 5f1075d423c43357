//! Numbers that are used before the store has said so: it is not there, or it is not asked while the agent starts.

use std::sync::Arc;

use villus_labels::{Labels, NumericIdentity};
use villus_table::Stop;

use super::{Shared, protocol, state::Used};
use crate::error::AllocateError;

/// Numbers that are confirmed at once.
const AT_ONCE: usize = 256;

/// Takes a reference to a label set without the store: by the number in use, by one that the store gave it before, by
/// `had`, else by one of this node alone.
pub(super) fn assume(
    shared: &Shared,
    labels: &Labels,
    text: &str,
    had: Option<NumericIdentity>,
) -> Result<NumericIdentity, AllocateError> {
    let mut write = shared.table.write();
    let mut state = shared.state();
    if let Some(number) = state.reuse(text) {
        return Ok(number);
    }
    let is_theirs = |number: &NumericIdentity| write.get(number).is_none_or(|has| has == labels);
    let ours = |number: &NumericIdentity| shared.range.contains(&number.0) || number.is_interim();
    let known = state.known(text, labels).or_else(|| had.filter(|number| ours(number) && is_theirs(number)));
    let interim = || NumericIdentity::INTERIM_RANGE.map(NumericIdentity).find(|n| write.get(n).is_none());
    let used_up = || {
        let used = NumericIdentity::INTERIM_RANGE.count() as u64;
        AllocateError::Exhausted { cluster: shared.config.cluster_id, used, total: used }
    };
    let number = known.or_else(interim).ok_or_else(used_up)?;
    state.assume(text, number, labels);
    drop(state);
    write.put_if_changed(number, labels.clone());
    write.commit();
    shared.opened.notify_one();
    Ok(number)
}

/// Has the store confirm what was assumed, as soon and as often as it takes.
pub(super) async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut failures = 0;
    let mut chance = fastrand::Rng::new();
    loop {
        let wait = shared.config.pace.delay(failures.max(1), &mut chance);
        tokio::select! {
            () = stop.stopped() => return,
            () = shared.opened.notified() => {}
            () = tokio::time::sleep(wait), if failures > 0 => {}
        }
        let open = shared.state().unconfirmed();
        let (mut settled, mut failed, mut is_away) = (0, None, false);
        let confirm = |(text, used): &(String, Used)| {
            let (shared, text, used) = (Arc::clone(&shared), text.clone(), used.clone());
            async move { protocol::confirm(&shared, &text, &used.labels, used.number).await }
        };
        // All at once they share requests.
        for some in open.chunks(AT_ONCE) {
            for outcome in futures_util::future::join_all(some.iter().map(confirm)).await {
                match outcome {
                    Ok(_) => settled += 1,
                    Err(error) => {
                        is_away |= error.is_of_whole_store();
                        failed = Some(error);
                    }
                }
            }
            if is_away {
                break;
            }
        }
        if settled > 0 {
            shared.dark.send_replace(false);
            shared.settled.send_modify(|count| *count += settled);
        }
        failures = match failed {
            Some(error) => {
                tracing::debug!(%error, "numbers of this node are not confirmed yet");
                failures + 1
            }
            None => 0,
        };
    }
}
