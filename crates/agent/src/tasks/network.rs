//! Changes of links, addresses and routes.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use villus_net::{Monitor, MonitorStop, NetEvent};

use crate::AgentError;
use crate::agent::Agent;
use crate::masquerade::table_name;
use crate::nat;
use crate::node::Node;

/// How long changes of the node are gathered before it is looked at again.
const GATHER: Duration = Duration::from_millis(200);

/// How often somebody may be found to have changed the table of masquerading.
const LOOK: Duration = Duration::from_secs(1);
/// So often a file that changes is looked at before it is taken.
const LOOKS: u32 = 30;

/// Follows the network. The monitor listens in the namespace of the calling thread, which is the node's.
pub(super) fn spawn(agent: &Agent) -> Result<Option<MonitorStop>, AgentError> {
    let (events, stop) = Monitor::open()?.into_channel()?;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("villus-net".into())
        .stack_size(128 << 10)
        .spawn(move || {
            while let Ok(event) = events.recv() {
                if sender.send(event).is_err() {
                    return;
                }
            }
        })
        .map_err(AgentError::Runtime)?;
    let agent = agent.clone();
    tokio::spawn(async move {
        // When the node is to be looked at again.
        let mut look: Option<Instant> = None;
        loop {
            let event = match look {
                None => receiver.recv().await,
                Some(at) => match tokio::time::timeout_at(at, receiver.recv()).await {
                    Ok(event) => event,
                    Err(_) => {
                        look = None;
                        let _ = agent.with(|node| node.refresh_network()).await;
                        continue;
                    }
                },
            };
            let Some(first) = event else { return };
            let mut batch = vec![first];
            while let Ok(next) = receiver.try_recv() {
                batch.push(next);
            }
            if take(&agent, batch).await {
                look = look.or_else(|| Some(Instant::now() + GATHER));
            }
        }
    });
    Ok(Some(stop))
}

/// Keeps the table of masquerading as it was made.
pub(super) async fn keep_masquerade(agent: Agent) {
    let asked = |node: &mut Node| Some((node.network.masquerading.clone()?, node.wake.clone()));
    let Ok(Some((table, wake))) = agent.with(asked).await else { return };
    loop {
        let table = table.clone();
        // Commands take their time; nobody waits for them here.
        let look = move || {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = table.look();
            (kept, table.may_be_astray().then(|| table.forget_astray()))
        };
        let Ok((kept, forgotten)) = tokio::task::spawn_blocking(look).await else { return };
        if let Some(forgotten) = forgotten {
            let _ = agent.with(move |node| node.note_forgotten(forgotten)).await;
        }
        if kept.as_ref().is_ok_and(|mended| *mended) {
            tracing::warn!(table = table_name(), "somebody removed or changed it, and it was made again");
        }
        if !matches!(kept, Ok(false)) {
            let noted = move |node: &mut Node| {
                node.counts.repaired += u64::from(matches!(kept, Ok(true)));
                node.conditions.note("masquerading", kept.err().map(|error| error.to_string()));
            };
            let _ = agent.with(noted).await;
        }
        let _ = tokio::time::timeout(LOOK, wake.masquerade.notified()).await;
    }
}

/// Follows the list of prefixes without masquerade. What cannot be read is said, and the last good list stays.
pub(super) async fn follow_list(agent: Agent) {
    let Ok(Some(path)) = agent
        .with(|node| node.config.masquerade.list.clone().filter(|_| node.network.masquerading.is_some()))
        .await
    else {
        return;
    };
    let Ok(freeze) = agent.with(|node| node.freeze.clone()).await else { return };
    let mut every = LOOK;
    let mut seen = None;
    loop {
        tokio::time::sleep(every).await;
        freeze.thawed().await;
        let text = nat::read(&path);
        if seen.as_ref() == Some(&text) {
            continue;
        }
        let text = whole(text, || nat::read(&path)).await;
        let parsed = text.clone().and_then(|text| nat::parse(&path, text.as_deref()));
        seen = Some(text);
        if let Ok(list) = &parsed {
            every = list.every;
        }
        let told = agent.with(move |node| match parsed {
            Ok(list) => {
                node.conditions.note("ip-masq-agent", None);
                node.set_list(&list);
            }
            Err(problem) => {
                node.conditions.note("ip-masq-agent", Some(format!("{problem}; the list of before stays")));
            }
        });
        let _ = told.await;
    }
}

/// What two looks in a row find alike: written in place, a file is cut off first and may be half of what it will be. One that
/// is another at each look is taken as it is after [`LOOKS`].
async fn whole<T: PartialEq>(mut found: T, mut look: impl FnMut() -> T) -> T {
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        let again = look();
        if again == found {
            break;
        }
        found = again;
    }
    found
}

/// Takes in what happened to devices of endpoints, at once: until then packets to them may go astray. Says whether the
/// node itself has changed.
async fn take(agent: &Agent, batch: Vec<NetEvent>) -> bool {
    let changed = agent
        .with(move |node| {
            let mut freed = Vec::new();
            let mut refresh = false;
            for event in batch {
                match event {
                    NetEvent::Link(link) => {
                        node.device_changed(&link);
                        node.find_missing();
                        refresh |= !link.name.starts_with(villus_net::HOST_PREFIX);
                    }
                    NetEvent::LinkGone(link) => {
                        freed.extend(node.device_gone(&link));
                        node.find_missing();
                        refresh |= !link.name.starts_with(villus_net::HOST_PREFIX);
                    }
                    NetEvent::Resync => {
                        freed.extend(node.find_gone());
                        refresh = true;
                    }
                    NetEvent::Address(_) | NetEvent::AddressGone(_) => refresh = true,
                    NetEvent::Route(route) | NetEvent::RouteGone(route) => {
                        refresh |= route.destination.prefix_len() == 0;
                        if route.mtu.is_some() {
                            node.wake.wrapping.notify_one();
                        }
                    }
                }
            }
            (freed, refresh)
        })
        .await;
    let Ok((freed, refresh)) = changed else { return false };
    for labels in freed {
        agent.identities.release(&labels).await;
    }
    refresh
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_being_written_is_no_list_yet() {
        let mut looks = ["10.", "10.0.0.0/8", "10.0.0.0/8", "later"].into_iter();
        assert_eq!(whole("", || looks.next().unwrap_or_default()).await, "10.0.0.0/8");
        assert_eq!(looks.next(), Some("later"));
    }
}
