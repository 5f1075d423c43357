//! One remote cluster: connecting, checking what it says of itself, and running its mirrors.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use villus_kvstore::{Op, Store, StoreError};
use villus_table::Stop;

use crate::{
    OwnStore, Settings,
    cluster::{Claim, Claims, ClusterConfig, Refused, config_key},
    drain,
    filter::Judge,
    guard::{Guard, Highest},
    layout::{Kind, Layout, Space},
    leases::Leases,
    mirror::{End, Mirror, Nudges, Plan},
    record::Record,
    remotes::RemoteConfig,
    status::{Board, ConfigStatus, State},
};

/// Between two looks at a remote's configuration and its store's health.
const PROBE: Duration = Duration::from_secs(10);
/// Between two looks at what there is to do beside copying.
const CHORES: Duration = Duration::from_millis(500);
/// How long notes about changed states wait for further changes.
const NOTE: Duration = Duration::from_secs(5);

/// Makes a store of a remote's configuration.
pub type Connect = dyn Fn(&str, &RemoteConfig) -> Result<Arc<dyn Store>, String> + Send + Sync;

/// What all remotes work with while this process leads.
#[derive(Clone)]
pub(crate) struct Shared {
    pub settings: Arc<Settings>,
    pub local: Arc<dyn Store>,
    pub own_store: Option<Arc<OwnStore>>,
    pub guard: Guard,
    pub highest: Highest,
    pub leases: Arc<Leases>,
    pub claims: Claims,
    pub board: Board,
    pub connect: Arc<Connect>,
    /// Moves when the local store is not what it was.
    pub local_changed: watch::Receiver<u64>,
}

/// A remote that is configured.
pub(crate) struct Remote {
    pub name: String,
    pub config: RemoteConfig,
    pub shared: Shared,
}

/// Why copying ended.
enum Left {
    Ended(End),
    /// Something has changed that it began with.
    Again,
}

/// A remote that can be copied.
pub(crate) struct Known {
    pub config: ClusterConfig,
    pub space: Space,
    /// The value that `config` was read from; `None` if it was assumed.
    value: Option<bytes::Bytes>,
    _claim: Claim,
}

// === impl Remote ===

impl Remote {
    /// Copies until `stop` is said or somebody else leads. What has been copied stays.
    pub async fn run(self, stop: Stop) -> End {
        let ended = tokio::select! {
            () = stop.stopped() => End::Stopped,
            end = self.copy_always(&stop) => end,
        };
        self.say(|remote| remote.connected = false);
        ended
    }

    async fn copy_always(&self, stop: &Stop) -> End {
        let store = match (self.shared.connect)(&self.name, &self.config) {
            Ok(store) => store,
            Err(reason) => {
                self.say(|remote| remote.refused = Some(reason));
                stop.stopped().await;
                return End::Stopped;
            }
        };
        let mut failures = 0;
        loop {
            let known = self.know(&store).await;
            match self.copy(&store, &known, stop).await {
                Ok(Left::Ended(end)) => return end,
                Ok(Left::Again) => failures = 0,
                Err(StoreError::LockLost(_)) => return End::LostLead,
                Err(error) => {
                    failures += 1;
                    tracing::debug!(remote = self.name, %error, "copying is tried again");
                    self.say(|remote| remote.status = format!("the local store: {error}"));
                    self.pause(failures).await;
                }
            }
        }
    }

    async fn pause(&self, failures: u32) {
        tokio::time::sleep(self.shared.settings.pace.delay(failures, &mut fastrand::Rng::new())).await;
    }

    // --- who it is ---

    /// Asks until the remote has said who it is and nothing speaks against copying it.
    async fn know(&self, store: &Arc<dyn Store>) -> Known {
        let mut failures = 0;
        loop {
            let (refused, problem) = match self.ask(store).await {
                Ok(Ok(known)) => {
                    self.say(|remote| {
                        remote.refused = None;
                        remote.config = ConfigStatus {
                            retrieved: true,
                            cluster_id: known.config.id,
                            kvstoremesh: known.config.cached,
                            sync_canaries: known.config.canaries,
                        };
                    });
                    return known;
                }
                Ok(Err(refused)) => (Some(refused.to_string()), None),
                Err(problem) => (None, Some(problem)),
            };
            let said = refused.as_ref().or(problem.as_ref()).cloned().unwrap_or_default();
            let news = self.say(|remote| {
                let news = remote.refused != refused;
                remote.refused = refused;
                remote.status = said.clone();
                news
            });
            if news {
                tracing::warn!(remote = self.name, "{said}");
            }
            failures += 1;
            self.pause(failures).await;
        }
    }

