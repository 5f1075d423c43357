//! The engine of the stores that live in this process: one thread carries out transactions in order, makes
//! them durable in groups, and lets leases expire; readers and watches look at what it published.

mod state;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch as signal};

pub(crate) use self::{
    state::{Lease, State, check},
    watch::EngineWatch,
};
use crate::{
    error::StoreError,
    model::{Entry, Event, Header, LeaseId, LeasePurpose, Listing, Page, Txn, TxnOutcome, WatchBatch},
};

/// Transactions that are made durable together at most.
const GROUP: usize = 128;
/// Revisions whose changes are kept for watches.
const HISTORY: usize = 4096;
/// Contents of the past that are kept for lists that go on page by page.
const PAST: usize = 32;
/// How long the engine sleeps when no lease is about to expire.
const IDLE: Duration = Duration::from_secs(3600);

/// Where committed groups go.
pub(crate) trait Disk: Send {
    /// Makes `new` durable, given that `old` is. On an error `old` still is.
    fn commit(&mut self, old: &State, new: &State, events: &[Event]) -> Result<(), String>;
}

/// A disk that forgets.
pub(crate) struct NoDisk;

impl Disk for NoDisk {
    fn commit(&mut self, _: &State, _: &State, _: &[Event]) -> Result<(), String> {
        Ok(())
    }
}

/// What readers see.
pub(crate) struct Published {
    pub(crate) state: State,
    pub(crate) history: VecDeque<Arc<WatchBatch>>,
    /// The last few contents, the present one not among them.
    past: VecDeque<State>,
    /// Changes before this revision are forgotten.
    pub(crate) oldest: u64,
    pub(crate) cluster: u64,
    /// Why the last group could not be made durable.
    pub(crate) failing: Option<String>,
    /// Counts replacements of the whole content.
    pub(crate) era: u64,
}

pub(crate) struct Shared {
    published: RwLock<Published>,
    pub(crate) revision: signal::Sender<u64>,
}

impl Shared {
    pub(crate) fn read<R>(&self, look: impl FnOnce(&Published) -> R) -> R {
        look(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn edit<R>(&self, edit: impl FnOnce(&mut Published) -> R) -> R {
        edit(&mut self.published.write().unwrap_or_else(PoisonError::into_inner))
    }
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Txn(Txn, Reply<TxnOutcome>),
    Grant(Lease, Reply<LeaseId>),
    KeepAlive(LeaseId, Reply<()>),
    Revoke(LeaseId, Reply<()>),
    /// Lets time pass, for tests.
    Advance(Duration, Reply<()>),
    /// Forgets changes before a revision, for tests.
    Compact(u64, Reply<()>),
    /// Another content altogether, for tests.
    Replace(Box<State>, u64, Reply<()>),
}

/// The handle. The engine ends when it is dropped.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

// === impl Engine ===

impl Engine {
    pub(crate) fn start(name: &str, state: State, cluster: u64, disk: Box<dyn Disk>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            revision: signal::Sender::new(state.revision),
            published: RwLock::new(Published {
                oldest: state.revision + 1,
                state: state.clone(),
                history: VecDeque::new(),
                past: VecDeque::new(),
                cluster,
                failing: None,
                era: 0,
            }),
        });
        let (jobs, queue) = mpsc::channel();
        let worker = Worker::new(Arc::clone(&shared), state, disk);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || worker.run(&queue))?;
        Ok(Self { shared, jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn header(&self) -> Header {
        self.shared.read(|p| Header { cluster: p.cluster, revision: p.state.revision })
    }

    pub(crate) async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.ask(|reply| Job::Txn(txn, reply)).await
    }

    pub(crate) async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        self.ask(|reply| Job::Grant(Lease { ttl, purpose }, reply)).await
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Job::KeepAlive(lease, reply)).await
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Job::Revoke(lease, reply)).await
    }

    pub(crate) async fn advance(&self, by: Duration) -> Result<(), StoreError> {
        self.ask(|reply| Job::Advance(by, reply)).await
    }

    pub(crate) async fn compact(&self, before: u64) -> Result<(), StoreError> {
        self.ask(|reply| Job::Compact(before, reply)).await
    }

    pub(crate) async fn replace(&self, state: State, cluster: u64) -> Result<(), StoreError> {
        self.ask(|reply| Job::Replace(Box::new(state), cluster, reply)).await
    }

    /// A page of `revision` (0: now). Of the past only the last few revisions are known.
    pub(crate) fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        self.shared.read(|p| {
            if revision == 0 || revision >= p.state.revision {
                return Ok(page_of(&p.state, p.cluster, prefix, after, limit));
            }
            let oldest = p.past.front().map_or(p.state.revision, |state| state.revision);
            let past = p.past.iter().rev().find(|state| state.revision <= revision);
            past.map(|state| page_of(state, p.cluster, prefix, after, limit))
                .ok_or(StoreError::Compacted { requested: revision, oldest })
        })
    }

    /// Everything below a prefix as of now, in one look.
    pub(crate) fn list(&self, prefix: &str) -> Listing {
        let page = self.shared.read(|p| page_of(&p.state, p.cluster, prefix, None, usize::MAX));
        Listing { entries: page.entries, header: page.header }
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let jobs = jobs.as_ref().ok_or(StoreError::Closed)?;
            jobs.send(job(reply)).map_err(|_| StoreError::Closed)?;
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Without a sender the thread finishes what it was asked for and ends; then the disk is closed.
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of the store panicked");
        }
    }
}

