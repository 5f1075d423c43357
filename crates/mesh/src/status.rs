//! What a mesh says about itself: for people, for `-o json`, for metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    filter::Dropped,
    layout::{Kind, Layout},
};

/// How up to date a prefix is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing was ever read.
    #[default]
    Never,
    /// It is read, or what was read is written.
    Syncing,
    /// The local store has what the remote has.
    Synced,
    /// The remote is away: the local store has what it last had.
    Stale,
    /// The remote is not configured any more; its entries go after the grace period.
    Removing,
}

/// One kind of entries of one remote in one layout.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PrefixStatus {
    /// What it holds.
    pub kind: Kind,
    /// Where copies lie.
    pub layout: Layout,
    /// How it is.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// Whether it was synced at some time.
    pub synced_once: bool,
    /// Copies.
    pub entries: u64,
    /// Changes that are not in the local store yet.
    pub pending: u64,
    /// Entries and changes that came from the remote.
    pub received: u64,
    /// Keys written to the local store.
    pub written: u64,
    /// Keys deleted from it.
    pub deleted: u64,
    /// Copies that the remote does not have any more since it was restored or wiped; they wait for the grace period.
    pub held: u64,
    /// When that ends.
    pub held_until: Option<Timestamp>,
    /// Milliseconds from receiving a change to its being stored, of the last transaction.
    pub delay_ms: u64,
    /// When the copies were last compared with the remote.
    #[serde(default)]
    pub compared: Option<Timestamp>,
    /// Copies that were then not what the remote has, and were mended.
    #[serde(default)]
    pub repaired: u64,
    /// What was not copied since the last list, by reason.
    pub dropped: Dropped,
    /// What does not work.
    pub problem: Option<String>,
}

/// One remote.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoteStatus {
    /// Its name.
    pub name: String,
    /// Connected, configured, and all prefixes synced.
    pub ready: bool,
    /// Whether its store answers.
    pub connected: bool,
    /// What its store says, or why there is none.
    pub status: String,
    /// Why it is not copied; says what to do.
    pub refused: Option<String>,
    /// What is wrong with its file; a former configuration stays in use.
    pub file: Option<String>,
    /// The configuration was removed: its entries go at this time.
    pub removal_at: Option<Timestamp>,
    /// What it says of itself.
    pub config: ConfigStatus,
    /// Nodes that are copied.
    pub num_nodes: u64,
    /// Services that are copied.
    pub num_shared_services: u64,
    /// Identities that are copied.
    pub num_identities: u64,
    /// Addresses that are copied.
    pub num_endpoints: u64,
    /// Times that contact was lost.
    pub num_failures: u64,
    /// When it last was.
    pub last_failure: Option<Timestamp>,
    /// Which store it is: etcd's cluster id.
    pub store: u64,
    /// Revision of its store, as last heard.
    pub revision: u64,
    /// Each kind.
    pub prefixes: Vec<PrefixStatus>,
}

/// What a remote says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigStatus {
    /// Whether it was read.
    pub retrieved: bool,
    /// Its id.
    pub cluster_id: u32,
    /// Whether what is copied is itself a copy.
    pub kvstoremesh: bool,
    /// Whether it says when its prefixes are complete.
    pub sync_canaries: bool,
}

/// The whole mesh.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MeshStatus {
    /// The local cluster.
    pub cluster: String,
    /// Its id.
    pub cluster_id: u32,
    /// Layouts that are written.
    pub layouts: Vec<Layout>,
    /// The process.
    pub pid: u32,
    /// When this was said.
    pub updated: Timestamp,
    /// Whether this replica copies; another does otherwise.
    pub leading: bool,
    /// The local store.
    pub local: StoreStatus,
    /// The directory of configurations; a problem, if there is one.
    pub directory: Option<String>,
    /// All remotes.
    pub remotes: Vec<RemoteStatus>,
}

/// A store.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoreStatus {
    /// Whether it answers.
    pub connected: bool,
    /// What it says.
    pub status: String,
}

/// Where everybody writes how it is. Clones share it.
#[derive(Clone)]
pub struct Board(Arc<Mutex<MeshStatus>>);

