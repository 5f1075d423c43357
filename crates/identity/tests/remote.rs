//! What the store says of others: addresses and nodes as they come, go, fall silent and come back.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use villus_identity::{
    Clusters, Heard, Identities, Ipcache, Layer, Leased, NodeIdentities, NodeName, Nodes, Ownership, Rank,
    Remote, RemoteConfig, RemoteRecord, Reserved, Surroundings, new_identities, new_nodes,
};
use villus_kvstore::{
    AddressKind, Follow, IpIdentityPair, LeaseId, LeasePurpose, Memory, NamedPort, NodeAddress, NodeEntry,
    Past, Store,
};
use villus_labels::NumericIdentity;
use villus_table::Backoff;

const SETTLE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct World {
    known: BTreeSet<u32>,
    own: BTreeSet<String>,
}

impl Surroundings for World {
    fn is_known(&self, identity: NumericIdentity) -> bool {
        self.known.contains(&identity.0)
    }

    fn ownership(&self, key: &str, value: Option<&[u8]>) -> Ownership {
        match (self.own.contains(key), value) {
            (false, _) => Ownership::Other,
            (true, Some(b"own")) => Ownership::AsWritten,
            (true, _) => Ownership::Altered,
        }
    }
}

/// A node that follows a store in memory.
struct Scene {
    memory: Memory,
    remote: Remote,
    ipcache: Ipcache,
    nodes: Nodes,
    identities: Identities,
    world: World,
    feeds: [Follow; 2],
    now: Instant,
    altered: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        Self::telling(false, false)
    }

    /// One that tells nodes apart by labels, and by addresses.
    fn telling(node_labels: bool, node_prefixes: bool) -> Self {
        Self::with(|config| RemoteConfig { node_labels, node_prefixes, ..config })
    }

    fn with(change: impl FnOnce(RemoteConfig) -> RemoteConfig) -> Self {
        Self::of(Memory::new().unwrap(), change)
    }

    fn of(memory: Memory, change: impl FnOnce(RemoteConfig) -> RemoteConfig) -> Self {
        let (ipcache, nodes) = (Ipcache::new(), new_nodes());
        let config = RemoteConfig {
            cluster: "c1".into(),
            cluster_id: 1,
            range: 65_536..=131_071,
            node: "own".into(),
            tunnels: true,
            routed: Vec::new(),
            settle: SETTLE,
            stale_grace: GRACE,
            node_labels: false,
            node_prefixes: false,
            others: Clusters::default(),
            leased: Leased::default(),
        };
        let config = change(config);
        let identities = new_identities(&Reserved::new());
        let numbers = Arc::new(NodeIdentities::new(identities.clone(), Duration::from_secs(600)));
        let feeds = follow(&memory, [Vec::new(), Vec::new()]);
        let mut remote = Remote::new(config, ipcache.clone(), nodes.clone(), numbers);
        remote.set_own(node("own", "10.0.0.9", "10.9.0.0/24"));
        let world = World { known: [300, 301].into(), ..World::default() };
        let (now, altered) = (Instant::now(), Vec::new());
        Self { memory, remote, ipcache, nodes, identities, world, feeds, now, altered }
    }

    /// Takes in what has happened until `holds`; the addresses first, as may be.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.hear_until(what, true, holds).await;
    }

    /// As [`Self::until`], while nothing is heard of nodes.
    async fn until_without_nodes(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.hear_until(what, false, holds).await;
    }

    async fn hear_until(&mut self, what: &str, with_nodes: bool, holds: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < limit, "{what}: {:?}", self.ipcache.list());
            let [nodes, addresses] = &mut self.feeds;
            tokio::select! {
                batch = addresses.next() => {
                    let altered = self.remote.apply_addresses(&batch.unwrap(), &self.world, self.now);
                    self.altered.extend(altered.iter().map(ToString::to_string));
                }
                batch = nodes.next(), if with_nodes => {
                    let batch = batch.unwrap();
                    let altered = self.remote.apply_nodes(&batch, &self.world, self.now);
                    let heard = Heard { through: batch.revision, live: Some(self.now) };
                    self.remote.hear_nodes(Layer::State, heard, self.now);
                    self.altered.extend(altered.iter().map(ToString::to_string));
                }
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.remote.tick(self.now);
    }

    /// Follows the store from what is known on.
    fn resume(&mut self) {
        let known = [self.remote.node_keys(Layer::State), self.remote.address_keys(Layer::State)];
        self.feeds = follow(&self.memory, known);
    }

    /// Contact to the feed of nodes is lost.
    fn lose_nodes(&mut self) {
        self.remote.hear_nodes(Layer::State, Heard::default(), self.now);
    }

    async fn put(&self, key: &str, value: &str, lease: Option<LeaseId>) {
        self.memory.update(key, value.to_owned().into(), lease).await.unwrap();
    }

    async fn lease(&self) -> LeaseId {
        self.memory.grant(Duration::from_secs(60), LeasePurpose::Entries).await.unwrap()
    }

    async fn join(&self, name: &str, ip: &str, range: &str, lease: LeaseId) {
        let node = node(name, ip, range);
        self.put(&node.key(), &node.to_json(), Some(lease)).await;
    }

    /// Who an address is, and whether that is pending.
    fn who(&self, prefix: &str) -> Option<(u32, bool)> {
        let prefix: IpNet = prefix.parse().unwrap();
        let winner = self.ipcache.snapshot().get(&prefix).cloned()?;
        assert_eq!(winner.rank, Rank::Kvstore);
        Some((winner.mapping.identity.0, winner.mapping.pending))
    }

    /// Whether the end of so many addresses was heard of: before that of their node, then it waits for word of it, or after.
    fn has_lost(&self, addresses: usize) -> bool {
        self.remote.due().is_some() || self.remote.counts().stale_addresses == addresses
    }

    fn refused(&self) -> String {
        self.remote.refused().iter().map(|(key, reason)| format!("{key}: {reason}\n")).collect()
    }
}

