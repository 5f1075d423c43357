//! Simulated agents: what their clients of etcd do, and nothing else of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{sync::watch, task::JoinSet};
use villus_kvstore::{ClusterSize, Etcd, EtcdOptions, Follow, Pace, Store, StoreError};
use villus_table::Backoff;

/// Within which time agents notice that their API server is gone.
const SPREAD: Duration = Duration::from_secs(3);
/// From the end of an agent to its next start, as its supervisor has it.
const RESTART: Duration = Duration::from_secs(1);
/// Between two looks at a store, and how long an answer may take; two that fail end an agent that restarts.
const LOOK: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);
const FAILURES: u32 = 2;
/// How long all agents may take to serve at the beginning.
const BEGINNING: Duration = Duration::from_secs(120);
/// What agents list and watch.
const PREFIXES: [&str; 2] = ["cilium/state/", "cilium/cache/"];

/// How an agent takes failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manner {
    /// It ends and starts again, with everything from the beginning.
    Restarts,
    /// It goes on with what it knows, and waits.
    Waits,
}

/// The agents of one cluster. Gone with this value.
pub(super) struct Agents {
    count: usize,
    serving: Arc<AtomicUsize>,
    api_server: watch::Sender<u64>,
    manner: Manner,
    _tasks: JoinSet<()>,
}

/// Counts an agent as serving as long as it is held.
struct Serving(Arc<AtomicUsize>);

impl Serving {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Agents ===

impl Agents {
    /// So many agents, each of which reads these stores.
    pub(super) fn start(count: usize, manner: Manner, sources: &[String]) -> Self {
        let (serving, api_server) = (Arc::default(), watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (sources, serving) = (sources.to_vec(), Arc::clone(&serving));
            match manner {
                Manner::Restarts => {
                    let api_server = api_server.subscribe();
                    tasks.spawn(async move { restarts(&sources, &serving, api_server).await });
                }
                Manner::Waits => drop(tasks.spawn(async move { waits(count, &sources, &serving).await })),
            }
        }
        Self { count, serving, api_server, manner, _tasks: tasks }
    }

    /// Agents that know everything and go by it.
    pub(super) fn serving(&self) -> usize {
        self.serving.load(Ordering::Relaxed)
    }

    pub(super) async fn all_serve(&self) -> Result<()> {
        let end = tokio::time::Instant::now() + BEGINNING;
        while self.serving() < self.count {
            ensure!(tokio::time::Instant::now() < end, "{} of {} agents serve", self.serving(), self.count);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Their API server fails: those that restart do so.
    pub(super) fn lose_api_server(&self) {
        if self.manner == Manner::Restarts {
            self.api_server.send_modify(|n| *n += 1);
        }
    }
}

fn client(url: &str) -> Option<Arc<dyn Store>> {
    let mut options = EtcdOptions::new(vec![url.to_owned()]);
    options.max_inflight = options.qps;
    Some(Arc::new(Etcd::new(options).ok()?))
}

async fn chance(limit: Duration) {
    tokio::time::sleep(limit.mul_f64(fastrand::f64())).await;
}

async fn restarts(sources: &[String], serving: &Arc<AtomicUsize>, mut api_server: watch::Receiver<u64>) {
    chance(SPREAD).await;
    loop {
        tokio::select! {
            _ = live(sources, serving) => {}
            // The sender is there as long as this is.
            _ = async { let _ = api_server.changed().await; chance(SPREAD).await } => {}
        }
        tokio::time::sleep(RESTART).await;
    }
}

/// One life: connects, lists, watches, and looks at its stores until one fails.
async fn live(sources: &[String], serving: &Arc<AtomicUsize>) -> Result<(), StoreError> {
    let stores: Vec<Arc<dyn Store>> = sources.iter().filter_map(|url| client(url)).collect();
    let mut watches = Vec::new();
    for store in &stores {
        for prefix in PREFIXES {
            let listing = store.list_prefix(prefix).await?;
            watches.push(store.watch(prefix, listing.header.revision + 1).await?);
        }
    }
    let _serves = Serving::new(serving);
    let watching = async {
        let mut all: JoinSet<StoreError> = JoinSet::new();
        for mut watch in watches {
            all.spawn(async move {
                loop {
                    if let Err(error) = watch.next().await {
                        return error;
                    }
                }
            });
        }
        // That one ends is noticed by the next look.
        while all.join_next().await.is_some() {}
        std::future::pending::<()>().await;
    };
    let looking = async {
        let mut failures = 0;
        loop {
            tokio::time::sleep(LOOK.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
            let mut all_well = true;
            for store in &stores {
                all_well &= matches!(tokio::time::timeout(PATIENCE, store.header()).await, Ok(Ok(_)));
            }
            failures = if all_well { 0 } else { failures + 1 };
            if failures >= FAILURES {
                return;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = looking => {}
    }
    Ok(())
}

async fn waits(count: usize, sources: &[String], serving: &Arc<AtomicUsize>) {
    let size = ClusterSize::default();
    size.set(count);
    chance(SPREAD).await;
    let Ok(backoff) = Backoff::try_new(Duration::from_millis(50), Duration::from_secs(30), 0.5) else {
        return;
    };
    let stores: Vec<Arc<dyn Store>> = sources.iter().filter_map(|url| client(url)).collect();
    let pace = Pace::new(backoff, size.clone());
    let follows = stores
        .iter()
        .flat_map(|store| PREFIXES.map(|prefix| Follow::start(Arc::clone(store), prefix, pace.clone())));
    let mut follows: Vec<Follow> = follows.collect();
    for follow in &mut follows {
        if follow.next().await.is_none() {
            return;
        }
    }
    let _serves = Serving::new(serving);
    let mut reading = JoinSet::new();
    for mut follow in follows {
        reading.spawn(async move { while follow.next().await.is_some() {} });
    }
    loop {
        tokio::time::sleep(size.interval(LOOK)).await;
        for store in &stores {
            // It is no ground for anything.
            let _ = tokio::time::timeout(PATIENCE, store.header()).await;
        }
    }
}
