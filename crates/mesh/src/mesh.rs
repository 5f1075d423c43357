//! The process: who leads, which remotes are configured, and the way out for those that are not any more.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{sync::watch, task::JoinHandle};
use villus_kvstore::{Header, Lock, Locks, Pace, Store, StoreError};
use villus_table::Stop;

use crate::{
    LOCK,
    cluster::{Claims, Own},
    drain,
    guard::{Guard, Highest},
    layout::{Kind, Layout, NOBODYS, Space},
    leases::Leases,
    mirror::End,
    record::Record,
    remote::{Connect, Remote, Shared},
    remotes::{self, RemoteConfig, RemoteFile},
    status::{Board, State},
};

/// How long a replica waits for the lock before it says again that it waits.
const ELECTION: Duration = Duration::from_secs(30);
/// How often the lock and the local store are looked at.
const PULSE: Duration = Duration::from_secs(3);

/// How a mesh is to work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The local cluster.
    pub own: Own,
    /// The directory with a file for each remote.
    pub directory: PathBuf,
    /// How copies lie; several while readers of both kinds are there.
    pub layouts: Vec<Layout>,
    /// What is copied, where a remote has it.
    pub kinds: Vec<Kind>,
    /// Time to live of leases; zero: copies have none and stay without this process.
    pub lease_ttl: Duration,
    /// Services of a remote that has been away for so long go; zero: never.
    pub cache_ttl: Duration,
    /// From the removal of a configuration to the removal of copies, and from the last entry in a new layout to the first
    /// one less in the former.
    pub grace: Duration,
    /// How long copies stay that a restored or wiped remote lacks.
    pub rewind_grace: Duration,
    /// Whether several replicas agree on one that copies.
    pub election: bool,
    /// Between two looks at the directory.
    pub scan: Duration,
    /// Between two comparisons of the copies with their remotes; zero: never.
    pub compare: Duration,
    /// Waiting times after failures; also how often remotes are looked at, by how many do so.
    pub pace: Pace,
}

/// Which store is this cluster's own, as far as is known: etcd's cluster id.
pub type OwnStore = dyn Fn() -> Option<u64> + Send + Sync;

/// A mesh.
pub struct Mesh {
    settings: Arc<Settings>,
    local: Arc<dyn Store>,
    own_store: Option<Arc<OwnStore>>,
    connect: Arc<Connect>,
    board: Board,
}

/// A remote under way.
struct Running {
    fingerprint: u64,
    stop: Stop,
    task: JoinHandle<End>,
}

/// What is there while this process leads.
struct Lead {
    shared: Shared,
    running: BTreeMap<String, Running>,
    leaving: BTreeMap<String, JoinHandle<()>>,
    /// Notes about remotes from before were looked at.
    caught_up: bool,
}

// === impl Mesh ===

impl Mesh {
    /// Nothing is done yet.
    pub fn new(settings: Settings, local: Arc<dyn Store>, connect: Arc<Connect>) -> Self {
        let board = Board::new(&settings.own.name, settings.own.id, &settings.layouts);
        Self { settings: Arc::new(settings), local, own_store: None, connect, board }
    }

