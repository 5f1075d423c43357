//! Writing, listing, watching and keeping alive as a cluster does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use thiserror::Error;
use tokio::task::JoinSet;
use villus_kvstore::{Event, LeaseId, LeasePurpose, MAX_TXN_OPS, Op, PAGE, Pages, Store, StoreError, Txn};

use super::{
    Latency, Measured, identities,
    layout::{self, Written},
};

/// Below it everything lies that is written.
pub const PREFIX: &str = "villus/plan/";
/// Entries of a transaction.
const BATCH: usize = if MAX_TXN_OPS < 100 { MAX_TXN_OPS } else { 100 };
/// How often a watch without changes looks whether all is over.
const LOOK: Duration = Duration::from_millis(250);
/// How long a watch waits for what is missing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long leases last, should nobody take them away.
const LEASE: Duration = Duration::from_secs(3600);

/// What is replayed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Load {
    /// Nodes: each has a lease.
    pub nodes: u32,
    /// Pods: each has an address, and some of them share an identity.
    pub pods: u32,
    /// Clients that list at the same time.
    pub listers: u32,
    /// Watches that are open at the same time.
    pub watchers: u32,
    /// Entries that change in a second.
    pub churn: u32,
    /// How long each part takes.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// What was replayed.
    pub load: Load,
    /// Transactions that wrote a hundred entries each.
    pub fill: Latency,
    /// Leases granted.
    pub grant: Latency,
    /// Leases kept alive.
    pub keep_alive: Latency,
    /// Pages listed.
    pub page: Latency,
    /// Identities of label sets whose lock nobody had.
    pub identity: Latency,
    /// Identities that were allocated under the lock of their labels.
    pub locked: Latency,
    /// Single writes while watches are open.
    pub write: Latency,
    /// From the beginning of a write to its arrival at a watch.
    pub delivery: Latency,
    /// Changes that watches should have seen and did not.
    pub missed: u64,
}

/// The load could not be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Somebody left something, or replays now.
    #[error(
        "{0} keys lie below {PREFIX} already; wait until the other is done, or take them away with `villus kvstore delete --recursive {PREFIX}`"
    )]
    NotEmpty(usize),
    /// The store failed.
    #[error("the store failed while it was {doing}: {source}")]
    Store {
        /// What was done.
        doing: &'static str,
        /// What it said.
        source: StoreError,
    },
    /// A task of ours failed.
    #[error("a task of the replay failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

pub(super) fn while_it(doing: &'static str) -> impl Fn(StoreError) -> ReplayError {
    move |source| ReplayError::Store { doing, source }
}

impl Outcome {
    /// What an estimate goes by.
    #[must_use]
    pub fn measured(&self) -> Measured {
        Measured {
            pages: self.page.rate,
            keep_alives: self.keep_alive.rate,
            identities: self.identity.rate + self.locked.rate,
            writes: self.write.rate,
            deliveries: self.delivery.rate,
        }
    }
}

/// Replays a load and takes away what it wrote, whatever happened. `say` is told what is done.
///
/// # Errors
/// The prefix is in use, or the store fails.
pub async fn replay(store: Arc<dyn Store>, load: &Load, say: impl Fn(&str)) -> Result<Outcome, ReplayError> {
    let there = store.list_page(PREFIX, None, PAGE, 0).await.map_err(while_it("asked"))?;
    if !there.entries.is_empty() {
        return Err(ReplayError::NotEmpty(there.entries.len()));
    }
    let mut leases = Vec::new();
    let outcome = parts(&store, load, &mut leases, &say).await;
    say("taking away what was written");
    let swept = sweep(&store, leases).await;
    let outcome = outcome?;
    swept?;
    Ok(outcome)
}

