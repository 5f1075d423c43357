//! Policies for all nodes on a real etcd: applied, shown, taken back, and who has realised them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod common;

use std::path::Path;

use common::{Said, command, said, secured::Secured};
use serde_json::Value;
use tempfile::TempDir;
use villus_testbed::EtcdServer;

struct Lab {
    server: EtcdServer,
    directory: TempDir,
}

fn write(directory: &Path, file: &str, name: &str, port: u16) {
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{app: web}}}}\n  ingress:\n  - toPorts:\n    - ports: [{{port: '{port}', protocol: TCP}}]\n"
    );
    std::fs::write(directory.join(file), text).unwrap();
}

impl Lab {
    fn new() -> Self {
        Self { server: EtcdServer::start(), directory: tempfile::tempdir().unwrap() }
    }

    fn run(&self, args: &[&str]) -> Said {
        let option = format!("etcd.address={}", self.server.url());
        let all = [&["policy"], args, &["--kvstore-opt", &option, "--cluster-name", "c1"]].concat();
        said(&command(&all).current_dir(self.directory.path()).output().unwrap())
    }

    fn write(&self, file: &str, name: &str, port: u16) {
        write(self.path(), file, name, port);
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn keys(&self) -> String {
        self.server.etcdctl(&["get", "--prefix", "villus/", "--keys-only"]).unwrap()
    }
}

#[test]
fn policies_of_a_cluster_have_versions_and_a_way_back() {
    let lab = Lab::new();
    lab.write("web.yaml", "web", 80);
    lab.write("db.yaml", "db", 5432);
    let said = lab.run(&["apply", "--cluster", "web.yaml", "db.yaml", "--dry-run"]).ok();
    assert_eq!(
        said,
        "CiliumNetworkPolicy shop/db would be added: version 1\nCiliumNetworkPolicy shop/web would be added: version 1\n"
    );
    assert_eq!(lab.keys(), "");
    lab.run(&["apply", "--cluster", "web.yaml", "db.yaml"]).ok();
    assert_eq!(lab.run(&["apply", "--cluster", "web.yaml", "db.yaml"]).ok(), "nothing changes\n");
    lab.write("web.yaml", "web", 81);
    let said = lab.run(&["apply", "--cluster", "web.yaml"]).ok();
    assert_eq!(said, "CiliumNetworkPolicy shop/web replaced: version 2, was 1\n");
    let said = lab.run(&["rollback", "web"]).ok();
    assert_eq!(said, "CiliumNetworkPolicy shop/web replaced: version 3, was 2, rollback to 1\n");
    let said = lab.run(&["delete", "--cluster", "shop/web"]).ok();
    assert_eq!(said, "CiliumNetworkPolicy shop/web deleted: version 4, was 3\n");
    let said = lab.run(&["rollback", "web", "2"]).ok();
    assert_eq!(said, "CiliumNetworkPolicy shop/web added: version 5, rollback to 2\n");
    let history: Value = serde_json::from_str(&lab.run(&["history", "web", "-o", "json"]).ok()).unwrap();
    assert_eq!(history.as_array().map(Vec::len), Some(5));
    assert!(history[0]["author"].as_str().unwrap().contains('@'));
    let text = lab.run(&["history", "web"]).ok();
    assert!(
        text.starts_with("CiliumNetworkPolicy shop/web\nVERSION") && text.contains("rollback to 2"),
        "{text}"
    );
    assert!(lab.keys().contains("villus/policies/v1/c1/current/CiliumNetworkPolicy/shop/web\n"));
}

#[test]
fn the_author_is_the_user_of_the_certificate_and_who_may_not_change_policies_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let secured = Secured::new(directory.path(), "node1", "10.15.0.0/24");
    write(directory.path(), "web.yaml", "web", 80);
    let run = |who: &str, words: &[&str]| {
        let option = secured.option(who);
        let all = [&["policy"], words, &["--kvstore-opt", &option, "--cluster-name", "c1"]].concat();
        said(&command(&all).current_dir(directory.path()).output().unwrap())
    };
    let refused = run("users/op", &["apply", "--cluster", "web.yaml"]).fails(1);
    assert!(refused.contains("does not permit"), "{refused}");
    run("users/ann", &["apply", "--cluster", "web.yaml"]).ok();
    let history: Value =
        serde_json::from_str(&run("users/op", &["history", "web", "-o", "json"]).ok()).unwrap();
    let author = history[0]["author"].as_str().unwrap();
    assert!(author.starts_with("ann (") && author.contains('@'), "{author}");
}

#[test]
fn what_could_not_be_enforced_is_refused_whole() {
    let lab = Lab::new();
    lab.write("good.yaml", "web", 80);
    std::fs::write(lab.path().join("bad.yaml"), "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n")
        .unwrap();
    lab.write("again.yaml", "web", 81);
    assert!(lab.run(&["apply", "--cluster", "good.yaml", "bad.yaml"]).fails(1).contains("bad.yaml"));
    let error = lab.run(&["apply", "--cluster", "good.yaml", "again.yaml"]).fails(1);
    assert!(error.contains("good.yaml") && error.contains("again.yaml"), "{error}");
    assert!(lab.run(&["apply", "good.yaml"]).fails(2).contains("--cluster"));
    assert!(lab.run(&["rollback", "web"]).fails(1).contains("no policy web"));
    assert!(lab.run(&["delete", "--cluster", "--all"]).fails(2).contains("--all"));
    assert_eq!(lab.keys(), "");
}

#[test]
fn nodes_that_have_not_realised_a_version_are_named() {
    let lab = Lab::new();
    lab.write("web.yaml", "web", 80);
    lab.run(&["apply", "--cluster", "web.yaml"]).ok();
    for node in ["n1", "n2"] {
        lab.server.etcdctl(&["put", &format!("cilium/state/nodes/v1/c1/{node}"), "{}"]).unwrap();
    }
    lab.server.etcdctl(&["put", "villus/realised/v1/c1/n1", r#"{"revision":100}"#]).unwrap();
    let said = lab.run(&["status", "web"]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.out.contains("Realised by 1/2 nodes\nMissing: n2: it has not said anything\n"), "{said:?}");
    let table = lab.run(&["status"]).ok();
    assert!(table.contains("CiliumNetworkPolicy shop/web") && table.contains("1/2"), "{table}");
    lab.server.etcdctl(&["put", "villus/realised/v1/c1/n2", r#"{"revision":100}"#]).unwrap();
    let said: Value =
        serde_json::from_str(&lab.run(&["status", "web", "--wait", "60", "-o", "json"]).ok()).unwrap();
    assert_eq!(said["realised"]["nodes"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_store_of_other_clusters_is_not_written_for_a_cluster_that_nobody_named() {
    let lab = Lab::new();
    lab.write("web.yaml", "web", 80);
    let option = format!("etcd.address={}", lab.server.url());
    let apply = || {
        let all = ["policy", "apply", "--cluster", "web.yaml", "--kvstore-opt", &option];
        said(&command(&all).current_dir(lab.path()).output().unwrap())
    };
    lab.server.etcdctl(&["put", "cilium/cluster-config/c1", "{}"]).unwrap();
    let error = apply().fails(2);
    assert!(error.contains("the store has cluster c1") && error.contains("--cluster-name"), "{error}");
    assert_eq!(lab.keys(), "");
    lab.server.etcdctl(&["put", "cilium/cluster-config/default", "{}"]).unwrap();
    apply().ok();
    assert!(lab.keys().contains("villus/policies/v1/default/"));
}