fn page_of(state: &State, cluster: u64, prefix: &str, after: Option<&str>, limit: usize) -> Page {
    let mut found = state.below(prefix, after);
    let entries = found.by_ref().take(limit).map(|entry| Entry::clone(entry)).collect();
    let more = found.next().is_some();
    Page { entries, more, header: Header { cluster, revision: state.revision } }
}

/// The thread's own side.
struct Worker {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    /// What is durable and published.
    state: State,
    deadlines: BTreeMap<LeaseId, Instant>,
    /// Added to the clock, for tests.
    skipped: Duration,
    /// Why the last group could not be made durable.
    failing: bool,
}

/// A group under way: what it will be, and what to answer when it is.
struct Group {
    state: State,
    batches: Vec<WatchBatch>,
    answers: Vec<Box<dyn FnOnce(Option<StoreError>)>>,
}

// === impl Worker ===

impl Worker {
    fn new(shared: Arc<Shared>, state: State, disk: Box<dyn Disk>) -> Self {
        let mut worker =
            Self { shared, disk, state, deadlines: BTreeMap::new(), skipped: Duration::ZERO, failing: false };
        worker.restart_leases();
        worker
    }

    /// Gives every lease its whole time: whoever owned it may need as long to come back.
    fn restart_leases(&mut self) {
        let now = self.now();
        self.deadlines = self.state.leases.iter().map(|(id, lease)| (*id, now + lease.ttl)).collect();
    }

    fn now(&self) -> Instant {
        Instant::now() + self.skipped
    }

    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        loop {
            let wake =
                self.deadlines.values().min().map_or(IDLE, |at| at.saturating_duration_since(self.now()));
            // A disk that fails must not be asked again without pause.
            let wake = if self.failing { wake.max(Duration::from_secs(1)) } else { wake };
            let first = match queue.recv_timeout(wake) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut group = Group { state: self.state.clone(), batches: Vec::new(), answers: Vec::new() };
            self.expire(&mut group);
            if let Some(job) = first {
                self.take(job, &mut group);
                while group.answers.len() < GROUP
                    && let Ok(job) = queue.try_recv()
                {
                    self.take(job, &mut group);
                }
            }
            self.commit(group);
        }
    }

    fn expire(&self, group: &mut Group) {
        let now = self.now();
        for (id, _) in self.deadlines.iter().filter(|(_, at)| **at <= now) {
            let events = group.state.end_lease(*id);
            group.record(events);
        }
    }

    fn take(&mut self, job: Job, group: &mut Group) {
        match job {
            Job::Txn(txn, reply) => match group.state.apply(&txn) {
                Ok((outcome, events)) => {
                    group.record(events);
                    group.answer(reply, Ok(outcome));
                }
                Err(error) => group.answer(reply, Err(error)),
            },
            Job::Grant(lease, reply) => {
                let id = new_lease(&group.state);
                group.state.leases.insert(id, lease);
                group.answer(reply, Ok(id));
            }
            Job::KeepAlive(id, reply) => {
                let known = group.state.leases.get(&id).copied();
                if let Some(lease) = known
                    && self.deadlines.contains_key(&id)
                {
                    self.deadlines.insert(id, self.now() + lease.ttl);
                }
                group.answer(reply, known.map(|_| ()).ok_or(StoreError::LeaseNotFound(id)));
            }
            Job::Revoke(id, reply) => {
                let events = group.state.end_lease(id);
                group.record(events);
                group.answer(reply, Ok(()));
            }
            Job::Advance(by, reply) => {
                self.skipped += by;
                self.expire(group);
                group.answer(reply, Ok(()));
            }
            Job::Compact(before, reply) => {
                self.shared.edit(|p| p.compact(before));
                group.answer(reply, Ok(()));
            }
            Job::Replace(state, cluster, reply) => {
                group.state = State::clone(&state);
                group.batches.clear();
                self.state = *state;
                self.restart_leases();
                self.shared.edit(|p| p.replace(&self.state, cluster));
                self.shared.revision.send_replace(self.state.revision);
                group.answer(reply, Ok(()));
            }
        }
    }

    fn commit(&mut self, group: Group) {
        let events: Vec<Event> = group.batches.iter().flat_map(|batch| batch.events.clone()).collect();
        let changed = !events.is_empty() || !group.state.leases.ptr_eq(&self.state.leases);
        if changed && let Err(reason) = self.disk.commit(&self.state, &group.state, &events) {
            tracing::error!(%reason, "the store could not be written");
            self.failing = true;
            self.shared.edit(|p| p.failing = Some(reason.clone()));
            for answer in group.answers {
                answer(Some(StoreError::Unavailable { what: "write", reason: reason.clone() }));
            }
            return;
        }
        if changed {
            self.publish(&group.state, group.batches);
            self.state = group.state;
        }
        self.follow_leases();
        for answer in group.answers {
            answer(None);
        }
    }

    fn publish(&mut self, state: &State, batches: Vec<WatchBatch>) {
        self.failing = false;
        self.shared.edit(|p| {
            p.failing = None;
            let old = std::mem::replace(&mut p.state, state.clone());
            if old.revision != state.revision {
                p.past.push_back(old);
            }
            while p.past.len() > PAST {
                p.past.pop_front();
            }
            p.history.extend(batches.into_iter().map(Arc::new));
            let excess = p.history.len().saturating_sub(HISTORY);
            if let Some(first) = p.history.get(excess)
                && excess > 0
            {
                p.compact(first.revision);
            }
        });
        self.shared.revision.send_replace(state.revision);
    }

    fn follow_leases(&mut self) {
        let now = self.now();
        let leases = &self.state.leases;
        self.deadlines.retain(|id, _| leases.contains_key(id));
        for (id, lease) in leases {
            self.deadlines.entry(*id).or_insert(now + lease.ttl);
        }
    }
}

