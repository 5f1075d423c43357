//! One kind of entries of one remote, copied to one prefix of the local store.
//!
//! Begins with what lies in the local store, so that nothing that is right there is ever deleted or written again;
//! whatever interrupts it, what is there stays until a complete list of the remote lacks it.

mod chores;
mod compare;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use villus_kvstore::{Entry, Event, Header, Pace, Pages, Pull, Pulled, Relisted, Store, StoreError};
use villus_table::Stop;

use crate::{
    filter::{Dropped, Judge, Nudge, Reason, Verdict},
    guard::{Guard, Highest},
    layout::{Kind, Layout, Odd},
    leases::Leases,
    push::{Push, Pushed},
    status::{Board, PrefixStatus, State},
    table::{Act, SOURCES, Table},
};
use compare::Comparison;

/// Nudges of single identities beyond which all are judged again.
const SINGLY: usize = 64;
/// How often what nobody waits for is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Between two lists that were not made because contact was lost.
const BETWEEN_LISTS: Duration = Duration::from_secs(2);

/// Why a mirror ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It was told to.
    Stopped,
    /// Somebody else leads.
    LostLead,
}

/// Everything that a mirror works with.
pub(crate) struct Plan {
    pub cluster: String,
    pub kind: Kind,
    pub layout: Layout,
    pub sources: Vec<String>,
    pub target: String,
    /// The remote's canary, where it has some: before it is there nothing is read.
    pub wait_for: Option<String>,
    pub remote: Arc<dyn Store>,
    pub local: Arc<dyn Store>,
    pub guard: Guard,
    pub highest: Highest,
    pub leases: Arc<Leases>,
    pub judge: Arc<Judge>,
    pub board: Board,
    pub pace: Pace,
    /// Between two comparisons of the copies with the remote; zero: never.
    pub compare: Duration,
    /// What the remote was like when it was last copied from.
    pub last: Option<Header>,
    /// How long copies stay that a restored or wiped remote lacks.
    pub rewind_grace: Duration,
    /// How long copies stay that the first list lacks: nobody has seen them go.
    pub hold: Duration,
    /// Copies go when the remote has been away for so long; zero: never.
    pub cache_ttl: Duration,
    /// Must be true before the remote is read.
    pub ready: Option<watch::Receiver<bool>>,
    /// Said when all was read once.
    pub done: watch::Sender<bool>,
    pub nudges: Nudges,
}

/// Channels between the mirrors of one remote.
#[derive(Clone)]
pub(crate) struct Nudges {
    pub addresses: mpsc::UnboundedSender<Nudge>,
    pub identities: mpsc::UnboundedSender<Nudge>,
}

struct Source {
    prefix: String,
    pull: Pull,
    /// What was heard of the store last.
    header: Option<Header>,
    /// A complete list was read since the mirror began.
    listed: bool,
    /// The watch stands.
    current: bool,
    /// Why the list under way is made.
    why: Relisted,
    listed_at: Instant,
    /// What was not copied of it since its last list.
    dropped: Dropped,
}

/// A mirror at work.
pub(crate) struct Mirror {
    plan: Plan,
    table: Table,
    push: Push,
    sources: Vec<Source>,
    nudged: mpsc::UnboundedReceiver<Nudge>,
    single: VecDeque<u32>,
    /// Sources to be listed again.
    relist: u8,
    /// Sources whose lists are to be read before copies that nobody has go.
    before_sweep: u8,
    /// Copies that are there and the rules leave out.
    unwanted: Vec<Arc<str>>,
    /// Copies that nobody has go at this time, if the remote has said by then that it is complete.
    sweep_at: Option<tokio::time::Instant>,
    away_since: Option<Instant>,
    revoked: bool,
    canary: bool,
    comparison: Comparison,
    status: PrefixStatus,
    said: Instant,
}

// === impl Mirror ===

impl Mirror {
    pub fn new(plan: Plan, nudged: mpsc::UnboundedReceiver<Nudge>) -> Self {
        let (local, leases) = (Arc::clone(&plan.local), Arc::clone(&plan.leases));
        let push = Push::new(
            local,
            &plan.target,
            plan.guard.clone(),
            plan.highest.clone(),
            leases,
            plan.pace.clone(),
        );
        let status = plan.board.remote(&plan.cluster, |remote| remote.prefix(plan.kind, plan.layout).clone());
        Self {
            plan,
            table: Table::default(),
            push,
            sources: Vec::new(),
            nudged,
            single: VecDeque::new(),
            relist: 0,
            before_sweep: 0,
            unwanted: Vec::new(),
            sweep_at: None,
            away_since: None,
            revoked: false,
            canary: false,
            comparison: Comparison::default(),
            status,
            said: Instant::now(),
        }
    }