// === impl State ===

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Never, Self::Syncing, Self::Synced, Self::Stale, Self::Removing];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Syncing => "syncing",
            Self::Synced => "synced",
            Self::Stale => "stale",
            Self::Removing => "removing",
        }
    }
}

// === impl PrefixStatus ===

impl PrefixStatus {
    pub(crate) fn new(kind: Kind, layout: Layout) -> Self {
        Self {
            kind,
            layout,
            state: State::Never,
            since: Timestamp::now(),
            synced_once: false,
            entries: 0,
            pending: 0,
            received: 0,
            written: 0,
            deleted: 0,
            held: 0,
            held_until: None,
            delay_ms: 0,
            compared: None,
            repaired: 0,
            dropped: Dropped::new(),
            problem: None,
        }
    }

    pub(crate) fn enter(&mut self, state: State) {
        if self.state != state {
            (self.state, self.since) = (state, Timestamp::now());
        }
        self.synced_once |= state == State::Synced;
    }
}

// === impl RemoteStatus ===

impl RemoteStatus {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ready: false,
            connected: false,
            status: "not connected yet".to_owned(),
            refused: None,
            file: None,
            removal_at: None,
            config: ConfigStatus::default(),
            num_nodes: 0,
            num_shared_services: 0,
            num_identities: 0,
            num_endpoints: 0,
            num_failures: 0,
            last_failure: None,
            store: 0,
            revision: 0,
            prefixes: Vec::new(),
        }
    }

    /// The prefix of a kind in a layout; made if it is new.
    pub(crate) fn prefix(&mut self, kind: Kind, layout: Layout) -> &mut PrefixStatus {
        let at = match self.prefixes.iter().position(|one| (one.layout, one.kind) == (layout, kind)) {
            Some(at) => at,
            None => {
                let at = self.prefixes.partition_point(|one| (one.layout, one.kind) < (layout, kind));
                self.prefixes.insert(at, PrefixStatus::new(kind, layout));
                at
            }
        };
        &mut self.prefixes[at]
    }

    fn sum_up(&mut self) {
        let layout = self.prefixes.first().map(|one| one.layout);
        let count = |kind: Kind| {
            let mine = self.prefixes.iter().filter(|one| Some(one.layout) == layout && one.kind == kind);
            mine.map(|one| one.entries).sum()
        };
        self.num_nodes = count(Kind::Nodes);
        self.num_shared_services = count(Kind::Services);
        self.num_identities = count(Kind::Identities);
        self.num_endpoints = count(Kind::Addresses);
        self.ready = self.connected
            && self.config.retrieved
            && self.refused.is_none()
            && !self.prefixes.is_empty()
            && self.prefixes.iter().all(|one| one.state == State::Synced);
    }
}

// === impl Board ===

impl Board {
    /// Nothing is known yet.
    pub fn new(cluster: &str, cluster_id: u32, layouts: &[Layout]) -> Self {
        Self(Arc::new(Mutex::new(MeshStatus {
            cluster: cluster.to_owned(),
            cluster_id,
            layouts: layouts.to_vec(),
            pid: std::process::id(),
            updated: Timestamp::now(),
            leading: false,
            local: StoreStatus::default(),
            directory: None,
            remotes: Vec::new(),
        })))
    }

    /// How everything is now.
    pub fn status(&self) -> MeshStatus {
        let mut status = self.lock();
        status.updated = Timestamp::now();
        status.remotes.iter_mut().for_each(RemoteStatus::sum_up);
        status.clone()
    }

    pub(crate) fn edit<T>(&self, edit: impl FnOnce(&mut MeshStatus) -> T) -> T {
        edit(&mut self.lock())
    }

    /// A remote's row; made if it is new.
    pub(crate) fn remote<T>(&self, name: &str, edit: impl FnOnce(&mut RemoteStatus) -> T) -> T {
        let mut status = self.lock();
        let at = match status.remotes.binary_search_by(|one| one.name.as_str().cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                status.remotes.insert(at, RemoteStatus::new(name));
                at
            }
        };
        edit(&mut status.remotes[at])
    }

    pub(crate) fn forget(&self, name: &str) {
        self.lock().remotes.retain(|one| one.name != name);
    }

    fn lock(&self) -> MutexGuard<'_, MeshStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The metrics of a status, as Prometheus reads them.