async fn parts(
    store: &Arc<dyn Store>,
    load: &Load,
    leases: &mut Vec<LeaseId>,
    say: &impl Fn(&str),
) -> Result<Outcome, ReplayError> {
    say(&format!("granting {} leases", load.nodes));
    let grant = grant(store, load.nodes, leases).await?;
    say(&format!("writing the entries of {} pods", load.pods));
    let fill = fill(store, load, leases).await?;
    say(&format!("keeping {} leases alive", load.nodes));
    let keep_alive = keep_alive(store, leases).await?;
    say(&format!("listing with {} clients", load.listers));
    let page = list(store, load).await?;
    say("allocating identities");
    let (identity, locked) = identities::allocate(store, load, leases).await?;
    say(&format!("{} writes a second under {} watches", load.churn, load.watchers));
    let (write, delivery, missed) = churn(store, load, leases).await?;
    let load = load.clone();
    Ok(Outcome { load, fill, grant, keep_alive, page, identity, locked, write, delivery, missed })
}

async fn sweep(store: &Arc<dyn Store>, leases: Vec<LeaseId>) -> Result<(), ReplayError> {
    store.delete_prefix(PREFIX).await.map_err(while_it("swept"))?;
    let (_, gone) = timed(leases, 32, |lease| {
        let store = store.clone();
        async move { store.revoke(lease).await }
    })
    .await?;
    gone.into_iter().collect::<Result<Vec<()>, _>>().map_err(while_it("revoking leases"))?;
    Ok(())
}

/// Does something with each of many, some at a time; how long each took, and what came of it.
async fn timed<T, R, F>(
    all: Vec<T>,
    at_once: usize,
    work: impl Fn(T) -> F,
) -> Result<(Latency, Vec<Result<R, StoreError>>), ReplayError>
where
    F: Future<Output = Result<R, StoreError>> + Send + 'static,
    R: Send + 'static,
{
    let (mut times, mut results, begin) = (Vec::new(), Vec::new(), Instant::now());
    let mut running = JoinSet::new();
    for one in all {
        if running.len() >= at_once
            && let Some(done) = running.join_next().await
        {
            let (time, result) = done?;
            times.push(time);
            results.push(result);
        }
        let work = work(one);
        running.spawn(async move {
            let begin = Instant::now();
            let result = work.await;
            (begin.elapsed(), result)
        });
    }
    while let Some(done) = running.join_next().await {
        let (time, result) = done?;
        times.push(time);
        results.push(result);
    }
    Ok((Latency::of(times, begin.elapsed()), results))
}

async fn grant(
    store: &Arc<dyn Store>,
    nodes: u32,
    leases: &mut Vec<LeaseId>,
) -> Result<Latency, ReplayError> {
    let (latency, granted) = timed((0..nodes).collect(), 32, |_| {
        let store = store.clone();
        async move { store.grant(LEASE, LeasePurpose::Entries).await }
    })
    .await?;
    for lease in granted {
        leases.push(lease.map_err(while_it("granting leases"))?);
    }
    Ok(latency)
}

async fn fill(store: &Arc<dyn Store>, load: &Load, leases: &[LeaseId]) -> Result<Latency, ReplayError> {
    let lease_of = |node: u32| leases.get(usize::try_from(node).ok()?).copied();
    let put = |written: Written| Op::put(written.key, written.value, written.owner.and_then(lease_of));
    let mut ops = layout::entries(load).map(put).peekable();
    let mut batches = Vec::new();
    while ops.peek().is_some() {
        batches.push(ops.by_ref().take(BATCH).fold(Txn::new(), Txn::then));
    }
    let (latency, results) = timed(batches, 8, |txn| {
        let store = store.clone();
        async move { store.txn(txn).await.map(drop) }
    })
    .await?;
    results.into_iter().collect::<Result<Vec<()>, _>>().map_err(while_it("filled"))?;
    Ok(latency)
}

async fn keep_alive(store: &Arc<dyn Store>, leases: &[LeaseId]) -> Result<Latency, ReplayError> {
    let (latency, results) = timed(leases.to_vec(), 32, |lease| {
        let store = store.clone();
        async move { store.keep_alive(lease).await }
    })
    .await?;
    results.into_iter().collect::<Result<Vec<()>, _>>().map_err(while_it("keeping leases alive"))?;
    Ok(latency)
}

