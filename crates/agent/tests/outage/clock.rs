//! An agent whose machine has a wrong calendar, which jumps while it runs, beside one that has the right one.

use std::time::{Duration, SystemTime};

use crate::common::store::{
    has_read, join_b, metric, new, node_b, put_shared_policy, shared, status, who, with, with_certificate,
};
use crate::common::{TestNode, allow, echoes};
use jiff::{SignedDuration, Timestamp};
use villus_api::model::PolicyQuery;
use villus_testbed::{Authority, Clock, EtcdServer, alone_as, eventually};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// The shortest that may be said.
const LEASE: &str = "25s";

fn in_seconds(seconds: i64) -> String {
    let time = Timestamp::now() + SignedDuration::from_secs(seconds);
    Timestamp::from_second(time.as_second()).unwrap().to_string()
}

/// Under which revision the key of a node was made: another, and it had run out.
fn made(etcd: &EtcdServer, node: &str) -> String {
    let key = format!("cilium/state/nodes/v1/cluster1/{node}");
    let fields = etcd.etcdctl(&["get", &key, "-w", "fields"]).unwrap();
    fields.lines().find(|line| line.contains("CreateRevision")).unwrap_or_default().to_owned()
}

fn has_version(node: &TestNode, version: u64) -> bool {
    let origins = node.client().policy(&PolicyQuery::default()).unwrap().origins;
    origins.iter().any(|origin| origin.origin == "cluster" && origin.version == version)
}