/// Feeds of nodes and addresses, from these keys on.
fn follow(memory: &Memory, known: [Vec<(Arc<str>, bool)>; 2]) -> [Follow; 2] {
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let backoff = Backoff::try_new(Duration::from_millis(1), Duration::from_millis(5), 0.5).unwrap();
    let resume =
        |prefix, keys| Follow::resume(Arc::clone(&store), prefix, backoff, Past { keys, ..Past::default() });
    let [nodes, addresses] = known;
    [resume("cilium/state/nodes/v1/", nodes), resume("cilium/state/ip/v1/", addresses)]
}

fn node(name: &str, ip: &str, range: &str) -> NodeEntry {
    NodeEntry {
        addresses: vec![NodeAddress { kind: AddressKind::Internal, ip: ip.parse().unwrap() }],
        ipv4: Some(range.parse().unwrap()),
        cluster_id: 1,
        ..NodeEntry::new("c1", name)
    }
}

fn pair(ip: &str, host: &str, identity: u32) -> (String, String) {
    let host: IpAddr = host.parse().unwrap();
    let pair = IpIdentityPair::new(ip.parse().unwrap(), identity, Some(host));
    (pair.key("default"), pair.to_json())
}

#[tokio::test]
async fn a_node_and_its_addresses_come_and_go() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
    scene.put(&key, &value, Some(lease)).await;
    scene.until("both are known", |s| s.who("10.1.0.5/32").is_some() && s.nodes.len() == 1).await;
    assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)));
    assert_eq!(scene.who("10.0.0.1/32"), Some((6, false)), "the node itself is a remote node");
    assert_eq!(scene.who("10.1.0.0/24"), Some((2, true)), "its range is nobody's world");
    let winner = scene.ipcache.lookup("10.1.0.5".parse().unwrap()).unwrap().1;
    assert_eq!(winner.mapping.tunnel, Some("10.0.0.1".parse().unwrap()));

    scene.memory.delete(&key).await.unwrap();
    let held = |s: &Scene| s.remote.due().is_some();
    scene.until("the deletion is heard of", held).await;
    scene.pass(Duration::from_millis(100));
    assert_eq!(scene.who("10.1.0.5/32"), None, "its owner is there: it was deleted on purpose");
    assert_eq!(scene.remote.counts().stale_addresses, 0);
}

#[tokio::test]
async fn endpoints_of_other_nodes_are_reached_past_the_stack_where_nothing_is_masqueraded() {
    let routed = vec!["10.9.0.0/16".parse().unwrap()];
    let mut scene = Scene::with(|config| RemoteConfig { tunnels: false, routed, ..config });
    let lease = scene.lease().await;
    scene.join("a", "10.9.200.1", "10.9.1.0/24", lease).await;
    for (ip, identity) in [("10.9.1.5", 300), ("10.9.1.6", 999), ("10.77.0.1", 301), ("10.9.1.9", 1)] {
        let (key, value) = pair(ip, "10.9.200.1", identity);
        scene.put(&key, &value, Some(lease)).await;
    }
    scene.until("all are known", |s| s.remote.counts().addresses == 4 && s.nodes.len() == 1).await;
    let routed =
        |prefix: &str| scene.ipcache.snapshot().get(&prefix.parse().unwrap()).unwrap().mapping.routed;
    for (prefix, wanted) in [
        ("10.9.1.0/24", true),
        ("10.9.1.5/32", true),
        ("10.9.1.6/32", true),
        ("10.77.0.1/32", false),
        ("10.9.1.9/32", false),
        ("10.9.200.1/32", false),
    ] {
        assert_eq!(routed(prefix), wanted, "{prefix}");
    }
}

#[tokio::test]
async fn an_outside_workload_is_known_when_its_identity_is_and_goes_when_it_is_deleted() {
    let mut scene = Scene::new();
    let (key, value) = pair("10.3.192.65", "10.3.9.10", 999);
    scene.put(&key, &value, None).await;
    scene.until("it is known", |s| s.who("10.3.192.65/32").is_some()).await;
    assert_eq!(scene.who("10.3.192.65/32"), Some((999, true)), "nobody has defined the identity");
    scene.remote.resolve(NumericIdentity(999), true);
    assert_eq!(scene.who("10.3.192.65/32"), Some((999, false)));
    scene.remote.resolve(NumericIdentity(999), false);
    assert_eq!(scene.who("10.3.192.65/32"), Some((999, true)), "the identity was deleted");
    scene.memory.delete(&key).await.unwrap();
    scene.until("it is gone", |s| s.who("10.3.192.65/32").is_none()).await;
    assert_eq!(scene.remote.counts().unresolved, 0);
}

