//! The operator: a candidate, and what it does while it leads.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;
use villus_api::model::{OperatorExternal, OperatorStatus, ServiceState};
use villus_external::{Externals, Keeper};
use villus_identity::GcReport;
use villus_kvstore::{Compare, Session, Store, StoreError, keys};
use villus_table::{Backoff, Stop};

use crate::{
    collect,
    election::{Election, Term},
    proof::Proof,
};

/// How often the store's heartbeat is written.
pub const HEARTBEAT: Duration = Duration::from_secs(60);
/// How long a heartbeat outlives its writer.
const HEARTBEAT_TTL: Duration = Duration::from_secs(900);

/// How an operator goes about it.
#[derive(Clone, Debug)]
pub struct OperatorConfig {
    /// What tells this one from the other candidates.
    pub name: String,
    /// The cluster it works for; one operator leads in each.
    pub cluster: String,
    /// The cluster's numbers of identities.
    pub range: RangeInclusive<u32>,
    /// How long the office outlives a leader that is gone.
    pub ttl: Duration,
    /// Time between two passes of the collection (`identity-gc-interval`); none for no collection.
    pub gc_interval: Option<Duration>,
    /// How long an identity must have been unused (`identity-gc-grace`).
    pub gc_grace: Duration,
    /// Deletions in one interval (`identity-gc-rate-limit`, `identity-gc-rate-interval`).
    pub gc_rate: (u64, Duration),
    /// How often the heartbeat is written.
    pub heartbeat: Duration,
    /// How often the store's quorum is proven.
    pub probe: Duration,
    /// What is tried again waits so long.
    pub backoff: Backoff,
}

/// An operator at work. Needs a tokio runtime.
pub struct Operator {
    shared: Arc<Shared>,
    stop: Stop,
    task: JoinHandle<()>,
    follows: JoinHandle<()>,
}

pub(crate) struct Shared {
    pub(crate) keeper: Option<Keeper>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: OperatorConfig,
    pub(crate) proof: Proof,
    status: Mutex<OperatorStatus>,
}

// === impl Operator ===

impl Operator {
    /// Stands for election, and works when it is elected.
    pub fn start(store: Arc<dyn Store>, config: OperatorConfig) -> Self {
        Self::start_with(store, config, None)
    }

    /// As [`Operator::start`]; where it leads it keeps the cluster's external resources in order, too.
    pub fn start_with(store: Arc<dyn Store>, config: OperatorConfig, keeper: Option<Keeper>) -> Self {
        let status = OperatorStatus {
            name: config.name.clone(),
            cluster: config.cluster.clone(),
            ..OperatorStatus::default()
        };
        let (proof, status) = (Proof::new(), Mutex::new(status));
        let shared = Arc::new(Shared { keeper, store, config, proof, status });
        let stop = Stop::new();
        let task = tokio::spawn(run(Arc::clone(&shared), stop.clone()));
        let followed = Arc::clone(&shared);
        let follows = tokio::spawn(async move {
            if let Some(keeper) = &followed.keeper {
                keeper.follow().await;
            }
        });
        Self { shared, stop, task, follows }
    }

    /// The external resources that it looks after.
    pub(crate) fn externals(&self) -> Option<Externals> {
        self.shared.keeper.as_ref().map(|keeper| keeper.externals().clone())
    }

    /// How it is. The store is not asked.
    pub fn status(&self) -> OperatorStatus {
        self.shared.report()
    }

    /// How it is, at any time.
    pub(crate) fn reader(&self) -> impl Fn() -> OperatorStatus + Clone + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.report()
    }

    /// Gives the office back, if it is held, and ends.
    pub async fn end(mut self) {
        self.stop.stop();
        // A task that was aborted has ended as well.
        let _ = (&mut self.task).await;
        if let Some(externals) = self.externals() {
            externals.end().await;
        }
    }
}

impl Drop for Operator {
    /// Without [`Operator::end`] the office goes with its lease.
    fn drop(&mut self) {
        self.task.abort();
        self.follows.abort();
    }
}

/// The key of the office.
fn office(cluster: &str) -> String {
    format!("villus/operator/v1/{cluster}/leader")
}

