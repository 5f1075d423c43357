//! Versions in a store, what nodes take from it, and what they say.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use villus_cluster_policy::{
    ClusterPolicyError, KEPT, Kept, Mirror, NodeReport, ORIGIN, ObjectName, Policies, Realised, Version,
};
use villus_kvstore::{Follow, Memory, Store};
use villus_policy::{ParsedFile, parse};
use villus_table::Backoff;

const CURRENT: &str = "villus/policies/v1/c1/current/CiliumNetworkPolicy/shop/";

fn policy(name: &str, port: u16) -> ParsedFile {
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: web}}}}\n  ingress:\n  - toPorts:\n    - ports: [{{port: '{port}', protocol: TCP}}]\n"
    );
    parse("test.yaml", &text).unwrap()
}

fn name_of(name: &str) -> ObjectName {
    ObjectName::of_suffix(&format!("CiliumNetworkPolicy/shop/{name}")).unwrap()
}

fn store() -> Arc<dyn Store> {
    Arc::new(Memory::new().unwrap())
}

async fn apply(policies: &Policies, files: &[ParsedFile]) -> usize {
    let changes = policies.plan(files, "alice@host").await.unwrap();
    policies.write(&changes).await.unwrap()
}

async fn versions(policies: &Policies, name: &ObjectName) -> Vec<(u64, String)> {
    let history = policies.history(name).await.unwrap();
    history.into_iter().map(|standing| (standing.version.version, standing.version.note)).collect()
}

#[tokio::test]
async fn what_is_applied_has_a_version_and_what_is_the_same_has_none() {
    let store = store();
    let policies = Policies::new(Arc::clone(&store), "c1");
    assert_eq!(apply(&policies, &[policy("web", 80), policy("db", 5432)]).await, 2);
    assert_eq!(apply(&policies, &[policy("web", 80), policy("db", 5433)]).await, 1);
    let (current, damaged) = policies.current().await.unwrap();
    let shown: Vec<String> =
        current.iter().map(|standing| format!("{} {}", standing.name, standing.version.version)).collect();
    assert_eq!(shown, ["CiliumNetworkPolicy shop/db 2", "CiliumNetworkPolicy shop/web 1"]);
    assert!(damaged.is_empty());
    let db = policies.find("db").await.unwrap();
    assert_eq!(current[0].version.author, "alice@host");
    assert_eq!(versions(&policies, &db).await.len(), 2);
    assert_eq!(
        policies.find("cache").await,
        Err(ClusterPolicyError::Unknown { what: "policy cache".into() })
    );
    // Another cluster's are not ours.
    assert!(Policies::new(store, "c2").current().await.unwrap().0.is_empty());
}

#[tokio::test]
async fn the_way_back_is_a_version_of_its_own() {
    let policies = Policies::new(store(), "c1");
    for port in [80, 81, 82] {
        apply(&policies, &[policy("web", port)]).await;
    }
    let web = policies.find("shop/web").await.unwrap();
    let back = policies.plan_rollback(&web, None, "bob").await.unwrap().unwrap();
    policies.write(&[back]).await.unwrap();
    let port = |standing: &villus_cluster_policy::Standing| {
        standing.version.object.as_ref().unwrap()["spec"]["ingress"][0]["toPorts"][0]["ports"][0]["port"]
            .to_string()
    };
    assert_eq!(port(&policies.current().await.unwrap().0[0]), "\"81\"");
    let gone = policies.plan_delete(&web, "bob").await.unwrap().unwrap();
    policies.write(&[gone]).await.unwrap();
    assert!(policies.current().await.unwrap().0.is_empty());
    assert_eq!(policies.plan_delete(&web, "bob").await.unwrap(), None);
    let back = policies.plan_rollback(&web, Some(1), "bob").await.unwrap().unwrap();
    policies.write(&[back]).await.unwrap();
    assert_eq!(port(&policies.current().await.unwrap().0[0]), "\"80\"");
    let notes: Vec<String> = versions(&policies, &web).await.into_iter().map(|(_, note)| note).collect();
    assert_eq!(notes, ["", "", "", "rollback to 2", "", "rollback to 1"]);
    let error = policies.plan_rollback(&web, Some(99), "bob").await.unwrap_err();
    assert!(matches!(error, ClusterPolicyError::NoVersion { version: 99, .. }), "{error}");
}