#[tokio::test]
async fn a_silent_owners_addresses_go_on_until_it_is_back_and_done_without_them() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    let [five, six] = ["10.1.0.5", "10.1.0.6"].map(|ip| pair(ip, "10.0.0.1", 300));
    scene.put(&five.0, &five.1, Some(lease)).await;
    scene.put(&six.0, &six.1, Some(lease)).await;
    scene.until("all is known", |s| s.who("10.1.0.6/32").is_some() && s.nodes.len() == 1).await;

    scene.memory.revoke(lease).await.unwrap();
    scene.until("the node is stale", |s| s.remote.counts().stale_nodes == 1 && s.has_lost(2)).await;
    scene.pass(Duration::from_secs(1));
    scene.until("its addresses are", |s| s.remote.counts().stale_addresses == 2).await;
    assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)), "packets go on");
    assert!(scene.nodes.get(&NodeName::new("c1", "a")).unwrap().stale.is_some());

    let lease = scene.lease().await;
    scene.put(&five.0, &five.1, Some(lease)).await;
    scene.until("one is back", |s| s.remote.counts().stale_addresses == 1).await;
    scene.now += Duration::from_secs(1);
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    scene.until("so is the node", |s| s.remote.counts().stale_nodes == 0).await;
    scene.pass(SETTLE - Duration::from_secs(1));
    assert!(scene.who("10.1.0.6/32").is_some());
    scene.pass(Duration::from_secs(1));
    assert_eq!((scene.who("10.1.0.5/32"), scene.who("10.1.0.6/32")), (Some((300, false)), None));
}

/// One with node a and its address 10.1.0.5 under one lease, whose feed of nodes has lost contact.
async fn scene_with_late_nodes() -> (Scene, String, LeaseId) {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
    scene.put(&key, &value, Some(lease)).await;
    scene.until("all is known", |s| s.who("10.1.0.5/32").is_some() && s.nodes.len() == 1).await;
    scene.lose_nodes();
    (scene, key, lease)
}

#[tokio::test]
async fn a_node_that_died_unheard_is_silent_however_late_that_is_heard_after_its_addresses_end() {
    for compacted in [false, true] {
        let (mut scene, _, lease) = scene_with_late_nodes().await;
        scene.memory.revoke(lease).await.unwrap();
        if compacted {
            scene.memory.compact().await.unwrap();
            scene.memory.interrupt();
        }
        scene.until_without_nodes("the end is heard", |s| s.has_lost(1)).await;
        scene.pass(Duration::from_secs(600));
        assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)), "nobody knows of its node");
        let counts = scene.remote.counts();
        assert_eq!((counts.stale_addresses, counts.doubted_addresses), (1, 1), "that can be seen");
        scene.until("the node is silent", |s| s.remote.counts().stale_nodes == 1).await;
        scene.pass(Duration::from_secs(600));
        assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)));
        let counts = scene.remote.counts();
        assert_eq!((counts.stale_addresses, counts.doubted_addresses), (1, 0));
        scene.pass(GRACE);
        assert_eq!(scene.who("10.1.0.5/32"), None, "its grace began when its end was heard");
    }
}

#[tokio::test]
async fn what_was_deleted_on_purpose_goes_when_its_node_is_heard_of_at_a_later_revision() {
    for (case, goes) in [
        ("a later change of any node", true),
        ("an earlier one", false),
        ("nodes are heard of as it happens", true),
        ("they will be", false),
        ("nothing, until the grace is over", false),
    ] {
        let (mut scene, key, lease) = scene_with_late_nodes().await;
        scene.memory.delete(&key).await.unwrap();
        scene.until_without_nodes("it is heard", |s| s.has_lost(1)).await;
        let revision = scene.memory.header().await.unwrap().revision;
        scene.pass(Duration::from_secs(60));
        let now = scene.now;
        let hear = |scene: &mut Scene, heard| scene.remote.hear_nodes(Layer::State, heard, now);
        match case {
            "a later change of any node" => {
                scene.join("b", "10.0.0.2", "10.2.0.0/24", lease).await;
                scene.until("it is heard", |s| s.nodes.len() == 2).await;
            }
            "an earlier one" => hear(&mut scene, Heard { through: revision - 1, live: None }),
            "nodes are heard of as it happens" => hear(&mut scene, Heard { through: 0, live: Some(now) }),
            "they will be" => {
                let then = now + Duration::from_secs(60);
                hear(&mut scene, Heard { through: 0, live: Some(then) });
                assert_eq!(scene.remote.due(), Some(then));
            }
            _ => {}
        }
        assert_eq!(scene.who("10.1.0.5/32").is_none(), goes, "{case}");
        if case == "they will be" {
            scene.pass(Duration::from_secs(60));
            assert_eq!(scene.who("10.1.0.5/32"), None);
        }
        scene.pass(GRACE);
        assert_eq!(scene.who("10.1.0.5/32"), None);
        assert_eq!(scene.remote.counts().stale_addresses, 0);
    }
}

