//! Three clusters of one node each, joined by a switch; each has an etcd of its own, an agent, a mesh, a workload.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use villus_kvstore::{Etcd, EtcdOptions, Store};
use villus_labels::MaxConnectedClusters;
use villus_mesh::{Kind, Layout, Mesh, Own, Settings, remotes::RemoteConfig};
use villus_table::{Backoff, Stop};
use villus_testbed::{EtcdServer, eventually, run_ip as ip};

use crate::common::{TestNode, Workload};

/// Where the members of etcd listen, as the nodes see it.
const STORES: &str = "192.168.50.254";
/// From the end of a remote's configuration, or of a layout, to that of its copies.
pub const GRACE: Duration = Duration::from_secs(2);
/// Tells a process that it is a mesh, and which.
const MESH: &str = "VILLUS_TEST_MESH";
const COUNT: usize = 3;

/// How the clusters know each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Agents read the other clusters' stores themselves.
    ClusterMesh,
    /// One process per cluster copies them.
    Copied(Layout),
}

/// One cluster.
pub struct Cluster {
    pub name: String,
    pub etcd: EtcdServer,
    pub node: TestNode,
    mesh: Option<Child>,
    id: u32,
}

/// What a mesh is told.
#[derive(Serialize, Deserialize)]
struct Told {
    name: String,
    id: u32,
    etcd: String,
    directory: PathBuf,
    layout: Layout,
}