/// Clients that list what an agent does when it starts, page by page, again and again.
async fn list(store: &Arc<dyn Store>, load: &Load) -> Result<Latency, ReplayError> {
    let (begin, end) = (Instant::now(), Instant::now() + load.time);
    let mut running = JoinSet::new();
    for _ in 0..load.listers {
        let store = store.clone();
        running.spawn(async move {
            let mut times = Vec::new();
            for tree in layout::TREES.iter().cycle() {
                let mut pages = Pages::of(format!("{PREFIX}{tree}"));
                loop {
                    let begin = Instant::now();
                    if begin >= end {
                        return Ok::<_, StoreError>(times);
                    }
                    match pages.next(store.as_ref()).await? {
                        Some(_) => times.push(begin.elapsed()),
                        None => break,
                    }
                }
            }
            Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = running.join_next().await {
        times.extend(done?.map_err(while_it("listed"))?);
    }
    Ok(Latency::of(times, begin.elapsed()))
}

/// Writes at a steady rate while watches are open; each value says when its write began.
async fn churn(
    store: &Arc<dyn Store>,
    load: &Load,
    leases: &[LeaseId],
) -> Result<(Latency, Latency, u64), ReplayError> {
    let clock = Instant::now();
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let from = store.header().await.map_err(while_it("asked"))?.revision + 1;
    let prefix = format!("{PREFIX}churn/");
    let mut watching = JoinSet::new();
    for _ in 0..load.watchers {
        let mut watch = store.watch(&prefix, from).await.map_err(while_it("watched"))?;
        let (over, sent) = (over.clone(), sent.clone());
        watching.spawn(async move {
            let (mut times, mut silent) = (Vec::new(), Duration::ZERO);
            loop {
                let batch = match tokio::time::timeout(LOOK, watch.next()).await {
                    Ok(batch) => batch?,
                    Err(_) => {
                        let is_over = over.load(Ordering::Acquire);
                        silent += if is_over { LOOK } else { Duration::ZERO };
                        // Who has seen everything, or has waited long enough for it, is done.
                        if silent >= PATIENCE || is_over && times.len() as u64 >= sent.load(Ordering::Acquire)
                        {
                            return Ok::<_, StoreError>(times);
                        }
                        continue;
                    }
                };
                let now = clock.elapsed();
                for event in batch.events {
                    let Event::Put(entry) = event else { continue };
                    let began = entry.text().and_then(|text| text.parse().ok()).map(Duration::from_nanos);
                    times.extend(began.map(|began| now.saturating_sub(began)));
                }
                if over.load(Ordering::Acquire) && times.len() as u64 >= sent.load(Ordering::Acquire) {
                    return Ok(times);
                }
            }
        });
    }
    let (begin, end) = (Instant::now(), Instant::now() + load.time);
    let mut writing = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / load.churn.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let (mut number, mut writes) = (0u32, Vec::new());
    while Instant::now() < end {
        ticks.tick().await;
        let (store, key) = (store.clone(), format!("{prefix}{}", number % 1000));
        let lease = leases.get(number as usize % leases.len().max(1)).copied();
        number = number.wrapping_add(1);
        writing.spawn(async move {
            let begin = Instant::now();
            let value = clock.elapsed().as_nanos().to_string();
            store.update(&key, value.into(), lease).await.map(|_| begin.elapsed())
        });
        while let Some(done) = writing.try_join_next() {
            writes.push(done?.map_err(while_it("written"))?);
        }
    }
    while let Some(done) = writing.join_next().await {
        writes.push(done?.map_err(while_it("written"))?);
    }
    let took = begin.elapsed();
    sent.store(writes.len() as u64, Ordering::Release);
    over.store(true, Ordering::Release);
    let (mut deliveries, mut missed) = (Vec::new(), 0);
    while let Some(done) = watching.join_next().await {
        let times = done?.map_err(while_it("watched"))?;
        missed += (writes.len() as u64).saturating_sub(times.len() as u64);
        deliveries.extend(times);
    }
    Ok((Latency::of(writes, took), Latency::of(deliveries, took), missed))
}