// === impl Group ===

impl Group {
    fn record(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.batches.push(WatchBatch { revision: self.state.revision, events });
        }
    }

    /// Answers when the group is durable. A refusal is as good before as after, but keeps its turn.
    fn answer<T: 'static>(&mut self, reply: Reply<T>, result: Result<T, StoreError>) {
        self.answers.push(Box::new(move |failure| {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(failure.map_or(result, Err));
        }));
    }
}

// === impl Published ===

impl Published {
    fn compact(&mut self, before: u64) {
        let before = before.min(self.state.revision + 1);
        while self.history.front().is_some_and(|batch| batch.revision < before) {
            self.history.pop_front();
        }
        while self.past.front().is_some_and(|state| state.revision < before) {
            self.past.pop_front();
        }
        self.oldest = self.oldest.max(before);
    }

    fn replace(&mut self, state: &State, cluster: u64) {
        self.state = state.clone();
        self.history.clear();
        self.past.clear();
        self.oldest = state.revision + 1;
        self.cluster = cluster;
        self.era += 1;
    }
}

fn new_lease(state: &State) -> LeaseId {
    loop {
        let id = LeaseId(fastrand::u64(1..=i64::MAX as u64));
        if !state.leases.contains_key(&id) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::model::Op;

    /// A disk that is full when the test says so.
    struct Flaky(Arc<AtomicBool>);

    impl Disk for Flaky {
        fn commit(&mut self, _: &State, _: &State, _: &[Event]) -> Result<(), String> {
            if self.0.load(Ordering::SeqCst) { Err("no space left".to_owned()) } else { Ok(()) }
        }
    }

    fn put(key: &str) -> Txn {
        Txn::new().then(Op::put(key, "x", None))
    }

    #[tokio::test]
    async fn what_is_not_durable_is_not_there() {
        let full = Arc::new(AtomicBool::new(false));
        let disk = Box::new(Flaky(Arc::clone(&full)));
        let engine = Engine::start("test", State::default(), 1, disk).unwrap();
        let before = engine.txn(put("a")).await.unwrap().revision;
        full.store(true, Ordering::SeqCst);
        let error = engine.txn(put("b")).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("no space left"), "{error}");
        assert_eq!(engine.header().revision, before);
        assert_eq!(engine.list("").entries.len(), 1, "what was there can be read");
        assert_eq!(engine.shared().read(|p| p.failing.clone()).as_deref(), Some("no space left"));
        full.store(false, Ordering::SeqCst);
        assert_eq!(engine.txn(put("c")).await.unwrap().revision, before + 1);
        assert_eq!(engine.shared().read(|p| p.failing.clone()), None);
        let keys: Vec<_> = engine.list("").entries.iter().map(|entry| entry.key.to_string()).collect();
        assert_eq!(keys, ["a", "c"]);
    }
}
