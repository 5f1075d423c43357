//! Identities of dumps under filters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use villus_labels::{LabelFilter, MaxConnectedClusters};
use villus_plan::identities::{Count, Dump, count, text};

/// The published filter: one identity an application.
const PUBLISHED: &str = "reserved:.* k8s:!io.cilium.k8s.namespace.labels.* k8s:io.cilium.k8s.policy k8s:com.trip/appid \
                         k8s:com.trip/redis-cluster-name";

fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
           "spec": {"serviceAccountName": "default"}, "status": {"phase": "Running"}})
}

fn list(items: Vec<Value>) -> Dump {
    let mut dump = Dump::default();
    dump.read("pods.json", &json!({"kind": "List", "items": items}).to_string(), "c1").unwrap();
    dump
}

fn counted(dump: &Dump, filter: &str) -> Count {
    count(dump, filter, MaxConnectedClusters::C255).unwrap()
}

/// Five applications of twenty pods, each pod with a label of its own.
fn shop() -> Vec<Value> {
    let pods = (0..100).map(|n| {
        let app = n / 20;
        pod(
            "shop",
            &format!("app{app}-{n}"),
            json!({"com.trip/appid": format!("1000{app}"), "app": format!("app{app}"), "instance": format!("i{n}"),
                   "pod-template-hash": format!("{n:x}")}),
        )
    });
    pods.collect()
}

#[test]
fn a_label_of_each_pod_is_named_and_the_rule_against_it_is_counted() {
    let dump = list(shop());
    let count = counted(&dump, "");
    assert_eq!((count.workloads, count.identities, count.space), (100, 100, 65_280));
    let dearest = &count.labels[0];
    assert_eq!((dearest.label.as_str(), dearest.values, dearest.saves), ("k8s:instance", 100, 95));
    assert!(!count.labels.iter().any(|cost| cost.label.contains("pod-template-hash")), "left out by default");
    let advice = count.advice.clone().unwrap();
    assert_eq!((advice.rules, advice.identities), (vec!["k8s:!instance$".to_owned()], 5));
    let text = text(&count);
    assert!(
        text.contains("100 workloads, 100 identities: 0.2 %") && text.contains("k8s:!instance$"),
        "{text}"
    );
    // What was advised is what comes out, and then there is nothing more to say.
    let after = counted(&dump, "k8s:!instance$");
    assert_eq!((after.identities, after.advice), (5, None));
}

/// Pods of Jobs with the labels that Kubernetes itself sets, and those of their application.
fn jobs(pods: u32) -> Vec<Value> {
    let pods = (0..pods).map(|n| {
        let (job, uid) = (format!("report-{n}"), format!("00000000-0000-0000-0000-{n:012}"));
        pod(
            "batch",
            &format!("{job}-x"),
            json!({"app": "report", "job-name": job, "batch.kubernetes.io/job-name": job, "controller-uid": uid,
                   "batch.kubernetes.io/controller-uid": uid}),
        )
    });
    pods.collect()
}

#[test]
fn labels_that_tell_the_same_are_counted_and_left_out_together() {
    let dump = list(jobs(1000));
    for (filter, rules) in [
        ("", vec!["k8s:!batch\\.kubernetes\\.io/job-name$", "k8s:!job-name$"]),
        ("k8s:!job-name", vec!["k8s:!batch\\.kubernetes\\.io/job-name$"]),
    ] {
        let count = counted(&dump, filter);
        assert_eq!((count.identities, count.labels[0].saves), (1000, 999));
        assert_eq!(count.labels[0].alike.len() + 1, rules.len(), "{:?}", count.labels[0]);
        let advice = count.advice.unwrap();
        assert_eq!(
            (advice.rules.as_slice(), advice.identities),
            (&rules.iter().map(|r| r.to_string()).collect::<Vec<_>>()[..], 1)
        );
        let after = counted(&dump, &format!("{filter} {}", advice.rules.join(" ")));
        assert_eq!((after.identities, after.advice), (1, None));
    }
    let all = counted(&dump, "k8s:.*");
    let joined = "k8s:batch.kubernetes.io/job-name = k8s:job-name";
    assert_eq!(counted(&dump, "").labels[0].alike, ["k8s:job-name"]);
    assert!(text(&counted(&dump, "")).contains(joined), "{}", text(&counted(&dump, "")));
    assert_eq!((all.identities, all.advice), (1000, None), "what a rule includes is not proposed to go");
}

#[test]
fn labels_that_only_together_tell_pods_apart_go_together() {
    // Ten replicas of each of a hundred applications: the name says what application and index say.
    let pods = (0..1000).map(|n| {
        let (app, index) = (n / 10, n % 10);
        pod(
            "shop",
            &format!("p{n}"),
            json!({"app": format!("a{app}"), "replica": index.to_string(), "own": n.to_string()}),
        )
    });
    let count = counted(&list(pods.collect()), "");
    assert_eq!(count.identities, 1000);
    let advice = count.advice.unwrap();
    assert_eq!(
        (advice.rules, advice.identities),
        (vec!["k8s:!own$".to_owned(), "k8s:!replica$".to_owned()], 100)
    );
}

#[test]
fn what_a_rule_of_the_operators_includes_is_not_proposed_to_go() {
    let pods = (0..100).map(|n| pod("shop", &format!("p{n}"), json!({"com.trip/appid": n.to_string()})));
    let count = counted(&list(pods.collect()), PUBLISHED);
    assert_eq!((count.identities, count.advice.clone()), (100, None));
    assert!(text(&count).contains("what a rule of `labels` includes stays"), "{}", text(&count));
}

#[test]
fn with_the_published_filter_an_application_has_one_identity() {
    let mut items = shop();
    items.push(json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}));
    let count = counted(&list(items), PUBLISHED);
    assert_eq!((count.identities, count.whitelist), (5, true));
}