#[tokio::test]
async fn whether_an_owner_was_there_is_asked_of_the_store() {
    for (case, says, is_kept) in
        [("it is there", Some(0), false), ("it is not", None, true), ("it was gone meanwhile", Some(1), true)]
    {
        let (mut scene, key, _) = scene_with_late_nodes().await;
        assert!(!scene.remote.has_doubts());
        scene.memory.delete(&key).await.unwrap();
        scene.until_without_nodes("it is heard", |s| s.has_lost(1)).await;
        let revision = scene.memory.header().await.unwrap().revision;
        let owners = scene.remote.doubted_owners(Layer::State, 10);
        assert_eq!(owners, ["cilium/state/nodes/v1/c1/a".into()].into());
        assert!(scene.remote.doubted_owners(Layer::Cache, 10).is_empty());
        let found = owners.into_iter().map(|key| (key, says.map(|later: u64| revision + later))).collect();
        scene.remote.settle_owners(Layer::State, &found, revision - 1, scene.now);
        assert!(scene.remote.has_doubts(), "the answer is older than the deletion");
        scene.remote.settle_owners(Layer::State, &found, revision + 1, scene.now);
        assert!(!scene.remote.has_doubts());
        assert_eq!(scene.who("10.1.0.5/32").is_some(), is_kept, "{case}");
    }
}

#[tokio::test]
async fn what_went_while_the_agent_was_down_waits_for_the_list_of_nodes() {
    for dead in [false, true] {
        let (scene, key, lease) = scene_with_late_nodes().await;
        let text = serde_json::to_string(&scene.remote.record()).unwrap();
        if dead {
            scene.memory.revoke(lease).await.unwrap();
        } else {
            scene.memory.delete(&key).await.unwrap();
        }
        let mut after = Scene::of(scene.memory, |config| config);
        after.remote.restore(serde_json::from_str(&text).unwrap(), &after.world);
        after.resume();
        after.until_without_nodes("addresses are listed", |s| s.has_lost(1)).await;
        after.pass(Duration::from_secs(60));
        assert!(after.who("10.1.0.5/32").is_some());
        after.until("so are nodes", |s| !s.remote.has_doubts()).await;
        assert_eq!(after.who("10.1.0.5/32").is_some(), dead);
    }
}

#[tokio::test]
async fn whoever_never_returns_is_forgotten_after_the_grace_or_at_a_word() {
    for word in [false, true] {
        let mut scene = Scene::new();
        let lease = scene.lease().await;
        scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
        let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
        scene.put(&key, &value, Some(lease)).await;
        scene.until("all is known", |s| s.who("10.1.0.5/32").is_some() && s.nodes.len() == 1).await;
        scene.memory.revoke(lease).await.unwrap();
        scene.until("it is silent", |s| s.remote.counts().stale_nodes == 1 && s.has_lost(1)).await;
        scene.pass(Duration::from_secs(1));
        if word {
            let keys = scene.remote.forget(&NodeName::new("c1", "a")).unwrap();
            assert_eq!(keys.len(), 2);
            assert!(scene.remote.forget(&NodeName::new("c1", "own")).is_none(), "not this node");
        } else {
            scene.pass(GRACE - Duration::from_secs(2));
            assert!(scene.who("10.1.0.5/32").is_some());
            scene.pass(Duration::from_secs(2));
        }
        assert_eq!((scene.who("10.1.0.5/32"), scene.who("10.1.0.0/24"), scene.nodes.len()), (None, None, 0));
    }
}

#[tokio::test]
async fn a_wiped_store_takes_nothing_away_and_who_writes_again_is_believed() {
    let mut scene = Scene::new();
    let backup = scene.memory.backup();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    for ip in ["10.1.0.5", "10.1.0.6"] {
        let (key, value) = pair(ip, "10.0.0.1", 300);
        scene.put(&key, &value, Some(lease)).await;
    }
    let (outside, value) = pair("10.3.192.65", "10.3.9.10", 301);
    scene.put(&outside, &value, None).await;
    let (behind, value) = pair("10.3.192.66", "10.0.0.1", 301);
    scene.put(&behind, &value, None).await;
    scene.until("all is known", |s| s.remote.counts().addresses == 4 && s.nodes.len() == 1).await;

    scene.memory.restore(&backup).await.unwrap();
    scene.memory.interrupt();
    scene
        .until("it was noticed", |s| {
            let counts = s.remote.counts();
            (counts.stale_addresses, counts.stale_nodes) == (4, 1)
        })
        .await;
    for prefix in ["10.1.0.5/32", "10.1.0.6/32", "10.3.192.65/32", "10.3.192.66/32", "10.1.0.0/24"] {
        assert!(scene.who(prefix).is_some(), "{prefix}");
    }
    // An address is another's now, at a revision that is lower than the old one.
    let lease = scene.lease().await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 301);
    scene.put(&key, &value, Some(lease)).await;
    scene.until("it is believed", |s| s.who("10.1.0.5/32") == Some((301, false))).await;
    scene.now += Duration::from_secs(1);
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    scene.until("the node is back", |s| s.remote.counts().stale_nodes == 0).await;
    scene.pass(SETTLE);
    assert_eq!(scene.who("10.1.0.6/32"), None, "its owner is done without it");
    for prefix in ["10.3.192.65/32", "10.3.192.66/32"] {
        assert!(scene.who(prefix).is_some(), "no node answers for {prefix}");
    }
    scene.pass(GRACE);
    for prefix in ["10.3.192.65/32", "10.3.192.66/32"] {
        assert_eq!(scene.who(prefix), None);
    }
}

