//! Agents that allocate at once and die at any step: never one number for two label sets, never two for one. In
//! memory with a death at every single operation, and on a real etcd by chance.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use common::{config, labels};
use villus_identity::{Allocator, AllocatorConfig, Gc, Reserved, new_identities};
use villus_kvstore::{
    Compare, Entry, Etcd, EtcdOptions, Header, LeaseId, LeasePurpose, Locks, Memory, Page, Status, Store,
    StoreError, Txn, TxnOutcome, Watch, keys,
};
use villus_labels::NumericIdentity;
use villus_table::Backoff;
use villus_testbed::EtcdServer;

const ONE: &str = "k8s:app=one;";
const TWO: &str = "k8s:app=two;";
const PATIENCE: Duration = Duration::from_secs(120);

fn patient(node: &str) -> AllocatorConfig {
    AllocatorConfig {
        lock_patience: Duration::from_secs(60),
        timeout: PATIENCE,
        pace: backoff().into(),
        ..config(node)
    }
}

fn backoff() -> Backoff {
    Backoff::try_new(Duration::from_millis(1), Duration::from_millis(50), 0.5).unwrap()
}

async fn agent(store: Arc<dyn Store>, node: &str) -> Allocator {
    let allocator = Allocator::start(store, patient(node), new_identities(&Reserved::new())).unwrap();
    tokio::time::timeout(PATIENCE, allocator.synced()).await.unwrap();
    allocator
}

/// What the store says: master keys by number, and the numbers that nodes use for each label set.
async fn told(store: &Arc<dyn Store>) -> (BTreeMap<u32, String>, BTreeMap<String, BTreeSet<u32>>) {
    // Slave keys first: each lies with its master key, or after it.
    let prefix = format!("{}/", keys::IDENTITY_VALUES);
    let mut used: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for entry in store.list_prefix(&prefix).await.unwrap().entries {
        let (text, _) = entry.key[prefix.len()..].rsplit_once('/').unwrap();
        used.entry(text.to_owned()).or_default().insert(entry.text().unwrap().parse().unwrap());
    }
    let prefix = format!("{}/", keys::IDENTITY_IDS);
    let listing = store.list_prefix(&prefix).await.unwrap();
    let row = |entry: &Entry| (entry.key[prefix.len()..].parse().unwrap(), entry.text().unwrap().to_owned());
    let masters = listing.entries.iter().map(row).collect();
    (masters, used)
}

/// Every label set in use has one number, whose master key says just these labels.
async fn agrees(store: &Arc<dyn Store>, case: &str) {
    let (masters, used) = told(store).await;
    for (text, numbers) in &used {
        assert_eq!(numbers.len(), 1, "{case}: two numbers for `{text}`: {used:?}");
        let number = numbers.first().unwrap();
        assert_eq!(
            masters.get(number),
            Some(text),
            "{case}: number {number} is somebody else's: {masters:?}"
        );
    }
}

// === an agent that dies ===

/// A store as an agent sees it whose machine loses power: after some operations nothing gets through any more, and
/// the last one may have taken place without its answer.
struct Dying {
    inner: Arc<dyn Store>,
    left: AtomicI64,
    last_takes_place: bool,
    /// Somebody else always has the locks, or was faster, when it tries to do without.
    contended: bool,
}

impl Dying {
    fn new(inner: &Arc<dyn Store>, after: i64, last_takes_place: bool, contended: bool) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), left: AtomicI64::new(after), last_takes_place, contended })
    }

    /// Whether an operation takes place, and whether its answer arrives.
    fn turn(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        (left > 0 || (left == 0 && self.last_takes_place), left > 0)
    }

    async fn ask<T>(&self, what: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let (takes_place, answered) = self.turn();
        if !takes_place {
            std::future::pending::<()>().await;
        }
        let answer = what.await;
        if !answered {
            std::future::pending::<()>().await;
        }
        answer
    }
}

