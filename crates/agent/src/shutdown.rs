//! When to end.

use tokio::signal::unix::{SignalKind, signal};

/// Ready when the process is told to end: SIGTERM or SIGINT. Must be awaited inside a runtime.
pub async fn signals() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