async fn run(shared: Arc<Shared>, stop: Stop) {
    let config = &shared.config;
    let key = office(&config.cluster);
    let election = Election::new(Arc::clone(&shared.store), &key, &config.name, config.ttl, config.backoff);
    loop {
        let term = tokio::select! {
            () = stop.stopped() => return,
            term = election.win(|seen| shared.note_leader(seen)) => term,
        };
        shared.note_term(true);
        tracing::info!(office = key, "this operator leads");
        let over = tokio::select! {
            () = term.keep() => false,
            () = lead(&shared, &term) => false,
            () = stop.stopped() => true,
        };
        shared.proof.lose();
        shared.note_term(false);
        if over {
            return term.resign().await;
        }
        tracing::warn!(office = key, "this operator does not lead any more");
    }
}

async fn lead(shared: &Arc<Shared>, term: &Term) {
    tokio::join!(
        shared.proof.run(Arc::clone(&shared.store), shared.config.probe),
        heartbeat(shared),
        collect::run(Arc::clone(shared), term.held()),
        look(shared),
        keep(shared, term.held()),
    );
}

/// Agents, ours and others', take a store whose heartbeat is old for one that stands still.
async fn heartbeat(shared: &Arc<Shared>) {
    let session = Session::new(Arc::clone(&shared.store), HEARTBEAT_TTL);
    let mut failures = 0;
    let mut chance = fastrand::Rng::new();
    loop {
        let now = crate::now();
        let written = match session.put(keys::HEARTBEAT, now.clone().into()).await {
            Ok(()) => session.keep_alive().await,
            Err(error) => Err(error),
        };
        let wait = match written {
            Ok(()) => {
                failures = 0;
                shared.status().heartbeat = now;
                shared.config.heartbeat
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "the store's heartbeat could not be written");
                shared.config.backoff.delay(failures, &mut chance).min(shared.config.heartbeat)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn keep(shared: &Arc<Shared>, office: Compare) {
    if let Some(keeper) = &shared.keeper {
        keeper.lead(office).await;
    }
}

/// What the store says of itself, for the status.
async fn look(shared: &Arc<Shared>) {
    loop {
        let status = shared.store.status().await;
        if !status.healthy {
            shared.proof.lose();
        }
        shared.note_store(status.healthy, status.text);
        tokio::time::sleep(shared.config.probe * 2).await;
    }
}

// === impl Shared ===

impl Shared {
    fn status(&self) -> MutexGuard<'_, OperatorStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> OperatorStatus {
        let mut status = self.status().clone();
        if let Some(keeper) = &self.keeper {
            let kept = keeper.kept();
            status.external = OperatorExternal {
                resources: kept.resources,
                expired: kept.expired,
                mended: kept.mended,
                restored: kept.restored,
                orphans: kept.orphans,
                unused: kept.unused,
                broken: kept.broken,
                compared: kept.compared,
                problem: kept.problem,
            };
        }
        status
    }

    pub(crate) fn note_collection(&self, outcome: &Result<GcReport, StoreError>) {
        match outcome {
            Ok(report) if report.deleted > 0 => {
                tracing::info!(
                    deleted = report.deleted,
                    used = report.used,
                    "identities that nobody uses are deleted"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "identities could not be collected"),
        }
        collect::note(&mut self.status().collection, outcome);
    }

    fn note_store(&self, healthy: bool, msg: String) {
        let state = if healthy { ServiceState::Ok } else { ServiceState::Failure };
        let mut status = self.status();
        match (&status.store.state, healthy) {
            (ServiceState::Failure, true) => tracing::info!("the store answers again"),
            (ServiceState::Failure, false) | (_, true) => {}
            (_, false) => tracing::warn!(said = msg, "the store does not do what is asked"),
        }
        status.store = villus_api::model::State { state, msg };
    }

    fn note_leader(&self, seen: Result<Option<String>, StoreError>) {
        match seen {
            Ok(leader) => {
                self.note_store(true, String::new());
                self.status().leader = leader.unwrap_or_default();
            }
            Err(error) => {
                tracing::debug!(%error, "the store could not be asked who leads");
                self.note_store(false, error.to_string());
            }
        }
    }

    fn note_term(&self, leads: bool) {
        let mut status = self.status();
        status.leads = leads;
        status.since = crate::now();
        status.terms += u64::from(leads);
        status.leader = if leads { self.config.name.clone() } else { String::new() };
    }
}