#[async_trait]
impl Store for Dying {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        if self.contended && txn.compare.iter().any(|compare| matches!(compare, Compare::NoneBelow(_))) {
            let refused = TxnOutcome { held: false, revision: 0, answers: Vec::new() };
            return self.ask(async { Ok(refused) }).await;
        }
        self.ask(self.inner.txn(txn)).await
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        self.ask(self.inner.list_page(prefix, after, limit, revision)).await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        self.ask(self.inner.grant(ttl, purpose)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(self.inner.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(self.inner.revoke(lease)).await
    }

    async fn status(&self) -> Status {
        self.inner.status().await
    }

    async fn header(&self) -> Result<Header, StoreError> {
        self.inner.header().await
    }
}

/// What an agent does that will die: allocate, release, allocate something else. Returns what it was told.
async fn doomed(store: Arc<Dying>) -> Option<NumericIdentity> {
    let mortal = Arc::clone(&store) as Arc<dyn Store>;
    let work = async {
        let allocator = agent(mortal, "10.0.0.9").await;
        let number = allocator.allocate(&labels(ONE), None).await.ok()?;
        allocator.release(&labels(ONE)).await.ok()?;
        let again = allocator.allocate(&labels(ONE), None).await.ok()?;
        assert_eq!(number, again);
        allocator.allocate(&labels(TWO), None).await.ok()?;
        Some(number)
    };
    let died = async {
        while store.left.load(Ordering::Relaxed) >= 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What does not need the store any more comes to its end.
        tokio::time::sleep(Duration::from_millis(5)).await;
        None
    };
    tokio::select! {
        number = work => number,
        none = died => none,
    }
}

#[tokio::test]
async fn an_agent_that_dies_at_any_operation_leaves_the_others_agreed() {
    for (contended, at_least) in [(false, 6), (true, 20)] {
        dies_at_any_operation(contended, at_least).await;
    }
}

async fn dies_at_any_operation(contended: bool, at_least: i64) {
    let mut steps = 0;
    let mut ended = false;
    while !ended {
        steps += 1;
        for last_takes_place in [false, true] {
            let case = format!(
                "death at operation {steps}, which takes place: {last_takes_place}, contended: {contended}"
            );
            let memory = Memory::new().unwrap();
            let store: Arc<dyn Store> = Arc::new(memory.clone());
            ended = doomed(Dying::new(&store, steps, last_takes_place, contended)).await.is_some();
            // The locks of the dead one end; what it used is still said.
            memory.advance(Duration::from_secs(30)).await.unwrap();
            let (a, b) =
                (agent(Arc::clone(&store), "10.0.0.1").await, agent(Arc::clone(&store), "10.0.0.2").await);
            let (one, two) = (labels(ONE), labels(TWO));
            let (a1, b2) = tokio::join!(a.allocate(&one, None), b.allocate(&two, None));
            let (b1, a2) = tokio::join!(b.allocate(&one, None), a.allocate(&two, None));
            assert_eq!(a1.clone().unwrap(), b1.unwrap(), "{case}");
            assert_eq!(a2.clone().unwrap(), b2.unwrap(), "{case}");
            assert_ne!(a1.unwrap(), a2.unwrap(), "{case}");
            agrees(&store, &case).await;
            // What is left over goes, and what is in use stays.
            memory.advance(Duration::from_secs(1000)).await.unwrap();
            a.keep_alive().await.unwrap();
            b.keep_alive().await.unwrap();
            let mut gc = Gc::new(Arc::clone(&store), 256..=65535, Duration::from_secs(10));
            for _ in 0..2 {
                gc.pass(1000).await.unwrap();
            }
            let (masters, used) = told(&store).await;
            assert_eq!((masters.len(), used.len()), (2, 2), "{case}: {masters:?} {used:?}");
            agrees(&store, &case).await;
        }
    }
    assert!(steps > at_least, "the whole of it has only {steps} operations");
}

// === on a real etcd ===

fn connect(server: &EtcdServer) -> Arc<dyn Store> {
    let mut options = EtcdOptions::new(vec![server.url()]);
    options.qps = 100_000;
    options.bootstrap_qps = 100_000;
    Arc::new(Etcd::new(options).unwrap())
}

/// One agent's life: it allocates and releases by chance, and is cut off in the middle of something.
async fn life(store: Arc<dyn Store>, node: String, seed: u64, sets: u8, steps: u32) {
    let allocator = Arc::new(agent(store, &node).await);
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut held: BTreeMap<String, NumericIdentity> = BTreeMap::new();
    for _ in 0..steps {
        let text = format!("k8s:n={};", chance.u8(0..sets));
        if held.contains_key(&text) && chance.bool() {
            allocator.release(&labels(&text)).await.unwrap();
            if allocator.references(&labels(&text)) == 0 {
                held.remove(&text);
            }
        } else {
            let number = allocator.allocate(&labels(&text), None).await.unwrap();
            assert_eq!(*held.entry(text).or_insert(number), number, "a label set in use keeps its number");
        }
    }
    // Left in the middle of an allocation, with what it holds.
    let cut = Arc::clone(&allocator);
    let task = tokio::spawn(async move { cut.allocate(&labels("k8s:n=0;"), None).await });
    tokio::time::sleep(Duration::from_millis(chance.u64(0..4))).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_etcd_that_come_and_go_agree() {
    let server = EtcdServer::start();
    let watcher = connect(&server);
    let mut gc = Gc::new(Arc::clone(&watcher), 256..=65535, Duration::from_secs(10));
    for round in 0..3 {
        let lives: Vec<_> = (0..6)
            .map(|n| {
                // Each with connections, locks and leases of its own, as processes have them.
                let node = format!("10.0.{round}.{n}");
                tokio::spawn(life(connect(&server), node, round * 100 + n, 5, 25))
            })
            .collect();
        while !lives.iter().all(tokio::task::JoinHandle::is_finished) {
            gc.pass(100).await.unwrap();
            agrees(&watcher, &format!("round {round}")).await;
        }
        for life in lives {
            life.await.unwrap();
        }
        agrees(&watcher, &format!("after round {round}")).await;
    }
    // All are dead. Whoever comes next gets what the dead still say, or what nobody else has.
    let last = agent(connect(&server), "10.0.9.9").await;
    let (_, used) = told(&watcher).await;
    for n in 0..5 {
        let text = format!("k8s:n={n};");
        let number = last.allocate(&labels(&text), None).await.unwrap();
        if let Some(numbers) = used.get(&text) {
            assert!(numbers.contains(&number.0), "{text}: {number} is not among {numbers:?}");
        }
    }
    agrees(&watcher, "in the end").await;
    // A lock that a dead one left behind is free when its lease has ended.
    let locks = Locks::new(Arc::clone(&watcher));
    let name = format!("{}/k8s:n=0;.lock", keys::IDENTITY_LOCKS);
    locks.acquire(&name, PATIENCE).await.unwrap().release().await;
}

// === processes ===

/// Tells a process that it is an agent: the store's URL, its node and a seed.
const PROCESS: &str = "VILLUS_TEST_ALLOCATOR";

/// The agent's process itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_allocates() {
    let Ok(told) = std::env::var(PROCESS) else { return };
    let [url, node, seed] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let mut options = EtcdOptions::new(vec![url.to_owned()]);
    (options.qps, options.bootstrap_qps) = (100_000, 100_000);
    let store: Arc<dyn Store> = Arc::new(Etcd::new(options).unwrap());
    life(store, node.to_owned(), seed.parse().unwrap(), 12, u32::MAX).await;
}

/// Kills it as nothing can be caught.
fn kill(mut process: std::process::Child) {
    assert_eq!(process.try_wait().unwrap(), None, "nobody else ends it");
    process.kill().unwrap();
    process.wait().unwrap();
}

fn process(server: &EtcdServer, node: usize, seed: u64) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_allocates", "--nocapture"])
        .env(PROCESS, format!("{} 10.1.0.{node} {seed}", server.url()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_at_any_moment_leave_the_others_agreed() {
    const NODES: usize = 4;
    const KILLS: u64 = 12;
    let server = EtcdServer::start();
    let watcher = connect(&server);
    let mut gc = Gc::new(Arc::clone(&watcher), 256..=65535, Duration::from_secs(10));
    let mut chance = fastrand::Rng::with_seed(7);
    let mut running: Vec<std::process::Child> =
        (0..NODES).map(|node| process(&server, node, node as u64)).collect();
    let mut moved = 0;
    for death in 0..KILLS {
        // Something of what they do has reached the store since the last death.
        let before = watcher.header().await.unwrap().revision;
        let enough = before + chance.u64(1..60);
        let limit = std::time::Instant::now() + PATIENCE;
        while watcher.header().await.unwrap().revision < enough {
            assert!(std::time::Instant::now() < limit, "nobody does anything");
            tokio::time::sleep(Duration::from_millis(chance.u64(0..5))).await;
        }
        let node = chance.usize(0..NODES);
        // Of one node there is one process at a time.
        kill(running.remove(node));
        running.insert(node, process(&server, node, 100 + death));
        gc.pass(100).await.unwrap();
        agrees(&watcher, &format!("after death {death}")).await;
        moved += watcher.header().await.unwrap().revision - before;
    }
    running.into_iter().for_each(kill);
    agrees(&watcher, "in the end").await;
    assert!(moved > KILLS, "only {moved} changes");
}
