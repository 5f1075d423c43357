//! A local store, remote stores, and a mesh between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use villus_kvstore::{Follow, Item, Memory, Store, StoreError};
use villus_labels::MaxConnectedClusters;
use villus_mesh::{Board, Kind, Layout, Mesh, MeshStatus, Own, RemoteStatus, Settings, State};
use villus_table::{Backoff, Stop};

/// How long anything may take on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub type Content = BTreeMap<String, String>;

pub fn quick() -> Backoff {
    Backoff::try_new(Duration::from_millis(1), Duration::from_millis(50), 0.5).unwrap()
}

pub fn settings(directory: &TempDir) -> Settings {
    Settings {
        own: Own { name: "c1".to_owned(), id: 1, clusters: MaxConnectedClusters::C255 },
        directory: directory.path().to_owned(),
        layouts: vec![Layout::Cache],
        lease_ttl: Duration::ZERO,
        cache_ttl: Duration::ZERO,
        grace: Duration::from_millis(300),
        rewind_grace: Duration::from_millis(500),
        election: false,
        scan: Duration::from_millis(20),
        kinds: Kind::ALL.to_vec(),
        compare: Duration::ZERO,
        pace: quick().into(),
    }
}

pub struct World {
    pub local: Arc<dyn Store>,
    pub remotes: BTreeMap<String, Arc<dyn Store>>,
    pub directory: TempDir,
    pub settings: Settings,
    pub board: Option<Board>,
    running: Option<(Stop, JoinHandle<()>)>,
}

