//! Driving a reconciler from a task or from a thread of its own.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio::sync::watch;

use crate::reconcile::{Reconciler, Target};

/// Tells tasks and threads to stop. Clones share the word; once said it stays said.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

// === impl Stop ===

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// Not yet said.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Says it.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was said.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is said.
    pub async fn stopped(&self) {
        let mut said = self.0.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = said.wait_for(|said| *said).await;
    }
}

impl<K: Ord + Clone, V: Clone> Reconciler<K, V> {
    /// Steps whenever something is due until `stop` is said, then returns the target. The target's verbs run
    /// inside the task; one that blocks for long belongs on a thread ([`Reconciler::spawn`]).
    pub async fn run<T: Target<K, V>>(mut self, mut target: T, stop: Stop) -> T {
        let mut pending = self.table().watch_pending();
        let trigger = self.full_trigger();
        while !stop.is_stopped() {
            pending.mark_unchanged();
            let step = self.step(Instant::now(), &mut target);
            if step.more {
                tokio::task::yield_now().await;
                continue;
            }
            let due = async {
                match step.next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.stopped() => {}
                () = self.feed().changed() => {}
                () = trigger.requested() => {}
                _ = pending.changed() => {}
                () = due => {}
            }
        }
        target
    }
}

impl<K, V> Reconciler<K, V>
where
    K: Ord + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// As [`Reconciler::run`], on a thread named `name`.
    ///
    /// # Errors
    /// When the thread or its timer cannot be made.
    pub fn spawn<T>(self, name: &str, target: T, stop: Stop) -> io::Result<JoinHandle<T>>
    where
        T: Target<K, V> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let body = move || runtime.block_on(self.run(target, stop));
        thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}