    /// `Err`: it could not be found out.
    pub async fn ask(&self, store: &Arc<dyn Store>) -> Result<Result<Known, Refused>, String> {
        let failed = |error: StoreError| {
            self.say(|remote| remote.connected = false);
            error.to_string()
        };
        let header = store.header().await.map_err(failed)?;
        self.say(|remote| remote.connected = true);
        let own = match &self.shared.own_store {
            Some(known) => known(),
            None => {
                let local = self.shared.local.header().await;
                Some(local.map_err(|error| format!("the local store: {error}"))?.cluster)
            }
        };
        if own == Some(header.cluster) {
            return Ok(Err(Refused::OwnStore { cluster: self.name.clone() }));
        }
        let own = &self.shared.settings.own;
        let value = store.get(&config_key(&self.name)).await.map_err(failed)?.map(|entry| entry.value);
        let config = match (&value, self.config.extra.cluster_id) {
            (Some(value), _) => ClusterConfig::read(&self.name, value, own),
            (None, Some(id)) => ClusterConfig::assumed(&self.name, id, own),
            (None, None) => return self.no_configuration(store).await,
        };
        let config = match config {
            Ok(config) => config,
            Err(refused) => return Ok(Err(refused)),
        };
        let state = self.shared.settings.layouts.contains(&Layout::State);
        if state && self.name == villus_kvstore::keys::DEFAULT_ADDRESS_SPACE {
            return Ok(Err(Refused::DefaultName));
        }
        Ok(self.shared.claims.take(&self.name, config.id).map(|claim| Known {
            space: config.space(&self.name, own),
            config,
            value,
            _claim: claim,
        }))
    }

    /// What there is instead of the configuration that was looked for.
    async fn no_configuration(&self, store: &Arc<dyn Store>) -> Result<Result<Known, Refused>, String> {
        let below = format!("{}/", villus_kvstore::keys::CLUSTER_CONFIG);
        let page = store.list_page(&below, None, 20, 0).await;
        let names: Vec<String> = page.map_or_else(
            |_| Vec::new(),
            |page| {
                page.entries.iter().filter_map(|e| e.key.strip_prefix(&below).map(str::to_owned)).collect()
            },
        );
        let own = &self.shared.settings.own.name;
        if names.contains(own) {
            return Ok(Err(Refused::OwnName { cluster: self.name.clone(), own: own.clone() }));
        }
        let hint = if names.is_empty() {
            format!(
                "a cluster before Cilium 1.13 writes none: give its id as `cluster-id` in {}{}",
                self.name,
                crate::remotes::ENDING
            )
        } else {
            format!("there are configurations of {}: the file's name must be the cluster's", names.join(", "))
        };
        Err(format!("the store has no `cilium/cluster-config/{}`; {hint}", self.name))
    }

    // --- copying ---

    async fn copy(&self, store: &Arc<dyn Store>, known: &Known, stop: &Stop) -> Result<Left, StoreError> {
        let mut record = self.begin(known).await?;
        let mut losses = self.shared.leases.losses();
        let mut local_changed = self.shared.local_changed.clone();
        losses.mark_unchanged();
        local_changed.mark_unchanged();
        let ends = Stop::new();
        let mut mirrors = self.mirrors(store, known, &record, &ends);
        let mut chores = Chores::default();
        let mut tick = tokio::time::interval(CHORES);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let left = loop {
            tokio::select! {
                () = stop.stopped() => break Ok(Left::Ended(End::Stopped)),
                _ = losses.changed() => break Ok(Left::Again),
                _ = local_changed.changed() => break Ok(Left::Again),
                Some(ended) = mirrors.join_next() => {
                    if matches!(ended, Ok(End::LostLead)) {
                        break Ok(Left::Ended(End::LostLead));
                    }
                    // A mirror that ended otherwise has panicked: all begin anew.
                    break Ok(Left::Again);
                }
                _ = tick.tick() => match self.chores(store, known, &mut record, &mut chores).await {
                    Ok(true) => break Ok(Left::Again),
                    Ok(false) => {}
                    Err(error @ StoreError::LockLost(_)) => break Err(error),
                    Err(error) => tracing::debug!(remote = self.name, %error, "chores are tried again"),
                },
            }
        };
        ends.stop();
        while mirrors.join_next().await.is_some() {}
        left
    }

