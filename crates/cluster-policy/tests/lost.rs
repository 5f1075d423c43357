//! What a store loses that is wiped or restored from a backup, and what ends that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::{sync::Arc, time::Duration};

use serde_json::json;
use villus_cluster_policy::{
    Change, Kept, Mirror, NodeReport, ObjectName, Policies, Realised, Version, Wanted,
};
use villus_kvstore::{Follow, Header, Memory, Past, Store, Witness};
use villus_policy::{ParsedFile, parse};
use villus_table::Backoff;

fn policy(name: &str, port: u16) -> ParsedFile {
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: web}}}}\n  ingress:\n  - toPorts:\n    - ports: [{{port: '{port}', protocol: TCP}}]\n"
    );
    parse("test.yaml", &text).unwrap()
}

fn name(name: &str) -> ObjectName {
    ObjectName::of_suffix(&format!("CiliumNetworkPolicy/shop/{name}")).unwrap()
}

/// A store, and who writes policies there.
struct Place {
    memory: Arc<Memory>,
    store: Arc<dyn Store>,
    policies: Policies,
}

impl Place {
    fn new() -> Self {
        let memory = Arc::new(Memory::new().unwrap());
        let store: Arc<dyn Store> = memory.clone();
        let policies = Policies::new(store.clone(), "c1");
        Self { memory, store, policies }
    }

    async fn apply(&self, files: &[ParsedFile]) -> Vec<u64> {
        let changes = self.policies.plan(files, "alice@host").await.unwrap();
        self.write(changes).await
    }

    async fn delete(&self, text: &str) {
        let name = self.policies.find(text).await.unwrap();
        let change = self.policies.plan_delete(&name, "alice@host").await.unwrap();
        self.write(change.into_iter().collect()).await;
    }

    async fn write(&self, changes: Vec<Change>) -> Vec<u64> {
        self.policies.write(&changes).await.unwrap();
        changes.iter().map(|change| change.new.version).collect()
    }

    /// Writes a version by hand: `port` is its content, without one it deletes.
    async fn put(&self, of: &str, version: u64, time: &str, port: Option<u16>) {
        let object = port.map(|port| policy(of, port).policies[0].object.to_json());
        let deleted = object.is_none();
        let version = Version {
            version,
            author: "bob".into(),
            time: time.into(),
            note: String::new(),
            object,
            deleted,
        };
        let key = Policies::prefix("c1") + &name(of).suffix();
        self.store.update(&key, version.to_json().into(), None).await.unwrap();
    }
}

/// What an agent has, in memory and on disk.
struct Node {
    mirror: Mirror,
    follow: Follow,
    kept: Vec<Kept>,
    seen: Option<(Header, Option<Witness>)>,
}

/// What a batch did: put, gone, stale.
type Did = (Vec<String>, Vec<String>, Vec<String>);

impl Node {
    fn new(place: &Place) -> Self {
        Self::with(place, Past::default())
    }

    fn with(place: &Place, past: Past) -> Self {
        let backoff = Backoff::try_new(Duration::from_millis(1), Duration::from_millis(20), 0.5).unwrap();
        let follow = Follow::resume(place.store.clone(), &Policies::prefix("c1"), backoff, past);
        Self { mirror: Mirror::new("c1"), follow, kept: Vec::new(), seen: None }
    }

    /// The same agent after a restart.
    fn again(self, place: &Place) -> Self {
        let (seen, witness) = self.seen.unzip();
        let past = Past { keys: Vec::new(), seen, witness: witness.flatten() };
        let mut node = Self::with(place, past);
        for kept in &self.kept {
            let kept = serde_json::from_str(&serde_json::to_string(kept).unwrap()).unwrap();
            node.mirror.restore(&kept).unwrap();
        }
        node
    }

    async fn step(&mut self) -> Did {
        let batch = tokio::time::timeout(Duration::from_secs(60), self.follow.next()).await.unwrap().unwrap();
        let changes = self.mirror.apply(&batch);
        let names: Vec<ObjectName> = self.mirror.versions().map(|(name, _)| name.clone()).collect();
        self.kept = names.iter().filter_map(|name| self.mirror.kept(name)).collect();
        self.seen = Some((self.follow.seen().unwrap(), self.follow.witness().cloned()));
        (
            changes
                .put
                .iter()
                .map(|(name, version, _)| format!("{} {}", name.name, version.version))
                .collect(),
            changes.gone.iter().map(|(name, _)| name.name.clone()).collect(),
            changes.stale.iter().map(|name| name.name.clone()).collect(),
        )
    }

