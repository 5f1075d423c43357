//! Keeps the word by which packets may go past the host's stack, as long as it is true.

use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use villus_net::{IpsecChanges, Rtnl};

use crate::agent::Agent;
use crate::between::Host;
use crate::node::Node;

/// How often the host is looked at, beside what it says of itself.
const LOOK: Duration = Duration::from_secs(1);

/// After how many of these its routes are, whose changes are heard of but where one takes the place of another.
const ROUTES: u32 = 60;

/// After how many of these neighbours are asked who have not been heard of: the kernel asks only those that its own stack sends to.
const NEIGHBOURS: u32 = 10;

/// Listens to changes of IPsec in the namespace of the calling thread. What cannot be listened to is asked for all the same.
pub(super) fn listen() -> Option<AsyncFd<IpsecChanges>> {
    let changes = match IpsecChanges::open() {
        Ok(changes) => changes?,
        Err(error) => {
            tracing::warn!(%error, "it is asked every second instead");
            return None;
        }
    };
    #[allow(deprecated, reason = "the socket is open as long as it is held")]
    AsyncFd::with_interest(changes, Interest::READABLE).ok()
}

/// Looks again and again, and at once when IPsec or the node's addresses or routes change.
pub(super) async fn keep(agent: Agent, changes: Option<AsyncFd<IpsecChanges>>) {
    let Ok(wake) = agent.with(|node| node.wake.clone()).await else { return };
    let mut routes = None;
    let mut looks: u32 = 0;
    loop {
        // The kernel answers at once, but to a thread of its own: nobody waits for it here.
        let Ok(host) = tokio::task::spawn_blocking(move || Host::look(routes)).await else { return };
        let known = host.narrow.clone();
        let _ = agent.with(move |node| node.keep_wrapping(&host)).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => looks += 1,
            () = wake.wrapping.notified() => looks = ROUTES,
            () = changed(changes.as_ref()) => {}
        }
        if looks.is_multiple_of(NEIGHBOURS) {
            confirm_neighbours(&agent).await;
        }
        routes = (looks < ROUTES).then_some(known);
        looks %= ROUTES;
    }
}

/// What goes past the stack finds its neighbours there, but the stack does not see that it is sent.
async fn confirm_neighbours(agent: &Agent) {
    let uplinks = |node: &mut Node| -> Vec<u32> {
        node.network.uplinks.used.iter().map(|uplink| uplink.index).collect()
    };
    let Ok(devices) = agent.with(uplinks).await else { return };
    let ask = move || Rtnl::open()?.confirm_neighbours(&devices);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(ask).await {
        tracing::debug!(%error, "neighbours were not asked");
    }
}

/// Returns when IPsec has changed.
async fn changed(changes: Option<&AsyncFd<IpsecChanges>>) {
    if let Some(changes) = changes
        && let Ok(mut ready) = changes.readable().await
    {
        changes.get_ref().take();
        ready.clear_ready();
        return;
    }
    std::future::pending().await
}
