//! Nodes that share a store: what one says the other knows, and what happens when the store is away, wiped or strange.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::store::{
    LETS_IN, OUTSIDE, has_read, join_b, lets_in, metric, new, node_b, shared, started, status, value, who,
    with,
};
use common::{TestNode, allow, echoes};
use villus_api::model::{FreezeRequest, IpQuery, MetricValue, NodeForget};
use villus_datapath::{Maps, Pins, view_policy};
use villus_testbed::{EtcdServer, alone, eventually, run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// What the node says that an address is pending for.
fn waits_for(node: &TestNode, prefix: &str) -> String {
    let all = node.client().ips(&IpQuery::default()).unwrap();
    all.into_iter()
        .find(|entry| entry.cidr == prefix)
        .map(|entry| entry.metadata.waits_for)
        .unwrap_or_default()
}

#[test]
fn the_published_lines_make_a_workload_known_until_they_are_deleted() {
    alone!();
    let etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    node.import(LETS_IN);
    let (number, labels) = OUTSIDE[0];
    etcd.etcdctl(&["put", OUTSIDE[2].0, OUTSIDE[2].1]).unwrap();
    eventually("it is known and pending", || who(&node, "10.3.192.65/32") == Some((15_614_229, true)));
    assert!(!lets_in(&node, server.id(), 15_614_229));
    assert_eq!(waits_for(&node, "10.3.192.65/32"), "the store has no identity 15614229");
    let (key, value) = (OUTSIDE[2].0.replace("192.65", "192.66"), OUTSIDE[2].1.replace("192.65", "192.66"));
    etcd.etcdctl(&["put", &key, &value.replace("15614229", "131073")]).unwrap();
    let foreign = "nobody tells of identity 131073, of cluster 2";
    eventually("so is another cluster's", || waits_for(&node, "10.3.192.66/32") == foreign);
    etcd.etcdctl(&["put", number, labels]).unwrap();
    etcd.etcdctl(&["put", OUTSIDE[1].0, OUTSIDE[1].1]).unwrap();
    eventually("it is resolved", || who(&node, "10.3.192.65/32") == Some((15_614_229, false)));
    assert!(lets_in(&node, server.id(), 15_614_229), "policy is in force before the address is");
    etcd.etcdctl(&["del", OUTSIDE[2].0]).unwrap();
    eventually("it is gone", || who(&node, "10.3.192.65/32").is_none());
    etcd.etcdctl(&["del", number]).unwrap();
    eventually("so is its identity", || !lets_in(&node, server.id(), 15_614_229));
    let now = || node.client().metrics().unwrap();
    let count = |metrics: &[MetricValue], name: &str, labels: &[(&str, &str)]| -> f64 {
        let has = |m: &MetricValue| {
            m.name == name && labels.iter().all(|(key, of)| m.labels.get(*key).is_some_and(|has| has == of))
        };
        metrics.iter().filter(|m| has(m)).map(|m| m.value).sum()
    };
    let operations = "cilium_kvstore_operations_duration_seconds_count";
    for (scope, kind, action) in [
        ("identities/v1", "set", "txn"),
        ("ip/v1", "set", "txn"),
        ("nodes/v1", "read", "watch"),
        ("leases", "set", "grant"),
    ] {
        let labels = [("scope", scope), ("kind", kind), ("action", action), ("outcome", "success")];
        eventually(&format!("{labels:?} is counted"), || count(&now(), operations, &labels) >= 1.0);
    }
    let bounded = "cilium_kvstore_operations_duration_seconds_bucket";
    eventually("each is in a bucket", || {
        let metrics = now();
        count(&metrics, bounded, &[("le", "+Inf")]) == count(&metrics, operations, &[])
    });
    for (scope, action) in [("ip/v1", "update"), ("ip/v1", "delete"), ("identities/v1", "delete")] {
        let labels = [("scope", scope), ("action", action)];
        let events = "cilium_kvstore_events_queue_seconds_count";
        eventually(&format!("{labels:?} is counted"), || count(&now(), events, &labels) >= 1.0);
    }
}

/// What a mesh copies of cluster c2: key and value.
const COPIES: [(&str, &str); 3] = [
    (
        "cilium/cache/identities/v1/c2/id/131073",
        "k8s:app=shop;k8s:io.cilium.k8s.policy.cluster=c2;k8s:io.kubernetes.pod.namespace=default;",
    ),
    (
        "cilium/cache/nodes/v1/c2/n1",
        r#"{"Name":"n1","Cluster":"c2","IPAddresses":[{"Type":"InternalIP","IP":"10.3.22.1"}],"IPv4AllocCIDR":{"IP":"10.22.0.0","Mask":"////AA=="},"ClusterID":2}"#,
    ),
    (
        "cilium/cache/ip/v1/c2/10.22.0.5",
        r#"{"IP":"10.22.0.5","Mask":null,"HostIP":"10.3.22.1","ID":131073,"Key":0,"Metadata":""}"#,
    ),
];

/// A policy that lets a cluster in.
const LETS_C2_IN: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: c2, namespace: default}\n\
    spec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n  \
    - fromEndpoints: [{matchLabels: {\"k8s:io.cilium.k8s.policy.cluster\": c2}}]\n";

#[test]
fn copies_of_another_clusters_entries_are_known_also_without_the_store_and_in_either_layout() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    node.import(LETS_C2_IN);
    for (key, value) in COPIES {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    let is_known = |node: &TestNode| {
        who(node, "10.22.0.5/32") == Some((131_073, false))
            && who(node, "10.22.0.0/24") == Some((2, true))
            && lets_in(node, server.id(), 131_073)
    };
    eventually("the workload and its node are known", || is_known(&node));
    let names: Vec<String> = node.client().nodes().unwrap().into_iter().map(|node| node.name).collect();
    assert_eq!(names, ["c2/n1", "cluster1/node-a"]);
    let forget = NodeForget { name: "c2/n1".into(), force: true, ..NodeForget::default() };
    let refused = node.client().forget_node(&forget).unwrap_err().to_string();
    assert!(refused.contains("another cluster's node"), "{refused}");
    eventually("it is written down", || {
        let text = std::fs::read_to_string(node.root.join("lib/cluster.json")).unwrap_or_default();
        COPIES.iter().all(|(key, _)| text.contains(key.rsplit('/').next().unwrap()))
    });
    etcd.kill();
    node.kill();
    node.start();
    eventually("it is known from the snapshot", || is_known(&node));
    etcd.resume();
    etcd.wait();
    eventually("the store is back", || !status(&node).contains("from snapshot"));
    assert!(is_known(&node));
    // The same in the other layout; then the former one goes.
    for (key, value) in COPIES {
        let key = key.replace("/cache/", "/state/").replace("/v1/c2/id/", "/v1/id/");
        etcd.etcdctl(&["put", &key, value]).unwrap();
    }
    // Each kind is read by itself: so each has one more, which says that what came before it was read.
    let last = [
        ("cilium/state/identities/v1/id/131074", COPIES[0].1.replace("shop", "last")),
        (
            "cilium/state/nodes/v1/c2/n2",
            COPIES[1].1.replace("n1", "n2").replace("22.1", "22.2").replace("22.0", "23.0"),
        ),
        ("cilium/state/ip/v1/c2/10.22.0.6", COPIES[2].1.replace("22.0.5", "22.0.6")),
    ];
    for (key, value) in &last {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    let has_last = || {
        [
            lets_in(&node, server.id(), 131_074),
            who(&node, "10.23.0.0/24").is_some(),
            who(&node, "10.22.0.6/32").is_some(),
        ]
    };
    eventually("the state is read", || has_last() == [true; 3]);
    etcd.etcdctl(&["del", "--prefix", "cilium/cache/"]).unwrap();
    for (key, _) in &last {
        etcd.etcdctl(&["del", key]).unwrap();
    }
    eventually("what was deleted is gone", || has_last() == [false; 3]);
    assert!(is_known(&node), "by the state");
    etcd.etcdctl(&["del", "cilium/state/ip/v1/c2/10.22.0.5"]).unwrap();
    eventually("then it is gone", || who(&node, "10.22.0.5/32").is_none());
}

#[test]
fn numbers_that_no_store_gives_are_known() {
    alone!();
    let etcd = EtcdServer::start();
    let mut node = new(&with(shared(&etcd), &[("fixed-identity-mapping", "128=kv-store")]));
    node.start();
    for (address, number) in [("10.3.192.65", 104), ("10.3.192.66", 128), ("10.3.192.67", 129)] {
        let key = format!("cilium/state/ip/v1/default/{address}");
        let value = OUTSIDE[2].1.replace("10.3.192.65", address).replace("15614229", &number.to_string());
        etcd.etcdctl(&["put", &key, &value]).unwrap();
    }
    eventually("CoreDNS of others is known", || who(&node, "10.3.192.65/32") == Some((104, false)));
    eventually("so is a number of the operator's", || who(&node, "10.3.192.66/32") == Some((128, false)));
    eventually("one that nobody has said waits", || who(&node, "10.3.192.67/32") == Some((129, true)));
    let dns = ["k8s:k8s-app=kube-dns", "k8s:io.kubernetes.pod.namespace=kube-system"];
    let account = "k8s:io.cilium.k8s.policy.serviceaccount=coredns";
    let dns = node.workload("dns", &[dns[0], dns[1], account]);
    let store = node.workload("kv", &["k8s:app=etcd", "k8s:io.cilium.fixed-identity=kv-store"]);
    let number = |workload: &common::Workload| workload.endpoint.status.identity.as_ref().unwrap().id;
    assert_eq!((number(&dns), number(&store)), (104, 128));
}

#[test]
fn without_the_store_the_agent_serves_and_enforces_and_settles_when_it_comes() {
    alone!();
    let mut etcd = EtcdServer::start();
    etcd.kill();
    let soon = [("allocator-list-timeout", "1s"), ("kvstore-max-consecutive-quorum-errors", "1")];
    let mut node = new(&with(shared(&etcd), &soon));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    let other = node.workload("other", &["k8s:app=other"]);
    node.import(&allow("web", "server", "client", 80));
    server.serves(server.v4(), 80);
    let mut open = client.connects(server.v4(), 80).unwrap();
    assert!(echoes(&mut open) && other.asks_in_vain(server.v4(), 80));
    let interim = server.endpoint.status.identity.as_ref().unwrap().id;
    assert!(interim >= 1 << 24, "{interim}");
    eventually("it is said", || {
        let status = status(&node);
        let alarms = ["could not be listed within 1s (allocator-list-timeout)", "it has no quorum ("];
        let waits = ["interim identity of endpoint", "it does not answer (for"];
        alarms.into_iter().chain(waits).all(|text| status.contains(text))
    });

    // Wherever somebody looks at it.
    let api = node.client();
    let known = api.identities(&["k8s:app=server".into()]).unwrap();
    assert!(known.iter().any(|identity| identity.id == interim && identity.interim), "{known:?}");
    let endpoints = api.endpoints(&[]).unwrap();
    assert!(endpoints.iter().all(|endpoint| endpoint.status.identity.as_ref().unwrap().interim));
    let address = format!("{}/32", server.v4());
    let is_interim = |node: &TestNode| {
        let all = node.client().ips(&IpQuery::default()).unwrap();
        all.iter().find(|row| row.cidr == address).map(|row| row.metadata.interim)
    };
    assert_eq!(is_interim(&node), Some(true));

    etcd.resume();
    etcd.wait();
    let number = || {
        let endpoints = node.client().endpoints(&[]).unwrap();
        let all: Vec<u32> = endpoints.iter().map(|e| e.status.identity.as_ref().unwrap().id).collect();
        all.iter().all(|id| id >> 16 == 238).then_some(all)
    };
    eventually("all have numbers of the cluster", || number().is_some());
    eventually("nothing is marked any more", || is_interim(&node) == Some(false));
    assert!(echoes(&mut open), "open connections go on");
    assert!(client.asks(server.v4(), 80) && other.asks_in_vain(server.v4(), 80));
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    eventually("its addresses are told", || value(&etcd, &key).contains("cilium-global:cluster1:node-a:"));
    eventually("its node is told", || {
        value(&etcd, "cilium/state/nodes/v1/cluster1/node-a").contains("10.3.9.1")
    });
    eventually("the cluster is said", || {
        value(&etcd, "cilium/cluster-config/cluster1")
            == r#"{"id":238,"capabilities":{"maxConnectedClusters":255}}"#
    });
    eventually("all is well", || {
        let status = status(&node);
        let over = ["interim", "could not be listed", "has no quorum"];
        status.contains("1/1 connected") && !over.into_iter().any(|text| status.contains(text))
    });
}

#[test]
fn an_agent_started_without_the_store_knows_all_from_the_snapshot() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = started(&shared(&etcd));
    let server = node.workload("server", &["k8s:app=server"]);
    let before = node.client().endpoints(&[]).unwrap()[0].status.identity.as_ref().unwrap().id;
    node.import(LETS_IN);
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    eventually("it is written down", || {
        std::fs::read_to_string(node.root.join("lib/cluster.json"))
            .is_ok_and(|text| text.contains("10.3.192.65"))
    });
    eventually("the start gate is told how many nodes there are", || {
        std::fs::read_to_string(node.root.join("lib/cluster-size.json"))
            .is_ok_and(|text| text == r#"{"nodes":1}"#)
    });
    etcd.kill();
    node.kill();
    node.start();
    eventually("it is known", || who(&node, "10.3.192.65/32") == Some((15_614_229, false)));
    eventually("policy is in force", || lets_in(&node, server.id(), 15_614_229));
    assert_eq!(node.client().endpoints(&[]).unwrap()[0].status.identity.as_ref().unwrap().id, before);
    assert!(status(&node).contains("from snapshot, age"), "{}", status(&node));
    etcd.resume();
    eventually("the store is back", || !status(&node).contains("from snapshot"));
    etcd.etcdctl(&["del", OUTSIDE[2].0]).unwrap();
    eventually("changes are followed", || who(&node, "10.3.192.65/32").is_none());
    assert_eq!(node.client().endpoints(&[]).unwrap()[0].status.identity.as_ref().unwrap().id, before);
}

#[test]
fn a_wiped_store_is_filled_again_and_nothing_is_lost_meanwhile() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    node.import(LETS_IN);
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    eventually("it is known", || who(&node, "10.3.192.65/32") == Some((15_614_229, false)));
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    eventually("this node has told", || !value(&etcd, &key).is_empty());
    etcd.kill();
    etcd.wipe();
    etcd.resume();
    etcd.wait();
    eventually("this node has told again", || !value(&etcd, &key).is_empty());
    eventually("and its identity", || {
        let ids = etcd.etcdctl(&["get", "--prefix", "cilium/state/identities/v1/id/"]).unwrap();
        ids.contains("k8s:app=server;")
    });
    eventually("what nobody told again is stale", || status(&node).contains("1 address count though nobody"));
    assert_eq!(who(&node, "10.3.192.65/32"), Some((15_614_229, false)), "and counts");
    assert!(lets_in(&node, server.id(), 15_614_229));
}

#[test]
fn what_others_do_to_this_nodes_keys_is_undone_and_said() {
    alone!();
    let etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    eventually("it is told", || !value(&etcd, &key).is_empty());
    let before = value(&etcd, &key);
    etcd.etcdctl(&["put", &key, "theirs"]).unwrap();
    eventually("it is as before", || value(&etcd, &key) == before);
    etcd.etcdctl(&["del", &key]).unwrap();
    eventually("again", || value(&etcd, &key) == before);
    etcd.etcdctl(&["del", "cilium/state/nodes/v1/cluster1/node-a"]).unwrap();
    eventually("the node too", || !value(&etcd, "cilium/state/nodes/v1/cluster1/node-a").is_empty());
    // What the agent before left goes; an address that no agent wrote stays.
    node.kill();
    run("ip", &["link", "del", &server.endpoint.status.networking.interface_name]);
    etcd.etcdctl(&["put", OUTSIDE[2].0, OUTSIDE[2].1]).unwrap();
    node.start();
    eventually("its address is not told any more", || value(&etcd, &key).is_empty());
    assert_eq!(value(&etcd, OUTSIDE[2].0), OUTSIDE[2].1);
}

#[test]
fn a_store_of_another_cluster_is_not_used() {
    alone!();
    let etcd = EtcdServer::start();
    etcd.etcdctl(&["put", "cilium/cluster-config/cluster1", r#"{"id":7}"#]).unwrap();
    let mut node = new(&shared(&etcd));
    node.start();
    eventually("it is said", || status(&node).contains("another cluster's"));
    node.workload("server", &["k8s:app=server"]);
    let keys = etcd.etcdctl(&["get", "--prefix", "--keys-only", "cilium/"]).unwrap();
    assert_eq!(keys.trim(), "cilium/cluster-config/cluster1");
}

#[test]
fn two_nodes_know_each_other() {
    alone!();
    join_b();
    let etcd = EtcdServer::cluster_at("10.3.9.1", 1, &[]).pop().unwrap();
    let mut a = new(&with(shared(&etcd), &[("kvstore-address-space", "cluster")]));
    let mut b = node_b(&etcd);
    a.start();
    b.start();
    [&a, &b].into_iter().for_each(has_read);
    let server = a.workload("server", &["k8s:app=server"]);
    let client = b.workload("client", &["k8s:app=client"]);
    let number = |w: &common::Workload| w.endpoint.status.identity.as_ref().unwrap().id;
    a.import(&allow("web", "server", "client", 80));
    let there = format!("{}/32", client.v4());
    eventually("a knows b's", || who(&a, &there) == Some((number(&client), false)));
    assert!(lets_in(&a, server.id(), number(&client)));
    eventually("b knows a's", || who(&b, &format!("{}/32", server.v4())) == Some((number(&server), false)));
    for (space, address) in [("cluster1", server.v4()), ("default", client.v4())] {
        let key = format!("cilium/state/ip/v1/{space}/{address}");
        assert!(value(&etcd, &key).contains(&address.to_string()), "each writes into its own address space");
    }
    eventually("a knows the other node", || {
        who(&a, "10.3.9.2/32") == Some((6, false)) && who(&a, "10.12.0.0/24") == Some((2, true))
    });
    // The same labels, the same number.
    let twin = a.workload("twin", &["k8s:app=client"]);
    assert_eq!(number(&twin), number(&client));

    b.client().delete_endpoint(&villus_api::EndpointRef::Id(client.id())).unwrap();
    eventually("a forgets it", || who(&a, &there).is_none());
}

#[test]
fn a_frozen_agent_stands_still_and_makes_up_for_it_when_it_is_thawed() {
    alone!();
    let etcd = EtcdServer::start();
    let mut node = started(&shared(&etcd));
    let server = node.workload("server", &["k8s:app=server"]);
    node.client().freeze(&FreezeRequest { reason: "a test".into() }).unwrap();
    assert!(status(&node).contains("frozen: by an operator (a test)"));
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    node.policy_file("later.yaml", LETS_IN);
    let import =
        villus_api::model::PolicyImport { file: "x".into(), text: LETS_IN.into(), ..Default::default() };
    let refused = node.client().import_policy(&import).unwrap_err().to_string();
    assert!(refused.contains("frozen"), "{refused}");
    // Endpoints come and go all the same, which takes longer than word from the store would.
    let twin = node.workload("twin", &["k8s:app=server"]);
    assert_eq!(twin.endpoint.status.identity, server.endpoint.status.identity);
    assert_eq!(who(&node, "10.3.192.65/32"), None);
    // The next one goes on standing still, by what this one knew.
    node.kill();
    node.start();
    let said = status(&node);
    assert!(said.contains("frozen: by an operator (a test; since 20"), "{said}");
    let later = node.workload("later", &["k8s:app=server"]);
    assert_eq!(later.endpoint.status.identity, server.endpoint.status.identity);
    assert_eq!(who(&node, "10.3.192.65/32"), None);
    node.client().thaw().unwrap();
    assert!(!node.root.join("lib/frozen.json").exists());
    eventually("it is known", || who(&node, "10.3.192.65/32") == Some((15_614_229, false)));
    eventually("the file is read", || lets_in(&node, server.id(), 15_614_229));
    assert!(!status(&node).contains("frozen"));
}

#[test]
fn a_node_that_does_not_come_back_is_forgotten_by_all() {
    alone!();
    let etcd = EtcdServer::start();
    let lease = etcd.etcdctl(&["lease", "grant", "86400"]).unwrap();
    let lease = lease.split_whitespace().nth(1).unwrap().to_owned();
    let dead = r#"{"Name":"dead","Cluster":"cluster1","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.77"}],"IPv4AllocCIDR":{"IP":"10.77.0.0","Mask":"////AA=="},"ClusterID":238}"#;
    let address =
        r#"{"IP":"10.77.0.5","Mask":null,"HostIP":"10.3.9.77","ID":15614229,"Key":0,"Metadata":""}"#;
    let keys = ["cilium/state/nodes/v1/cluster1/dead", "cilium/state/ip/v1/default/10.77.0.5"];
    for (key, value) in keys.iter().zip([dead, address]) {
        etcd.etcdctl(&["put", &format!("--lease={lease}"), key, value]).unwrap();
    }
    // What it uses lies under another lease, also what no address says.
    let (number, labels) = OUTSIDE[0];
    etcd.etcdctl(&["put", number, labels]).unwrap();
    let second = etcd.etcdctl(&["lease", "grant", "86400"]).unwrap();
    let second = second.split_whitespace().nth(1).unwrap().to_owned();
    let of = |labels: &str, node: &str| format!("cilium/state/identities/v1/value/{labels}/{node}");
    let uses = [of(labels, "10.3.9.77"), of("k8s:app=other;", "10.3.9.77")];
    for (key, number) in uses.iter().zip(["15614229", "15614230"]) {
        etcd.etcdctl(&["put", &format!("--lease={second}"), key, number]).unwrap();
    }
    // And what others use is theirs.
    let theirs = [of(labels, "10.3.9.78"), of(labels, "external.cluster1")];
    for key in &theirs {
        etcd.etcdctl(&["put", key, "15614229"]).unwrap();
    }
    let mut node = new(&shared(&etcd));
    node.start();
    eventually("it is known", || {
        who(&node, "10.77.0.5/32") == Some((15_614_229, false)) && who(&node, "10.77.0.0/24").is_some()
    });
    let nodes = node.client().nodes().unwrap();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["cluster1/dead", "cluster1/node-a"]);
    let mut forget = NodeForget { name: "dead".into(), ..NodeForget::default() };
    let refused = node.client().forget_node(&forget).unwrap_err().to_string();
    assert!(refused.contains("not silent"), "{refused}");
    forget.force = true;
    let would = node.client().forget_node(&NodeForget { dry_run: true, ..forget.clone() }).unwrap();
    assert_eq!(would.keys, [keys[1], &uses[0], keys[0]]);
    let forgotten = node.client().forget_node(&forget).unwrap();
    assert_eq!((forgotten.keys, forgotten.leases), (would.keys, 2));
    for key in keys.into_iter().chain(uses.iter().map(String::as_str)) {
        assert_eq!(value(&etcd, key), "", "{key}");
    }
    for key in &theirs {
        assert_eq!(value(&etcd, key), "15614229", "{key}");
    }
    let leases = etcd.etcdctl(&["lease", "list"]).unwrap();
    assert!(!leases.contains(&lease) && !leases.contains(&second), "{leases}");
    eventually("nothing of it is left", || {
        who(&node, "10.77.0.5/32").is_none() && who(&node, "10.77.0.0/24").is_none()
    });
    assert_eq!(node.client().nodes().unwrap().len(), 1);

    // One whose addresses went before it: what it uses is found by its own.
    let own_lease = || {
        let lease = etcd.etcdctl(&["lease", "grant", "86400"]).unwrap();
        lease.split_whitespace().nth(1).unwrap().to_owned()
    };
    let bare = dead.replace("dead", "bare").replace("9.77", "9.79").replace("10.77.0.0", "10.79.0.0");
    let keys =
        [of("k8s:app=other;k8s:path=/a/b;", "10.3.9.79"), "cilium/state/nodes/v1/cluster1/bare".to_owned()];
    let leases = [own_lease(), own_lease()];
    for ((key, value), lease) in keys.iter().zip(["15614230", &bare]).zip(&leases) {
        etcd.etcdctl(&["put", &format!("--lease={lease}"), key, value]).unwrap();
    }
    eventually("the other one is known", || who(&node, "10.79.0.0/24").is_some());
    forget.name = "bare".into();
    let forgotten = node.client().forget_node(&forget).unwrap();
    assert_eq!((forgotten.keys.as_slice(), forgotten.leases), (keys.as_slice(), 2));
    for key in &keys {
        assert_eq!(value(&etcd, key), "", "{key}");
    }
    let left = etcd.etcdctl(&["lease", "list"]).unwrap();
    assert!(leases.iter().all(|lease| !left.contains(lease)), "{left}");
    for key in &theirs {
        assert_eq!(value(&etcd, key), "15614229", "{key}");
    }
    eventually("nothing of that one is left", || who(&node, "10.79.0.0/24").is_none());
    let own = node.client().forget_node(&NodeForget { name: "node-a".into(), ..forget }).unwrap_err();
    assert!(own.to_string().contains("this node"), "{own}");
}

/// The entries of an endpoint's policy map that allow an identity: its ports.
fn ports_for(node: &TestNode, id: u16, identity: u32) -> Vec<u16> {
    let pins = Pins::existing(&node.root.join("bpf")).unwrap();
    let view = view_policy(&pins, &Maps::existing(&pins).unwrap(), id).unwrap();
    view.entries.keys().filter(|key| key.identity == identity).map(|key| key.port()).collect()
}

#[test]
fn rules_with_port_names_mean_the_ports_that_workloads_of_other_nodes_have_under_them() {
    alone!();
    let etcd = EtcdServer::start();
    for (key, value) in &OUTSIDE[..2] {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    let (key, value) = OUTSIDE[2];
    let tell = |ports: &str| {
        let value = value
            .replace(r#""K8sPodName":"pod1"}"#, &format!(r#""K8sPodName":"pod1","NamedPorts":{ports}}}"#));
        etcd.etcdctl(&["put", key, &value]).unwrap();
    };
    tell(
        r#"[{"Name":"http","Port":8080,"Protocol":"TCP"},{"Name":"no port name","Port":1,"Protocol":"TCP"}]"#,
    );
    let mut node = new(&shared(&etcd));
    node.start();
    let client = node.workload("client", &["k8s:app=client"]);
    node.import(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: default}\n\
         spec:\n  endpointSelector: {matchLabels: {app: client}}\n  egress:\n  \
         - toEndpoints: [{matchLabels: {app: app1, io.kubernetes.pod.namespace: ns1}}]\n    \
         toPorts: [{ports: [{port: http, protocol: TCP}]}]\n",
    );
    let ports = |node: &TestNode| ports_for(node, client.id(), 15_614_229);
    eventually("the port that its key names", || ports(&node) == [8080]);
    tell(r#"[{"Name":"http","Port":9090,"Protocol":"TCP"}]"#);
    eventually("it has moved", || ports(&node) == [9090]);
    // The policy is there when the agent starts without the store, as it was.
    node.stop();
    node.start();
    eventually("as before", || ports(&node) == [9090]);
    tell("[]");
    eventually("nobody has a port of that name", || ports(&node).is_empty());
}

#[test]
fn other_nodes_are_selected_by_their_labels_and_prefixes_where_options_say_so() {
    alone!();
    let etcd = EtcdServer::start();
    let tell = |name: &str, ip: &str, zone: &str| {
        let value = format!(
            r#"{{"Name":"{name}","Cluster":"cluster1","IPAddresses":[{{"Type":"InternalIP","IP":"{ip}"}}],"ClusterID":238,"Labels":{{"zone":"{zone}"}}}}"#
        );
        etcd.etcdctl(&["put", &format!("cilium/state/nodes/v1/cluster1/{name}"), &value]).unwrap();
    };
    tell("east-1", "10.3.9.71", "east");
    tell("east-2", "10.3.9.72", "east");
    tell("west-1", "10.3.10.73", "west");
    let mut node = new(&shared(&etcd));
    node.start();
    let server = node.workload("server", &["k8s:app=server"]);
    let policy = |peers: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: nodes, namespace: default}}\n\
             spec:\n  endpointSelector: {{matchLabels: {{app: server}}}}\n  ingress: [{{{peers}}}]\n"
        )
    };
    let of = |node: &TestNode, ip: &str| who(node, &format!("{ip}/32")).map(|(identity, _)| identity);
    let let_in = |node: &TestNode| {
        ["10.3.9.71", "10.3.9.72", "10.3.10.73"]
            .map(|ip| of(node, ip).is_some_and(|identity| lets_in(node, server.id(), identity)))
    };
    node.import(&policy("fromNodes: [{matchLabels: {zone: east}}]"));
    eventually("without the option all are alike", || of(&node, "10.3.10.73") == Some(6));
    assert_eq!(let_in(&node), [false; 3]);

    node.stop();
    node.options.push(("enable-node-selector-labels".into(), "true".into()));
    node.start();
    eventually("those of the zone", || let_in(&node) == [true, true, false]);
    let east = of(&node, "10.3.9.71").unwrap();
    assert!(east >> 24 == 2 && of(&node, "10.3.9.72") == Some(east) && of(&node, "10.3.10.73") != Some(east));
    tell("west-1", "10.3.10.73", "east");
    eventually("it has moved", || let_in(&node) == [true; 3] && of(&node, "10.3.10.73") == Some(east));
    tell("east-2", "10.3.9.72", "west");
    eventually("so has the other", || let_in(&node) == [true, false, true]);
    node.kill();
    node.start();
    eventually("all are known again", || let_in(&node) == [true, false, true]);
    assert_eq!(of(&node, "10.3.9.71"), Some(east), "the number outlives the agent");
    node.import(&policy("fromEntities: [remote-node]"));
    eventually("all of them", || let_in(&node) == [true; 3]);

    node.import(&policy("fromCIDRSet: [{cidr: 10.3.9.0/24, except: [10.3.9.72/32]}]"));
    eventually("no prefix means a node", || let_in(&node) == [false; 3]);
    node.stop();
    node.options.push(("policy-cidr-match-mode".into(), "nodes".into()));
    node.start();
    eventually("but where the option says so", || let_in(&node) == [true, false, false]);
}

#[test]
fn how_full_the_identity_space_is_is_said_from_half_on() {
    alone!();
    let etcd =
        EtcdServer::cluster_at("127.0.0.1", 1, &["--max-txn-ops=20000", "--max-request-bytes=4194304"])
            .pop()
            .unwrap();
    let mut node = new(&with(shared(&etcd), &[("max-connected-clusters", "511")]));
    node.start();
    let first = 238 << 15;
    let put = |numbers: std::ops::Range<u32>| {
        let puts: String = numbers
            .map(|n| format!("put cilium/state/identities/v1/id/{} k8s:n={n};\n", first + n))
            .collect();
        etcd.etcdctl_reading(&format!("\n{puts}\n\n"), &["txn"]).unwrap();
    };
    let says = |text: &str, known: f64| {
        metric(&node, "villus_identity_space_used_ratio") == known / 32_768.0 && status(&node).contains(text)
    };
    put(0..16_383);
    eventually("all are known", || says("", 16_383.0));
    assert!(!status(&node).contains("identities are used"), "just below half");
    for (share, numbers) in [(50, 16_383..16_384), (75, 16_384..24_576), (90, 24_576..29_492)] {
        let all = f64::from(numbers.end);
        put(numbers);
        let text = format!("{share} % of the cluster's identities are used ({all} of 32768)");
        eventually("it is said", || says(&text, all));
    }
    etcd.etcdctl(&["del", "--prefix", "cilium/state/identities/v1/id/"]).unwrap();
    eventually("it is no longer said", || !status(&node).contains("identities are used"));
}