    fn versions(&self) -> Vec<(&str, u64)> {
        self.mirror.versions().map(|(name, version)| (name.name.as_str(), version)).collect()
    }

    /// Those that are stale, and what the store has instead.
    fn stale(&self) -> Vec<(&str, u64, Option<u64>)> {
        let all = self.mirror.stale();
        all.map(|(name, version, stale)| (name.name.as_str(), version.version, stale.stored)).collect()
    }

    /// Tells the store what it has.
    async fn reports(&self, place: &Place) {
        let mut report = NodeReport { revision: self.mirror.revision(), ..NodeReport::default() };
        report.tell_stale(&self.mirror);
        let key = NodeReport::key("c1", "n1");
        place.store.update(&key, report.to_json().into(), None).await.unwrap();
    }
}

fn did(put: &[&str], gone: &[&str], stale: &[&str]) -> Did {
    let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    (all(put), all(gone), all(stale))
}

const EARLY: &str = "2026-01-01T10:00:00Z";
const LATE: &str = "2026-01-01T12:00:00Z";

#[tokio::test]
async fn what_a_wiped_store_has_lost_stays_also_over_restarts_and_what_is_deleted_goes_at_once() {
    let place = Place::new();
    place.apply(&[policy("web", 80), policy("db", 81), policy("old", 82)]).await;
    let mut node = Node::new(&place);
    node.step().await;
    place.delete("old").await;
    assert_eq!(node.step().await, did(&[], &["old"], &[]));

    place.memory.wipe().await.unwrap();
    assert_eq!(node.step().await, did(&[], &[], &["db", "web"]));
    assert_eq!(node.stale(), [("db", 1, None), ("web", 1, None)]);
    // A restart, and one whose store was wiped while it was away.
    let mut node = node.again(&place);
    assert_eq!(node.stale(), [("db", 1, None), ("web", 1, None)]);
    assert_eq!(node.step().await, did(&[], &[], &[]));
    place.put("other", 1, LATE, Some(1)).await;
    node.step().await;
    place.memory.wipe().await.unwrap();
    let mut node = node.again(&place);
    node.step().await;
    assert_eq!(node.versions(), [("db", 1), ("other", 1), ("web", 1)]);
    assert_eq!(node.stale().len(), 3);
    // One that has nothing follows the store.
    let mut fresh = Node::new(&place);
    assert_eq!(fresh.step().await, did(&[], &[], &[]));
    assert_eq!(fresh.versions(), []);

    // What is applied in the store as it is now is deleted from it as always, by a compaction too.
    place.put("web", 1, LATE, Some(80)).await;
    assert_eq!(node.step().await, did(&["web 1"], &[], &[]));
    place.memory.go_down();
    place.memory.heal();
    place.store.delete(&(Policies::prefix("c1") + &name("web").suffix())).await.unwrap();
    place.memory.compact().await.unwrap();
    assert_eq!(node.step().await, did(&[], &["web"], &[]));
    assert_eq!(node.stale(), [("db", 1, None), ("other", 1, None)]);
}

#[tokio::test]
async fn a_backup_brings_no_older_version_back_silently() {
    let place = Place::new();
    place.put("web", 3, EARLY, Some(80)).await;
    place.put("same", 3, EARLY, Some(80)).await;
    let backup = place.memory.backup();
    let mut node = Node::new(&place);
    node.step().await;
    for (of, port) in [("web", 81), ("same", 80), ("young", 1)] {
        place.put(of, 5, LATE, Some(port)).await;
        node.step().await;
    }
    place.memory.restore(&backup).await.unwrap();
    // The same content is the same, whatever its number.
    assert_eq!(node.step().await, did(&["same 3"], &[], &["web", "young"]));
    assert_eq!(node.stale(), [("web", 5, Some(3)), ("young", 5, None)]);
    let mut node = node.again(&place);
    assert_eq!(node.step().await, did(&["same 3"], &[], &["web"]));
    assert_eq!(node.stale(), [("web", 5, Some(3)), ("young", 5, None)]);
    // A later list says the older version once more.
    place.memory.interrupt();
    place.put("same", 4, LATE, Some(80)).await;
    node.step().await;
    assert_eq!(node.versions(), [("same", 4), ("web", 5), ("young", 5)]);
}