    /// Notes what is about to be copied, and says so to readers.
    async fn begin(&self, known: &Known) -> Result<Record, StoreError> {
        let (settings, local, guard) = (&self.shared.settings, &self.shared.local, &self.shared.guard);
        let mut record =
            Record::read(local.as_ref(), &self.name).await?.unwrap_or_else(|| Record::new(known.config.id));
        if record.id != known.config.id {
            tracing::warn!(
                remote = self.name,
                before = record.id,
                now = known.config.id,
                "the remote has another id; identities of the former one go when those of the new one are there"
            );
            record.retired.push(record.id);
            record.id = known.config.id;
        }
        record.retired.retain(|id| *id != known.config.id);
        record.removal_at = None;
        // Readers are sent to another layout only when that is complete.
        let switching = record.layouts.iter().any(|layout| !settings.layouts.contains(layout));
        for layout in &settings.layouts {
            if !record.layouts.contains(layout) {
                record.layouts.push(*layout);
            }
        }
        record.write(local, guard, &self.name).await?;
        if !switching {
            self.write_config(known).await?;
        }
        Ok(record)
    }

    async fn write_config(&self, known: &Known) -> Result<(), StoreError> {
        let value = known.config.rewritten(&self.shared.settings.layouts);
        let key = config_key(&self.name);
        let (local, leases) = (&self.shared.local, &self.shared.leases);
        // Who watches it need not hear that nothing has changed.
        if let Some(entry) = local.get(&key).await?
            && entry.value == value
            && leases.fits(entry.lease)
        {
            return Ok(());
        }
        let lease = leases.lease(1).await?;
        let outcome = local.txn(self.shared.guard.txn().then(Op::put(key, value, lease))).await?;
        if outcome.held { Ok(()) } else { Err(Guard::lost()) }
    }

    fn mirrors(&self, store: &Arc<dyn Store>, known: &Known, record: &Record, ends: &Stop) -> JoinSet<End> {
        let (shared, settings) = (&self.shared, &self.shared.settings);
        let mut mirrors = JoinSet::new();
        let now = Timestamp::now();
        let rewound = record.held_until.filter(|until| *until > now);
        let rewound = rewound.and_then(|until| Duration::try_from(until.duration_since(now)).ok());
        let hold = rewound.unwrap_or_default().max(settings.grace.min(settings.rewind_grace));
        self.say(|remote| remote.prefixes.retain(|one| settings.layouts.contains(&one.layout)));
        for layout in &settings.layouts {
            let filter = self.config.extra.filter.clone();
            let judge = Arc::new(Judge::new(filter, known.space.clone(), *layout == Layout::State));
            let (to_addresses, addresses) = mpsc::unbounded_channel();
            let (to_identities, identities) = mpsc::unbounded_channel();
            let (mut addresses, mut identities) = (Some(addresses), Some(identities));
            let nudges = Nudges { addresses: to_addresses, identities: to_identities };
            let all_identities = watch::Sender::new(false);
            let wanted = |kind: &Kind| settings.kinds.contains(kind);
            for kind in known.config.kinds(*layout).into_iter().filter(wanted) {
                let sources = kind.sources(known.config.layout(), &self.name);
                let Some(target) = kind.target(*layout, &self.name).filter(|_| !sources.is_empty()) else {
                    continue;
                };
                self.remember(kind, *layout, record);
                let waits = kind == Kind::Addresses && judge.addresses_wait();
                let plan = Plan {
                    cluster: self.name.clone(),
                    kind,
                    layout: *layout,
                    sources,
                    target,
                    wait_for: known.config.canaries.then(|| kind.canary(known.config.layout(), &self.name)),
                    remote: Arc::clone(store),
                    local: Arc::clone(&shared.local),
                    guard: shared.guard.clone(),
                    highest: shared.highest.clone(),
                    leases: Arc::clone(&shared.leases),
                    judge: Arc::clone(&judge),
                    board: shared.board.clone(),
                    pace: settings.pace.clone(),
                    compare: settings.compare,
                    last: record.last(),
                    rewind_grace: settings.rewind_grace,
                    hold,
                    cache_ttl: self.config.extra.cache_ttl.unwrap_or(settings.cache_ttl),
                    ready: waits.then(|| all_identities.subscribe()),
                    done: if kind == Kind::Identities {
                        all_identities.clone()
                    } else {
                        watch::Sender::new(false)
                    },
                    nudges: nudges.clone(),
                };
                let nudged = match kind {
                    Kind::Addresses => addresses.take(),
                    Kind::Identities => identities.take(),
                    _ => None,
                };
                let mirror = Mirror::new(plan, nudged.unwrap_or_else(|| mpsc::unbounded_channel().1));
                let ends = ends.clone();
                mirrors.spawn(async move { mirror.run(&ends).await });
            }
        }
        mirrors
    }

    /// What another process has copied is not nothing: it is as old as that.
    fn remember(&self, kind: Kind, layout: Layout, record: &Record) {
        let noted = record.states.get(&format!("{layout}/{kind}"));
        self.say(|remote| {
            let status = remote.prefix(kind, layout);
            match (status.state, noted) {
                (State::Never, Some((State::Stale, since))) => {
                    (status.state, status.since, status.synced_once) = (State::Stale, *since, true);
                }
                (State::Never, Some((State::Synced, _))) => {
                    status.enter(State::Stale);
                    status.synced_once = true;
                }
                (State::Synced, _) => status.enter(State::Syncing),
                _ => {}
            }
        });
    }

