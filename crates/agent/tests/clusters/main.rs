//! Three clusters, each with its own etcd: policy holds across them, one fails alone, and how they know each other changes
//! while traffic goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod scene;
#[path = "../outage/traffic.rs"]
mod traffic;

use std::time::{Duration, Instant};

use villus_mesh::Layout;
use villus_testbed::{alone, eventually};

use crate::{
    common::Workload,
    scene::{Clusters, GRACE, How},
    traffic::{PORT, Traffic},
};

/// How long a cluster is away: long enough for every retry to have begun to wait.
const AWAY: Duration = Duration::from_secs(8);

/// Lets cluster c2 in, and nobody else.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {\"k8s:io.cilium.k8s.policy.cluster\": c2}}]
";

#[test]
fn the_agent() {
    common::be_the_agent();
}

#[test]
fn the_mesh() {
    scene::be_the_mesh();
}

/// A server in c1, a client in c2 and an intruder in c3 with the client's labels, and their traffic.
struct Scene {
    clusters: Clusters,
    server: Workload,
    client: Workload,
    traffic: Traffic,
}

impl Scene {
    fn start(how: How) -> Self {
        let clusters = Clusters::start(how);
        clusters.0[0].node.policy_file("server.yaml", POLICY);
        let server = clusters.0[0].node.workload("server", &["k8s:app=server"]);
        let client = clusters.0[1].node.workload("client", &["k8s:app=client"]);
        let intruder = clusters.0[2].node.workload("intruder", &["k8s:app=client"]);
        for (n, workload) in [&server, &client, &intruder].into_iter().enumerate() {
            clusters.know(n, workload, None);
        }
        for address in [server.v4(), server.v6()] {
            server.serves(address, PORT);
            eventually("the client gets through", || client.asks(address, PORT));
            assert!(intruder.asks_in_vain(address, PORT), "the cluster makes the difference");
        }
        let traffic = Traffic::start(&client, &server, &intruder);
        Self { clusters, server, client, traffic }
    }

    /// A workload with labels that nobody had before is known everywhere, and policy for its cluster holds.
    fn converges(&self, name: &str) {
        let friend = format!("k8s:run={name}");
        let late = self.clusters.0[1].node.workload(name, &["k8s:app=late", &friend]);
        self.clusters.know(1, &late, None);
        for address in [self.server.v4(), self.server.v6()] {
            eventually("the late one gets through", || late.asks(address, PORT));
        }
        self.traffic.goes_on();
    }
}

/// Requests that the stores of clusters 1 and 3 answer in a second.
fn rates(clusters: &Clusters, time: Duration) -> [f64; 2] {
    let (begin, before) = (Instant::now(), [0, 2].map(|n: usize| clusters.0[n].requests()));
    std::thread::sleep(time);
    let after = [0, 2].map(|n: usize| clusters.0[n].requests());
    let seconds = begin.elapsed().as_secs_f64();
    [0, 1].map(|n| (after[n] - before[n]) as f64 / seconds)
}

/// Waits until a killed agent of each cluster would know an address when it starts again.
fn each_has_written_down(clusters: &Clusters, addresses: [&str; 3]) {
    for (cluster, address) in clusters.0.iter().zip(addresses) {
        let path = cluster.node.root.join("lib/cluster.json");
        eventually("each has written down what it knows", || scene::says(&path, address));
    }
}

