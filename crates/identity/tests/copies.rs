//! Other clusters' entries, told by one layer or by several: whatever layer comes or goes, what one of them tells counts.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use common::{config, eventually, labels};
use proptest::prelude::*;
use villus_identity::{
    Allocator, AllocatorConfig, Clusters, Identities, Ipcache, Layer, Leased, NodeIdentities, NodeName,
    Nodes, Ownership, Rank, Remote, RemoteConfig, Reserved, Surroundings, new_identities, new_nodes,
};
use villus_kvstore::{
    AddressKind, Batch, ClusterConfig, Entry, IpIdentityPair, Item, Memory, NodeAddress, NodeEntry, Relisted,
    Store,
};
use villus_labels::{MaxConnectedClusters, NumericIdentity};

/// The first numbers of clusters 1, this one, and 2.
const OWN: u32 = 65_536;
const THEIRS: u32 = 131_072;
const WEB: &str = "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=c2;";

struct All;

impl Surroundings for All {
    fn is_known(&self, _: NumericIdentity) -> bool {
        true
    }

    fn ownership(&self, _: &str, _: Option<&[u8]>) -> Ownership {
        Ownership::Other
    }
}

fn put(layer: Layer, key: &str, value: &str) -> Item {
    let key = key.replace("cilium/state/", base(layer));
    let entry = Entry {
        key: key.into(),
        value: Bytes::from(value.to_owned()),
        create_revision: 1,
        mod_revision: 1,
        version: 1,
        lease: None,
    };
    Item::Put(Arc::new(entry))
}

fn delete(layer: Layer, key: &str) -> Item {
    Item::Delete { key: key.replace("cilium/state/", base(layer)).into(), revision: 2, leased: false }
}

fn base(layer: Layer) -> &'static str {
    match layer {
        Layer::State => "cilium/state/",
        Layer::Cache => "cilium/cache/",
        Layer::Mesh => "clustermesh/",
    }
}

fn batch(items: Vec<Item>) -> Batch {
    Batch { revision: 1, items, relisted: None }
}

fn node(cluster: &str, id: u32, name: &str, ip: &str, range: &str) -> NodeEntry {
    NodeEntry {
        addresses: vec![NodeAddress { kind: AddressKind::Internal, ip: ip.parse().unwrap() }],
        ipv4: Some(range.parse().unwrap()),
        cluster_id: id,
        ..NodeEntry::new(cluster, name)
    }
}

struct Scene {
    remote: Remote,
    ipcache: Ipcache,
    nodes: Nodes,
    others: Clusters,
}

impl Scene {
    fn new() -> Self {
        let (ipcache, nodes) = (Ipcache::new(), new_nodes());
        let others = Clusters::new("c1", 1, MaxConnectedClusters::C255);
        let config = RemoteConfig {
            cluster: "c1".into(),
            cluster_id: 1,
            range: OWN..=OWN + 65_535,
            node: "own".into(),
            tunnels: true,
            routed: Vec::new(),
            settle: Duration::from_secs(30),
            stale_grace: Duration::from_secs(3600),
            node_labels: false,
            node_prefixes: false,
            others: others.clone(),
            leased: Leased::default(),
        };
        let identities = new_identities(&Reserved::new());
        let numbers = Arc::new(NodeIdentities::new(identities, Duration::from_secs(600)));
        let remote = Remote::new(config, ipcache.clone(), nodes.clone(), numbers);
        Self { remote, ipcache, nodes, others }
    }

    fn apply(&mut self, addresses: bool, items: Vec<Item>) {
        let (batch, now) = (batch(items), Instant::now());
        match addresses {
            true => self.remote.apply_addresses(&batch, &All, now),
            false => self.remote.apply_nodes(&batch, &All, now),
        };
    }

    fn rank(&self, prefix: &str) -> Option<Rank> {
        self.ipcache.snapshot().get(&prefix.parse().unwrap()).map(|winner| winner.rank)
    }

    fn refused(&self) -> String {
        self.remote.refused().iter().map(|(key, reason)| format!("{key}: {reason}\n")).collect()
    }
}

/// What clusters say of themselves, told to a layer's store.
fn told(layer: Layer, ids: &[(&str, u32)]) -> Batch {
    let config = |(name, id): &(&str, u32)| {
        let own = ClusterConfig::new(*id, 255);
        put(layer, &ClusterConfig::key(name), &own.to_json())
    };
    Batch { relisted: Some(Relisted::First), ..batch(ids.iter().map(config).collect()) }
}