/// Waits until something holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Tries until it works: a store that was restarted breaks connections.
pub async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(mut ask: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_transient() && Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn put(store: &Arc<dyn Store>, key: &str, value: &str) {
    patiently(|| store.update(key, value.to_owned().into(), None)).await;
}

pub async fn content(store: &Arc<dyn Store>, prefix: &str) -> Content {
    let listing = patiently(|| store.list_prefix(prefix)).await;
    listing.entries.iter().map(|e| (e.key.to_string(), e.text().unwrap().to_owned())).collect()
}

pub fn text(pairs: &[(&str, &str)]) -> Content {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn address(ip: &str, id: u32) -> String {
    format!(r#"{{"IP":"{ip}","Mask":null,"HostIP":"10.9.0.1","ID":{id},"Key":0,"Metadata":""}}"#)
}

impl World {
    /// Stores in memory: the local one and one for each remote, which has published its configuration.
    pub async fn in_memory(remotes: &[(&str, u32)]) -> (Self, Memory, Vec<Memory>) {
        let local = Memory::new().unwrap();
        let memories: Vec<Memory> = remotes.iter().map(|_| Memory::new().unwrap()).collect();
        let stores = memories.iter().map(|memory| Arc::new(memory.clone()) as Arc<dyn Store>).collect();
        let world = Self::new(Arc::new(local.clone()), remotes, stores).await;
        (world, local, memories)
    }

    pub async fn new(local: Arc<dyn Store>, remotes: &[(&str, u32)], stores: Vec<Arc<dyn Store>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(&directory);
        let mut world =
            Self { local, remotes: BTreeMap::new(), directory, settings, board: None, running: None };
        for ((name, id), store) in remotes.iter().zip(stores) {
            put(&store, &format!("cilium/cluster-config/{name}"), &format!(r#"{{"id":{id}}}"#)).await;
            world.remotes.insert((*name).to_owned(), store);
            world.configure(name, "");
        }
        world
    }

    /// The remote says that all of it is there, and that it says so.
    pub async fn says_when_complete(&self, name: &str, id: u32) {
        let config = format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":true}}}}"#);
        put(&self.remotes[name], &format!("cilium/cluster-config/{name}"), &config).await;
        for kind in ["nodes", "services", "identities", "ip"] {
            put(&self.remotes[name], &format!("cilium/synced/{name}/cilium/state/{kind}/v1"), "now").await;
        }
    }

    pub fn configure(&self, name: &str, extra: &str) {
        let path = self.directory.path();
        std::fs::write(path.join(format!("{name}.mesh")), extra).unwrap();
        std::fs::write(path.join(name), "endpoints: ['http://127.0.0.1:1']\n").unwrap();
    }

    pub fn unconfigure(&self, name: &str) {
        std::fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    pub fn mesh(&self) -> Mesh {
        let remotes = self.remotes.clone();
        let connect = move |name: &str, _: &villus_mesh::remotes::RemoteConfig| {
            remotes.get(name).cloned().ok_or_else(|| format!("no store for {name}"))
        };
        Mesh::new(self.settings.clone(), Arc::clone(&self.local), Arc::new(connect))
    }

    pub fn start(&mut self) {
        assert!(self.running.is_none());
        let (mesh, stop) = (self.mesh(), Stop::new());
        self.board = Some(mesh.board());
        let said = stop.clone();
        self.running = Some((stop, tokio::spawn(async move { mesh.run(&said).await })));
    }

    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.stop();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    pub fn status(&self) -> MeshStatus {
        self.board.as_ref().unwrap().status()
    }

    pub fn remote(&self, name: &str) -> Option<RemoteStatus> {
        self.status().remotes.into_iter().find(|remote| remote.name == name)
    }

    /// Waits until all of a remote is copied.
    pub async fn ready(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.remote(name).is_some_and(|remote| remote.ready) {
            assert!(Instant::now() < end, "{name} is not ready: {:#?}", self.remote(name));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until each prefix is in this state.
    pub async fn all_are(&self, name: &str, state: State) {
        let end = Instant::now() + PATIENCE;
        let is_so = |remote: &RemoteStatus| {
            !remote.prefixes.is_empty() && remote.prefixes.iter().all(|one| one.state == state)
        };
        while !self.remote(name).is_some_and(|remote| is_so(&remote)) {
            assert!(Instant::now() < end, "{name} is not {state:?}: {:#?}", self.remote(name));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the local store has this below a prefix.
    pub async fn becomes(&self, prefix: &str, wanted: &Content) {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = match self.local.list_prefix(prefix).await {
                Ok(listing) => {
                    let entries = listing.entries.iter();
                    entries.map(|e| (e.key.to_string(), e.text().unwrap().to_owned())).collect()
                }
                Err(_) => Content::new(),
            };
            if now == *wanted {
                return;
            }
            let status = self.board.as_ref().map(|board| board.status());
            assert!(Instant::now() < end, "{prefix}: {now:#?}\nwanted {wanted:#?}\n{status:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Watches a store and takes down every key that was deleted, however shortly.
pub struct Witness {
    deleted: Arc<Mutex<BTreeSet<String>>>,
    written: Arc<Mutex<BTreeMap<String, u64>>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Must see every change: the store may not be compacted.
    pub fn of(store: &Arc<dyn Store>, prefix: &str) -> Self {
        let deleted: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let written: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let mut follow = Follow::start(Arc::clone(store), prefix, quick());
        let (gone, put) = (Arc::clone(&deleted), Arc::clone(&written));
        let task = tokio::spawn(async move {
            while let Some(batch) = follow.next().await {
                for item in batch.items {
                    match item {
                        Item::Put(entry) => {
                            *put.lock().unwrap().entry(entry.key.to_string()).or_default() += 1;
                        }
                        Item::Delete { key, .. } => drop(gone.lock().unwrap().insert(key.to_string())),
                    }
                }
            }
        });
        Self { deleted, written, task }
    }

    pub fn deleted(&self) -> BTreeSet<String> {
        self.deleted.lock().unwrap().clone()
    }

    /// How often a key was written.
    pub fn written(&self, key: &str) -> u64 {
        self.written.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    /// Waits until it has seen this key being written: then it has seen everything before.
    pub async fn catches_up(&self, key: &str) {
        eventually("the witness has seen it", || async { self.written(key) > 0 }).await;
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}