fn one_cluster_fails_alone(how: How) {
    let mut scene = Scene::start(how);
    let away = &scene.client.v4().to_string();
    let there = scene.server.v4().to_string();
    each_has_written_down(&scene.clusters, [away, &there, away]);
    let calm = rates(&scene.clusters, AWAY);
    let dead = &mut scene.clusters.0[1];
    dead.end_mesh();
    dead.etcd.kill();
    dead.node.kill();
    scene.traffic.goes_on();
    scene.clusters.0[1].node.start();
    assert!(scene.clusters.0[1].store().contains("from snapshot"), "{}", scene.clusters.0[1].store());
    scene.traffic.goes_on();
    let stirred = rates(&scene.clusters, AWAY);
    for (calm, stirred) in calm.into_iter().zip(stirred) {
        // A store answers to each of its own a few times a second; a herd would be many times that.
        assert!(stirred <= 2.0 * calm + 5.0, "{stirred} requests a second instead of {calm}");
    }
    for n in [0, 2] {
        assert!(scene.clusters.0[n].agent_runs(), "no other cluster's agent ends");
        assert_eq!(
            scene.clusters.0[n].who(away).map(|(identity, _)| identity >> 16),
            Some(2),
            "the last state"
        );
    }
    if how == How::ClusterMesh {
        eventually("it is said", || {
            let remotes = scene.clusters.0[0].remotes();
            remotes.starts_with("1/2 remote clusters ready") && remotes.contains("nodes stale since")
        });
    }
    // Also an agent of another cluster that starts now knows the last state.
    scene.clusters.0[0].node.kill();
    scene.traffic.goes_on();
    scene.clusters.0[0].node.start();
    eventually("it knows it", || {
        scene.clusters.0[0].who(away).is_some_and(|(identity, _)| identity >> 16 == 2)
    });
    scene.traffic.goes_on();

    let back = &mut scene.clusters.0[1];
    back.etcd.resume();
    back.etcd.wait();
    if let How::Copied(layout) = how {
        back.copy(layout);
    }
    scene.converges("late");
    scene.traffic.stop().unwrap();
}

#[test]
fn one_of_three_clusters_fails_alone_where_agents_read_all_stores() {
    alone!();
    one_cluster_fails_alone(How::ClusterMesh);
}

#[test]
fn one_of_three_clusters_fails_alone_where_copies_lie_in_the_cache() {
    alone!();
    one_cluster_fails_alone(How::Copied(Layout::Cache));
}

#[test]
fn one_of_three_clusters_fails_alone_where_copies_lie_in_the_state() {
    alone!();
    one_cluster_fails_alone(How::Copied(Layout::State));
}

#[test]
fn a_live_mesh_moves_from_clustermesh_to_the_state_to_the_cache_and_back() {
    alone!();
    let mut scene = Scene::start(How::ClusterMesh);
    scene.clusters.know(1, &scene.client, Some("clustermesh"));
    // Copies come first; then agents do without their own.
    scene.clusters.configure(How::Copied(Layout::State));
    for layout in [Layout::State, Layout::Cache, Layout::State] {
        let places = |layout: Layout| format!("cilium/{layout}/ip/v1/");
        let other = match layout {
            Layout::State => Layout::Cache,
            Layout::Cache => Layout::State,
        };
        for cluster in &mut scene.clusters.0 {
            cluster.copy(layout);
        }
        let client = scene.client.v4().to_string();
        for n in [0, 2] {
            let cluster = &scene.clusters.0[n];
            let key = format!("{}c2/{client}", places(layout));
            eventually("the copies are there", || cluster.keys(&places(layout)).contains(&key));
            eventually("those in the other layout are not", || {
                !cluster.keys(&places(other)).contains(&format!("{}c2/{client}", places(other)))
            });
        }
        scene.traffic.goes_on();
        let there = scene.server.v4().to_string();
        each_has_written_down(&scene.clusters, [&client, &there, &client]);
        for cluster in &mut scene.clusters.0 {
            if cluster.remotes().is_empty() {
                continue;
            }
            cluster.node.kill();
            cluster.read_itself(false);
            cluster.node.start();
        }
        scene.traffic.goes_on();
        scene.clusters.know(1, &scene.client, Some("kvstore"));
        scene.converges(&format!(
            "in-{layout}-{}",
            scene.clusters.0[1].node.client().endpoints(&[]).unwrap().len()
        ));
    }
    for cluster in &scene.clusters.0 {
        let file = cluster.node.root.join("lib/clustermesh.redb");
        eventually("what agents copied themselves is gone", || !file.exists());
    }
    // And back: agents read themselves, then the copies go.
    let (client, there) = (scene.client.v4().to_string(), scene.server.v4().to_string());
    each_has_written_down(&scene.clusters, [&client, &there, &client]);
    for cluster in &mut scene.clusters.0 {
        cluster.node.kill();
        cluster.read_itself(true);
        cluster.node.start();
    }
    for cluster in &scene.clusters.0 {
        eventually("agents have read all", || cluster.remotes().starts_with("2/2 remote clusters ready"));
    }
    scene.clusters.unconfigure(How::Copied(Layout::State));
    scene.traffic.goes_on();
    std::thread::sleep(GRACE);
    scene.clusters.know(1, &scene.client, Some("clustermesh"));
    scene.converges("last");
    scene.traffic.stop().unwrap();
}

