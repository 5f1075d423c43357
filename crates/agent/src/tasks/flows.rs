//! Open flows: judged again after a change of policy, and collected when they have expired.

use std::time::Duration;

use villus_datapath::{Flows, Mappings, now};

use crate::agent::Agent;

/// How long changes are gathered before flows are judged again; the promise is one second.
const GATHER: Duration = Duration::from_millis(100);
/// First interval between collections, and its bounds (`datapath` reference 4.2).
const FIRST: Duration = Duration::from_secs(300);
const LEAST: Duration = Duration::from_secs(10);

/// Judges open flows again whenever policy maps changed.
pub(super) async fn rejudge(agent: Agent) {
    loop {
        agent.wake.rejudge.notified().await;
        tokio::time::sleep(GATHER).await;
        let Ok(Some(work)) = agent.with(|node| node.take_rejudge()).await else { continue };
        let Ok(found) = tokio::task::spawn_blocking(move || work.run()).await else { continue };
        if found.as_ref().is_ok_and(|suspects| suspects.is_empty()) {
            continue;
        }
        let done = agent.with(move |node| {
            let cut = found.and_then(|suspects| node.cut(&suspects));
            node.conditions.note("open flows", cut.as_ref().err().map(ToString::to_string));
            let cut = cut.unwrap_or(0);
            node.counts.cut_flows += cut as u64;
            cut
        });
        if let Ok(cut @ 1..) = done.await {
            tracing::info!(flows = cut, "open flows that policy does not allow any more were cut");
        }
    }
}

/// Collects expired flows, more often where much is found.
pub(super) async fn collect(agent: Agent) {
    let Ok((fixed, most, maps)) = agent
        .with(|node| {
            let conntrack = &node.config.conntrack;
            (conntrack.gc_interval, conntrack.gc_max_interval, node.kernel.maps.clone())
        })
        .await
    else {
        return;
    };
    let mut interval = fixed.unwrap_or(FIRST);
    loop {
        tokio::time::sleep(interval).await;
        let maps = maps.clone();
        let collected = move || {
            let mappings = Mappings::new(maps.clone()).clear_expired(now())?;
            Ok::<_, villus_datapath::Error>((Flows::new(maps).clear_expired(now())?, mappings))
        };
        let cleared = tokio::task::spawn_blocking(collected).await;
        match cleared {
            Ok(Ok((cleared, mappings))) => {
                if fixed.is_none() {
                    let gone = cleared.expired + mappings.gone;
                    interval = next_interval(interval, gone, cleared.alive + mappings.alive, most);
                }
                let _ = agent
                    .with(move |node| {
                        node.counts.alive_flows = cleared.alive as u64;
                        node.counts.collected_flows += cleared.expired as u64;
                        node.counts.alive_mappings = mappings.alive as u64;
                        node.counts.collected_mappings += mappings.gone as u64;
                        node.conditions.note("collection of flows", None);
                    })
                    .await;
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                let _ = agent.with(move |node| node.conditions.note("collection of flows", Some(text))).await;
            }
            Err(_) => return,
        }
    }
}

/// Shorter when more than a quarter had expired, longer when less than a twentieth had.
fn next_interval(interval: Duration, expired: usize, alive: usize, most: Duration) -> Duration {
    let all = expired + alive;
    let share = if all == 0 { 0.0 } else { expired as f64 / all as f64 };
    let next = if share > 0.25 {
        interval.mul_f64(1.0 - share.min(0.9))
    } else if share < 0.05 {
        interval.mul_f64(1.5)
    } else {
        interval
    };
    next.clamp(LEAST, most.max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_what_is_found() {
        let most = Duration::from_secs(3600);
        let next = |expired, alive| next_interval(Duration::from_secs(100), expired, alive, most).as_secs();
        assert_eq!(next(50, 50), 50);
        assert_eq!(next(100, 0), 10);
        assert_eq!(next(10, 90), 100);
        assert_eq!(next(0, 100), 150);
        assert_eq!(next_interval(most, 0, 0, most), most);
    }
}