#[tokio::test]
async fn bad_entries_are_refused_by_their_keys_and_change_nothing_else() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
    scene.put(&key, &value, Some(lease)).await;
    scene.until("all is known", |s| s.who("10.1.0.5/32").is_some() && s.nodes.len() == 1).await;

    let json = |ip: &str, id: u32| pair(ip, "10.0.0.1", id).1;
    let everything = r#"{"IP":"0.0.0.0","Mask":"AAAAAA==","HostIP":"10.0.0.1","ID":300}"#.to_owned();
    let foreign = NodeEntry { cluster_id: 7, ..node("c", "10.0.0.3", "10.3.0.0/24") };
    let bad = [
        (key.clone(), "{".to_owned(), "can't be read"),
        ("cilium/state/ip/v1/default/10.1.0.7".into(), json("10.1.0.8", 300), "same address"),
        ("cilium/state/ip/v1/10.1.0.7".into(), json("10.1.0.7", 300), "address space"),
        ("cilium/state/ip/v1/default/10.1.0.9".into(), json("10.1.0.9", 0), "identity 0"),
        ("cilium/state/ip/v1/default/10.1.0.10".into(), json("10.1.0.10", 16_777_217), "one node alone"),
        ("cilium/state/ip/v1/default/0.0.0.0/0".into(), everything, "all addresses"),
        ("cilium/state/ip/v1/default/10.1.0.11".into(), "x".repeat(100_000), "bytes"),
        (
            "cilium/state/nodes/v1/c1/b".into(),
            node("b", "10.0.0.1", "10.2.0.0/24").to_json(),
            "c1/a` has the address",
        ),
        (
            "cilium/state/nodes/v1/c1/d".into(),
            node("d", "10.0.0.4", "10.1.0.0/25").to_json(),
            "c1/a` has the prefix",
        ),
        (
            "cilium/state/nodes/v1/c1/e".into(),
            node("e", "10.0.0.5", "10.0.0.0/8").to_json(),
            "has the prefix",
        ),
        (foreign.key(), foreign.to_json(), "cluster-id 1, this one says 7"),
        (
            "cilium/state/nodes/v1/c1/own".into(),
            node("own", "10.0.0.6", "10.6.0.0/24").to_json(),
            "this node's name",
        ),
    ];
    for (key, value, _) in &bad {
        scene.put(key, value, Some(lease)).await;
    }
    scene.until("all are refused", |s| s.remote.refused().iter().count() == bad.len()).await;
    let refused = scene.refused();
    for (key, _, says) in &bad {
        assert!(refused.lines().any(|line| line.starts_with(key) && line.contains(says)), "{key}: {refused}");
    }
    assert_eq!(scene.remote.refused().total(), bad.len() as u64);
    assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)), "what was good goes on");
    assert_eq!(scene.who("10.1.0.0/24"), Some((2, true)));
    assert_eq!(scene.who("10.1.0.0/25"), None);
    assert_eq!(scene.remote.counts().addresses, 1);
    let b = scene.nodes.get(&NodeName::new("c1", "b")).unwrap();
    assert!(b.entry.addresses.is_empty() && b.entry.ipv4.is_some(), "without what is another's");

    // When the one goes that had it first, the other has it.
    let lease = scene.lease().await;
    scene
        .put("cilium/state/nodes/v1/c1/a", &node("a", "10.0.0.7", "10.7.0.0/24").to_json(), Some(lease))
        .await;
    scene.put(&key, &value, Some(lease)).await;
    scene.until("a has moved", |s| s.who("10.7.0.0/24").is_some()).await;
    scene.memory.delete("cilium/state/nodes/v1/c1/e").await.unwrap();
    scene
        .put("cilium/state/nodes/v1/c1/d", &node("d", "10.0.0.4", "10.1.0.0/25").to_json(), Some(lease))
        .await;
    scene.until("d has its prefix", |s| s.who("10.1.0.0/25") == Some((2, true))).await;
    scene.until("its address is accepted again", |s| !s.refused().contains("10.1.0.5:")).await;
}

#[tokio::test]
async fn own_keys_are_no_claims_and_what_others_do_to_them_is_told() {
    let mut scene = Scene::new();
    let (key, _) = pair("10.9.0.5", "10.0.0.9", 300);
    scene.world.own.insert(key.clone());
    scene.put(&key, "own", None).await;
    scene.put("cilium/state/ip/v1/default/10.1.0.5", &pair("10.1.0.5", "10.0.0.1", 300).1, None).await;
    scene.until("the other is known", |s| s.who("10.1.0.5/32").is_some()).await;
    assert_eq!(scene.who("10.9.0.5/32"), None);
    scene.put(&key, "another", None).await;
    scene.until("it is told", |s| s.altered.len() == 1).await;
    scene.memory.delete(&key).await.unwrap();
    scene.until("that too", |s| s.altered.len() == 2).await;
    assert!(scene.altered.iter().all(|altered| *altered == key));
    assert_eq!(scene.refused(), "");
}

