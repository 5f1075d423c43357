//! ClusterMesh: what this agent reads itself of other clusters' stores.
//!
//! It is the same mesh as `villus kvstoremesh`, with a store of this node's own as the place of the copies: what is refused,
//! what is kept while a remote is away, and what drains when its configuration goes is decided there, and outlives the agent.

use std::sync::Arc;
use std::time::Duration;

use villus_api::model::{ClusterMeshStatus, RemoteCluster, RemoteClusterConfig, RemoteClusterSynced};
use villus_config::Config;
use villus_identity::Layer;
use villus_kvstore::{Batch, Embedded, Etcd, Item, Pace, Store};
use villus_labels::MaxConnectedClusters;
use villus_mesh::{
    Board, Kind, Layout, Mesh, MeshStatus, Own, RemoteStatus, Settings, State, remotes::RemoteConfig,
};
use villus_table::{Backoff, Stop};

use super::{Feed, SharedStore, feed};
use crate::AgentError;
use crate::agent::Agent;
use crate::conditions::Conditions;
use crate::node::Node;
use crate::state::StateDir;

/// Below `lib-dir`, the copies.
const FILE: &str = "clustermesh.redb";
/// Below `state-dir`, how each remote is.
const STATUS: &str = "clustermesh.json";
const CONDITION: &str = "clustermesh";
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Between two looks at the directory.
const SCAN: Duration = Duration::from_secs(1);
/// How long copies stay that a restored or wiped remote lacks.
const REWIND_GRACE: Duration = Duration::from_secs(900);

/// This agent's mesh, and where its copies lie.
pub(crate) struct ClusterMesh {
    mesh: Mesh,
    pub store: Embedded,
    board: Board,
    stop: Stop,
}

impl ClusterMesh {
    /// As the options say; nothing is asked yet. `None` without a directory of remotes, or where the copies can't be kept.
    ///
    /// # Errors
    /// Options that cannot be used.
    pub fn open(
        config: &Config,
        state: &StateDir,
        shared: &Arc<SharedStore>,
        conditions: &mut Conditions,
    ) -> Result<Option<Self>, AgentError> {
        let Some(directory) = config.kvstore.mesh.clone() else { return Ok(None) };
        let opened = match Embedded::open(&state.path(FILE)) {
            Ok(opened) => opened,
            Err(error) => {
                conditions.note(CONDITION, Some(format!("no other cluster is connected: {error}")));
                return Ok(None);
            }
        };
        if let Some((kept, reason)) = opened.damaged {
            let kept = kept.display();
            conditions.note(CONDITION, Some(format!("the copies were damaged ({reason}) and lie in {kept}")));
        }
        let wrong = |option, reason: String| AgentError::Option { option, reason };
        let clusters = MaxConnectedClusters::from_number(config.node.max_connected_clusters)
            .map_err(|error| wrong("max-connected-clusters", error.to_string()))?;
        let backoff = Backoff::try_new(FIRST_WAIT, LONGEST_WAIT, 0.5)
            .map_err(|error| wrong("clustermesh-config", error.to_string()))?;
        let settings = Settings {
            own: Own { name: config.node.cluster_name.clone(), id: config.node.cluster_id, clusters },
            directory,
            layouts: vec![Layout::Cache],
            kinds: vec![Kind::Nodes, Kind::Identities, Kind::Addresses],
            lease_ttl: Duration::ZERO,
            cache_ttl: Duration::ZERO,
            grace: config.kvstore.mesh_grace,
            rewind_grace: REWIND_GRACE,
            election: false,
            scan: SCAN,
            // Nobody else writes there.
            compare: Duration::ZERO,
            pace: Pace::new(backoff, shared.size.clone()),
        };
        let store = opened.store;
        let own = Arc::downgrade(shared);
        let own_store = move || own.upgrade()?.header().map(|header| header.cluster);
        let mesh =
            Mesh::new(settings, Arc::new(store.clone()), Arc::new(connect)).beside(Arc::new(own_store));
        Ok(Some(Self { board: mesh.board(), mesh, store, stop: Stop::new() }))
    }

    /// How each remote is.
    pub fn status(&self) -> MeshStatus {
        self.board.status()
    }
}

impl Drop for ClusterMesh {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn connect(_: &str, config: &RemoteConfig) -> Result<Arc<dyn Store>, String> {
    let store = Etcd::new(config.etcd.clone()).map_err(|error| error.to_string())?;
    Ok(Arc::new(store))
}

/// Reads other clusters' stores, and says how that is.
pub(crate) async fn run(agent: Agent, mesh: Arc<ClusterMesh>) {
    let Ok(path) = agent.with(|node| node.config.paths.state_dir.join(STATUS)).await else { return };
    let (stop, board) = (&mesh.stop, mesh.board.clone());
    tokio::join!(mesh.mesh.run(stop), villus_mesh::file(board, &path, stop), note(&agent, &mesh));
}

/// Says what speaks against remotes.
async fn note(agent: &Agent, mesh: &ClusterMesh) {
    loop {
        let status = mesh.status();
        if agent.with(move |node| node.note_remotes(&status)).await.is_err() {
            return;
        }
        tokio::time::sleep(SCAN).await;
    }
}

/// What an agent with a directory of remotes has known goes, after the grace period and not before what the shared store
/// says is known: it may say the same.
pub(crate) async fn end(agent: Agent) {
    let Ok((known, grace)) = agent
        .with(|node| {
            let known = Feed::of(Layer::Mesh).map(|feed| node.feed_keys(feed).len()).sum::<usize>();
            (known, node.config.kvstore.mesh_grace)
        })
        .await
    else {
        return;
    };
    if known > 0 {
        tracing::info!(
            known,
            ?grace,
            "clustermesh-config is gone; entries of other clusters' stores stay for the grace period"
        );
        let mut listed = false;
        while !listed {
            tokio::time::sleep(SCAN).await;
            let Ok(done) = agent.with(|node| node.awaited.is_empty()).await else { return };
            listed = done;
        }
        tokio::time::sleep(grace).await;
        let Ok(freeze) = agent.with(|node| node.freeze.clone()).await else { return };
        freeze.thawed().await;
        // What others refer to goes last.
        for kind in [feed::Kind::Addresses, feed::Kind::Nodes, feed::Kind::Identities] {
            let feed = Feed { kind, layer: Layer::Mesh };
            if agent.with(move |node| node.drop_feed(feed)).await.is_err() {
                return;
            }
        }
    }
    let Ok(path) = agent.with(|node| node.state.path(FILE)).await else { return };
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "old copies of other clusters stay on disk")
        }
    }
}