#[tokio::test]
async fn a_deletion_of_the_backup_deletes_nothing_that_came_after_it() {
    let place = Place::new();
    place.put("web", 3, EARLY, None).await;
    let backup = place.memory.backup();
    place.put("web", 4, LATE, Some(80)).await;
    let mut node = Node::new(&place);
    node.step().await;
    place.memory.restore(&backup).await.unwrap();
    assert_eq!(node.step().await, did(&[], &[], &["web"]));
    assert_eq!(node.stale(), [("web", 4, Some(3))]);
}

#[tokio::test]
async fn what_is_applied_after_the_loss_counts_though_its_numbers_begin_again() {
    // Written before the agent has seen that the store was wiped, and after.
    for unseen in [true, false] {
        let place = Place::new();
        place.put("web", 7, EARLY, Some(80)).await;
        place.put("db", 7, EARLY, Some(80)).await;
        let mut node = Node::new(&place);
        node.step().await;
        if unseen {
            place.memory.go_down();
        }
        place.memory.wipe().await.unwrap();
        if !unseen {
            node.step().await;
        }
        place.memory.heal();
        assert_eq!(place.apply(&[policy("web", 81)]).await, [1]);
        while node.versions() != [("db", 7), ("web", 1)] {
            node.step().await;
        }
        assert_eq!(node.stale(), [("db", 7, None)], "{unseen}");
    }
}

#[tokio::test]
async fn who_watches_takes_what_a_wrong_clock_wrote_and_who_lists_keeps_what_is_later_by_all_clocks() {
    let place = Place::new();
    // The clock of its first author was ahead.
    place.put("web", 1, "2026-01-01T13:00:00Z", Some(80)).await;
    let backup = place.memory.backup();
    let mut node = Node::new(&place);
    node.step().await;
    place.put("web", 2, LATE, Some(81)).await;
    node.step().await;
    place.memory.restore(&backup).await.unwrap();
    assert_eq!(node.step().await, did(&[], &[], &["web"]));
    let mut node = node.again(&place);
    assert_eq!(node.step().await, did(&[], &[], &["web"]), "it remembers that time");
    place.put("web", 1, EARLY, Some(82)).await;
    assert_eq!(node.step().await, did(&["web 1"], &[], &[]));
    assert_eq!(node.stale(), []);
}