fn there() -> (NodeEntry, IpIdentityPair) {
    let node = node("c2", 2, "n1", "10.0.2.1", "10.2.0.0/24");
    let host = "10.0.2.1".parse().ok();
    (node, IpIdentityPair::new("10.2.0.5".parse().unwrap(), THEIRS, host))
}

#[test]
fn a_mesh_moves_from_layer_to_layer_and_nothing_is_missing_meanwhile() {
    let (node, pair) = there();
    let mut scene = Scene::new();
    let name = NodeName::new("c2", "n1");
    let way = [Layer::Mesh, Layer::State, Layer::Cache, Layer::State, Layer::Mesh];
    for (n, layer) in way.into_iter().enumerate() {
        scene.apply(false, vec![put(layer, &node.key(), &node.to_json())]);
        scene.apply(true, vec![put(layer, &pair.key("c2"), &pair.to_json())]);
        if let Some(before) = n.checked_sub(1).map(|n| way[n]) {
            let mut changes = scene.nodes.changes();
            changes.take();
            scene.apply(false, vec![delete(before, &node.key())]);
            scene.apply(true, vec![delete(before, &pair.key("c2"))]);
        }
        assert!(scene.nodes.get(&name).is_some_and(|node| node.stale.is_none()), "{layer:?}");
        for prefix in ["10.2.0.5/32", "10.2.0.0/24", "10.0.2.1/32"] {
            assert_eq!(scene.rank(prefix), Some(layer.rank()), "{prefix} {layer:?}");
        }
        assert_eq!(scene.remote.layer_of(&name), Some(layer));
        assert_eq!(scene.remote.node_keys(layer).len(), 1);
    }
    scene.apply(false, vec![delete(Layer::Mesh, &node.key())]);
    scene.apply(true, vec![delete(Layer::Mesh, &pair.key("c2"))]);
    assert!(scene.nodes.is_empty() && scene.ipcache.snapshot().is_empty());
    assert_eq!(scene.refused(), "");
}

#[test]
fn what_several_layers_tell_outlives_a_restart() {
    let (node, pair) = there();
    let mut scene = Scene::new();
    for layer in Layer::ALL {
        scene.apply(false, vec![put(layer, &node.key(), &node.to_json())]);
        scene.apply(true, vec![put(layer, &pair.key("c2"), &pair.to_json())]);
    }
    let text = serde_json::to_string(&scene.remote.record()).unwrap();
    let mut after = Scene::new();
    after.remote.restore(serde_json::from_str(&text).unwrap(), &All);
    for layer in Layer::ALL {
        assert_eq!(after.remote.node_keys(layer), scene.remote.node_keys(layer));
        assert_eq!(after.remote.address_keys(layer), scene.remote.address_keys(layer));
        assert_eq!(&*after.remote.node_keys(layer)[0].0, node.key().replace("cilium/state/", base(layer)));
    }
    after.apply(false, vec![delete(Layer::State, &node.key())]);
    assert_eq!(after.remote.layer_of(&NodeName::new("c2", "n1")), Some(Layer::Cache));
}

#[test]
fn copies_cannot_claim_what_is_this_clusters() {
    let mut scene = Scene::new();
    let mut refuses = |addresses, item, says: &str| {
        scene.apply(addresses, vec![item]);
        assert!(scene.refused().contains(says), "{says}: {}", scene.refused());
        assert!(scene.nodes.is_empty() && scene.ipcache.snapshot().is_empty(), "{says}");
    };
    let own = node("c1", 1, "n1", "10.0.1.1", "10.1.0.0/24");
    refuses(false, put(Layer::Cache, &own.key(), &own.to_json()), "c1 is this cluster");
    let same = node("c2", 1, "n1", "10.0.2.1", "10.2.0.0/24");
    refuses(false, put(Layer::Mesh, &same.key(), &same.to_json()), "a node of cluster c2 says cluster-id 1");
    refuses(false, put(Layer::State, &same.key(), &same.to_json()), "cluster-id 1, which is this cluster's");
    let pair = IpIdentityPair::new("10.2.0.6".parse().unwrap(), OWN + 7, None);
    refuses(
        true,
        put(Layer::Cache, &pair.key("c2"), &pair.to_json()),
        "65543 is an identity of this cluster",
    );
    refuses(true, put(Layer::Mesh, &pair.key("c1"), &pair.to_json()), "c1 is this cluster");
}

