//! `villus kvstoremesh` as a process, between real etcds.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};

use common::{Said, command, villus};
use tempfile::TempDir;
use villus_testbed::{EtcdServer, eventually};

struct Mesh {
    directory: TempDir,
    child: Option<Child>,
    local: String,
}

impl Mesh {
    fn new(local: &EtcdServer, remotes: &[(&str, &EtcdServer)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("mesh")).unwrap();
        for (name, server) in remotes {
            let text = format!("endpoints: ['{}']\n", server.url());
            std::fs::write(directory.path().join("mesh").join(name), text).unwrap();
        }
        Self { directory, child: None, local: local.url() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn arguments(&self) -> Vec<String> {
        [
            "kvstoremesh",
            "--cluster-name=c1",
            "--cluster-id=1",
            &format!("--kvstore-opt=etcd.address={}", self.local),
            &format!("--clustermesh-config={}", self.path("mesh")),
            &format!("--status-file={}", self.path("status")),
            "--removal-grace=1s",
            "--rewind-grace=1s",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn start(&mut self) {
        let arguments = self.arguments();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = std::fs::File::create(self.path("log")).unwrap();
        self.child = Some(command(&words).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn status(&self) -> Said {
        villus(&["kvstoremesh", "status", "--status-file", &self.path("status")])
    }

    fn ready(&self) {
        eventually("all are ready", || {
            let said = self.status();
            said.code == 0 && said.out.contains(": 1/1 remote clusters ready")
        });
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.kill();
    }
}

fn put(server: &EtcdServer, key: &str, value: &str) {
    server.etcdctl(&["put", key, value]).unwrap();
}

fn keys(server: &EtcdServer, prefix: &str) -> Vec<String> {
    let text = server.etcdctl(&["get", "--prefix", "--keys-only", prefix]).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_process_copies_says_how_it_is_and_leaves_everything_when_it_is_killed() {
    let (here, there) = (EtcdServer::start(), EtcdServer::start());
    put(&there, "cilium/cluster-config/c2", r#"{"id":2}"#);
    put(&there, "cilium/state/nodes/v1/c2/n1", "{}");
    put(&there, "cilium/state/identities/v1/id/131073", "k8s:app=web;");
    put(&there, "cilium/state/ip/v1/default/10.2.0.1", r#"{"IP":"10.2.0.1","ID":131073}"#);
    let mut mesh = Mesh::new(&here, &[("c2", &there)]);
    let none = mesh.status().fails(1);
    assert!(none.contains("no mesh says how it is"), "{none}");

    let dry: Vec<String> = mesh.arguments().into_iter().chain(["--dry-run".to_owned()]).collect();
    let dry: Vec<&str> = dry.iter().map(String::as_str).collect();
    let said = villus(&dry).ok();
    assert!(said.contains("identities") && said.lines().count() == 5, "{said}");
    assert!(keys(&here, "").is_empty(), "a dry run writes nothing");

    mesh.start();
    mesh.ready();
    let copies = [
        "cilium/cache/identities/v1/c2/id/131073",
        "cilium/cache/ip/v1/c2/10.2.0.1",
        "cilium/cache/nodes/v1/c2/n1",
    ];
    assert_eq!(keys(&here, "cilium/cache/"), copies);
    let said = mesh.status().ok();
    assert!(
        said.contains("KVStoreMesh of c1 (id 1): 1/1 remote clusters ready, layout cache, copying"),
        "{said}"
    );
    assert!(said.contains("c2: ready, 1 nodes, 1 endpoints, 1 identities, 0 services, 0 failures"), "{said}");

    mesh.kill();
    assert_eq!(keys(&here, "cilium/cache/"), copies);
    put(&there, "cilium/state/nodes/v1/c2/n2", "{}");
    mesh.start();
    eventually("the next process goes on", || keys(&here, "cilium/cache/").len() == 4);

    std::fs::remove_file(Path::new(&mesh.path("mesh")).join("c2")).unwrap();
    eventually("copies of what is not configured go", || {
        keys(&here, "cilium/").iter().all(|key| key.contains("lock"))
    });
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    for (arguments, says) in [
        (&["kvstoremesh"][..], "--cluster-name"),
        (&["kvstoremesh", "--cluster-name=C1"], "C1"),
        (&["kvstoremesh", "--cluster-name=c1", "--cluster-id=256"], "--cluster-id"),
        (&["kvstoremesh", "--cluster-name=c1", "--max-connected-clusters=300"], "--max-connected-clusters"),
        (&["kvstoremesh", "--cluster-name=c1"], "--clustermesh-config"),
        (&["kvstoremesh", "--cluster-name=c1", "--clustermesh-config=/x"], "local store"),
        (&["kvstoremesh", "--cluster-name=c1", "--clustermesh-config=/x", "--kvstore-opt=x"], "key=value"),
        (&["kvstoremesh", "--cluster-name=c1", "--layout=both"], "cache and state"),
        (&["kvstoremesh", "--cluster-name=c1", "--removal-grace=soon"], "soon"),
    ] {
        let said = villus(arguments).fails(2);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}