#[test]
fn labels_of_namespaces_count_where_the_dump_has_them() {
    let items = vec![
        pod("a", "x", json!({"app": "web"})),
        pod("a", "y", json!({"app": "web"})),
        json!({"kind": "Namespace", "metadata": {"name": "a", "labels": {"team": "blue"}}}),
    ];
    let count = counted(&list(items), "");
    assert_eq!(count.identities, 1);
    let labels: Vec<&str> = count.labels.iter().map(|cost| cost.label.as_str()).collect();
    assert!(labels.contains(&"k8s:io.cilium.k8s.namespace.labels.team"), "{labels:?}");
}

#[test]
fn what_needs_no_identity_is_named_and_not_counted() {
    let mut host = pod("kube-system", "proxy", json!({}));
    host["spec"]["hostNetwork"] = json!(true);
    let mut done = pod("jobs", "once", json!({}));
    done["status"]["phase"] = json!("Succeeded");
    let count = counted(&list(vec![host, done, pod("a", "x", json!({}))]), "");
    assert_eq!((count.workloads, count.skipped.len()), (1, 2));
    assert!(text(&count).contains("2 not counted, such as kube-system/proxy"), "{}", text(&count));
}

#[test]
fn endpoints_of_nodes_are_read_too_and_dumps_add_up() {
    let endpoint = |id: u16, app: &str| {
        json!({"id": id, "status": {"labels": {
            "security-relevant": [format!("k8s:app={app}")], "derived": ["container:runtime=runc"]}}})
    };
    let mut dump = Dump::default();
    dump.read("a.json", &json!([endpoint(1, "web"), endpoint(2, "db")]).to_string(), "c1").unwrap();
    dump.read("b.json", &json!([endpoint(1, "web")]).to_string(), "c1").unwrap();
    dump.read("c.json", &endpoint(3, "web").to_string(), "c1").unwrap();
    let count = counted(&dump, "k8s:app");
    assert_eq!((count.workloads, count.identities), (4, 2));
    assert_eq!(counted(&dump, "container:runtime").identities, 1);
}

#[test]
fn a_cluster_of_511_has_half_as_many_and_too_many_are_said_so() {
    let pods = (0..40_000).map(|n| pod("a", &format!("p{n}"), json!({"own": n.to_string()}))).collect();
    let count = count(&list(pods), "", MaxConnectedClusters::C511).unwrap();
    assert_eq!((count.identities, count.advice.clone().unwrap().identities), (40_000, 1));
    assert!(count.percent > 100.0 && text(&count).contains("MORE THAN THERE ARE"), "{}", text(&count));
}

#[test]
fn what_is_no_dump_is_refused_by_name() {
    for (text, part) in [
        ("NAME READY", "no JSON"),
        ("3", "no list"),
        ("{}", "no list of items"),
        ("[{\"id\":1}]", "element 0"),
        ("[{\"id\":70000,\"status\":{}}]", "element 0"),
        ("{\"items\":[{\"kind\":\"Service\"}]}", "\"Service\""),
        ("{\"items\":[{\"kind\":\"Pod\"}]}", "items[0] has no metadata.name"),
        ("{\"items\":[{\"kind\":\"Pod\",\"metadata\":{\"labels\":[]}}]}", "items[0]"),
    ] {
        let error = Dump::default().read("dump.json", text, "c1").unwrap_err().to_string();
        assert!(error.contains("dump.json") && error.contains(part), "{text}: {error}");
    }
    let mut dump = Dump::default();
    let odd = json!({"items": [pod("a", "x", json!({"": "empty"}))]});
    dump.read("dump.json", &odd.to_string(), "c1").unwrap();
    assert!(dump.workloads.is_empty() && dump.skipped[0].name == "a/x", "{dump:?}");
    assert!(count(&dump, "k8s:(", MaxConnectedClusters::C255).is_err());
}

fn workloads() -> impl Strategy<Value = Vec<Value>> {
    let labels = prop::collection::btree_map("[a-d]", "[xyz]", 0..4);
    let pods = prop::collection::vec(("[nm]", labels), 0..30);
    pods.prop_map(|pods| {
        let one =
            |(n, (namespace, labels)): (usize, (String, _))| pod(&namespace, &format!("p{n}"), json!(labels));
        pods.into_iter().enumerate().map(one).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn the_count_is_that_of_the_filter_and_advice_keeps_its_word(
        items in workloads(),
        filter in prop::sample::select(vec!["", "k8s:a", "k8s:!a k8s:!b", "k8s:a k8s:b k8s:c", "!c"]),
    ) {
        let dump = list(items);
        let count = counted(&dump, filter);
        let plain = LabelFilter::parse(filter).unwrap();
        let sets: HashSet<String> =
            dump.workloads.iter().map(|one| plain.identity_labels(&one.labels).to_kvstore()).collect();
        prop_assert_eq!(count.identities, sets.iter().filter(|set| !set.is_empty()).count());
        for cost in &count.labels {
            prop_assert!(cost.saves < count.identities.max(1) && cost.values <= cost.workloads);
        }
        if let Some(advice) = count.advice {
            prop_assert!(advice.identities < count.identities);
            let after = counted(&dump, &format!("{filter} {}", advice.rules.join(" ")));
            prop_assert_eq!(after.identities, advice.identities);
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,60}", at in 0usize..200) {
        let _ = Dump::default().read("x", &text, "c1");
        let mut whole = json!({"items": shop()[..1]}).to_string();
        let at = (0..=at.min(whole.len())).rev().find(|at| whole.is_char_boundary(*at)).unwrap();
        whole.insert_str(at, &text);
        let _ = Dump::default().read("x", &whole, "c1");
    }
}