#[test]
fn pod_ranges_of_two_clusters_that_overlap_are_reported_and_the_first_keeps_its_own() {
    let mut scene = Scene::new();
    let (first, second) =
        (node("c2", 2, "n1", "10.0.2.1", "10.2.0.0/24"), node("c3", 3, "n1", "10.0.3.1", "10.2.0.128/25"));
    scene.apply(false, vec![put(Layer::Cache, &first.key(), &first.to_json())]);
    scene.apply(false, vec![put(Layer::Mesh, &second.key(), &second.to_json())]);
    let refused = scene.refused();
    assert!(refused.contains("clustermesh/nodes/v1/c3/n1: ") && refused.contains("10.2.0.0/24"), "{refused}");
    assert_eq!(scene.rank("10.2.0.128/25"), None);
    scene.apply(false, vec![delete(Layer::Cache, &first.key())]);
    assert_eq!((scene.rank("10.2.0.128/25"), scene.refused()), (Some(Rank::ClusterMesh), String::new()));
}

#[test]
fn the_return_of_a_copied_node_does_not_end_what_was_copied_of_it() {
    let (node, pair) = there();
    let mut scene = Scene::new();
    scene.apply(false, vec![put(Layer::Cache, &node.key(), &node.to_json())]);
    scene.apply(true, vec![put(Layer::Cache, &pair.key("c2"), &pair.to_json())]);
    let now = Instant::now();
    let lost =
        |key: &str| Batch { relisted: Some(Relisted::OtherStore), ..batch(vec![delete(Layer::Cache, key)]) };
    scene.remote.apply_nodes(&lost(&node.key()), &All, now);
    scene.remote.apply_addresses(&lost(&pair.key("c2")), &All, now);
    scene.apply(false, vec![put(Layer::Cache, &node.key(), &node.to_json())]);
    scene.remote.tick(now + Duration::from_secs(600));
    assert_eq!(scene.rank("10.2.0.5/32"), Some(Rank::Kvstore), "its copy comes when the mesh has got there");
    scene.remote.tick(now + Duration::from_secs(4000));
    assert_eq!(scene.rank("10.2.0.5/32"), None);
}

#[test]
fn what_is_not_in_its_clusters_range_is_refused_in_every_layer_and_taken_when_the_cluster_says_so() {
    for layer in Layer::ALL {
        let mut scene = Scene::new();
        let (_, pair) = there();
        scene.remote.apply_clusters(layer, &told(layer, &[("c1", 1), ("c2", 2), ("c3", 3)]));
        let foreign = IpIdentityPair::new("10.2.0.6".parse().unwrap(), (3 << 16) + 1, None);
        let unknown = IpIdentityPair::new("10.2.0.7".parse().unwrap(), THEIRS, None);
        let reserved = IpIdentityPair::new("10.2.0.8".parse().unwrap(), 6, None);
        let address = |pair: &IpIdentityPair, of: &str| put(layer, &pair.key(of), &pair.to_json());
        scene.apply(
            true,
            vec![
                address(&pair, "c2"),
                address(&foreign, "c2"),
                address(&unknown, "c4"),
                address(&reserved, "c2"),
            ],
        );
        assert!(scene.rank("10.2.0.5/32").is_some() && scene.rank("10.2.0.8/32").is_some(), "{layer:?}");
        assert_eq!((scene.rank("10.2.0.6/32"), scene.rank("10.2.0.7/32")), (None, None), "{layer:?}");
        let bad = node("c2", 3, "n2", "10.0.2.2", "10.2.2.0/24");
        scene.apply(false, vec![put(layer, &bad.key(), &bad.to_json())]);
        assert_eq!(scene.nodes.len(), 0, "{layer:?}");
        let refused = scene.refused();
        for says in [
            "/c2/10.2.0.6: 196609 is no identity of cluster c2",
            "/c4/10.2.0.7: 131072 is an identity of cluster c2",
            "/c2/n2: a node of cluster c2 says cluster-id 3, the cluster's configuration says 2",
        ] {
            assert!(refused.contains(says), "{layer:?} {says}: {refused}");
        }
        // Both clusters have other ids now: their entries are looked at again.
        let again = scene.others.changes(layer);
        scene.remote.apply_clusters(layer, &told(layer, &[("c3", 5), ("c2", 3)]));
        assert!(again.has_changed().unwrap());
        scene.apply(true, vec![address(&foreign, "c2")]);
        assert!(scene.rank("10.2.0.6/32").is_some(), "{layer:?}: {}", scene.refused());
        assert!(!scene.refused().contains("10.2.0.6"), "{}", scene.refused());
    }
}