#[tokio::test]
async fn two_at_once_do_not_overwrite_each_other() {
    let policies = Policies::new(store(), "c1");
    apply(&policies, &[policy("web", 80)]).await;
    let one = policies.plan(&[policy("web", 81)], "alice").await.unwrap();
    let two = policies.plan(&[policy("web", 82)], "bob").await.unwrap();
    policies.write(&one).await.unwrap();
    let (done, error) = policies.write(&two).await.unwrap_err();
    assert!(done == 0 && error.to_string().contains("shop/web"), "{error}");
    // Both create it for the first time.
    let one = policies.plan(&[policy("new", 81)], "alice").await.unwrap();
    policies.write(&one).await.unwrap();
    assert!(policies.write(&one).await.is_err());
}

#[tokio::test]
async fn old_versions_go_and_many_objects_are_written_in_steps() {
    let policies = Policies::new(store(), "c1");
    let files: Vec<ParsedFile> = (0..100).map(|n| policy(&format!("p{n}"), 80)).collect();
    assert_eq!(apply(&policies, &files).await, 100);
    for port in 1..=KEPT + 5 {
        apply(&policies, &[policy("web", 1000 + port as u16)]).await;
    }
    let web = policies.find("web").await.unwrap();
    let kept = versions(&policies, &web).await;
    assert_eq!((kept.len() as u64, kept[0].0), (KEPT + 1, 5));
}

struct Node {
    mirror: Mirror,
    follow: Follow,
}

impl Node {
    fn new(store: &Arc<dyn Store>) -> Self {
        let backoff = Backoff::try_new(Duration::from_millis(1), Duration::from_millis(20), 0.5).unwrap();
        let follow = Follow::start(Arc::clone(store), &Policies::prefix("c1"), backoff);
        Self { mirror: Mirror::new("c1"), follow }
    }