pub fn metrics(status: &MeshStatus) -> String {
    let mut families: BTreeMap<&str, (&str, Vec<String>)> = BTreeMap::new();
    let mut add = |name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64| {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        families.entry(name).or_insert((help, Vec::new())).1.push(format!("{name}{braces} {value}"));
    };
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    let own = ("source_cluster", status.cluster.as_str());
    add("cilium_kvstoremesh_remote_clusters", "Remote clusters.", &[own], status.remotes.len() as f64);
    add(
        "cilium_kvstoremesh_leader_election_master_status",
        "Whether this replica copies.",
        &[own],
        flag(status.leading),
    );
    add(
        "villus_kvstoremesh_local_connected",
        "Whether the local store answers.",
        &[],
        flag(status.local.connected),
    );
    for remote in &status.remotes {
        let labels = [own, ("target_cluster", remote.name.as_str())];
        let mut plain = |name, help, value| add(name, help, &labels, value);
        plain(
            "cilium_kvstoremesh_remote_cluster_readiness_status",
            "Whether all is synced.",
            flag(remote.ready),
        );
        plain(
            "cilium_kvstoremesh_remote_cluster_failures",
            "Times that contact was lost.",
            remote.num_failures as f64,
        );
        let last = remote.last_failure.map_or(0.0, |at| at.as_second() as f64);
        plain(
            "cilium_kvstoremesh_remote_cluster_last_failure_ts",
            "When it last was, seconds of UNIX time.",
            last,
        );
        plain("cilium_kvstoremesh_remote_cluster_nodes", "Nodes that are copied.", remote.num_nodes as f64);
        plain(
            "cilium_kvstoremesh_remote_cluster_services",
            "Services that are copied.",
            remote.num_shared_services as f64,
        );
        plain(
            "cilium_kvstoremesh_remote_cluster_endpoints",
            "Addresses that are copied.",
            remote.num_endpoints as f64,
        );
        plain("villus_kvstoremesh_refused", "Whether the remote is refused.", flag(remote.refused.is_some()));
        for one in &remote.prefixes {
            let prefix = [
                ("target_cluster", remote.name.as_str()),
                ("type", one.kind.name()),
                ("layout", one.layout.name()),
            ];
            for state in State::ALL {
                let labels = [&prefix[..], &[("state", state.name())]].concat();
                add(
                    "villus_kvstoremesh_state",
                    "The state of a prefix is 1.",
                    &labels,
                    flag(one.state == state),
                );
            }
            let mut plain = |name, help, value: u64| add(name, help, &prefix, value as f64);
            plain(
                "villus_kvstoremesh_since_ts",
                "When the state began, seconds of UNIX time.",
                one.since.as_second().unsigned_abs(),
            );
            plain("villus_kvstoremesh_entries", "Copies.", one.entries);
            plain("cilium_kvstore_sync_queue_size", "Changes that are not stored yet.", one.pending);
            plain(
                "cilium_kvstore_initial_sync_completed",
                "Whether it was synced at some time.",
                u64::from(one.synced_once),
            );
            plain("villus_kvstoremesh_received_total", "Entries and changes from the remote.", one.received);
            plain("villus_kvstoremesh_written_total", "Keys written to the local store.", one.written);
            plain("villus_kvstoremesh_deleted_total", "Keys deleted from the local store.", one.deleted);
            plain("villus_kvstoremesh_repaired_total", "Copies that a comparison mended.", one.repaired);
            plain("villus_kvstoremesh_held", "Copies that a restored remote lacks.", one.held);
            plain(
                "villus_kvstoremesh_delay_ms",
                "From receiving to storing, last transaction.",
                one.delay_ms,
            );
            for (reason, count) in &one.dropped {
                let labels = [&prefix[..], &[("reason", reason.name())]].concat();
                add("villus_kvstoremesh_dropped", "Not copied, since the last list.", &labels, *count as f64);
            }
        }
    }
    let mut text = String::new();
    for (name, (help, lines)) in families {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{}\n", lines.join("\n")));
    }
    text
}