    /// Copies go to a place of this process's own: which store is this cluster's, that no remote's endpoints may lead to,
    /// is said by this.
    #[must_use]
    pub fn beside(mut self, own_store: Arc<OwnStore>) -> Self {
        self.own_store = Some(own_store);
        self
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    pub(crate) fn local(&self) -> &Arc<dyn Store> {
        &self.local
    }

    pub(crate) fn own_store(&self) -> Option<Arc<OwnStore>> {
        self.own_store.clone()
    }

    pub(crate) fn connect(&self) -> &Arc<Connect> {
        &self.connect
    }

    /// Where it says how it is.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Copies until `stop` is said; whatever fails is waited for. What has been copied stays.
    pub async fn run(&self, stop: &Stop) {
        let locks = Locks::new(Arc::clone(&self.local));
        while !stop.is_stopped() {
            let lock = if self.settings.election {
                tokio::select! {
                    () = stop.stopped() => return,
                    lock = self.elected(&locks) => Some(lock),
                }
            } else {
                None
            };
            self.board.edit(|status| status.leading = true);
            self.lead(&locks, lock.as_ref(), stop).await;
            self.board.edit(|status| status.leading = false);
            if let Some(lock) = lock {
                // A store that does not answer learns it when the lease ends.
                let _ = tokio::time::timeout(PULSE, lock.release()).await;
            }
        }
    }

    async fn elected(&self, locks: &Locks) -> Lock {
        let mut failures = 0;
        loop {
            match locks.acquire(LOCK, ELECTION).await {
                Ok(lock) => return lock,
                Err(StoreError::LockTimeout { holder, .. }) => {
                    failures = 0;
                    tracing::debug!(holder, "another replica leads");
                    self.say_local(true, "another replica leads".to_owned());
                }
                Err(error) => {
                    failures += 1;
                    self.say_local(false, error.to_string());
                    let wait = self.settings.pace.delay(failures, &mut fastrand::Rng::new());
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn say_local(&self, connected: bool, status: String) {
        self.board.edit(|all| (all.local.connected, all.local.status) = (connected, status));
    }

    async fn lead(&self, locks: &Locks, lock: Option<&Lock>, stop: &Stop) {
        let leases = Arc::new(Leases::new(Arc::clone(&self.local), self.settings.lease_ttl));
        let changed = watch::Sender::new(0);
        let shared = Shared {
            settings: Arc::clone(&self.settings),
            local: Arc::clone(&self.local),
            own_store: self.own_store.clone(),
            guard: Guard(lock.map(Lock::held)),
            highest: Highest::default(),
            leases: Arc::clone(&leases),
            claims: Claims::default(),
            board: self.board.clone(),
            connect: Arc::clone(&self.connect),
            local_changed: changed.subscribe(),
        };
        let highest = shared.highest.clone();
        let mut lead = Lead { shared, running: BTreeMap::new(), leaving: BTreeMap::new(), caught_up: false };
        tokio::select! {
            () = stop.stopped() => {}
            () = leases.keep_alive() => {}
            () = self.pulse(locks, lock, &highest, &changed) => {}
            () = lead.supervise() => {}
        }
        lead.end().await;
    }

    /// Returns when the lock is lost.
    async fn pulse(
        &self,
        locks: &Locks,
        lock: Option<&Lock>,
        highest: &Highest,
        changed: &watch::Sender<u64>,
    ) {
        let mut last: Option<Header> = None;
        let mut tick = tokio::time::interval(PULSE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Some(lock) = lock {
                // Failing to keep it alive is no loss yet.
                let _ = locks.keep_alive().await;
                if matches!(lock.is_held().await, Ok(false)) {
                    tracing::warn!("the lock of the leader is lost");
                    return;
                }
            }
            let status = self.local.status().await;
            self.say_local(status.healthy, status.text);
            // Asked before: what is acknowledged meanwhile is no sign of anything.
            let acknowledged = highest.get();
            let Ok(now) = self.local.header().await else { continue };
            let rewound = now.revision < acknowledged
                || last.is_some_and(|last| last.cluster != now.cluster || now.revision < last.revision);
            if rewound {
                tracing::warn!("the local store was restored or replaced; copies are compared with it again");
                highest.begin_anew(now.revision);
                changed.send_modify(|n| *n += 1);
            }
            last = Some(now);
        }
    }
}

// === impl Lead ===

impl Lead {
    /// Makes what runs equal to what the directory says. Returns when somebody else leads.
    async fn supervise(&mut self) {
        let settings = Arc::clone(&self.shared.settings);
        let mut tick = tokio::time::interval(settings.scan);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.running.values().any(|running| running.task.is_finished()) {
                return;
            }
            let (directory, own) = (settings.directory.clone(), settings.own.name.clone());
            let read = tokio::task::spawn_blocking(move || remotes::read(&directory, &own)).await;
            let problem = match read {
                Ok(Ok(found)) => {
                    self.follow(found).await;
                    None
                }
                Ok(Err(error)) => Some(format!(
                    "{}: {error}; remotes stay as they are until it can be read",
                    settings.directory.display()
                )),
                Err(error) => Some(error.to_string()),
            };
            self.shared.board.edit(|status| {
                if status.directory != problem
                    && let Some(problem) = &problem
                {
                    tracing::warn!("{problem}");
                }
                status.directory = problem;
            });
        }
    }

    async fn follow(&mut self, found: BTreeMap<String, RemoteFile>) {
        let gone: Vec<String> =
            self.running.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in gone {
            tracing::info!(
                remote = name,
                "the configuration of a remote is gone; its copies stay for the grace period"
            );
            self.stop(&name).await;
            self.leave(&name);
        }
        for (name, file) in &found {
            match &file.config {
                Ok(config) => self.configured(name, file.fingerprint, config).await,
                Err(problem) => self.broken(name, problem),
            }
        }
        self.board_forgets(&found);
        if !self.caught_up
            && let Ok(records) = Record::all(self.shared.local.as_ref()).await
        {
            self.caught_up = true;
            for name in records.keys().filter(|name| !found.contains_key(*name)) {
                self.leave(name);
            }
        }
    }

    async fn configured(&mut self, name: &str, fingerprint: u64, config: &RemoteConfig) {
        self.shared.board.remote(name, |remote| remote.file = None);
        if self.running.get(name).is_some_and(|running| running.fingerprint == fingerprint) {
            return;
        }
        if let Some(leaving) = self.leaving.remove(name) {
            leaving.abort();
            // It must not delete anything any more when copying begins.
            let _ = leaving.await;
            tracing::info!(remote = name, "the configuration of a remote is back");
        }
        self.stop(name).await;
        self.shared.board.remote(name, |remote| (remote.removal_at, remote.refused) = (None, None));
        let stop = Stop::new();
        let remote = Remote { name: name.to_owned(), config: config.clone(), shared: self.shared.clone() };
        let task = tokio::spawn(remote.run(stop.clone()));
        self.running.insert(name.to_owned(), Running { fingerprint, stop, task });
    }

    /// A file that can't be used changes nothing of what runs.
    fn broken(&mut self, name: &str, problem: &str) {
        let news = self.shared.board.remote(name, |remote| {
            remote.file.replace(problem.to_owned()).is_none_or(|before| before != problem)
        });
        if news {
            tracing::warn!(remote = name, "{problem}");
        }
    }

    fn board_forgets(&self, found: &BTreeMap<String, RemoteFile>) {
        let is_known = |name: &str| {
            found.contains_key(name) || self.running.contains_key(name) || self.leaving.contains_key(name)
        };
        self.shared.board.edit(|status| status.remotes.retain(|remote| is_known(&remote.name)));
    }

    async fn stop(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            running.stop.stop();
            // That it has panicked changes nothing: it has ended.
            let _ = running.task.await;
        }
    }

    fn leave(&mut self, name: &str) {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        if self.leaving.get(&name).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let key = name.clone();
        self.leaving.insert(key, tokio::spawn(async move { leave(&shared, &name).await }));
    }

    async fn end(mut self) {
        self.running.values().for_each(|running| running.stop.stop());
        for (_, running) in std::mem::take(&mut self.running) {
            let _ = running.task.await;
        }
        for (_, task) in std::mem::take(&mut self.leaving) {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Takes a remote's copies away when the grace period is over.
async fn leave(shared: &Shared, name: &str) {
    let mut failures = 0;
    loop {
        match try_leave(shared, name).await {
            Ok(()) => {
                shared.board.forget(name);
                return;
            }
            Err(error) => {
                failures += 1;
                shared.board.remote(name, |remote| remote.status = format!("the local store: {error}"));
                tokio::time::sleep(shared.settings.pace.delay(failures, &mut fastrand::Rng::new())).await;
            }
        }
    }
}

async fn try_leave(shared: &Shared, name: &str) -> Result<(), StoreError> {
    let (local, guard, own) = (&shared.local, &shared.guard, &shared.settings.own);
    // Without a note nothing was copied, or it is cleared away already.
    let Some(mut record) = Record::read(local.as_ref(), name).await? else { return Ok(()) };
    let now = Timestamp::now();
    let at = match record.removal_at {
        Some(at) => at,
        None => {
            let at = now.checked_add(shared.settings.grace).unwrap_or(now);
            record.removal_at = Some(at);
            record.write(local, guard, name).await?;
            at
        }
    };
    shared.board.remote(name, |remote| {
        remote.removal_at = Some(at);
        remote.connected = false;
        remote.status = "its configuration is gone".to_owned();
        for prefix in &mut remote.prefixes {
            prefix.enter(State::Removing);
        }
    });
    if let Ok(left) = Duration::try_from(at.duration_since(now)) {
        let begun = Instant::now();
        while begun.elapsed() < left {
            tokio::time::sleep((left - begun.elapsed()).min(Duration::from_secs(60))).await;
        }
    }
    let ids = std::iter::once(record.id).chain(record.retired.iter().copied());
    // A range that another remote has by now is that remote's.
    let spaces: Vec<Space> = ids
        .filter_map(|id| {
            let range = own.clusters.range(id).ok()?;
            let free = id != own.id && shared.claims.take(name, id).is_ok();
            Some(Space { cluster: name.to_owned(), range: if free { range } else { NOBODYS } })
        })
        .collect();
    let keys = drain::everything(local, guard, &spaces, &record.layouts).await?;
    tracing::info!(remote = name, keys, "the copies of a remote that is not configured any more are gone");
    Ok(())
}