// --- identities ---

async fn allocator(store: &Memory) -> (Allocator, Identities) {
    let config = AllocatorConfig { cluster_id: 1, ..config("10.0.1.1") };
    let table = new_identities(&config.reserved);
    let allocator = Allocator::start(Arc::new(store.clone()), config, table.clone()).unwrap();
    allocator.synced().await;
    (allocator, table)
}

fn copied(number: u32) -> String {
    format!("cilium/state/identities/v1/c2/id/{number}")
}

#[tokio::test]
async fn an_identity_is_known_as_long_as_one_layer_tells_of_it() {
    let store = Memory::new().unwrap();
    let (allocator, table) = allocator(&store).await;
    let number = NumericIdentity(THEIRS + 1);
    let known = || table.get(&number) == Some(labels(WEB));
    let apply = |item| allocator.apply_copies(&batch(vec![item]));
    apply(put(Layer::Mesh, &copied(THEIRS + 1), WEB));
    assert!(known());
    let master = format!("cilium/state/identities/v1/id/{number}");
    store.update(&master, WEB.into(), None).await.unwrap();
    eventually("the state tells of it", async || allocator.rows().iter().any(|(n, _)| *n == number)).await;
    apply(delete(Layer::Mesh, &copied(THEIRS + 1)));
    assert!(known(), "by the state");
    apply(put(Layer::Cache, &copied(THEIRS + 1), WEB));
    store.delete(&master).await.unwrap();
    eventually("the state does not tell any more", async || allocator.rows().is_empty()).await;
    assert!(known(), "by the cache");
    assert_eq!(allocator.copied_rows().len(), 1);
    apply(delete(Layer::Cache, &copied(THEIRS + 1)));
    assert_eq!(table.get(&number), None);
}

#[tokio::test]
async fn copies_of_identities_cannot_be_this_clusters_nor_two_clusters_at_once() {
    let store = Memory::new().unwrap();
    let (allocator, table) = allocator(&store).await;
    let apply = |key: &str, text| allocator.apply_copies(&batch(vec![put(Layer::Cache, key, text)]));
    apply(&copied(OWN + 1), WEB);
    apply(&copied(THEIRS), WEB);
    apply(&copied(THEIRS).replace("/c2/", "/c3/"), "k8s:app=other;");
    apply(&copied(THEIRS + 2), "no labels");
    let refused: String = allocator.refused().iter().map(|(key, why)| format!("{key}: {why}\n")).collect();
    for says in
        ["65537 is an identity of this cluster", "/c3/id/131072: ", "two clusters have one range", "/131074"]
    {
        assert!(refused.contains(says), "{says}: {refused}");
    }
    assert_eq!(table.get(&NumericIdentity(OWN + 1)), None);
    assert_eq!(table.get(&NumericIdentity(THEIRS)), Some(labels(WEB)));
}

#[tokio::test]
async fn an_identity_is_its_clusters_in_the_copies_and_in_the_state() {
    let store = Memory::new().unwrap();
    let others = Clusters::new("c1", 1, MaxConnectedClusters::C255);
    for layer in [Layer::State, Layer::Mesh] {
        others.apply(layer, &told(layer, &[("c2", 2), ("c3", 3)]));
    }
    let config = AllocatorConfig { cluster_id: 1, others: others.clone(), ..config("10.0.1.1") };
    let table = new_identities(&config.reserved);
    let master = |number: u32| format!("cilium/state/identities/v1/id/{number}");
    store.update(&master(THEIRS + 1), WEB.into(), None).await.unwrap();
    store.update(&master((3 << 16) + 1), WEB.into(), None).await.unwrap();
    let allocator = Allocator::start(Arc::new(store.clone()), config, table.clone()).unwrap();
    allocator.synced().await;
    let known = |number: u32| table.get(&NumericIdentity(number)).is_some();
    assert!(known(THEIRS + 1) && !known((3 << 16) + 1));
    for layer in [Layer::Cache, Layer::Mesh] {
        allocator.apply_copies(&batch(vec![
            put(layer, &copied(THEIRS + 2), WEB),
            put(layer, &copied((3 << 16) + 2), WEB),
        ]));
        assert!(known(THEIRS + 2) && !known((3 << 16) + 2), "{layer:?}");
        allocator.apply_copies(&batch(vec![delete(layer, &copied(THEIRS + 2))]));
    }
    let refused: String = allocator.refused().iter().map(|(key, why)| format!("{key}: {why}\n")).collect();
    for says in ["/id/196609: 196609 is no identity of cluster c2", "/c2/id/196610: 196610 is no identity"] {
        assert!(refused.contains(says), "{says}: {refused}");
    }
    // The clusters have other ids now, and what was refused is looked at again.
    others.apply(Layer::State, &told(Layer::State, &[("c3", 5), ("c2", 3)]));
    eventually("what is in the range now is known", async || known((3 << 16) + 1)).await;
}

