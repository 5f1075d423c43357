//! Resources in the store: their keys, what they refuse, and that no half of one is ever there.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use common::{config, dump, memory, one, open, until};
use villus_external::{
    ExternalConfig, ExternalError, Externals, Keeper, KeeperConfig, Refusal, What, Writing, read_objects,
};
use villus_identity::Gc;
use villus_kvstore::{Compare, IpIdentityPair, Store, keys};

const LABELS: &str = "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=c7;k8s:io.kubernetes.pod.namespace=shop;";

fn how() -> Writing {
    Writing { author: "ann@host".to_owned(), dry_run: false }
}

fn dry() -> Writing {
    Writing { dry_run: true, ..how() }
}

async fn put(externals: &Externals, name: &str, spec: &str) -> Result<What, Refusal> {
    externals.put(vec![one(name, spec)], &how()).await.unwrap().remove(0).result
}

async fn delete(externals: &Externals, name: &str) -> What {
    externals.delete([name.to_owned()].into(), &how()).await.unwrap().remove(0).result.unwrap()
}

const DB: &str = r#"{"kind":"vm","addresses":["10.9.0.5","fd00:9::5"],"labels":["app=db","io.kubernetes.pod.namespace=shop"],"host":"10.3.9.10"}"#;

#[tokio::test]
async fn a_resource_is_the_keys_that_a_pod_has_to_the_byte_and_none_has_a_lease() {
    let (_, store) = memory();
    let externals = open(&store);
    assert_eq!(put(&externals, "db-7", DB).await.unwrap(), What::Created);
    let record = externals.get("db-7").await.unwrap().unwrap();
    let id = record.identity.0;
    assert_eq!(id >> 16, 7, "a number of the cluster");
    externals.end().await;
    let all = dump(&store).await;
    let value = |key: &str| all.get(key).unwrap_or_else(|| panic!("no {key} in {all:#?}")).clone();
    assert_eq!(value(&format!("cilium/state/identities/v1/id/{id}")), LABELS);
    assert_eq!(value(&format!("cilium/state/identities/v1/value/{LABELS}/external.c7")), id.to_string());
    assert_eq!(
        value("cilium/state/ip/v1/default/10.9.0.5"),
        format!(
            r#"{{"IP":"10.9.0.5","Mask":null,"HostIP":"10.3.9.10","ID":{id},"Key":0,"Metadata":"villus-external:c7:db-7","K8sNamespace":"shop","K8sPodName":"db-7"}}"#
        )
    );
    assert!(value("cilium/state/ip/v1/default/fd00:9::5").starts_with(r#"{"IP":"fd00:9::5","Mask":null"#));
    let (created, updated) = (record.created, record.updated);
    assert_eq!(
        value("villus/external/v1/c7/resources/db-7"),
        format!(
            r#"{{"name":"db-7","kind":"vm","addresses":["10.9.0.5","fd00:9::5"],"labels":["k8s:app=db","k8s:io.kubernetes.pod.namespace=shop"],"host":"10.3.9.10","identity":{id},"identityLabels":"{LABELS}","created":"{created}","updated":"{updated}","author":"ann@host"}}"#
        )
    );
    assert_eq!(value(&format!("villus/external/v1/c7/identities/{id}")), LABELS);
    assert_eq!(all.len(), 6, "and nothing else: {all:#?}");
    let entries = store.list_prefix("").await.unwrap().entries;
    assert!(entries.iter().all(|entry| entry.lease.is_none()), "{entries:?}");
}

#[tokio::test]
async fn saying_it_again_changes_nothing_and_saying_otherwise_changes_what_is_otherwise() {
    let (_, store) = memory();
    let externals = open(&store);
    put(&externals, "db", DB).await.unwrap();
    let before = dump(&store).await;
    assert_eq!(put(&externals, "db", DB).await.unwrap(), What::Unchanged);
    assert_eq!(dump(&store).await, before);
    let old = externals.get("db").await.unwrap().unwrap();
    let moved = r#"{"kind":"vm","addresses":["10.9.0.6"],"labels":["app=web"]}"#;
    assert_eq!(put(&externals, "db", moved).await.unwrap(), What::Updated);
    let new = externals.get("db").await.unwrap().unwrap();
    assert_ne!(old.identity, new.identity);
    assert_eq!(new.created, old.created);
    let all = dump(&store).await;
    let addresses: Vec<&String> = all.keys().filter(|key| key.starts_with(keys::IPS)).collect();
    assert_eq!(addresses, ["cilium/state/ip/v1/default/10.9.0.6"]);
    assert!(all["cilium/state/ip/v1/default/10.9.0.6"].contains(&format!("\"ID\":{}", new.identity)));
    assert!(all["cilium/state/ip/v1/default/10.9.0.6"].contains(r#""K8sNamespace":"default""#));
    assert_eq!(delete(&externals, "db").await, What::Deleted);
    assert_eq!(delete(&externals, "db").await, What::Absent);
    let all = dump(&store).await;
    assert!(!all.keys().any(|key| key.starts_with(keys::IPS) || key.contains("/resources/")), "{all:#?}");
}

#[tokio::test]
async fn an_address_that_is_somebody_elses_is_refused_with_its_owner_and_nothing_of_it_is_written() {
    let (_, store) = memory();
    let pod = IpIdentityPair {
        metadata: "cilium-global:c7:node1:2404".to_owned(),
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        ..IpIdentityPair::new("10.2.0.7".parse().unwrap(), 458_760, None)
    };
    store.update(&pod.key("c7"), pod.to_json().into(), None).await.unwrap();
    let node = r#"{"Name":"node1","Cluster":"c7","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.1"}],"IPv4AllocCIDR":{"IP":"10.2.1.0","Mask":"////AA=="}}"#;
    store.update("cilium/state/nodes/v1/c7/node1", node.into(), None).await.unwrap();
    let externals = open(&store);
    put(&externals, "first", r#"{"addresses":["10.9.0.5"],"labels":["app=a"]}"#).await.unwrap();
    let before = dump(&store).await;
    for (address, owner) in [
        ("10.2.0.7", "pod shop/web-1 of node node1 of cluster c7"),
        ("10.9.0.5", "external resource first of cluster c7"),
        ("10.3.9.1", "node node1 of cluster c7"),
        ("10.2.1.77", "the pods of node node1 of cluster c7, whose range is 10.2.1.0/24"),
    ] {
        let spec = format!(r#"{{"addresses":["10.9.0.99","{address}"],"labels":["app=a"]}}"#);
        for how in [how(), dry()] {
            let outcome = externals.put(vec![one("second", &spec)], &how).await.unwrap().remove(0);
            let error = outcome.result.unwrap_err().to_string();
            assert!(error.contains(&format!("{address} belongs to {owner};")), "{error}");
        }
    }
    assert_eq!(dump(&store).await, before);
    // A node by its name stands for its address.
    put(&externals, "behind", r#"{"addresses":["10.9.0.6"],"labels":["app=a"],"node":"node1"}"#)
        .await
        .unwrap();
    let value = &dump(&store).await["cilium/state/ip/v1/default/10.9.0.6"];
    assert!(value.contains(r#""HostIP":"10.3.9.1""#), "{value}");
    // An address passes to another when its owner is done with it.
    delete(&externals, "first").await;
    put(&externals, "second", r#"{"addresses":["10.9.0.5"],"labels":["app=a"]}"#).await.unwrap();
}

#[tokio::test]
async fn an_address_of_another_cluster_is_refused_with_its_owner_in_either_layout() {
    let (_, store) = memory();
    let pair = |address: &str, cluster: &str, pod: &str| IpIdentityPair {
        metadata: if pod.is_empty() { String::new() } else { format!("cilium-global:{cluster}:n9:17") },
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        ..IpIdentityPair::new(address.parse().unwrap(), 9 << 16, None)
    };
    let cache = |pair: &IpIdentityPair, cluster| keys::state_to_cache(&pair.key(cluster));
    let node = r#"{"Name":"n9","Cluster":"c9","IPAddresses":[{"Type":"InternalIP","IP":"10.9.9.1"}],"IPv4AllocCIDR":{"IP":"10.9.1.0","Mask":"////AA=="}}"#;
    let vm = IpIdentityPair { metadata: "villus-external:c9:db".to_owned(), ..pair("10.9.0.3", "c9", "") };
    let (web, api, plain) =
        (pair("10.9.0.1", "c9", "web"), pair("10.9.0.2", "c8", "api"), pair("fd00::4", "c9", ""));
    for (key, value) in [
        ("cilium/cluster-config/c7".to_owned(), r#"{"id":7}"#.to_owned()),
        ("cilium/cluster-config/c8".to_owned(), r#"{"id":8}"#.to_owned()),
        ("cilium/cache/nodes/v1/c9/n9".to_owned(), node.to_owned()),
        (cache(&web, "c9"), web.to_json()),
        (api.key("c8"), api.to_json()),
        (cache(&vm, "c9"), vm.to_json()),
        (cache(&plain, "c9"), plain.to_json()),
    ] {
        store.update(&key, value.into(), None).await.unwrap();
    }
    let before = dump(&store).await;
    let externals = open(&store);
    for (address, owner) in [
        ("10.9.0.1", "pod shop/web of node n9 of cluster c9"),
        ("10.9.0.2", "pod shop/api of node n9 of cluster c8"),
        ("10.9.0.3", "external resource db of cluster c9"),
        ("fd00::4", "identity 589824 of cluster c9"),
        ("10.9.9.1", "node n9 of cluster c9"),
        ("10.9.1.77", "the pods of node n9 of cluster c9, whose range is 10.9.1.0/24"),
    ] {
        let spec = format!(r#"{{"addresses":["10.7.0.99","{address}"],"labels":["app=a"]}}"#);
        for how in [how(), dry()] {
            let outcome = externals.put(vec![one("mine", &spec)], &how).await.unwrap().remove(0);
            let error = outcome.result.unwrap_err().to_string();
            assert!(error.contains(&format!("{address} belongs to {owner}")), "{address}: {error}");
        }
    }
    assert!(externals.list().await.unwrap().0.is_empty());
    let ips = |all: std::collections::BTreeMap<String, String>| {
        all.into_iter().filter(|(key, _)| key.contains("/ip/")).collect::<Vec<_>>()
    };
    assert_eq!(ips(dump(&store).await), ips(before));
    // What nobody has is had, and stays when a copy of it turns up: it was here first.
    let spec = r#"{"addresses":["10.7.0.99"],"labels":["app=a"]}"#;
    assert_eq!(put(&externals, "mine", spec).await.unwrap(), What::Created);
    let late = pair("10.7.0.99", "c9", "late");
    store.update(&cache(&late, "c9"), late.to_json().into(), None).await.unwrap();
    assert_eq!(put(&externals, "mine", spec).await.unwrap(), What::Unchanged);
    // When the other cluster is done with an address it is free.
    store.delete(&cache(&web, "c9")).await.unwrap();
    let spec = r#"{"addresses":["10.9.0.1"],"labels":["app=a"]}"#;
    assert_eq!(put(&externals, "second", spec).await.unwrap(), What::Created);
}

#[tokio::test]
async fn of_many_each_is_written_or_refused_and_what_is_wrong_beforehand_stops_all() {
    let (_, store) = memory();
    let externals = open(&store);
    put(&externals, "old", r#"{"addresses":["10.9.9.9"],"labels":["app=a"]}"#).await.unwrap();
    let spec =
        |n: u32| format!(r#"{{"addresses":["10.8.{}.{}"],"labels":["app=a{}"]}}"#, n / 250, n % 250, n % 7);
    let mut wanted: Vec<_> = (0..300).map(|n| one(&format!("vm-{n}"), &spec(n))).collect();
    wanted.insert(150, one("taken", r#"{"addresses":["10.9.9.9"],"labels":["app=a"]}"#));
    let would = externals.put(wanted.clone(), &dry()).await.unwrap();
    assert_eq!(would.iter().filter(|one| matches!(one.result, Ok(What::Created))).count(), 300);
    assert_eq!(externals.list().await.unwrap().0.len(), 1, "a dry run writes nothing");
    let outcomes = externals.put(wanted.clone(), &how()).await.unwrap();
    let names: Vec<&str> = outcomes.iter().map(|one| one.name.as_str()).collect();
    let asked: Vec<&str> = wanted.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, asked, "in the order asked");
    assert!(outcomes[150].result.is_err() && outcomes.iter().filter(|one| one.result.is_err()).count() == 1);
    assert_eq!(externals.list().await.unwrap().0.len(), 301);
    let identities: BTreeSet<_> =
        outcomes.iter().filter_map(|one| Some(one.record.as_ref()?.identity)).collect();
    assert_eq!(identities.len(), 7, "one for each set of labels");
    // Of another cluster, or behind a node that there is not: nothing is written.
    for (spec, part) in [
        (
            r#"{"addresses":["10.7.0.1"],"labels":["app=a","io.cilium.k8s.policy.cluster=c8"]}"#,
            "another cluster",
        ),
        (
            r#"{"addresses":["10.7.0.1"],"labels":["app=a"],"node":"nowhere"}"#,
            "no node `nowhere` of cluster c7",
        ),
    ] {
        let both = vec![one("good", r#"{"addresses":["10.7.0.2"],"labels":["app=a"]}"#), one("bad", spec)];
        let error = externals.put(both, &how()).await.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("resource bad"), "{error}");
    }
    assert_eq!(externals.get("good").await.unwrap(), None);
}

#[tokio::test]
async fn the_filter_of_the_cluster_makes_the_identity_and_agents_share_it() {
    let (_, store) = memory();
    let rules = "k8s:app k8s:io.kubernetes.pod.namespace k8s:io.cilium.k8s.policy.cluster";
    let externals =
        Externals::open(Arc::clone(&store), ExternalConfig { label_rules: rules.to_owned(), ..config() })
            .unwrap();
    // An agent uses the labels already.
    store.update("cilium/state/identities/v1/id/458999", LABELS.into(), None).await.unwrap();
    let user = format!("cilium/state/identities/v1/value/{LABELS}/10.3.9.1");
    store.update(&user, "458999".into(), None).await.unwrap();
    let spec =
        r#"{"addresses":["10.9.0.5"],"labels":["app=db","rack=12","io.kubernetes.pod.namespace=shop"]}"#;
    put(&externals, "db", spec).await.unwrap();
    let record = externals.get("db").await.unwrap().unwrap();
    assert_eq!((record.identity.0, record.identity_labels.as_str()), (458_999, LABELS));
    assert_eq!(record.labels.to_string(), "k8s:app=db,k8s:io.kubernetes.pod.namespace=shop,k8s:rack=12");
}

#[tokio::test]
async fn labels_that_a_resource_has_need_no_lock_for_the_next_one() {
    let (_, store) = memory();
    let first = open(&store);
    put(&first, "a", r#"{"addresses":["10.9.0.5"],"labels":["app=a"]}"#).await.unwrap();
    let identity = first.get("a").await.unwrap().unwrap().identity;
    first.end().await;
    let text = "k8s:app=a;k8s:io.cilium.k8s.policy.cluster=c7;k8s:io.kubernetes.pod.namespace=default;";
    // Somebody was killed with the lock.
    let lock = format!("cilium/state/identities/v1/locks/{text}.lock/1");
    store.update(&lock, "".into(), None).await.unwrap();
    let second = open(&store);
    put(&second, "b", r#"{"addresses":["10.9.0.6"],"labels":["app=a"]}"#).await.unwrap();
    assert_eq!(second.get("b").await.unwrap().unwrap().identity, identity);
    // What the resources' key said is gone, and the lock free: the number is taken again.
    store.delete(&lock).await.unwrap();
    store.delete(&format!("cilium/state/identities/v1/value/{text}/external.c7")).await.unwrap();
    put(&second, "c", r#"{"addresses":["10.9.0.7"],"labels":["app=a"]}"#).await.unwrap();
    assert_eq!(second.get("c").await.unwrap().unwrap().identity, identity);
    assert!(dump(&store).await.contains_key(&format!("cilium/state/identities/v1/value/{text}/external.c7")));
}

#[tokio::test]
async fn another_clusters_store_is_refused() {
    let (_, store) = memory();
    store.update("cilium/cluster-config/c7", r#"{"id":8}"#.into(), None).await.unwrap();
    let error = open(&store).put(vec![one("db", DB)], &how()).await.unwrap_err();
    assert!(matches!(error, ExternalError::OtherCluster(_)), "{error}");
    assert!(error.to_string().contains("cluster-id is 8 there and 7 here"), "{error}");
    let other =
        Externals::open(Arc::clone(&store), ExternalConfig { cluster: "c9".to_owned(), ..config() }).unwrap();
    let error = other.list().await.unwrap_err().to_string();
    assert!(error.contains("the store knows cluster c7 and no cluster c9"), "{error}");
}

#[tokio::test]
async fn garbage_collection_leaves_them_alone_and_takes_what_the_last_one_left() {
    let (memory, store) = memory();
    let externals = open(&store);
    put(&externals, "db", DB).await.unwrap();
    externals.end().await;
    // Nobody who wrote it is there any more.
    memory.advance(Duration::from_secs(7 * 86_400)).await.unwrap();
    let mut gc = Gc::new(Arc::clone(&store), 458_752..=524_287, Duration::from_secs(5));
    for _ in 0..3 {
        assert_eq!(gc.pass(100).await.unwrap().deleted, 0);
    }
    assert_eq!(dump(&store).await.len(), 6);
    let keeper = Arc::new(keeper(&store));
    let tasks = lead(&keeper, &store).await;
    delete(keeper.externals(), "db").await;
    until("its number is given up", async || keeper.kept().unused == 1).await;
    for _ in 0..2 {
        gc.pass(100).await.unwrap();
    }
    drop(tasks);
    let left: Vec<String> = dump(&store).await.into_keys().filter(|key| key != "office").collect();
    assert_eq!(left, [] as [&str; 0]);
}

fn keeper(store: &Arc<dyn Store>) -> Keeper {
    let (compare, gather) = (Duration::from_millis(200), Duration::from_millis(20));
    Keeper::new(open(store), KeeperConfig { compare, gather, pace: config().pace })
}

/// A keeper at work, until it is dropped.
struct Tasks([tokio::task::JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn lead(keeper: &Arc<Keeper>, store: &Arc<dyn Store>) -> Tasks {
    store.update("office", "me".into(), None).await.unwrap();
    let office = Compare::Present("office".to_owned());
    let (follower, leader) = (Arc::clone(keeper), Arc::clone(keeper));
    Tasks([
        tokio::spawn(async move { follower.follow().await }),
        tokio::spawn(async move { leader.lead(office).await }),
    ])
}

#[tokio::test]
async fn keys_that_somebody_took_away_come_back_and_keys_without_a_resource_go() {
    let (_, store) = memory();
    let keeper = Arc::new(keeper(&store));
    put(keeper.externals(), "db", DB).await.unwrap();
    put(keeper.externals(), "web", r#"{"addresses":["10.9.0.6"],"labels":["app=web"]}"#).await.unwrap();
    let before = dump(&store).await;
    let id = keeper.externals().get("db").await.unwrap().unwrap().identity;
    // What the mark of a resource claims that never was.
    let orphan = IpIdentityPair {
        metadata: "villus-external:c7:never".to_owned(),
        ..IpIdentityPair::new("10.9.0.77".parse().unwrap(), id.0, None)
    };
    store.update(&orphan.key("default"), orphan.to_json().into(), None).await.unwrap();
    // Another cluster's, which is not ours to judge.
    let foreign = IpIdentityPair { metadata: "villus-external:c8:never".to_owned(), ..orphan.clone() };
    let foreign = IpIdentityPair { ip: "10.9.0.78".parse().unwrap(), ..foreign };
    store.update(&foreign.key("default"), foreign.to_json().into(), None).await.unwrap();
    store.delete("cilium/state/ip/v1/default/10.9.0.5").await.unwrap();
    store.update("cilium/state/ip/v1/default/fd00:9::5", "{".into(), None).await.unwrap();
    store.delete(&format!("cilium/state/identities/v1/value/{LABELS}/external.c7")).await.unwrap();
    let _tasks = lead(&keeper, &store).await;
    until("the orphan goes", async || keeper.kept().orphans == 1).await;
    let whole = async || {
        let now = dump(&store).await;
        before
            .iter()
            .filter(|(key, _)| !key.ends_with("fd00:9::5"))
            .all(|(key, value)| now.get(key) == Some(value))
    };
    until("what was taken away is back", whole).await;
    assert!(dump(&store).await.contains_key(&foreign.key("default")));
    // What can't be read is not known to be ours: it is said.
    until("what stands in the way is named", async || keeper.kept().broken.contains_key("db")).await;
    store.delete("cilium/state/ip/v1/default/fd00:9::5").await.unwrap();
    until("and mended when it is gone", async || {
        keeper.kept().broken.is_empty()
            && dump(&store).await.get("cilium/state/ip/v1/default/fd00:9::5")
                == before.get("cilium/state/ip/v1/default/fd00:9::5")
    })
    .await;
    // A record that is deleted by hand takes its addresses along.
    store.delete("villus/external/v1/c7/resources/db").await.unwrap();
    until("its addresses go", async || {
        !dump(&store).await.keys().any(|key| key.ends_with("/10.9.0.5") || key.ends_with("/fd00:9::5"))
    })
    .await;
    assert!(dump(&store).await.contains_key("cilium/state/ip/v1/default/10.9.0.6"));
}

#[tokio::test]
async fn what_has_a_time_to_live_goes_when_it_is_over_and_stays_while_it_is_said() {
    let (_, store) = memory();
    let keeper = Arc::new(keeper(&store));
    let brief = r#"{"addresses":["10.9.0.5"],"labels":["app=a"],"ttl":"10s"}"#;
    put(keeper.externals(), "brief", brief).await.unwrap();
    put(keeper.externals(), "long", r#"{"addresses":["10.9.0.6"],"labels":["app=a"],"ttl":"1h"}"#)
        .await
        .unwrap();
    put(keeper.externals(), "ever", r#"{"addresses":["10.9.0.7"],"labels":["app=a"]}"#).await.unwrap();
    assert_eq!(put(keeper.externals(), "brief", brief).await.unwrap(), What::Renewed);
    let record = keeper.externals().get("brief").await.unwrap().unwrap();
    assert!(record.expires.is_some() && record.ttl_seconds == Some(10));
    let _tasks = lead(&keeper, &store).await;
    until("it goes", async || keeper.kept().expired == 1).await;
    let left: Vec<String> =
        keeper.externals().list().await.unwrap().0.into_iter().map(|one| one.name).collect();
    assert_eq!(left, ["ever", "long"]);
    assert!(!dump(&store).await.contains_key("cilium/state/ip/v1/default/10.9.0.5"));
}

#[tokio::test]
async fn a_store_that_went_back_in_time_gets_back_what_it_has_lost() {
    let (memory, store) = memory();
    let keeper = Arc::new(keeper(&store));
    put(keeper.externals(), "before", r#"{"addresses":["10.9.0.4"],"labels":["app=a"]}"#).await.unwrap();
    let backup = memory.backup();
    put(keeper.externals(), "after", r#"{"addresses":["10.9.0.5"],"labels":["app=b"]}"#).await.unwrap();
    for n in 0..50 {
        store.update("elsewhere", n.to_string().into(), None).await.unwrap();
    }
    let tasks = lead(&keeper, &store).await;
    until("both are known", async || keeper.kept().resources == 2).await;
    let written = keeper.externals().get("after").await.unwrap();
    // The office is lost with the store's memory; the operator goes on following.
    tasks.0[1].abort();
    memory.restore(&backup).await.unwrap();
    memory.interrupt();
    until("the loss is seen", async || keeper.kept().resources == 1).await;
    let office = Compare::Present("office".to_owned());
    store.update("office", "me".into(), None).await.unwrap();
    let leader = Arc::clone(&keeper);
    let leads = tokio::spawn(async move { leader.lead(office).await });
    until("it is back", async || keeper.externals().get("after").await.unwrap() == written).await;
    // The store has it before the keeper hears that it has.
    until("it is counted", async || keeper.kept().restored == 1).await;
    assert!(dump(&store).await.contains_key("cilium/state/ip/v1/default/10.9.0.5"));
    leads.abort();
}

#[tokio::test]
async fn a_list_can_be_imported() {
    let (_, store) = memory();
    let externals = open(&store);
    put(&externals, "db", DB).await.unwrap();
    put(&externals, "brief", r#"{"addresses":["10.9.0.6"],"labels":["app=a"],"ttl":"1h"}"#).await.unwrap();
    let (records, damaged) = externals.list().await.unwrap();
    assert!(damaged.is_empty());
    let objects: Vec<_> = records.iter().map(villus_external::Record::object).collect();
    let text = serde_json::to_string(&objects).unwrap();
    let wanted = read_objects("backup", &text).unwrap();
    assert_eq!(wanted, records.iter().map(villus_external::Record::wanted).collect::<Vec<_>>());
    let outcomes = externals.put(wanted, &how()).await.unwrap();
    let what: Vec<What> = outcomes.into_iter().map(|one| one.result.unwrap()).collect();
    assert_eq!(what, [What::Renewed, What::Unchanged]);
}