#[tokio::test]
async fn what_was_known_before_a_restart_counts_until_the_store_has_spoken() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
    scene.put(&key, &value, Some(lease)).await;
    scene.until("all is known", |s| s.who("10.1.0.5/32").is_some() && s.nodes.len() == 1).await;
    let record = scene.remote.record();
    let text = serde_json::to_string(&record).unwrap();

    let mut after = Scene::new();
    after.remote.restore(serde_json::from_str(&text).unwrap(), &after.world);
    assert_eq!(after.who("10.1.0.5/32"), Some((300, false)));
    assert_eq!(after.who("10.1.0.0/24"), Some((2, true)));
    assert_eq!(after.remote.address_keys(Layer::State), vec![(key.as_str().into(), true)]);
    assert_eq!(after.remote.node_keys(Layer::State), vec![("cilium/state/nodes/v1/c1/a".into(), true)]);
}

/// The labels of the identity that an address of a node has, as text.
fn labels_of(scene: &Scene, prefix: &str) -> String {
    let (number, pending) = scene.who(prefix).unwrap();
    assert!(!pending);
    scene.identities.get(&NumericIdentity(number)).unwrap().to_string()
}

async fn put_node(scene: &Scene, name: &str, ip: &str, labels: &[(&str, &str)], lease: LeaseId) {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let entry =
        NodeEntry { labels, ..node(name, ip, &format!("10.{}.0.0/24", ip.rsplit('.').next().unwrap())) };
    scene.put(&entry.key(), &entry.to_json(), Some(lease)).await;
}

#[tokio::test]
async fn nodes_with_other_labels_are_told_apart_and_nodes_that_are_alike_are_not() {
    let mut scene = Scene::telling(true, false);
    let lease = scene.lease().await;
    put_node(&scene, "a", "10.0.0.1", &[("zone", "east")], lease).await;
    put_node(&scene, "b", "10.0.0.2", &[("zone", "east")], lease).await;
    put_node(&scene, "c", "10.0.0.3", &[("zone", "west"), ("bad key", "\u{1}")], lease).await;
    put_node(&scene, "d", "10.0.0.4", &[], lease).await;
    // What an agent of long ago says of the address of a node does not hide which it is.
    let old = IpIdentityPair::new("10.0.0.1".parse().unwrap(), 1, None);
    scene.put(&old.key("default"), &old.to_json(), None).await;
    scene.until("all are there", |s| s.remote.counts().nodes == 4 && s.remote.counts().addresses == 1).await;
    let who = |scene: &Scene, ip: &str| scene.who(&format!("{ip}/32")).unwrap().0;
    let east = who(&scene, "10.0.0.1");
    assert!(NumericIdentity::REMOTE_NODE_RANGE.contains(&east));
    assert_eq!((who(&scene, "10.0.0.2"), who(&scene, "10.0.0.4")), (east, 6));
    assert_ne!(who(&scene, "10.0.0.3"), east);
    assert_eq!(labels_of(&scene, "10.0.0.1/32"), "reserved:remote-node,node:zone=east");
    assert_eq!(scene.remote.node_identity("10.0.0.1".parse().unwrap()).0, east);

    // An identity that no address has any more is known until that was carried on.
    assert!(scene.remote.has_new_identities());
    scene.remote.end_retired(scene.now);
    assert!(!scene.remote.has_new_identities());
    put_node(&scene, "a", "10.0.0.1", &[("zone", "west")], lease).await;
    scene.until("it has moved", |s| who(s, "10.0.0.1") == who(s, "10.0.0.3")).await;
    put_node(&scene, "b", "10.0.0.2", &[], lease).await;
    scene.until("it is like any", |s| who(s, "10.0.0.2") == 6).await;
    assert!(scene.identities.get(&NumericIdentity(east)).is_some());
    assert!(scene.remote.has_new_identities());
    scene.remote.end_retired(scene.now);
    assert!(scene.identities.get(&NumericIdentity(east)).is_none());
    let west = who(&scene, "10.0.0.1");
    for name in ["a", "c"] {
        scene.memory.delete(&node(name, "10.0.0.1", "10.1.0.0/24").key()).await.unwrap();
    }
    scene.until("they are silent", |s| s.remote.counts().stale_nodes == 2).await;
    assert_eq!(who(&scene, "10.0.0.1"), west, "who is silent counts on");
    scene.remote.forget(&NodeName::new("c1", "a"));
    scene.remote.forget(&NodeName::new("c1", "c"));
    scene.remote.end_retired(scene.now);
    assert!(scene.identities.get(&NumericIdentity(west)).is_none());
}

#[tokio::test]
async fn where_prefixes_mean_nodes_each_address_has_those_that_cover_it() {
    let mut scene = Scene::telling(false, true);
    let lease = scene.lease().await;
    put_node(&scene, "a", "192.0.2.1", &[("zone", "east")], lease).await;
    scene.until("it is there", |s| s.who("192.0.2.1/32").is_some()).await;
    let labels = labels_of(&scene, "192.0.2.1/32");
    assert!(labels.contains("cidr:192.0.2.0/24") && labels.contains("cidr:192.0.2.1/32"), "{labels}");
    assert!(labels.contains("reserved:remote-node") && !labels.contains("world"), "{labels}");
    assert!(!labels.contains("zone"), "{labels}");
}