    /// Copies until `stop` is said. What is there stays there.
    pub async fn run(mut self, stop: &Stop) -> End {
        let begun = tokio::select! {
            () = stop.stopped() => return End::Stopped,
            begun = self.begin() => begun,
        };
        if let Err(end) = begun {
            return end;
        }
        let end = tokio::select! {
            () = stop.stopped() => End::Stopped,
            end = self.work() => end,
        };
        self.say(true);
        end
    }

    // --- the beginning ---

    async fn begin(&mut self) -> Result<(), End> {
        let mut failures = 0;
        while let Err(error) = self.read_local().await {
            failures += 1;
            self.trouble(format!("the local store: {error}"));
            tokio::time::sleep(self.plan.pace.delay(failures, &mut fastrand::Rng::new())).await;
        }
        self.plan.leases.copies(&self.plan.target, self.table.len());
        if let Some(ready) = &mut self.plan.ready {
            // An error means that whoever would say it has ended; so will this.
            let _ = ready.wait_for(|ready| *ready).await;
        }
        self.await_canary().await;
        self.status.problem = None;
        self.sweep_at = Some(tokio::time::Instant::now() + self.plan.hold);
        let prefixes = self.plan.sources.clone();
        for prefix in prefixes.into_iter().take(SOURCES) {
            let pull = self.pull(&prefix, self.plan.last);
            self.sources.push(Source {
                prefix,
                pull,
                header: self.plan.last,
                listed: false,
                current: false,
                why: Relisted::First,
                listed_at: Instant::now(),
                dropped: Dropped::new(),
            });
        }
        Ok(())
    }

    /// Takes down what lies in the local store.
    async fn read_local(&mut self) -> Result<(), StoreError> {
        self.table = Table::default();
        let local = Arc::clone(&self.plan.local);
        let mut pages = Pages::of(&self.plan.target);
        while let Some(page) = pages.next(local.as_ref()).await? {
            page.entries.iter().for_each(|entry| self.take_down(entry));
        }
        Ok(())
    }

    fn take_down(&mut self, entry: &Entry) {
        if let Some(rest) = self.copy_of(entry) {
            let fits = self.plan.leases.fits(entry.lease);
            self.table.found(rest, fits.then_some(&entry.value));
        }
    }