#[test]
fn a_remote_that_is_removed_counts_for_the_grace_period_and_refusals_are_said() {
    alone!();
    let mut scene = Scene::start(How::ClusterMesh);
    let who = |scene: &Scene| scene.clusters.0[2].who(&scene.client.v4().to_string());
    let file = scene.clusters.0[2].node.root.join("remotes/c2");
    std::fs::remove_file(&file).unwrap();
    eventually("it is said that it goes", || {
        scene.clusters.0[2].remotes().contains("c2: removing, copies go at")
    });
    eventually("then it is gone", || who(&scene).is_none());
    eventually("nor named", || !scene.clusters.0[2].remotes().contains("c2:"));
    scene.clusters.configure(How::ClusterMesh);
    eventually("it comes back", || who(&scene).is_some());

    // A file that leads to this cluster's own store, and a cluster with the id of another.
    let own = scene.clusters.0[2].etcd.url();
    std::fs::write(file.with_file_name("c9"), format!("endpoints: ['{own}']\n")).unwrap();
    let c1 = &scene.clusters.0[0].etcd;
    c1.etcdctl(&["put", "cilium/cluster-config/c1b", r#"{"id":1}"#]).unwrap();
    std::fs::write(file.with_file_name("c1b"), format!("endpoints: ['{}']\n", c1.url())).unwrap();
    let status = |scene: &Scene| {
        let details = scene.clusters.0[2].node.client().status_details().unwrap();
        details.warnings.into_iter().map(|warning| warning.message + "\n").collect::<String>()
    };
    eventually("both are refused by name", || {
        let status = status(&scene);
        status.contains("cluster c9 lead to this cluster's own store")
            && status.contains("cluster c1b has id 1, which cluster c1 has too")
    });
    // Two clusters' nodes with one range of addresses.
    let node = r#"{"Name":"n9","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"192.168.50.9"}],"IPv4AllocCIDR":{"IP":"10.51.0.0","Mask":"////AA=="},"ClusterID":1}"#;
    c1.etcdctl(&["put", "cilium/state/nodes/v1/c1/n9", node]).unwrap();
    eventually("the overlap is said", || {
        let status = status(&scene);
        status.contains("clustermesh/nodes/v1/c1/n9")
            && status.contains("has the prefix 10.51.0.0/24 already")
    });
    // An address of one cluster with an identity of another.
    let pair = r#"{"IP":"10.51.0.77","Mask":null,"HostIP":"192.168.50.9","ID":131073,"Key":0,"Metadata":""}"#;
    c1.etcdctl(&["put", "cilium/state/ip/v1/default/10.51.0.77", pair]).unwrap();
    eventually("the foreign identity is said", || {
        status(&scene).contains("131073 is no identity of cluster c1, whose configuration says id 1")
    });
    let of = |name: &str| {
        let mesh = scene.clusters.0[2].node.client().status(false).unwrap().cluster_mesh.unwrap();
        mesh.clusters.into_iter().find(|one| one.name == name).unwrap()
    };
    // Its kinds are read one beside the other.
    eventually("all of c2 is read again", || of("c2").ready);
    let (c2, c9) = (of("c2"), of("c9"));
    assert!(c2.connected && c2.config.retrieved && c2.config.cluster_id == 2, "{c2:?}");
    assert!(c2.synced.nodes && c2.synced.endpoints && c2.num_nodes == 1 && c2.num_endpoints > 0, "{c2:?}");
    assert!(!c9.ready && c9.status.contains("this cluster's own store"), "{c9:?}");
    let metrics = scene.clusters.0[2].node.client().metrics().unwrap();
    let value = |name: &str, target: &str| {
        let of = |metric: &&villus_api::model::MetricValue| {
            metric.name == name && metric.labels.get("target_cluster").is_some_and(|label| label == target)
        };
        metrics.iter().find(of).map(|metric| metric.value)
    };
    assert_eq!(value("villus_clustermesh_refused", "c9"), Some(1.0));
    assert_eq!(value("cilium_clustermesh_remote_cluster_readiness_status", "c2"), Some(1.0));
    scene.traffic.stop().unwrap();
    assert!(scene.clusters.0.iter_mut().all(scene::Cluster::agent_runs));
}