fn remote_cluster(remote: RemoteStatus) -> RemoteCluster {
    let synced = |kind| {
        let mut of = remote.prefixes.iter().filter(|one| one.kind == kind);
        of.any(|one| one.state == State::Synced)
    };
    let synced = RemoteClusterSynced {
        nodes: synced(Kind::Nodes),
        services: true,
        identities: synced(Kind::Identities),
        endpoints: synced(Kind::Addresses),
    };
    RemoteCluster {
        ready: remote.ready,
        connected: remote.connected,
        num_nodes: remote.num_nodes,
        num_shared_services: remote.num_shared_services,
        num_identities: remote.num_identities,
        num_endpoints: remote.num_endpoints,
        num_failures: remote.num_failures,
        last_failure: remote.last_failure.map(|at| at.to_string()),
        config: RemoteClusterConfig {
            required: true,
            retrieved: remote.config.retrieved,
            cluster_id: remote.config.cluster_id,
            kvstoremesh: remote.config.kvstoremesh,
            sync_canaries: remote.config.sync_canaries,
        },
        synced,
        name: remote.name,
        status: remote.refused.or(remote.file).unwrap_or(remote.status),
    }
}

impl Node {
    /// What a feed told is not told any more.
    fn drop_feed(&mut self, feed: Feed) {
        let keys = self.feed_keys(feed).into_iter();
        let gone = keys.map(|(key, _)| Item::Delete { key, revision: 0, leased: false });
        let batch = feed.known(Batch { revision: 0, items: gone.collect(), relisted: None });
        self.apply_feed(feed, &batch);
    }

    fn note_remotes(&mut self, status: &MeshStatus) {
        let refused = status.remotes.iter().filter_map(|remote| {
            let problem = remote.refused.as_ref().or(remote.file.as_ref())?;
            Some((format!("clustermesh {}", remote.name), problem.clone()))
        });
        let refused = refused.collect();
        self.conditions.replace("clustermesh ", refused);
    }

    /// The line of `villus status`, and those below it; `None` without ClusterMesh.
    pub fn mesh_lines(&self) -> Option<(String, String)> {
        let status = self.mesh.as_ref()?.status();
        let ready = status.remotes.iter().filter(|remote| remote.ready).count();
        let head = format!("{ready}/{} remote clusters ready", status.remotes.len());
        let directory = status.directory.into_iter();
        let lines: Vec<String> = directory.chain(status.remotes.iter().flat_map(|one| one.lines())).collect();
        Some((head, lines.join("\n")))
    }

    /// The same for programs.
    pub fn mesh_status(&self) -> Option<ClusterMeshStatus> {
        let status = self.mesh.as_ref()?.status();
        let clusters = status.remotes.into_iter().map(remote_cluster).collect();
        Some(ClusterMeshStatus { clusters, num_global_services: 0 })
    }

    /// Adds the figures of ClusterMesh.
    pub fn mesh_metrics(&self, add: &mut impl FnMut(&str, &[(&str, String)], f64)) {
        let Some(mesh) = &self.mesh else { return };
        let status = mesh.status();
        let own = [("source_cluster", self.cluster.clone()), ("source_node_name", self.name.clone())];
        add("cilium_clustermesh_remote_clusters", &own, status.remotes.len() as f64);
        for remote in &status.remotes {
            let of = [&own[..], &[("target_cluster", remote.name.clone())]].concat();
            let flag = |on: bool| f64::from(u8::from(on));
            let last = remote.last_failure.map_or(0.0, |at| at.as_second() as f64);
            for (name, value) in [
                ("cilium_clustermesh_remote_cluster_readiness_status", flag(remote.ready)),
                ("cilium_clustermesh_remote_cluster_failures", remote.num_failures as f64),
                ("cilium_clustermesh_remote_cluster_last_failure_ts", last),
                ("cilium_clustermesh_remote_cluster_nodes", remote.num_nodes as f64),
                ("cilium_clustermesh_remote_cluster_endpoints", remote.num_endpoints as f64),
                ("villus_clustermesh_remote_cluster_identities", remote.num_identities as f64),
                ("villus_clustermesh_refused", flag(remote.refused.is_some())),
            ] {
                add(name, &of, value);
            }
            for one in &remote.prefixes {
                for state in State::ALL {
                    let labels = [
                        ("target_cluster", remote.name.clone()),
                        ("type", one.kind.name().to_owned()),
                        ("state", state.name().to_owned()),
                    ];
                    add("villus_clustermesh_state", &labels, flag(one.state == state));
                }
                let labels = [("target_cluster", remote.name.clone()), ("type", one.kind.name().to_owned())];
                let since = one.since.as_second() as f64;
                add("villus_clustermesh_since_ts", &labels, since);
            }
        }
    }
}