    /// What follows the target's prefix, if the entry of the local store is a copy of this remote's.
    fn copy_of<'k>(&self, entry: &'k Entry) -> Option<&'k str> {
        let rest = entry.key.strip_prefix(&self.plan.target)?;
        let space = self.plan.judge.space();
        let ours = match self.plan.kind {
            _ if !self.plan.kind.is_shared(self.plan.layout) => true,
            Kind::References => space.reference(&entry.value).is_some(),
            kind => kind.check(rest, space).is_ok(),
        };
        ours.then_some(rest)
    }

    /// Waits until the remote has written all of this kind once.
    async fn await_canary(&mut self) {
        let Some(canary) = self.plan.wait_for.clone() else { return };
        let mut failures = 0;
        loop {
            let problem = match self.plan.remote.get(&canary).await {
                Ok(Some(_)) => return,
                Ok(None) => {
                    format!("waiting until the remote has written `{canary}`: it is not complete yet")
                }
                Err(error) => error.to_string(),
            };
            self.trouble(problem);
            failures += 1;
            let wait = self.plan.pace.delay(failures, &mut fastrand::Rng::new());
            tokio::time::sleep(wait.max(TICK)).await;
        }
    }

    fn pull(&self, prefix: &str, last: Option<Header>) -> Pull {
        Pull::start(Arc::clone(&self.plan.remote), prefix, self.plan.pace.clone(), last)
    }

    // --- the work ---

    async fn work(&mut self) -> End {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                pushed = self.push.next() => {
                    if let Some(end) = self.pushed(pushed) {
                        return end;
                    }
                }
                (source, piece) = any(&mut self.sources), if self.push.has_room() => self.pulled(source, piece),
                Some(nudge) = self.nudged.recv() => self.nudge(nudge),
                _ = tick.tick() => {
                    if let Err(end) = self.tick().await {
                        return end;
                    }
                }
            }
            let before = self.status.state;
            self.settle();
            self.say(false);
            // Whoever waits for the canary waits no longer than it takes to write it.
            if self.status.state != before {
                tick.reset_immediately();
            }
        }
    }

    fn pulled(&mut self, source: u8, piece: Pulled) {
        let at = usize::from(source);
        match piece {
            Pulled::Listing { why, header } => {
                self.table.begin(source);
                let from = &mut self.sources[at];
                // A list that another interrupted keeps the graver reason.
                if why != Relisted::First || from.listed {
                    tracing::info!(prefix = from.prefix, ?why, "the remote is listed again");
                }
                (from.why, from.header) = (why, Some(header));
                from.dropped.clear();
                if !self.status.synced_once {
                    self.status.enter(State::Syncing);
                }
            }
            Pulled::Page(entries) => {
                self.status.received += entries.len() as u64;
                for entry in entries {
                    self.put(source, &entry.key, &entry.value);
                }
            }
            Pulled::Listed(header) => self.listed(source, header),
            Pulled::Watching => {
                self.sources[at].current = true;
                self.status.problem = None;
            }
            Pulled::Changes(batch) => {
                self.status.received += batch.events.len() as u64;
                if let Some(header) = &mut self.sources[at].header {
                    header.revision = header.revision.max(batch.revision);
                }
                for event in batch.events {
                    match event {
                        Event::Put(entry) => self.put(source, &entry.key, &entry.value),
                        Event::Delete { key, .. } => self.delete(source, &key),
                    }
                }
            }
            Pulled::Lost(error) => {
                self.sources[at].current = false;
                self.trouble(error.to_string());
                self.away_since.get_or_insert_with(Instant::now);
                if self.status.synced_once {
                    self.status.enter(State::Stale);
                }
                self.plan.board.remote(&self.plan.cluster, |remote| {
                    remote.num_failures += 1;
                    remote.last_failure = Some(jiff::Timestamp::now());
                });
            }
        }
        self.pass_nudges();
    }

    /// A list is complete.
    fn listed(&mut self, source: u8, header: Header) {
        let at = usize::from(source);
        let why = self.sources[at].why;
        let from = &mut self.sources[at];
        (from.header, from.listed, from.listed_at) = (Some(header), true, Instant::now());
        let (gone, reread) = self.table.end(source);
        self.relist |= reread.map_or(0, |source| 1 << source);
        if matches!(why, Relisted::Rewound | Relisted::OtherStore) {
            tracing::warn!(
                cluster = self.plan.cluster, kind = %self.plan.kind, missing = gone.len(), grace = ?self.plan.rewind_grace,
                "the remote's store was restored or replaced; copies that it lacks wait for it to be filled again"
            );
            self.sweep_at = Some(tokio::time::Instant::now() + self.plan.rewind_grace);
            self.before_sweep = 0;
        } else if self.before_sweep & 1 << source != 0 {
            self.before_sweep &= !(1 << source);
            if self.before_sweep == 0 {
                self.sweep_at = None;
            }
        }
        if !self.sources.iter().all(|source| source.listed) {
            return;
        }
        if self.sweep_at.is_none() {
            self.sweep();
        }
        for rest in std::mem::take(&mut self.unwanted) {
            self.drop_unclaimed(rest);
        }
        if self.plan.kind == Kind::Addresses {
            self.plan.judge.all_addresses_seen();
        }
        self.plan.leases.copies(&self.plan.target, self.table.len());
        self.plan.done.send_replace(true);
    }

    fn put(&mut self, source: u8, key: &Arc<str>, value: &Bytes) {
        let Some(rest) = key.strip_prefix(self.sources[usize::from(source)].prefix.as_str()) else { return };
        if let Err(odd) = self.plan.kind.check(rest, self.plan.judge.space()) {
            self.count_dropped(
                source,
                match odd {
                    Odd::Foreign => Reason::ForeignKey,
                    Odd::Shape => Reason::BadKey,
                },
            );
            return;
        }
        if self.table.is_shadowed(rest, source) {
            return;
        }
        let before = self.table.get(rest);
        let judge = &self.plan.judge;
        let verdict = judge.judge(self.plan.kind, rest, source, value, before.unwrap_or(0), before.is_some());
        match verdict {
            Verdict::Pass(id) => {
                let act = self.table.put(rest, source, value, id);
                self.act(rest, act, Some(value));
            }
            Verdict::Drop(reason) => {
                self.count_dropped(source, reason);
                let act = self.table.remove(rest, source);
                self.table.forget_id(rest);
                self.act(rest, act, None);
                // Somebody copied it who had other rules. Whether another source has it too is not known before all were read.
                if act == Act::Keep && before.is_some() && reason != Reason::IdentityUnknown {
                    if self.sources.iter().all(|source| source.listed) {
                        self.drop_unclaimed(rest.into());
                    } else {
                        self.unwanted.push(rest.into());
                    }
                }
            }
        }
    }

    fn count_dropped(&mut self, source: u8, reason: Reason) {
        *self.sources[usize::from(source)].dropped.entry(reason).or_default() += 1;
    }

    fn delete(&mut self, source: u8, key: &Arc<str>) {
        let Some(rest) = key.strip_prefix(self.sources[usize::from(source)].prefix.as_str()) else { return };
        let before = self.table.get(rest).unwrap_or(0);
        let act = self.table.remove(rest, source);
        if matches!(act, Act::Delete | Act::Keep) {
            self.plan.judge.gone(self.plan.kind, rest, if act == Act::Delete { before } else { 0 });
        }
        self.act(rest, act, None);
    }

    fn act(&mut self, rest: &str, act: Act, value: Option<&Bytes>) {
        match act {
            Act::Keep => {}
            Act::Put => self.push.set(self.table.key(rest), value.cloned()),
            Act::Delete => self.push.set(rest.into(), None),
            Act::Reread(source) => self.relist |= 1 << source,
        }
    }

    fn pushed(&mut self, pushed: Pushed) -> Option<End> {
        match pushed {
            Pushed::Done { written, deleted, since } => {
                self.status.written += written;
                self.status.deleted += deleted;
                self.status.delay_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                if self.sources.iter().all(|source| source.current) {
                    self.status.problem = None;
                }
            }
            Pushed::Failed(error) => {
                self.trouble(format!("the local store: {error}; {} changes wait", self.push.pending()));
            }
            Pushed::Refused(rest, error) => {
                tracing::error!(prefix = self.plan.target, key = &*rest, %error, "the local store does not take this value");
                self.count_dropped(0, Reason::TooLarge);
                self.table.forget_value(&rest);
            }
            Pushed::LostLead => return Some(End::LostLead),
            Pushed::LostLease(lease) => self.plan.leases.lost(lease),
        }
        None
    }

    // --- what other mirrors say ---

    fn pass_nudges(&mut self) {
        for nudge in self.plan.judge.nudges() {
            let to = match nudge {
                Nudge::Address(_) | Nudge::Addresses => &self.plan.nudges.addresses,
                Nudge::Identity(_) | Nudge::Identities => &self.plan.nudges.identities,
            };
            // Nobody hears it when the mirrors are ending.
            let _ = to.send(nudge);
        }
    }

    fn nudge(&mut self, nudge: Nudge) {
        match nudge {
            Nudge::Address(rest) => {
                if let Some((source, value)) = self.plan.judge.waiting(&rest)
                    && let Some(from) = self.sources.get(usize::from(source))
                {
                    let key: Arc<str> = format!("{}{rest}", from.prefix).into();
                    self.put(source, &key, &value);
                }
            }
            Nudge::Identity(id) => self.single.push_back(id),
            Nudge::Addresses | Nudge::Identities => self.relist = u8::MAX,
        }
        if self.single.len() > SINGLY {
            self.single.clear();
            self.relist = u8::MAX;
        }
        self.pass_nudges();
    }

    /// An identity came into use or went out of it: its value is asked for.
    async fn ask_singly(&mut self) {
        while let Some(id) = self.single.front().copied() {
            let Some(prefix) = self.sources.first().map(|source| source.prefix.clone()) else { return };
            let key: Arc<str> = format!("{prefix}{id}").into();
            match self.plan.remote.get(&key).await {
                Ok(Some(entry)) => self.put(0, &key, &entry.value),
                Ok(None) => self.delete(0, &key),
                Err(_) => return,
            }
            self.single.pop_front();
        }
    }
}

/// The next piece of any source.
async fn any(sources: &mut [Source]) -> (u8, Pulled) {
    std::future::poll_fn(|context| {
        for (at, source) in sources.iter_mut().enumerate() {
            if let std::task::Poll::Ready(Some(piece)) = source.pull.poll_next(context) {
                return std::task::Poll::Ready((at as u8, piece));
            }
        }
        std::task::Poll::Pending
    })
    .await
}
