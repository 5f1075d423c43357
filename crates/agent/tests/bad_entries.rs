//! A store that is full of nonsense, certificates that are not there or have expired, a past that is another: each is said,
//! and nothing else changes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::store::{
    LETS_IN, OUTSIDE, has_read, lets_in, metric, new, shared, status, value, who, with, with_certificate,
};
use common::{TestNode, echoes};
use villus_api::EndpointRef;
use villus_testbed::{Authority, EtcdServer, alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

fn node_entry(name: &str, ip: &str, range: &str) -> String {
    format!(
        r#"{{"Name":"{name}","Cluster":"cluster1","IPAddresses":[{{"Type":"InternalIP","IP":"{ip}"}}],"IPv4AllocCIDR":{{"IP":"{range}","Mask":"////AA=="}},"ClusterID":238}}"#
    )
}

fn pair(ip: &str, id: u32) -> String {
    format!(r#"{{"IP":"{ip}","Mask":null,"HostIP":"10.3.9.77","ID":{id},"Key":0,"Metadata":""}}"#)
}

#[test]
fn bad_entries_are_said_once_by_their_keys_counted_and_change_nothing_else() {
    alone!();
    let etcd = EtcdServer::cluster_at("127.0.0.1", 1, &["--max-request-bytes=4194304"]).pop().unwrap();
    let mut node = new(&shared(&etcd));
    node.log = Some(node.root.join("log"));
    node.start();
    has_read(&node);
    let server = node.workload("server", &["k8s:app=server"]);
    node.import(LETS_IN);
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    let good = ["cilium/state/nodes/v1/cluster1/good", "10.3.9.77", "10.77.0.0"];
    etcd.etcdctl(&["put", good[0], &node_entry("good", good[1], good[2])]).unwrap();
    let as_before = |node: &TestNode| {
        who(node, "10.3.192.65/32") == Some((15_614_229, false))
            && who(node, "10.77.0.0/24").is_some()
            && lets_in(node, server.id(), 15_614_229)
    };
    eventually("what is good is known", || as_before(&node));

    let large = "x".repeat(2_000_000);
    let ids = "cilium/state/identities/v1/id";
    let ips = "cilium/state/ip/v1";
    let nodes = "cilium/state/nodes/v1/cluster1";
    let bad: Vec<(String, String, &str)> = vec![
        (format!("{ips}/default/10.50.0.1"), "{".into(), "can't be read"),
        (format!("{ips}/10.50.0.2"), pair("10.50.0.2", 15_614_229), "<address space>"),
        (format!("{ips}/default/10.50.0.3"), pair("10.50.0.4", 15_614_229), "same address"),
        (format!("{ips}/default/10.50.0.5"), pair("10.50.0.5", 16_777_217), "one node alone"),
        (format!("{ips}/default/10.50.0.6"), large.clone(), "2000000 bytes"),
        (format!("{ids}/abc"), "k8s:a=b;".into(), "number of a global identity"),
        (format!("{ids}/15614300"), "k8s:a=b".into(), "`;`"),
        (format!("{ids}/15614301"), "k8s:b=1;k8s:a=1;".into(), "not sorted"),
        (format!("{ids}/15614302"), large.clone(), "2000000 bytes"),
        (
            format!("{ids}/999999"),
            "k8s:io.cilium.k8s.policy.cluster=cluster1;".into(),
            "its numbers are 15597568 to 15663103",
        ),
        (format!("{nodes}/corrupt"), "[".into(), "can't be read"),
        (format!("{nodes}/large"), large, "2000000 bytes"),
        (
            format!("{nodes}/foreign"),
            node_entry("foreign", "10.3.9.78", "10.78.0.0").replace("238", "7"),
            "says 7",
        ),
        (format!("{nodes}/same-range"), node_entry("same-range", "10.3.9.79", "10.77.0.0"), "has the prefix"),
        (
            format!("{nodes}/our-range"),
            node_entry("our-range", "10.3.9.80", "10.11.0.0"),
            "node-a` has the prefix",
        ),
        (
            format!("{nodes}/same-ip"),
            node_entry("same-ip", "10.3.9.77", "10.81.0.0"),
            "good` has the address",
        ),
    ];
    for (key, value, _) in &bad {
        etcd.etcdctl_reading(value, &["put", key]).unwrap();
    }
    eventually("all are counted", || metric(&node, "villus_kvstore_refused_entries") == bad.len() as f64);
    assert!(metric(&node, "villus_kvstore_refused_total") >= bad.len() as f64);
    eventually("they are said", || status(&node).contains(&format!("{} can't be used", bad.len())));
    assert!(as_before(&node));
    // The same again is nothing new.
    etcd.etcdctl(&["put", &bad[0].0, &bad[0].1]).unwrap();
    eventually("it is counted", || metric(&node, "villus_kvstore_refused_total") > bad.len() as f64);
    let log = std::fs::read_to_string(node.root.join("log")).unwrap();
    for (key, _, says) in &bad {
        let named = format!("key=\"{key}\"");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&named)).collect();
        assert!(lines.len() == 1 && lines[0].contains(says), "{key}, {says}: {lines:?}");
        assert!(lines[0].len() < 1000, "{key}: its value is not in the log");
    }

    // Two keys for one address of another: what was written last counts, and the other is named.
    let [first, second] = ["default", "cluster1"].map(|space| format!("{ips}/{space}/10.50.0.20"));
    etcd.etcdctl(&["put", &first, &pair("10.50.0.20", 15_614_229)]).unwrap();
    let elsewhere = pair("10.50.0.20", 15_614_229).replace("9.77", "9.78");
    for _ in 0..3 {
        etcd.etcdctl(&["put", &second, &elsewhere]).unwrap();
    }
    let refused = || metric(&node, "villus_kvstore_refused_entries");
    eventually("it is counted", || refused() == bad.len() as f64 + 1.0);
    let log = std::fs::read_to_string(node.root.join("log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("10.50.0.20")).collect();
    let named = format!("key=\"{first}\"");
    assert!(lines.len() == 1 && lines[0].contains(&named) && lines[0].contains(&second), "{lines:?}");
    etcd.etcdctl(&["del", &first]).unwrap();
    eventually("one alone is none too many", || refused() == bad.len() as f64);
    etcd.etcdctl(&["del", &second]).unwrap();

    // Two keys for one address of this node's own: the endpoint is who it is.
    let own = server.endpoint.status.identity.as_ref().unwrap().id;
    let v4 = server.v4().to_string();
    etcd.etcdctl(&["put", &format!("{ips}/cluster1/{v4}"), &pair(&v4, 15_614_229)]).unwrap();
    // Labels with `/` and `=`, and fields that a later version has.
    let odd = "k8s:path=/a//b=c/;k8s:x=y=z;";
    etcd.etcdctl(&["put", &format!("{ids}/15614400"), odd]).unwrap();
    let later = pair("10.50.0.9", 15_614_400).replace("\"Key\"", r#""Later":{"x":[1]},"Key""#);
    etcd.etcdctl(&["put", &format!("{ips}/default/10.50.0.9"), &later]).unwrap();
    let later =
        node_entry("later", "10.3.9.90", "10.90.0.0").replace("\"ClusterID\"", r#""Later":[{}],"ClusterID""#);
    etcd.etcdctl(&["put", &format!("{nodes}/later"), &later]).unwrap();
    eventually("what is new is known", || {
        who(&node, "10.50.0.9/32") == Some((15_614_400, false)) && who(&node, "10.90.0.0/24").is_some()
    });
    assert_eq!(who(&node, &format!("{v4}/32")).unwrap().0, own);
    // This node's labels too, and a slave key of somebody that holds no number.
    let labelled = node.workload("labelled", &["k8s:url=/a=b/c"]);
    let number = labelled.endpoint.status.identity.as_ref().unwrap().id;
    assert_eq!(number >> 16, 238);
    let text = value(&etcd, &format!("{ids}/{number}"));
    assert!(text.contains("k8s:url=/a=b/c;"), "{text}");
    let slaves = format!("cilium/state/identities/v1/value/{text}/");
    let used = || etcd.etcdctl(&["get", "--prefix", &slaves, "--print-value-only"]).unwrap();
    eventually("it is told", || used().trim() == number.to_string());
    node.client().delete_endpoint(&EndpointRef::Id(labelled.id())).unwrap();
    eventually("nobody uses it", || used().is_empty());
    etcd.etcdctl(&["put", &format!("{slaves}10.3.9.10"), "junk"]).unwrap();
    let again = node.endpoint("labelled", &["k8s:url=/a=b/c"]).unwrap();
    assert_eq!(again.status.identity.as_ref().unwrap().id, number);
    let log = std::fs::read_to_string(node.root.join("log")).unwrap();
    assert!(
        log.contains("a slave key holds no identity") && log.contains(&format!("{slaves}10.3.9.10")),
        "{log}"
    );
    // What is mended is used, what is deleted is forgotten.
    etcd.etcdctl(&["put", &bad[0].0, &pair("10.50.0.1", 15_614_229)]).unwrap();
    for (key, _, _) in &bad[1..] {
        etcd.etcdctl(&["del", key]).unwrap();
    }
    eventually("it is known", || who(&node, "10.50.0.1/32") == Some((15_614_229, false)));
    // The slave key is looked at when somebody allocates its labels.
    eventually("the others are forgotten", || metric(&node, "villus_kvstore_refused_entries") == 1.0);
    assert!(as_before(&node));
}

#[test]
fn certificates_that_are_missing_or_have_expired_are_said_and_waited_for() {
    alone!();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::new("ca of the test");
    ca.write(&path.join("ca.crt"));
    for name in ["server", "admin"] {
        ca.issue(path, name);
    }
    let etcd = EtcdServer::secure(path);
    let opt = with_certificate(&etcd, path);
    let mut node = new(&with(shared(&etcd), &[("kvstore-opt", &opt)]));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    let mut open = client.connects(server.v4(), 80).unwrap();
    let of_the_cluster = |node: &TestNode| {
        let endpoints = node.client().endpoints(&[]).unwrap();
        endpoints.iter().all(|endpoint| endpoint.status.identity.as_ref().unwrap().id >> 16 == 238)
    };
    assert!(!of_the_cluster(&node));
    eventually("the missing file is named", || {
        status(&node).contains("agent.crt") && status(&node).contains("cannot be read")
    });
    ca.issue_expired(path, "agent");
    eventually("the expired one is", || status(&node).contains("agent.crt has expired at"));
    ca.issue_future(path, "agent");
    eventually("one that is of the future to this clock", || status(&node).contains("look at the clock"));
    ca.issue(path, "agent");
    eventually("the store is there", || of_the_cluster(&node) && status(&node).contains("1/1 connected"));
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    eventually("its addresses are told", || !value(&etcd, &key).is_empty());
    ca.issue_expired(path, "agent");
    eventually("it is said", || status(&node).contains("agent.crt has expired at"));
    assert!(echoes(&mut open) && client.asks(server.v4(), 80) && of_the_cluster(&node));
    ca.issue(path, "agent");
    eventually("all is well", || !status(&node).contains("has expired"));
}

#[test]
fn a_restored_store_that_has_gone_on_beyond_what_was_seen_is_filled_again() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let directory = tempfile::tempdir().unwrap();
    let backup = directory.path().join("backup");
    let own = "cilium/state/nodes/v1/cluster1/node-a";
    eventually("this node has told", || !value(&etcd, own).is_empty());
    etcd.save(&backup);
    let server = node.workload("server", &["k8s:app=server"]);
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    eventually("all is known", || {
        who(&node, "10.3.192.65/32") == Some((15_614_229, false)) && !value(&etcd, &key).is_empty()
    });
    // While the agent cannot look, the store is restored and used by others.
    node.pause();
    etcd.kill();
    etcd.restore(&backup);
    etcd.resume();
    etcd.wait();
    for n in 0..60 {
        etcd.etcdctl(&["put", "elsewhere", &n.to_string()]).unwrap();
    }
    node.go_on();
    eventually("this node tells again", || !value(&etcd, &key).is_empty());
    eventually("what nobody tells again is stale", || status(&node).contains("count though nobody"));
    assert_eq!(who(&node, "10.3.192.65/32"), Some((15_614_229, false)), "and counts");
}