#[tokio::test]
async fn named_ports_of_others_belong_to_their_identities() {
    let mut scene = Scene::new();
    let port = |name: &str, port| NamedPort { name: name.into(), port, protocol: "TCP".into() };
    let pair = |ip: &str, id, ports: &[NamedPort]| IpIdentityPair {
        named_ports: ports.to_vec(),
        ..IpIdentityPair::new(ip.parse().unwrap(), id, None)
    };
    for pair in [
        pair("10.1.0.1", 300, &[port("http", 8080)]),
        pair("10.1.0.2", 300, &[port("http", 9090), port("dns", 53)]),
        pair("10.1.0.3", 301, &[]),
    ] {
        scene.put(&pair.key("default"), &pair.to_json(), None).await;
    }
    scene.until("all are there", |s| s.remote.counts().addresses == 3).await;
    let of = |scene: &Scene, id| -> Vec<(String, u16)> {
        let ports = scene.remote.ports_of(NumericIdentity(id));
        ports.map(|port| (port.name.clone(), port.port)).collect()
    };
    let all = [("dns".to_owned(), 53), ("http".to_owned(), 8080), ("http".to_owned(), 9090)];
    assert_eq!((of(&scene, 300), of(&scene, 301)), (all.to_vec(), vec![]));
    assert_eq!(scene.remote.take_new_ports(), [NumericIdentity(300)].into());
    let record = serde_json::to_string(&scene.remote.record()).unwrap();

    scene.memory.delete(&pair("10.1.0.2", 300, &[]).key("default")).await.unwrap();
    scene.until("one is gone", |s| s.remote.counts().addresses == 2).await;
    assert_eq!(of(&scene, 300), [("http".to_owned(), 8080)]);
    assert_eq!(scene.remote.take_new_ports(), [NumericIdentity(300)].into());

    // They outlive a restart.
    let mut after = Scene::new();
    after.remote.restore(serde_json::from_str(&record).unwrap(), &after.world);
    assert_eq!(of(&after, 300), all);
}

#[tokio::test]
async fn keys_that_say_different_things_of_one_address_are_named_and_counted_once() {
    let mut scene = Scene::new();
    let (first, value) = pair("10.1.0.5", "10.0.0.1", 300);
    let second = first.replace("/default/", "/c1/");
    let says = |identity, host| pair("10.1.0.5", host, identity).1;
    scene.put(&first, &value, None).await;
    // The same twice is no contest.
    scene.put(&second, &value, None).await;
    scene.until("both are known", |s| s.remote.counts().addresses == 2).await;
    assert_eq!(scene.refused(), "");
    let mut total = 0;
    for (identity, host) in [(301, "10.0.0.1"), (300, "10.0.0.2")] {
        scene.put(&second, &says(identity, host), None).await;
        scene
            .until("it is said", |s| s.refused().contains(&format!("`{second}` says identity {identity}")))
            .await;
        total += 1;
        let refused = scene.refused();
        assert!(
            refused.starts_with(&first) && refused.contains("it says identity 300 behind 10.0.0.1"),
            "{refused}"
        );
        assert_eq!(scene.who("10.1.0.5/32"), Some((identity, false)), "the last word counts");
        assert_eq!((scene.remote.refused().count(), scene.remote.refused().total()), (1, total));
    }
    // Whoever writes last counts: now it is the other that is named.
    scene.put(&first, &value, None).await;
    scene.until("it is", |s| s.refused().starts_with(&second)).await;
    assert_eq!((scene.remote.refused().count(), scene.remote.refused().total()), (1, total + 1));
    scene.memory.delete(&second).await.unwrap();
    scene.until("there is none", |s| s.refused().is_empty()).await;
    assert_eq!(scene.who("10.1.0.5/32"), Some((300, false)));

    // What nobody stands behind any more gives way without a word.
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    scene.put(&first, &value, Some(lease)).await;
    scene.until("all is known", |s| s.nodes.len() == 1 && s.remote.address_keys(Layer::State)[0].1).await;
    scene.memory.revoke(lease).await.unwrap();
    scene.until("the node is silent", |s| s.remote.counts().stale_nodes == 1 && s.has_lost(1)).await;
    scene.pass(Duration::from_secs(1));
    scene.put(&second, &says(301, "10.0.0.2"), None).await;
    scene.until("another has it", |s| s.who("10.1.0.5/32") == Some((301, false))).await;
    assert_eq!(scene.refused(), "");
}

#[tokio::test]
async fn nodes_that_contest_one_another_are_counted_once_however_often_that_is_looked_at() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    scene.join("b", "10.0.0.1", "10.2.0.0/24", lease).await;
    scene.until("it is said", |s| s.remote.refused().count() == 1).await;
    for n in 3..6 {
        let name = format!("other{n}");
        scene.join(&name, &format!("10.0.0.{n}"), &format!("10.{n}.0.0/24"), lease).await;
        scene.until("it is there", |s| s.nodes.len() == 3).await;
        scene.remote.forget(&NodeName::new("c1", &name)).unwrap();
        scene.join("b", "10.0.0.1", "10.2.0.0/24", lease).await;
        scene.join("c", "10.0.0.9", &format!("10.{}.0.0/24", n + 10), lease).await;
        scene.until("b was told again", |s| s.nodes.get(&NodeName::new("c1", "c")).is_some()).await;
        scene.remote.forget(&NodeName::new("c1", "c")).unwrap();
    }
    let of_b = scene.refused().lines().filter(|line| line.contains("c1/b")).count();
    assert_eq!((of_b, scene.remote.refused().count()), (1, 1), "{}", scene.refused());
    assert_eq!(scene.remote.refused().total(), 1 + 3, "b, and c with this node's address three times");
}