    // --- beside copying ---

    /// Returns whether something has changed that copying began with.
    async fn chores(
        &self,
        store: &Arc<dyn Store>,
        known: &Known,
        record: &mut Record,
        chores: &mut Chores,
    ) -> Result<bool, StoreError> {
        let pause = self.shared.settings.pace.size().stretch(PROBE);
        if chores.probed.is_none_or(|at| at.elapsed() >= pause) {
            chores.probed = Some(Instant::now());
            if self.probe(store, known).await {
                return Ok(true);
            }
        }
        let complete = self.note(record, chores).await?;
        if complete {
            self.clear_away(known, record, chores).await?;
        }
        Ok(false)
    }

    /// Whether the remote says something else of itself than before. That it says nothing is no news.
    async fn probe(&self, store: &Arc<dyn Store>, known: &Known) -> bool {
        let status = store.status().await;
        self.say(|remote| {
            (remote.connected, remote.status) = (status.healthy, status.text.clone());
            remote.revision = status.header.revision;
        });
        match store.get(&config_key(&self.name)).await {
            Ok(Some(entry)) if Some(&entry.value) != known.value.as_ref() => {
                tracing::info!(remote = self.name, "the remote has changed its configuration");
                true
            }
            _ => false,
        }
    }

    /// Notes the states of all prefixes when they have changed. Returns whether all are synced.
    async fn note(&self, record: &mut Record, chores: &mut Chores) -> Result<bool, StoreError> {
        let (states, complete, held, store) = self.say(|remote| {
            let states = remote.prefixes.iter();
            let states = states.map(|one| (format!("{}/{}", one.layout, one.kind), (one.state, one.since)));
            let complete = remote.prefixes.iter().all(|one| one.state == State::Synced);
            let held = remote.prefixes.iter().filter_map(|one| one.held_until).max();
            let store = (remote.store, remote.revision);
            (states.collect(), complete && !remote.prefixes.is_empty(), held, store)
        });
        let changed = record.states != states || record.held_until.is_some() != held.is_some();
        let due = chores.noted.is_none_or(|at: Instant| at.elapsed() >= NOTE);
        let old = chores.noted.is_none_or(|at| at.elapsed() >= PROBE * 6);
        if (changed && due) || old {
            chores.noted = Some(Instant::now());
            (record.states, record.held_until) = (states, held);
            // As long as something is missing it still is the store from before that counts.
            if complete && held.is_none() {
                (record.store, record.revision) = (format!("{:x}", store.0), store.1);
            }
            record.write(&self.shared.local, &self.shared.guard, &self.name).await?;
        }
        Ok(complete)
    }

    /// All is copied: what the copies replace goes.
    async fn clear_away(
        &self,
        known: &Known,
        record: &mut Record,
        chores: &mut Chores,
    ) -> Result<(), StoreError> {
        let (settings, local, guard) = (&self.shared.settings, &self.shared.local, &self.shared.guard);
        let old = record.layouts.iter().copied().find(|layout| !settings.layouts.contains(layout));
        if let Some(old) = old {
            if chores.complete.is_none() {
                self.write_config(known).await?;
            }
            // Readers need a moment to find the other layout.
            let since = *chores.complete.get_or_insert_with(Instant::now);
            if since.elapsed() >= settings.grace {
                let keys = drain::layout(local, guard, &known.space, old).await?;
                tracing::info!(remote = self.name, layout = %old, keys, "copies in the former layout are cleared away");
                record.layouts.retain(|layout| *layout != old);
                record.write(local, guard, &self.name).await?;
            }
        }
        if let Some(id) = record.retired.first().copied() {
            // Another remote that has this id now looks after its range itself.
            if let Ok(_claim) = self.shared.claims.take(&self.name, id)
                && id != settings.own.id
                && record.layouts.contains(&Layout::State)
                && let Ok(range) = settings.own.clusters.range(id)
            {
                let keys = drain::identities(local, guard, &self.name, range).await?;
                tracing::info!(remote = self.name, id, keys, "identities of a former id are cleared away");
            }
            record.retired.remove(0);
            record.write(local, guard, &self.name).await?;
        }
        Ok(())
    }

    fn say<T>(&self, edit: impl FnOnce(&mut crate::status::RemoteStatus) -> T) -> T {
        self.shared.board.remote(&self.name, edit)
    }
}

#[derive(Default)]
struct Chores {
    probed: Option<Instant>,
    noted: Option<Instant>,
    complete: Option<Instant>,
}