#[test]
fn a_clock_that_is_off_and_jumps_is_said_once_and_changes_nothing() {
    let side = alone_as!(["ahead", "behind"]);
    let sign = if side == "ahead" { 1 } else { -1 };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ca = Authority::new("ca of the test").also_for("10.3.9.1");
    ca.write(&path.join("ca.crt"));
    for name in ["admin", "agent"] {
        ca.issue(path, name);
    }
    // By the right clock the server's is valid.
    let (now, hours) = (SystemTime::now(), |n: u64| Duration::from_secs(n * 3600));
    let (from, to) = if sign > 0 { (hours(5), hours(1) / 2) } else { (hours(1) / 2, hours(5)) };
    ca.issue_for(path, "server", (now - from, now + to));

    join_b();
    let mut etcd = EtcdServer::secure_at("10.3.9.1", path);
    etcd.etcdctl(&["put", "cilium/.heartbeat", &in_seconds(0)]).unwrap();
    let mode = [
        ("routing-mode", "native"),
        ("auto-direct-node-routes", "true"),
        ("enable-ipv4-masquerade", "false"),
        ("enable-ipv6-masquerade", "false"),
        ("kvstore-lease-ttl", LEASE),
    ];
    let opt = with_certificate(&etcd, path);
    let options = with(with(shared(&etcd), &mode), &[("kvstore-opt", &opt)]);
    let mut right = new(&options);
    let mut wrong = node_b(&etcd);
    wrong.options = with(with(wrong.options.clone(), &mode), &[("kvstore-opt", &opt)]);
    wrong.clock = Some(Clock::new("/tmp/calendar".as_ref(), sign * HOUR));
    right.start();
    wrong.start();

    // What this clock makes of a certificate is said, and a good one is waited for.
    let said = if sign > 0 { "certificate expired" } else { "certificate not valid yet" };
    eventually("the server's certificate is named", || {
        let status = status(&wrong);
        status.contains(said) && status.contains("the server's certificate, and by this machine's clock")
    });
    has_read(&right);
    let server = right.workload("server", &["k8s:app=server"]);
    let client = wrong.workload("client", &["k8s:app=client"]);
    let intruder = wrong.workload("intruder", &["k8s:app=intruder"]);
    ca.issue(path, "server");

    let policies = allow("web", "server", "client", 80);
    right.policy_file("web.yaml", &policies);
    wrong.policy_file("web.yaml", &policies);
    let knows = |node: &TestNode, address: std::net::IpAddr| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        who(node, &format!("{address}/{length}"))
            .is_some_and(|(identity, pending)| identity >> 16 == 238 && !pending)
    };
    for workload in [&server, &client, &intruder] {
        for address in [workload.v4(), workload.v6()] {
            eventually("both know each other's", || knows(&right, address) && knows(&wrong, address));
        }
    }
    server.serves(server.v4(), 80);
    eventually("the client gets through", || client.asks(server.v4(), 80));
    eventually("the intruder does not", || intruder.asks_in_vain(server.v4(), 80));
    let mut open = client.connects(server.v4(), 80).unwrap();

    // Versions of the cluster's policies are told by their numbers, whatever their times.
    for (version, time) in [(1, sign * DAY), (2, 0), (3, -sign * DAY)] {
        put_shared_policy(&etcd, version, &in_seconds(time));
        eventually("the version is in force", || {
            has_version(&right, version) && has_version(&wrong, version)
        });
    }

    // A node that is silent waits for its grace by the clock that does not jump.
    let lease = etcd.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let lease = lease.split_whitespace().nth(1).unwrap();
    let with_lease = format!("--lease={lease}");
    let old = r#"{"Name":"old","Cluster":"cluster1","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.77"}],"IPv4AllocCIDR":{"IP":"10.77.0.0","Mask":"////AA=="},"ClusterID":238,"Source":"local"}"#;
    let number = server.endpoint.status.identity.as_ref().unwrap().id;
    let pair = format!(
        r#"{{"IP":"10.77.0.5","Mask":null,"HostIP":"10.3.9.77","ID":{number},"Key":0,"Metadata":"cilium-global:cluster1:old:7"}}"#
    );
    etcd.etcdctl(&["put", &with_lease, "cilium/state/nodes/v1/cluster1/old", old]).unwrap();
    etcd.etcdctl(&["put", &with_lease, "cilium/state/ip/v1/default/10.77.0.5", &pair]).unwrap();
    let silent = "10.77.0.5/32";
    eventually("it is known", || {
        [&right, &wrong].iter().all(|node| who(node, silent) == Some((number, false)))
    });
    etcd.etcdctl(&["lease", "revoke", lease]).unwrap();
    eventually("it is silent", || {
        [&right, &wrong].iter().all(|node| metric(node, "villus_kvstore_stale_nodes") == 1.0)
    });
    let before = ["node-a", "node-b"].map(|node| made(&etcd, node));
    wrong.clock.as_ref().unwrap().set(sign * DAY);
    eventually("the jump is counted, and the clock is said to be off", || {
        etcd.etcdctl(&["put", "cilium/.heartbeat", &in_seconds(0)]).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        metric(&wrong, "villus_clock_jumps_total") == 1.0
            && status(&wrong).contains("this node's clock is")
            && status(&wrong).contains(&side)
    });
    let off = metric(&wrong, "villus_clock_offset_seconds");
    assert!(off.abs() > 23.0 * 3600.0 && off.abs() < 25.0 * 3600.0 && (off > 0.0) == (sign > 0), "{off}");
    assert!(!status(&right).contains("this node's clock"), "{}", status(&right));
    for node in [&right, &wrong] {
        assert_eq!(who(node, silent), Some((number, false)), "what is silent still counts");
    }
    assert_eq!(before, ["node-a", "node-b"].map(|node| made(&etcd, node)), "no lease ran out");
    assert!(echoes(&mut open) && client.asks(server.v4(), 80) && intruder.asks_in_vain(server.v4(), 80));

    // Started without the store, the calendar set right meanwhile: the snapshot is of another time.
    let snapshot = wrong.root.join("lib/cluster.json");
    let address = server.v4().to_string();
    eventually("what is known is written down", || {
        std::fs::read_to_string(&snapshot).is_ok_and(|text| text.contains(&address))
    });
    etcd.kill();
    wrong.kill();
    assert!(echoes(&mut open));
    wrong.clock.as_ref().unwrap().set(0);
    wrong.start();
    let said = status(&wrong);
    let age = said.split("from snapshot, age ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let age = age.split(':').next().unwrap();
    match sign > 0 {
        true => assert!(age.starts_with("unknown"), "{said}"),
        false => assert!(age.trim_end_matches('s').parse::<i64>().is_ok_and(|age| age >= HOUR), "{said}"),
    }
    assert!(knows(&wrong, server.v4()) && who(&wrong, silent).is_some());
    assert!(echoes(&mut open) && client.asks(server.v4(), 80) && intruder.asks_in_vain(server.v4(), 80));
    etcd.resume();
    etcd.wait();
    eventually("the store is back", || !status(&wrong).contains("from snapshot"));
    let late = wrong.workload("late", &["k8s:app=client", "k8s:run=late"]);
    eventually("what comes now is known", || knows(&right, late.v4()) && knows(&right, late.v6()));
    eventually("and gets through", || late.asks(server.v4(), 80));
    for node in [&right, &wrong] {
        assert!(!status(node).contains("can't be used"), "{}", status(node));
    }
}