/// The node behind which an address is reached.
fn tunnel(scene: &Scene, prefix: &str) -> Option<String> {
    let snapshot = scene.ipcache.snapshot();
    snapshot.get(&prefix.parse().unwrap()).unwrap().mapping.tunnel.map(|ip| ip.to_string())
}

#[tokio::test]
async fn a_tunnel_leads_to_nodes_alone_and_to_any_host_until_they_are_known() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    let (key, value) = pair("10.3.192.65", "10.3.9.10", 301);
    scene.put(&key, &value, None).await;
    let (key, value) = pair("10.1.0.5", "10.0.0.1", 300);
    scene.put(&key, &value, Some(lease)).await;
    scene.until_without_nodes("addresses are known", |s| s.remote.counts().addresses == 2).await;
    let both = |scene: &Scene| ["10.3.192.65/32", "10.1.0.5/32"].map(|prefix| tunnel(scene, prefix));
    let [outside, inside] = ["10.3.9.10", "10.0.0.1"].map(|host| Some(host.to_owned()));
    assert_eq!(both(&scene), [outside.clone(), inside.clone()], "each may be a node");
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    scene.until("nodes are listed", |s| s.nodes.len() == 1).await;
    assert_eq!(both(&scene), [None, inside.clone()]);

    // Its host becomes a node, goes and comes.
    scene.join("hyp", "10.3.9.10", "10.77.0.0/24", lease).await;
    scene.until("it is a node", |s| s.nodes.len() == 2).await;
    assert_eq!(both(&scene), [outside.clone(), inside.clone()]);
    scene.join("hyp", "10.3.9.11", "10.77.0.0/24", lease).await;
    scene.until("it has another address", |s| tunnel(s, "10.3.192.65/32").is_none()).await;
    scene.join("hyp", "10.3.9.10", "10.77.0.0/24", lease).await;
    scene.until("it has it again", |s| both(s) == [outside.clone(), inside.clone()]).await;
    scene.memory.revoke(lease).await.unwrap();
    scene.until("both are silent", |s| s.remote.counts().stale_nodes == 2 && s.has_lost(1)).await;
    scene.pass(Duration::from_secs(1));
    assert_eq!(both(&scene), [outside, inside.clone()], "who is silent may still be there");
    scene.remote.forget(&NodeName::new("c1", "hyp")).unwrap();
    assert_eq!(tunnel(&scene, "10.1.0.5/32"), inside);
    assert!(scene.who("10.3.192.65/32").is_none(), "what lived behind it was forgotten with it");
}

#[tokio::test]
async fn what_was_known_of_hosts_before_a_restart_holds_until_nodes_are_listed() {
    let mut scene = Scene::new();
    let lease = scene.lease().await;
    scene.join("a", "10.0.0.1", "10.1.0.0/24", lease).await;
    for (ip, host) in [("10.3.192.65", "10.3.9.10"), ("10.1.0.5", "10.0.0.1")] {
        let (key, value) = pair(ip, host, 300);
        scene.put(&key, &value, None).await;
    }
    scene.until("all is known", |s| s.remote.counts().addresses == 2 && s.nodes.len() == 1).await;
    let text = serde_json::to_string(&scene.remote.record()).unwrap();
    let mut record: RemoteRecord = serde_json::from_str(&text).unwrap();
    // Of a layer of which no node was known it is not known which hosts are none.
    let mut copied = record.addresses["cilium/state/ip/v1/default/10.3.192.65"].clone();
    (copied.prefix, copied.host) = ("10.22.0.5/32".parse().unwrap(), Some([10, 22, 0, 9].into()));
    record.addresses.insert("cilium/cache/ip/v1/c2/10.22.0.5".into(), copied);
    let mut after = Scene::of(scene.memory, |config| config);
    after.remote.restore(record, &after.world);
    assert_eq!(tunnel(&after, "10.22.0.5/32").as_deref(), Some("10.22.0.9"));
    let all = |scene: &Scene| ["10.3.192.65/32", "10.1.0.5/32"].map(|prefix| tunnel(scene, prefix).is_some());
    assert_eq!(all(&after), [false, true]);
    after.resume();
    // One more is told, and behind a host of which nothing is known yet.
    let (key, value) = pair("10.1.0.6", "10.0.0.2", 300);
    after.put(&key, &value, None).await;
    after.until_without_nodes("it is told", |s| s.remote.counts().addresses == 4).await;
    assert_eq!((all(&after), tunnel(&after, "10.1.0.6/32").is_some()), ([false, true], true));
    after.put("cilium/state/nodes/v1/c1/junk", "{", None).await;
    after.until("nodes are listed", |s| !s.refused().is_empty()).await;
    assert_eq!((all(&after), tunnel(&after, "10.1.0.6/32")), ([false, true], None));
}