#[tokio::test]
async fn whoever_applies_or_deletes_ends_it_by_what_nodes_say() {
    let place = Place::new();
    place.apply(&[policy("web", 80), policy("db", 80), policy("gone", 80)]).await;
    let backup = place.memory.backup();
    for port in [81, 82] {
        place.apply(&[policy("web", port), policy("db", port)]).await;
    }
    let mut node = Node::new(&place);
    node.step().await;
    place.memory.restore(&backup).await.unwrap();
    assert_eq!(node.step().await, did(&["gone 1"], &[], &["db", "web"]));
    node.reports(&place).await;
    let standing = place.policies.history(&name("web")).await.unwrap().pop().unwrap();
    let realised = Realised::of(&place.store, "c1", &standing).await.unwrap();
    assert_eq!(realised.stale, [("n1".to_owned(), 3)].into());
    assert!(realised.missing["n1"].contains("version 3, which the store has lost"), "{realised:?}");

    // What the store has is meant, as it is: whoever missed the command finds a higher number.
    assert_eq!(place.apply(&[policy("web", 80), policy("gone", 80)]).await, [4]);
    let mut late = node.again(&place);
    assert_eq!(late.step().await, did(&["gone 1", "web 4"], &[], &["db"]));
    // A deletion too: its trace lies in the store until the object is applied again.
    place.delete("db").await;
    let mut later = late.again(&place);
    assert_eq!(later.step().await, did(&["gone 1", "web 4"], &["db"], &[]));
    let names = |standing: Vec<villus_cluster_policy::Standing>| {
        standing.into_iter().map(|standing| standing.name.name).collect::<Vec<_>>()
    };
    assert_eq!(names(place.policies.current().await.unwrap().0), ["gone", "web"]);
    later.reports(&place).await;
    assert_eq!(place.policies.plan_delete(&name("db"), "bob").await.unwrap(), None);
    assert_eq!(place.apply(&[policy("db", 80)]).await, [5]);
    assert_eq!(later.step().await, did(&["db 5"], &[], &[]));
    // Without any loss nothing is left of what is deleted.
    place.delete("db").await;
    assert_eq!(later.step().await, did(&[], &["db"], &[]));
    let key = Policies::prefix("c1") + &name("db").suffix();
    assert_eq!(place.store.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn what_the_store_knows_nothing_of_is_deleted_and_written_back_by_what_nodes_have() {
    let place = Place::new();
    for port in [80, 81] {
        place.apply(&[policy("web", port), policy("db", port)]).await;
    }
    let mut node = Node::new(&place);
    node.step().await;
    place.memory.wipe().await.unwrap();
    node.step().await;
    assert!(place.policies.find("web").await.is_err(), "nobody has said anything");
    node.reports(&place).await;
    place.delete("web").await;
    assert_eq!(node.step().await, did(&[], &["web"], &[]));

    let wanted = |version| Wanted {
        name: name("db"),
        object: Some(policy("db", 81).policies[0].object.to_json()),
        note: "restored".into(),
        version: Some(version),
    };
    let error = place.policies.plan_restore(vec![wanted(1)], "bob").await.unwrap_err();
    assert!(error.to_string().contains("n1 has version 2"), "{error}");
    let changes = place.policies.plan_restore(vec![wanted(2)], "bob").await.unwrap();
    assert_eq!(place.write(changes).await, [2]);
    assert_eq!(node.step().await, did(&["db 2"], &[], &[]));
    assert_eq!(node.stale(), []);
    assert_eq!(place.policies.plan_restore(vec![wanted(2)], "bob").await.unwrap(), []);
}

#[tokio::test]
async fn what_is_said_again_while_nodes_lag_is_written_once() {
    let place = Place::new();
    let files: Vec<ParsedFile> = (0..40).map(|n| policy(&format!("p{n}"), 80)).collect();
    place.apply(&files).await;
    let mut node = Node::new(&place);
    node.step().await;
    place.memory.wipe().await.unwrap();
    node.step().await;
    // It says this once, and dies; of some it does not say the names.
    node.reports(&place).await;
    assert_eq!(place.apply(&files[..39]).await, [2; 39]);
    assert_eq!(place.apply(&files[..39]).await, [0; 0]);
    place.delete("CiliumNetworkPolicy/shop/p39").await;
    assert_eq!(place.policies.plan_delete(&name("p39"), "bob").await.unwrap(), None);
    // Another content is another version as always.
    assert_eq!(place.apply(&[policy("p0", 81)]).await, [3]);
}

#[tokio::test]
async fn many_lost_objects_are_told_in_bounded_size_and_each_can_be_named_all_the_same() {
    let place = Place::new();
    let files: Vec<ParsedFile> = (0..200).map(|n| policy(&format!("p{n}"), 80)).collect();
    place.apply(&files).await;
    let mut node = Node::new(&place);
    node.step().await;
    place.memory.wipe().await.unwrap();
    node.step().await;
    let mut report = NodeReport::default();
    report.tell_stale(&node.mirror);
    assert_eq!((report.stale.len(), report.more_stale), (32, 1));
    node.reports(&place).await;
    assert!(place.policies.find("p99").await.is_err());
    place.delete("CiliumNetworkPolicy/shop/p99").await;
    assert_eq!(node.step().await, did(&[], &["p99"], &[]));
    // What is not named may be stale all the same: it gets a version that counts with all.
    assert_eq!(place.apply(&[policy("p98", 80)]).await, [2]);
}

#[test]
fn what_is_kept_is_what_versions_before_read() {
    let mut mirror = Mirror::new("c1");
    let object = policy("web", 80).policies[0].object.to_json();
    let text = json!({
        "name": {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "web"},
        "version": {"version": 3, "author": "alice", "time": LATE, "object": object},
    });
    mirror.restore(&serde_json::from_value(text.clone()).unwrap()).unwrap();
    let kept = serde_json::to_value(mirror.kept(&name("web")).unwrap()).unwrap();
    assert_eq!((&kept["name"], &kept["version"]), (&text["name"], &text["version"]));
}
