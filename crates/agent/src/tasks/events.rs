//! The kernel's event ring into the history.

use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use villus_datapath::EventRing;
use villus_flows::FlowEvent;

use crate::agent::Agent;

/// Events of one look.
const MOST: usize = 256;

/// Reads the ring for ever.
pub(super) async fn run(agent: Agent) {
    loop {
        if let Err(error) = read(&agent).await {
            tracing::warn!(error, "events of the packet path cannot be read; trying again");
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn read(agent: &Agent) -> Result<(), String> {
    let ring = agent
        .with(|node| EventRing::open(&node.kernel.maps))
        .await
        .map_err(|error| error.message)?
        .map_err(|error| error.to_string())?;
    let fd = std::os::fd::AsFd::as_fd(&ring).try_clone_to_owned().map_err(|error| error.to_string())?;
    #[allow(deprecated, reason = "an OwnedFd is open as long as it is held")]
    let ready = AsyncFd::with_interest(fd, Interest::READABLE).map_err(|error| error.to_string())?;
    let mut ring = ring;
    let mut events = Vec::with_capacity(MOST);
    loop {
        let mut guard = ready.readable().await.map_err(|error| error.to_string())?;
        loop {
            let read = ring.read(MOST, |record| match FlowEvent::decode(record) {
                Ok(event) => events.push(event),
                Err(error) => tracing::debug!(%error, "a record of the ring is no event"),
            });
            let named = agent.name_policies(std::mem::take(&mut events)).await;
            agent.history.push(&named);
            if read < MOST {
                break;
            }
            tokio::task::yield_now().await;
        }
        guard.clear_ready();
    }
}
