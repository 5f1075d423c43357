//! Changes of links, addresses and routes.

use std::time::Duration;

use villus_net::{Monitor, MonitorStop, NetEvent};

use crate::AgentError;
use crate::agent::Agent;

/// How long changes are gathered before the node is looked at again.
const GATHER: Duration = Duration::from_millis(200);

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
        while let Some(first) = receiver.recv().await {
            let mut batch = vec![first];
            if !matches!(batch.first(), Some(NetEvent::LinkGone(_))) {
                tokio::time::sleep(GATHER).await;
            }
            while let Ok(next) = receiver.try_recv() {
                batch.push(next);
            }
            take(&agent, batch).await;
        }
    });
    Ok(Some(stop))
}

async fn take(agent: &Agent, batch: Vec<NetEvent>) {
    let freed = agent
        .with(move |node| {
            let mut freed = Vec::new();
            let mut refresh = false;
            for event in batch {
                match event {
                    NetEvent::Link(link) => {
                        node.device_changed(&link);
                        refresh |= !link.name.starts_with(villus_net::HOST_PREFIX);
                    }
                    NetEvent::LinkGone(link) => {
                        freed.extend(node.device_gone(&link));
                        refresh |= !link.name.starts_with(villus_net::HOST_PREFIX);
                    }
                    NetEvent::Resync => {
                        freed.extend(node.find_gone());
                        refresh = true;
                    }
                    NetEvent::Address(_) | NetEvent::AddressGone(_) => refresh = true,
                    NetEvent::Route(route) | NetEvent::RouteGone(route) => {
                        refresh |= route.destination.prefix_len() == 0;
                    }
                }
            }
            if refresh {
                node.refresh_network();
            }
            freed
        })
        .await;
    for labels in freed.unwrap_or_default() {
        agent.identities.release(&labels).await;
    }
}
