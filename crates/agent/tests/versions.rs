//! Agents of the version before and of this one: what one leaves on disk and in the store the other reads, both ways.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::path::{Path, PathBuf};

use common::store::{
    LETS_IN, OUTSIDE, has_read, join_b, lets_in, new, node_b, put_shared_policy, shared, started, status,
    value, who, with,
};
use common::{TestNode, Workload, allow, echoes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use villus_api::model::EndpointState;
use villus_testbed::{EtcdServer, alone, eventually, run};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// The layouts of the version before, as its code had them. What it does not know it leaves out.
mod before {
    use serde::{Deserialize, Serialize};
    use serde_json::Value;

    /// `cluster.json`.
    #[derive(Serialize, Deserialize)]
    pub struct Snapshot {
        pub format: u32,
        pub saved: String,
        pub store: u64,
        pub revision: u64,
        pub identities: Vec<(u32, String)>,
        pub remote: Remote,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Remote {
        pub addresses: Vec<(String, Address)>,
        pub nodes: Vec<(Node, bool)>,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Address {
        pub prefix: String,
        pub identity: u32,
        pub host: Option<String>,
        pub leased: bool,
    }

    /// A node, on disk and in the store.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub struct Node {
        pub name: String,
        pub cluster: String,
        #[serde(rename = "IPAddresses")]
        pub addresses: Vec<Value>,
        #[serde(rename = "IPv4AllocCIDR")]
        pub v4: Value,
        #[serde(rename = "IPv6AllocCIDR")]
        pub v6: Value,
        #[serde(rename = "ClusterID")]
        pub cluster_id: u32,
        pub source: String,
        pub encryption_key: u8,
        pub labels: Value,
    }

    /// An address in the store.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub struct Pair {
        #[serde(rename = "IP")]
        pub ip: String,
        #[serde(rename = "HostIP")]
        pub host: String,
        #[serde(rename = "ID")]
        pub id: u32,
        pub key: u8,
        pub metadata: String,
    }

    /// `endpoints/<id>.json`, as the first version had it.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub struct Endpoint {
        pub format: u32,
        pub boot_id: String,
        pub id: u16,
        pub identity: u32,
        pub labels: Vec<String>,
        pub addresses: Vec<String>,
        pub names: Value,
        #[serde(default)]
        pub sticky: bool,
        #[serde(default)]
        pub allow_dhcp: bool,
        pub device: Option<Value>,
        pub created: String,
    }

    /// `cluster-policies/<object>.json`.
    #[derive(Serialize, Deserialize)]
    pub struct Kept {
        pub name: Value,
        pub version: Version,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Version {
        pub version: u64,
        pub author: String,
        pub time: String,
        pub object: Option<Value>,
    }

    /// `waiting-policies.json`.
    #[derive(Serialize, Deserialize)]
    pub struct Waiting {
        pub last: u64,
        pub changes: Vec<Value>,
        pub rejected: Value,
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", path.display()))
}

/// Reads a file as the version before does, and writes it as that one wrote it.
fn as_before<T: DeserializeOwned + Serialize>(path: &Path) -> T {
    let read: T = read(path);
    std::fs::write(path, serde_json::to_vec(&read).unwrap()).unwrap();
    read
}

fn endpoint_files(lib: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lib.join("endpoints")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}

#[test]
fn what_the_version_before_left_is_taken_over_and_what_is_written_now_it_can_read() {
    alone!();
    let mut etcd = EtcdServer::start();
    let mut node = started(&shared(&etcd));
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    server.serves(server.v4(), 80);
    node.import(LETS_IN);
    node.import(&allow("web", "server", "client", 80));
    let mut open = client.connects(server.v4(), 80).unwrap();
    for (key, value) in OUTSIDE {
        etcd.etcdctl(&["put", key, value]).unwrap();
    }
    put_shared_policy(&etcd, 1, "2026-01-01T00:00:00Z");
    let lib = node.root.join("lib");
    let kept = lib.join("cluster-policies/CiliumNetworkPolicy_default_shared.json");
    eventually("the policy is kept", || kept.exists());
    eventually("what is known is written down", || {
        std::fs::read_to_string(lib.join("cluster.json"))
            .is_ok_and(|text| text.contains("10.3.192.65") && text.contains("k8s:app=app1;"))
    });

    // In the store: what the version before reads of this node.
    let own = || value(&etcd, "cilium/state/nodes/v1/cluster1/node-a");
    eventually("it is told", || !own().is_empty());
    let own: before::Node = serde_json::from_str(&own()).unwrap();
    assert_eq!((own.name.as_str(), own.cluster.as_str(), own.cluster_id), ("node-a", "cluster1", 238));
    assert!(own.addresses.iter().any(|address| address["IP"] == "10.3.9.1"), "{:?}", own.addresses);
    let key = format!("cilium/state/ip/v1/default/{}", server.v4());
    eventually("its addresses are told", || !value(&etcd, &key).is_empty());
    let pair: before::Pair = serde_json::from_str(&value(&etcd, &key)).unwrap();
    let number = server.endpoint.status.identity.as_ref().unwrap().id;
    assert_eq!((pair.ip, pair.host.as_str(), pair.id), (server.v4().to_string(), "10.3.9.1", number));
    assert_eq!((pair.key, pair.metadata.starts_with("cilium-global:cluster1:node-a:")), (0, true));

    // On disk: back to the version before, which writes as it did, with a clock that is an hour ahead; then to this one,
    // whose clock is right again, while the store is away.
    etcd.kill();
    node.kill();
    let snapshot: before::Snapshot = as_before(&lib.join("cluster.json"));
    assert_eq!(snapshot.format, 1);
    let names: Vec<&str> = snapshot.remote.addresses.iter().map(|(key, _)| key.as_str()).collect();
    assert!(names.contains(&OUTSIDE[2].0), "{names:?}");
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let snapshot = before::Snapshot { saved: ahead.to_string(), ..snapshot };
    std::fs::write(lib.join("cluster.json"), serde_json::to_vec(&snapshot).unwrap()).unwrap();
    let files = endpoint_files(&lib);
    assert_eq!(files.len(), 2);
    for file in &files {
        let endpoint: before::Endpoint = as_before(file);
        assert_eq!(endpoint.format, 1);
        let _ = std::fs::remove_file(file.with_extension("copy"));
    }
    let policy: before::Kept = as_before(&kept);
    assert_eq!(policy.version.version, 1);
    if lib.join("waiting-policies.json").exists() {
        let _: before::Waiting = as_before(&lib.join("waiting-policies.json"));
    }
    node.start();
    eventually("it is known", || who(&node, "10.3.192.65/32") == Some((15_614_229, false)));
    eventually("policy is in force", || lets_in(&node, server.id(), 15_614_229));
    let endpoints = node.client().endpoints(&[]).unwrap();
    let is_it =
        |id: u16| endpoints.iter().find(|endpoint| endpoint.id == id).unwrap().status.identity.clone();
    assert_eq!(is_it(server.id()), server.endpoint.status.identity);
    assert_eq!(is_it(client.id()), client.endpoint.status.identity);
    assert!(status(&node).contains("from snapshot, age unknown"), "{}", status(&node));
    assert!(echoes(&mut open) && client.asks(server.v4(), 80));

    // Both on one store: an agent of the version before tells of itself, and is understood.
    etcd.resume();
    etcd.wait();
    eventually("the store is back", || !status(&node).contains("from snapshot"));
    let old = r#"{"Name":"old","Cluster":"cluster1","IPAddresses":[{"Type":"InternalIP","IP":"10.3.9.77"},{"Type":"CiliumInternalIP","IP":"10.77.0.1"}],"IPv4AllocCIDR":{"IP":"10.77.0.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":238,"Source":"local","EncryptionKey":0,"Labels":{},"Annotations":null,"NodeIdentity":0,"WireguardPubKey":"","BootID":"b"}"#;
    let address = format!(
        r#"{{"IP":"10.77.0.5","Mask":null,"HostIP":"10.3.9.77","ID":{number},"Key":0,"Metadata":"cilium-global:cluster1:old:7"}}"#
    );
    etcd.etcdctl(&["put", "cilium/state/nodes/v1/cluster1/old", old]).unwrap();
    etcd.etcdctl(&["put", "cilium/state/ip/v1/default/10.77.0.5", &address]).unwrap();
    eventually("the other is known", || {
        who(&node, "10.77.0.5/32") == Some((number, false)) && who(&node, "10.77.0.0/24").is_some()
    });
    assert!(!status(&node).contains("can't be used"), "{}", status(&node));
}

/// Puts what an earlier version has written into the store, each key under a lease if it was under one.
fn fill(etcd: &EtcdServer, written: &str) {
    let granted = etcd.etcdctl(&["lease", "grant", "86400"]).unwrap();
    let lease = format!("--lease={}", granted.split_whitespace().nth(1).unwrap());
    let lines: Vec<&str> = written.lines().collect();
    for [key, value] in lines.as_chunks::<2>().0 {
        let is_leased = ["/value/", "/default/", "/nodes/"].iter().any(|part| key.contains(part));
        let options = if is_leased { vec![lease.as_str()] } else { Vec::new() };
        etcd.etcdctl(&[&["put"], &options[..], &["--", key, value]].concat()).unwrap();
    }
}

#[test]
fn a_node_as_an_earlier_version_left_it_goes_on_beside_a_new_one_and_state_of_a_later_one_is_named() {
    alone!();
    join_b();
    let mut etcd = EtcdServer::cluster_at("10.3.9.1", 1, &[]).pop().unwrap();
    let before = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/before");
    fill(&etcd, &std::fs::read_to_string(before.join("store.txt")).unwrap());
    let mode = [("routing-mode", "tunnel")];
    let mut node = new(&with(shared(&etcd), &mode));
    let lib = node.root.join("lib");
    run("cp", &["-r", before.join("lib").to_str().unwrap(), lib.to_str().unwrap()]);
    node.policy_file("web.yaml", &allow("web", "server", "client", 80));
    let mut other = node_b(&etcd);
    other.options = with(other.options.clone(), &mode);
    other.start();
    has_read(&other);
    let mine = other.workload("mine", &["k8s:app=client"]);
    node.start();
    has_read(&node);

    // The machine has started anew since: what was an endpoint waits to be made again, and is then who it was.
    let waiting = node.client().endpoints(&[]).unwrap();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|endpoint| endpoint.status.state == EndpointState::Restoring));
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    assert_eq!((server.id(), client.id()), (1, 2));
    let number = |workload: &Workload| workload.endpoint.status.identity.as_ref().unwrap().id;
    assert_eq!((number(&server), number(&client)), (15_634_704, 15_647_266));
    assert_eq!((server.v4().to_string(), server.v6().to_string()), ("10.11.0.2".into(), "fd11::2".into()));
    let known = |node: &TestNode, workload: &Workload, number: u32| {
        who(node, &format!("{}/32", workload.v4())) == Some((number, false))
            && who(node, &format!("{}/128", workload.v6())) == Some((number, false))
    };
    eventually("the new one knows who the others are", || {
        known(&other, &server, 15_634_704) && known(&other, &client, 15_647_266)
    });
    eventually("the same labels have the number that they had", || known(&node, &mine, 15_647_266));
    eventually("policies of before are in force", || lets_in(&node, 1, 15_614_229));
    server.serves(server.v4(), 80);
    eventually("who may gets through on the node", || client.asks(server.v4(), 80));
    eventually("and from the new one", || mine.asks(server.v4(), 80));
    let intruder = other.workload("stranger", &["k8s:app=intruder"]);
    eventually("others do not", || intruder.asks_in_vain(server.v4(), 80));
    let mut open = mine.connects(server.v4(), 80).unwrap();
    assert!(node.client().verify(&Default::default()).unwrap().clean());

    // A later version has written the state of the cluster, and the store is away.
    eventually("what is known is written down", || {
        std::fs::read_to_string(lib.join("cluster.json")).is_ok_and(|text| text.contains("learned"))
    });
    etcd.kill();
    node.kill();
    for name in ["cluster.json", "cluster-before.json"] {
        let Ok(text) = std::fs::read_to_string(lib.join(name)) else { continue };
        let later = text.replacen(r#"{"format":1,"#, r#"{"format":2,"later":{"a":1},"#, 1);
        assert!(later != text, "{text}");
        std::fs::write(lib.join(name), later).unwrap();
    }
    node.start();
    let said = status(&node);
    assert!(said.contains("has format 2, this version reads 1"), "{said}");
    assert!(echoes(&mut open) && client.asks(server.v4(), 80), "endpoints and policies go on");
    etcd.resume();
    etcd.wait();
    eventually("all is known again", || known(&node, &mine, 15_647_266));
    assert!(echoes(&mut open) && mine.asks(server.v4(), 80) && intruder.asks_in_vain(server.v4(), 80));
}
