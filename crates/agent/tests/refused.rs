//! A store that does not take or give everything: it is said, key by key, and holds up nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::IpAddr;

use common::store::{OUTSIDE, new, shared, status, value, who, with};
use villus_testbed::{EtcdServer, alone, eventually, run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// Switches authentication on: `a`, for whom `kvstore-opt` comes back, reads and writes what this says.
fn secure(etcd: &EtcdServer, rights: &[&str]) -> String {
    let rights = rights.iter().map(|right| format!("role grant-permission --prefix=true agents {right}"));
    let begin = ["role add agents"].map(str::to_owned).into_iter();
    let end = [
        "role grant-permission --prefix=true agents readwrite cilium/.initlock/",
        "role grant-permission --prefix=true agents readwrite cilium/cluster-config/cluster1",
        "role grant-permission --prefix=true agents readwrite villus/",
        "role grant-permission agents read cilium/.heartbeat",
        "user add a:secret",
        "user grant-role a agents",
        "user add root:secret",
        "user grant-role root root",
        "auth enable",
    ];
    for line in begin.chain(rights).chain(end.map(str::to_owned)) {
        etcd.etcdctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let file = "/tmp/etcd.yaml";
    let text = format!("endpoints: [\"{}\"]\nusername: a\npassword: secret\n", etcd.url());
    std::fs::write(file, text).unwrap();
    format!(r#"{{"etcd.config": "{file}"}}"#)
}

#[test]
fn what_the_agent_before_left_goes_though_a_key_is_refused_and_what_only_that_says_stays() {
    alone!();
    let etcd = EtcdServer::start();
    let mut node = new(&shared(&etcd));
    node.start();
    let [kept, gone] = ["kept", "gone"].map(|name| node.workload(name, &["k8s:app=server"]));
    let key = |space: &str, ip: IpAddr| format!("cilium/state/ip/v1/{space}/{ip}");
    let all = [kept.v4(), kept.v6(), gone.v4(), gone.v6()];
    eventually("they are told", || all.iter().all(|ip| !value(&etcd, &key("default", *ip)).is_empty()));
    node.kill();
    run("ip", &["link", "del", &gone.endpoint.status.networking.interface_name]);
    // The next one is to write into the cluster's own space, and may not. Nor may it delete the first of what is left.
    let may =
        ["nodes/", "identities/", "ip/v1/default/fd"].map(|part| format!("readwrite cilium/state/{part}"));
    let rights = [&["read cilium/"][..], &may.each_ref().map(String::as_str)].concat();
    let opt = secure(&etcd, &rights);
    let others = [("kvstore-opt", opt.as_str()), ("kvstore-address-space", "cluster")];
    node.options = with(std::mem::take(&mut node.options), &others);
    node.start();
    let root = |args: &[&str]| etcd.etcdctl(&[&["--user=root:secret"], args].concat()).unwrap();
    let has = |key: &str| !root(&["get", "--keys-only", key]).trim().is_empty();
    eventually("it is said", || status(&node).contains(&format!("`{}", key("cluster1", kept.v4()))));
    eventually("what nobody has any more goes", || !has(&key("default", gone.v6())));
    assert!(has(&key("default", kept.v6())), "nothing else says it");
    assert!(has(&key("default", gone.v4())), "it may not");
    root(&["role", "grant-permission", "--prefix=true", "agents", "readwrite", "cilium/state/ip/v1/"]);
    eventually("each is said there, and not twice", || {
        all[..2].iter().all(|ip| has(&key("cluster1", *ip)) && !has(&key("default", *ip)))
    });
    eventually("all that is left goes", || !has(&key("default", gone.v4())));
}

#[test]
fn a_store_without_space_is_said_for_what_this_node_cannot_write() {
    alone!();
    let etcd = EtcdServer::cluster_at("127.0.0.1", 1, &["--quota-backend-bytes=1048576"]).pop().unwrap();
    let mut node = new(&shared(&etcd));
    node.start();
    node.workload("before", &["k8s:app=server"]);
    let junk = "x".repeat(120 << 10);
    let full = (0..100).any(|n| etcd.etcdctl(&["put", &format!("junk/{n}"), &junk]).is_none());
    assert!(full, "the quota holds");
    let later = node.workload("later", &["k8s:app=server"]);
    let key = format!("cilium/state/ip/v1/default/{}", later.v4());
    eventually("it is said, with what to do", || {
        let status = status(&node);
        let says = ["what this node says of itself can't be written", "has no space", "etcdctl alarm disarm"];
        says.into_iter().all(|text| status.contains(text))
    });
    assert_eq!(value(&etcd, &key), "");
    etcd.etcdctl(&["del", "--prefix", "junk/"]).unwrap();
    let revision = etcd.etcdctl(&["get", "x", "-w", "json"]).unwrap();
    let revision: serde_json::Value = serde_json::from_str(&revision).unwrap();
    etcd.etcdctl(&["compact", &revision["header"]["revision"].to_string()]).unwrap();
    etcd.etcdctl(&["defrag"]).unwrap();
    etcd.etcdctl(&["alarm", "disarm"]).unwrap();
    eventually("it is written", || value(&etcd, &key).contains("cilium-global:cluster1:node-a:"));
    eventually("all is well", || !status(&node).contains("can't be written"));
}

#[test]
fn a_prefix_that_may_not_be_read_is_said_and_holds_up_nothing() {
    alone!();
    let etcd = EtcdServer::start();
    let opt = secure(&etcd, &["readwrite cilium/state/"]);
    let mut node = new(&with(shared(&etcd), &[("kvstore-opt", &opt)]));
    node.start();
    let workload = node.workload("server", &["k8s:app=server"]);
    let key = format!("cilium/state/ip/v1/default/{}", workload.v4());
    let root = |args: &[&str]| etcd.etcdctl(&[&["--user=root:secret"], args].concat()).unwrap();
    eventually("this node is told", || root(&["get", &key]).contains("cilium-global:cluster1:node-a:"));
    eventually("what can't be read is said", || {
        let status = status(&node);
        status.contains("`cilium/cache/")
            && status.contains("can't be read, nor")
            && status.contains("permission denied")
    });
    eventually("and nothing waits for it", || {
        std::fs::read_to_string(node.root.join("lib/cluster-size.json")).is_ok()
    });
    root(&["role", "grant-permission", "--prefix=true", "agents", "read", "cilium/"]);
    eventually("all is well", || !status(&node).contains("can't be read"));

    // The identities of its own cluster: what is known of them goes on counting.
    let beside = ["nodes/", "ip/", "identities/v1/value/", "identities/v1/locks/"];
    for prefix in beside.map(|part| format!("cilium/state/{part}")) {
        root(&["role", "grant-permission", "--prefix=true", "agents", "readwrite", &prefix]);
    }
    for prefix in ["cilium/state/", "cilium/"] {
        root(&["role", "revoke-permission", "--prefix=true", "agents", prefix]);
    }
    node.kill();
    node.options.push(("allocator-list-timeout".into(), "1s".into()));
    node.start();
    let denied = || status(&node).contains("`cilium/state/identities/v1/id/` can't be read");
    eventually("it is said of them too", denied);
    root(&["role", "grant-permission", "--prefix=true", "agents", "readwrite", "cilium/"]);
    eventually("all is well again", || !denied());
}

#[test]
fn addresses_that_are_gone_count_until_it_can_be_read_whether_their_node_is_there() {
    alone!();
    let etcd = EtcdServer::start();
    etcd.etcdctl(&["put", OUTSIDE[0].0, OUTSIDE[0].1]).unwrap();
    let lease_of = |name: &str, n: u8| {
        let granted = etcd.etcdctl(&["lease", "grant", "3600"]).unwrap();
        let lease = format!("--lease={}", granted.split_whitespace().nth(1).unwrap());
        let entry = format!(
            r#"{{"Name":"{name}","Cluster":"cluster1","IPAddresses":[{{"Type":"InternalIP","IP":"10.3.9.{n}"}}],"IPv4AllocCIDR":{{"IP":"10.{n}.0.0","Mask":"////AA=="}},"ClusterID":238}}"#
        );
        let pair = format!(
            r#"{{"IP":"10.{n}.0.5","Mask":null,"HostIP":"10.3.9.{n}","ID":15614229,"Key":0,"Metadata":""}}"#
        );
        let address = format!("cilium/state/ip/v1/default/10.{n}.0.5");
        for (key, value) in [(&address, &pair), (&format!("cilium/state/nodes/v1/cluster1/{name}"), &entry)] {
            etcd.etcdctl(&["put", &lease, key, value]).unwrap();
        }
        (lease.trim_start_matches("--lease=").to_owned(), address)
    };
    let ((dead, _), (_, deleted)) = (lease_of("b", 66), lease_of("c", 67));
    let parts = ["identities/", "ip/", "nodes/"].map(|part| format!("readwrite cilium/state/{part}"));
    let others = ["read cilium/cache/", "read cilium/cluster-config/"];
    let rights = [&others[..], &parts.each_ref().map(String::as_str)].concat();
    let opt = secure(&etcd, &rights);
    let mut node = new(&with(shared(&etcd), &[("kvstore-opt", &opt)]));
    node.start();
    let knows = |node: &_| ["10.66.0.5/32", "10.67.0.5/32"].map(|prefix| who(node, prefix).is_some());
    eventually("both are known", || knows(&node) == [true; 2]);

    // One node dies and the other deletes an address while this one is cut off, and it hears of nodes last.
    node.kill();
    let root = |args: &[&str]| etcd.etcdctl(&[&["--user=root:secret"], args].concat()).unwrap();
    root(&["lease", "revoke", &dead]);
    root(&["del", &deleted]);
    root(&["role", "revoke-permission", "--prefix=true", "agents", "cilium/state/nodes/"]);
    node.start();
    eventually("it is said", || status(&node).contains("2 until it is known whether their nodes are there"));
    assert_eq!(knows(&node), [true; 2]);
    let unread = || status(&node).contains("`cilium/state/nodes/v1/` can't be read");
    eventually("nodes are not heard of", unread);
    assert_eq!(knows(&node), [true; 2]);

    // What can be read is asked for before that.
    for name in ["b", "c"] {
        let key = format!("cilium/state/nodes/v1/cluster1/{name}");
        root(&["role", "grant-permission", "agents", "read", &key]);
    }
    eventually("what was deleted on purpose is gone", || knows(&node) == [true, false]);
    assert!(unread());
    root(&["role", "grant-permission", "--prefix=true", "agents", "readwrite", "cilium/state/nodes/"]);
    eventually("the node is silent", || {
        let status = status(&node);
        status.contains("1 node and 1 address count") && !status.contains("until it is known")
    });
    assert_eq!(knows(&node), [true, false]);
}