#[tokio::test]
async fn a_label_set_never_gets_another_clusters_number() {
    let store = Memory::new().unwrap();
    let text = "k8s:app=plain;";
    let theirs = THEIRS + 3;
    store.update(&format!("cilium/state/identities/v1/id/{theirs}"), text.into(), None).await.unwrap();
    let slave = format!("cilium/state/identities/v1/value/{text}/10.0.2.1");
    store.update(&slave, theirs.to_string().into(), None).await.unwrap();
    let (allocator, table) = allocator(&store).await;
    allocator.apply_copies(&batch(vec![put(Layer::Cache, &copied(THEIRS + 4), text)]));
    assert_eq!(allocator.lookup(&labels(text)), None);
    let number = allocator.allocate(&labels(text), None).await.unwrap();
    assert!(allocator.range().contains(&number.0), "{number}");
    assert_eq!(table.get(&NumericIdentity(theirs)), Some(labels(text)), "theirs is known all the same");
}

#[tokio::test]
async fn copies_that_another_store_lacks_stay_and_outlive_a_restart() {
    let store = Memory::new().unwrap();
    let (allocator, table) = allocator(&store).await;
    allocator.apply_copies(&batch(vec![put(Layer::Mesh, &copied(THEIRS), WEB)]));
    let lost =
        Batch { relisted: Some(Relisted::OtherStore), ..batch(vec![delete(Layer::Mesh, &copied(THEIRS))]) };
    allocator.apply_copies(&lost);
    assert_eq!(table.get(&NumericIdentity(THEIRS)), Some(labels(WEB)));
    let (after, table) = self::allocator(&store).await;
    after.restore_copies(allocator.copied_rows());
    assert_eq!(table.get(&NumericIdentity(THEIRS)), Some(labels(WEB)));
    assert_eq!(after.copied_keys(Layer::Mesh).len(), 1);
    assert_eq!(after.rows(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases) })]

    /// Whatever comes and goes in which order, a node is known exactly while some layer tells of it, and counts by the first.
    #[test]
    fn a_node_is_known_exactly_while_some_layer_tells_of_it(steps in prop::collection::vec((0..3usize, any::<bool>()), 1..30)) {
        let (node, pair) = there();
        let mut scene = Scene::new();
        let mut telling = [false; 3];
        for (at, tells) in steps {
            let layer = Layer::ALL[at];
            telling[at] = tells;
            let (key, address) = (node.key(), pair.key("c2"));
            scene.apply(false, vec![if tells { put(layer, &key, &node.to_json()) } else { delete(layer, &key) }]);
            scene.apply(true, vec![if tells { put(layer, &address, &pair.to_json()) } else { delete(layer, &address) }]);
            let first = telling.iter().position(|tells| *tells).map(|at| Layer::ALL[at]);
            prop_assert_eq!(scene.remote.layer_of(&NodeName::new("c2", "n1")), first);
            prop_assert_eq!(scene.nodes.len(), usize::from(first.is_some()));
            prop_assert_eq!(scene.rank("10.2.0.0/24"), first.map(Layer::rank));
            prop_assert_eq!(scene.rank("10.2.0.5/32"), first.map(Layer::rank));
            for (at, layer) in Layer::ALL.into_iter().enumerate() {
                prop_assert_eq!(scene.remote.node_keys(layer).len(), usize::from(telling[at]));
            }
        }
    }
}