/// The mesh itself.
pub fn be_the_mesh() {
    let Some(told) = std::env::var_os(MESH) else { return };
    let told: Told = serde_json::from_str(told.to_str().unwrap()).unwrap();
    let open =
        |url: &str| -> Arc<dyn Store> { Arc::new(Etcd::new(EtcdOptions::new(vec![url.into()])).unwrap()) };
    let settings = Settings {
        own: Own { name: told.name, id: told.id, clusters: MaxConnectedClusters::C255 },
        directory: told.directory,
        layouts: vec![told.layout],
        kinds: Kind::ALL.to_vec(),
        lease_ttl: Duration::ZERO,
        cache_ttl: Duration::ZERO,
        grace: GRACE,
        rewind_grace: Duration::from_secs(900),
        election: false,
        scan: Duration::from_millis(200),
        compare: Duration::ZERO,
        pace: Backoff::try_new(Duration::from_millis(100), Duration::from_secs(5), 0.5).unwrap().into(),
    };
    let connect = |_: &str, config: &RemoteConfig| -> Result<Arc<dyn Store>, String> {
        Ok(Arc::new(Etcd::new(config.etcd.clone()).map_err(|error| error.to_string())?))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(Mesh::new(settings, open(&told.etcd), Arc::new(connect)).run(&Stop::new()));
}

impl Cluster {
    fn new(n: usize) -> Self {
        let name = format!("c{}", n + 1);
        ip(&format!("netns add {name}"));
        ip(&format!("link add port{n} type veth peer name eth0 netns {name}"));
        ip(&format!("link set port{n} master br0 up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} addr add 192.168.50.{}/24 dev eth0", n + 1));
        ip(&format!("-n {name} addr add fd99::{}/64 dev eth0 nodad", n + 1));
        ip(&format!("-n {name} route add default via {STORES}"));
        ip(&format!("-n {name} -6 route add default via fd99::fe"));
        let etcd = EtcdServer::cluster_at(STORES, 1, &[]).pop().unwrap();
        let root = PathBuf::from(format!("/tmp/{name}"));
        std::fs::create_dir_all(root.join("remotes")).unwrap();
        std::fs::create_dir_all(root.join("copied")).unwrap();
        let id = n as u32 + 1;
        let (v4, v6) = (format!("10.5{n}.0.0/24"), format!("fd5{n}::/112"));
        let (text, opt) = (id.to_string(), format!("etcd.address={}", etcd.url()));
        let node = TestNode::at(
            root,
            Some(&name),
            &[
                ("node-name", "n1"),
                ("cluster-name", &name),
                ("cluster-id", &text),
                ("kvstore", "etcd"),
                ("kvstore-opt", &opt),
                ("ipv4-range", &v4),
                ("ipv6-range", &v6),
                ("routing-mode", "native"),
                ("auto-direct-node-routes", "true"),
                ("ipv4-native-routing-cidr", "10.0.0.0/8"),
                ("ipv6-native-routing-cidr", "fd00::/8"),
                ("bpf-ct-global-any-max", "65536"),
                ("clustermesh-removal-grace", "2s"),
            ],
        );
        Self { name, etcd, node, mesh: None, id }
    }

    /// The directory of remotes that agents read, or that the mesh does.
    fn directory(&self, how: How) -> PathBuf {
        self.node.root.join(if how == How::ClusterMesh { "remotes" } else { "copied" })
    }

    /// Starts the mesh that copies; one that runs ends.
    pub fn copy(&mut self, layout: Layout) {
        self.end_mesh();
        let directory = self.directory(How::Copied(layout));
        let told = Told { name: self.name.clone(), id: self.id, etcd: self.etcd.url(), directory, layout };
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_mesh", "--nocapture"])
            .env(MESH, serde_json::to_string(&told).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.mesh = Some(child);
    }

    /// Kills the mesh as nothing can be caught.
    pub fn end_mesh(&mut self) {
        if let Some(mut mesh) = self.mesh.take() {
            mesh.kill().unwrap();
            mesh.wait().unwrap();
        }
    }

    /// From the agent's next start on it reads other clusters' stores itself, or does not.
    pub fn read_itself(&mut self, itself: bool) {
        const OPTION: &str = "clustermesh-config";
        self.node.options.retain(|(name, _)| name != OPTION);
        if itself {
            let directory = self.directory(How::ClusterMesh).display().to_string();
            self.node.options.push((OPTION.to_owned(), directory));
        }
    }

    /// The line of `villus status` about other clusters, with those below it.
    pub fn remotes(&self) -> String {
        let details = self.node.client().status_details().unwrap();
        let line = details.lines.into_iter().find(|line| line.label == "ClusterMesh");
        line.map_or_else(String::new, |line| format!("{}\n{}", line.state, line.message))
    }

    /// How the store is, as `villus status` says.
    pub fn store(&self) -> String {
        let details = self.node.client().status_details().unwrap();
        details.lines.into_iter().find(|line| line.label == "KVStore").unwrap().message
    }

    /// Keys in this cluster's store.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let keys = self.etcd.etcdctl(&["get", "--prefix", "--keys-only", prefix]).unwrap();
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Requests that this cluster's store has answered, watches not counted.
    pub fn requests(&self) -> u64 {
        self.etcd.requests().unwrap()
    }

    /// The agent is the process that it was.
    pub fn agent_runs(&mut self) -> bool {
        self.node.agent.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Who an address is here, and who says so.
    pub fn who(&self, address: &str) -> Option<(u32, String)> {
        let entries = self.node.client().ips(&villus_api::model::IpQuery::default()).unwrap();
        let entry = entries.iter().find(|entry| entry.cidr.split('/').next() == Some(address))?;
        (!entry.metadata.pending).then(|| (entry.identity, entry.metadata.source.clone()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end_mesh();
    }
}

/// All of them.
pub struct Clusters(pub Vec<Cluster>);

impl Clusters {
    /// Each knows the others; all agents serve.
    pub fn start(how: How) -> Self {
        ip("link add br0 type bridge");
        ip(&format!("addr add {STORES}/24 dev br0"));
        ip("addr add fd99::fe/64 dev br0 nodad");
        ip("link set br0 up");
        let mut all = Self((0..COUNT).map(Cluster::new).collect());
        all.configure(how);
        for cluster in &mut all.0 {
            cluster.read_itself(how == How::ClusterMesh);
            cluster.node.start();
            if let How::Copied(layout) = how {
                cluster.copy(layout);
            }
        }
        all
    }

    /// Writes the files by which each knows the others.
    pub fn configure(&self, how: How) {
        for (own, other) in self.pairs() {
            let text = format!("endpoints: ['{}']\n", other.etcd.url());
            std::fs::write(own.directory(how).join(&other.name), text).unwrap();
        }
    }

    /// Removes them.
    pub fn unconfigure(&self, how: How) {
        for (own, other) in self.pairs() {
            std::fs::remove_file(own.directory(how).join(&other.name)).unwrap();
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&Cluster, &Cluster)> {
        self.0.iter().flat_map(|own| {
            self.0.iter().filter(|other| other.name != own.name).map(move |other| (own, other))
        })
    }

    /// Waits until every cluster knows a workload of cluster `n` by its own number, as is said by `source` (none: by anybody).
    pub fn know(&self, n: usize, workload: &Workload, source: Option<&str>) {
        for cluster in &self.0 {
            for address in [workload.v4(), workload.v6()] {
                eventually("every cluster knows the workload", || {
                    cluster.who(&address.to_string()).is_some_and(|(identity, by)| {
                        let own = cluster.id == n as u32 + 1;
                        identity >> 16 == n as u32 + 1 && (own || source.is_none_or(|source| source == by))
                    })
                });
            }
        }
    }
}

/// Whether a file says that it is of the kind that outlives an agent.
pub fn says(path: &Path, text: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|content| content.contains(text))
}
