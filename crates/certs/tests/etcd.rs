//! A real etcd that knows agents by their certificates: what each may write, and what etcd cannot tell apart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use tempfile::TempDir;
use villus_certs::{
    Holder, Pki,
    etcd::{Access, Cluster},
};
use villus_kvstore::{Etcd, EtcdOptions, EtcdTls, LeasePurpose, Locks, Store};
use villus_testbed::EtcdServer;

const A: &str = "node-a";
const B: &str = "node-b";

struct Lab {
    directory: TempDir,
    server: EtcdServer,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::at(directory.path());
        pki.init("villus-ca", 3650).unwrap();
        pki.issue(&Holder::server("etcd", &["127.0.0.1".into()]).unwrap(), 365).unwrap();
        for node in [A, B, "stranger"] {
            pki.issue(&Holder::agent(node).unwrap(), 365).unwrap();
        }
        for user in ["root", "ann", "operator", "mesh", "c2"] {
            pki.issue(&Holder::user(user, None).unwrap(), 365).unwrap();
        }
        // Where the testbed's servers look for them.
        for (from, to) in [("servers/etcd", "server"), ("users/root", "admin")] {
            for kind in ["crt", "key"] {
                let file = |name: &str| directory.path().join(format!("{name}.{kind}"));
                std::fs::copy(file(from), file(to)).unwrap();
            }
        }
        let server = EtcdServer::secure(directory.path());
        let mut cluster = Cluster::new("c1", "default").unwrap();
        let ranges = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        cluster.add(A, ranges(&["10.0.1.0/24", "fd00:1:2:3:1::/80"])).unwrap();
        cluster.add(B, ranges(&["10.0.2.0/24", "192.0.2.7"])).unwrap();
        cluster.add_policy_writer("ann").unwrap();
        cluster.add_operator("operator").unwrap();
        cluster.add_mesh("mesh").unwrap();
        cluster.add_mesh_reader("c2").unwrap();
        let lab = Self { directory, server };
        let script = format!("{}{}", cluster.access().script(), Access::enable_script());
        // Once more as when a node is added.
        for _ in 0..2 {
            let made = lab.shell("users/root", &script);
            assert!(made.status.success(), "{}\n{made:?}", script);
        }
        lab
    }

    /// Runs commands with the certificate of somebody.
    fn shell(&self, who: &str, script: &str) -> Output {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        Command::new("sh")
            .args(["-c", script])
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_COMMAND_TIMEOUT", "60s")
            .env("ETCDCTL_DIAL_TIMEOUT", "60s")
            .env("ETCDCTL_ENDPOINTS", self.server.url())
            .env("ETCDCTL_CACERT", file("ca.crt"))
            .env("ETCDCTL_CERT", file(&format!("{who}.crt")))
            .env("ETCDCTL_KEY", file(&format!("{who}.key")))
            .output()
            .unwrap()
    }

    /// Whether somebody may do something with a key.
    fn may(&self, who: &str, verb: &str, key: &str) -> bool {
        let value = if verb == "put" { "1" } else { "" };
        let output = self.shell(who, &format!("etcdctl {verb} '{key}' {value}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("permission denied"), "{who} {verb} {key}: {said}");
        output.status.success()
    }

    fn store(&self, who: &str) -> Arc<dyn Store> {
        let file = |name: &str| -> std::path::PathBuf { Path::join(self.directory.path(), name) };
        let mut options = EtcdOptions::new(vec![self.server.url()]);
        let identity = (file(&format!("{who}.crt")), file(&format!("{who}.key")));
        options.tls = Some(EtcdTls { ca: Some(file("ca.crt")), identity: Some(identity) });
        Arc::new(Etcd::new(options).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_writes_its_node_and_its_addresses_and_no_others() {
    let lab = Lab::new();
    let (a, b) = (format!("agents/{A}"), format!("agents/{B}"));
    let table = [
        // Its own.
        (&a, "put", "cilium/state/nodes/v1/c1/node-a", true),
        (&a, "put", "villus/realised/v1/c1/node-a", true),
        (&a, "put", "villus/realised/v1/c1/node-b", false),
        (&a, "put", "cilium/state/ip/v1/default/10.0.1.7", true),
        (&a, "put", "cilium/state/ip/v1/default/fd00:1:2:3:1::9", true),
        (&b, "put", "cilium/state/ip/v1/default/192.0.2.7", true),
        // Another's.
        (&a, "put", "cilium/state/nodes/v1/c1/node-b", false),
        (&a, "del", "cilium/state/nodes/v1/c1/node-b", false),
        (&a, "put", "cilium/state/nodes/v1/c1/node-a/more", false),
        (&a, "put", "cilium/state/nodes/v1/c2/node-a", false),
        (&a, "put", "cilium/state/ip/v1/default/10.0.2.7", false),
        (&a, "put", "cilium/state/ip/v1/default/10.0.10.7", false),
        (&a, "put", "cilium/state/ip/v1/default/fd00:1:2:4:1::9", false),
        (&b, "put", "cilium/state/ip/v1/default/192.0.2.70", false),
        (&a, "put", "cilium/cluster-config/c2", false),
        (&a, "put", "cilium/.heartbeat", false),
        (&a, "put", "villus/policies/v1/c1/x", false),
        (&a, "put", "elsewhere", false),
        (&a, "get", "elsewhere", false),
        // What all read, and what etcd cannot tell apart.
        (&a, "get", "cilium/state/nodes/v1/c1/node-b", true),
        (&a, "get", "villus/policies/v1/c1/x", true),
        (&b, "put", "cilium/state/identities/v1/id/300", true),
        (&a, "put", "cilium/state/identities/v1/id/300", true),
        (&a, "del", "cilium/state/identities/v1/id/300", true),
    ];
    for (who, verb, key, wanted) in table {
        assert_eq!(lab.may(who, verb, key), wanted, "{who} {verb} {key}");
    }
    // A certificate of the same authority whose user nobody made.
    assert!(!lab.may("agents/stranger", "get", "cilium/state/nodes/v1/c1/node-b"));
    // Policies are for those whose certificate says so.
    assert!(lab.may("users/ann", "put", "villus/policies/v1/c1/x"));
    assert!(!lab.may("users/ann", "put", "villus/policies/v1/c2/x"));
    assert!(!lab.may("users/ann", "put", "cilium/state/nodes/v1/c1/node-a"));

    // The operator collects identities, leads, and ends nodes that do not come back; policies are not its own.
    for (key, wanted) in [
        ("cilium/state/identities/v1/id/300", true),
        ("cilium/.heartbeat", true),
        ("villus/operator/v1/c1/leader", true),
        ("cilium/state/nodes/v1/c1/node-a", true),
        ("villus/realised/v1/c1/node-a", true),
        ("cilium/state/ip/v1/default/10.0.1.7", true),
        ("cilium/state/nodes/v1/c2/node-a", false),
        ("villus/policies/v1/c1/x", false),
    ] {
        assert_eq!(lab.may("users/operator", "put", key), wanted, "operator {key}");
    }

    // Who copies other clusters writes copies, and none of what is this cluster's own; another cluster reads.
    for (who, key, wanted) in [
        ("users/mesh", "cilium/cache/ip/v1/c2/10.2.0.1", true),
        ("users/mesh", "cilium/cluster-config/c2", true),
        ("users/mesh", "cilium/synced/c2/cilium/cache/ip/v1", true),
        ("users/mesh", "cilium/.kvstoremesh/c2", true),
        ("users/mesh", "cilium/state/ip/v1/default/10.0.1.7", false),
        ("users/mesh", "cilium/state/identities/v1/id/300", false),
        ("users/mesh", "villus/policies/v1/c1/x", false),
        ("users/c2", "cilium/cache/ip/v1/c2/10.2.0.1", false),
        ("users/c2", "cilium/state/nodes/v1/c1/node-a", false),
    ] {
        assert_eq!(lab.may(who, "put", key), wanted, "{who} {key}");
    }
    assert!(lab.may("users/c2", "get", "cilium/state/nodes/v1/c1/node-b"));
    let locks = Locks::new(lab.store("users/mesh"));
    locks
        .acquire("cilium/kvstoremesh-lock", std::time::Duration::from_secs(60))
        .await
        .unwrap()
        .release()
        .await;

    // The same through the agent's own client: leases, transactions, locks' keys.
    let store = lab.store(&a);
    let lease = store.grant(std::time::Duration::from_secs(60), LeasePurpose::Entries).await.unwrap();
    let put = |key: &'static str| store.update(key, "x".into(), Some(lease));
    put("cilium/state/nodes/v1/c1/node-a").await.unwrap();
    store.keep_alive(lease).await.unwrap();
    let refused = put("cilium/state/nodes/v1/c1/node-b").await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    assert_eq!(store.list_prefix("cilium/state/nodes/v1/").await.unwrap().entries.len(), 1);
    store.revoke(lease).await.unwrap();
}

#[test]
fn clusters_that_cannot_be_are_refused() {
    let range = |text: &str| vec![text.parse().unwrap()];
    assert!(Cluster::new("a/b", "default").is_err() && Cluster::new("c1", "").is_err());
    let mut cluster = Cluster::new("c1", "default").unwrap();
    cluster.add(A, range("10.0.0.0/16")).unwrap();
    let error = cluster.add(B, range("10.0.7.0/24")).unwrap_err().to_string();
    assert!(error.contains(B) && error.contains("another node"), "{error}");
    assert!(cluster.add("Node", Vec::new()).is_err() && cluster.add_policy_writer("a b").is_err());
}