    /// Takes one batch: the list, or one transaction.
    async fn step(&mut self) -> (Vec<String>, Vec<String>, usize) {
        let changes = self.mirror.apply(&self.follow.next().await.unwrap());
        assert!(
            changes.put.iter().all(|(_, _, parsed)| parsed.policies.iter().all(|p| &*p.key.origin == ORIGIN))
        );
        let put = changes.put.iter().map(|(name, version, _)| format!("{} {}", name.name, version.version));
        let gone = changes.gone.iter().map(|(name, keys)| format!("{} {}", name.name, keys.len()));
        (put.collect(), gone.collect(), changes.refused.len())
    }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_node_follows_and_never_gives_a_good_version_for_a_bad_one() {
    let store = store();
    let policies = Policies::new(Arc::clone(&store), "c1");
    apply(&policies, &[policy("web", 80)]).await;
    let mut node = Node::new(&store);
    assert_eq!(node.step().await, (texts(&["web 1"]), vec![], 0));
    apply(&policies, &[policy("web", 81)]).await;
    assert_eq!(node.step().await, (texts(&["web 2"]), vec![], 0));
    for (key, value) in [
        ("web", "{"),
        ("web", r#"{"version":3,"author":"x","time":"","object":{"kind":"CiliumNetworkPolicy"}}"#),
        ("other", r#"{"version":1,"author":"x","time":""}"#),
        ("too/many/parts", "{}"),
    ] {
        store.update(&format!("{CURRENT}{key}"), value.into(), None).await.unwrap();
        assert_eq!(node.step().await, (vec![], vec![], 1), "{key}");
    }
    assert_eq!(node.mirror.versions().map(|(_, version)| version).collect::<Vec<_>>(), [2]);
    assert_eq!(node.mirror.refused().count(), 3);
    // The same again is no news.
    store
        .update(&format!("{CURRENT}other"), r#"{"version":1,"author":"x","time":""}"#.into(), None)
        .await
        .unwrap();
    assert_eq!(node.step().await, (vec![], vec![], 0));
    let (_, damaged) = policies.current().await.unwrap();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    // An object in another's place is not taken.
    let stray = Version {
        version: 1,
        author: "x".into(),
        time: String::new(),
        note: String::new(),
        object: Some(policy("web", 80).policies[0].object.to_json()),
        deleted: false,
    };
    store.update(&format!("{CURRENT}db"), stray.to_json().into(), None).await.unwrap();
    assert_eq!(node.step().await, (vec![], vec![], 1));
    // Applied again it is whole.
    apply(&policies, &[policy("web", 82)]).await;
    assert_eq!(node.step().await, (texts(&["web 4"]), vec![], 0));
    store.delete(&format!("{CURRENT}web")).await.unwrap();
    assert_eq!(node.step().await, (vec![], texts(&["web 1"]), 0));
}

#[tokio::test]
async fn what_a_node_had_before_a_restart_holds_until_the_store_was_listed() {
    let store = store();
    let policies = Policies::new(Arc::clone(&store), "c1");
    apply(&policies, &[policy("kept", 80), policy("damaged", 80)]).await;
    store.update(&format!("{CURRENT}damaged"), "{".into(), None).await.unwrap();
    let mut node = Node::new(&store);
    for name in ["kept", "gone", "damaged"] {
        let object = policy(name, 80).policies[0].object.to_json();
        let name = name_of(name).suffix();
        let name: Vec<&str> = name.split('/').collect();
        // As a version before wrote it that did not know of stale ones.
        let kept = serde_json::json!({
            "name": {"kind": name[0], "namespace": name[1], "name": name[2]},
            "version": {"version": 1, "author": "", "time": "", "object": object},
        });
        let kept: Kept = serde_json::from_value(kept).unwrap();
        assert_eq!(&*node.mirror.restore(&kept).unwrap().policies[0].key.origin, ORIGIN);
    }
    assert_eq!(node.step().await, (texts(&["kept 1"]), texts(&["gone 1"]), 1));
    assert_eq!(node.mirror.versions().count(), 2, "the last good version of a damaged one stays");
}

#[tokio::test]
async fn who_has_realised_a_version_is_counted_and_who_has_not_is_named() {
    let store = store();
    let policies = Policies::new(Arc::clone(&store), "c1");
    apply(&policies, &[policy("web", 80)]).await;
    let standing = policies.current().await.unwrap().0.remove(0);
    let say = async |node: &str, report: NodeReport| {
        store.update(&NodeReport::key("c1", node), report.to_json().into(), None).await.unwrap();
    };
    for node in ["n1", "n2", "n3", "n4", "n5"] {
        store.update(&format!("cilium/state/nodes/v1/c1/{node}"), "{}".into(), None).await.unwrap();
    }
    let at = |revision| NodeReport { revision, ..NodeReport::default() };
    say("n1", at(standing.revision)).await;
    say("n2", at(standing.revision - 1)).await;
    let refused = [(standing.name.suffix(), "it is too large".to_owned())].into();
    say("n3", NodeReport { refused, ..at(standing.revision + 5) }).await;
    say("n4", NodeReport { problem: "endpoint 7: full".into(), ..at(0) }).await;
    store.update(&NodeReport::key("c1", "n6"), "{".into(), None).await.unwrap();
    for (node, revision, reason) in [("n7", 0, "etcd is restored"), ("n8", standing.revision, "")] {
        say(node, NodeReport { frozen: Some(reason.into()), ..at(revision) }).await;
    }
    let of_later = r#"{"revision": 0, "time": "", "frozen": "x", "of_a_later_version": {"a": [1]}}"#;
    store.update(&NodeReport::key("c1", "n9"), of_later.into(), None).await.unwrap();
    let realised = Realised::of(&store, "c1", &standing).await.unwrap();
    assert_eq!(realised.nodes, ["n1", "n8"]);
    let frozen = [("n7", "etcd is restored"), ("n8", ""), ("n9", "x")];
    assert_eq!(realised.frozen, frozen.map(|(node, reason)| (node.to_owned(), reason.to_owned())).into());
    let missing: Vec<&str> = realised.missing.keys().map(String::as_str).collect();
    assert_eq!(missing, ["n2", "n3", "n4", "n5", "n6", "n7", "n9"]);
    for (node, says) in [
        ("n2", "revision"),
        ("n3", "too large"),
        ("n4", "endpoint 7"),
        ("n5", "not said"),
        ("n6", "cannot be read"),
        ("n7", "frozen (etcd is restored) until `villus thaw`"),
        ("n9", "frozen (x)"),
    ] {
        assert!(realised.missing[node].contains(says), "{:?}", realised.missing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_value_panics(key in "[a-zA-Z/-]{0,20}", value in "[\\[\\]{}\":,a-z0-9]{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        for value in [value.into_bytes(), bytes] {
            let entry = villus_kvstore::Entry {
                key: format!("{CURRENT}{key}").into(), value: value.into(), create_revision: 1, mod_revision: 1, version: 1, lease: None,
            };
            let batch = villus_kvstore::Batch { revision: 1, items: vec![villus_kvstore::Item::Put(Arc::new(entry))], relisted: None };
            let changes = Mirror::new("c1").apply(&batch);
            prop_assert_eq!(changes.put.len() + changes.refused.len(), 1);
        }
    }
}
